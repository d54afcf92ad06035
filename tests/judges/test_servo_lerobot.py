"""LeRobot 0.4.4's servo buses on the emulated one, opt-in: handshake, set-up, calibration, torque, sync. Run by
`make judges`."""

import importlib
import os
from collections.abc import Iterator
from importlib.util import find_spec
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest

HERE = all(find_spec(name) for name in ("lerobot", "dynamixel_sdk", "scservo_sdk"))
pytestmark = [
    pytest.mark.skipif(not HERE, reason="lerobot is in .venv-judges alone: run `make judges`"),
    pytest.mark.filterwarnings("ignore"),  # theirs
]
OPERATIONS = int(os.environ.get("DZEDGE_OPERATIONS", "60"))
IDS = [1, 2, 3, 4, 5, 6]
PATIENCE_MS = 500
MODELS = {"dynamixel": "xl330-m288", "feetech": "sts3215"}
REGISTERS = {
    # by LeRobot's names; the highest value that both take
    "dynamixel": {
        "LED": ("led", 1), "Position_P_Gain": ("position_p_gain", 16383),
        "Profile_Velocity": ("profile_velocity", 32767), "Homing_Offset": ("offset", 2047),
        "Profile_Acceleration": ("profile_acceleration", 32767), "Goal_Current": ("goal_current", 1750),
    },
    "feetech": {
        "Acceleration": ("acceleration", 254), "P_Coefficient": ("p_gain", 254), "Goal_Velocity": ("goal_speed", 32767),
        "Torque_Limit": ("torque_limit", 1000), "Homing_Offset": ("offset", 2047),
        "Max_Torque_Limit": ("max_torque", 1000),
    },
}  # fmt: skip


@pytest.fixture(params=["dynamixel", "feetech"])
def rig(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """LeRobot's bus, connected, and the emulator behind it."""
    sim = request.getfixturevalue(request.param)
    bus = connect(request.param, sim.port, monkeypatch)
    bus.disable_torque(num_retry=2)
    bus.configure_motors()
    yield SimpleNamespace(bus=bus, sim=sim, protocol=request.param)
    bus.disconnect()
    assert [sim.get(servo, "torque_enable") for servo in IDS] == [0] * 6


def connect(protocol: str, port: str, monkeypatch: pytest.MonkeyPatch, ids: list[int] = IDS, **more: Any) -> Any:
    """A bus of theirs with time-outs that a loaded machine keeps."""
    motors = importlib.import_module("lerobot.motors")
    module = importlib.import_module(f"lerobot.motors.{protocol}.{protocol}")
    sdk = importlib.import_module("dynamixel_sdk" if protocol == "dynamixel" else "scservo_sdk")
    monkeypatch.setattr(sdk.port_handler, "LATENCY_TIMER", PATIENCE_MS)
    if protocol == "feetech":
        monkeypatch.setattr(module, "patch_setPacketTimeout", sdk.PortHandler.setPacketTimeout)
    made = getattr(module, f"{protocol.capitalize()}MotorsBus")
    norm = motors.MotorNormMode
    names = {f"joint{i}": motors.Motor(i, MODELS[protocol], norm.RANGE_M100_100) for i in ids}
    bus = made(port, names)
    bus.connect(**more)
    return bus


def test_calibration_is_written_and_read_back(rig: SimpleNamespace) -> None:
    made = importlib.import_module("lerobot.motors").MotorCalibration
    random = Random(3)
    wanted = {
        name: made(
            id=motor.id, drive_mode=0, homing_offset=random.randint(-1000, 1000), range_min=random.randint(0, 900),
            range_max=random.randint(3000, 4095),
        )
        for name, motor in rig.bus.motors.items()
    }  # fmt: skip
    rig.bus.write_calibration(wanted)
    assert rig.bus.read_calibration() == wanted and rig.bus.is_calibrated
    held = [rig.sim.get(servo, "offset") for servo in IDS]
    assert held == [calibration.homing_offset for calibration in wanted.values()]
    rig.sim.set(3, "max_position", 2999)
    assert not rig.bus.is_calibrated


def test_half_turn_homing_puts_the_pose_in_the_middle(rig: SimpleNamespace) -> None:
    rig.bus.reset_calibration()
    offsets = rig.bus.set_half_turn_homings()
    assert len(offsets) == 6
    present = rig.bus.sync_read("Present_Position", normalize=False, num_retry=2)
    assert all(abs(value - 2047) <= 1 for value in present.values()), present
    rig.bus.reset_calibration()


def test_goals_are_reached_in_its_units(rig: SimpleNamespace) -> None:
    rig.bus.reset_calibration()
    rig.bus.calibration = rig.bus.read_calibration()
    rig.bus.enable_torque(num_retry=2)
    goals = {name: 10.0 * i - 30.0 for i, name in enumerate(rig.bus.motors)}
    rig.bus.sync_write("Goal_Position", goals)
    for _ in range(300):
        present = rig.bus.sync_read("Present_Position", num_retry=2)
        if all(abs(present[name] - goal) < 0.3 for name, goal in goals.items()):
            break
    assert present == pytest.approx(goals, abs=0.3)


def test_random_operations(rig: SimpleNamespace) -> None:
    random = Random(11)
    known = REGISTERS[rig.protocol]
    names = list(rig.bus.motors)
    for _ in range(OPERATIONS):
        theirs = random.choice(list(known))
        ours, high = known[theirs]
        chosen = random.sample(names, random.randint(1, 6))
        values = {name: random.randint(0, high) for name in chosen}
        if random.random() < 0.5:
            rig.bus.sync_write(theirs, values, normalize=False)
            found = rig.bus.sync_read(theirs, chosen, normalize=False, num_retry=2)
        else:
            for name, value in values.items():
                rig.bus.write(theirs, name, value, normalize=False, num_retry=2)
            found = {name: rig.bus.read(theirs, name, normalize=False, num_retry=2) for name in chosen}
        assert found == values, theirs
        assert {name: rig.sim.get(rig.bus.motors[name].id, ours) for name in chosen} == values, theirs


def test_an_alert_stops_its_torque_off_half_way(rig: SimpleNamespace) -> None:
    """The defect that ours must not have: servos behind the first one that complains stay energised."""
    rig.bus.enable_torque(num_retry=2)
    rig.sim.ask(fault="alert", servo=3)
    with pytest.raises(RuntimeError):
        rig.bus.disable_torque()
    assert [rig.sim.get(servo, "torque_enable") for servo in (4, 5, 6)] == [1, 1, 1]
    rig.sim.ask(fault="brownout", servo=3)
    for _ in range(100):
        if rig.bus.ping("joint3"):
            break


def test_a_new_servo_is_found_and_set_up(new_servo: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    bus = connect("dynamixel", new_servo.port, monkeypatch, [4], handshake=False)
    bus.setup_motor("joint4", initial_baudrate=57_600)
    assert new_servo.get(4, "baud_rate") == 3 and bus.ping("joint4", num_retry=2) == 1200
    bus.disconnect()
