"""Lockstep: the whole line on a fake clock, byte-equal for a seed and different for the next."""

import msgspec
import numpy as np
import pytest

from dzedge.conditions import Conditions
from dzedge.config import default_path, load
from dzedge.export import stub
from dzedge.hardware.sim.scene import draw_layout
from dzedge.history import RunResult
from dzedge.kernels.tick import State
from dzedge.latency import DEFAULT, Latency
from dzedge.lockstep import Lockstep, Stopwatch, measure, run_lockstep
from dzedge.robot import verified_bundle

SECONDS = 3.0


@pytest.fixture(scope="module")
def parts():
    config = load(default_path())
    return config, verified_bundle(config)


def play(parts, seed: int, task: str | None = None, **more) -> RunResult:
    config, bundle = parts
    return run_lockstep(config, bundle, task=task, seed=seed, duration_s=SECONDS, **more)


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


class TestLean:
    def test_leaves_out_nothing_that_reaches_the_bus(self, parts, first):
        lean = play(parts, 7, lean=True)
        assert lean.wire_sha256 == first.wire_sha256
        assert (lean.chunks, lean.task, lean.success) == (first.chunks, first.task, first.success)
        assert not lean.history.times_ns and not lean.history.seen
        assert lean.stages["inference.policy"]["count"] == first.stages["inference.policy"]["count"]
        assert "inference.encode" not in lean.stages

    def test_an_episode_does_not_depend_on_those_before_it(self, parts, first):
        play(parts, 9, task="circle over the red cube", lean=True)
        assert play(parts, 7, lean=True).wire_sha256 == first.wire_sha256


class TestConditions:
    @pytest.fixture
    def drive(self, parts):
        """A robot under these conditions after two seconds of its task."""
        config, bundle = parts
        robots = []

        def run(**conditions) -> Lockstep:
            robot = Lockstep(config, bundle, 7, conditions=Conditions(**conditions), lean=True)
            robots.append(robot)
            robot.prefixes = []
            infer = robot.inference.policy.infer

            def noted(observation, prefix, chunk_id):
                robot.prefixes.append(len(prefix.positions))
                return infer(observation, prefix, chunk_id)

            robot.inference.policy.infer = noted
            robot.new_task(None, 7)
            for _ in range(200):
                robot.step()
            return robot

        yield run
        for robot in robots:
            robot.close()

    def test_synchronous_nothing_is_late(self, drive):
        robot = drive(synchronous=True)
        assert set(robot.inference.delays) == {0} and set(robot.prefixes) == {0}
        # the observation's joints are those of its own instant
        record = robot.mailboxes.states.at(robot.inference.observations.newest_ns)
        assert record[3] == robot.inference.observations.newest_ns

    def test_latency_is_what_the_table_says(self, drive):
        slow = Latency.of([100.0, 100.0], "slow", 2)
        assert max(drive(latency=slow).inference.delays) == 120_000_000  # 12 ms of camera and 100, to the next tick
        assert max(drive().inference.delays) < 120_000_000

    def test_a_delay_keeps_inference_busy(self, drive):
        plain, late = drive(), drive(delay_ms=300.0)
        assert min(late.inference.delays) >= 312_000_000
        # nothing is looked at until the chunk is there: at most one chunk in 300 ms, though five a second are asked
        assert len(late.prefixes) <= 2.0 / 0.3 + 1 < len(plain.prefixes)
        assert max(late.prefixes) == late.inference.policy.max_prefix

    def test_without_prefix_the_model_is_told_nothing(self, drive):
        assert set(drive(prefix=False).prefixes) == {0}
        assert max(drive().prefixes) >= 1

    def test_without_smoothing_the_actions_themselves_are_played(self, drive):
        smooth, plain = drive(), drive(smoothing=False)
        assert not plain.tick.blended and smooth.tick.blended
        for robot, same in ((plain, True), (smooth, False)):
            knots, start_ns, step_ns, chunk_id = robot.mailboxes.trajectory.newest()
            _, positions, _, newest, _, t_obs_ns, dt_ns = robot.mailboxes.chunks.newest()
            assert (start_ns, chunk_id) == (t_obs_ns, newest)
            assert (step_ns == dt_ns) is same
            rows = knots[1:] if same else knots[2::2]
            positions[:, -1] = positions[:, -1].clip(0.0, 1.0)  # a closed gripper is at its limit
            assert np.allclose(rows, positions, atol=1e-12) is same
        assert plain.wire.hexdigest() != smooth.wire.hexdigest()
        assert State(plain.tick.state) == State.RUN and not plain.tick.refused_commands.any()

    def test_each_condition_changes_what_is_written(self, drive):
        wires = [
            drive(**conditions).wire.hexdigest()
            for conditions in ({}, {"synchronous": True}, {"delay_ms": 100.0}, {"prefix": False}, {"smoothing": False})
        ]
        assert len(set(wires)) == len(wires)


def test_a_latency_is_measured_over_the_decisions_asked(parts):
    config, bundle = parts
    told = []
    found = measure(config, bundle, decisions=4, on_decision=lambda: told.append(1))
    assert (found.policy, found.decisions, len(told)) == (bundle.manifest.dzedge.model_id, 4, 4)
    assert 0.0 < found.quantiles_ms[0] <= found.quantiles_ms[-1]
    assert found != DEFAULT


def test_a_stopwatch_waits_for_real_time(parts):
    config, bundle = parts
    robot = Stopwatch(config, bundle, 0)
    try:
        for _ in range(5):
            robot.step()
        assert robot.real.now_ns() - robot.ahead_ns >= robot.clock.now_ns()
    finally:
        robot.close()
