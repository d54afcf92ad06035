"""ClockMap: frame stamps of three clocks to CLOCK_MONOTONIC."""

import random

from hypothesis import given
from hypothesis import strategies as st

from dzedge.kernels.pump import ClockMap

HARDWARE, SYSTEM, GLOBAL = 0, 1, 2
MS = 1_000_000
S = 1_000_000_000
WRAP_NS = 2**32 * 1000
PERIOD = 33_333_000
DELAY = 8 * MS


def counter(true_ns: int, phase_ns: int = 0, ppm: float = 0.0) -> int:
    """What the camera's 32-bit microsecond counter reads, in ns."""
    return (int(true_ns * (1 + ppm * 1e-6)) + phase_ns) // 1000 * 1000 % WRAP_NS


class TestHardware:
    def test_constant_delay_is_all_that_stays(self):
        clock = ClockMap()
        for i in range(300):
            true = 5 * S + i * PERIOD
            assert clock.map(counter(true), HARDWARE, true + DELAY, 0) == true + DELAY
        assert clock.resets == 0

    def test_jitter_is_removed(self):
        clock, dice = ClockMap(), random.Random(1)
        errors = []
        for i in range(600):
            true = 5 * S + i * PERIOD
            late = 0 if i % 20 == 0 else dice.randrange(30 * MS)
            errors.append(clock.map(counter(true), HARDWARE, true + DELAY + late, 0) - true - DELAY)
        assert max(errors[1:]) < 0.07 * MS
        assert min(errors) >= -1000

    def test_counter_wraps(self):
        clock = ClockMap()
        start = WRAP_NS - 10 * PERIOD
        for i in range(40):
            true = start + i * PERIOD
            assert clock.map(counter(true), HARDWARE, true + DELAY, 0) == true + DELAY
        assert clock.resets == 0

    def test_counter_wraps_unseen_during_hours_of_silence(self):
        clock = ClockMap()
        for true in (7 * S, 7 * S + 11 * 3600 * S):
            mapped = clock.map(counter(true), HARDWARE, true + DELAY, 0)
            assert abs(mapped - true - DELAY) <= 1000
        assert clock.resets == 0

    def test_drift_either_way_stays_below_a_millisecond(self):
        for ppm in (-75, 75):
            clock, dice = ClockMap(), random.Random(2)
            worst = 0
            for i in range(18_000):
                true = 5 * S + i * PERIOD
                late = dice.randrange(3 * MS)
                mapped = clock.map(counter(true, 123, ppm), HARDWARE, true + DELAY + late, 0)
                if i > 100:
                    worst = max(worst, abs(mapped - true - DELAY))
            assert worst < MS
            assert clock.resets == 0

    def test_reset_of_the_camera_is_anchored_anew(self):
        clock = ClockMap()
        for i in range(30):
            true = 3000 * S + i * PERIOD
            clock.map(counter(true), HARDWARE, true + DELAY, 0)
        for i in range(30):
            true = 3006 * S + i * PERIOD
            assert clock.map(i * PERIOD, HARDWARE, true + DELAY, 0) == true + DELAY
        assert clock.resets == 1

    def test_small_step_backwards_is_a_reset(self):
        clock = ClockMap()
        clock.map(10 * S, HARDWARE, 20 * S, 0)
        assert clock.map(10 * S - PERIOD, HARDWARE, 20 * S + PERIOD, 0) == 20 * S + PERIOD
        assert clock.resets == 1

    def test_burst_after_a_stall_is_none(self):
        clock = ClockMap()
        for i in range(60):
            true = 5 * S + i * PERIOD
            arrival = max(true, 6 * S) if 30 <= i < 55 else true
            mapped = clock.map(counter(true), HARDWARE, arrival + DELAY, 0)
            assert abs(mapped - true - DELAY) < 0.2 * MS
        assert clock.resets == 0

    def test_same_stamp_twice_is_none(self):
        clock = ClockMap()
        first = clock.map(10 * S, HARDWARE, 20 * S, 0)
        assert clock.map(10 * S, HARDWARE, 20 * S + PERIOD, 0) - first <= PERIOD // 10_000
        assert clock.resets == 0

    def test_forget_anchors_anew_and_counts_nothing(self):
        clock = ClockMap()
        clock.map(10 * S, HARDWARE, 20 * S, 0)
        clock.forget()
        assert clock.map(0, HARDWARE, 21 * S, 0) == 21 * S
        assert (clock.resets, clock.switches) == (0, 0)

    @given(
        st.lists(
            st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 5 * S), st.integers(0, 2)),
            min_size=1,
            max_size=40,
        )
    )
    def test_no_hardware_frame_is_captured_after_its_arrival(self, frames):
        clock, now = ClockMap(), 1000 * S
        for stamp_us, elapsed, domain in frames:
            now += elapsed
            mapped = clock.map(stamp_us * 1000, domain, now, 12345)
            assert domain != HARDWARE or mapped <= now


class TestWallClock:
    def test_offset_is_taken_off(self):
        for domain in (SYSTEM, GLOBAL):
            clock = ClockMap()
            assert clock.map(1_700_000_000 * S + 5, domain, 99 * S, 1_699_999_900 * S) == 100 * S + 5

    def test_step_of_the_wall_clock_is_counted_and_harmless(self):
        clock, offset = ClockMap(), 1_700_000_000 * S
        for i in range(20):
            true = 50 * S + i * PERIOD
            if i == 10:
                offset -= 2 * S
            assert clock.map(true + offset, SYSTEM, true + DELAY, offset) == true
        assert clock.steps == 1

    def test_sampling_noise_is_no_step(self):
        clock, dice = ClockMap(), random.Random(3)
        for i in range(200):
            clock.map(50 * S + i * PERIOD, GLOBAL, 50 * S, dice.randrange(100_000))
        assert clock.steps == 0


def test_change_of_domain_is_counted_and_anchors_anew():
    clock, offset = ClockMap(), 1_700_000_000 * S
    expected = 0
    for i, domain in enumerate([HARDWARE] * 5 + [SYSTEM] * 5 + [HARDWARE] * 5 + [GLOBAL] * 5):
        true = 50 * S + i * PERIOD
        stamp = counter(true, 777_000) if domain == HARDWARE else true + offset
        mapped = clock.map(stamp, domain, true + DELAY, offset)
        assert abs(mapped - true) <= DELAY
        expected += i in (5, 10, 15)
        assert clock.switches == expected
    assert (clock.steps, clock.resets) == (0, 0)
