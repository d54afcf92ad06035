"""The bus cycle: what it sends, what it refuses, what it believes; in memory and on a real pty."""

import os
import pty
import time
import tty
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dzedge.clock import NS, MonotonicClock
from dzedge.hardware.arm import CyclePlan
from dzedge.hardware.calibration import JointCalibration
from dzedge.hardware.feetech_plan import compile_plan
from dzedge.hardware.sim.servo import Servo
from dzedge.hardware.sim.servo_bus import ServoBus
from dzedge.kernels import bus as kernel
from dzedge.kernels import codec_reference as sts
from dzedge.kernels.bus import BusCode, BusCycle, ServoCode

COUNT = 6
TURN = 4096 / (2 * np.pi)
PERIOD_NS = 10_000_000
START_NS = 5 * NS


def joints() -> list[JointCalibration]:
    """Five joints in both directions, and a gripper."""
    arm = [
        JointCalibration(f"j{i}", i + 1, 2048.0, TURN if i % 2 == 0 else -TURN, 1024, 3072) for i in range(5)
    ]
    return [*arm, JointCalibration("gripper", 6, 2000.0, 1200.0, 2000, 3200)]


def plan(**options) -> CyclePlan:
    return compile_plan(joints(), [2.5] * 5 + [4.0], 1_000_000, **options)


def servos() -> list[Servo]:
    result = [Servo(i + 1, 2048) for i in range(COUNT)]
    for servo in result:
        servo.set("return_delay", 0)
    return result


def goals_on_wire(data: bytes) -> list[int] | None:
    """The goal positions of a sync write at the head of `data`; None where there is none."""
    if len(data) < 5 or data[4] != 0x83:
        return None
    width = data[6]
    rows = [data[7 + i * (width + 1) :][: width + 1] for i in range(COUNT)]
    return [int.from_bytes(row[1:3], "little") for row in rows]


class Rig:
    """A cycle and the emulated bus, in memory, with one time."""

    def __init__(self, **options) -> None:
        self.plan = plan(**options)
        self.cycle: BusCycle = self.plan.build()
        self.servos = servos()
        self.bus = ServoBus(self.servos, echo=bool(options.get("echo")))
        self.now_ns = START_NS
        self.cycle.seed(np.full(COUNT, 2048, np.int32), self.now_ns)
        self.sent = b""

    def run(self, command: np.ndarray | None = None) -> int:
        """One cycle; what compose refuses is returned, but the cycle runs."""
        self.now_ns += PERIOD_NS
        refused = 0 if command is None else self.cycle.compose(command, self.now_ns)
        self.sent = self.cycle.request(self.now_ns)
        for _, reply in self.bus.feed(self.sent, self.now_ns):
            self.cycle.feed(reply)
        code = self.cycle.finish()
        return refused or code


HOME = np.array([0.0, 0.0, 0.0, 0.0, 0.0, 48 / 1200])


@pytest.fixture
def rig() -> Rig:
    return Rig()


