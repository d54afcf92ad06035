"""Ticks to positions and back, joint by joint; by the robot file, or by a LeRobot calibration file.

position = (ticks - zero) / scale: ticks are what the servo reports, its offset register already applied;
positions are [rad], a gripper's 0 closed to 1 open.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from dzedge.arm_config import MODELS, Arm, Joint
from dzedge.errors import ConfigError
from dzedge.hardware.control_table import TICKS_PER_TURN
from dzedge.hardware.lerobot import LeRobotJoint as LeRobotJoint
from dzedge.hardware.lerobot import find_lerobot as find_lerobot
from dzedge.hardware.lerobot import locate
from dzedge.hardware.lerobot import read_lerobot as read_lerobot

FOREIGN = (
    "holds another calibration than the file: `dzedge arm calibrate --restore` writes the file into the servos, if it "
    "is of this arm; else calibrate again"
)
"""What a servo is said of whose registers differ from the calibration file."""


@dataclass(frozen=True, slots=True)
class JointCalibration:
    """One joint. zero: [ticks] at position 0; scale: [ticks/rad], gripper [ticks/1], signed; lower, upper:
    [ticks] that may be commanded; offset: what the servo's offset register must hold, None: not known;
    range_ticks: what its position limit registers must hold, None: not known."""

    name: str
    id: int
    zero: float
    scale: float
    lower: int
    upper: int
    offset: int | None = None
    range_ticks: tuple[int, int] | None = None

    def position(self, ticks: float) -> float:
        """[ticks] to [rad], gripper [1]."""
        return (ticks - self.zero) / self.scale

    def ticks(self, position: float) -> int:
        """[rad], gripper [1], to the nearest whole tick; halves upwards, as the bus cycle rounds."""
        return math.floor(self.zero + self.scale * position + 0.5)


def from_joint(joint: Joint) -> JointCalibration:
    """As the robot file says: zero or closed and open ticks, direction, limits."""
    return _bounded(joint, float(joint.zero), 1.0 / joint.scale)


def _bounded(joint: Joint, zero: float, scale: float) -> JointCalibration:
    ends = sorted(math.floor(zero + scale * limit + 0.5) for limit in (joint.lower, joint.upper))
    return JointCalibration(joint.name, joint.id, zero, scale, ends[0], ends[1])


def read_joints(arm: Arm) -> tuple[JointCalibration, ...]:
    """The joints of an arm by its calibration file, or as the robot file says where it names none. ConfigError."""
    if arm.calibration is None:
        return tuple(from_joint(joint) for joint in arm.joints)
    path = locate(arm.calibration, arm.driver)
    return calibrate(arm.joints, read_lerobot(path), path)


def calibrate(
    joints: Sequence[Joint], entries: dict[str, LeRobotJoint], path: str
) -> tuple[JointCalibration, ...]:
    """The robot file's joints with the ticks of a LeRobot file: zero in the middle of the range, a gripper
    closed at range_min (range_max where a Feetech's drive mode is 1), nothing commanded outside the range.

    Raises ConfigError where a joint is missing there, has another id, or keeps no range.
    """
    result = []
    for joint in joints:
        entry = entries.get(joint.name)
        if entry is None:
            raise ConfigError(f"calibration {path} has no joint {joint.name}; it has {', '.join(entries)}")
        if entry.id != joint.id:
            raise ConfigError(f"calibration {path}, {joint.name}: id {entry.id}, robot file: {joint.id}")
        if joint.kind == "gripper":
            closed, opened = entry.range_min, entry.range_max
            if entry.drive_mode and joint.model in MODELS["feetech"]:
                closed, opened = opened, closed
            known = _bounded(joint, float(closed), float(opened - closed))
        else:
            turn = TICKS_PER_TURN / (2 * math.pi)
            known = _bounded(joint, (entry.range_min + entry.range_max) / 2, math.copysign(turn, joint.scale))
        lower, upper = max(known.lower, entry.range_min), min(known.upper, entry.range_max)
        if lower >= upper:
            raise ConfigError(f"calibration {path}, {joint.name}: its range and the robot file's do not meet")
        result.append(
            replace(
                known,
                lower=lower,
                upper=upper,
                offset=entry.homing_offset,
                range_ticks=(entry.range_min, entry.range_max),
            )
        )
    return tuple(result)
