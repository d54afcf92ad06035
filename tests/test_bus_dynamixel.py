"""The Dynamixel bus cycle: what it sends, what it believes; in memory, against the emulated bus."""

import runpy
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dzedge.clock import MonotonicClock
from dzedge.hardware.dynamixel import DynamixelArm
from dzedge.hardware.sim.dynamixel_line import DynamixelLine
from dzedge.hardware.sim.pty_server import PtyServer
from dzedge.hardware.sim.servo_physics import ServoPhysics
from dzedge.kernels import bus as kernel
from dzedge.kernels import codec_dynamixel_reference as dxl
from dzedge.kernels.bus import BusCode, ServoCode
from dzedge.kernels.bus_dynamixel import DynamixelCycle

rig_file = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("dynamixel_rig.py"))))
Rig, COUNT, MS = rig_file.Rig, rig_file.COUNT, rig_file.MS
FAST, PLAIN, SYNC_WRITE = 0x8A, 0x82, 0x83
STILL = np.array([0.0] * 5 + [48 / 1000])


@pytest.fixture
def rig():
    return Rig().active()


def frames(stream: bytes) -> list[bytes]:
    """The frames of a stream."""
    found, at, result = [0] * 5, 0, []
    while dxl.scan(stream, at, len(stream), 1024, True, found):
        result.append(stream[found[0] : found[0] + found[1]])
        at = found[2]
    return result


def status(servo: int, data: bytes, error: int = 0) -> bytes:
    out = bytearray(256)
    return bytes(out[: dxl.status(out, servo, error, data)])


@cache
def configured(fast: bool):
    """A rig for examples, whose cycle is new each time."""
    return Rig(fast=fast).configured()


def fresh_cycle(fast: bool):
    rig = configured(fast)
    rig.bus.advance = None
    rig.cycle = rig.arm.plan().build()
    return rig


def requested(rig) -> tuple[int, int]:
    """Instruction and number of bytes of the last request for states."""
    frame = frames(rig.sent)[-1]
    return frame[7], dxl.word(frame, 10)


class TestRequest:
    def test_goals_and_a_fast_read_in_one_write(self, rig) -> None:
        assert rig.run(STILL + np.array([0.01] * 5 + [0.01])) == BusCode.BUS_OK
        goals, reads = frames(rig.sent)
        assert goals[7] == SYNC_WRITE and dxl.word(goals, 8) == 116
        sent = [dxl.long_word(goals, 13 + i * 5) for i in range(COUNT)]
        assert sent == rig.cycle.goals == [servo.get("goal_position") for servo in rig.servos]
        turn = 4096 / (2 * np.pi)
        assert sent[:2] == [round(2048 + 0.01 * turn), round(2048 - 0.01 * turn)] and sent[5] == 2058
        assert reads[7] == FAST and list(reads[12:-2]) == [1, 2, 3, 4, 5, 6]

    def test_consecutive_reads_differ_in_length(self, rig) -> None:
        seen = []
        for _ in range(6):
            assert rig.run() == BusCode.BUS_OK
            seen.append(requested(rig))
        assert seen == [(FAST, 21), (FAST, 23)] * 3

    def test_old_firmware_is_asked_by_plain_reads(self) -> None:
        rig = Rig(line={"fast": False}).active()
        seen = []
        for _ in range(4):
            assert rig.run(STILL) == BusCode.BUS_OK
            seen.append(requested(rig))
        assert seen == [(PLAIN, 21), (PLAIN, 23)] * 2

    def test_goals_that_need_stuffing(self) -> None:
        """A goal of -131073 ticks is ff ff fd ff; with all limits moved there it is an ordinary one."""
        rig = Rig().configured()
        plan = rig.arm.plan()
        names = [name for name in plan.__dataclass_fields__ if name != "wire_ns"]
        fields = {name: getattr(plan, name) for name in names}
        goal = -131073
        turns = 2100 - goal
        fields |= {"zero": plan.zero - turns, "lower": plan.lower - turns, "upper": plan.upper - turns}
        fields |= {"ticks_low": plan.ticks_low - turns}
        cycle = DynamixelCycle(**fields)
        start = np.full(COUNT, goal + 1, np.int32)
        start[5] = 2500 - turns
        cycle.seed(start, rig.clock.now_ns())
        command = (np.full(COUNT, goal) - fields["zero"]) / plan.scale
        command[5] = 0.5
        assert cycle.compose(command, rig.clock.now_ns() + 10 * MS) == BusCode.BUS_OK
        sent = cycle.request(rig.clock.now_ns() + 10 * MS)
        frame = frames(sent)[0]
        assert dxl.word(frame, 5) == len(frame) - 7 == 3 + 4 + COUNT * 5 + 5  # five stuffed bytes
        body = bytearray(64)
        count = dxl.unstuff(frame, 7, len(frame) - 2, body)
        rows = [dxl.long_word(body, 6 + i * 5) for i in range(COUNT)]
        assert rows == [goal] * 5 + [2500 - turns] and count == 5 + COUNT * 5
        assert frames(sent)[1][7] == FAST