class TestCompose:
    def test_goals_reach_the_servos(self, rig: Rig) -> None:
        command = HOME + np.array([0.01, 0.01, -0.01, -0.01, 0.02, 0.02])
        assert rig.run(command) == BusCode.BUS_OK
        expected = [round(2048 + 0.01 * TURN), round(2048 - 0.01 * TURN)] * 2
        expected[2:4] = [round(2048 - 0.01 * TURN), round(2048 + 0.01 * TURN)]
        expected += [round(2048 + 0.02 * TURN), 2072]
        assert [servo.get("goal_position") for servo in rig.servos] == expected == rig.cycle.goals
        assert goals_on_wire(rig.sent) == expected
        assert all(servo.torque_enabled for servo in rig.servos)

    def test_speed_is_written_with_the_goal(self, rig: Rig) -> None:
        rig.run(HOME)
        assert rig.servos[0].get("goal_speed") == int(np.ceil(2.5 * TURN * 1.5))
        assert rig.servos[0].get("goal_time") == 0

    def test_without_a_command_it_only_reads(self, rig: Rig) -> None:
        assert rig.run() == BusCode.BUS_OK
        assert goals_on_wire(rig.sent) is None
        assert not any(servo.torque_enabled for servo in rig.servos)

    def test_discard(self, rig: Rig) -> None:
        assert rig.cycle.compose(HOME, rig.now_ns) == 0
        rig.cycle.discard()
        assert goals_on_wire(rig.cycle.request(rig.now_ns)) is None

    @pytest.mark.parametrize(
        ("joint", "value", "code"),
        [
            (0, np.nan, BusCode.BUS_NOT_FINITE),
            (5, np.inf, BusCode.BUS_NOT_FINITE),
            (2, -np.inf, BusCode.BUS_NOT_FINITE),
            (3, 1e300, BusCode.BUS_RANGE),
            (1, 1.7, BusCode.BUS_RANGE),
            (5, -0.01, BusCode.BUS_RANGE),
            (5, 1.01, BusCode.BUS_RANGE),
            (4, 0.5, BusCode.BUS_STEP),
        ],
    )
    def test_refusals_send_nothing(self, rig: Rig, joint: int, value: float, code: BusCode) -> None:
        command = HOME.copy()
        command[joint] = value
        assert rig.run(command) == code
        assert goals_on_wire(rig.sent) is None
        assert rig.cycle.goals == [2048] * COUNT
        assert rig.cycle.counters[kernel.REFUSED] == 1

    def test_a_command_of_another_length(self, rig: Rig) -> None:
        assert rig.cycle.compose(HOME[:5].copy(), rig.now_ns) == BusCode.BUS_MISMATCH

    def test_a_refusal_drops_what_was_composed_before(self, rig: Rig) -> None:
        assert rig.cycle.compose(HOME, rig.now_ns) == 0
        assert rig.cycle.compose(np.full(COUNT, np.nan), rig.now_ns) == BusCode.BUS_NOT_FINITE
        assert goals_on_wire(rig.cycle.request(rig.now_ns)) is None

    @pytest.mark.parametrize("cycles", [1, 2, 5, 40])
    def test_the_step_follows_real_elapsed_time(self, rig: Rig, cycles: int) -> None:
        for _ in range(cycles - 1):
            rig.run()
        elapsed = min(cycles * PERIOD_NS / NS, 0.25)  # a long pause earns no larger step
        allowed = int(np.ceil(2.5 * TURN * elapsed)) + 1
        over = HOME.copy()
        over[0] = (allowed + 1) / TURN
        assert rig.cycle.compose(over, rig.now_ns + PERIOD_NS) == BusCode.BUS_STEP
        over[0] = allowed / TURN
        assert rig.run(over) == BusCode.BUS_OK

    def test_a_step_counts_from_the_goal_sent_not_from_one_that_was_dropped(self, rig: Rig) -> None:
        step = HOME.copy()
        step[0] = 10 / TURN
        assert rig.cycle.compose(step, rig.now_ns + 1) == BusCode.BUS_STEP
        assert rig.cycle.compose(step, rig.now_ns + PERIOD_NS) == BusCode.BUS_OK
        rig.cycle.discard()
        assert rig.cycle.goals[0] == 2048

    def test_unseeded_and_backwards(self, rig: Rig) -> None:
        assert rig.cycle.compose(HOME, rig.now_ns - 1) == BusCode.BUS_TIME
        rig.cycle.unseed()
        assert rig.cycle.compose(HOME, rig.now_ns) == BusCode.BUS_UNSEEDED
        assert plan().build().compose(HOME, 0) == BusCode.BUS_UNSEEDED

    @settings(max_examples=200, deadline=None)
    @given(values=st.lists(st.floats(-2, 2), min_size=COUNT, max_size=COUNT))
    def test_what_is_accepted_is_within_half_a_tick_and_the_limits(self, values: list[float]) -> None:
        rig = Rig()
        command = np.array(values) * 0.05 + HOME
        if rig.cycle.compose(command, rig.now_ns + 25 * PERIOD_NS) == BusCode.BUS_OK:
            goals = goals_on_wire(rig.cycle.request(rig.now_ns))
            assert goals is not None
            for joint, ticks, value in zip(joints(), goals, command, strict=True):
                assert joint.lower <= ticks <= joint.upper
                assert abs(joint.position(ticks) - value) <= 0.5 / abs(joint.scale) + 1e-12
                assert ticks == joint.ticks(value)

    def test_plans_that_do_not_agree_are_refused(self) -> None:
        good = {name: getattr(plan(), name) for name in CyclePlan.__slots__ if name != "wire_ns"}
        with pytest.raises(ValueError, match="zero has 5 entries"):
            BusCycle(**(good | {"zero": np.zeros(5)}))
        with pytest.raises(ValueError, match="scale"):
            BusCycle(**(good | {"scale": np.zeros(COUNT)}))
        with pytest.raises(ValueError, match="offset"):
            BusCycle(**(good | {"offsets": np.full(COUNT, 400, np.int32)}))
        with pytest.raises(ValueError, match="goals for 6"):
            plan().build().seed(np.zeros(3, np.int32), 0)


