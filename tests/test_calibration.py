"""Ticks and positions, and LeRobot's calibration files."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dzedge.config import Joint
from dzedge.errors import ConfigError
from dzedge.hardware import calibration
from dzedge.hardware.calibration import LeRobotJoint

MOTION = {"model": "sts3215", "velocity": 2.5, "acceleration": 12.0, "jerk": 200.0, "max_torque": 1.0}
PAN = Joint(name="shoulder_pan", id=1, lower=-1.5, upper=1.5, zero_ticks=2048, direction=1, **MOTION)
LIFT = Joint(name="shoulder_lift", id=2, lower=-1.0, upper=1.5, zero_ticks=2000, direction=-1, **MOTION)
GRIPPER = Joint(
    name="gripper", id=6, lower=0.0, upper=1.0, kind="gripper", closed_ticks=3200, open_ticks=2000, **MOTION
)
ENTRY = {"id": 1, "drive_mode": 0, "homing_offset": -120, "range_min": 900, "range_max": 3101}


def written(tmp_path: Path, content: object) -> Path:
    path = tmp_path / "arm.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


class TestJoints:
    @pytest.mark.parametrize("joint", [PAN, LIFT, GRIPPER])
    def test_every_tick_comes_back(self, joint: Joint) -> None:
        known = calibration.from_joint(joint)
        for ticks in range(known.lower, known.upper + 1):
            assert known.ticks(known.position(ticks)) == ticks

    def test_directions_and_limits(self) -> None:
        pan, lift, gripper = (calibration.from_joint(j) for j in (PAN, LIFT, GRIPPER))
        assert pan.position(3072) == pytest.approx(math.pi / 2)
        assert lift.position(3024) == pytest.approx(-math.pi / 2)
        assert (gripper.position(3200), gripper.position(2000)) == (0.0, 1.0)
        assert (gripper.lower, gripper.upper) == (2000, 3200)
        assert lift.lower == lift.ticks(1.5) < lift.ticks(-1.0) == lift.upper

    @given(position=st.floats(-1.5, 1.5))
    def test_within_half_a_tick(self, position: float) -> None:
        known = calibration.from_joint(PAN)
        assert abs(known.position(known.ticks(position)) - position) <= 0.5 / known.scale + 1e-12


class TestLeRobotFile:
    def test_read(self, tmp_path: Path) -> None:
        entries = calibration.read_lerobot(written(tmp_path, {"shoulder_pan": ENTRY}))
        assert entries == {"shoulder_pan": LeRobotJoint("shoulder_pan", 1, 0, -120, 900, 3101)}

    @pytest.mark.parametrize(
        ("content", "words"),
        [
            ("{", "is not JSON"),
            ([], "has no joints"),
            ({}, "has no joints"),
            ({"a": 3}, "needs exactly"),
            ({"a": ENTRY | {"extra": 1}}, "needs exactly"),
            ({"a": ENTRY | {"id": 254}}, "id = 254"),
            ({"a": ENTRY | {"drive_mode": 2}}, r"drive_mode = 2, not whole in \[0, 1\]"),
            ({"a": ENTRY | {"homing_offset": -2048}}, "homing_offset"),
            ({"a": ENTRY | {"range_min": 1.5}}, "range_min = 1.5"),
            ({"a": ENTRY | {"range_max": True}}, "range_max = True"),
            ({"a": ENTRY | {"range_max": 900}}, "must be below range_max"),
        ],
    )
    def test_bad_files(self, tmp_path: Path, content: object, words: str) -> None:
        with pytest.raises(ConfigError, match=words):
            calibration.read_lerobot(written(tmp_path, content))

    def test_missing_file(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="No such file"):
            calibration.read_lerobot(tmp_path / "none.json")

    def test_zero_is_the_middle_and_ranges_bind(self) -> None:
        entries = {"shoulder_pan": LeRobotJoint("shoulder_pan", 1, 0, -120, 1500, 3101)}
        (pan,) = calibration.calibrate([PAN], entries, "f")
        assert pan.zero == 2300.5 and pan.scale > 0
        assert (pan.lower, pan.upper) == (1500, 3101)  # 1.5 rad would be 978 ticks from the middle
        assert pan.offset == -120 and pan.range_ticks == (1500, 3101)

    def test_the_narrower_of_limits_and_range(self) -> None:
        entries = {"shoulder_pan": LeRobotJoint("shoulder_pan", 1, 0, 0, 100, 4000)}
        (pan,) = calibration.calibrate([PAN], entries, "f")
        assert (pan.lower, pan.upper) == (pan.ticks(-1.5), pan.ticks(1.5))

    @pytest.mark.parametrize(("drive_mode", "closed"), [(0, 1900), (1, 3300)])
    def test_gripper(self, drive_mode: int, closed: int) -> None:
        entries = {"gripper": LeRobotJoint("gripper", 6, drive_mode, 0, 1900, 3300)}
        (gripper,) = calibration.calibrate([GRIPPER], entries, "f")
        assert gripper.position(closed) == 0.0 and gripper.position(1900 + 3300 - closed) == 1.0

    def test_what_does_not_fit(self) -> None:
        pan = LeRobotJoint("shoulder_pan", 1, 0, 0, 900, 3100)
        with pytest.raises(ConfigError, match="no joint shoulder_lift; it has shoulder_pan"):
            calibration.calibrate([LIFT], {"shoulder_pan": pan}, "f")
        with pytest.raises(ConfigError, match="id 1, robot file: 2"):
            calibration.calibrate([LIFT], {"shoulder_lift": pan}, "f")

    def test_search(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HF_LEROBOT_CALIBRATION", str(tmp_path))
        assert calibration.find_lerobot("mine") is None
        path = tmp_path / "robots" / "so101_follower" / "mine.json"
        path.parent.mkdir(parents=True)
        path.write_text("{}")
        assert calibration.find_lerobot("mine") == path


class TestLeRobotUnits:
    """The units policies were trained on, for every tick."""

    TICKS = np.arange(4096)

    def test_degrees(self) -> None:
        got = LeRobotJoint("a", 1, 1, 0, 900, 3101).degrees(self.TICKS)
        assert [float(v) for v in got] == [(t - 2000.5) * 360 / 4095 for t in range(4096)]

    @pytest.mark.parametrize("drive_mode", [0, 1])
    def test_percent(self, drive_mode: int) -> None:
        joint = LeRobotJoint("a", 1, drive_mode, 0, 900, 3100)
        got, symmetric = joint.percent(self.TICKS), joint.symmetric_percent(self.TICKS)
        ends = (100.0, 0.0) if drive_mode else (0.0, 100.0)
        assert (got[0], got[900], got[3100], got[4095]) == (ends[0], ends[0], ends[1], ends[1])
        assert got[2000] == 50.0 and symmetric[2000] == 0.0
        assert (symmetric[0], symmetric[4095]) == ((100.0, -100.0) if drive_mode else (-100.0, 100.0))
