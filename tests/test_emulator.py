"""The emulator as a thing of its own: port, link, rates, unplugging, control socket, scripts, `dzedge sim`."""

import json
import math
import os
import select
import socket
import termios
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dzedge.clock import NS, MonotonicClock
from dzedge.errors import PortError
from dzedge.hardware.control_table import table
from dzedge.hardware.serial_port import SerialPort
from dzedge.hardware.sim import dynamixel_wire as wire
from dzedge.hardware.sim import faults
from dzedge.hardware.sim.emulator import MODELS, PROTOCOLS, Emulator, make_bus, make_servos
from dzedge.hardware.sim.process import SimulatedRobot
from dzedge.hardware.sim.pty_server import TO_HOST, TO_SERVOS
from dzedge.hardware.sim.servo_bus import ServoBus
from dzedge.hardware.sim.servo_physics import ServoPhysics
from dzedge.sim_commands import HELP

IDS = [1, 2, 3]
CLOCK = MonotonicClock()
PING = {"feetech": b"\xff\xff\x01\x02\x01\xfb", "dynamixel": bytes.fromhex("FFFFFD000103000119 4E")}
REPLY = {"feetech": b"\xff\xff\x01\x02\x00\xfc", "dynamixel": wire.status(1, 0, bytes([0xB0, 4, 46]))}


def bus(protocol: str, **line) -> ServoBus:
    servos = make_servos(protocol, IDS, [2048] * 3)
    for servo in servos:
        servo.set("return_delay", 0)
    return make_bus(protocol, servos, **line)