class TestStates:
    def test_units(self, rig: Rig) -> None:
        rig.servos[0].set_present(2148, -300.0, 0.25, 7.4, 41.0)
        rig.servos[1].set_present(1948, 300.0, -0.5, 6.9, 33.0)
        rig.servos[5].set_present(2600, 120.0, 0.0, 7.4, 30.0)
        assert rig.run() == BusCode.BUS_OK
        cycle = rig.cycle
        assert list(cycle.results) == [ServoCode.SERVO_OK] * COUNT
        assert list(cycle.ticks)[:2] == [2148, 1948]
        assert np.allclose(np.asarray(cycle.positions)[[0, 1, 5]], [100 / TURN, 100 / TURN, 0.5])
        assert np.allclose(np.asarray(cycle.velocities)[[0, 1, 5]], [-300 / TURN, -300 / TURN, 0.1])
        assert np.allclose(np.asarray(cycle.loads)[:2], [0.25, 0.5])
        assert np.allclose(np.asarray(cycle.voltages)[:2], [7.4, 6.9])
        assert list(cycle.temperatures)[:2] == [41, 33]
        assert np.isclose(cycle.currents[0], 100 * 0.0065)

    def test_positions_only(self) -> None:
        rig = Rig(state=False)
        assert rig.run(HOME) == BusCode.BUS_OK
        assert len(rig.sent) == 8 + 3 * COUNT + 8 + COUNT
        assert np.allclose(rig.cycle.positions[0], 0.0) and np.isnan(rig.cycle.velocities[0])

    def test_a_dead_servo_costs_only_itself(self, rig: Rig) -> None:
        rig.servos[3].set_fault("off")
        assert rig.run(HOME) == BusCode.BUS_INCOMPLETE
        assert list(rig.cycle.results) == [0, 0, 0, ServoCode.SERVO_NO_REPLY, 0, 0]
        assert rig.cycle.counters[kernel.TIMEOUTS] == 1
        assert np.isnan(rig.cycle.positions[3]) and rig.cycle.heard_ns[3] == 0
        rig.servos[3].set_fault("ok")
        assert rig.run(HOME) == BusCode.BUS_OK

    def test_alerts_come_with_the_state(self, rig: Rig) -> None:
        rig.servos[2].alerts = 32
        assert rig.run(HOME) == BusCode.BUS_OK
        assert list(rig.cycle.errors) == [0, 0, 32, 0, 0, 0]
        assert rig.cycle.counters[kernel.ALERTS] == 1

    def test_an_impossible_position_is_not_taken_over(self, rig: Rig) -> None:
        rig.run()
        rig.servos[1].set_present(3000, 0.0, 0.0, 7.4, 30.0)
        assert rig.run() == BusCode.BUS_INCOMPLETE
        assert rig.cycle.results[1] == ServoCode.SERVO_IMPLAUSIBLE
        assert rig.cycle.ticks[1] == 2048
        for _ in range(12):  # but where it stays, it is believed as soon as it could have got there
            code = rig.run()
        assert code == BusCode.BUS_OK and rig.cycle.ticks[1] == 3000

    def test_a_multi_turn_position_is_not_believed(self, rig: Rig) -> None:
        rig.servos[1].set("present_position", 5000)
        assert rig.run() == BusCode.BUS_INCOMPLETE
        assert rig.cycle.results[1] == ServoCode.SERVO_IMPLAUSIBLE

    def test_time_of_measurement(self, rig: Rig) -> None:
        rig.run()
        sent, replies = 8 + 7 * COUNT + 8 + COUNT, 21 * COUNT
        assert rig.cycle.sampled_ns == rig.now_ns + (sent + replies / 2) * 10_000
        assert rig.plan.wire_ns == (sent + replies) * 10_000

    def test_echo_is_stripped(self) -> None:
        rig = Rig(echo=True)
        assert rig.run(HOME) == BusCode.BUS_OK
        assert rig.cycle.counters[kernel.STRAY] == 0

    def test_an_adapter_that_does_not_echo_after_all(self) -> None:
        rig = Rig(echo=True)
        rig.bus.echo = False
        assert rig.run(HOME) == BusCode.BUS_OK

    @settings(max_examples=100, deadline=None)
    @given(cuts=st.lists(st.integers(0, 140), max_size=8), noise=st.binary(max_size=6))
    def test_pieces_and_noise(self, cuts: list[int], noise: bytes) -> None:
        rig = Rig()
        rig.now_ns += PERIOD_NS
        request = rig.cycle.request(rig.now_ns)
        answer = noise + b"".join(data for _, data in rig.bus.feed(request, rig.now_ns))
        ends = [*sorted(min(cut, len(answer)) for cut in cuts), len(answer)]
        start = 0
        for end in ends:
            rig.cycle.feed(answer[start:end])
            start = end
        assert rig.cycle.finish() == BusCode.BUS_OK
        assert list(rig.cycle.ticks) == [2048] * COUNT

    def test_strays_are_counted_and_dropped(self, rig: Rig) -> None:
        rig.cycle.request(rig.now_ns)
        out = np.zeros(64, np.uint8)
        for servo, length in ((9, 15), (1, 3)):
            size = sts.status(out, servo, 0, np.zeros(length, np.uint8))
            rig.cycle.feed(bytes(out[:size]))
        assert rig.cycle.counters[kernel.STRAY] == 2
        assert rig.cycle.finish() == BusCode.BUS_INCOMPLETE

    def test_finish_closes_a_cycle_once(self, rig: Rig) -> None:
        rig.run()
        assert rig.cycle.finish() == rig.cycle.finish() == BusCode.BUS_OK
        assert rig.cycle.counters[kernel.CYCLES] == 1


