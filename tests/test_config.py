"""The robot file: what is shipped loads; every wrong key and value is refused in words a person can act on."""

import math
import re
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dzedge import config
from dzedge.config import RobotConfig
from dzedge.errors import ConfigError

ROBOTS = Path(__file__).parents[1] / "robots"
SIM = (ROBOTS / "sim.toml").read_text(encoding="utf-8")


def refusal(old: str, new: str, text: str = SIM) -> str:
    """The message for the simulated robot's file with one change: of the text `old`, or of the first key `old`."""
    changed = re.sub(rf"^{old} = [^#\n]*", new, text, count=1, flags=re.MULTILINE) if old.isidentifier() else ""
    changed = changed or text.replace(old, new, 1)
    assert changed != text or old == new
    with pytest.raises(ConfigError) as refused:
        config.parse(changed, "robots/sim.toml")
    message = str(refused.value)
    assert message.startswith("robots/sim.toml: ")
    return message.removeprefix("robots/sim.toml: ")


class TestShipped:
    @pytest.mark.parametrize("name", ["sim.toml", "so101.toml"])
    def test_files_load(self, name: str) -> None:
        loaded = config.load(ROBOTS / name)
        assert loaded.arm.names == (
            "shoulder_pan",
            "shoulder_lift",
            "elbow_flex",
            "wrist_flex",
            "wrist_roll",
            "gripper",
        )
        assert [joint.id for joint in loaded.arm.joints] == [1, 2, 3, 4, 5, 6]

    def test_default_is_the_simulated_arm(self) -> None:
        loaded = config.load(config.default_path())
        assert loaded.arm.simulated
        assert loaded.cameras[0].simulated
        assert loaded.robot.autostart == "run"
        assert loaded.policy.allow_test_key

    def test_real_arm_waits_and_trusts_no_test_key(self) -> None:
        loaded = config.load(ROBOTS / "so101.toml")
        assert not loaded.arm.simulated
        assert loaded.robot.autostart == "hold"
        assert not loaded.policy.allow_test_key
        assert loaded.realtime.require

    def test_the_real_arm_is_slower(self) -> None:
        sim, real = (config.load(ROBOTS / name).arm.limits() for name in ("sim.toml", "so101.toml"))
        assert np.all(real[:3] <= sim[:3])
        np.testing.assert_array_equal(real[3:], sim[3:])

    def test_paths_are_against_the_file(self, tmp_path: Path) -> None:
        text = re.sub(r'bundle = "[^"]*"', 'bundle = "mine.dzp"\ntrusted_keys = ["keys/me.pub"]', SIM)
        text = text.replace("[arm]", '[arm]\ncalibration = "arm.json"')
        (tmp_path / "robot.toml").write_text(text)
        loaded = config.load(tmp_path / "robot.toml")
        assert loaded.policy.bundle == str(tmp_path / "mine.dzp")
        assert loaded.policy.trusted_keys == (str(tmp_path / "keys" / "me.pub"),)
        assert loaded.arm.calibration == str(tmp_path / "arm.json")

    def test_bundle_of_the_repository(self) -> None:
        bundle = Path(config.load(ROBOTS / "sim.toml").policy.bundle)
        assert bundle.parent == ROBOTS.parent / "bundles"
        assert bundle.suffix == ".dzp"

    def test_a_crop_inside_the_image(self) -> None:
        text = SIM.replace("fps = ", "crop = [16, 12, 128, 96]\nfps = ", 1)
        assert config.parse(text, "x").cameras[0].crop == (16, 12, 128, 96)

    def test_survives_the_way_to_a_child_process(self) -> None:
        loaded = config.load(ROBOTS / "sim.toml")
        assert msgspec.json.decode(msgspec.json.encode(loaded), type=RobotConfig) == loaded