class TestReplies:
    def test_units(self, rig) -> None:
        rig.bus.advance = None
        for servo in rig.servos:
            servo.set("present_velocity", -100)
            servo.set("present_voltage", 74)
        rig[1].set("present_load", 500)
        rig[3].set("present_current", -300)
        rig[2].set("present_position", 2148)
        assert rig.run() == BusCode.BUS_OK
        cycle = rig.cycle
        assert cycle.positions[1] == pytest.approx(-100 * 2 * np.pi / 4096)
        assert cycle.velocities[0] == pytest.approx(-100 * 0.229 * 2 * np.pi / 60)
        assert cycle.velocities[1] == pytest.approx(100 * 0.229 * 2 * np.pi / 60)
        assert cycle.loads[0] == pytest.approx(0.5) and np.isnan(cycle.currents[0])
        assert cycle.currents[2] == pytest.approx(-0.3) and np.isnan(cycle.loads[2])
        assert list(cycle.voltages) == pytest.approx([7.4] * COUNT)
        assert list(cycle.temperatures) == [30.0] * COUNT

    @pytest.mark.parametrize("line", [{}, {"stuff_fast": True}, {"fast": False}])
    def test_data_that_look_like_a_header(self, line: dict) -> None:
        rig = Rig(line=line).active()
        rig.bus.advance = None
        rig[1].set("present_load", -1)
        rig[1].set("present_velocity", 253)
        for _ in range(4):
            assert rig.run(STILL) == BusCode.BUS_OK
            assert rig.cycle.loads[0] == pytest.approx(-0.001)
            assert rig.cycle.velocities[0] == pytest.approx(253 * 0.229 * 2 * np.pi / 60)
        assert b"\xff\xff\xfd" in frames(rig.heard)[0][9:]

    def test_a_dead_servo_costs_one_cycle_of_those_behind_it(self, rig) -> None:
        rig.run()
        rig.bus.set_fault("3", "off")
        assert rig.run() == BusCode.BUS_INCOMPLETE
        ok, silent = ServoCode.SERVO_OK, ServoCode.SERVO_NO_REPLY
        assert list(rig.cycle.results) == [ok, ok, silent, silent, silent, silent]
        for _ in range(30):
            assert rig.run() == BusCode.BUS_INCOMPLETE
            assert requested(rig)[0] == PLAIN
            assert list(rig.cycle.results) == [ok, ok, silent, ok, ok, ok]
        rig.bus.set_fault("3", "ok")
        codes = [rig.run() for _ in range(15)]
        assert codes[-1] == BusCode.BUS_OK and requested(rig)[0] == FAST

    def test_an_early_end_of_a_fast_reply_leaves_the_servos_that_were_whole(self, rig) -> None:
        rig.run()
        rig.clock.time_ns += 10 * MS
        request = rig.cycle.request(rig.clock.now_ns())
        whole = rig.bus.feed(request, rig.clock.now_ns())[0][1]
        rig.cycle.feed(whole[: 8 + 27 * 3 + 20])
        assert rig.cycle.finish() == BusCode.BUS_INCOMPLETE
        assert [result == ServoCode.SERVO_OK for result in rig.cycle.results] == [True] * 3 + [False] * 3

    @pytest.mark.parametrize("before", [0, 1])
    def test_a_lost_fast_reply_is_followed_by_plain_reads(self, rig, before: int) -> None:
        """From either of the two lengths that complete cycles use in turn."""
        for _ in range(before):
            assert rig.run() == BusCode.BUS_OK
        rig.bus.set_fault("3", "silent")
        assert rig.run() == BusCode.BUS_INCOMPLETE and requested(rig)[0] == FAST
        rig.run()
        assert requested(rig)[0] == PLAIN

    def test_alerts_come_with_the_state(self, rig) -> None:
        rig.bus.set_fault("4", "alert")
        rig.run()
        assert list(rig.cycle.errors) == [0, 0, 0, 0x80, 0, 0]
        assert rig.cycle.counters[kernel.ALERTS] == 1

    def test_instructions_strangers_and_other_lengths_are_no_replies(self, rig) -> None:
        rig.run()
        rig.clock.time_ns += 10 * MS
        request = rig.cycle.request(rig.clock.now_ns())
        count = requested(rig)[1]
        rig.cycle.feed(request)  # an adapter's echo
        rig.cycle.feed(status(9, bytes(count)) + status(1, bytes(count + 1)) + status(2, b"", 7))
        assert rig.cycle.counters[kernel.STRAY] >= 4
        assert rig.cycle.missing == COUNT and rig.cycle.errors[1] == 7
        for _, data in rig.bus.feed(request, rig.clock.now_ns()):
            rig.cycle.feed(data)
        assert rig.cycle.finish() == BusCode.BUS_OK

    def test_a_jump_is_not_believed(self, rig) -> None:
        rig.run()
        rig.bus.advance = None
        rig[1].set("present_position", 2048 + 2000)
        assert rig.run() == BusCode.BUS_INCOMPLETE
        assert rig.cycle.results[0] == ServoCode.SERVO_IMPLAUSIBLE and rig.cycle.ticks[0] == 2048
        # what it says stays, and in time it could have come there
        assert [rig.run() for _ in range(40)][-1] == BusCode.BUS_OK and rig.cycle.ticks[0] == 4048

    @settings(max_examples=60, deadline=None)
    @given(cuts=st.lists(st.integers(0, 200), max_size=6), noise=st.binary(max_size=6), fast=st.booleans())
    def test_pieces_and_noise(self, cuts: list[int], noise: bytes, fast: bool) -> None:
        rig = fresh_cycle(fast)
        request = rig.cycle.request(rig.clock.now_ns() + 10 * MS)
        answer = noise + b"".join(data for _, data in rig.bus.feed(request, rig.clock.now_ns() + 10 * MS))
        start = 0
        for end in [*sorted(min(cut, len(answer)) for cut in cuts), len(answer)]:
            rig.cycle.feed(answer[start:end])
            start = end
        assert rig.cycle.finish() == BusCode.BUS_OK
        assert list(rig.cycle.ticks) == [2048] * COUNT

    @settings(max_examples=60, deadline=None)
    @given(at=st.integers(0, 169), bit=st.integers(0, 7), fast=st.booleans())
    def test_a_flipped_bit_is_never_believed(self, at: int, bit: int, fast: bool) -> None:
        rig = fresh_cycle(fast)
        request = rig.cycle.request(rig.clock.now_ns() + 10 * MS)
        answer = bytearray(b"".join(data for _, data in rig.bus.feed(request, rig.clock.now_ns() + 10 * MS)))
        answer[at % len(answer)] ^= 1 << bit
        rig.cycle.feed(bytes(answer))
        assert rig.cycle.finish() == BusCode.BUS_INCOMPLETE
        heard = [i for i in range(COUNT) if rig.cycle.results[i] == ServoCode.SERVO_OK]
        assert all(rig.cycle.ticks[i] == 2048 for i in heard) and len(heard) >= (0 if fast else COUNT - 1)


