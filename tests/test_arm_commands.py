"""`dzedge arm` from scan to release over a real pty, with dead servos, alerts, wrong rates, foreign calibrations and an
adapter that is unplugged meanwhile."""

import contextlib
import json
import os
import re
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dzedge import arm_guide, cli, prompt
from dzedge.arm_session import Site
from dzedge.clock import NS
from dzedge.config import default_path
from dzedge.errors import BusError, PortError, UsageError
from dzedge.hardware import serial_port
from dzedge.hardware.calibrator import RangeRecorder, Span
from dzedge.hardware.control_table import BAUD_RATES
from dzedge.hardware.sim.pty_server import PtyServer
from dzedge.hardware.sim.servo import Servo
from dzedge.hardware.sim.servo_bus import FirstOrder, ServoBus

SIM = default_path().read_text(encoding="utf-8")
NAMES = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
Call = Callable[..., tuple[int, dict, str]]


class Line:
    """Six servos of an SO-101 on a pty, and a robot file that names it."""

    def __init__(self, folder: Path, servos: list[Servo] | None = None) -> None:
        self.servos = servos or [Servo(number, 2048) for number in range(1, 7)]
        self.physics = FirstOrder(self.servos, speed=20000.0, tau=0.01)
        self.server = PtyServer(ServoBus(self.servos, advance=self.physics), link=folder / "line").start()
        self.port = str(folder / "line")
        self.robot = folder / "robot.toml"
        self.write()

    def write(self, *, arm: str = "", model: str = "sts3215") -> None:
        """The robot file, with more lines in [arm]."""
        text = SIM.replace('port = "sim"', f'port = "{self.port}"').replace("key = true", "key = false")
        text = text.replace('serial = "sim"', 'serial = "1"').replace("rate_hz = 100", f"rate_hz = 100\n{arm}", 1)
        self.robot.write_text(text.replace('model = "sts3215"', f'model = "{model}"'))

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
    """`arm("scan", ...)` -> (exit code, the document, stderr), without a terminal."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("HF_LEROBOT_CALIBRATION", str(tmp_path / "lerobot"))
    monkeypatch.delenv("DZEDGE_TRACEBACK", raising=False)

    def run(*arguments: object) -> tuple[int, dict, str]:
        monkeypatch.setattr(sys, "argv", ["dzedge", "arm", *map(str, arguments), "--json"])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        told = capsys.readouterr()
        return int(str(ended.value.code or 0)), json.loads(told.out) if told.out else {}, told.err

    return run


class TestScan:
    def test_every_servo_at_its_own_rate(self, tmp_path: Path, arm: Call) -> None:
        servos = [Servo(1), Servo(7), Servo(8)]
        servos[1].set("baud_rate", BAUD_RATES.index(115_200))
        servos[2].set("baud_rate", BAUD_RATES.index(57_600))
        line = Line(tmp_path, servos)
        try:
            code, document, _ = arm("scan", line.port, "--protocol", "feetech", "--ids", "1,6-8")
            assert code == 0
            found = {one["id"]: (one["baud"], one["model"], one["firmware"]) for one in document["ports"][0]["servos"]}
            assert found == {n: (b, "sts3215", "3.10") for n, b in ((1, 1_000_000), (7, 115_200), (8, 57_600))}
        finally:
            line.server.stop()

    def test_alerts_in_words(self, line: Line, arm: Call) -> None:
        line.servos[1].alerts = 32
        _, document, _ = arm("scan", line.port, "--protocol", "feetech", "--ids", "1-2", "--baud", 1_000_000)
        assert [one["alerts"] for one in document["ports"][0]["servos"]] == ["", "overloaded"]

    def test_nobody(self, line: Line, arm: Call) -> None:
        code, document, _ = arm("scan", line.port, "--protocol", "feetech", "--ids", "9", "--baud", 1_000_000)
        assert code == 1 and document["ports"][0]["servos"] == []

    def test_no_port(self, arm: Call, tmp_path: Path) -> None:
        code, document, _ = arm("scan", tmp_path / "none")
        assert code == 3 and document["error"] == "PortError"

    def test_all_ports_and_why_not(self, line: Line, arm: Call, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(arm_guide, "list_ports", lambda: ["/dev/ttyACM77", line.port])
        code, document, _ = arm("scan", "--protocol", "feetech", "--ids", "1", "--baud", 1_000_000)
        first, second = document["ports"]
        assert code == 0 and first["servos"] == [] and "no serial port /dev/ttyACM77" in first["error"]
        assert [one["id"] for one in second["servos"]] == [1] and second["error"] == ""

    def test_a_port_of_several_names_once(
        self, line: Line, arm: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        named = tmp_path / "by-path"
        named.symlink_to(line.port)
        monkeypatch.setattr(arm_guide, "list_ports", lambda: [str(named), line.port])
        code, document, _ = arm("scan", "--protocol", "feetech", "--ids", "1", "--baud", 1_000_000)
        assert code == 0 and [one["port"] for one in document["ports"]] == [str(named)]

    def test_no_port_at_all(self, arm: Call, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(arm_guide, "list_ports", list)
        assert "has no serial port" in arm("scan")[1]["message"]

    @pytest.mark.parametrize("ids", ["", "x", "5-1", "1-253", "1,,2"])
    def test_ids_that_are_none(self, ids: str) -> None:
        with pytest.raises(UsageError, match="must be ids from 0 to 252"):
            arm_guide.parse_ids(ids)
        assert arm_guide.parse_ids("3,1-2,2") == (3, 1, 2)


class TestSetup:
    @pytest.fixture
    def new(self, tmp_path: Path) -> Iterator[Line]:
        """One servo, with id 1 at another rate than the arm's."""
        servo = Servo(1)
        servo.set("baud_rate", BAUD_RATES.index(500_000))
        made = Line(tmp_path, [servo])
        yield made
        made.server.stop()

    def test_id_and_rate_once_and_verified(self, new: Line, arm: Call) -> None:
        servo = new.servos[0]
        code, document, _ = arm("setup", new.robot, "--joint", "gripper", "--yes", "--ids", "1-6")
        assert code == 0 and document["servos"]["gripper"]["written"] == ["id 1 -> 6", "baud 500000 -> 1000000"]
        assert (servo.id, servo.get("baud_rate"), servo.get("lock"), servo.get("torque_enable")) == (6, 0, 1, 0)
        assert document["left"] == list(NAMES[:-1])
        _, document, _ = arm("setup", new.robot, "--joint", "gripper", "--yes", "--ids", "1-6")
        assert document["servos"]["gripper"]["written"] == [], "EEPROM wears: what is right is not written again"

    def test_goes_on_where_it_was_left(self, new: Line, arm: Call) -> None:
        arm("setup", new.robot, "--joint", "gripper", "--yes", "--ids", "1-6")
        new.servos[0].set("id", 1)
        _, document, _ = arm("setup", new.robot, "--joint", "wrist_roll", "--yes", "--ids", "1-6")
        assert set(document["servos"]) == {"gripper", "wrist_roll"} and new.servos[0].id == 5

    def test_two_at_once(self, line: Line, arm: Call) -> None:
        code, document, _ = arm("setup", line.robot, "--joint", "gripper", "--yes", "--ids", "1-3")
        assert code == 3
        assert "3 servos answer at 1000000 baud (ids 1, 2, 3): connect only that of gripper" in document["message"]
        assert [servo.id for servo in line.servos] == [1, 2, 3, 4, 5, 6]

    def test_two_new_ones_answer_over_each_other(self, tmp_path: Path, arm: Call) -> None:
        line = Line(tmp_path, [Servo(1, 1000), Servo(1, 3000)])
        try:
            code, document, _ = arm("setup", line.robot, "--joint", "gripper", "--yes", "--ids", "1-2")
            assert code == 3 and "two new servos at once answer over each other" in document["message"]
            assert [servo.id for servo in line.servos] == [1, 1]
        finally:
            line.server.stop()

    def test_another_model(self, new: Line, arm: Call) -> None:
        new.write(model="sts3250")
        code, document, _ = arm("setup", new.robot, "--joint", "gripper", "--yes", "--ids", "1")
        assert code == 3 and "is sts3215, gripper needs a sts3250" in document["message"] and new.servos[0].id == 1

    def test_nobody_there(self, new: Line, arm: Call) -> None:
        code, document, _ = arm("setup", new.robot, "--joint", "gripper", "--yes", "--ids", "4")
        assert code == 3 and "no servo answers at 1000000, 57600, 115200, 500000" in document["message"]

    def test_without_a_word_nothing_is_written(self, new: Line, arm: Call) -> None:
        code, document, _ = arm("setup", new.robot, "--joint", "gripper")
        assert code == 4 and "--yes" in document["message"] and new.servos[0].id == 1
        code, document, _ = arm("setup", new.robot)
        assert code == 2 and "--joint gripper --yes" in document["message"]

    def test_a_joint_that_is_none(self, new: Line, arm: Call) -> None:
        code, document, _ = arm("setup", new.robot, "--joint", "thumb", "--yes")
        assert code == 2 and "must be of gripper, wrist_roll" in document["message"]

    def test_on_a_terminal_it_asks_and_tries_again(
        self, new: Line, arm: Call, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """First the cable is off, then it is not; then the user stops."""
        asked = []

        def answer(words: str) -> str:
            asked.append(words)
            new.server.set_fault("line", "off" if len(asked) == 1 else "ok")
            return "q" if len(asked) == 3 else ""

        for module in (prompt, arm_guide):
            monkeypatch.setattr(module, "asks", lambda as_json: True)
        monkeypatch.setattr(arm_guide, "ask", answer)
        monkeypatch.setattr(sys, "argv", ["dzedge", "arm", "setup", str(new.robot), "--ids", "1"])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        told = capsys.readouterr()
        assert not ended.value.code and len(asked) == 3
        assert "gripper" in asked[0] and "gripper" in asked[1] and "wrist_roll" in asked[2]
        assert "no servo answers" in told.err and "gripper: id 6 at 1000000 baud" in told.out
        assert new.servos[0].id == 6


class TestCalibrate:
    MIDDLES = (1000, 2000, 2500, 3000, 1500, 2047)

    def calibrated(self, line: Line, arm: Call) -> Path:
        """Middle, then both ends of every joint in two sessions, then the file."""
        out = line.robot.with_name("arm.json")
        line.place(*self.MIDDLES)
        assert arm("calibrate", line.robot, "--step", "middle")[0] == 0
        for sign, reach in ((-1, 700), (1, 800)):
            line.place(*(middle + sign * reach for middle in self.MIDDLES))
            code, document, _ = arm("calibrate", line.robot, "--step", "range", "--seconds", 0.1)
            assert code == int(sign < 0), "until it was moved"
            assert document.get("message", "").startswith("hardly moved: shoulder_pan (0 ticks), ") is (sign < 0)
            assert document["spans"]["elbow_flex"] == [1347, 1347 if sign < 0 else 2847]
        code, document, _ = arm("calibrate", line.robot, "--step", "write", "--out", out)
        assert code == 0 and document["file"] == str(out)
        line.write(arm=f'calibration = "{out}"')
        return out

    def test_steps_one_by_one_make_a_file_of_lerobot(self, line: Line, arm: Call) -> None:
        written = json.loads(self.calibrated(line, arm).read_text())
        assert list(written) == list(NAMES)
        for servo, (name, entry), middle in zip(line.servos, written.items(), self.MIDDLES, strict=True):
            assert entry["id"] == servo.id and entry["drive_mode"] == 0 and entry["homing_offset"] == middle - 2047
            ends = (0, 4095) if name == "wrist_roll" else (1347, 2847)
            assert (entry["range_min"], entry["range_max"]) == ends
            assert (servo.get("offset"), servo.get("min_position"), servo.get("max_position")) == (middle - 2047, *ends)
            assert servo.get("lock") == 1
        assert arm("calibrate", line.robot, "--check")[0] == 0

    def test_lerobots_own_place_without_a_name(self, line: Line, arm: Call, tmp_path: Path) -> None:
        line.place(*self.MIDDLES)
        arm("calibrate", line.robot, "--step", "middle")
        for sign in (-1, 1):
            line.place(*(middle + sign * 500 for middle in self.MIDDLES))
            arm("calibrate", line.robot, "--step", "range", "--seconds", 0.1)
        _, document, _ = arm("calibrate", line.robot, "--step", "write")
        assert document["file"] == str(tmp_path / "lerobot" / "robots" / "so_follower" / "sim.json")
        assert arm("calibrate", line.robot, "--check")[0] == 0, "found there again"
        line.write(arm='calibration = "lerobot:sim"')
        assert arm("read", line.robot)[0] == 0

    def test_a_servo_with_another_calibration_is_refused_and_restored(self, line: Line, arm: Call) -> None:
        out = self.calibrated(line, arm)
        line.servos[2].set("offset", 7)
        code, document, _ = arm("calibrate", line.robot, "--check")
        assert code == 1 and document["mismatches"] == [
            f"elbow_flex (servo 3 (sts3215)): offset is 7, the file says {2500 - 2047}"
        ]
        code, document, _ = arm("move", line.robot, "shoulder_pan", 0.1)
        assert code == 3 and "servo 3 (elbow_flex)" in document["message"] and "--restore" in document["message"]
        assert line.torque() == [0] * 6, "nothing was energised"
        code, document, _ = arm("calibrate", line.robot, "--restore")
        assert code == 0 and document["written"] == {"elbow_flex": [f"offset {2500 - 2047}"]}
        assert line.servos[2].get("offset") == 2500 - 2047 and out.exists()

    def test_a_file_of_another_arm_is_not_written(self, line: Line, arm: Call) -> None:
        out = self.calibrated(line, arm)
        document = json.loads(out.read_text())
        document["gripper"]["id"] = 16
        out.write_text(json.dumps(document))
        code, document, _ = arm("calibrate", line.robot, "--restore")
        assert code == 2 and "is of another arm: it lacks gripper" in document["message"]

    def test_an_energised_arm_is_not_dropped_without_a_word(self, line: Line, arm: Call) -> None:
        line.servos[0].set("torque_enable", 1)
        code, document, _ = arm("calibrate", line.robot, "--step", "middle")
        assert code == 4 and "supported" in document["message"] and line.servos[0].get("torque_enable") == 1
        assert arm("calibrate", line.robot, "--step", "middle", "--yes")[0] == 0
        assert line.torque() == [0] * 6

    def test_a_servo_of_another_mode_is_put_right(self, line: Line, arm: Call) -> None:
        line.servos[3].set("mode", 1)
        line.servos[4].set("phase", 28)
        assert arm("move", line.robot, "gripper", 0.5)[0] == 3, "neither is a position that can be commanded"
        assert arm("calibrate", line.robot, "--step", "middle")[0] == 0
        assert (line.servos[3].get("mode"), line.servos[4].get("phase")) == (0, 12)

    def test_joints_that_were_not_moved(self, line: Line, arm: Call) -> None:
        arm("calibrate", line.robot, "--step", "middle")
        code, document, _ = arm("calibrate", line.robot, "--step", "write")
        assert code == 1 and "hardly moved: shoulder_pan (0 ticks)" in document["message"]
        assert document["error"] == "DzedgeError", "a person's doing: no device is at fault"

    @pytest.mark.parametrize("step", ["range", "write"])
    def test_a_middle_that_is_no_more(self, line: Line, arm: Call, step: str) -> None:
        arm("calibrate", line.robot, "--step", "middle")
        line.servos[1].set("offset", 7)  # by another tool, since
        code, document, _ = arm("calibrate", line.robot, "--step", step, "--seconds", 0.1)
        assert code == 2 and "shoulder_lift: not the middle of before" in document["message"]
        assert line.servos[1].get("offset") == 7

    def test_steps_in_their_order(self, line: Line, arm: Call) -> None:
        assert "--step middle first" in arm("calibrate", line.robot, "--step", "write")[1]["message"]
        assert arm("calibrate", line.robot, "--step", "later")[0] == 2
        assert arm("calibrate", line.robot, "--check", "--restore")[0] == 2
        assert arm("calibrate", line.robot, "--step", "range")[0] == 2, "how long?"

    def test_a_joint_over_the_end_of_its_encoder(self) -> None:
        recorder = RangeRecorder({"pan": Span(100, 200)})
        recorder.update({"pan": 50})
        recorder.update({"pan": 900})
        assert recorder.spans["pan"] == Span(50, 900)
        recorder.update({"pan": 40})
        with pytest.raises(BusError, match=r"pan went over the end of its encoder \(40 to 4090 ticks\)"):
            recorder.update({"pan": 4090})


class TestOnATerminal:
    """The commands as a person sees them: a terminal of their own, keys pressed on it."""

    @pytest.fixture
    def person(self, line: Line, tmp_path: Path) -> Iterator[Callable[..., "Person"]]:
        environment = os.environ | {
            "XDG_STATE_HOME": str(tmp_path / "state"), "HF_LEROBOT_CALIBRATION": str(tmp_path / "lerobot"),
            "TERM": "xterm", "COLUMNS": "120",
        }  # fmt: skip
        made: list[Person] = []

        def start(*arguments: object) -> Person:
            made.append(Person(["arm", *map(str, arguments)], environment))
            return made[-1]

        yield start
        for one in made:
            one.close()

    def test_calibrate_from_the_middle_to_the_file(
        self, line: Line, person: Callable[..., "Person"], tmp_path: Path
    ) -> None:
        middles = TestCalibrate.MIDDLES
        line.servos[0].set("torque_enable", 1)
        line.place(*middles)
        terminal = person("calibrate", line.robot)
        terminal.wait("Is it supported?")
        terminal.type("y\n")
        terminal.wait("middle of its way")
        terminal.type("\n")
        terminal.wait("one by one from end to end; Enter ends it")
        for reach in (-600, 600):
            line.place(*(middle + reach for middle in middles))
            terminal.wait(str(2047 + reach))
        terminal.type("\n")
        terminal.wait("wrote ")
        assert terminal.end() == 0
        written = json.loads((tmp_path / "lerobot" / "robots" / "so_follower" / "sim.json").read_text())
        assert written["elbow_flex"] == {
            "id": 3, "drive_mode": 0, "homing_offset": 2500 - 2047, "range_min": 1447, "range_max": 2647
        }  # fmt: skip

    def test_release_takes_no_for_an_answer(self, line: Line, person: Callable[..., "Person"]) -> None:
        line.servos[0].set("torque_enable", 1)
        terminal = person("release", line.robot)
        terminal.wait("Is it supported?")
        terminal.type("n\n")
        assert terminal.end() == 4 and line.servos[0].get("torque_enable") == 1

    def test_a_live_table_until_ctrl_c(self, line: Line, person: Callable[..., "Person"]) -> None:
        terminal = person("read", line.robot)
        terminal.wait("shoulder_pan")
        line.place(2048, 2048, 2048, 2048, 2048, 3186)
        terminal.wait("+1.000")
        terminal.process.send_signal(signal.SIGINT)
        assert terminal.end() == 0


class Person:
    """A command on a terminal, and what is seen there."""

    def __init__(self, arguments: list[str], environment: dict[str, str]) -> None:
        self.seen = ""
        self.terminal, slave = os.openpty()
        command = [sys.executable, "-I", "-m", "dzedge.cli", *arguments]
        streams = {"stdin": slave, "stdout": slave, "stderr": slave}
        self.process = subprocess.Popen(command, env=environment, start_new_session=True, **streams)
        os.close(slave)

    def wait(self, words: str) -> None:
        """Until `words` have been shown since the last ones that were waited for."""
        deadline = time.monotonic() + 30
        while words not in self.seen:
            assert time.monotonic() < deadline, f"{words!r} was not shown: {self.seen[-2000:]}"
            if select.select([self.terminal], [], [], 0.1)[0]:
                try:
                    self.seen += os.read(self.terminal, 4096).decode("utf-8", "replace")
                except OSError as error:
                    raise AssertionError(f"ended without {words!r}: {self.seen[-2000:]}") from error
        self.seen = self.seen[self.seen.index(words) + len(words) :]

    def type(self, keys: str) -> None:
        os.write(self.terminal, keys.encode())

    def end(self) -> int:
        """Its exit code."""
        deadline = time.monotonic() + 30
        while self.process.poll() is None:
            assert time.monotonic() < deadline, "it did not end"
            if select.select([self.terminal], [], [], 0.05)[0]:
                with contextlib.suppress(OSError):
                    os.read(self.terminal, 4096)
        return self.process.returncode

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.terminal)


