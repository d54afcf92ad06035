"""The Modbus gripper against a pymodbus RTU server on a pty, with a line between them that loses, delays, doubles and
damages replies; and against the frames of Robotiq's manual."""

import asyncio
import os
import select
import threading
import tty
from collections.abc import Callable, Iterator

import pytest

pytest.importorskip("minimalmodbus", reason="Modbus grippers need minimalmodbus (extra [modbus])")

from dzedge.errors import BusError, DeviceError, PortError, SafetyError
from dzedge.hardware import modbus_gripper
from dzedge.hardware.arm import StopCategory
from dzedge.hardware.modbus_gripper import FAULTS, LENGTHS, Grasp, ModbusGripper, parse, to_byte

COMMANDS = 100


class Line:
    """Two ptys and a wire between them. host, device: their paths. spoil(reply) -> what arrives instead; requests:
    all that the host has sent, a chunk each."""

    def __init__(self) -> None:
        self._ends = [os.openpty() for _ in range(2)]
        for _, slave in self._ends:
            tty.setraw(slave)
        self.host, self.device = (os.ttyname(slave) for _, slave in self._ends)
        self.spoil: Callable[[bytes], bytes] = bytes
        self.requests: list[bytes] = []
        self._wake, self._woken = os.pipe()
        self._thread = threading.Thread(target=self._pump, daemon=True)
        self._thread.start()

    def _pump(self) -> None:
        host, device = (master for master, _ in self._ends)
        while True:
            ready, _, _ = select.select([host, device, self._wake], [], [])
            if self._wake in ready:
                return
            if host in ready:
                self.requests.append(os.read(host, 4096))
                os.write(device, self.requests[-1])
            if device in ready:
                os.write(host, self.spoil(os.read(device, 4096)))

    def inject(self, data: bytes) -> None:
        """Bytes that the host hears out of nowhere."""
        os.write(self._ends[0][0], data)

    def close(self) -> None:
        os.write(self._woken, b"x")
        self._thread.join()
        for master, slave in self._ends:
            os.close(master)
            os.close(slave)
        os.close(self._wake)
        os.close(self._woken)


class Robotiq:
    """What a 2F gripper does with its registers: activation takes `slow` looks, motion one; fault: gFLT to report;
    blocked: where something stands between the fingers, [0, 255]; jammed: where the fingers are, whatever the goal;
    deaf: acknowledges goals, but keeps the old one."""

    def __init__(self, slow: int = 3) -> None:
        self.slow, self.fault, self.blocked = slow, 0, 255
        self.jammed: int | None = None
        self.deaf = False
        self.position, self.activations, self._looks = 3, 0, 0
        self._command = [0, 0, 0]

    async def access(
        self, function: int, start: int, address: int, count: int, registers: list[int], values: list[int] | None
    ) -> None:
        """pymodbus calls it at each access, before it happens. Registers: shared, the command's at 0x03E8."""
        at = address - start
        if values is not None:
            if values[0] & 0x0100 and not self._command[0] & 0x0100:
                self.activations += 1
                self._looks = 0
            if not self.deaf:
                self._command = list(values)
        elif address == 0x07D0:
            registers[at : at + 3] = self._status()

    def _status(self) -> list[int]:
        active = self._command[0] >> 8 & 1
        self._looks += active
        ready = active and self._looks > self.slow
        go, goal = self._command[0] >> 11 & 1, self._command[1] & 255
        held = goal > self.blocked
        if ready and go:
            self.position = min(goal, self.blocked)
        if self.jammed is not None:
            self.position = self.jammed
        grasp = (2 if held else 3) if ready and go else 0
        status = active | go << 3 | (3 if ready else active) << 4 | grasp << 6
        return [status << 8, self.fault << 8 | (goal if ready and go else 0), self.position << 8 | 5]


@pytest.fixture
def line() -> Iterator[Line]:
    made = Line()
    yield made
    made.close()


@pytest.fixture
def judge(line: Line) -> Iterator[Robotiq]:
    """pymodbus' own RTU server, in a thread, around a gripper's registers."""
    server = pytest.importorskip("pymodbus.server", reason="pymodbus is the judge (requirements-dev.txt)")
    from pymodbus.simulator import DataType, SimData, SimDevice

    device, loop, started = Robotiq(), asyncio.new_event_loop(), threading.Event()
    running: list[object] = []

    async def serve() -> None:
        blocks = [SimData(a, count=n, values=0, datatype=DataType.REGISTERS) for a, n in ((0x03E8, 3), (0x07D0, 8))]
        made = server.ModbusSerialServer(
            SimDevice(9, blocks, action=device.access), port=line.device, baudrate=115_200, reconnect_delay=0
        )
        running.append(made)
        await made.serve_forever(background=True)
        started.set()
        await made.serving

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()), daemon=True)
    thread.start()
    assert started.wait(10)
    yield device
    asyncio.run_coroutine_threadsafe(running[0].shutdown(), loop).result(10)  # type: ignore[attr-defined]
    thread.join(10)
    loop.close()


