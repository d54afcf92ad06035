"""LeRobot's calibration files and the units that its policies are trained in.

Source: lerobot 0.4.4 and 0.6.1, `motors/motors_bus.py`, `robots/robot.py`. The formulas are theirs operation by
operation, so that their floats come out to the bit.
"""

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dzedge.arm_config import LEROBOT
from dzedge.errors import ConfigError, SafetyError

RESOLUTION = 4095
"""LeRobot divides a turn by 4095, not 4096, in its degrees mode: policies were trained on that."""
ROBOTS = {
    "feetech": ("so_follower", "so101_follower", "so100_follower", "lekiwi", "bi_so_follower"),
    "dynamixel": ("koch_follower", "omx_follower"),
}
"""Folders of LeRobot's robots by the arm's driver; new files go into the first. Older LeRobots wrote the second and
third of an SO arm."""
MIDDLE = RESOLUTION // 2
"""[ticks]: where LeRobot wants a joint to stand in the middle of its way."""
_RANGES = {"id": (0, 253), "drive_mode": (0, 1), "homing_offset": (-1_044_479, 1_044_479)}
_TICKS = (0, RESOLUTION)
_KEYS = {*_RANGES, "range_min", "range_max"}


@dataclass(frozen=True, slots=True)
class LeRobotJoint:
    """One entry of a LeRobot calibration file. All [ticks], post-offset: the homing offset lives in the servo
    (Feetech: present = encoder - offset, Dynamixel: encoder + offset) and is never subtracted again.

    To LeRobot, drive_mode turns the percent units of a Feetech round; a Dynamixel has it in a register of its own, so
    that there an entry counts as one of drive_mode 0 (`of_servo`).
    """

    name: str
    id: int
    drive_mode: int
    homing_offset: int
    range_min: int
    range_max: int

    def of_servo(self, driver: str) -> "LeRobotJoint":
        """The entry as the units of this driver's servos see it."""
        drive_mode = self.drive_mode if driver == "feetech" else 0
        return LeRobotJoint(self.name, self.id, drive_mode, self.homing_offset, self.range_min, self.range_max)

    # ---- ticks to LeRobot's units: Shape (N,), any

    def degrees(self, ticks: NDArray[np.int64]) -> NDArray[np.float64]:
        """LeRobot's DEGREES: from the middle of the range, not clamped, the drive mode not applied."""
        middle = (self.range_min + self.range_max) / 2
        return (ticks - middle) * 360 / RESOLUTION

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

    # ---- and back, rounded towards zero as LeRobot does

    def from_degrees(self, degrees: float) -> int:
        """[ticks]; not clamped. SafetyError for what is no finite number."""
        middle = (self.range_min + self.range_max) / 2
        return int(_finite(self.name, degrees) * RESOLUTION / 360 + middle)

    def from_percent(self, percent: float) -> int:
        """[ticks], clamped to the range. SafetyError for what is no finite number."""
        value = 100 - _finite(self.name, percent) if self.drive_mode else _finite(self.name, percent)
        bounded = min(100.0, max(0.0, value))
        return int((bounded / 100) * (self.range_max - self.range_min) + self.range_min)

    def from_symmetric_percent(self, percent: float) -> int:
        """[ticks], clamped to the range. SafetyError for what is no finite number."""
        value = -_finite(self.name, percent) if self.drive_mode else _finite(self.name, percent)
        bounded = min(100.0, max(-100.0, value))
        return int(((bounded + 100) / 200) * (self.range_max - self.range_min) + self.range_min)


def _finite(name: str, value: float) -> float:
    if not math.isfinite(value):
        raise SafetyError(f"{name}: {value} is no finite number; nothing was sent")
    return value


# ---- files


def read_lerobot(path: str | Path) -> dict[str, LeRobotJoint]:
    """Read a LeRobot calibration file: `{joint: {id, drive_mode, homing_offset, range_min, range_max}}`.

    Raises ConfigError naming the file, the joint, the key and what is allowed.
    """
    try:
        document = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"calibration {path}: {error.strerror}; `dzedge arm calibrate` makes one, or name a LeRobot file"
        ) from error
    except ValueError as error:
        raise ConfigError(f"calibration {path} is not JSON: {error}; calibrate again") from error
    if not isinstance(document, dict) or not document:
        raise ConfigError(f"calibration {path} has no joints: it must map joint names to values")
    return {name: _entry(path, name, values) for name, values in document.items()}


def _entry(path: str | Path, name: str, values: object) -> LeRobotJoint:
    if not isinstance(values, dict) or set(values) != _KEYS:
        raise ConfigError(f"calibration {path}, {name}: needs exactly {', '.join(sorted(_KEYS))}")
    for key, value in values.items():
        low, high = _RANGES.get(key, _TICKS)
        if type(value) is not int or not low <= value <= high:
            raise ConfigError(f"calibration {path}, {name}: {key} = {value!r}, not whole in [{low}, {high}]")
    entry = LeRobotJoint(name=name, **values)
    if entry.range_min >= entry.range_max:
        raise ConfigError(
            f"calibration {path}, {name}: range_min = {entry.range_min} must be below range_max = "
            f"{entry.range_max}; calibrate again"
        )
    return entry


def write_lerobot(path: str | Path, entries: Mapping[str, LeRobotJoint]) -> None:
    """Write a file that LeRobot and `read_lerobot` read; whole or not at all. ConfigError where that fails."""
    document = {
        name: {
            "id": entry.id,
            "drive_mode": entry.drive_mode,
            "homing_offset": entry.homing_offset,
            "range_min": entry.range_min,
            "range_max": entry.range_max,
        }
        for name, entry in entries.items()
    }
    file = Path(path)
    written = file.with_name(f".{file.name}.new")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        written.write_text(json.dumps(document, indent=4), encoding="utf-8")
        written.replace(file)
    except OSError as error:
        raise ConfigError(f"calibration {path} cannot be written: {error.strerror}; choose another --out") from error


def folder() -> Path:
    """Where LeRobot keeps the calibrations of robots."""
    home = os.environ.get("HF_HOME") or os.path.join(
        os.environ.get("XDG_CACHE_HOME", os.path.expanduser("~/.cache")), "huggingface"
    )
    lerobot = os.environ.get("HF_LEROBOT_HOME") or os.path.join(home, "lerobot")
    base = os.environ.get("HF_LEROBOT_CALIBRATION") or os.path.join(lerobot, "calibration")
    return Path(base).expanduser() / "robots"


def find_lerobot(robot_id: str, driver: str = "feetech") -> Path | None:
    """The newest calibration of that robot id where LeRobot keeps them, of its present and older names."""
    found = [folder() / name / f"{robot_id}.json" for name in ROBOTS[driver]]
    existing = [path for path in found if path.is_file()]
    return max(existing, key=lambda path: path.stat().st_mtime) if existing else None


def locate(named: str, driver: str) -> str:
    """The file that `arm.calibration` names: a path, or `lerobot:ID`. ConfigError where LeRobot has none of that id."""
    if not named.startswith(LEROBOT):
        return named
    robot_id = named.removeprefix(LEROBOT)
    found = find_lerobot(robot_id, driver)
    if found is None:
        raise ConfigError(
            f"arm.calibration = {named!r}: no {robot_id}.json in {folder()}/{{{','.join(ROBOTS[driver])}}}; calibrate "
            "with LeRobot or `dzedge arm calibrate`, or name a file"
        )
    return str(found)