class TestRead:
    def test_every_joint(self, line: Line, arm: Call) -> None:
        line.place(2048, 2148, 2048, 2048, 2048, 2617)
        code, document, _ = arm("read", line.robot)
        rows = document["joints"]
        assert code == 0 and [row["joint"] for row in rows] == list(NAMES)
        assert rows[1]["position"] == pytest.approx(100 * 2 * 3.14159265 / 4096, abs=1e-4)
        assert rows[5]["position"] == pytest.approx(0.5, abs=1e-3)
        assert rows[0]["voltage_v"] == 7.4 and rows[0]["torque"] is False

    def test_a_dead_servo_does_not_hide_the_others(self, line: Line, arm: Call) -> None:
        line.server.set_fault("3", "off")
        line.servos[4].alerts = 32
        code, document, _ = arm("read", line.robot)
        rows = {row["joint"]: row for row in document["joints"]}
        assert code == 1 and "servo 3 does not answer" in rows["elbow_flex"]["alerts"]
        assert rows["wrist_roll"]["alerts"] == "overloaded" and rows["gripper"]["alerts"] == ""

    def test_wrong_rate(self, line: Line, arm: Call) -> None:
        for servo in line.servos:
            servo.set("baud_rate", BAUD_RATES.index(500_000))
        code, document, _ = arm("read", line.robot)
        assert code == 1 and all("at 1000000 baud" in row["alerts"] for row in document["joints"])

    def test_the_simulated_robot_needs_a_port(self, line: Line, arm: Call) -> None:
        code, document, _ = arm("read")
        assert code == 2 and "dzedge sim" in document["message"]
        assert arm("read", "--port", line.port)[0] == 0