@pytest.fixture(params=PROTOCOLS)
def protocol(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def emulator(protocol: str, tmp_path: Path) -> Iterator[Emulator]:
    with Emulator(bus(protocol), link=tmp_path / "port", socket=tmp_path / "socket") as served:
        yield served


@pytest.fixture
def ask(emulator: Emulator) -> Iterator[Callable[..., dict]]:
    with socket.socket(socket.AF_UNIX) as client, client.makefile("rw") as lines:
        client.connect(str(emulator.socket))

        def send(**request) -> dict:
            lines.write(json.dumps(request) + "\n")
            lines.flush()
            return json.loads(lines.readline())

        yield send


def talk(port: SerialPort, data: bytes, wait_s: float = 2.0) -> bytes:
    """What comes back, until nothing more does or it is as long as a reply to a ping."""
    port.drain()
    port.write(data)
    heard = b""
    deadline_ns = CLOCK.now_ns() + round(wait_s * NS)
    while len(heard) < len(REPLY["dynamixel" if data[2] == 0xFD else "feetech"]):
        part = port.read(deadline_ns)
        if not part:
            break
        heard += part
    return heard


class TestPort:
    def test_a_ping_through_the_link(self, protocol: str, emulator: Emulator) -> None:
        with SerialPort(emulator.port) as port:
            assert talk(port, PING[protocol]) == REPLY[protocol]
        assert os.readlink(emulator.port) == emulator.pty.path

    @pytest.mark.parametrize("baud", [57_600, 500_000, 3_000_000])
    def test_the_host_sets_the_rate_of_the_line(self, protocol: str, emulator: Emulator, baud: int) -> None:
        with SerialPort(emulator.port, baud) as port:
            assert talk(port, PING[protocol], 0.1) == b""
            assert emulator.bus.baud == baud
        with SerialPort(emulator.port) as port:
            assert talk(port, PING[protocol]) == REPLY[protocol]

    def test_a_servo_at_another_rate_is_found_there(self, protocol: str, tmp_path: Path) -> None:
        slow = make_bus(protocol, make_servos(protocol, [1], [0], baud=57_600))
        with Emulator(slow, link=tmp_path / "port") as served, SerialPort(served.port, 57_600) as port:
            assert talk(port, PING[protocol]) == REPLY[protocol]

    def test_before_a_host_sets_a_rate_it_is_the_bus_s_own(self, protocol: str, emulator: Emulator) -> None:
        descriptor = os.open(emulator.port, os.O_RDWR | os.O_NOCTTY)
        os.write(descriptor, PING[protocol])
        assert select.select([descriptor], [], [], 2.0)[0]
        os.close(descriptor)

    def test_unplug_and_replug(self, protocol: str, emulator: Emulator, ask: Callable[..., dict]) -> None:
        port = SerialPort(emulator.port)
        emulator.bus.servos[0].set("led" if protocol == "dynamixel" else "goal_time", 1)
        assert ask(fault="unplug")["ok"]
        with pytest.raises((PortError, termios.error)):
            for _ in range(200):
                port.write(PING[protocol])
                port.read(CLOCK.now_ns() + NS // 100)
        port.close()
        assert not os.path.lexists(emulator.port)
        ask(fault="replug")
        settle(lambda: os.path.exists(emulator.port))
        with SerialPort(emulator.port) as again:
            assert talk(again, PING[protocol]) == REPLY[protocol]
        assert emulator.bus.servos[0].get("led" if protocol == "dynamixel" else "goal_time") == 1  # its power stayed

    def test_unplugged_for_a_time(self, protocol: str, emulator: Emulator, ask: Callable[..., dict]) -> None:
        ask(fault="unplug", for_s=0.2)
        settle(lambda: not os.path.lexists(emulator.port))
        settle(lambda: os.path.exists(emulator.port))
        with SerialPort(emulator.port) as port:
            assert talk(port, PING[protocol]) == REPLY[protocol]

    def test_it_leaves_nothing_behind(self, protocol: str, tmp_path: Path) -> None:
        with Emulator(bus(protocol), link=tmp_path / "port") as served:
            folder = served.socket.parent
            assert folder.stat().st_mode & 0o77 == 0 and served.socket.stat().st_mode & 0o77 == 0
        assert list(tmp_path.iterdir()) == [] and not folder.exists()


SYNC_READ = {
    "feetech": b"\xff\xff\xfe\x07\x82\x38\x02\x01\x02\x03\x38",
    "dynamixel": wire.sealed(bytes.fromhex("FFFFFD00FE0A00828400040001 02 03")),
}


class TestPacing:
    def test_no_reply_before_its_wire_time(self, protocol: str, emulator: Emulator) -> None:
        with SerialPort(emulator.port) as port:
            for _ in range(50):
                port.write(SYNC_READ[protocol])
                heard, deadline_ns = 0, CLOCK.now_ns() + 2 * NS
                while heard < 3 * (8 if protocol == "feetech" else 15):
                    heard += len(port.read(deadline_ns))
        byte_ns, crossed, asked_ns, replies = emulator.bus.byte_ns, 0, 0, 0
        for at_ns, direction, data in list(emulator.pty.transcript):
            if direction == TO_SERVOS:
                asked_ns, crossed = at_ns, 0
            crossed += len(data)
            replies += direction == TO_HOST
            assert at_ns >= asked_ns + crossed * byte_ns or direction == TO_SERVOS
        assert replies == 150


class TestNames:
    def test_nothing_of_anybody_s_is_replaced(self, protocol: str, tmp_path: Path) -> None:
        mine = tmp_path / "mine"
        mine.write_text("precious")
        for names in ({"link": mine}, {"socket": mine}):
            with pytest.raises(ValueError, match="exists and is no"):
                Emulator(bus(protocol), **names)
        assert mine.read_text() == "precious"

    def test_a_link_of_an_earlier_run_is(self, protocol: str, tmp_path: Path) -> None:
        (tmp_path / "port").symlink_to("/dev/pts/none")
        with Emulator(bus(protocol), link=tmp_path / "port") as served, SerialPort(served.port) as port:
            assert talk(port, PING[protocol]) == REPLY[protocol]

    def test_places_that_are_not_there(self, protocol: str, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="cannot be made"):
            Emulator(bus(protocol), link=tmp_path / "no" / "port")
        with pytest.raises(ValueError, match="cannot be made"):
            Emulator(bus(protocol), socket=tmp_path / "no" / "socket").__enter__()


class TestControl:
    def test_a_fault_ends_by_itself(self, protocol: str, emulator: Emulator, ask: Callable[..., dict]) -> None:
        with SerialPort(emulator.port) as port:
            assert ask(fault="silent", servo=1, for_s=0.5)["ok"]
            assert talk(port, PING[protocol], 0.1) == b""
            settle(lambda: talk(port, PING[protocol], 0.1) == REPLY[protocol])

    def test_a_fault_to_come(self, protocol: str, emulator: Emulator, ask: Callable[..., dict]) -> None:
        ask(fault="silent", servo=1, at_s=1000)
        with SerialPort(emulator.port) as port:
            assert talk(port, PING[protocol]) == REPLY[protocol]

    def test_registers_and_state(self, emulator: Emulator, ask: Callable[..., dict]) -> None:
        assert ask(set="offset", servo=2, value=-7) == {"ok": True, "value": -7}
        assert ask(get="offset", servo=2)["value"] == -7 == emulator.bus.servos[1].get("offset")
        state = ask(state=True)
        assert state["protocol"] == emulator.bus.protocol and [row["id"] for row in state["servos"]] == IDS
        ask(fault="stuck", servo=3)
        assert [row["fault"] for row in ask(state=True)["servos"]] == ["ok", "ok", "stuck"]

    def test_a_hand_moves_what_has_no_torque(
        self, protocol: str, emulator: Emulator, ask: Callable[..., dict]
    ) -> None:
        assert ask(push=1500, servo=2) == {"ok": True, "value": 1500}
        assert [row["present"] for row in ask(state=True)["servos"]] == [2048, 1500, 2048]
        ask(set="torque_enable", servo=2, value=1)
        refused = ask(push=1600, servo=2)
        assert not refused["ok"] and "servo 2 has torque" in refused["error"]
        assert ask(get="present_position", servo=2)["value"] == 1500

    def test_transcript(self, protocol: str, emulator: Emulator, ask: Callable[..., dict]) -> None:
        with SerialPort(emulator.port) as port:
            talk(port, PING[protocol])
        asked, said = ask(transcript=2)["transcript"]
        assert (asked["is"], said["is"]) == (TO_SERVOS, TO_HOST)
        assert bytes.fromhex(asked["hex"]) == PING[protocol] and bytes.fromhex(said["hex"]) == REPLY[protocol]
        wire_ns = (len(PING[protocol]) + len(REPLY[protocol])) * emulator.bus.byte_ns
        assert said["t_ns"] - asked["t_ns"] >= wire_ns

    @pytest.mark.parametrize(
        ("request_", "words"),
        [
            ({"fault": "sleepy", "servo": 1}, "one of ok, off"),
            ({"fault": "sleepy"}, "one of ok, off"),
            ({"fault": "off", "servo": 9}, "no component '9'"),
            ({"fault": "off", "servo": 9, "at_s": 5}, "no component '9'"),
            ({"get": "colour", "servo": 1}, "no register 'colour'"),
            ({"set": "offset", "servo": 1}, "to which value"),
            ({"set": "id", "servo": 1, "value": 256}, "does not fit"),
            ({"push": 4096, "servo": 1}, "must be in [0, 4095]"),
            ({"push": 5}, "no component 'line'"),
            ({"get": "offset"}, "no component 'line'"),
            ({}, "ask for one of"),
            ({"state": True, "fault": "off"}, "ask for one of"),
            ({"color": 1}, "unknown field"),
        ],
    )
    def test_what_it_does_not_know(self, ask: Callable[..., dict], request_: dict, words: str) -> None:
        answer = ask(**request_)
        assert not answer["ok"] and words in answer["error"]

    def test_it_is_no_json(self, emulator: Emulator) -> None:
        assert json.loads(emulator.answer(b"off 3"))["ok"] is False


class TestPush:
    @pytest.mark.parametrize("setting", [{}, {"offset": 100}, {"drive_mode": 1}])
    def test_it_stays_there_and_the_goal_takes_it_from_there(self, protocol: str, setting: dict[str, int]) -> None:
        if not setting.keys() <= table(MODELS[protocol]).registers.keys():
            return
        (servo,) = servos = make_servos(protocol, [1], [2048])
        line = make_bus(protocol, servos, advance=ServoPhysics(servos))
        line.feed(b"", NS)
        for name, value in setting.items():
            servo.set(name, value)
        line.feed(b"", 2 * NS)
        middle = servo.get("present_position")
        place = middle % 4096 + 500
        servo.push(place)
        line.feed(b"", 4 * NS)
        assert servo.get("present_position") == place
        servo.set("goal_position", place - 200)
        servo.set("torque_enable", 1)
        line.feed(b"", 6 * NS)
        assert abs(servo.get("present_position") - (place - 200)) <= 2

    def test_under_the_whole_robot(self, protocol: str) -> None:
        robot = SimulatedRobot(1, [2048.0] * 6, [2 * math.pi / 4096] * 5 + [1 / 1000], now_ns=0, protocol=protocol)
        for servo in robot.servos:
            servo.set("torque_enable", 0)
        robot.step_to(NS // 10)
        robot.servos[0].push(2300)
        robot.step_to(NS // 5)
        assert abs(robot.servos[0].get("present_position") - 2300) <= 3
        assert robot.world.joints()[0] == pytest.approx(252 * 2 * math.pi / 4096, abs=0.01)


class TestFaults:
    """Each verb on each protocol, in memory: what a host hears of a sync read of three servos."""

    def read(self, line: ServoBus, now_ns: int) -> list[bytes]:
        return [data for _, data in line.feed(SYNC_READ[line.protocol], now_ns)]

    @pytest.mark.parametrize("verb", [verb for verb in faults.SERVO_VERBS if verb not in ("ok", "stuck", "stall")])
    def test_servo(self, protocol: str, verb: str) -> None:
        line, healthy = bus(protocol), bus(protocol)
        line.feed(b"", NS)
        line.set_fault("2", verb, 1.0)
        for servo in line.servos if verb in ("overheat", "undervolt") else ():
            servo.set_present(2048, 0, 0, servo.supply_v, 30)
            servo.protect(0.01)
        good, found = self.read(healthy, NS), self.read(line, NS)
        assert [good[0], good[2]] == [one for one in found if one in (good[0], good[2])]
        assert (found == good) == (verb == "slow")  # late; what comes in another order is another thing, too
        line.set_fault("2", "ok")
        if verb not in ("alert", "brownout", "overheat", "undervolt"):
            assert self.read(line, 2 * NS) == good

    @pytest.mark.parametrize("verb", [v for v in faults.LINE_VERBS if v not in ("ok", *faults.PORT_VERBS)])
    def test_line(self, protocol: str, verb: str) -> None:
        line, healthy = bus(protocol), bus(protocol)
        line.feed(b"", NS)
        line.set_fault("line", verb, 1.0)
        good, found = self.read(healthy, NS), self.read(line, NS)
        assert (found == good) == (verb in ("slow", "delayed"))
        line.set_fault("line", "ok")
        if verb != "brownout":
            assert self.read(line, 3 * NS) == good

    def test_a_share_of_the_replies(self, protocol: str) -> None:
        line = bus(protocol, seed=3)
        line.set_fault("line", "flip", 0.1)
        good = self.read(bus(protocol), NS)
        spoilt = sum(one not in good for k in range(200) for one in self.read(line, k * NS))
        assert 30 < spoilt < 100

    def test_scripts_are_played_in_time_and_by_seed(self, protocol: str) -> None:
        def play(seed: int) -> list[bytes]:
            line = bus(protocol, seed=seed)
            line.inject("line", "garbage", 2 * NS, for_ns=2 * NS)
            line.inject("1", "brownout", 6 * NS, for_ns=NS)
            return [data for k in range(1, 10) for data in self.read(line, k * NS)]

        heard = play(1)
        assert heard == play(1) != play(2)
        # 3 replies each second, 2 while the first servo is dark and while it boots
        assert len(heard) == 9 * 3 - 2

    def test_help_names_every_verb(self) -> None:
        words = set(HELP.replace(".", " ").split())
        assert set(faults.SERVO_VERBS) | set(faults.LINE_VERBS) <= words
        assert all(verb in faults.describe() for verb in faults.LINE_VERBS)


def settle(check: Callable[[], bool]) -> None:
    for _ in range(500):
        if check():
            return
        CLOCK.sleep_until_ns(CLOCK.now_ns() + NS // 100)
    raise AssertionError("it never came about")
