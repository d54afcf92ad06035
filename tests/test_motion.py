"""Slow motions on a fake clock: within the slowed limits, watched, and at rest whatever goes wrong."""

import numpy as np
import pytest

from dzedge.clock import NS, FakeClock
from dzedge.config import default_path, load
from dzedge.errors import BusError, PortError, SafetyError
from dzedge.hardware.motion import LATE_PERIODS, PERIOD_NS, Motion
from dzedge.types import JointState

CONFIG = load(default_path())
NAMES = CONFIG.arm.names
HOME = np.array([0.0, 0.1, -0.2, 0.3, 0.0, 0.5])


class Follower:
    """An arm that is where it was told to be; error: raised by every write while set; blocked: a joint that stays."""

    fd, names, goal_ticks = -1, NAMES, np.empty(0, np.int32)

    def __init__(self, clock: FakeClock) -> None:
        self.clock, self.positions = clock, HOME.copy()
        self.written: list[tuple[int, np.ndarray]] = []
        self.error: Exception | None = None
        self.blocked: int | None = None

    def write(self, positions: np.ndarray) -> JointState:
        if self.error is not None:
            raise self.error
        self.written.append((self.clock.now_ns(), positions.copy()))
        keep = None if self.blocked is None else self.positions[self.blocked]
        self.positions = positions.copy()
        if self.blocked is not None:
            self.positions[self.blocked] = keep
        return self.read()

    def read(self) -> JointState:
        return JointState(self.positions.copy(), np.zeros(6), self.clock.now_ns())

    @property
    def path(self) -> np.ndarray:
        return np.array([positions for _, positions in self.written])


class Rig:
    def __init__(self, speed: float = 0.5) -> None:
        self.clock = FakeClock()
        self.arm = Follower(self.clock)
        self.speed = speed
        self.motion = Motion(self.arm, CONFIG, HOME, self.clock, speed)  # type: ignore[arg-type]

    def resting(self) -> bool:
        """Whether it was told to stand still in the end, by ever smaller steps."""
        steps = np.abs(np.diff(self.arm.path[-4:], axis=0)).max(axis=1)
        stands = bool((self.motion.position == self.arm.path[-1]).all())
        return stands and steps[-1] < 1e-3 and bool((np.diff(steps) < 0).all())


def elsewhere(joint: int, value: float) -> np.ndarray:
    target = HOME.copy()
    target[joint] = value
    return target


def test_it_arrives_within_the_slowed_limits() -> None:
    rig = Rig()
    state = rig.motion.go(elsewhere(1, 0.8))
    np.testing.assert_allclose(state.positions, elsewhere(1, 0.8), atol=1e-9)
    step = np.abs(np.diff(rig.arm.path, axis=0)) / (PERIOD_NS / NS)
    limits = CONFIG.arm.limits()
    assert 0.9 < step.max() / (limits[0, 1] * rig.speed) <= 1 + 1e-9
    assert np.abs(np.diff(step, axis=0)).max() / (PERIOD_NS / NS) <= limits[1, 1] * rig.speed**2 * (1 + 1e-6)
    assert (rig.arm.path[:, [0, 2, 3, 4, 5]] == HOME[[0, 2, 3, 4, 5]]).all()


def test_half_the_speed_takes_twice_the_time() -> None:
    times = []
    for speed in (0.5, 0.25):
        rig = Rig(speed)
        rig.motion.go(elsewhere(0, 1.0))
        times.append(rig.arm.written[-1][0] - rig.arm.written[0][0])
    assert times[1] / times[0] == pytest.approx(2.0, abs=0.05)


def test_the_next_one_begins_from_the_last_command() -> None:
    rig = Rig()
    rig.motion.go(elsewhere(0, 0.3))
    rig.arm.positions = rig.arm.positions - 0.04  # it sags
    count = len(rig.arm.written)
    rig.motion.go(elsewhere(0, 0.4))
    assert rig.arm.path[count, 0] >= 0.3 and (rig.arm.path[count:, 1] == HOME[1]).all()