class TestMove:
    def test_one_joint_and_the_arm_holds(self, line: Line, arm: Call) -> None:
        code, document, _ = arm("move", line.robot, "shoulder_lift", "-0.2", "--speed", 0.8)
        assert code == 0 and document["torque"] is True
        assert document["command"]["shoulder_lift"] == -0.2
        assert line.servos[1].get("goal_position") == 2048 - round(0.2 * 4096 / 6.2831853)
        assert [servo.get("goal_position") for servo in line.servos[2:]] == [2048] * 4 and line.torque() == [1] * 6

    def test_outside_the_limits(self, line: Line, arm: Call) -> None:
        code, document, _ = arm("move", line.robot, "shoulder_pan", 2.0)
        assert code == 4 and "shoulder_pan = 2.000, allowed [-1.920, 1.920]" in document["message"]
        assert line.torque() == [0] * 6

    def test_outside_the_calibrated_range(self, line: Line, arm: Call) -> None:
        TestCalibrate().calibrated(line, arm)
        line.place(*TestCalibrate.MIDDLES)
        code, document, _ = arm("move", line.robot, "shoulder_pan", 1.5)
        assert code == 4 and "shoulder_pan = 1.500, allowed [-1.150, 1.150]" in document["message"]

    def test_a_joint_that_is_none(self, line: Line, arm: Call) -> None:
        assert arm("move", line.robot, "thumb", 0.1)[0] == 2

    def test_a_joint_that_does_not_follow(self, line: Line, arm: Call) -> None:
        line.server.set_fault("2", "stuck")
        code, document, _ = arm("move", line.robot, "shoulder_lift", "1.5", "--speed", 0.4)
        assert code == 4 and re.search(r"shoulder_lift is 0\.\d+ from its command", document["message"])
        assert line.torque() == [1] * 6, "it holds"
        assert 2048 + 0.3 * 652 < line.servos[1].get("goal_position") < 2048 + 1.2 * 652, "it stopped on the way"

    def test_an_alert_is_told_before_anything_moves(self, line: Line, arm: Call) -> None:
        line.servos[0].alerts = 32
        code, document, _ = arm("move", line.robot, "shoulder_lift", 0.1)
        assert code == 4 and "servo 1 (shoulder_pan) reports: overloaded" in document["message"]
        assert line.torque() == [0] * 6


