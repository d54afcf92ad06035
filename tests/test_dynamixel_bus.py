"""Transactions on a Dynamixel bus against the emulated one, in memory; and what both buses do about late replies."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest

from dzedge.clock import NS
from dzedge.errors import BusError
from dzedge.hardware.dynamixel_bus import DynamixelBus
from dzedge.hardware.feetech_bus import FeetechBus
from dzedge.hardware.sim.dynamixel_line import DynamixelLine
from dzedge.hardware.sim.dynamixel_servo import DynamixelServo
from dzedge.hardware.sim.memory_port import MemoryPort
from dzedge.kernels import codec, codec_dynamixel

rig_file = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("dynamixel_rig.py"))))
IDS = [1, 2, 3]


class Rig:
    def __init__(self, **line) -> None:
        self.clock = rig_file.ManualClock()
        models = ["xl430-w250", "xm540-w270", "xl330-m288"]
        self.servos = [DynamixelServo(number, 2048, model=model) for number, model in enumerate(models, 1)]
        self.line = DynamixelLine(self.servos, **line)
        self.bus = DynamixelBus(MemoryPort(self.line, self.clock), clock=self.clock)

    def __getitem__(self, servo: int) -> DynamixelServo:
        return self.servos[servo - 1]


@pytest.fixture
def rig() -> Rig:
    return Rig()


class TestWhoIsThere:
    def test_ping_scan_and_broadcast(self, rig: Rig) -> None:
        reply = rig.bus.ping(2)
        assert reply is not None and reply.data[:2] == (1120).to_bytes(2, "little")
        assert rig.bus.ping(7) is None
        assert rig.bus.scan(range(6)) == {1: 1060, 2: 1120, 3: 1200}
        begin_ns = rig.clock.now_ns()
        assert sorted(rig.bus.broadcast_ping(20)) == IDS
        assert rig.clock.now_ns() - begin_ns < NS // 5
        assert {servo: found.model for servo, found in rig.bus.tables.items()} == {
            1: "xl430-w250", 2: "xm540-w270", 3: "xl330-m288",
        }  # fmt: skip

    def test_two_of_one_id_are_not_believed(self) -> None:
        rig = Rig()
        rig[2].set("id", 1)
        assert rig.bus.ping(1) is None and rig.bus.ping(3) is not None


class TestRegisters:
    def test_by_name(self, rig: Rig) -> None:
        rig.bus.set(1, "goal_position", 1234)
        rig.bus.set(2, "goal_velocity", -77)
        assert (rig.bus.get(1, "goal_position"), rig.bus.get(2, "goal_velocity")) == (1234, -77)
        assert (rig[1].get("goal_position"), rig[2].get("goal_velocity")) == (1234, -77)

    @pytest.mark.parametrize(
        ("name", "value", "why"),
        [
            ("goal_position", 2_000_000, "outside the register's range"),
            ("goal_pwm", 880, "outside the servo's own limits"),
            ("present_position", 1, "read-only"),
        ],
    )
    def test_refusals_are_said_in_words(self, rig: Rig, name: str, value: int, why: str) -> None:
        rig[1].set("pwm_limit", 500)
        with pytest.raises(BusError, match=f"servo 1.*{name}.*{why}"):
            rig.bus.set(1, name, value)

    def test_eeprom_only_where_it_differs(self, rig: Rig) -> None:
        written: list[int] = []
        plain = rig[1].write
        rig[1].write = lambda address, data: written.append(address) or plain(address, data)
        assert not rig.bus.set_eeprom(1, "return_delay", 250)
        assert written == []
        rig[1].set("torque_enable", 1)
        assert rig.bus.set_eeprom(1, "return_delay", 0)
        assert written == [64, 9] and rig[1].get("return_delay") == 0 and rig[1].get("torque_enable") == 0

    def test_alerts_in_words(self, rig: Rig) -> None:
        rig.line.set_fault("3", "alert")
        reply = rig.bus.read(3, 132, 4)
        assert reply.error == 0x80 and len(reply.data) == 4
        assert "servo 3: overloaded" in rig.bus.describe(reply) and "reboot" in rig.bus.describe(reply)
        assert rig.bus.describe(rig.bus.read(1, 132, 4)) == ""

    def test_reboot_is_the_way_out(self, rig: Rig) -> None:
        rig.line.set_fault("3", "alert")
        rig.line.set_fault("3", "ok")
        assert rig.bus.read(3, 132, 4).error == 0x80
        rig.bus.reboot(3)
        rig.clock.time_ns += NS
        assert rig.bus.read(3, 132, 4).error == 0

    def test_reg_write_waits_for_action(self, rig: Rig) -> None:
        for servo in IDS:
            rig.bus.reg_write(servo, 116, (1000 + servo).to_bytes(4, "little"))
        assert [servo.get("goal_position") for servo in rig.servos] == [2048] * 3
        rig.bus.action()
        assert [servo.get("goal_position") for servo in rig.servos] == [1001, 1002, 1003]
        with pytest.raises(BusError, match="action without reg write"):
            rig.bus.action(1)

    def test_clear_and_factory_reset(self, rig: Rig) -> None:
        rig.bus.set_eeprom(1, "mode", 4)
        rig[1].set_present(2048 + 3 * 4096, 0.0, 0.0, 11.0, 30.0)
        assert rig.bus.get(1, "present_position") == 2048 + 3 * 4096
        rig.bus.clear(1)
        assert rig.bus.get(1, "present_position") == 2048
        rig.bus.factory_reset(1)
        assert rig.bus.get(1, "mode") == 3 and rig[1].id == 1


class TestSeveral:
    def test_sync_read_names_the_silent_by_absence(self, rig: Rig) -> None:
        rig.line.set_fault("2", "off")
        replies = rig.bus.sync_read(IDS, 132, 4)
        assert sorted(replies) == [1, 3] and replies[3].data == (2048).to_bytes(4, "little")
        assert sorted(rig.bus.sync_read(IDS, 132, 4)) == [1, 3]
        rig.line.set_fault("2", "ok")
        assert sorted(rig.bus.sync_read(IDS, 132, 4)) == IDS

    @pytest.mark.parametrize("line", [{}, {"stuff_fast": True}])
    def test_fast_sync_read(self, line: dict) -> None:
        rig = Rig(**line)
        rig[1].set("present_load", -1)
        rig[1].set("present_velocity", 253)
        assert rig.bus.knows_fast(IDS)
        plain, fast = rig.bus.sync_read(IDS, 126, 21), rig.bus.fast_sync_read(IDS, 126, 21)
        assert plain == fast and plain[1].data[:4] == b"\xff\xff\xfd\x00"

    def test_old_firmware_does_not_know_it(self) -> None:
        rig = Rig(fast=False)
        assert not rig.bus.knows_fast(IDS)
        assert sorted(rig.bus.sync_read(IDS, 132, 4)) == IDS

    def test_bulk(self, rig: Rig) -> None:
        rig.bus.bulk_write({1: (116, (1500).to_bytes(4, "little")), 3: (65, b"\1")})
        replies = rig.bus.bulk_read({1: (116, 4), 2: (146, 1), 3: (65, 1)})
        assert {servo: reply.data for servo, reply in replies.items()} == {
            1: (1500).to_bytes(4, "little"), 2: b"\x1e", 3: b"\1",
        }  # fmt: skip

    def test_by_name_over_mixed_models(self, rig: Rig) -> None:
        rig.bus.sync_set({1: 1100, 2: 1200, 3: 1300}, "goal_position")
        assert rig.bus.sync_get(IDS, "goal_position") == {1: 1100, 2: 1200, 3: 1300}
        assert sorted(rig.bus.sync_get([2, 3], "present_current")) == [2, 3]
        with pytest.raises(BusError, match=r"servo 1 \(xl430-w250\) has no present_current where servo 3"):
            rig.bus.sync_get([3, 1], "present_current")

    def test_an_instruction_that_does_not_fit(self, rig: Rig) -> None:
        with pytest.raises(BusError, match="more than 1024 bytes"):
            rig.bus.sync_write(IDS, 100, [bytes(500)] * 3)


class Answers:
    """A servo on a port whose replies are written by a test: `held` keeps them back until `let_go`."""

    path, baud, fd = "memory", 1_000_000, -1

    def __init__(self, protocol: str) -> None:
        self.feetech = protocol == "feetech"
        self.clock = rig_file.ManualClock()
        self.held = self.dead = False
        self.asked: list[tuple[int, int]] = []
        self._late: list[bytes] = []
        self._ready: list[bytes] = []

    def write(self, data: bytes) -> None:
        out = bytearray(64)
        address, count = (data[5], data[6]) if self.feetech else (data[8], data[10])
        self.asked.append((address, count))
        body = bytes([len(self.asked)]) * count
        made = (codec if self.feetech else codec_dynamixel).status(out, 1, 0, body)
        if not self.dead:
            (self._late if self.held else self._ready).append(bytes(out[:made]))

    def let_go(self) -> None:
        """The late replies come before that of the question which is asked next."""
        self._ready += self._late
        self._late.clear()

    def read(self, deadline_ns: int) -> bytes:
        if self._ready:
            return self._ready.pop(0)
        self.clock.sleep_until_ns(deadline_ns)
        return b""

    def drain(self) -> int:
        return 0  # what is late comes after the drain

    def close(self) -> None:
        pass


@pytest.mark.parametrize("protocol", ["feetech", "dynamixel"])
class TestLateReplies:
    def bus(self, protocol: str, port: Answers) -> FeetechBus | DynamixelBus:
        made = FeetechBus if protocol == "feetech" else DynamixelBus
        return made(port, clock=port.clock)

    def test_temperature_is_not_taken_for_another_register(self, protocol: str) -> None:
        port = Answers(protocol)
        bus = self.bus(protocol, port)
        port.held = True
        with pytest.raises(BusError, match="servo 1 does not answer"):
            bus.read(1, 63, 1)
        asked = len(port.asked)
        port.held = False
        port.let_go()
        assert bus.read(1, 44, 1).data == bytes([len(port.asked)])
        assert port.asked[-1] == (44, 1) and len(port.asked) == asked + 2  # it was asked who it is first
        assert bus.late > 0 or port.asked[-2][0] == 0

    def test_a_servo_that_owes_nothing_is_asked_once(self, protocol: str) -> None:
        port = Answers(protocol)
        bus = self.bus(protocol, port)
        for number in range(1, 5):
            assert bus.read(1, 44, 1).data == bytes([number])
        assert port.asked == [(44, 1)] * 4

    def test_a_servo_that_is_dead_for_long_is_believed_again(self, protocol: str) -> None:
        port = Answers(protocol)
        bus = self.bus(protocol, port)
        port.dead = True
        for _ in range(30):
            with pytest.raises(BusError):
                bus.read(1, 44, 2)
        port.dead = False
        assert bus.read(1, 44, 2).data == bytes([len(port.asked)]) * 2
