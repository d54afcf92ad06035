"""The emulated Dynamixel bus by its own rules, in memory: golden frames, locks, alerts, watchdog, turns, time."""

import pytest

from dzedge.clock import NS
from dzedge.hardware.control_table import table
from dzedge.hardware.sim import dynamixel_wire as wire
from dzedge.hardware.sim.dynamixel_line import PING_SLOT_NS, DynamixelLine
from dzedge.hardware.sim.dynamixel_servo import DynamixelServo
from dzedge.hardware.sim.emulated_servo import BOOT_NS
from dzedge.hardware.sim.servo_physics import ServoPhysics

IDS = [1, 2, 3, 4, 5, 6]
PING, READ, WRITE, REG_WRITE, ACTION, RESET, REBOOT, CLEAR = 1, 2, 3, 4, 5, 6, 8, 0x10
ALERT = 0x80


def request(servo: int, instruction: int, *parameters: int) -> bytes:
    body = wire.stuff(bytes([instruction, *parameters]))
    return wire.sealed(wire.HEADER + bytes([servo]) + (len(body) + 2).to_bytes(2, "little") + body)


def word(value: int) -> bytes:
    return value.to_bytes(2, "little")


class Rig:
    """Servos on a line, and the time."""

    def __init__(self, ids: list[int] = IDS, model: str = "xl330-m288", physics: bool = False, **line) -> None:
        self.servos = [DynamixelServo(i, 2000 + i, model=model) for i in ids]
        for servo in self.servos:
            servo.set("return_delay", 0)
        advance = ServoPhysics(self.servos) if physics else None
        self.line = DynamixelLine(self.servos, advance=advance, **line)
        self.now_ns = NS

    def say(self, servo: int, instruction: int, *parameters: int) -> list[tuple[int, bytes]]:
        self.now_ns += 10_000_000
        return self.line.feed(request(servo, instruction, *parameters), self.now_ns)

    def ask(self, servo: int, instruction: int, *parameters: int) -> tuple[int, bytes]:
        """ERR byte and data of the one reply."""
        ((_, frame),) = self.say(servo, instruction, *parameters)
        assert frame[:4] == wire.HEADER and wire.crc16(frame[:-2]) == int.from_bytes(frame[-2:], "little")
        body = wire.unstuff(frame[7:-2])
        assert frame[4] == servo and body[0] == wire.STATUS
        return body[1], body[2:]

    def write(self, servo: int, address: int, value: int, size: int) -> int:
        data = (value & (1 << 8 * size) - 1).to_bytes(size, "little")
        return self.ask(servo, WRITE, *word(address), *data)[0]

    def read(self, servo: int, address: int, size: int) -> int:
        error, data = self.ask(servo, READ, *word(address), *word(size))
        assert error & ~ALERT == 0
        return int.from_bytes(data, "little", signed=True)


@pytest.fixture
def rig() -> Rig:
    return Rig()


class TestFrames:
    """The e-manual's own, byte for byte."""

    @pytest.mark.parametrize(
        ("frame", "golden"),
        [
            (request(1, PING), "FF FF FD 00 01 03 00 01 19 4E"),
            (wire.status(1, 0, bytes([6, 4, 0x26])), "FF FF FD 00 01 07 00 55 00 06 04 26 65 5D"),
            (request(1, READ, 132, 0, 4, 0), "FF FF FD 00 01 07 00 02 84 00 04 00 1D 15"),
            (request(1, WRITE, 116, 0, 0, 2, 0, 0), "FF FF FD 00 01 09 00 03 74 00 00 02 00 00 CA 89"),
            (request(0xFE, 0x82, 132, 0, 4, 0, 1, 2), "FF FF FD 00 FE 09 00 82 84 00 04 00 01 02 CE FA"),
            (request(0xFE, PING), "FF FF FD 00 FE 03 00 01 31 42"),
            (request(1, CLEAR, 1, 0x44, 0x58, 0x4C, 0x22), "FF FF FD 00 01 08 00 10 01 44 58 4C 22 B1 DC"),
            (request(1, REBOOT), "FF FF FD 00 01 03 00 08 2F 4E"),
        ],
    )
    def test_golden(self, frame: bytes, golden: str) -> None:
        assert frame == bytes.fromhex(golden)

    def test_crc_check_value(self) -> None:
        assert wire.crc16(b"123456789") == 0xFEE8

    def test_stuffed_values_come_back(self, rig: Rig) -> None:
        rig.servos[0].set("mode", 4)
        assert rig.write(1, 20, 0x00FDFFFF, 4) != 0  # beyond the offset's range
        rig.servos[0].registers[116:120] = b"\xff\xff\xfd\x00"
        ((_, frame),) = rig.say(1, READ, *word(116), *word(4))
        assert b"\xff\xff\xfd\xfd" in frame and len(frame) == 11 + 4 + 1
        assert rig.read(1, 116, 4) == 0x00FDFFFF

    def test_damage_is_ignored_and_the_next_request_is_understood(self, rig: Rig) -> None:
        bad = bytearray(request(1, WRITE, 65, 0, 1))
        bad[10] ^= 1
        replies = rig.line.feed(b"\xff\xff\xfd" + bytes(bad) + request(2, PING), NS)
        assert [frame[4] for _, frame in replies] == [2] and rig.servos[0].get("led") == 0

    def test_a_request_in_pieces(self, rig: Rig) -> None:
        whole = request(3, PING)
        for cut in range(1, len(whole)):
            assert rig.line.feed(whole[:cut], rig.now_ns) == []
            assert len(rig.line.feed(whole[cut:], rig.now_ns)) == 1