@pytest.fixture
def gripper(line: Line, judge: Robotiq) -> Iterator[ModbusGripper]:
    made = ModbusGripper(line.host)
    made.open()
    yield made
    made.close()


class TestAgainstPymodbus:
    def test_life(self, gripper: ModbusGripper, judge: Robotiq) -> None:
        assert not gripper.read().activated
        state = gripper.activate()
        assert state.activated and state.going and judge.activations == 1
        assert gripper.read().position == pytest.approx(1 - 3 / 255), "held where it stood"
        gripper.write(0.0)
        state = gripper.read()
        assert (state.position, state.grasp, state.trouble) == (0.0, Grasp.ARRIVED, "")
        assert state.current == pytest.approx(0.05)
        gripper.deactivate(StopCategory.HOLD)
        state = gripper.read()
        assert state.activated and not state.going
        gripper.deactivate(StopCategory.STOP_THEN_OFF)
        assert not gripper.read().activated

    def test_one_that_is_ready_does_not_move_again(self, gripper: ModbusGripper, judge: Robotiq) -> None:
        gripper.activate()
        gripper.write(0.4)
        gripper.activate()
        assert judge.activations == 1
        judge.fault = 14
        with pytest.raises(BusError, match="overcurrent"):
            gripper.write(0.5)
        with pytest.raises(BusError, match="overcurrent"):
            gripper.activate()
        assert judge.activations == 2, "a fault of that kind needs it"

    def test_what_it_holds(self, gripper: ModbusGripper, judge: Robotiq) -> None:
        gripper.activate()
        judge.blocked = 189
        gripper.write(0.0)
        state = gripper.read()
        assert state.grasp == Grasp.STOPPED_CLOSING
        assert state.position == pytest.approx(1 - 189 / 255)

    def test_commands_read_back(self, gripper: ModbusGripper, judge: Robotiq) -> None:
        gripper.activate()
        for i in range(COMMANDS):
            goal = (i * 37 % 256) / 255
            assert gripper.write(goal).goal == pytest.approx(goal)
            assert judge.position == 255 - round(goal * 255)
        assert gripper.missed <= 3

    def test_refused_before_it_is_sent(self, gripper: ModbusGripper, line: Line) -> None:
        for bad in (float("nan"), float("inf"), -0.001, 1.001):
            with pytest.raises(SafetyError, match="nothing was sent"):
                gripper.write(bad)
        with pytest.raises(SafetyError):
            gripper.write(0.5, speed=1.1)
        assert line.requests == []

    def test_not_activated(self, gripper: ModbusGripper) -> None:
        with pytest.raises(BusError, match="does not obey: it is not activated"):
            gripper.write(0.5)

    def test_no_such_address(self, line: Line, judge: Robotiq) -> None:
        gripper = ModbusGripper(line.host, slave=8)
        gripper.open()
        with pytest.raises(BusError, match="gripper 8 did not answer a read of its status in 3 attempts"):
            gripper.read()
        gripper.close()
        with pytest.raises(BusError, match="not open"):
            gripper.read()

    def test_lost_and_damaged_replies(self, gripper: ModbusGripper, judge: Robotiq, line: Line) -> None:
        gripper.activate()
        for spoilt in (
            lambda reply: b"",
            lambda reply: reply[:-1],
            lambda reply: bytes((reply[0] ^ 1,)) + reply[1:],
            lambda reply: reply[:-3] + bytes((reply[-3] ^ 4,)) + reply[-2:],
        ):
            left = [1]

            def once(reply: bytes, left: list[int] = left, spoilt: Callable[[bytes], bytes] = spoilt) -> bytes:
                return spoilt(reply) if left and left.pop() else reply

            before = gripper.missed
            line.spoil = once
            judge.jammed = 77
            assert gripper.read().position == pytest.approx(1 - 77 / 255)
            assert gripper.missed > before
            line.spoil = bytes

    @pytest.mark.parametrize("lengths", [LENGTHS, (3, 3)], ids=["differing", "equal"])
    def test_late_replies(
        self, gripper: ModbusGripper, judge: Robotiq, line: Line, monkeypatch: pytest.MonkeyPatch, lengths: tuple[int]
    ) -> None:
        """Each reply comes when the next request is on its way: one reply late, for ever. Were the lengths equal, as
        with everybody's driver, the old one would pass for the new one."""
        gripper.activate()
        gripper.read()
        monkeypatch.setattr(modbus_gripper, "LENGTHS", lengths)
        kept = [b""]

        def late(reply: bytes) -> bytes:
            kept.append(reply)
            judge.jammed = 50 + len(line.requests)
            return kept.pop(0)

        line.spoil = late
        judge.jammed = 40
        if lengths == LENGTHS:
            with pytest.raises(BusError, match="in 3 attempts"):
                gripper.read()
        else:
            assert gripper.read().position == pytest.approx(1 - 40 / 255), "stale"
        line.spoil = bytes
        judge.jammed = 99
        assert gripper.read().position == pytest.approx(1 - 99 / 255)

    def test_a_reply_that_comes_once_more_is_noticed(
        self, gripper: ModbusGripper, judge: Robotiq, line: Line
    ) -> None:
        gripper.activate()
        old: list[bytes] = []

        def keep(reply: bytes) -> bytes:
            old.append(reply)
            return reply

        line.spoil = keep
        gripper.read()
        judge.jammed = 100
        line.spoil = lambda reply: old.pop() + reply if old else reply  # the last reply comes once more, first
        before = gripper.missed
        assert gripper.read().position == pytest.approx(1 - 100 / 255)
        assert old == [] and gripper.missed == before + 1

    def test_a_command_counts_only_by_its_echo(self, gripper: ModbusGripper, judge: Robotiq) -> None:
        gripper.activate()
        gripper.write(0.5)
        judge.deaf = True
        with pytest.raises(BusError, match=r"its echo of the goal is 0\.502, not 0\.902"):
            gripper.write(0.9)
        judge.deaf = False
        gripper.write(0.9)


