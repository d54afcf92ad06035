"""The emulated servo bus, judged by others' clients on the real pty and by its own rules in memory."""

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import rustypot
import scservo_sdk

from dzedge.clock import NS
from dzedge.hardware.sim.pty_server import TO_HOST, TO_SERVOS, PtyServer, early_replies
from dzedge.hardware.sim.servo import DELAYED_NS, FAULTS, SLOW_NS, Servo
from dzedge.hardware.sim.servo_bus import FirstOrder, ServoBus
from dzedge.kernels import codec_reference as sts

IDS = [1, 2, 3, 4, 5, 6]


def servos(return_delay: int = 0) -> list[Servo]:
    result = [Servo(i, 2000 + i) for i in IDS]
    for servo in result:
        servo.set("return_delay", return_delay)
    return result


def frame(name: str, *arguments) -> bytes:
    out = np.zeros(260, np.uint8)
    typed = [np.frombuffer(a, np.uint8) if isinstance(a, bytes) else a for a in arguments]
    return bytes(out[: getattr(sts, name)(out, *typed)])


def goal(servo: int, ticks: int) -> bytes:
    return frame("write", servo, 42, ticks.to_bytes(2, "little"))


def states(replies: list[tuple[int, bytes]]) -> dict[int, int]:
    """Position by id of intact replies."""
    intact = [d for _, d in replies if len(d) > 7 and d[:2] == b"\xff\xff" and sum(d[2:]) % 256 == 255]
    return {d[2]: int.from_bytes(d[5:7], "little") for d in intact}


READ_ALL = frame("sync_read", 56, 2, bytes(IDS))


class TestRegisters:
    def test_eeprom_under_lock_is_dropped_without_an_error(self) -> None:
        bus = ServoBus(servos())
        ((_, reply),) = bus.feed(frame("write", 1, 33, b"\x03"), NS)
        assert reply[4] == 0 and bus.servos[0].get("mode") == 0
        bus.feed(frame("write", 1, 55, b"\x00"), NS)
        bus.feed(frame("write", 1, 33, b"\x03"), NS)
        assert bus.servos[0].get("mode") == 3

    def test_read_only_registers_stay(self) -> None:
        bus = ServoBus(servos())
        bus.feed(frame("write", 1, 55, b"\x00"), NS)
        bus.feed(frame("write", 1, 3, b"\x01\x01"), NS)
        bus.feed(frame("write", 1, 56, b"\x01\x01"), NS)
        assert bus.servos[0].get("model") == 777 and bus.servos[0].get("present_position") == 2001

    def test_a_goal_energises(self) -> None:
        bus = ServoBus(servos())
        assert not bus.servos[2].torque_enabled
        bus.feed(goal(3, 2100), NS)
        assert bus.servos[2].torque_enabled and bus.servos[2].goal_ticks == 2100

    def test_a_goal_out_of_limits_is_clamped_inside_only(self) -> None:
        servo = servos()[0]
        servo.set("max_position", 3000)
        ServoBus([servo]).feed(goal(1, 3500), NS)
        assert servo.get("goal_position") == 3500 and servo.goal_ticks == 3000

    def test_offset_in_both_directions(self) -> None:
        servo = Servo(1, 2100)
        servo.set("offset", 100)
        servo.set_present(2100, 0, 0, 7.4, 30)
        assert servo.get("present_position") == 2000
        servo.set("goal_position", 2050)
        assert servo.goal_ticks == 2150

    def test_middle(self) -> None:
        servo = Servo(1, 2300)
        ServoBus([servo]).feed(frame("write", 1, 40, b"\x80"), NS)
        servo.set_present(2300, 0, 0, 7.4, 30)
        assert servo.get("present_position") == 2048 and not servo.torque_enabled

    def test_status_level(self) -> None:
        bus = ServoBus(servos())
        bus.servos[0].set("status_level", 0)
        assert bus.feed(goal(1, 2000), NS) == []
        assert len(bus.feed(frame("ping", 1), NS)) == 1
        assert len(bus.feed(frame("read", 1, 56, 2), NS)) == 1

    def test_staged_writes(self) -> None:
        bus = ServoBus(servos())
        bus.feed(sts_raw(1, 0x04, b"\x2a\x34\x08"), NS)
        assert bus.servos[0].get("goal_position") == 2001
        bus.feed(sts_raw(0xFE, 0x05, b""), NS)
        assert bus.servos[0].get("goal_position") == 0x0834

    def test_power_cycle(self) -> None:
        servo = servos()[0]
        ServoBus([servo]).feed(goal(1, 2100), NS)
        servo.power_cycle()
        assert not servo.torque_enabled
        assert servo.get("present_position") == 2001 and servo.get("lock") == 1 and servo.get("model") == 777

    @pytest.mark.parametrize(
        ("voltage", "temperature", "alerts", "error"),
        [(7.4, 30, 0, 0), (12.0, 30, 0, 1), (3.0, 30, 0, 1), (7.4, 80, 0, 4), (7.4, 30, 32, 32), (12.0, 80, 8, 13)],
    )
    def test_error_byte(self, voltage: float, temperature: float, alerts: int, error: int) -> None:
        servo = servos()[0]
        servo.alerts = alerts
        servo.set_present(2000, 0, 0, voltage, temperature)
        ((_, reply),) = ServoBus([servo]).feed(frame("ping", 1), NS)
        assert reply[4] == error

    def test_values_that_do_not_fit(self) -> None:
        with pytest.raises(ValueError, match="offset = 2048"):
            Servo(1).set("offset", 2048)

    def test_another_baud_rate_is_silence(self) -> None:
        bus = ServoBus(servos(), baud=500_000)
        assert bus.feed(frame("ping", 1), NS) == []


