"""A compiled cycle one call at a time, on a pty; and an arm whose last joint is a gripper elsewhere."""

from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import pytest

from dzedge.config import default_path, load
from dzedge.errors import BusError, PortError, SafetyError
from dzedge.hardware import explainer
from dzedge.hardware.arm import StopCategory
from dzedge.hardware.feetech import FeetechArm
from dzedge.hardware.gripper_arm import EVERY, GripperArm
from dzedge.hardware.sim.pty_server import PtyServer
from dzedge.hardware.sim.servo import Servo
from dzedge.hardware.sim.servo_bus import FirstOrder, ServoBus
from dzedge.hardware.slow_cycle import narrowed
from dzedge.hardware.stepped_arm import SteppedArm
from dzedge.types import JointState

ROBOT = load(default_path())
HOME = np.zeros(6)


class Rig:
    def __init__(self) -> None:
        self.servos = [Servo(number, 2048) for number in range(1, 7)]
        self.server = PtyServer(ServoBus(self.servos, advance=FirstOrder(self.servos))).start()
        self.arm = SteppedArm(FeetechArm(ROBOT.arm, self.server.path))
        self.arm.open()
        self.arm.configure()

    def write(self, positions: np.ndarray) -> JointState:
        """As a control loop does: an answer that a busy machine was late for is asked for in the next cycle."""
        for _ in range(50):
            try:
                return self.arm.write(positions)
            except BusError as error:
                if "no answer in time" not in str(error):
                    raise
        raise AssertionError("50 cycles without an answer")


@pytest.fixture
def rig() -> Iterator[Rig]:
    made = Rig()
    yield made
    made.arm.close()
    made.server.stop()


class TestStepped:
    def test_write_moves_and_measures(self, rig: Rig) -> None:
        assert rig.arm.activate().positions == pytest.approx(HOME, abs=1e-3)
        for number in range(20):
            state = rig.write(HOME + 0.001 * number)
        assert state.positions.shape == (6,) and rig.servos[0].get("goal_position") == 2048 + round(0.019 * 651.9)

    def test_nothing_before_it_is_active(self, rig: Rig) -> None:
        with pytest.raises(SafetyError, match="not activated"):
            rig.arm.write(HOME)
        rig.arm.activate()
        rig.arm.deactivate(StopCategory.OFF)
        with pytest.raises(SafetyError, match="not activated"):
            rig.arm.write(HOME)
        assert [servo.get("torque_enable") for servo in rig.servos] == [0] * 6

    @pytest.mark.parametrize(
        ("value", "why"),
        [(np.nan, "is no finite number"), (3.0, "outside what the servos"), (0.9, "too far from the last one")],
    )
    def test_what_the_cycle_refuses_is_not_sent(self, rig: Rig, value: float, why: str) -> None:
        rig.arm.activate()
        goals = [servo.get("goal_position") for servo in rig.servos]
        with pytest.raises(SafetyError, match=why):
            rig.arm.write(HOME + value)
        assert [servo.get("goal_position") for servo in rig.servos] == goals

    def test_silence_and_alerts_by_name(self, rig: Rig) -> None:
        rig.arm.activate()
        rig.server.set_fault("3", "off")
        with pytest.raises(BusError, match=r"no answer in time from .*elbow_flex"):
            rig.arm.write(HOME)
        rig.server.set_fault("3", "ok")
        rig.servos[4].alerts = 32
        with pytest.raises(BusError, match="wrist_roll reports overloaded"):
            rig.write(HOME)

    def test_unplugged(self, rig: Rig) -> None:
        rig.arm.activate()
        rig.server.stop()
        with pytest.raises(PortError, match="unplugged"):
            for _ in range(3):
                rig.arm.write(HOME)


class FakeArm:
    """Is where it was told to be. broken: stops raise."""

    fd, names, goal_ticks = -1, ("pan", "lift"), np.empty(0, np.int32)

    def __init__(self, log: list[str]) -> None:
        self.log, self.positions, self.broken = log, np.zeros(2), False

    def open(self) -> None:
        self.log.append("open arm")

    def close(self) -> None:
        self.log.append("close arm")

    def configure(self) -> None: ...

    def plan(self) -> None: ...

    def activate(self) -> JointState:
        self.log.append("activate arm")
        return self.read()

    def read(self) -> JointState:
        return JointState(self.positions.copy(), np.zeros(2), 7)

    def write(self, positions: np.ndarray) -> JointState:
        self.positions = positions.copy()
        return self.read()

    def deactivate(self, category: StopCategory) -> None:
        self.log.append(f"stop arm {category.name}")
        if self.broken:
            raise BusError("the arm is silent")


