"""A screen that shows the time code, and a camera that films it askew: what glass-to-host latency is rehearsed on.

The true delay is known, so that what is measured can be held against it. Light is added up over the exposure, spread by
the lens, seen in perspective among other things, and drowned in sensor noise.
"""

import threading

import numpy as np
from numpy.typing import NDArray

from dzedge.clock import NS, MonotonicClock
from dzedge.kernels.mailbox import FrameRing
from dzedge.time_code import GAMMA, SIDE, Cells

CORNERS = ((0.16, 0.12), (0.86, 0.20), (0.90, 0.84), (0.10, 0.78))
"""Of the screen in the picture, from the top left on, as shares of its width and height."""
BLACK, WHITE, ROOM = 0.03, 0.75, 0.12
"""Linear light of a black and a white cell, and of what is around the screen."""
NOISE = 4.0
"""Standard deviation of the sensor noise [8-bit counts]."""
BLUR = 2
"""Passes of a lens that spreads each pixel over its neighbours."""


def screen_map(width: int, height: int) -> NDArray[np.int64]:
    """Which cell each pixel of the picture shows; -1: none. Shape (height, width)."""
    cells = np.full((height, width), -1, np.int64)
    matrix = _homography([(x * width, y * height) for x, y in CORNERS])
    y, x = np.mgrid[0:height, 0:width] + 0.5
    u, v, w = np.tensordot(np.linalg.inv(matrix), np.stack([x, y, np.ones_like(x)]), axes=1)
    inside = (u / w >= 0) & (u / w < 1) & (v / w >= 0) & (v / w < 1)
    number = np.floor(SIDE * v / w).astype(int) * SIDE + np.floor(SIDE * u / w).astype(int)
    cells[inside] = number[inside]
    return cells


def _homography(corners: list[tuple[float, float]]) -> NDArray[np.float64]:
    """The map of the unit square onto four corners. Shape (3, 3)."""
    rows, values = [], []
    for (u, v), (x, y) in zip(((0, 0), (1, 0), (1, 1), (0, 1)), corners, strict=True):
        rows += [[u, v, 1, 0, 0, 0, -u * x, -v * x], [0, 0, 0, u, v, 1, -u * y, -v * y]]
        values += [x, y]
    return np.append(np.linalg.solve(np.array(rows, float), np.array(values)), 1.0).reshape(3, 3)


class FilmedScreen:
    """The screen and the camera before it. Frames appear in `ring` `delay_ns` after the middle of their exposure.

    fps: of the camera [Hz]; exposure_ns: of each picture.
    """

    def __init__(
        self,
        ring: FrameRing,
        *,
        fps: int = 15,
        delay_ns: int = 60_000_000,
        exposure_ns: int = 10_000_000,
        noise: float = NOISE,
        seed: int = 0,
        clock: MonotonicClock | None = None,
    ) -> None:
        self._ring, self._clock = ring, clock or MonotonicClock()
        self._period_ns, self.delay_ns, self._exposure_ns = NS // fps, delay_ns, exposure_ns
        self._map = screen_map(ring.width, ring.height)
        self._noise, self._rng = noise, np.random.default_rng(seed)
        self._lock = threading.Lock()
        self._shown: list[tuple[int, Cells]] = [(self._clock.now_ns(), np.zeros((SIDE, SIDE), bool))]
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._film, name="filmed-screen", daemon=True)

    def __enter__(self) -> "FilmedScreen":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()

    def show(self, cells: Cells) -> int:
        """Show `cells` from now on; returns when that was [ns]."""
        now_ns = self._clock.now_ns()
        with self._lock:
            self._shown = [*self._shown[-255:], (now_ns, cells.copy())]
        return now_ns

    def light(self, start_ns: int, end_ns: int) -> NDArray[np.float64]:
        """Share of white that each cell had from start to end. Shape (4, 4)."""
        with self._lock:
            shown = list(self._shown)
        total = np.zeros((SIDE, SIDE))
        ends = [*(time_ns for time_ns, _ in shown[1:]), end_ns]
        for (begin_ns, cells), until_ns in zip(shown, ends, strict=True):
            total += cells * max(0, min(until_ns, end_ns) - max(begin_ns, start_ns))
        return total / (end_ns - start_ns)

    def picture(self, start_ns: int, end_ns: int) -> NDArray[np.uint8]:
        """What the camera makes of an exposure. Shape (height, width, 3)."""
        share = np.append(BLACK + (WHITE - BLACK) * self.light(start_ns, end_ns).reshape(-1), ROOM)
        linear = share[self._map]
        for _ in range(BLUR):
            padded = np.pad(linear, 1, mode="edge")
            height, width = linear.shape
            linear = np.mean([padded[i : i + height, j : j + width] for i in range(3) for j in range(3)], axis=0)
        counts = 255.0 * linear ** (1.0 / GAMMA)
        noisy = counts[..., None] + self._rng.normal(0.0, self._noise, (*counts.shape, 3))
        pixels: NDArray[np.uint8] = np.clip(noisy, 0.0, 255.0).astype(np.uint8)
        return pixels

    def _film(self) -> None:
        number, start_ns = 0, self._clock.now_ns()
        while not self._stopping.is_set():
            end_ns = start_ns + self._exposure_ns
            self._clock.sleep_until_ns(end_ns)
            image = self.picture(start_ns, end_ns)
            middle_ns = (start_ns + end_ns) // 2
            self._clock.sleep_until_ns(middle_ns + self.delay_ns)
            number += 1
            self._ring.put(image, number, middle_ns, self._clock.now_ns())
            start_ns += self._period_ns * max(1, -(-(self._clock.now_ns() - start_ns) // self._period_ns))
