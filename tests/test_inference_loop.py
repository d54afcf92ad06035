"""inference: one chunk when one is due, with the commands that will have been sent as its prefix."""

import numpy as np
import pytest

from dzedge.config import default_path, load
from dzedge.errors import PolicyError
from dzedge.inference_loop import REFUSED, Inference
from dzedge.mailboxes import Mailboxes
from dzedge.types import ActionChunk, ActionPrefix, Frame, Observation

MS = 1_000_000
JOINTS, HORIZON, LATENTS = 6, 8, 12


class Recorder:
    """Stands in for a model: remembers what it is asked, answers with the anchor. Proves nothing about a model."""

    horizon, dt_ns, max_prefix, history_ns = HORIZON, 100 * MS, 3, (200 * MS, 0)

    def __init__(self) -> None:
        self.asked: list[tuple[Observation, ActionPrefix]] = []
        self.observed: list[Frame] = []

    def reset(self, instruction: str) -> None:
        if "sofa" in instruction:
            raise PolicyError("unknown word 'sofa'")

    def observe(self, frame: Frame) -> None:
        self.observed.append(frame)

    def infer(self, observation: Observation, prefix: ActionPrefix, chunk_id: int) -> ActionChunk:
        self.asked.append((observation, prefix))
        positions = np.tile(observation.state.positions, (HORIZON, 1))
        imagined = np.zeros((1, 1, LATENTS), np.float32)
        return ActionChunk(positions, imagined, observation.t_obs_ns, self.dt_ns, chunk_id, observation.epoch)


@pytest.fixture
def robot():
    config = load(default_path())
    mailboxes = Mailboxes(config, HORIZON, LATENTS)
    yield Inference(config, Recorder(), mailboxes), mailboxes
    mailboxes.close()


def picture(mailboxes, number: int, capture_ns: int) -> None:
    image = np.full((120, 160, 3), number, np.uint8)
    mailboxes.frames[0].put(image, number, capture_ns, capture_ns + 5 * MS)


def drive(mailboxes, start_ns: int, count: int) -> None:
    """Control ticks at 100 Hz: measured = time in s, command = measured + 0.5."""
    for i in range(count):
        now = start_ns + i * 10 * MS
        measured = np.full(JOINTS, now * 1e-9)
        mailboxes.states.append(now, 4, 0, 0, measured, np.ones(JOINTS), measured + 0.5)


def test_no_task_no_chunk_but_frames_are_encoded(robot):
    inference, mailboxes = robot
    drive(mailboxes, 1000 * MS, 10)
    picture(mailboxes, 1, 1050 * MS)
    assert inference.step(1060 * MS) is None
    assert [frame.number for frame in inference.policy.observed] == [1]


def test_the_anchor_is_the_state_at_capture_not_at_arrival(robot):
    inference, mailboxes = robot
    mailboxes.board.set_task("reach the red cube", 0)
    drive(mailboxes, 1000 * MS, 30)
    picture(mailboxes, 1, 1105 * MS)
    chunk = inference.step(1290 * MS)
    observation, prefix = inference.policy.asked[0]
    np.testing.assert_allclose(observation.state.positions, 1.105)
    assert (chunk.t_obs_ns, chunk.epoch) == (1105 * MS, 1)
    assert len(prefix.positions) == 0  # no delay is known yet


def test_chunks_come_at_the_rate_of_the_robot_file_and_only_for_new_frames(robot):
    inference, mailboxes = robot
    mailboxes.board.set_task("reach the red cube", 0)
    drive(mailboxes, 1000 * MS, 120)
    made = 0
    for i in range(60):  # 60 Hz camera, 1 s
        now = 1100 * MS + i * 1000 * MS // 60
        picture(mailboxes, i, now)
        made += inference.step(now + MS) is not None
        assert inference.step(now + 2 * MS) is None
    assert made == 5


def test_an_old_frame_makes_no_chunk(robot):
    inference, mailboxes = robot
    mailboxes.board.set_task("reach the red cube", 0)
    drive(mailboxes, 1000 * MS, 10)
    picture(mailboxes, 1, 1050 * MS)
    assert inference.step(1050 * MS + 401 * MS) is None


def test_a_frame_from_before_the_first_state_makes_no_chunk(robot):
    inference, mailboxes = robot
    mailboxes.board.set_task("reach the red cube", 0)
    drive(mailboxes, 1000 * MS, 10)
    picture(mailboxes, 1, 900 * MS)
    assert inference.step(1010 * MS) is None


class TestPrefix:
    def delayed(self, robot, delay_ns: int) -> Inference:
        inference, mailboxes = robot
        inference.delays.append(delay_ns)
        drive(mailboxes, 1000 * MS, 61)  # to 1600 ms
        return inference

    def test_past_rows_are_the_commands_that_were_sent(self, robot):
        prefix = self.delayed(robot, 150 * MS).prefix(1300 * MS, 1600 * MS)
        np.testing.assert_allclose(prefix.positions, np.tile([[1.9], [2.0]], (1, JOINTS)))

    def test_future_rows_come_from_the_running_trajectory_and_end_where_it_ends(self, robot):
        inference = self.delayed(robot, 250 * MS)
        box = robot[1].trajectory
        knots = np.zeros((box.capacity, JOINTS))
        knots[:4] = np.arange(4)[:, None]
        box.write(knots.reshape(-1).view(np.uint8), (1500 * MS, 100 * MS, 4, 0))
        prefix = inference.prefix(1550 * MS, 1600 * MS)
        np.testing.assert_allclose(prefix.positions, np.tile([[1.5], [2.5]], (1, JOINTS)))

    def test_without_a_trajectory_it_shrinks_and_is_never_padded(self, robot):
        prefix = self.delayed(robot, 250 * MS).prefix(1450 * MS, 1600 * MS)
        assert prefix.positions.shape == (1, JOINTS)

    def test_it_is_capped_at_what_the_model_was_trained_for_and_counted(self, robot):
        inference = self.delayed(robot, 550 * MS)
        assert inference.prefix(1100 * MS, 1600 * MS).positions.shape == (3, JOINTS)
        assert inference.capped == 1

    def test_the_delay_is_the_longest_of_the_last_64_and_forgets_older_ones(self, robot):
        inference, mailboxes = robot
        mailboxes.board.set_task("reach the red cube", 0)
        drive(mailboxes, 1000 * MS, 10)
        picture(mailboxes, 1, 1050 * MS)
        chunk = inference.step(1060 * MS)
        inference.publish(chunk, chunk.t_obs_ns + 290 * MS)
        assert max(inference.delays) == 290 * MS
        for _ in range(64):
            inference.publish(chunk, chunk.t_obs_ns + 90 * MS)
        assert max(inference.delays) == 90 * MS


def test_an_instruction_that_cannot_be_embedded_makes_no_chunks_until_the_next_task(robot):
    inference, mailboxes = robot
    drive(mailboxes, 1000 * MS, 20)
    mailboxes.board.set_task("reach the sofa", 0)
    with pytest.raises(PolicyError, match="sofa"):
        inference.step(1000 * MS)
    assert inference.state == REFUSED
    picture(mailboxes, 1, 1050 * MS)
    assert inference.step(1060 * MS) is None
    mailboxes.board.set_task("reach the red cube", 0)
    picture(mailboxes, 2, 1100 * MS)
    chunk = inference.step(1110 * MS)
    assert chunk is not None
    assert chunk.epoch == 2