class TestLateReplies:
    """A reply that comes in a later cycle must never be taken for that cycle's."""

    def test_one_cycle_late(self, rig: Rig) -> None:
        first = rig.cycle.request(rig.now_ns)
        late = b"".join(data for _, data in rig.bus.feed(first, rig.now_ns))
        assert rig.cycle.finish() == BusCode.BUS_INCOMPLETE
        rig.servos[0].set_present(2060, 0.0, 0.0, 7.4, 30.0)
        second = rig.cycle.request(rig.now_ns + PERIOD_NS)
        assert rig.cycle.feed(late) == BusCode.BUS_INCOMPLETE
        assert rig.cycle.counters[kernel.LATE] == COUNT
        for _, data in rig.bus.feed(second, rig.now_ns + PERIOD_NS):
            rig.cycle.feed(data)
        assert rig.cycle.finish() == BusCode.BUS_OK and rig.cycle.ticks[0] == 2060

    def test_a_duplicate_one_cycle_late(self, rig: Rig) -> None:
        """Nothing was lost, so nothing is owed: it is known by its length alone."""
        twice: list[bytes] = []
        for number in range(20):
            rig.now_ns += PERIOD_NS
            for servo in rig.servos:
                servo.set_present(2000 + number, 0.0, 0.0, 7.4, 30.0)
            replies = [data for _, data in rig.bus.feed(rig.cycle.request(rig.now_ns), rig.now_ns)]
            for data in [*twice, *replies]:
                rig.cycle.feed(data)
            assert rig.cycle.finish() == BusCode.BUS_OK
            assert set(rig.cycle.ticks) == {2000 + number}
            twice = replies
        assert rig.cycle.counters[kernel.LATE] + rig.cycle.counters[kernel.STRAY] >= 19 * COUNT

    @pytest.mark.parametrize("seed", range(4))
    def test_random_lateness(self, seed: int) -> None:
        random = np.random.default_rng(seed)
        rig = Rig()
        queues: list[list[tuple[int, bytes]]] = [[] for _ in range(COUNT)]
        accepted = 0
        for number in range(5000):
            rig.now_ns += PERIOD_NS
            for servo in rig.servos:  # the position tells in which cycle it was measured
                servo.set_present(2000 + number % 50, 0.0, 0.0, 7.4, 30.0)
            request = rig.cycle.request(rig.now_ns)
            for i, (_, data) in enumerate(rig.bus.feed(request, rig.now_ns)):
                late = int(random.choice([0, 0, 0, 0, 0, 0, 1, 2, 5]))
                # in order: no reply overtakes an earlier one of the same servo
                due = max(number + late, queues[i][-1][0] if queues[i] else 0)
                queues[i].append((min(due, number + 7), data))
            for queue in queues:
                while queue and queue[0][0] <= number:
                    rig.cycle.feed(queue.pop(0)[1])
            rig.cycle.finish()
            fresh = [i for i in range(COUNT) if rig.cycle.results[i] == ServoCode.SERVO_OK]
            assert all(rig.cycle.ticks[i] == 2000 + number % 50 for i in fresh)
            accepted += len(fresh)
        assert accepted > 1000 and rig.cycle.counters[kernel.LATE] > 100


