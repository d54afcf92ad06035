"""LeRobot's own motor buses as the judges of our units and calibration files, opt-in. Run by `make judges`.

Bit for bit: all 4096 ticks and a grid of floats, in its three modes, with both drive modes, for both of its buses.
"""

import importlib
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from dzedge.hardware import lerobot
from dzedge.hardware.lerobot import LeRobotJoint, read_lerobot, write_lerobot

MISSING = [name for name in ("lerobot", "deepdiff") if find_spec(name) is None]
pytestmark = [
    pytest.mark.skipif(bool(MISSING), reason=f"{', '.join(MISSING)}: in .venv-judges alone; run `make judges`"),
    pytest.mark.filterwarnings("ignore"),  # theirs
]
RANGES = [(0, 4095), (741, 3292), (823, 3289), (2040, 2055), (2047, 2048)]
GRID = np.concatenate([np.linspace(-220.0, 220.0, 8801), np.random.default_rng(5).normal(0.0, 90.0, 4000)])
BUSES = {"feetech": ("feetech", "FeetechMotorsBus"), "dynamixel": ("dynamixel", "DynamixelMotorsBus")}
MODES = {
    "DEGREES": (LeRobotJoint.degrees, LeRobotJoint.from_degrees),
    "RANGE_0_100": (LeRobotJoint.percent, LeRobotJoint.from_percent),
    "RANGE_M100_100": (LeRobotJoint.symmetric_percent, LeRobotJoint.from_symmetric_percent),
}


def judge(driver: str, entry: LeRobotJoint, mode: str) -> tuple[type, Any]:
    """Their bus class, and what its unit formulas read of a bus, without a port."""
    base = importlib.import_module("lerobot.motors.motors_bus")
    folder, name = BUSES[driver]
    kind = getattr(importlib.import_module(f"lerobot.motors.{folder}.{folder}"), name)
    calibration = base.MotorCalibration(
        entry.id, entry.drive_mode, entry.homing_offset, entry.range_min, entry.range_max
    )
    motor = base.Motor(entry.id, "m", getattr(base.MotorNormMode, mode))
    return kind, SimpleNamespace(
        calibration={"m": calibration},
        motors={"m": motor},
        apply_drive_mode=kind.apply_drive_mode,
        model_resolution_table={"m": 4096},
        _id_to_name=lambda _: "m",
        _id_to_model=lambda _: "m",
    )


@pytest.mark.parametrize("driver", BUSES)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("drive_mode", [0, 1])
def test_units_to_the_bit(driver: str, mode: str, drive_mode: int) -> None:
    ticks = np.arange(4096)
    forth, back = MODES[mode]
    for low, high in RANGES:
        entry = LeRobotJoint("m", 3, drive_mode, -12, low, high)
        kind, bus = judge(driver, entry, mode)
        ours = entry.of_servo(driver)
        theirs = [kind._normalize(bus, {3: tick})[3] for tick in ticks.tolist()]
        assert forth(ours, ticks).tolist() == theirs
        assert [back(ours, value) for value in GRID.tolist()] == [
            kind._unnormalize(bus, {3: value})[3] for value in GRID.tolist()
        ]


def test_the_drive_mode_is_the_feetechs_alone() -> None:
    """Must differ, or the judge above judges nothing."""
    entry = LeRobotJoint("m", 3, 1, 0, 1000, 3000)
    found = {}
    for driver in BUSES:
        kind, bus = judge(driver, entry, "RANGE_0_100")
        found[driver] = kind._normalize(bus, {3: 1500})[3]
    assert found == {"feetech": 75.0, "dynamixel": 25.0}


def test_files_there_and_back(tmp_path: Path) -> None:
    """They read what we write, and we read what they write."""
    draccus = pytest.importorskip("draccus", reason="LeRobot's encoder, which .venv-judges may lack")
    base = importlib.import_module("lerobot.motors.motors_bus")
    ours = {"pan": LeRobotJoint("pan", 1, 0, -310, 741, 3292), "gripper": LeRobotJoint("gripper", 6, 1, 1047, 3, 900)}
    write_lerobot(tmp_path / "ours.json", ours)
    with open(tmp_path / "ours.json") as file, draccus.config_type("json"):
        theirs = draccus.load(dict[str, base.MotorCalibration], file)
    assert theirs["gripper"] == base.MotorCalibration(6, 1, 1047, 3, 900)
    with open(tmp_path / "theirs.json", "w") as file, draccus.config_type("json"):
        draccus.dump(theirs, file, indent=4)
    assert read_lerobot(tmp_path / "theirs.json") == ours
    assert (tmp_path / "theirs.json").read_text() == (tmp_path / "ours.json").read_text()


def test_they_keep_files_where_we_look() -> None:
    constants = importlib.import_module("lerobot.utils.constants")
    assert lerobot.folder() == constants.HF_LEROBOT_CALIBRATION / constants.ROBOTS
