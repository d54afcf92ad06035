"""Devices: cameras, arms, and the simulated robot."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dzedge.config import RobotConfig
    from dzedge.hardware.feetech import FeetechArm
    from dzedge.hardware.feetech_bus import Clock, Port

WIRE_SHARE = 0.8
"""Of a control period that a bus cycle may take."""


def open_arm(config: "RobotConfig", port: "str | Port", clock: "Clock | None" = None) -> "FeetechArm":
    """The arm of a robot file on `port`, opened and configured; nothing has moved.

    Raises errors of the DeviceError branch, ConfigError for a calibration that does not fit.
    """
    from dzedge.hardware.feetech import FeetechArm

    safety, table = config.safety, config.arm
    # The whole state (15 bytes a servo) where there is time for it on the wire, else positions alone.
    wire = (16 + 29 * len(table.joints)) * 10 / table.baud
    arm = FeetechArm(
        table,
        port,
        voltage=(safety.voltage_low, safety.voltage_high),
        temperature=safety.temperature,
        arming_error=safety.arming_error,
        state=wire * table.rate_hz <= WIRE_SHARE,
        clock=clock,
    )
    try:
        arm.open()
        arm.configure()
    except Exception:
        arm.close()
        raise
    return arm
