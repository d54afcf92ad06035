"""Capture with several cameras: the simulator's pictures through librealsense into the rings, health, deadline."""

import time

import numpy as np
import pytest
from msgspec.structs import replace

from dzedge import config as robot_file
from dzedge.capture_loop import PERIOD_NS, Capture, tell
from dzedge.clock import NS, FakeClock, MonotonicClock
from dzedge.config import RobotConfig
from dzedge.errors import ConfigError
from dzedge.hardware.camera import CameraHealth, CameraState, worst
from dzedge.hardware.deadline import LIMIT_NS, Deadline
from dzedge.hardware.pairing import Pairing
from dzedge.hardware.sim.camera import EXPOSURE_US, GAIN
from dzedge.mailboxes import Mailboxes
from dzedge.sim_loop import Simulation


@pytest.fixture
def config() -> RobotConfig:
    """The simulated robot with a second camera, twice as fast."""
    config = robot_file.load(robot_file.default_path())
    first = config.cameras[0]
    return replace(config, cameras=(first, replace(first, name="side", fps=2 * first.fps)))


@pytest.fixture
def mailboxes(config: RobotConfig):
    mailboxes = Mailboxes(config, 8, 0)
    yield mailboxes
    mailboxes.close()


def test_two_simulated_cameras_see_the_same_scene_from_two_sides(config: RobotConfig, mailboxes: Mailboxes) -> None:
    clock = MonotonicClock()
    capture = Capture(config, mailboxes.rendered, mailboxes.frames)
    capture.start(clock.now_ns())
    simulation = Simulation(config, mailboxes, 3, clock.now_ns())
    pairing = Pairing(mailboxes.frames, NS // config.cameras[1].fps)
    try:
        deadline = time.monotonic() + 10
        pairs = 0
        while pairs < 5:
            assert time.monotonic() < deadline, "no pairs within 10 s"
            simulation.step(clock.now_ns())
            found = pairing.newest()
            if found is not None:
                pairs += 1
                one, two = found.frames
                assert found.skew_ns <= NS // 60
                assert np.abs(one.image.astype(int) - two.image).mean() > 5.0
                assert (one.exposure_us, one.gain, two.exposure_us) == (EXPOSURE_US, GAIN, EXPOSURE_US)
            clock.sleep_until_ns(clock.now_ns() + 2_000_000)
        healths = capture.step(clock.now_ns())
        assert [health.state in (CameraState.WARMUP, CameraState.LIVE, CameraState.LATE) for health in healths]
        assert mailboxes.frames[1].count > mailboxes.frames[0].count
        tell(capture)
    finally:
        capture.close()
    assert worst(capture.step(clock.now_ns())).state is CameraState.ABSENT


def test_no_more_simulated_cameras_than_there_are_places(config: RobotConfig) -> None:
    first = config.cameras[0]
    crowd = replace(config, cameras=tuple(replace(first, name=f"eye{i}") for i in range(3)))
    mailboxes = Mailboxes(crowd, 8, 0)
    with pytest.raises(ConfigError, match="3 simulated ones, places for 2; take the others out"):
        Simulation(crowd, mailboxes, 0, NS)
    mailboxes.close()


def test_looks_eight_times_in_a_period_of_the_fastest_camera(config: RobotConfig, mailboxes: Mailboxes) -> None:
    capture = Capture(config, mailboxes.rendered, mailboxes.frames)
    assert capture.period_ns == NS // (8 * config.cameras[1].fps)
    slow = replace(config, cameras=tuple(replace(camera, fps=1) for camera in config.cameras))
    assert Capture(slow, mailboxes.rendered, mailboxes.frames).period_ns == PERIOD_NS


def test_a_camera_that_hangs_ends_the_process(config: RobotConfig, mailboxes: Mailboxes) -> None:
    """Its library never returns: here it takes the clock past the limit instead."""
    clock, words = FakeClock(), []
    deadline = Deadline(clock, words.append)
    capture = Capture(config, mailboxes.rendered, mailboxes.frames, deadline)

    class Wedged:
        def tend(self, now_ns: int) -> CameraHealth:
            clock.advance_to_ns(now_ns + LIMIT_NS)
            deadline.check()
            return CameraHealth(CameraState.LOST, -1, 0, 0, 0)

    capture.cameras[1] = Wedged()
    capture.step(clock.now_ns())
    assert words == ["camera side: recovery has not returned for 4 s; leaving, to be started anew"]


def test_absent_is_worse_than_lost() -> None:
    states = [CameraState.LIVE, CameraState.ABSENT, CameraState.LOST, CameraState.LATE]
    healths = [CameraHealth(state, -1, 0, 0, 0) for state in states]
    assert worst(healths).state is CameraState.ABSENT
    assert worst(healths[::3]).state is CameraState.LATE
