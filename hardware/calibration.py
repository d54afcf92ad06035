"""Ticks to positions and back, joint by joint, and LeRobot's calibration files.

position = (ticks - zero) / scale: ticks are what the servo reports, its offset register already applied;
positions are [rad], a gripper's 0 closed to 1 open.
"""

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dzedge.config import Joint
from dzedge.errors import ConfigError
from dzedge.hardware.control_table import TICKS_PER_TURN

LEROBOT_RESOLUTION = 4095
"""LeRobot divides a turn by 4095, not 4096, in its degrees mode: policies were trained on that."""
_KEYS = {"id", "drive_mode", "homing_offset", "range_min", "range_max"}


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


@dataclass(frozen=True, slots=True)
class LeRobotJoint:
    """One entry of a LeRobot calibration file. All [ticks], post-offset: the homing offset lives in the servo
    (present = encoder - offset) and is never subtracted again."""

    name: str
    id: int
    drive_mode: int
    homing_offset: int
    range_min: int
    range_max: int

    def degrees(self, ticks: NDArray[np.int64]) -> NDArray[np.float64]:
        """LeRobot's DEGREES: from the middle of the range, not clamped, the drive mode not applied."""
        middle = (self.range_min + self.range_max) / 2
        return (ticks - middle) * 360 / LEROBOT_RESOLUTION

    def percent(self, ticks: NDArray[np.int64]) -> NDArray[np.float64]:
        """LeRobot's RANGE_0_100 of grippers: clamped to the range."""
        bounded = np.minimum(self.range_max, np.maximum(self.range_min, ticks))
        value = ((bounded - self.range_min) / (self.range_max - self.range_min)) * 100
        return 100 - value if self.drive_mode else value

    def symmetric_percent(self, ticks: NDArray[np.int64]) -> NDArray[np.float64]:
        """LeRobot's RANGE_M100_100: clamped to the range."""
        bounded = np.minimum(self.range_max, np.maximum(self.range_min, ticks))
        value = (((bounded - self.range_min) / (self.range_max - self.range_min)) * 200) - 100
        return -value if self.drive_mode else value


def read_lerobot(path: str | Path) -> dict[str, LeRobotJoint]:
    """Read a LeRobot calibration file: `{joint: {id, drive_mode, homing_offset, range_min, range_max}}`.

    Raises ConfigError naming the file, the joint, the key and what is allowed.
    """
    try:
        document = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"calibration {path}: {error.strerror}; name a LeRobot file") from error
    except ValueError as error:
        raise ConfigError(f"calibration {path} is not JSON: {error}; calibrate again") from error
    if not isinstance(document, dict) or not document:
        raise ConfigError(f"calibration {path} has no joints: it must map joint names to values")
    return {name: _entry(path, name, values) for name, values in document.items()}


def _entry(path: str | Path, name: str, values: object) -> LeRobotJoint:
    if not isinstance(values, dict) or set(values) != _KEYS:
        raise ConfigError(f"calibration {path}, {name}: needs exactly {', '.join(sorted(_KEYS))}")
    for key, value in values.items():
        low, high = {"id": (0, 253), "drive_mode": (0, 1), "homing_offset": (-2047, 2047)}.get(key, (0, 4095))
        if type(value) is not int or not low <= value <= high:
            raise ConfigError(f"calibration {path}, {name}: {key} = {value!r}, not whole in [{low}, {high}]")
    entry = LeRobotJoint(name=name, **values)
    if entry.range_min >= entry.range_max:
        raise ConfigError(
            f"calibration {path}, {name}: range_min = {entry.range_min} must be below range_max = "
            f"{entry.range_max}; calibrate again"
        )
    return entry


def calibrate(
    joints: Sequence[Joint], entries: dict[str, LeRobotJoint], path: str
) -> tuple[JointCalibration, ...]:
    """The robot file's joints with the ticks of a LeRobot file: zero in the middle of the range, a gripper
    closed at range_min (range_max where its drive mode is 1), nothing commanded outside the range.

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
            if entry.drive_mode:
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


def find_lerobot(robot_id: str) -> Path | None:
    """The newest calibration of that robot id where LeRobot keeps them, of its present and older names."""
    home = os.environ.get("HF_HOME") or os.path.join(
        os.environ.get("XDG_CACHE_HOME", os.path.expanduser("~/.cache")), "huggingface"
    )
    lerobot = os.environ.get("HF_LEROBOT_HOME") or os.path.join(home, "lerobot")
    base = Path(os.environ.get("HF_LEROBOT_CALIBRATION") or os.path.join(lerobot, "calibration"))
    names = ("so_follower", "so101_follower", "so100_follower")
    found = [base / "robots" / name / f"{robot_id}.json" for name in names]
    existing = [path for path in found if path.is_file()]
    return max(existing, key=lambda path: path.stat().st_mtime) if existing else None