class TestWrites:
    def test_ping_tells_model_and_firmware(self, rig: Rig) -> None:
        assert rig.ask(4, PING) == (0, word(1200) + bytes([46]))

    def test_eeprom_needs_torque_off(self, rig: Rig) -> None:
        assert rig.write(1, 64, 1, 1) == 0
        assert rig.write(1, 31, 60, 1) == 7 and rig.read(1, 31, 1) == 70
        assert rig.write(1, 64, 0, 1) == 0
        assert rig.write(1, 31, 60, 1) == 0 and rig.read(1, 31, 1) == 60

    @pytest.mark.parametrize(
        ("address", "value", "size", "error"),
        [
            (132, 5, 4, 7),  # read only
            (5000, 1, 1, 7),  # nothing there
            (116, 1, 2, 5),  # half a register
            (65, 2, 1, 4),  # beyond its range
            (116, 4096, 4, 6),  # beyond the position limit
            (102, 1751, 2, 4),
            (11, 2, 1, 4),  # a mode that no servo has
        ],
    )
    def test_what_is_refused_changes_nothing(self, rig: Rig, address: int, value: int, size: int, error: int) -> None:
        before = bytes(rig.servos[0].registers)
        assert rig.write(1, address, value, size) == error
        after = bytes(rig.servos[0].registers)
        assert after[:120] == before[:120] and after[122:] == before[122:]  # but for its clock

    def test_an_xl430_has_no_current_modes(self) -> None:
        rig = Rig(model="xl430-w250")
        assert rig.write(1, 11, 5, 1) == 4 and rig.write(1, 11, 4, 1) == 0

    def test_a_goal_does_not_energise(self, rig: Rig) -> None:
        assert rig.write(2, 116, 2100, 4) == 0
        assert not rig.servos[1].torque_enabled and rig.servos[1].goal_ticks == 2100

    def test_reg_write_and_action(self, rig: Rig) -> None:
        assert rig.ask(1, ACTION)[0] == 2  # nothing is registered
        assert rig.ask(1, REG_WRITE, 65, 0, 1)[0] == 0
        assert rig.read(1, 65, 1) == 0 and rig.read(1, 69, 1) == 1
        assert rig.say(0xFE, ACTION) == []
        assert rig.read(1, 65, 1) == 1 and rig.read(1, 69, 1) == 0

    def test_bulk(self, rig: Rig) -> None:
        rig.say(0xFE, 0x93, 1, 65, 0, 1, 0, 1, 2, 84, 0, 2, 0, 0x34, 0x12)
        assert rig.servos[0].get("led") == 1 and rig.servos[1].get("position_p_gain") == 0x1234
        replies = rig.say(0xFE, 0x92, 2, 84, 0, 2, 0, 1, 65, 0, 1, 0)
        assert [frame[9:-2] for _, frame in replies] == [b"\x34\x12", b"\x01"]

    def test_indirect_bytes_follow_their_pointers(self, rig: Rig) -> None:
        for i, address in enumerate((65, 132, 133)):
            assert rig.write(1, 168 + 2 * i, address, 2) == 0
        assert rig.write(1, 208, 1, 1) == 0 and rig.servos[0].get("led") == 1
        assert rig.ask(1, READ, *word(208), *word(3))[1] == b"\x01" + word(2001)

    def test_status_level(self, rig: Rig) -> None:
        rig.servos[0].set("status_level", 1)
        assert rig.say(1, WRITE, 65, 0, 1) == [] and rig.servos[0].get("led") == 1
        assert len(rig.say(1, READ, 65, 0, 1, 0)) == 1
        rig.servos[0].set("status_level", 0)
        assert rig.say(1, READ, 65, 0, 1, 0) == [] and len(rig.say(1, PING)) == 1

    def test_a_new_id_counts_from_the_next_request_on(self, rig: Rig) -> None:
        assert rig.write(6, 7, 9, 1) == 0  # answered by the old one
        assert rig.say(6, PING) == [] and rig.ask(9, PING)[0] == 0

    def test_another_baud_rate_is_silence(self, rig: Rig) -> None:
        assert rig.write(1, 8, 1, 1) == 0
        assert rig.say(1, PING) == []
        rig.line.baud = 57_600
        assert len(rig.say(1, PING)) == 1 and rig.say(2, PING) == []

    def test_factory_reset_keeps_what_it_is_told_to(self, rig: Rig) -> None:
        rig.write(3, 31, 50, 1)
        assert rig.ask(3, RESET, 2)[0] == 0
        assert rig.servos[2].id == 3 and rig.servos[2].baud == 1_000_000 and rig.servos[2].get("max_temperature") == 70
        rig.say(3, RESET, 0xFF)
        assert rig.servos[2].id == 1 and rig.servos[2].baud == 57_600

    def test_a_shadow_obeys_in_silence(self, rig: Rig) -> None:
        assert rig.write(2, 12, 1, 1) == 0
        assert rig.write(1, 116, 2222, 4) == 0  # one reply: that of servo 1
        assert [servo.get("goal_position") for servo in rig.servos[:3]] == [2222, 2222, 2003]
        rig.say(0xFE, 0x83, 65, 0, 1, 0, 1, 1)
        assert [servo.get("led") for servo in rig.servos[:3]] == [1, 1, 0]


