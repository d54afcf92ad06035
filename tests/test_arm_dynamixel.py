"""`dzedge arm` on Dynamixel servos over a real pty: what is not as with Feetechs. The rest: test_arm_commands."""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dzedge import cli
from dzedge.config import default_path
from dzedge.hardware.sim.dynamixel_line import DynamixelLine
from dzedge.hardware.sim.dynamixel_servo import DynamixelServo
from dzedge.hardware.sim.pty_server import PtyServer
from dzedge.hardware.sim.servo_bus import FirstOrder

KOCH = default_path().with_name("koch.toml").read_text(encoding="utf-8")
MODELS = ["xl430-w250"] * 2 + ["xl330-m288"] * 4
NAMES = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
Call = Callable[..., tuple[int, dict]]


class Line:
    """Servos on a pty and a robot file that names it; without a list the six of a Koch."""

    def __init__(self, folder: Path, servos: list[DynamixelServo] | None = None) -> None:
        koch = [DynamixelServo(number, 2048, model=model) for number, model in enumerate(MODELS, 1)]
        self.servos = servos or koch
        self.physics = FirstOrder(self.servos, speed=20000.0, tau=0.01)
        self.server = PtyServer(DynamixelLine(self.servos, advance=self.physics), link=folder / "line").start()
        self.port = str(folder / "line")
        self.robot = folder / "koch.toml"
        self.write()

    def write(self, arm: str = "", **changes: str) -> None:
        lines = KOCH.splitlines()
        at = next(number for number, line in enumerate(lines) if line.startswith("port = "))
        lines[at] = f'port = "{self.port}"\n{arm}'
        text = "\n".join(lines)
        for old, new in changes.items():
            text = text.replace(old, new)
        self.robot.write_text(text)

    def torque(self) -> list[int]:
        return [servo.get("torque_enable") for servo in self.servos]

    def place(self, *ticks: int) -> None:
        """Move the joints by hand: where the encoders stand."""
        with self.server._lock:
            self.physics.positions[:] = [float(value) for value in ticks]


@pytest.fixture
def line(tmp_path: Path) -> Iterator[Line]:
    made = Line(tmp_path)
    yield made
    made.server.stop()


