"""LeRobot's calibration files and units: the formulas written out again, files there and back, both folder names."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from dzedge.config import default_path, load
from dzedge.errors import ConfigError, SafetyError
from dzedge.hardware import lerobot
from dzedge.hardware.calibration import calibrate
from dzedge.hardware.lerobot import LeRobotJoint, find_lerobot, locate, read_lerobot, write_lerobot

TICKS = np.arange(4096)
RANGES = [(0, 4095), (741, 3292), (2040, 2055), (100, 101)]


def joint(low: int, high: int, drive_mode: int = 0) -> LeRobotJoint:
    return LeRobotJoint("elbow_flex", 3, drive_mode, -12, low, high)


@pytest.mark.parametrize(("low", "high"), RANGES)
@pytest.mark.parametrize("drive_mode", [0, 1])
class TestUnits:
    """The same sums in plain Python, one tick and one float after another."""

    def test_every_tick(self, low: int, high: int, drive_mode: int) -> None:
        one = joint(low, high, drive_mode)
        for tick, degrees, percent, symmetric in zip(
            TICKS.tolist(), one.degrees(TICKS), one.percent(TICKS), one.symmetric_percent(TICKS), strict=True
        ):
            bounded = min(high, max(low, tick))
            assert degrees == (tick - (low + high) / 2) * 360 / 4095
            value = ((bounded - low) / (high - low)) * 100
            assert percent == (100 - value if drive_mode else value)
            value = (((bounded - low) / (high - low)) * 200) - 100
            assert symmetric == (-value if drive_mode else value)

    def test_a_grid_of_floats(self, low: int, high: int, drive_mode: int) -> None:
        one = joint(low, high, drive_mode)
        for value in np.linspace(-220.0, 220.0, 4001).tolist():
            assert one.from_degrees(value) == int(value * 4095 / 360 + (low + high) / 2)
            turned = 100 - value if drive_mode else value
            assert one.from_percent(value) == int(min(100.0, max(0.0, turned)) / 100 * (high - low) + low)
            turned = -value if drive_mode else value
            assert one.from_symmetric_percent(value) == int(
                ((min(100.0, max(-100.0, turned)) + 100) / 200) * (high - low) + low
            )

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
    def test_what_is_no_number(self, low: int, high: int, drive_mode: int, value: float) -> None:
        one = joint(low, high, drive_mode)
        for back in (one.from_degrees, one.from_percent, one.from_symmetric_percent):
            with pytest.raises(SafetyError, match="no finite number"):
                back(value)


def test_a_dynamixels_drive_mode_is_in_its_register() -> None:
    assert joint(0, 100, 1).of_servo("dynamixel") == joint(0, 100, 0)
    assert joint(0, 100, 1).of_servo("feetech") == joint(0, 100, 1)


ENTRIES = {"shoulder_pan": LeRobotJoint("shoulder_pan", 1, 0, -310, 741, 3292)}


class TestFiles:
    def test_there_and_back(self, tmp_path: Path) -> None:
        path = tmp_path / "new" / "arm.json"
        write_lerobot(path, ENTRIES)
        assert read_lerobot(path) == ENTRIES
        assert json.loads(path.read_text()) == {
            "shoulder_pan": {"id": 1, "drive_mode": 0, "homing_offset": -310, "range_min": 741, "range_max": 3292}
        }
        assert list(path.parent.iterdir()) == [path]

    def test_a_folder_that_cannot_be(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(ConfigError, match="cannot be written"):
            write_lerobot(tmp_path / "file" / "arm.json", ENTRIES)

    @pytest.mark.parametrize(
        ("key", "value"),
        [("id", 254), ("drive_mode", 2), ("homing_offset", 1.5), ("range_min", -1), ("range_max", 4096), ("id", True)],
    )
    def test_values_outside(self, tmp_path: Path, key: str, value: object) -> None:
        path = tmp_path / "arm.json"
        write_lerobot(path, ENTRIES)
        document = json.loads(path.read_text())
        document["shoulder_pan"][key] = value
        path.write_text(json.dumps(document))
        with pytest.raises(ConfigError, match=f"shoulder_pan: {key} = {value}, not whole in"):
            read_lerobot(path)

    def test_the_newest_of_both_names(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HF_LEROBOT_CALIBRATION", str(tmp_path))
        old = tmp_path / "robots" / "so101_follower" / "mine.json"
        write_lerobot(old, ENTRIES)
        assert find_lerobot("mine") == old and locate("lerobot:mine", "feetech") == str(old)
        new = tmp_path / "robots" / "so_follower" / "mine.json"
        write_lerobot(new, ENTRIES)
        os.utime(old, (1, 1))
        assert find_lerobot("mine") == new
        assert find_lerobot("mine", "dynamixel") is None
        with pytest.raises(ConfigError, match=r"no mine\.json in .*koch_follower,omx_follower"):
            locate("lerobot:mine", "dynamixel")
        assert locate("/a/file.json", "dynamixel") == "/a/file.json"

    def test_folders_by_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("HF_LEROBOT_CALIBRATION", "HF_LEROBOT_HOME", "HF_HOME"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
        assert lerobot.folder() == Path("/cache/huggingface/lerobot/calibration/robots")
        monkeypatch.setenv("HF_HOME", "/hf")
        assert lerobot.folder() == Path("/hf/lerobot/calibration/robots")
        monkeypatch.setenv("HF_LEROBOT_HOME", "/lr")
        assert lerobot.folder() == Path("/lr/calibration/robots")


class TestJoints:
    JOINTS = load(default_path()).arm.joints

    def entries(self, drive_mode: int = 0) -> dict[str, LeRobotJoint]:
        return {one.name: LeRobotJoint(one.name, one.id, drive_mode, 5, 1000, 3000) for one in self.JOINTS}

    def test_zero_in_the_middle_and_nothing_outside_the_range(self) -> None:
        pan = calibrate(self.JOINTS, self.entries(), "x")[0]
        assert (pan.zero, pan.lower, pan.upper) == (2000, 1000, 3000) and pan.range_ticks == (1000, 3000)

    def test_a_gripper_that_opens_the_other_way(self) -> None:
        ways = [calibrate(self.JOINTS, self.entries(mode), "x")[-1] for mode in (0, 1)]
        assert [way.position(1000) for way in ways] == [0.0, 1.0]
