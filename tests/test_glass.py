"""Glass-to-host latency on a still clock: a screen, a camera that films it with a known delay, the truth recovered."""

import os
import pty
import termios
from collections.abc import Iterator

import numpy as np
import pytest

from dzedge.clock import NS, FakeClock
from dzedge.errors import CameraError, DzedgeError, UsageError
from dzedge.glass import Latency, Terminal, measure
from dzedge.hardware.sim.filmed_screen import FilmedScreen
from dzedge.kernels.mailbox import FrameRing
from dzedge.types import Frame

WIDTH, HEIGHT = 96, 72
MS = 1_000_000


class View:
    """As a Viewfinder whose camera films `screen`; time goes by while its frames are awaited.

    stamp_ms: by how much the camera's stamps are late; covered: numbers of frames with something before the lens.
    """

    def __init__(
        self, fps: int, delay_ms: int, exposure_ms: int = 8, stamp_ms: int = 0, covered: range = range(0)
    ) -> None:
        self.clock = FakeClock()
        ring = FrameRing(np.zeros(FrameRing.bytes_for(2, HEIGHT, WIDTH), np.uint8), 2, HEIGHT, WIDTH)
        self.screen = FilmedScreen(ring, clock=self.clock)
        self.period_ns, self.delay_ns, self.exposure_ns = NS // fps, delay_ms * MS, exposure_ms * MS
        self.stamp_ns, self.covered = stamp_ms * MS, covered
        self.start_ns = self.clock.now_ns()
        self.number = 0

    def frames(self, until_ns: int) -> Iterator[Frame]:
        while True:
            start_ns = self.start_ns + self.number * self.period_ns
            middle_ns = start_ns + self.exposure_ns // 2
            arrival_ns = middle_ns + self.delay_ns
            if arrival_ns > until_ns:
                break
            self.clock.advance_to_ns(max(arrival_ns, self.clock.now_ns()))
            image = self.screen.picture(start_ns, start_ns + self.exposure_ns)
            self.number += 1
            yield Frame(image // 20 if self.number in self.covered else image, self.number,
                        middle_ns + self.stamp_ns, arrival_ns)  # fmt: skip
        self.clock.advance_to_ns(max(until_ns, self.clock.now_ns()))


def run(view: View, seconds: float = 2.0, **more) -> Latency:
    return measure(view, view.screen, seconds, hold_ns=400 * MS, **more)


class TestMeasure:
    @pytest.mark.parametrize(("fps", "delay_ms", "exposure_ms"), [(15, 60, 8), (30, 33, 8), (30, 180, 8), (60, 90, 16)])
    def test_recovers_the_true_delay_within_a_frame_period(self, fps, delay_ms, exposure_ms):
        measured = run(View(fps, delay_ms, exposure_ms))
        period_ms = 1000 / fps
        assert abs(np.median(measured.latency_ms) - delay_ms) < min(period_ms, 8.0)
        assert np.abs(measured.latency_ms - delay_ms).max() < max(period_ms, 25.0)
        assert len(measured.latency_ms) >= 0.8 * measured.frames

    def test_longer_delay_is_told_from_shorter(self):
        short, long = (np.median(run(View(30, delay_ms)).latency_ms) for delay_ms in (40, 60))
        assert 14.0 < long - short < 26.0

    def test_how_far_the_stamps_are_off(self):
        honest, late = (run(View(30, 100, stamp_ms=stamp_ms)).stamp_ms for stamp_ms in (0, 45))
        assert abs(np.median(honest)) < 8.0
        assert abs(np.median(late) - 45.0) < 8.0

    def test_covered_frames_are_left_out(self):
        view = View(30, 50, covered=range(110, 130))
        measured = run(view)
        assert measured.frames - len(measured.latency_ms) >= 18
        assert abs(np.median(measured.latency_ms) - 50.0) < 8.0

    def test_progress(self):
        calls = []
        run(View(30, 50), seconds=2.1, advance=lambda: calls.append(1))
        assert len(calls) == 10

    def test_document(self):
        document = run(View(30, 50)).document()
        assert document["read"] <= document["frames"]
        host = document["glass_to_host_ms"]
        assert host["p10"] <= host["p50"] <= host["p90"] <= host["max"]

    def test_no_screen_before_the_camera(self):
        view = View(30, 50)
        filmed, view.screen = view.screen, View(30, 50).screen
        with pytest.raises(DzedgeError, match="the code was not found: 0 of 16 cells") as caught:
            measure(view, filmed, 2.0, hold_ns=400 * MS)
        assert caught.value.exit_code == 1

    def test_too_slow_a_camera(self):
        with pytest.raises(CameraError, match="no frame in 200 ms: the camera is too slow"):
            run(View(1, 50))

    def test_covered_for_too_long(self):
        with pytest.raises(DzedgeError, match=r"could be read in \d+ of \d+ frames: keep camera and screen still"):
            run(View(30, 50, covered=range(98, 1000)))


class TestTerminal:
    def test_none(self, tmp_path):
        with pytest.raises(UsageError, match=r"no terminal to show the code on .* camera latency sim"):
            Terminal(str(tmp_path / "tty"))

    def test_draws_each_cell_and_cleans_up(self):
        ours, theirs = pty.openpty()
        termios.tcsetwinsize(ours, (8, 16))
        with Terminal(os.ttyname(theirs)) as screen:
            before = os.read(ours, 1 << 16)
            pattern = np.zeros((4, 4), bool)
            pattern[0, 1] = True
            shown_ns = screen.show(pattern)
            drawn = os.read(ours, 1 << 16).decode()
        after = os.read(ours, 1 << 16)
        assert before.startswith(b"\x1b[?1049h") and after.endswith(b"\x1b[?1049l")
        assert shown_ns > 0
        lines = drawn.split("\x1b[")
        white = [line for line in lines if line.startswith("48;2;255;255;255m")]
        assert white == ["48;2;255;255;255m    "] * 2  # four columns wide, two rows high
        assert sum(line.count(" ") for line in lines) == 8 * 16
        os.close(ours)
        os.close(theirs)

    def test_too_small(self):
        ours, theirs = pty.openpty()
        termios.tcsetwinsize(ours, (4, 80))
        with pytest.raises(UsageError, match="the terminal has 80x4 characters: make it larger"):
            Terminal(os.ttyname(theirs))
        os.close(ours)
        os.close(theirs)