class TestPort:
    def test_missing(self) -> None:
        with pytest.raises(PortError, match="no serial port"):
            ModbusGripper("/dev/no-such-port").open()

    def test_unplugged(self, line: Line) -> None:
        master, slave = os.openpty()
        gripper = ModbusGripper(os.ttyname(slave))
        gripper.open()
        os.close(master)
        with pytest.raises(PortError, match="unplugged"):
            gripper.read()
        os.close(slave)
        gripper.close()
        gripper.close()
        assert issubclass(PortError, DeviceError)


class TestManual:
    """Robotiq, 2F-85 & 2F-140 Instruction Manual, section 4.7: example frames of its grip-and-release walk-through."""

    @pytest.mark.parametrize(
        "reply, expected",
        [
            ("39 00 00 FF 0E 0A", (1 - 14 / 255, 0.0, 0.10, True, Grasp.MOVING)),
            ("B9 00 00 FF BD 00", (1 - 189 / 255, 0.0, 0.0, True, Grasp.STOPPED_CLOSING)),
            ("F9 00 00 00 0D 00", (1 - 13 / 255, 1.0, 0.0, True, Grasp.ARRIVED)),
        ],
    )
    def test_replies(self, reply: str, expected: tuple[float, float, float, bool, Grasp]) -> None:
        data = bytes.fromhex(reply)
        state = parse([int.from_bytes(data[i : i + 2], "big") for i in (0, 2, 4)], 0)
        assert (state.position, state.goal, state.current, state.going, state.grasp) == pytest.approx(expected)
        assert state.activated and state.trouble == ""

    def test_activation_in_progress(self) -> None:
        assert not parse([0x1100, 0, 0], 0).activated
        assert parse([0x3100, 0, 0], 0).activated
        assert parse([0x3100, 0x0E00, 0], 0).trouble == FAULTS[14]

    def test_requests(self, gripper: ModbusGripper, line: Line) -> None:
        gripper.activate()
        gripper.write(0.0, force=1.0)
        gripper.write(1.0, force=1.0)
        sent = [request.hex(" ").upper() for request in line.requests]
        assert "09 10 03 E8 00 03 06 00 00 00 00 00 00 73 30" in sent, "clear the activation"
        assert "09 10 03 E8 00 03 06 09 00 00 FF FF FF 42 29" in sent, "close at full speed and force"
        assert "09 10 03 E8 00 03 06 09 00 00 00 FF FF 72 19" in sent, "open at full speed and force"
        assert "09 03 07 D0 00 03 04 0E" in sent, "read the status"

    def test_bytes(self) -> None:
        assert [to_byte(v) for v in (0.0, 0.5, 1.0)] == [0, 128, 255]
