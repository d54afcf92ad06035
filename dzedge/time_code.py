"""A code that shows the time on a screen, and what reads it off a camera's pictures.

Sixteen cells, black or white, four by four. Cells 0 to 7 hold the bits of a step counter in Gray code (its neighbours
differ in one bit, so that a picture exposed across a change is still near the truth), cells 15 to 8 their complements:
half of the screen is always white, which keeps automatic exposure still, and a bit is read off two cells.

Where the cells lie in the picture is learned, not searched for: eight patterns tell each cell's number bit by bit, and
every pixel whose brightness follows them knows its cell. Any angle, size or mirror image will do.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SIDE = 4
CELLS = SIDE * SIDE
BITS = CELLS // 2
STEPS = 1 << BITS
"""After so many steps the code begins anew."""
GAMMA = 2.2
"""Of screens and cameras: brightness is averaged in linear light, as an exposure does."""
LEAST_CONTRAST = 16.0
"""Of a pixel that shows a cell, between its patterns [8-bit counts]."""
SHARE = 0.6
"""Of the strongest contrast in the picture that such a pixel must have: reflections and borders have less."""
LEAST_PIXELS = 6
"""Of each cell."""
LEAST_SUM = 0.3
"""Of a bit's two cells; less means that something stands in the light."""
WORST_FIT = 0.35
"""Root mean square of what was read minus what fits best; bits are -1 to 1."""
MILLISECOND = 1_000_000

Cells = NDArray[np.bool_]
"""Shape (4, 4): which cells are white."""


def cells(step: int) -> Cells:
    """The code of `step`, of which only the rest by 256 counts."""
    step %= STEPS
    gray = step ^ step >> 1
    bits = np.array([gray >> k & 1 for k in range(BITS)], dtype=bool)
    return np.concatenate([bits, ~bits[::-1]]).reshape(SIDE, SIDE)


def learning_patterns() -> list[Cells]:
    """Eight patterns, each followed by its complement, from which a Reader learns where the cells are."""
    number = np.arange(CELLS)
    shown = []
    for k in range(4):
        pattern = (number >> k & 1).astype(bool).reshape(SIDE, SIDE)
        shown += [pattern, ~pattern]
    return shown


def light(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Linear light, 0 to 1, of a picture's grey values. pixels: Shape (h, w, 3) or (h, w)."""
    grey = pixels.astype(np.float64)
    if grey.ndim == 3:
        grey = grey.mean(axis=2)
    linear: NDArray[np.float64] = (grey / 255.0) ** GAMMA
    return linear


class Reader:
    """Knows which pixels show which cell. Raises ValueError, in words for the user, when they cannot be told.

    pictures: of each of `learning_patterns()`, Shape (8, h, w), mean grey values, 0 to 255.
    """

    def __init__(self, pictures: NDArray[np.float64]) -> None:
        contrast = pictures[0::2] - pictures[1::2]
        weakest = np.abs(contrast).min(axis=0)
        wanted = max(LEAST_CONTRAST, SHARE * float(np.percentile(weakest, 99.5)))
        seen = weakest >= wanted
        number = sum((contrast[k] > 0).astype(int) << k for k in range(4))
        self.pixels = [np.flatnonzero(seen & (number == cell)) for cell in range(CELLS)]
        few = [cell for cell, pixels in enumerate(self.pixels) if len(pixels) < LEAST_PIXELS]
        if few:
            raise ValueError(
                f"{CELLS - len(few)} of {CELLS} cells of the code are in the picture (strongest contrast "
                f"{weakest.max():.0f} of 255, needed {LEAST_CONTRAST:.0f}); let the screen fill a third of the picture "
                "or more, turn it brighter and the room darker, keep camera and screen still"
            )
        bright = (pictures / 255.0) ** GAMMA
        levels = bright.reshape(len(pictures), -1)
        self.black = np.array([levels[:, p].min(axis=0).mean() for p in self.pixels])
        self.white = np.array([levels[:, p].max(axis=0).mean() for p in self.pixels])

    def bits(self, image: NDArray[np.uint8]) -> NDArray[np.float64] | None:
        """What the code's bits look like, -1 to 1, between where the exposure spans a change. Shape (8,); None when it
        is covered. image: Shape (h, w, 3)."""
        linear = light(image).reshape(-1)
        seen = np.array([linear[pixels].mean() for pixels in self.pixels])
        share = (seen - self.black) / (self.white - self.black)
        first, second = share[:BITS], share[: BITS - 1 : -1]
        total = first + second
        if (total < LEAST_SUM).any():
            return None
        return np.clip((first - second) / total, -1.0, 1.0)


@dataclass(frozen=True, slots=True)
class Showing:
    """What a screen showed when. steps: in order; times_ns: when each appeared, Shape (n,)."""

    steps: Sequence[int]
    times_ns: Sequence[int]


class Clockface:
    """Tells from the bits of a picture when it was exposed.

    For every millisecond of the showing and some lengths of exposure it knows what the bits would look like: the mean
    of the codes shown meanwhile. exposures_ms: those lengths.
    """

    def __init__(self, showing: Showing, exposures_ms: Sequence[int] = (1, 8, 16, 32, 64)) -> None:
        times = np.asarray(showing.times_ns, dtype=np.int64)
        self.start_ns = int(times[0])
        count = int((times[-1] - times[0]) // MILLISECOND)
        if count < 1:
            raise ValueError("the code was shown for less than a millisecond; show it longer")
        shown = np.searchsorted(times, self.start_ns + np.arange(count) * MILLISECOND, side="right") - 1
        codes = np.array([cells(step).reshape(-1)[:BITS] for step in showing.steps]) * 2.0 - 1.0
        summed = np.concatenate([np.zeros((1, BITS)), np.cumsum(codes[shown], axis=0)])
        middles, looks = [], []
        for length in exposures_ms:
            if length > count:
                continue
            ends = np.arange(length, count + 1)
            looks.append((summed[ends] - summed[ends - length]) / length)
            middles.append(ends - length / 2.0)
        self._looks = np.concatenate(looks)
        self._middles_ns = self.start_ns + np.concatenate(middles) * MILLISECOND

    def exposed(self, bits: NDArray[np.float64], latest_ns: int, oldest_ns: int) -> int | None:
        """The middle of the exposure, between `oldest_ns` and `latest_ns`; None when nothing shown then fits. bits:
        Shape (8,). Less than the whole cycle of the code should lie between the two."""
        possible = np.flatnonzero((self._middles_ns >= oldest_ns) & (self._middles_ns <= latest_ns))
        if not len(possible):
            return None
        misfit = np.sqrt(((self._looks[possible] - bits) ** 2).mean(axis=1))
        best = float(misfit.min())
        if best > WORST_FIT:
            return None
        # A short exposure looks the same for the whole step: its middle is the fairest guess.
        alike = self._middles_ns[possible[misfit <= best + 1e-3]]
        return int((alike.min() + alike.max()) / 2)
