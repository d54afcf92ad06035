"""Arms without a compiled cycle behind the control tick: the same safety, at 50 Hz, from Python."""

from collections.abc import Iterator

import msgspec
import numpy as np
import pytest

from dzedge.clock import NS, FakeClock
from dzedge.config import default_path, load
from dzedge.control_loop import activate
from dzedge.errors import BusError, ConfigError, SafetyError
from dzedge.hardware.arm import StopCategory
from dzedge.hardware.slow_cycle import SlowCycle
from dzedge.kernels.tick import Cause, Request, State
from dzedge.mailboxes import Mailboxes
from dzedge.types import JointState

J, H, DT, PERIOD = 6, 8, NS // 10, NS // 50
START = np.array([0.0, 0.1, -0.2, 0.3, 0.0, 0.5])


class Follower:
    """An arm that is where it was told to be. silent: answers nothing."""

    fd = -1

    def __init__(self, names: tuple[str, ...], clock: FakeClock) -> None:
        self.names, self.clock = names, clock
        self.positions, self.velocities = START.copy(), np.zeros(J)
        self.written: list[np.ndarray] = []
        self.silent = False
        self.reads = 0

    def open(self) -> None: ...

    def configure(self) -> None: ...

    def close(self) -> None: ...

    def plan(self) -> None: ...

    goal_ticks = np.empty(0, np.int32)

    def deactivate(self, category: StopCategory) -> None:
        self.category = category

    def activate(self) -> JointState:
        return self.read()

    def read(self) -> JointState:
        if self.silent:
            raise BusError("no answer")
        self.reads += 1
        return JointState(self.positions.copy(), self.velocities.copy(), self.clock.now_ns())

    def write(self, positions: np.ndarray) -> JointState:
        self.written.append(positions.copy())
        if not self.silent:
            self.velocities = (positions - self.positions) / (PERIOD / NS)
            self.positions = positions.copy()
        return self.read()


class Calibrated(Follower):
    """One whose first joint may only be told up to 0.1, and that refuses more as a servo's cycle does."""

    HIGHEST = 0.1

    def narrow(self, limits: np.ndarray) -> np.ndarray:
        narrow = limits.copy()
        narrow[4, 0] = self.HIGHEST
        return narrow

    def write(self, positions: np.ndarray) -> JointState:
        if positions[0] > self.HIGHEST + 1e-3:
            raise SafetyError("is outside what the servos may be told; nothing was sent")
        return super().write(positions)


class Robot:
    def __init__(self, arm: type[Follower] = Follower) -> None:
        loaded = load(default_path())
        self.config = msgspec.structs.replace(loaded, arm=msgspec.structs.replace(loaded.arm, rate_hz=50))
        self.clock = FakeClock()
        self.mailboxes = Mailboxes(self.config, H, 4)
        self.arm = arm(tuple(joint.name for joint in self.config.arm.joints), self.clock)
        self.slow = SlowCycle(self.arm, self.config.arm.joints, 50, clock=self.clock)
        self.tick, self.bus = activate(
            self.slow, self.config, H, DT, self.mailboxes, self.clock.now_ns, hold=False
        )
        self.mailboxes.board.request = Request.REQUEST_RUN
        self.mailboxes.board.set_task("reach", self.clock.now_ns())
        self.slow.run(self.tick, 3)

    def send(self, target: np.ndarray) -> None:
        positions = np.broadcast_to(target, (H, J)).astype(float)
        board = self.mailboxes.board
        self.mailboxes.chunks.put(positions, np.zeros(0, np.float32), 0, board.epoch, self.clock.now_ns(), DT)


@pytest.fixture
def robot() -> Iterator[Robot]:
    made = Robot()
    yield made
    made.mailboxes.close()


def test_a_calibrated_range_limits_and_is_no_fault() -> None:
    robot = Robot(Calibrated)
    try:
        target = START.copy()
        target[0] = 0.3
        robot.send(target)
        assert robot.slow.run(robot.tick, 30) == State.RUN
        assert robot.arm.positions[0] == pytest.approx(0.1, abs=0.05) and robot.slow.trouble == ""
    finally:
        robot.mailboxes.close()


def test_activation_holds_the_arm_where_it_is(robot: Robot) -> None:
    assert robot.slow.run(robot.tick, 50) == State.ARMED
    assert (np.array(robot.arm.written) == START).all()
    np.testing.assert_allclose(np.asarray(robot.bus.positions), START, atol=2e-3)


