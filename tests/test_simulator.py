"""`dzedge sim`: a robot file's arm, or the whole simulated robot, for another program; either protocol."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from dzedge.config import RobotConfig, default_path, load
from dzedge.errors import UsageError
from dzedge.hardware.arm import StopCategory
from dzedge.hardware.dynamixel import DynamixelArm
from dzedge.hardware.feetech import FeetechArm
from dzedge.hardware.sim.emulator import MODELS
from dzedge.simulator import arm_bus, serve

replace = msgspec.structs.replace
SO101 = default_path().with_name("so101.toml")


def with_arm(config: RobotConfig, **changes: Any) -> RobotConfig:
    return replace(config, arm=replace(config.arm, **changes))


@contextmanager
def sim(*arguments: str) -> Iterator[dict[str, Any]]:
    """A running `dzedge sim`; what it says of itself."""
    command = [sys.executable, "-m", "dzedge.cli", "sim", *arguments, "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        yield json.loads(child.stdout.readline())
        child.terminate()
        assert child.wait(20) == 0


class TestArmBus:
    def test_the_servos_of_the_file_in_the_middle_of_their_ranges(self) -> None:
        config = load(SO101)
        bus = arm_bus(config, 0, "feetech")
        assert [servo.id for servo in bus.servos] == [joint.id for joint in config.arm.joints]
        for servo, joint in zip(bus.servos, config.arm.joints, strict=True):
            position = (servo.get("present_position") - joint.zero) * joint.scale
            assert position == pytest.approx((joint.lower + joint.upper) / 2, abs=1e-3)

    def test_models_of_the_other_protocol_are_replaced(self) -> None:
        config = load(SO101)
        assert {servo.model for servo in arm_bus(config, 0, "dynamixel").servos} == {MODELS["dynamixel"]}

    def test_shadows_come_along_with_their_joints(self) -> None:
        config = load(SO101)
        joints = [replace(joint, model="xm430-w350") for joint in config.arm.joints]
        joints[1] = replace(joints[1], model="xm540-w270", shadow_id=11)
        bus = arm_bus(with_arm(config, driver="dynamixel", joints=tuple(joints)), 0, "dynamixel")
        assert [servo.id for servo in bus.servos] == [1, 2, 3, 4, 5, 6, 11]
        assert bus.servos[-1].model == bus.servos[1].model == "xm540-w270"
        assert bus.servos[-1].encoder == bus.servos[1].encoder

    def test_a_rate_that_they_do_not_know(self) -> None:
        with pytest.raises(UsageError, match="knows no 250000 baud"):
            serve(with_arm(load(SO101), baud=250_000), 0, lambda _: None, protocol="dynamixel")

    def test_what_is_no_servo_bus(self) -> None:
        with pytest.raises(UsageError, match="a servo bus speaks feetech or dynamixel"):
            serve(load(SO101), 0, lambda _: None, protocol="modbus")


@pytest.mark.parametrize("protocol", ["feetech", "dynamixel"])
def test_the_whole_robot_on_either_protocol(protocol: str, tmp_path: Path) -> None:
    config = load(default_path())
    joints = tuple(replace(joint, model=MODELS[protocol]) for joint in config.arm.joints)
    link = tmp_path / "arm"
    with sim("--protocol", protocol, "--link", str(link)) as told:
        assert told["port"] == str(link) and told["protocol"] == protocol and told["task"]
        assert Path(told["socket"]).is_socket() and Path(told["frames"]).exists()
        table = replace(config.arm, driver=protocol, joints=joints)
        arm = (DynamixelArm if protocol == "dynamixel" else FeetechArm)(table, str(link))
        arm.open()
        arm.configure()
        pose = arm.activate()
        assert len(pose.positions) == 6
        arm.deactivate(StopCategory.OFF)
        arm.close()
    assert not link.exists() and not Path(told["socket"]).exists()
