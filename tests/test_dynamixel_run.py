"""The simulated robot with Dynamixel servos instead of Feetechs: the same file, another driver, the same dance."""

import pytest

from dzedge import robot
from dzedge.config import RobotConfig, default_path, parse
from dzedge.history import RunResult
from dzedge.lockstep import run_lockstep

pytestmark = pytest.mark.slow


def simulated(driver: str, model: str) -> RobotConfig:
    file = default_path()
    text = file.read_text(encoding="utf-8").replace("../bundles/wam-nano", f"{file.parents[1]}/bundles/flow-vla")
    text = text.replace('driver = "feetech"', f'driver = "{driver}"').replace('model = "sts3215"', f'model = "{model}"')
    return parse(text.replace("voltage_high = 8.4", "voltage_high = 14.0"), "robot.toml")


def play(config: RobotConfig) -> RunResult:
    return run_lockstep(
        config, robot.verified_bundle(config), task="reach the red cube", seed=3, duration_s=1.5,
        on_status=lambda status: None, lean=True,
    )  # fmt: skip


def test_it_is_driven_and_repeats_to_the_byte() -> None:
    first, again = (play(simulated("dynamixel", "xm430-w350")) for _ in range(2))
    feetech = play(simulated("feetech", "sts3215"))
    assert first.chunks >= 3 and not first.refused
    assert first.wire_sha256 == again.wire_sha256 != feetech.wire_sha256