class TestReads:
    def test_sync_read_in_the_order_asked(self, rig: Rig) -> None:
        replies = rig.say(0xFE, 0x82, 132, 0, 4, 0, 5, 1, 9, 2)
        assert [frame[4] for _, frame in replies] == [5, 1, 2]
        byte_ns = rig.line.byte_ns
        assert [ready - rig.now_ns for ready, _ in replies] == [(18 + 15 * k) * byte_ns for k in (1, 2, 3)]

    def test_a_chain_breaks_at_a_missing_servo(self) -> None:
        rig = Rig(chained=True)
        assert [frame[4] for _, frame in rig.say(0xFE, 0x82, 132, 0, 4, 0, 5, 1, 9, 2)] == [5, 1]

    def test_fast_sync_read_is_one_frame(self, rig: Rig) -> None:
        ((ready, frame),) = rig.say(0xFE, 0x8A, 132, 0, 4, 0, 3, 1)
        assert frame[:8] == wire.HEADER + bytes([0xFE, 1 + 2 * 8, 0, 0x55]) and len(frame) == 8 + 2 * 8
        assert ready - rig.now_ns == (16 + 24) * rig.line.byte_ns
        for at, servo in ((8, 3), (16, 1)):
            assert frame[at : at + 6] == bytes([0, servo]) + word(2000 + servo) + bytes(2)
            assert wire.crc16(frame[: at + 6]) == int.from_bytes(frame[at + 6 : at + 8], "little")

    def test_fast_sync_read_ends_where_one_is_missing(self, rig: Rig) -> None:
        ((_, frame),) = rig.say(0xFE, 0x8A, 132, 0, 4, 0, 3, 9, 1)
        assert len(frame) == 8 + 8 and frame[5] == 1 + 3 * 8  # it promises three
        assert rig.say(0xFE, 0x8A, 132, 0, 4, 0, 9, 1) == []

    def test_old_firmware_knows_no_fast_read(self) -> None:
        rig = Rig(fast=False)
        assert rig.say(0xFE, 0x8A, 132, 0, 4, 0, 3, 1) == []
        assert len(rig.say(0xFE, 0x82, 132, 0, 4, 0, 3, 1)) == 2

    def test_a_stuffed_fast_reply(self) -> None:
        plain, stuffed = Rig(), Rig(stuff_fast=True)
        for rig in (plain, stuffed):
            rig.servos[0].registers[116:120] = b"\xff\xff\xfd\x00"
        ((_, first),) = plain.say(0xFE, 0x8A, 116, 0, 4, 0, 1, 2)
        ((_, second),) = stuffed.say(0xFE, 0x8A, 116, 0, 4, 0, 1, 2)
        assert b"\xff\xff\xfd\xfd" in second and wire.unstuff(second[7:-2]) == first[7:-2]
        assert wire.crc16(second[:-2]) == int.from_bytes(second[-2:], "little")

    def test_broadcast_ping_gives_each_id_its_slot(self, rig: Rig) -> None:
        replies = rig.say(0xFE, PING)
        assert [frame[4] for _, frame in replies] == IDS
        start_ns = rig.now_ns + 10 * rig.line.byte_ns
        assert [ready for ready, _ in replies] == [start_ns + i * PING_SLOT_NS + 14 * rig.line.byte_ns for i in IDS]
        late = Rig([252])
        ((ready, _),) = late.say(0xFE, PING)
        assert ready - late.now_ns < 810_000_000  # what the vendor's SDK waits

    def test_return_delay_of_each(self, rig: Rig) -> None:
        rig.servos[0].set("return_delay", 250)
        quick = rig.say(2, PING)[0][0] - rig.now_ns
        assert rig.say(1, PING)[0][0] - rig.now_ns == quick + 500_000

    def test_two_of_one_id_collide(self) -> None:
        rig = Rig([1, 1, 2])
        for _ in range(100):
            ((_, noise),) = rig.say(1, READ, 132, 0, 4, 0)
            assert wire.crc16(noise[:-2]) != int.from_bytes(noise[-2:], "little")
        assert rig.ask(2, PING)[0] == 0


