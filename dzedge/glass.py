"""Glass-to-host latency: the terminal shows a code of the time, the camera films it, the pictures tell its age.

What is measured is from the drawing of a code to the arrival of a picture of it in this process: terminal, compositor,
panel, exposure, readout, USB and driver. The screen's share (10 to 50 ms) cannot be told from the camera's by this
means: the camera alone is younger than what is measured, never older.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from dzedge.clock import NS, MonotonicClock
from dzedge.errors import CameraError, DzedgeError, UsageError
from dzedge.time_code import Cells, Clockface, Reader, Showing, cells, learning_patterns
from dzedge.types import Frame
from dzedge.viewfinder import Viewfinder

STEP_NS = 25_000_000
"""How long each code is shown: longer than a refresh of the screen."""
HOLD_NS = 800_000_000
"""How long each pattern is shown while learning; what arrives in its second half is taken."""
OLDEST_NS = 2 * NS
"""No picture is older than this on arrival; far less than a cycle of the code."""
ENOUGH = 0.25
"""Of all frames that must be read, or else the figures would be those of lucky ones."""
LEAST_SIZE = 16, 8
"""Columns and rows that the code takes."""


class Screen(Protocol):
    """Shows cells at once; returns when [ns]."""

    def show(self, cells: Cells) -> int: ...


class Terminal:
    """The user's own terminal, whole, black and white. Raises UsageError where there is none, or a tiny one."""

    def __init__(self, path: str = "/dev/tty") -> None:
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_NOCTTY)
        except OSError as error:
            raise UsageError(
                f"no terminal to show the code on ({error.strerror}): run it in one, full screen, before the camera; "
                "or rehearse with the simulated camera: dzedge camera latency sim"
            ) from error
        size = os.get_terminal_size(self._fd)
        self._columns, self._rows = size.columns, size.lines
        if (size.columns, size.lines) < LEAST_SIZE or size.lines < LEAST_SIZE[1]:
            os.close(self._fd)
            raise UsageError(f"the terminal has {size.columns}x{size.lines} characters: make it larger")
        self._clock = MonotonicClock()

    def __enter__(self) -> "Terminal":
        self._write("\x1b[?1049h\x1b[?25l\x1b[2J")  # another page, no cursor
        return self

    def __exit__(self, *_: object) -> None:
        self._write("\x1b[0m\x1b[?25h\x1b[?1049l")
        os.close(self._fd)

    def show(self, cells: Cells) -> int:
        """Draw; returns when the terminal had been told."""
        side = len(cells)
        edges = [self._columns * i // side for i in range(side + 1)]
        lines = []
        for row in range(self._rows):
            whites = cells[row * side // self._rows]
            lines.append(
                f"\x1b[{row + 1};1H"
                + "".join(
                    f"\x1b[48;2;{'255;255;255' if white else '0;0;0'}m" + " " * (edges[i + 1] - edges[i])
                    for i, white in enumerate(whites)
                )
            )
        self._write("".join(lines))
        return self._clock.now_ns()

    def _write(self, text: str) -> None:
        data = text.encode()
        while data:
            data = data[os.write(self._fd, data) :]


@dataclass(frozen=True, slots=True)
class Sight:
    """A frame of the code: its bits as seen, None where it was covered; and its times [ns]."""

    bits: NDArray[np.float64] | None
    capture_ns: int
    receive_ns: int


@dataclass(frozen=True, slots=True)
class Latency:
    """What was measured. latency_ms: from the drawing of a code to the arrival of its picture, Shape (n,);
    stamp_ms: capture time of the same pictures minus the drawing, Shape (n,): what of the latency the camera's stamps
    leave out, below that of the screen; frames: that came."""

    latency_ms: NDArray[np.float64]
    stamp_ms: NDArray[np.float64]
    frames: int

    def document(self) -> dict[str, object]:
        """As JSON says it."""
        return {
            "frames": self.frames,
            "read": len(self.latency_ms),
            "glass_to_host_ms": _percentiles(self.latency_ms),
            "glass_to_stamp_ms": _percentiles(self.stamp_ms),
        }


def _percentiles(values: NDArray[np.float64]) -> dict[str, float]:
    low, middle, high = np.percentile(values, (10, 50, 90))
    return {"p10": round(low, 1), "p50": round(middle, 1), "p90": round(high, 1), "max": round(float(values.max()), 1)}


def measure(
    view: Viewfinder,
    screen: Screen,
    seconds: float,
    advance: Callable[[], object] = lambda: None,
    *,
    hold_ns: int = HOLD_NS,
    step_ns: int = STEP_NS,
) -> Latency:
    """Learn where the code is, show it for `seconds`, read it. advance: called 8 times while learning, then every
    second.

    Raises CameraError where no frames come, DzedgeError where the code is not in the picture, or hard to read.
    """
    reader = learn(view, screen, hold_ns, advance)
    steps, times, sights = 0, [], []
    clock, next_ns = view.clock, view.clock.now_ns()
    end_ns, second_ns = next_ns + int(seconds * NS), next_ns + NS
    while clock.now_ns() < end_ns:
        times.append(screen.show(cells(steps)))
        steps += 1
        if times[-1] >= second_ns:
            second_ns += NS
            advance()
        next_ns = max(next_ns + step_ns, times[-1] + step_ns // 2)
        sights += [sight(frame, reader) for frame in view.frames(next_ns)]
    return judge(sights, Showing(range(steps), times))


def sight(frame: Frame, reader: Reader) -> Sight:
    """What of a frame is needed later."""
    return Sight(reader.bits(frame.image), frame.capture_ns, frame.receive_ns)


def learn(view: Viewfinder, screen: Screen, hold_ns: int, advance: Callable[[], object]) -> Reader:
    """Show the patterns, one after the other, and learn from the pictures where the cells are. Raises CameraError,
    DzedgeError."""
    means = []
    for pattern in learning_patterns():
        shown_ns = screen.show(pattern)
        grey = [
            frame.image.mean(axis=2)
            for frame in view.frames(shown_ns + hold_ns)
            if frame.receive_ns >= shown_ns + hold_ns // 2
        ]
        if not grey:
            raise CameraError(f"no frame in {hold_ns / 2e6:.0f} ms: the camera is too slow; choose a mode of more fps")
        means.append(np.mean(grey, axis=0))
        advance()
    try:
        return Reader(np.stack(means))
    except ValueError as error:
        raise DzedgeError(f"the code was not found: {error}") from error


def judge(sights: list[Sight], showing: Showing) -> Latency:
    """Latencies of what was seen. Raises DzedgeError when too little of it can be read."""
    face = Clockface(showing)
    latency, stamp = [], []
    # Before the first code the last learning pattern was on the screen: what shows it belongs to no code.
    for seen in sights:
        if seen.bits is None:
            continue
        exposed_ns = face.exposed(seen.bits, seen.receive_ns, seen.receive_ns - OLDEST_NS)
        if exposed_ns is not None:
            latency.append((seen.receive_ns - exposed_ns) / 1e6)
            stamp.append((seen.capture_ns - exposed_ns) / 1e6)
    if len(latency) < max(3, ENOUGH * len(sights)):
        raise DzedgeError(
            f"the code could be read in {len(latency)} of {len(sights)} frames: keep camera and screen still, turn the "
            "screen brighter, or choose a mode of more fps (long exposures blur the code)"
        )
    return Latency(np.array(latency), np.array(stamp), len(sights))