class TestFaults:
    @pytest.mark.parametrize("component", ["line", "2"])
    @pytest.mark.parametrize(
        "verb", ["slow", "delayed", "intermittent", "garbage", "flip", "drop", "truncate", "dup", "foreign", "noise"]
    )
    def test_what_is_believed_was_measured_in_this_cycle(self, component: str, verb: str) -> None:
        rig = Rig().active()
        rig.bus.advance = None
        rig.bus.set_fault(component, verb)
        queue: list[tuple[int, bytes]] = []
        heard = 0
        for number in range(150):
            for servo in rig.servos:
                servo.set("present_position", 2000 + number % 60)
            rig.clock.time_ns += 10 * MS
            now_ns = rig.clock.now_ns()
            queue = [entry for entry in queue if entry[0] > now_ns]  # drained before the request
            queue = sorted(queue + rig.bus.feed(rig.cycle.request(now_ns), now_ns), key=lambda entry: entry[0])
            while queue and queue[0][0] <= now_ns + rig.cycle.budget_ns:
                rig.cycle.feed(queue.pop(0)[1])
            rig.cycle.finish()
            fresh = [i for i in range(COUNT) if rig.cycle.results[i] == ServoCode.SERVO_OK]
            assert {rig.cycle.ticks[i] for i in fresh} <= {2000 + number % 60}
            heard += len(fresh)
        spoils_all = component == "line" and verb not in ("slow", "intermittent", "dup", "noise")
        assert spoils_all or heard > 150

    def test_an_echo_is_no_reply(self, rig) -> None:
        rig.bus.set_fault("line", "echo")
        for _ in range(5):
            assert rig.run(STILL) == BusCode.BUS_OK