class TestAlerts:
    def test_shutdown_latches_until_reboot(self, rig: Rig) -> None:
        rig.write(1, 64, 1, 1)
        rig.line.set_fault("1", "alert")
        assert rig.ask(1, PING)[0] == ALERT and rig.read(1, 70, 1) == 32 and rig.read(1, 64, 1) == 0
        assert rig.write(1, 64, 1, 1) == ALERT and rig.read(1, 64, 1) == 0
        assert rig.ask(1, REBOOT)[0] == ALERT
        assert rig.say(1, PING) == []  # it boots
        rig.now_ns += BOOT_NS
        assert rig.ask(1, PING)[0] == 0 and rig.write(1, 64, 1, 1) == 0 and rig.read(1, 64, 1) == 1

    def test_every_reply_of_every_kind_carries_it(self, rig: Rig) -> None:
        rig.line.set_fault("2", "alert")
        assert [frame[8] for _, frame in rig.say(0xFE, 0x82, 132, 0, 4, 0, 1, 2, 3)] == [0, ALERT, 0]
        ((_, frame),) = rig.say(0xFE, 0x8A, 132, 0, 4, 0, 1, 2, 3)
        assert [frame[at] for at in (8, 16, 24)] == [0, ALERT, 0]

    def test_heat_latches_and_supply_does_not(self) -> None:
        rig = Rig(physics=True)
        rig.write(1, 64, 1, 1)
        rig.line.set_fault("1", "undervolt")
        rig.line.set_fault("2", "overheat")
        rig.now_ns += NS
        assert rig.read(1, 70, 1) == 1 and rig.read(2, 70, 1) == 4
        assert rig.read(1, 64, 1) == 0  # an XL330 shuts down for its supply
        for servo in ("1", "2"):
            rig.line.set_fault(servo, "ok")
        rig.now_ns += NS
        assert rig.read(2, 70, 1) == 4