@pytest.fixture
def arm(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Call:
    """`arm("scan", ...)` -> (exit code, the document), without a terminal."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("HF_LEROBOT_CALIBRATION", str(tmp_path / "lerobot"))
    monkeypatch.delenv("DZEDGE_TRACEBACK", raising=False)

    def run(*arguments: object) -> tuple[int, dict]:
        monkeypatch.setattr(sys, "argv", ["dzedge", "arm", *map(str, arguments), "--json"])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        told = capsys.readouterr()
        return int(str(ended.value.code or 0)), json.loads(told.out) if told.out else {}

    return run


def test_scan_at_all_rates_names_models_and_alerts(tmp_path: Path, arm: Call) -> None:
    servos = [
        DynamixelServo(1, model="xl330-m288", baud=57_600),
        DynamixelServo(2, model="xl430-w250", baud=1_000_000),
        DynamixelServo(3, model="xm430-w350", baud=4_000_000),
    ]
    line = Line(tmp_path, servos)
    try:
        code, document = arm("scan", line.port, "--protocol", "dynamixel", "--ids", "1-4")
        found = {one["id"]: (one["baud"], one["model"]) for one in document["ports"][0]["servos"]}
        assert code == 0 and found == {
            1: (57_600, "xl330-m288"),
            2: (1_000_000, "xl430-w250"),
            3: (4_000_000, "xm430-w350"),
        }
    finally:
        line.server.stop()


class TestSetup:
    def test_from_the_factory(self, tmp_path: Path, arm: Call) -> None:
        servo = DynamixelServo(1, model="xl330-m288", baud=57_600)
        line = Line(tmp_path, [servo])
        try:
            code, document = arm("setup", line.robot, "--joint", "gripper", "--yes", "--ids", "1-2")
            assert code == 0 and document["servos"]["gripper"]["written"] == ["id 1 -> 6", "baud 57600 -> 1000000"]
            assert (servo.id, servo.get("baud_rate"), servo.get("secondary_id")) == (6, 3, 255)
        finally:
            line.server.stop()

    def test_a_shadow_obeys_its_leaders_id(self, tmp_path: Path, arm: Call) -> None:
        servo = DynamixelServo(1, model="xl430-w250", baud=57_600)
        line = Line(tmp_path, [servo])
        line.write(**{"id = 2\n": "id = 2\nshadow_id = 12\n"})
        try:
            code, document = arm("setup", line.robot, "--joint", "shoulder_lift.shadow", "--yes", "--ids", "1-2")
            assert code == 0, document
            assert document["servos"]["shoulder_lift.shadow"]["written"][:2] == ["secondary_id 2", "id 1 -> 12"]
            assert (servo.id, servo.get("secondary_id")) == (12, 2)
            assert "shoulder_lift" in document["left"] and "shoulder_lift.shadow" not in document["left"]
        finally:
            line.server.stop()


class TestCalibrate:
    def test_a_file_of_lerobot(self, line: Line, arm: Call, tmp_path: Path) -> None:
        middles = (1000, 2000, 2500, 3500, 1500, 2047)
        line.place(*middles)
        assert arm("calibrate", line.robot, "--step", "middle") == (0, {
            "ok": True, "offsets": dict(zip(NAMES, [2047 - middle for middle in middles], strict=True)), "spans": {},
        })  # fmt: skip
        for reach in (-400, 500):
            line.place(*(middle + reach for middle in middles))
            arm("calibrate", line.robot, "--step", "range", "--seconds", 0.1)
        code, document = arm("calibrate", line.robot, "--step", "write")
        path = tmp_path / "lerobot" / "robots" / "koch_follower" / "koch.json"
        assert code == 0 and document["file"] == str(path)
        entry = json.loads(path.read_text())["wrist_flex"]
        assert entry == {"id": 4, "drive_mode": 0, "homing_offset": 2047 - 3500, "range_min": 1647, "range_max": 2547}
        assert arm("calibrate", line.robot, "--check")[0] == 0
        line.servos[3].set("min_position", 3)
        assert arm("calibrate", line.robot, "--check")[0] == 1


    def test_a_shadow_gets_the_same_middle_and_range(self, tmp_path: Path, arm: Call) -> None:
        servos = [DynamixelServo(number, 2048, model=model) for number, model in enumerate(MODELS, 1)]
        shadow = DynamixelServo(12, 1200, model="xl430-w250")
        shadow.set("secondary_id", 2)
        line = Line(tmp_path, [*servos, shadow])
        line.write(**{"id = 2\n": "id = 2\nshadow_id = 12\n"})
        try:
            assert arm("calibrate", line.robot, "--step", "middle")[0] == 0
            assert (shadow.get("offset"), shadow.get("secondary_id")) == (2047 - 1200, 2)
            for reach in (-400, 500):
                line.place(*[2048 + reach] * 6, 1200 + reach)
                arm("calibrate", line.robot, "--step", "range", "--seconds", 0.1)
            line.write('calibration = "lerobot:koch"', **{"id = 2\n": "id = 2\nshadow_id = 12\n"})
            assert arm("calibrate", line.robot, "--step", "write")[0] == 0
            assert (shadow.get("min_position"), shadow.get("max_position")) == (1647, 2547)
            servos[1].set("offset", 5)
            assert arm("calibrate", line.robot, "--restore")[1]["written"] == {"shoulder_lift": ["offset -1"]}
            assert (shadow.get("offset"), shadow.get("secondary_id")) == (2047 - 1200, 2), "as it was, it did not hear"
            written: list[int] = []
            real = shadow.write
            shadow.write = lambda address, data: written.append(address) or real(address, data)  # type: ignore
            assert arm("calibrate", line.robot, "--restore")[1]["written"] == {} and written == []
            line.place(*[2048] * 6, 1200)
            code, document = arm("move", line.robot, "shoulder_lift", "0.1", "--speed", 1.0)
            assert code == 0, document
            assert shadow.get("torque_enable") == 1 and shadow.get("goal_position") == servos[1].get("goal_position")
        finally:
            line.server.stop()


class TestRead:
    def test_every_joint_with_its_alert_in_words(self, line: Line, arm: Call) -> None:
        line.place(2048, 2148, 2048, 2048, 2048, 2048)
        line.server.inject("3", "alert")
        code, document = arm("read", line.robot)
        rows = {row["joint"]: row for row in document["joints"]}
        assert code == 1 and rows["shoulder_lift"]["position"] == pytest.approx(0.1534, abs=1e-3)
        assert "reboot" in rows["elbow_flex"]["alerts"] and rows["gripper"]["alerts"] == ""
        assert rows["shoulder_pan"]["load"] is not None and rows["gripper"]["current_a"] is not None

    def test_whole_turns_of_a_servo_that_was_switched_on_do_not_count(self, line: Line, arm: Call) -> None:
        line.servos[4].set("mode", 4)
        line.place(2048, 2048, 2048, 2048, 2048 + 4096 + 100, 2048)
        _, document = arm("read", line.robot)
        assert document["joints"][4]["position"] == pytest.approx(0.1534, abs=1e-3) and document["joints"][4]["inside"]


class TestMove:
    def test_mixed_models_move_and_hold(self, line: Line, arm: Call) -> None:
        code, document = arm("move", line.robot, "elbow_flex", "-0.2", "--speed", 0.8)
        assert code == 0, document
        assert line.servos[2].get("goal_position") == 2048 - round(0.2 * 4096 / 6.2831853)
        assert line.torque() == [1] * 6
        assert all(servo.get("bus_watchdog") == 0 for servo in line.servos), "it goes on holding when this process ends"

    def test_a_calibrated_arm(self, line: Line, arm: Call) -> None:
        TestCalibrate().test_a_file_of_lerobot(line, arm, line.robot.parent)
        line.write('calibration = "lerobot:koch"')
        line.place(1000, 2000, 2500, 3500, 1500, 2047)
        code, document = arm("move", line.robot, "shoulder_pan", "0.2")
        assert code == 3 and "--restore" in document["message"] and "min_position is 3" in document["message"]
        assert arm("calibrate", line.robot, "--restore")[0] == 0
        code, document = arm("move", line.robot, "wrist_flex", "0.5", "--speed", 1.0)
        assert code == 0, document
        assert document["measured"]["wrist_flex"] == pytest.approx(0.5, abs=0.05)

    def test_an_alert_in_words_before_anything_is_energised(self, line: Line, arm: Call) -> None:
        line.server.inject("3", "alert")
        code, document = arm("move", line.robot, "shoulder_pan", "0.2")
        assert code in (3, 4) and "reboot" in document["message"] and line.torque() == [0] * 6


class TestRelease:
    @pytest.mark.parametrize("dead", [1, 4, 6])
    def test_all_but_the_dead_and_a_shadow_too(self, tmp_path: Path, arm: Call, dead: int) -> None:
        servos = [DynamixelServo(number, 2048, model=model) for number, model in enumerate(MODELS, 1)]
        shadow = DynamixelServo(12, 2048, model="xl430-w250")
        shadow.set("secondary_id", 2)
        line = Line(tmp_path, [*servos, shadow])
        line.write(**{"id = 2\n": "id = 2\nshadow_id = 12\n"})
        try:
            for servo in line.servos:
                servo.set("torque_enable", 1)
            line.server.set_fault(str(dead), "off")
            code, document = arm("release", line.robot, "--yes")
            assert code == 3 and f"servo {dead} ({NAMES[dead - 1]})" in document["message"]
            assert line.torque() == [int(servo.id == dead) for servo in line.servos]
        finally:
            line.server.stop()


def test_park(line: Line, arm: Call) -> None:
    line.write("park = [0.1, -0.1, 0.0, 0.0, 0.0, 0.2]")
    code, document = arm("park", line.robot, "--speed", 1.0)
    assert code == 0, document
    assert document["torque"] is False and line.torque() == [0] * 6
    assert document["measured"]["gripper"] == pytest.approx(0.2, abs=0.02)
