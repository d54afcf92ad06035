"""Devices: cameras, arms, and the simulated robot."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from dzedge.arm_config import Arm as ArmTable
    from dzedge.config import RobotConfig
    from dzedge.hardware.arm import Arm
    from dzedge.hardware.feetech_bus import Port
    from dzedge.hardware.slow_cycle import Clock, SlowCycle, WritableArm

WIRE_SHARE = 0.8
"""Of a control period that a bus cycle may take."""


def make_arm(config: "RobotConfig", port: "str | Port", clock: "Clock | None" = None) -> "Arm":
    """The arm of a robot file on `port`, with a plan for the control tick; nothing is opened yet.

    ConfigError for a calibration that does not fit.
    """
    if config.arm.gripper is None and config.arm.driver != "mcu":
        return _servo_arm(config, config.arm, port, clock)
    return _slow(config, port, clock)


def make_writable(config: "RobotConfig", port: "str | Port", clock: "Clock | None" = None) -> "WritableArm":
    """The same arm with `write`, for tools and slow ticks; nothing is opened yet. ConfigError as `make_arm`."""
    if config.arm.gripper is not None:
        from dzedge.hardware.gripper_arm import GripperArm
        from dzedge.hardware.modbus_gripper import ModbusGripper

        gripper = config.arm.gripper
        before = without_gripper(config.arm)
        device = ModbusGripper(gripper.port, slave=gripper.slave, baud=gripper.baud)
        return GripperArm(_writable(config, before, port, clock), device, config.arm.names)
    return _writable(config, config.arm, port, clock)


def open_arm(config: "RobotConfig", port: "str | Port", clock: "Clock | None" = None) -> "Arm":
    """The arm of a robot file on `port`, opened and configured; nothing has moved.

    Raises errors of the DeviceError branch, ConfigError for a calibration that does not fit.
    """
    arm = make_arm(config, port, clock)
    try:
        arm.open()
        arm.configure()
    except Exception:
        arm.close()
        raise
    return arm


def explainer(driver: str) -> "Callable[[int], str]":
    """What puts the ERR byte of a driver's servos into words."""
    from dzedge.hardware.control_table import explain_dynamixel_error, explain_error

    return explain_dynamixel_error if driver == "dynamixel" else explain_error


def _slow(config: "RobotConfig", port: "str | Port", clock: "Clock | None") -> "SlowCycle":
    from dzedge.hardware.slow_cycle import SlowCycle

    table = config.arm
    return SlowCycle(make_writable(config, port, clock), table.joints, table.rate_hz, clock=clock)


def _writable(
    config: "RobotConfig", table: "ArmTable", port: "str | Port", clock: "Clock | None"
) -> "WritableArm":
    if table.driver == "mcu":
        from dzedge.hardware.mcu import HOLD_MS, OFF_MS, McuArm

        return McuArm(
            table.joints,
            port,
            baud=table.baud,
            hold_ms=table.hold_ms or HOLD_MS,
            off_ms=table.off_ms or OFF_MS,
            arming_error=config.safety.arming_error,
            cycle_ns=1_000_000_000 // table.rate_hz,
            clock=clock,
        )
    from dzedge.hardware.stepped_arm import SteppedArm

    return SteppedArm(_servo_arm(config, table, port, clock), clock=clock, explain=explainer(table.driver))


def without_gripper(table: "ArmTable") -> "ArmTable":
    """The arm before its gripper, which a compiled cycle may serve at any rate."""
    import msgspec

    park = None if table.park is None else table.park[:-1]
    rate_hz = table.rate_hz if table.driver == "mcu" else max(table.rate_hz, 50)
    return msgspec.structs.replace(table, joints=table.joints[:-1], gripper=None, park=park, rate_hz=rate_hz)


def _servo_arm(
    config: "RobotConfig", table: "ArmTable", port: "str | Port", clock: "Clock | None"
) -> "Arm":
    safety = config.safety
    limits: dict[str, Any] = {
        "voltage": (safety.voltage_low, safety.voltage_high),
        "temperature": safety.temperature,
        "arming_error": safety.arming_error,
    }
    if table.driver == "dynamixel":
        from dzedge.hardware.dynamixel import DynamixelArm

        return DynamixelArm(table, port, **limits, clock=clock)
    from dzedge.hardware.feetech import FeetechArm

    # The whole state (15 bytes a servo) where there is time for it on the wire, else positions alone.
    wire = (16 + 29 * len(table.joints)) * 10 / table.baud
    return FeetechArm(table, port, **limits, state=wire * table.rate_hz <= WIRE_SHARE, clock=clock)
