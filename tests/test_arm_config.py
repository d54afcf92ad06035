"""The [arm] table: what each driver needs of it and refuses."""

import re
from pathlib import Path

import msgspec
import pytest

from dzedge import config
from dzedge.arm_config import MODELS
from dzedge.config import RobotConfig
from dzedge.errors import ConfigError
from dzedge.hardware.control_table import table

ROBOTS = Path(__file__).parents[1] / "robots"
KOCH = (ROBOTS / "koch.toml").read_text(encoding="utf-8")
MCU = """
[arm]
driver = "mcu"
port = "/dev/ttyACM0"
baud = 115200
rate_hz = 50
hold_ms = 200
off_ms = 10000
park = [0.1, 0.5]

[[arm.joints]]
name = "pan"
lower = -1.0
upper = 1.0
velocity = 1.0
acceleration = 5.0
jerk = 100.0

[[arm.joints]]
name = "gripper"
kind = "gripper"
lower = 0.0
upper = 1.0
velocity = 1.0
acceleration = 5.0
jerk = 100.0

"""


def robot(arm: str) -> str:
    before, _, rest = KOCH.partition("[arm]")
    return before + arm + rest[rest.index("[[cameras]]") :]


def refusal(text: str, old: str, new: str) -> str:
    changed = re.sub(old, new, text, count=1, flags=re.MULTILINE)
    assert changed != text
    with pytest.raises(ConfigError) as refused:
        config.parse(changed, "x")
    return str(refused.value)


class TestDynamixel:
    def test_the_shipped_koch(self) -> None:
        arm = config.load(ROBOTS / "koch.toml").arm
        assert arm.driver == "dynamixel" and [joint.id for joint in arm.joints] == [1, 2, 3, 4, 5, 6]
        assert [joint.model for joint in arm.joints] == ["xl430-w250"] * 2 + ["xl330-m288"] * 4

    @pytest.mark.parametrize("driver", MODELS)
    def test_every_model_has_its_control_table(self, driver: str) -> None:
        protocols = {table(model).protocol for model in MODELS[driver]}
        assert protocols == {"feetech": {"feetech"}, "dynamixel": {"dynamixel2"}, "mcu": set()}[driver]

    @pytest.mark.parametrize(
        ("old", "new", "words"),
        [
            ('model = "xl430-w250"', 'model = "sts3215"', 'model = "sts3215": with driver = "dynamixel" one of xl430'),
            ("^baud = 1000000", "baud = 500000", 'baud = 500000: with driver = "dynamixel" one of 57600, 115200, 100'),
            ("^baud = 1000000", "baud = 57600", "6 servos at 57600 baud need 26.74 ms on the wire: at most 33 Hz"),
            ("^rate_hz = 100", "rate_hz = 20", "rate_hz = 20: with driver = \"dynamixel\" an integer in [50, 500]"),
            ("^id = 3", "id = 3\nshadow_id = 2", "id 2 is used twice"),
            ("^id = 3", "", "elbow_flex: missing key id; add it"),
            ("^max_torque = 0.8", "", "shoulder_pan: missing key max_torque; add it"),
            ("^zero_ticks = 2048\ndirection = 1", "", 'kind = "revolute" needs zero_ticks and direction'),
            ("^rate_hz = 100", "rate_hz = 100\nhold_ms = 200", "has no such watchdog; leave them out"),
            ("^rate_hz = 100", "rate_hz = 100\npark = [0.0]", "has 1 positions for 6 joints"),
            ("^rate_hz = 100", "rate_hz = 100\npark = [2.0, 0, 0, 0, 0, 0]", "park: shoulder_pan = 2.0 is outside"),
        ],
    )  # fmt: skip
    def test_refusals(self, old: str, new: str, words: str) -> None:
        assert words in refusal(KOCH, old, new)

    def test_a_shadow(self) -> None:
        text = KOCH.replace("id = 2\n", "id = 2\nshadow_id = 12\n")
        assert config.parse(text, "x").arm.joints[1].shadow_id == 12
        sim = (ROBOTS / "sim.toml").read_text()
        assert "only Dynamixel servos have a secondary id" in refusal(sim, "^id = 2", "id = 2\nshadow_id = 12")


class TestMicrocontroller:
    def test_says_nothing_of_servos(self) -> None:
        loaded = config.parse(robot(MCU), "x")
        assert loaded.arm.hold_ms == 200 and loaded.arm.park == (0.1, 0.5)
        assert msgspec.json.decode(msgspec.json.encode(loaded), type=RobotConfig) == loaded

    @pytest.mark.parametrize(
        ("old", "new", "words"),
        [
            ("^rate_hz = 50", "rate_hz = 51", 'rate_hz = 51: with driver = "mcu" an integer in [10, 50] [Hz]'),
            ("^hold_ms = 200", "hold_ms = 10000", "hold_ms = 10000"),
            ("^off_ms = 10000", "off_ms = 150", "hold_ms below off_ms"),
            ("^off_ms = 10000\n", "", "a microcontroller's watchdog needs both"),
            ("^lower = -1.0", "lower = -1.0\nid = 1", "pan: id: the microcontroller knows that itself; leave it out"),
            ("^lower = -1.0", "lower = -1.0\nzero_ticks = 2048\ndirection = 1", "pan: ticks: the microcontroller"),
            ('port = "/dev/ttyACM0"', 'port = "sim"', "there is no simulated microcontroller"),
            ("^rate_hz = 50", 'rate_hz = 50\ncalibration = "a.json"', "lives in its sketch"),
            ("^baud = 115200", "baud = 123456", 'baud = 123456: with driver = "mcu" one of 9600'),
        ],
    )
    def test_refusals(self, old: str, new: str, words: str) -> None:
        assert words in refusal(robot(MCU), old, new)


class TestGripper:
    TEXT = robot(MCU.replace("park = ", 'gripper = { driver = "modbus", port = "/dev/ttyUSB1" }\npark = '))

    def test_beside_servos(self) -> None:
        assert config.parse(self.TEXT, "x").arm.gripper is not None
        jaw = KOCH[KOCH.rindex("[[arm.joints]]") : KOCH.index("[[cameras]]")]
        bare = re.sub("^(id|model|max_torque|closed_ticks|open_ticks) = .*\n", "", jaw, flags=re.MULTILINE)
        named = 'rate_hz = 50\ngripper = { driver = "modbus", port = "g" }'
        text = KOCH.replace(jaw, bare).replace("rate_hz = 100", named, 1)
        arm = config.parse(text, "x").arm
        assert arm.gripper is not None and (arm.gripper.slave, arm.gripper.baud) == (9, 115200)
        words = "rate_hz = 100: with a Modbus gripper an integer in [10, 50]"
        assert words in refusal(text, "^rate_hz = 50", "rate_hz = 100")

    def test_refusals(self) -> None:
        assert 'the last joint must have kind = "gripper"' in refusal(self.TEXT, '^kind = "gripper"\n', "")
        with_id = self.TEXT.replace('kind = "gripper"', 'kind = "gripper"\nid = 6')
        with pytest.raises(ConfigError, match="gripper: id: a Modbus gripper knows that itself"):
            config.parse(with_id, "x")


class TestCalibration:
    def test_lerobots_is_no_path(self, tmp_path: Path) -> None:
        file = tmp_path / "koch.toml"
        file.write_text(KOCH.replace("rate_hz = 100", 'rate_hz = 100\ncalibration = "lerobot:my_arm"', 1))
        assert config.load(file).arm.calibration == "lerobot:my_arm"
