"""The time code: what is shown is read, through perspective, blur, noise and exposures across a change."""

import numpy as np
import pytest

from dzedge.hardware.sim.filmed_screen import FilmedScreen
from dzedge.kernels.mailbox import FrameRing
from dzedge.time_code import BITS, STEPS, Clockface, Reader, Showing, cells, learning_patterns

WIDTH, HEIGHT = 160, 120
MS = 1_000_000


class StillClock:
    """The time is what the test says."""

    def __init__(self) -> None:
        self.time_ns = 0

    def now_ns(self) -> int:
        return self.time_ns

    def sleep_until_ns(self, deadline_ns: int) -> None:
        raise AssertionError("nobody sleeps here")


def screen(noise: float = 4.0) -> tuple[FilmedScreen, StillClock]:
    clock = StillClock()
    ring = FrameRing(np.zeros(FrameRing.bytes_for(2, HEIGHT, WIDTH), np.uint8), 2, HEIGHT, WIDTH)
    return FilmedScreen(ring, noise=noise, clock=clock), clock


def learn(filmed: FilmedScreen, clock: StillClock, change=lambda image: image) -> Reader:
    pictures = []
    for pattern in learning_patterns():
        filmed.show(pattern)
        clock.time_ns += 100 * MS
        shots = [change(filmed.picture(clock.time_ns - 10 * MS, clock.time_ns)) for _ in range(3)]
        pictures.append(np.mean(shots, axis=(0, 3)))
    return Reader(np.stack(pictures))


def shown(filmed: FilmedScreen, clock: StillClock, count: int, step_ms: int = 25) -> Showing:
    times = []
    for step in range(count):
        times.append(filmed.show(cells(step)))
        clock.time_ns += step_ms * MS
    return Showing(range(count), times)


class TestCells:
    def test_neighbours_differ_in_one_bit(self):
        for step in range(STEPS):
            assert (cells(step) != cells(step + 1)).sum() == 2  # a bit and its complement

    def test_all_differ_and_half_is_white(self):
        codes = {cells(step).tobytes() for step in range(STEPS)}
        assert len(codes) == STEPS
        assert all(cells(step).sum() == 8 for step in range(STEPS))
        assert all(pattern.sum() == 8 for pattern in learning_patterns())

    def test_begins_anew(self):
        np.testing.assert_array_equal(cells(STEPS + 3), cells(3))


class TestReader:
    def test_bits_of_every_code(self):
        filmed, clock = screen()
        reader = learn(filmed, clock)
        for step in range(0, STEPS, 5):
            filmed.show(cells(step))
            clock.time_ns += 50 * MS
            bits = reader.bits(filmed.picture(clock.time_ns - 10 * MS, clock.time_ns))
            np.testing.assert_array_equal(bits > 0, cells(step).reshape(-1)[:BITS])
            assert np.abs(bits).min() > 0.8

    @pytest.mark.parametrize(
        "change", [lambda i: i[:, ::-1], lambda i: i[::-1, ::-1], lambda i: np.swapaxes(i, 0, 1), lambda i: i // 3],
        ids=["mirrored", "upside down", "on its side", "dark"],
    )  # fmt: skip
    def test_any_way_round(self, change):
        filmed, clock = screen()
        reader = learn(filmed, clock, change)
        filmed.show(cells(77))
        clock.time_ns += 50 * MS
        bits = reader.bits(change(filmed.picture(clock.time_ns - 10 * MS, clock.time_ns)))
        np.testing.assert_array_equal(bits > 0, cells(77).reshape(-1)[:BITS])

    def test_another_gain_than_when_it_learned(self):
        filmed, clock = screen(noise=1.0)
        reader = learn(filmed, clock)
        filmed.show(cells(200))
        clock.time_ns += 50 * MS
        image = filmed.picture(clock.time_ns - 10 * MS, clock.time_ns)
        dimmed = (image * 0.75).astype(np.uint8)
        np.testing.assert_allclose(reader.bits(dimmed), reader.bits(image), atol=0.15)

    def test_covered(self):
        filmed, clock = screen()
        reader = learn(filmed, clock)
        assert reader.bits(np.zeros((HEIGHT, WIDTH, 3), np.uint8)) is None

    def test_no_screen_in_the_picture(self):
        pictures = np.random.default_rng(0).normal(120.0, 3.0, (8, HEIGHT, WIDTH))
        with pytest.raises(ValueError, match=r"0 of 16 cells .* in the picture"):
            Reader(pictures)

    def test_half_a_screen(self):
        filmed, clock = screen()
        with pytest.raises(ValueError, match=r"\d+ of 16 cells .*let the screen fill a third"):
            learn(filmed, clock, lambda image: image[:, : WIDTH // 2])


class TestClockface:
    @pytest.mark.parametrize("exposure_ms", [2, 10, 33])
    def test_time_of_exposure_within_a_step(self, exposure_ms):
        filmed, clock = screen()
        reader = learn(filmed, clock)
        face = Clockface(shown(filmed, clock, 80))
        errors = []
        for middle_ms in range(100, 1900, 37):
            middle_ns = face.start_ns + middle_ms * MS
            image = filmed.picture(middle_ns - exposure_ms * MS // 2, middle_ns + exposure_ms * MS // 2)
            exposed_ns = face.exposed(reader.bits(image), clock.time_ns, face.start_ns)
            errors.append((exposed_ns - middle_ns) / MS)
        assert np.abs(errors).max() <= 20.0
        assert abs(np.mean(errors)) < 4.0

    def test_steps_that_came_late_are_allowed_for(self):
        filmed, clock = screen(noise=1.0)
        reader = learn(filmed, clock)
        rng, times = np.random.default_rng(3), []
        for step in range(80):
            times.append(filmed.show(cells(step)))
            clock.time_ns += int(rng.integers(15, 60)) * MS
        face = Clockface(Showing(range(80), times))
        middle_ns = (times[40] + times[41]) // 2
        bits = reader.bits(filmed.picture(middle_ns - MS, middle_ns + MS))
        assert abs(face.exposed(bits, clock.time_ns, face.start_ns) - middle_ns) <= 2 * MS
        evenly = Clockface(Showing(range(80), np.linspace(times[0], times[-1], 80).astype(int)))
        assert abs(evenly.exposed(bits, clock.time_ns, face.start_ns) - middle_ns) > 5 * MS

    def test_the_cycle_is_told_apart_by_the_time(self):
        showing = Showing(range(600), [step * 10 * MS for step in range(600)])
        face = Clockface(showing)
        bits = cells(300).reshape(-1)[:BITS] * 2.0 - 1.0
        assert abs(face.exposed(bits, 4000 * MS, 2000 * MS) - 3005 * MS) <= MS
        assert abs(face.exposed(bits, 1500 * MS, 0) - 445 * MS) <= MS

    def test_what_was_never_shown(self):
        face = Clockface(Showing(range(20), [step * 10 * MS for step in range(20)]))
        assert face.exposed(cells(200).reshape(-1)[:BITS] * 2.0 - 1.0, 200 * MS, 0) is None
        assert face.exposed(np.zeros(BITS), 200 * MS, 0) is None
        assert face.exposed(np.ones(BITS), -1, -1) is None
