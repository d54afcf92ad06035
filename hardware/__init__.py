"""Devices: cameras, arms, and the simulated robot."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dzedge.config import RobotConfig
    from dzedge.hardware.feetech import FeetechArm
    from dzedge.hardware.feetech_bus import Clock, Port


def open_arm(config: "RobotConfig", port: "str | Port", clock: "Clock | None" = None) -> "FeetechArm":
    """The arm of a robot file on `port`, opened and configured; nothing has moved.

    Raises errors of the DeviceError branch, ConfigError for a calibration that does not fit.
    """
    from dzedge.hardware.feetech import FeetechArm

    safety = config.safety
    voltage = (safety.voltage_low, safety.voltage_high)
    arm = FeetechArm(config.arm, port, voltage=voltage, temperature=safety.temperature, clock=clock)
    try:
        arm.open()
        arm.configure()
    except Exception:
        arm.close()
        raise
    return arm