class FakeGripper:
    def __init__(self, log: list[str]) -> None:
        self.log, self.position, self.missing, self.silent, self.attempts = log, 0.25, False, False, 0

    def open(self) -> None:
        if self.missing:
            raise PortError("no gripper port")
        self.log.append("open gripper")

    def close(self) -> None:
        self.log.append("close gripper")

    def read(self, *, attempts: int = 3) -> SimpleNamespace:
        self.log.append("read gripper")
        self._answer(attempts)
        return SimpleNamespace(position=self.position)

    def _answer(self, attempts: int) -> None:
        self.attempts += attempts
        if self.silent:
            raise BusError("the gripper did not answer")

    def activate(self) -> SimpleNamespace:
        self.log.append("activate gripper")
        return SimpleNamespace(position=self.position)

    def write(self, position: float, *, attempts: int = 3) -> SimpleNamespace:
        self.log.append(f"gripper to {position:g}")
        self._answer(attempts)
        self.position = position
        return SimpleNamespace(position=position)

    def deactivate(self, category: StopCategory) -> None:
        self.log.append(f"stop gripper {category.name}")


class TestGripperArm:
    @pytest.fixture
    def log(self) -> list[str]:
        return []

    @pytest.fixture
    def arm(self, log: list[str]) -> GripperArm:
        return GripperArm(FakeArm(log), FakeGripper(log), ("pan", "lift", "gripper"))  # type: ignore[arg-type]

    def test_the_gripper_is_ready_before_the_arm_is_energised(self, arm: GripperArm, log: list[str]) -> None:
        arm.open()
        assert arm.activate().positions.tolist() == [0.0, 0.0, 0.25] and arm.plan() is None
        assert log == ["open arm", "open gripper", "activate gripper", "activate arm"]

    def test_it_is_written_to_where_its_goal_is_new(self, arm: GripperArm, log: list[str]) -> None:
        arm.activate()
        log.clear()
        state = arm.write(np.array([0.1, 0.2, 0.5]))
        assert state.positions.tolist() == [0.1, 0.2, 0.5] and state.time_ns == 7
        for _ in range(2 * EVERY):
            arm.write(np.array([0.1, 0.2, 0.501]))
        assert log == ["gripper to 0.5", *["read gripper"] * 2]

    def test_silence_is_no_old_position_and_costs_one_attempt_a_cycle(self, arm: GripperArm) -> None:
        arm.activate()
        gripper: FakeGripper = arm.gripper  # type: ignore[assignment]
        held, failed = np.array([0.1, 0.2, 0.25]), 0
        gripper.silent = True
        for _ in range(3 * EVERY):
            try:
                arm.write(held)
            except BusError:
                failed += 1
        assert failed == 2 * EVERY + 1 == gripper.attempts, "in every cycle since it was asked for the first time"
        gripper.silent = False
        assert arm.write(held).positions.tolist() == [0.1, 0.2, 0.25]

    def test_both_are_stopped_whatever_one_says(self, arm: GripperArm, log: list[str]) -> None:
        arm.arm.broken = True  # type: ignore[attr-defined]
        with pytest.raises(BusError, match="the arm is silent"):
            arm.deactivate(StopCategory.OFF)
        assert log == ["stop arm OFF", "stop gripper OFF"]

    def test_a_gripper_that_is_not_there_leaves_no_port_open(self, arm: GripperArm, log: list[str]) -> None:
        arm.gripper.missing = True  # type: ignore[attr-defined]
        with pytest.raises(PortError, match="no gripper port"):
            arm.open()
        assert log == ["open arm", "close arm"]

    def test_limits(self, arm: GripperArm) -> None:
        limits = np.arange(15.0).reshape(5, 3)
        np.testing.assert_array_equal(narrowed(arm, limits), limits)


def test_each_driver_has_words_for_its_errors() -> None:
    assert explainer("feetech")(32) == "overloaded" and explainer("feetech")(0) == ""
    assert explainer("dynamixel")(2).startswith("unknown instruction") and explainer("dynamixel")(0) == ""