class TestWatchdog:
    def arm(self, rig: Rig, servo: int = 1) -> None:
        rig.write(servo, 64, 1, 1)
        rig.write(servo, 116, 3000, 4)
        assert rig.write(servo, 98, 5, 1) == 0  # 100 ms

    def test_it_stops_and_locks_its_goals(self) -> None:
        rig = Rig(physics=True)
        rig.servos[0].set("profile_velocity", 20)
        self.arm(rig)
        rig.now_ns += 80_000_000
        assert rig.read(1, 98, 1) == 5  # fed in time
        rig.line.feed(b"", rig.now_ns + 95_000_000)
        assert rig.servos[0].get("bus_watchdog") == 5
        rig.line.feed(b"", rig.now_ns + 125_000_000)
        assert rig.servos[0].tripped and rig.servos[0].torque_enabled
        held = rig.servos[0].get("present_position")
        rig.now_ns += NS
        assert abs(rig.read(1, 132, 4) - held) <= 2
        assert rig.write(1, 116, 2500, 4) == 4
        assert rig.write(1, 98, 0, 1) == 0 and rig.write(1, 116, 2500, 4) == 0

    def test_others_packets_do_not_feed_it(self, rig: Rig) -> None:
        self.arm(rig)
        for _ in range(12):
            rig.ask(2, PING)
        assert rig.read(1, 98, 1) == -1

    def test_sync_packets_do(self, rig: Rig) -> None:
        self.arm(rig)
        for _ in range(12):
            rig.say(0xFE, 0x82, 132, 0, 4, 0, 1, 2)
        assert rig.read(1, 98, 1) == 5

    def test_it_sleeps_without_torque(self, rig: Rig) -> None:
        self.arm(rig)
        rig.write(1, 64, 0, 1)
        rig.now_ns += NS
        assert rig.read(1, 98, 1) == 5
        assert rig.line.idle_s < 0.02


class TestPositions:
    def test_offset_and_direction(self, rig: Rig) -> None:
        rig.write(1, 20, 100, 4)
        assert rig.read(1, 132, 4) == 2101
        rig.write(1, 10, 1, 1)
        assert rig.read(1, 132, 4) == -2001 + 100
        servo = rig.servos[0]
        rig.write(1, 11, 4, 1)
        rig.write(1, 116, -2001 + 150, 4)
        assert servo.goal_ticks == servo.encoder - 50

    def test_turns_are_lost_with_the_power(self) -> None:
        rig = Rig(physics=True)
        rig.write(1, 11, 4, 1)
        rig.write(1, 64, 1, 1)
        rig.write(1, 116, 9000, 4)
        rig.now_ns += 8 * NS
        for _ in range(800):
            rig.line.feed(b"", rig.now_ns)
            rig.now_ns += 10_000_000
        assert abs(rig.read(1, 132, 4) - 9000) <= 2
        rig.line.set_fault("1", "brownout")
        rig.now_ns += BOOT_NS
        assert abs(rig.read(1, 132, 4) - 9000 % 4096) <= 2 and rig.read(1, 64, 1) == 0

    def test_single_turn_modes_forget_turns_when_torque_comes_on(self, rig: Rig) -> None:
        servo = rig.servos[0]
        servo.set_present(5000, 0, 0, 5, 30)
        assert rig.read(1, 132, 4) == 5000
        rig.write(1, 64, 1, 1)
        assert rig.read(1, 132, 4) == 904
        rig.write(1, 116, 904, 4)
        assert servo.goal_ticks == 5000

    def test_clear_forgets_turns(self, rig: Rig) -> None:
        rig.write(1, 11, 4, 1)
        rig.servos[0].set_present(-4000, 0, 0, 5, 30)
        assert rig.read(1, 132, 4) == -4000
        assert rig.ask(1, CLEAR, 1, 0x44, 0x58, 0x4C, 0x22)[0] == 0
        assert rig.read(1, 132, 4) == 96


@pytest.mark.parametrize("model", ["xl430-w250", "xl330-m077", "xm430-w350", "xm540-w270", "xh540-w150"])
def test_every_model_answers_as_its_table_says(model: str) -> None:
    rig = Rig([3], model)
    assert rig.ask(3, PING)[1][:2] == word(table(model).number)
    for register in table(model).registers.values():
        if register.initial is not None and register.name not in ("id", "baud_rate", "return_delay"):
            held = rig.ask(3, READ, *word(register.address), *word(register.size))[1]
            if register.name != "goal_position":
                assert register.decode(held) == register.initial, register.name