class TestParkAndRelease:
    def test_park_from_the_last_command_then_off(self, line: Line, arm: Call) -> None:
        line.write(arm="park = [0.1, -0.1, 0.0, 0.0, 0.0, 0.2]")
        arm("move", line.robot, "shoulder_pan", 0.2, "--speed", 1.0)
        code, document, _ = arm("park", line.robot, "--speed", 1.0)
        assert code == 0 and list(document["command"].values()) == [0.1, -0.1, 0.0, 0.0, 0.0, 0.2]
        assert document["torque"] is False and line.torque() == [0] * 6

    def test_park_needs_a_pose(self, line: Line, arm: Call) -> None:
        code, document, _ = arm("park", line.robot)
        assert code == 2 and "has no arm.park" in document["message"]

    def test_release_asks(self, line: Line, arm: Call) -> None:
        line.servos[0].set("torque_enable", 1)
        code, document, _ = arm("release", line.robot)
        assert code == 4 and "supported" in document["message"] and line.servos[0].get("torque_enable") == 1

    @pytest.mark.parametrize("dead", range(1, 7))
    def test_release_reaches_all_but_the_dead(self, line: Line, arm: Call, dead: int) -> None:
        line.write(arm='calibration = "/nowhere/at/all.json"')
        for servo in line.servos:
            servo.set("torque_enable", 1)
        line.server.set_fault(str(dead), "off")
        code, document, _ = arm("release", line.robot, "--yes")
        assert code == 3 and f"servo {dead} ({NAMES[dead - 1]})" in document["message"]
        assert line.torque() == [int(number == dead) for number in range(1, 7)]

    def test_in_use(self, line: Line, arm: Call) -> None:
        with serial_port.SerialPort(line.port):
            code, document, _ = arm("release", line.robot, "--yes")
        assert code == 3 and "is in use by" in document["message"]


