"""Lockstep: the whole line on a fake clock, byte-equal for a seed and different for the next."""

import msgspec
import numpy as np
import pytest

from dzedge.config import default_path, load
from dzedge.export import stub
from dzedge.hardware.sim.scene import draw_layout
from dzedge.history import RunResult
from dzedge.kernels.tick import State
from dzedge.lockstep import Lockstep, run_lockstep
from dzedge.robot import verified_bundle

SECONDS = 3.0


@pytest.fixture(scope="module")
def parts():
    config = load(default_path())
    return config, verified_bundle(config)


def play(parts, seed: int, task: str | None = None) -> RunResult:
    config, bundle = parts
    return run_lockstep(config, bundle, task=task, seed=seed, duration_s=SECONDS, on_status=lambda status: None)


@pytest.fixture(scope="module")
def first(parts) -> RunResult:
    return play(parts, 7)


def test_two_runs_of_a_seed_write_the_same_bytes_to_the_bus(parts, first):
    again = play(parts, 7)
    assert again.wire_sha256 == first.wire_sha256
    assert len(first.wire_sha256) == 64
    np.testing.assert_array_equal(again.history.commands, first.history.commands)
    np.testing.assert_array_equal(again.history.positions, first.history.positions)
    assert [i.chunk_id for i in again.history.imaginations] == [i.chunk_id for i in first.history.imaginations]
    for mine, theirs in zip(again.history.seen, first.history.seen, strict=True):
        np.testing.assert_array_equal(mine.image, theirs.image)


def test_the_next_seed_differs(parts, first):
    assert play(parts, 8).wire_sha256 != first.wire_sha256


def test_other_words_move_the_arm_otherwise(parts, first):
    other = play(parts, 7, task="circle over the red cube")
    assert other.wire_sha256 != first.wire_sha256
    assert other.task == "circle over the red cube"


def test_every_stage_took_part(first):
    history = first.history
    assert first.chunks >= 10
    assert set(first.refused) <= {"chunk_epoch"}  # made for the last scene when the next began
    assert len(history.seams_ns) >= 10
    assert State.RUN in set(history.states)
    assert len(history.seen) >= 40  # 15 fps
    assert {"inference.encode", "inference.policy", "sim.render"} <= set(first.stages)
    moved = np.ptp(np.array(history.positions), axis=0)
    assert moved.max() > 0.005  # the arm has moved, and by what was commanded
    behind = np.abs(np.array(history.positions) - np.array(history.commands)).max()
    assert behind < 0.3


def test_frames_come_through_librealsense_unchanged(parts):
    config, bundle = parts
    robot = Lockstep(config, bundle, 3)
    try:
        for _ in range(30):
            robot.step()
        count, image, _, capture_ns, _ = robot.mailboxes.frames[0].newest()
        _, rendered, number, _, _ = robot.mailboxes.rendered[0].newest()
        assert count >= 3
        assert robot.camera.ring.newest()[2] == number
        np.testing.assert_array_equal(robot.camera.ring.newest()[1], rendered)
        assert capture_ns < robot.clock.now_ns()
        assert image.shape == rendered.shape
    finally:
        robot.close()


def test_nothing_of_the_simulator_reaches_the_policy_but_frames_and_replies(parts):
    """The same frames and replies give the same chunk, whatever the simulator's world says afterwards."""
    config, bundle = parts
    robot = Lockstep(config, bundle, 3)
    try:
        robot.mailboxes.scenes.write(bytes(8), (1, 3))
        robot.step()
        robot.board.set_task(robot.simulation.instruction, robot.clock.now_ns())
        for _ in range(40):
            robot.step()
        told = robot.inference.observations.build(np.zeros(6), np.zeros(6), robot.clock.now_ns())
        assert set(told.__slots__) == {"frames", "state", "t_obs_ns", "instruction", "epoch"}
        prefix = robot.inference.prefix(told.t_obs_ns, robot.clock.now_ns())
        before = robot.inference.policy.infer(told, prefix, 5).positions.copy()
        robot.simulation.robot.world.rearrange(99)
        np.testing.assert_array_equal(robot.inference.policy.infer(told, prefix, 5).positions, before)
    finally:
        robot.close()


def test_a_model_that_answers_nan_moves_nothing_and_is_counted(parts, tmp_path):
    config, _ = parts
    policy = msgspec.structs.replace(config.policy, bundle=str(stub.write(tmp_path / "nan.dzp", bias=float("nan"))))
    config = msgspec.structs.replace(config, policy=policy)
    red = next(seed for seed in range(100) if 0 in draw_layout(seed).colours)  # the stub knows three colours
    result = play((config, verified_bundle(config)), red, task="reach the red cube")
    assert result.refused == {"chunk_not_finite": result.chunks}
    assert result.chunks >= 10
    assert set(result.history.states) <= {State.READY, State.ARMED}
    assert np.ptp(np.array(result.history.commands[2:]), axis=0).max() == 0.0