def test_a_chunk_is_played_within_the_limits(robot: Robot) -> None:
    target = START.copy()
    target[0] += 0.2
    robot.send(target)
    before_ns = robot.clock.now_ns()
    assert robot.slow.run(robot.tick, 30) == State.RUN
    assert robot.clock.now_ns() - before_ns == 30 * PERIOD
    path = np.array(robot.arm.written)
    assert robot.arm.positions[0] == pytest.approx(target[0], abs=5e-3)
    speed = np.abs(np.diff(path, axis=0)) / (PERIOD / NS)
    assert speed.max() > 0.1 and (speed <= robot.config.arm.limits()[0] * (1 + 1e-6)).all()
    assert robot.slow.trouble == "" and robot.slow.missed == 0


def test_commands_arrive_as_the_gate_has_passed_them_not_rounded(robot: Robot) -> None:
    target = START.copy()
    target[0] += 0.2
    robot.send(target)
    robot.slow.run(robot.tick, 5)
    np.testing.assert_array_equal(robot.arm.written[-1], robot.tick.command[0])
    assert robot.arm.written[-1][0] != START[0]


def test_velocities_and_positions_come_back(robot: Robot) -> None:
    robot.arm.positions = START + 0.01
    robot.arm.velocities = np.array([0.5, -0.5, 0.0, 1.0, -1.0, 0.25])
    robot.arm.write = lambda positions: robot.arm.read()  # type: ignore[method-assign]
    robot.slow.run(robot.tick, 1)
    np.testing.assert_allclose(np.asarray(robot.bus.positions), START + 0.01, atol=1e-3)
    np.testing.assert_allclose(np.asarray(robot.bus.velocities), robot.arm.velocities, atol=2e-3)


def test_an_arm_that_falls_silent_is_a_fault_and_nothing_is_written_any_more(robot: Robot) -> None:
    robot.arm.silent = True
    periods = robot.config.safety.bus_fault_ms * 50 // 1000 + 3
    assert robot.slow.run(robot.tick, periods) == State.FAULT
    assert robot.tick.cause == Cause.CAUSE_BUS_SILENT and robot.slow.trouble == "no answer"
    robot.arm.silent = False
    count, reads = len(robot.arm.written), robot.arm.reads
    assert robot.slow.run(robot.tick, 20) == State.FAULT, "never by itself"
    assert len(robot.arm.written) <= count + 20 and robot.arm.reads == reads + 20
    np.testing.assert_array_equal(robot.arm.positions, START)


def test_one_lost_answer_is_not_a_fault(robot: Robot) -> None:
    robot.arm.silent = True
    robot.slow.run(robot.tick, 1)
    robot.arm.silent = False
    assert robot.slow.run(robot.tick, 5) == State.ARMED
    assert robot.slow.trouble == ""


def test_missed_periods_are_skipped_not_made_up(robot: Robot) -> None:
    robot.slow.run(robot.tick, 1)
    count = len(robot.arm.written)
    slow_read = robot.arm.read

    def stall() -> JointState:
        robot.arm.read = slow_read  # type: ignore[method-assign]
        robot.clock.advance_to_ns(robot.clock.now_ns() + 5 * PERIOD)
        return slow_read()

    robot.arm.read = stall  # type: ignore[method-assign]
    robot.slow.run(robot.tick, 3)
    assert robot.slow.missed == 5 and len(robot.arm.written) == count + 3


def test_it_ends_when_the_arm_has_stopped(robot: Robot) -> None:
    target = START.copy()
    target[0] += 0.2
    robot.send(target)
    robot.slow.run(robot.tick, 5)
    robot.mailboxes.board.stopping = 3
    count = len(robot.arm.written)
    assert robot.slow.run(robot.tick, 1000) == State.STOPPING
    assert robot.tick.resting and 1 < len(robot.arm.written) - count < 100


def test_a_rate_that_python_cannot_keep_is_refused(robot: Robot) -> None:
    with pytest.raises(ConfigError, match=r"arm\.rate_hz = 100"):
        SlowCycle(robot.arm, robot.config.arm.joints, 100)


def test_deactivation_passes_the_category_on(robot: Robot) -> None:
    robot.slow.deactivate(StopCategory.STOP_THEN_OFF)
    assert robot.arm.category == StopCategory.STOP_THEN_OFF
    assert (robot.slow.goal_ticks == -1).all()