class TestArm:
    def test_limits_are_rows_of_the_kernels(self) -> None:
        limits = config.load(ROBOTS / "sim.toml").arm.limits()
        assert limits.shape == (5, 6)
        joint = config.load(ROBOTS / "sim.toml").arm.joints[0]
        assert limits[:, 0].tolist() == [joint.velocity, joint.acceleration, joint.jerk, joint.lower, joint.upper]
        with pytest.raises(ValueError, match="read-only"):
            limits[0, 0] = 9.0

    def test_ticks_of_a_revolute_joint(self) -> None:
        joint = config.load(ROBOTS / "sim.toml").arm.joints[0]
        assert joint.zero == 2048
        assert joint.scale == pytest.approx(2 * math.pi / 4096)

    def test_ticks_of_a_reversed_joint(self) -> None:
        joint = config.parse(SIM.replace("direction = 1", "direction = -1", 1), "x").arm.joints[0]
        assert joint.scale == pytest.approx(-2 * math.pi / 4096)

    def test_ticks_of_the_gripper(self) -> None:
        joint = config.load(ROBOTS / "sim.toml").arm.joints[-1]
        assert joint.zero == 2048
        assert (3186 - joint.zero) * joint.scale == pytest.approx(1.0)

    def test_records_are_frozen(self) -> None:
        loaded = config.load(ROBOTS / "sim.toml")
        with pytest.raises(AttributeError):
            loaded.arm.port = "/dev/ttyACM0"


