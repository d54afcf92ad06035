"""Torque off reaches every servo that can hear it, whatever any other one does: both drivers on the emulated bus, each
servo in turn with each fault."""

import msgspec
import pytest

from dzedge.clock import NS, FakeClock
from dzedge.config import Arm, default_path, load
from dzedge.errors import DeviceError
from dzedge.hardware.arm import StopCategory
from dzedge.hardware.dynamixel import DynamixelArm
from dzedge.hardware.feetech import FeetechArm
from dzedge.hardware.sim.emulator import MODELS, PROTOCOLS
from dzedge.hardware.sim.faults import SERVO_VERBS
from dzedge.hardware.sim.memory_port import MemoryPort
from dzedge.hardware.sim.servo_bus import ServoBus
from dzedge.simulator import arm_bus

DEAF = ("off", "silent")
CONFIG = load(default_path())


def robot(protocol: str) -> Arm:
    """The simulated robot's arm with servos of either protocol."""
    joints = tuple(msgspec.structs.replace(joint, model=MODELS[protocol]) for joint in CONFIG.arm.joints)
    return msgspec.structs.replace(CONFIG.arm, driver=protocol, joints=joints)


def active(protocol: str) -> tuple[FeetechArm | DynamixelArm, ServoBus, FakeClock]:
    """An arm that holds its pose, the bus behind it, and the time."""
    clock = FakeClock()
    table = robot(protocol)
    bus = arm_bus(msgspec.structs.replace(CONFIG, arm=table), 0, protocol)
    made = DynamixelArm if protocol == "dynamixel" else FeetechArm
    arm = made(table, MemoryPort(bus, clock), clock=clock)
    arm.open()
    arm.configure()
    arm.activate()
    assert all(servo.torque_enabled for servo in bus.servos)
    return arm, bus, clock


@pytest.mark.parametrize("verb", SERVO_VERBS)
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_any_one_servo_in_trouble(protocol: str, verb: str) -> None:
    for number in range(6):
        arm, bus, clock = active(protocol)
        bus.set_fault(str(bus.servos[number].id), verb)
        clock.sleep_until_ns(clock.now_ns() + NS // 100)
        told = True
        try:
            arm.deactivate(StopCategory.OFF)
        except DeviceError as error:
            told = f"servo {bus.servos[number].id}" in str(error)
        assert told, "the error must name the servo that may still be on"
        still_on = [servo.id for servo in bus.servos if servo.get("torque_enable")]
        assert set(still_on) <= ({bus.servos[number].id} if verb in DEAF else set())


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_only_one_is_left(protocol: str) -> None:
    arm, bus, _ = active(protocol)
    for servo in bus.servos[:-1]:
        servo.set_fault("silent")
    with pytest.raises(DeviceError, match="torque may still be on"):
        arm.deactivate(StopCategory.OFF)
    assert [servo.get("torque_enable") for servo in bus.servos] == [1] * 5 + [0]