class TestPort:
    def test_the_whole_arm_on_a_pty(self) -> None:
        servos = Rig().servos
        clock = MonotonicClock()
        server = PtyServer(DynamixelLine(servos, advance=ServoPhysics(servos))).start()
        arm = DynamixelArm(rig_file.table(), server.path, watchdog_ms=0)
        arm.open()
        try:
            arm.configure()
            arm.activate()
            plan = arm.plan()
            cycle = plan.build()
            cycle.seed(arm.goal_ticks, clock.now_ns() - 5 * MS)
            pose = STILL.copy()
            complete = 0
            for _ in range(20):
                pose[:5] += 0.005
                now_ns = clock.now_ns()
                assert cycle.compose(pose, now_ns) == BusCode.BUS_OK
                complete += cycle.cycle(arm.fd, now_ns + plan.budget_ns + 50 * MS) == BusCode.BUS_OK
                clock.sleep_until_ns(now_ns + 5 * MS)
            assert complete >= 15
            assert servos[0].get("goal_position") == cycle.goals[0] > 2100
            server.stop()
            codes = {cycle.cycle(arm.fd, clock.now_ns() + 5 * MS) for _ in range(3)}
            assert codes & {BusCode.BUS_UNPLUGGED, BusCode.BUS_WRITE_FAILED}
        finally:
            arm.close()
            server.stop()


def test_shapes_must_agree() -> None:
    plan = Rig().configured().arm.plan()
    good = {name: getattr(plan, name) for name in plan.__dataclass_fields__ if name != "wire_ns"}
    DynamixelCycle(**good)
    bad = [
        {"lengths": plan.lengths[:-1]}, {"places": plan.places[:-1]}, {"speed_unit": plan.speed_unit[:-1]},
        {"fast": len(plan.lengths)}, {"lengths": plan.lengths[::-1].copy()}, {"places": plan.places + 100},
    ]  # fmt: skip
    for change in bad:
        with pytest.raises(ValueError):
            DynamixelCycle(**(good | change))