class TestUnplugged:
    def test_a_motion_ends_and_nothing_is_armed_again(self, line: Line, arm: Call) -> None:
        def pull() -> None:
            while line.servos[0].get("goal_position") < 2100:
                time.sleep(0.005)
            line.server.inject("line", "unplug", for_s=1.0)

        threading.Thread(target=pull, daemon=True).start()
        code, document, _ = arm("move", line.robot, "shoulder_pan", "1.5", "--speed", 0.3)
        assert code == 3 and "unplugged" in document["message"]
        goal = line.servos[0].get("goal_position")
        assert 2048 < goal < 2048 + 1.5 * 652
        serial_port.reopen(line.port, 1_000_000, 5 * NS).close()
        code, document, _ = arm("read", line.robot)
        assert code == 0 and document["joints"][0]["goal_ticks"] == goal, "it holds where it was, and waits"
        assert line.torque() == [1] * 6

    def test_ranges_that_were_noted_are_kept(self, line: Line, arm: Call) -> None:
        arm("calibrate", line.robot, "--step", "middle")
        line.place(1800, 1800, 1800, 1800, 1800, 1800)

        def pull(self: RangeRecorder, positions: dict[str, int]) -> None:
            real(self, positions)
            line.server.inject("line", "unplug", for_s=0.3)

        real = RangeRecorder.update
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(RangeRecorder, "update", pull)
            assert arm("calibrate", line.robot, "--step", "range", "--seconds", 20)[0] == 3
        serial_port.reopen(line.port, 1_000_000, 5 * NS).close()
        line.place(2400, 2400, 2400, 2400, 2400, 2400)
        _, document, _ = arm("calibrate", line.robot, "--step", "range", "--seconds", 0.1)
        assert document["spans"]["elbow_flex"] == [1800 - 1, 2400 - 1]

    def test_the_live_table_waits_for_it(self, line: Line, arm: Call, monkeypatch: pytest.MonkeyPatch) -> None:
        """Read, unplugged, read again; then Ctrl-C."""
        seen: list[str] = []
        real = arm_guide.read_once

        def looked(site: Site) -> list[dict]:
            try:
                rows = real(site)
            except PortError:
                seen.append("unplugged")
                raise
            seen.append("read")
            if seen == ["read"]:
                line.server.inject("line", "unplug", for_s=0.3)
            if seen[-2:] == ["unplugged", "read"]:
                raise KeyboardInterrupt
            return rows

        monkeypatch.setattr(arm_guide, "read_once", looked)
        arm_guide.watch(Site(line.robot, None), "gripper")
        assert seen[0] == "read" and "unplugged" in seen and seen[-1] == "read"