@pytest.fixture
def line() -> Iterator[tuple[int, int]]:
    """A pty: our end (the tty), the servos' end."""
    master, slave = pty.openpty()
    tty.setraw(slave)
    os.set_blocking(slave, False)
    os.set_blocking(master, False)
    yield slave, master
    for fd in (slave, master):
        try:
            os.close(fd)
        except OSError:
            pass


class TestPort:
    def test_unplugged(self, line: tuple[int, int]) -> None:
        fd, master = line
        os.close(master)
        cycle = plan().build()
        deadline_ns = MonotonicClock().now_ns() + NS
        assert cycle.cycle(fd, deadline_ns) == BusCode.BUS_UNPLUGGED
        assert cycle.cycle(fd, deadline_ns) == BusCode.BUS_UNPLUGGED
        assert list(cycle.results) == [ServoCode.SERVO_NO_REPLY] * COUNT

    def test_no_descriptor(self) -> None:
        assert plan().build().cycle(-1, 0) == BusCode.BUS_UNPLUGGED

    def test_silence_costs_no_cpu_and_ends_at_the_deadline(self, line: tuple[int, int]) -> None:
        clock = MonotonicClock()
        cycle = plan().build()
        begin, cpu = clock.now_ns(), time.process_time_ns()
        assert cycle.cycle(line[0], begin + NS // 5) == BusCode.BUS_INCOMPLETE
        wall, cpu = clock.now_ns() - begin, time.process_time_ns() - cpu
        assert wall >= NS // 5 and cpu < wall / 4
        assert list(cycle.results) == [ServoCode.SERVO_NO_REPLY] * COUNT

    def test_a_past_deadline_returns_at_once(self, line: tuple[int, int]) -> None:
        assert plan().build().cycle(line[0], 0) == BusCode.BUS_INCOMPLETE

    def test_stale_input_is_dropped_before_the_request(self, line: tuple[int, int]) -> None:
        fd, master = line
        rig = Rig()
        stale = b"".join(data for _, data in rig.bus.feed(rig.cycle.request(rig.now_ns), rig.now_ns))
        cycle = plan().build()
        os.write(master, stale)
        assert cycle.cycle(fd, 0) == BusCode.BUS_INCOMPLETE
        assert cycle.counters[kernel.LATE] == COUNT

    def test_one_write_carries_both_frames(self, line: tuple[int, int]) -> None:
        fd, master = line
        cycle = plan().build()
        now_ns = MonotonicClock().now_ns()
        cycle.seed(np.full(COUNT, 2048, np.int32), now_ns)
        assert cycle.compose(HOME, now_ns) == 0
        cycle.cycle(fd, 0)
        sent = os.read(master, 4096)
        assert goals_on_wire(sent) == [2048] * COUNT
        assert sent[-14:].hex(" ").startswith("ff ff fe 0a 82 38 0f 01 02 03 04 05 06")
        assert cycle.composed == 0

    def test_a_line_that_takes_nothing(self, line: tuple[int, int]) -> None:
        fd, _ = line
        cycle = plan().build()
        now_ns = MonotonicClock().now_ns()
        cycle.seed(np.full(COUNT, 2048, np.int32), now_ns)
        refused = 0
        while refused < 3:  # the kernel moves bytes on behind our back: full is what stays full
            try:
                os.write(fd, bytes(4096))
                refused = 0
            except BlockingIOError:
                refused += 1
                time.sleep(0.01)
        assert cycle.compose(HOME, now_ns) == 0
        assert cycle.cycle(fd, 0) == BusCode.BUS_WRITE_FAILED
        assert cycle.counters[kernel.UNSENT] == 1 and cycle.composed == 0