@pytest.mark.parametrize("value", [1.93, -1.93, float("nan")])
def test_outside_the_limits_nothing_moves(value: float) -> None:
    rig = Rig()
    with pytest.raises(SafetyError, match=r"shoulder_pan = .* nothing was moved"):
        rig.motion.go(elsewhere(0, value))
    assert rig.arm.written == []


@pytest.mark.parametrize("speed", [0.0, 1.1, float("nan")])
def test_speeds_that_are_none(speed: float) -> None:
    with pytest.raises(SafetyError, match="speed = "):
        Rig(speed)


def test_a_blocked_joint_stops_the_arm() -> None:
    rig = Rig()
    rig.arm.blocked = 2
    with pytest.raises(SafetyError, match=r"elbow_flex is 0.* from its command"):
        rig.motion.go(elsewhere(2, 1.6))
    assert rig.resting() and rig.arm.path[-1, 2] < 1.6


def test_a_gripper_may_meet_what_it_grasps() -> None:
    rig = Rig()
    rig.arm.blocked = 5
    assert rig.motion.go(elsewhere(5, 0.0)).positions[5] == 0.5
    assert rig.arm.path[-1, 5] == 0.0


def test_lost_answers_are_passed_over_and_silence_is_not() -> None:
    rig = Rig()
    seen = []

    def watch(state: JointState) -> None:
        seen.append(rig.clock.now_ns())
        rig.arm.error = BusError("no answer in time") if len(seen) % 3 == 0 else None

    real = rig.arm.write

    def once(positions: np.ndarray) -> JointState:
        try:
            return real(positions)
        finally:
            rig.arm.error = None

    rig.arm.write = once  # type: ignore[method-assign]
    np.testing.assert_allclose(rig.motion.go(elsewhere(0, 0.5), watch).positions[0], 0.5)
    rig = Rig()
    rig.arm.error = BusError("no answer in time from shoulder_pan")
    begun_ns = rig.clock.now_ns()
    with pytest.raises(BusError, match="no answer in time"):
        rig.motion.go(elsewhere(0, 0.5))
    assert rig.clock.now_ns() - begun_ns < (LATE_PERIODS + 100) * PERIOD_NS


def test_an_alert_ends_it_at_rest() -> None:
    """The servo that has one hears goals as well as the others do: none may be stopped at once."""
    rig = Rig(1.0)
    real, begin = rig.arm.write, 3

    def unwell(positions: np.ndarray) -> JointState:
        state = real(positions)
        if len(rig.arm.written) > begin:
            raise BusError("elbow_flex reports overloaded")
        return state

    rig.arm.write = unwell  # type: ignore[method-assign]
    with pytest.raises(BusError, match="overloaded"):
        rig.motion.go(elsewhere(0, 1.9))
    assert rig.resting() and len(rig.arm.written) > begin + LATE_PERIODS + 2


def test_unplugged_it_ends_at_once() -> None:
    rig = Rig()
    rig.arm.error = PortError("the serial port is gone")
    begun_ns = rig.clock.now_ns()
    with pytest.raises(PortError):
        rig.motion.go(elsewhere(0, 0.5))
    assert rig.clock.now_ns() - begun_ns <= 3 * PERIOD_NS


def test_ctrl_c_brings_it_to_rest() -> None:
    rig = Rig()

    def watch(state: JointState) -> None:
        if state.positions[0] > 0.2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rig.motion.go(elsewhere(0, 1.5), watch)
    assert rig.resting() and 0.2 < rig.arm.path[-1, 0] < 0.8
    step = np.abs(np.diff(rig.arm.path[:, 0])) / (PERIOD_NS / NS)
    assert np.abs(np.diff(step)).max() / (PERIOD_NS / NS) <= CONFIG.arm.limits()[1, 0] * rig.speed**2 * (1 + 1e-6)