class TestRefusal:
    @pytest.mark.parametrize(
        ("old", "new", "message"),
        [
            ("rate_hz", "rate_hz = 5000", r"arm.rate_hz = 5000: must be an integer in [10, 500] [Hz]; change it"),
            ("rate_hz", "rate_hz = 49", 'arm: rate_hz = 49: with driver = "feetech" an integer in [50, 500] [Hz]; '
             "change it"),
            ("rate_hz", "rate_hz = 99.5", "arm.rate_hz = 99.5: must be an integer in [10, 500] [Hz]; change it"),
            ("rate_hz", "rate_hz = true", "arm.rate_hz = true: must be an integer in [10, 500] [Hz]; change it"),
            ("precision", 'precision = "int4"', 'policy.precision = "int4": must be one of "auto", "fp32", "fp16", '
             '"int8", "w8", "w4", "fp8", "nvfp4"; change it'),
            ("provider", 'provider = "gpu"', 'policy.provider = "gpu": must be one of "cpu", "cuda", "tensorrt"; '
             "change it"),
            ("provider", "", 'policy.provider: missing key; add it: one of "cpu", "cuda", "tensorrt"'),
            ("cuda_graph", "cuda_graph = true", 'policy: cuda_graph = true with provider = "cpu": a CPU has none; '
             "set it to false"),
            ("cache", "cache = 1", "policy.cache = 1: must be true or false; change it"),
            ("rate_hz", "rat_hz = 100", "arm.rat_hz: unknown key; did you mean `rate_hz`?"),
            ("[task]", "[tusk]", "tusk: unknown key; did you mean `task`?"),
            ("seed", "colour = 0", "sim.colour: unknown key; remove it; known here: seed, cubes, camera_noise"),
            ("priority", "", "realtime.priority: missing key; add it: an integer in [0, 95]"),
            ('driver = "feetech"', 'driver = "can"', 'arm.driver = "can": must be one of "feetech", "dynamixel", '
             '"mcu"; change it'),
            ("jerk", "jerk = 0.0",
             "arm.joints[0].jerk = 0.0: must be a number in (0, 20000] [rad/s3], gripper [1/s3]; change it"),
            ("fps", "fps = 0", "cameras[0].fps = 0: must be an integer in [1, 90] [Hz]; change it"),
            ("timeout_s", 'timeout_s = "12"',
             'task.timeout_s = "12": must be a number in (0, 3600] [s]; change it'),
            ("fps", "fps = 15\ncrop = [1, 2]", "cameras[0].crop: must be a list; change it"),
        ],
    )  # fmt: skip
    def test_names_key_value_range_and_remedy(self, old: str, new: str, message: str) -> None:
        assert refusal(old, new) == message

    @pytest.mark.parametrize("value", ["nan", "inf", "-inf", "+nan"])
    @pytest.mark.parametrize("key", ["velocity", "following_error", "camera_noise"])
    def test_only_finite_numbers(self, key: str, value: str) -> None:
        message = refusal(key, f"{key} = {value}")
        assert re.search(rf"{key} = [+-]?(nan|inf): must be a finite number", message)

    @pytest.mark.parametrize(
        ("old", "new", "words"),
        [
            ("upper = 1.92", "upper = -3.0", "lower = -1.92 must be below upper = -3.0"),
            ("upper = 1.0", "upper = 2.0", "a gripper's limits must lie in [0, 1], not [0.0, 2.0]"),
            ("open_ticks = 3186", "open_ticks = 2048", "both 2048"),
            ("open_ticks = 3186", "", "needs closed_ticks and open_ticks"),
            ("closed_ticks = 2048", "closed_ticks = 2048\nzero_ticks = 3", "not zero_ticks"),
            ("direction = 1", "", "needs zero_ticks and direction"),
            ("zero_ticks = 2048", "zero_ticks = 1000", "outside [0, 4095]"),
            ("id = 2", "id = 1", "id 1 is used twice"),
            ('name = "elbow_flex"', 'name = "shoulder_pan"', "name shoulder_pan is used twice"),
            ("baud", "baud = 128000\ncalibration = 'x'", "at most 130 Hz"),
            ("fps", "fps = 15\ncrop = [10, 0, 160, 120]", "must lie inside the 160x120 image"),
            ("voltage_low", "voltage_low = 9.0", "must be below voltage_high"),
            ("sampler", 'sampler = "ddim(4)"', "video_first(nv,na), joint(n) or flash(1)"),
            ('name = "front"', 'name = "Front camera"', "a-z, 0-9, _"),
        ],
    )
    def test_what_does_not_fit_together(self, old: str, new: str, words: str) -> None:
        text = re.sub("rate_hz = [0-9]+", "rate_hz = 400", SIM, count=1) if "128000" in new else SIM
        assert words in refusal(old, new, text)

    def test_test_key_only_for_the_simulated_arm(self) -> None:
        message = refusal('port = "sim"', 'port = "/dev/ttyACM0"')
        assert "policy.allow_test_key = true with arm.port = '/dev/ttyACM0'" in message
        assert 'set arm.port = "sim"' in message

    def test_a_gripper_is_last(self) -> None:
        joints = SIM.split("[[arm.joints]]")
        gripper, _, rest = joints[-1].partition("\n[[cameras]]")
        moved = "[[arm.joints]]".join([joints[0], gripper, *joints[1:-1]]) + "\n[[cameras]]" + rest
        assert "a gripper must be the last joint" in refusal("[robot]", "[robot]", moved)

    def test_two_cameras_of_one_name(self) -> None:
        camera = SIM[SIM.index("[[cameras]]") : SIM.index("[policy]")]
        assert "must differ" in refusal("[policy]", camera + "[policy]")

    def test_not_toml(self) -> None:
        assert "not a TOML document" in refusal("[robot]", "[robot")

    def test_missing_file(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="cannot read the robot file"):
            config.load(tmp_path / "none.toml")

    def test_binary_file(self, tmp_path: Path) -> None:
        (tmp_path / "bad.toml").write_bytes(b"\xff\xfe\x00")
        with pytest.raises(ConfigError, match="cannot read the robot file"):
            config.load(tmp_path / "bad.toml")

    def test_every_key_but_the_optional_ones_is_required(self) -> None:
        optional = {"kind", "sampler", "instruction", "seed", "cubes", "camera_noise"}
        lines = SIM.splitlines()
        for number, line in enumerate(lines):
            key = line.partition(" = ")[0]
            if " = " not in line or line.startswith("#") or key in optional - {"sampler"}:
                continue
            with pytest.raises(ConfigError):
                config.parse("\n".join(lines[:number] + lines[number + 1 :]), "x")

    @given(text=st.text(max_size=300))
    @settings(max_examples=200, deadline=None)
    def test_junk_is_refused_not_crashed_on(self, text: str) -> None:
        with pytest.raises(ConfigError):
            config.parse(text, "junk")

    @given(data=st.data())
    @settings(max_examples=300, deadline=None)
    def test_any_value_loads_or_is_refused(self, data: st.DataObject) -> None:
        """One value of the file replaced by anything TOML can say: a config within its limits, or a refusal."""
        lines = SIM.splitlines()
        keys = [n for n, line in enumerate(lines) if " = " in line and not line.startswith("#")]
        number = data.draw(st.sampled_from(keys))
        value = data.draw(
            st.sampled_from(["nan", "inf", "-1", "0", "1e300", "2147483648", '""', "true", "[]", "{}", "-0.0"])
            | st.integers(-(2**62), 2**62).map(str)
            | st.floats(allow_nan=False, allow_infinity=False).map(repr)
        )
        lines[number] = f"{lines[number].partition(' = ')[0]} = {value}"
        try:
            loaded = config.parse("\n".join(lines), "x")
        except ConfigError:
            return
        limits = loaded.arm.limits()
        assert np.isfinite(limits).all()
        assert np.all(limits[:3] > 0)
        assert np.all(limits[3] < limits[4])