def sts_raw(servo: int, code: int, parameters: bytes) -> bytes:
    out = np.zeros(64, np.uint8)
    return bytes(out[: sts.frame(out, servo, code, parameters)])


class TestLine:
    def test_replies_in_the_order_asked_and_no_earlier_than_the_wire(self) -> None:
        bus = ServoBus(servos())
        replies = bus.feed(frame("sync_read", 56, 2, bytes([4, 1, 6])), NS)
        assert [data[2] for _, data in replies] == [4, 1, 6]
        assert [ready for ready, _ in replies] == [NS + (11 + 8 * k) * 10_000 for k in (1, 2, 3)]

    def test_return_delay(self) -> None:
        bus = ServoBus(servos(return_delay=250))
        ((ready_ns, _),) = bus.feed(frame("ping", 1), NS)
        assert ready_ns == NS + 12 * 10_000 + 500_000

    def test_missing_ids_are_silent(self) -> None:
        bus = ServoBus(servos())
        assert list(states(bus.feed(frame("sync_read", 56, 2, bytes([1, 9, 2])), NS))) == [1, 2]
        assert bus.feed(frame("ping", 9), NS) == []

    def test_two_of_one_id_collide(self) -> None:
        bus = ServoBus([Servo(1), Servo(1), Servo(2)])
        noise = [bus.feed(frame("read", 1, 56, 2), NS) for _ in range(200)]
        assert all(len(replies) == 1 and len(replies[0][1]) == 8 for replies in noise)
        assert sum(bool(states(replies)) for replies in noise) < 20  # an 8-bit sum lets some damage pass
        assert states(bus.feed(frame("read", 2, 56, 2), NS)) == {2: 2048}

    def test_a_request_in_pieces(self) -> None:
        bus = ServoBus(servos())
        assert bus.feed(READ_ALL[:5], NS) == []
        replies = bus.feed(READ_ALL[5:], 2 * NS)
        assert len(replies) == 6
        assert replies[0][0] == 2 * NS + (len(READ_ALL) - 5 + 8) * 10_000

    def test_damage_is_ignored_and_the_next_request_is_understood(self) -> None:
        bus = ServoBus(servos())
        bad = bytearray(goal(1, 2500))
        bad[7] ^= 1
        assert bus.feed(bytes(bad) + READ_ALL, NS)[0][1][2] == 1
        assert bus.servos[0].get("goal_position") == 2001

    def test_a_busy_line_delays_what_follows(self) -> None:
        bus = ServoBus(servos())
        first = bus.feed(READ_ALL, NS)
        second = bus.feed(READ_ALL, NS)
        assert second[0][0] >= first[-1][0] + (len(READ_ALL) + 8) * 10_000

    def test_echo(self) -> None:
        replies = ServoBus(servos(), echo=True).feed(frame("ping", 1), NS)
        assert [data for _, data in replies] == [frame("ping", 1), frame("status", 1, 0, b"")]

    def test_the_same_bytes_and_times_give_the_same_replies(self) -> None:
        def transcript(seed: int) -> list[tuple[int, bytes]]:
            bus = ServoBus([Servo(i, 2000, seed) for i in IDS], seed=seed)
            bus.set_fault("2", "garbage")
            bus.set_fault("3", "wrong")
            bus.set_fault("4", "intermittent")
            return [reply for k in range(50) for reply in bus.feed(READ_ALL, NS + k * NS // 100)]

        assert transcript(1) == transcript(1)
        assert transcript(1) != transcript(2)


class TestFaults:
    def replies(self, component: str, verb: str, cycles: int = 60) -> list[list[tuple[int, bytes]]]:
        bus = ServoBus(servos())
        bus.set_fault(component, verb)
        return [bus.feed(READ_ALL, NS + k * NS // 100) for k in range(cycles)]

    def test_off(self) -> None:
        assert all(list(states(r)) == [1, 2, 4, 5, 6] for r in self.replies("3", "off"))
        assert not any(self.replies("line", "off"))

    def test_garbage(self) -> None:
        assert all(3 not in states(r) or states(r)[3] != 2003 for r in self.replies("3", "garbage"))

    def test_wrong(self) -> None:
        assert len({states(r)[3] for r in self.replies("3", "wrong")}) > 30
        assert sum(len(states(r)) < 6 for r in self.replies("line", "wrong")) > 50

    def test_slow_and_delayed(self) -> None:
        healthy = self.replies("3", "ok", 1)[0]
        slow, delayed = self.replies("3", "slow", 1)[0], self.replies("3", "delayed", 1)[0]
        assert slow[2][0] - healthy[2][0] == slow[5][0] - healthy[5][0] == SLOW_NS
        assert [d[2] for _, d in delayed] == [1, 2, 4, 5, 6, 3]
        assert delayed[5][0] - healthy[2][0] == DELAYED_NS

    def test_intermittent(self) -> None:
        assert 10 < sum(3 not in states(r) for r in self.replies("3", "intermittent")) < 32

    def test_stuck(self) -> None:
        moving = servos()
        bus = ServoBus(moving, advance=FirstOrder(moving))
        bus.set_fault("2", "stuck")
        bus.feed(goal(1, 2300) + goal(2, 2300), NS)
        bus.feed(b"", NS + 1)
        assert states(bus.feed(READ_ALL, 3 * NS)) | {1: 0} == {1: 0, 2: 2002, 3: 2003, 4: 2004, 5: 2005, 6: 2006}
        bus.set_fault("2", "ok")
        bus.feed(b"", 4 * NS)
        assert moving[1].get("present_position") > 2200

    def test_names(self) -> None:
        bus = ServoBus(servos())
        for verb in FAULTS:
            bus.set_fault("1", verb)
            bus.set_fault("line", verb)
        with pytest.raises(ValueError, match="one of ok, off"):
            bus.set_fault("1", "sleepy")
        with pytest.raises(ValueError, match="one of ok, off"):
            bus.set_fault("line", "sleepy")
        with pytest.raises(ValueError, match="one of line, 1, 2"):
            bus.set_fault("9", "ok")


class TestFirstOrder:
    def test_follows_with_its_speed_limit(self) -> None:
        moving = servos()
        bus = ServoBus(moving, advance=FirstOrder(moving, speed=1000.0))
        bus.feed(goal(1, 3000), NS)
        for k in range(1, 51):
            bus.feed(b"", NS + k * NS // 100)
        assert 2400 < moving[0].get("present_position") <= 2502
        assert 900 < moving[0].get("present_speed") <= 1000
        for k in range(51, 400):
            bus.feed(b"", NS + k * NS // 100)
        assert moving[0].get("present_position") == 3000

    def test_without_torque_nothing_moves(self) -> None:
        moving = servos()
        bus = ServoBus(moving, advance=FirstOrder(moving))
        bus.feed(goal(1, 3000) + frame("write", 1, 40, b"\x00"), NS)
        bus.feed(b"", 3 * NS)
        assert moving[0].get("present_position") == 2001


@pytest.fixture
def served() -> Iterator[PtyServer]:
    moving = servos()
    with PtyServer(ServoBus(moving, advance=FirstOrder(moving)), keep=100_000) as server:
        yield server


def settle(server: PtyServer, servo: int, ticks: int) -> bool:
    for _ in range(100):
        if abs(server.bus.servos[servo - 1].get("present_position") - ticks) <= 2:
            return True
        time.sleep(0.03)
    return False


class TestVendorSdk:
    """feetech-servo-sdk 1.0.0, which nobody here wrote."""

    @pytest.fixture
    def port(self, served: PtyServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[scservo_sdk.PortHandler]:
        monkeypatch.setattr(scservo_sdk.port_handler, "LATENCY_TIMER", 200)  # its 16 ms are few on a busy machine
        port = scservo_sdk.PortHandler(served.path)
        assert port.openPort() and port.setBaudRate(1_000_000)
        yield port
        port.closePort()

    def test_ping_read_write(self, served: PtyServer, port: scservo_sdk.PortHandler) -> None:
        sdk = scservo_sdk.PacketHandler(0)
        for servo in IDS:
            assert sdk.ping(port, servo) == (777, 0, 0)
        assert sdk.read2ByteTxRx(port, 4, 56) == (2004, 0, 0)
        assert sdk.write2ByteTxRx(port, 4, 42, 2300) == (0, 0)
        assert settle(served, 4, 2300)
        assert sdk.read1ByteTxRx(port, 4, 40) == (1, 0, 0)

    def test_sync(self, served: PtyServer, port: scservo_sdk.PortHandler) -> None:
        sdk = scservo_sdk.PacketHandler(0)
        write = scservo_sdk.GroupSyncWrite(port, sdk, 42, 2)
        read = scservo_sdk.GroupSyncRead(port, sdk, 56, 15)
        for servo in IDS:
            assert write.addParam(servo, [(2100 + servo) & 255, (2100 + servo) >> 8])
            assert read.addParam(servo)
        assert write.txPacket() == 0
        assert all(settle(served, servo, 2100 + servo) for servo in IDS)
        assert read.txRxPacket() == 0
        assert [read.getData(servo, 62, 1) for servo in IDS] == [74] * 6
        assert all(abs(read.getData(servo, 56, 2) - 2100 - servo) <= 2 for servo in IDS)

    def test_absent_servo(self, port: scservo_sdk.PortHandler) -> None:
        assert scservo_sdk.PacketHandler(0).ping(port, 9)[1] == scservo_sdk.COMM_RX_TIMEOUT


class TestRustypot:
    """rustypot 1.13, the strongest client there is."""

    @pytest.fixture
    def client(self, served: PtyServer) -> Iterator[rustypot.Sts3215PyController]:
        client = rustypot.Sts3215PyController(served.path, 1_000_000, 0.1)
        yield client
        client.close()

    def test_everything(self, served: PtyServer, client: rustypot.Sts3215PyController) -> None:
        assert all(client.ping(servo) for servo in IDS) and not client.ping(9)
        client.sync_write_raw_goal_position(IDS, [2200 + servo for servo in IDS])
        assert all(settle(served, servo, 2200 + servo) for servo in IDS)
        ticks = client.sync_read_raw_present_position(IDS)
        assert np.allclose(ticks, [2200 + servo for servo in IDS], atol=2)
        assert list(client.sync_read_present_voltage(IDS)) == [74] * 6
        assert client.sync_read_torque_enable(IDS) == [True] * 6


class TestPacing:
    def test_no_byte_before_its_wire_time(self, served: PtyServer) -> None:
        client = rustypot.Sts3215PyController(served.path, 1_000_000, 0.1)
        for _ in range(100):
            client.sync_write_raw_goal_position(IDS, [2048] * 6)
            client.sync_read_raw_present_position(IDS)
        client.close()
        transcript = list(served.transcript)
        assert sum(direction == TO_HOST for _, direction, _ in transcript) == 600
        assert early_replies(transcript, served.bus.byte_ns) == 0

    def test_the_check_sees_an_early_byte(self) -> None:
        request = (NS, TO_SERVOS, frame("sync_read", 56, 15, b"\x01\x02"))
        reply = [frame("status", servo, 0, bytes(15)) for servo in (1, 2)]
        due = [NS + (10 + 21) * 10_000, NS + (10 + 42) * 10_000]
        good = [request, (due[0], TO_HOST, reply[0]), (due[1], TO_HOST, reply[1])]
        assert early_replies(good, 10_000) == 0
        assert early_replies([*good[:2], (due[1] - 1, TO_HOST, reply[1])], 10_000) == 1
        assert early_replies([request, (due[0] - 1, TO_HOST, reply[0])], 10_000) == 1
        # a reply that is still on its way when the next request comes belongs to the older one
        assert early_replies([*good[:2], (due[1], *request[1:]), good[2]], 10_000) == 0


class TestServer:
    def test_link_and_stop(self, tmp_path: Path) -> None:
        link = tmp_path / "arm"
        server = PtyServer(ServoBus(servos()), link=link).start()
        assert link.resolve() == Path(server.path)
        server.stop()
        server.stop()
        assert not link.is_symlink()

    def test_faults_while_serving(self, served: PtyServer) -> None:
        client = rustypot.Sts3215PyController(served.path, 1_000_000, 0.05)
        served.set_fault("line", "off")
        assert not client.ping(1)
        served.set_fault("line", "ok")
        assert client.ping(1)
        client.close()
