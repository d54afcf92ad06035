"""Statistics of a dataset's features, under lerobot's names and in its shapes.

lerobot averages the quantiles of episodes; here they are quantiles of all rows, exact, which is what a
normalisation by q01 and q99 means.
"""

import numpy as np
from numpy.typing import NDArray

Stats = dict[str, NDArray[np.generic]]

QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}
SAMPLED_FRAMES = 16
"""Frames of an episode that enter the statistics of its pixels, evenly spread; of those every second row and column."""


def of_rows(values: NDArray[np.generic]) -> Stats:
    """Statistics over the rows of `values`, shape (n, ...), in their units: `min max mean std q01 q10 q50 q90 q99` of
    shape (...), (1,) where rows are scalars; `count` of shape (1,). The standard deviation is the population's.
    """
    rows = np.asarray(values, np.float64)
    if rows.ndim == 1:
        rows = rows[:, None]
    stats: Stats = {"min": rows.min(0), "max": rows.max(0), "mean": rows.mean(0), "std": rows.std(0)}
    stats["count"] = np.array([len(rows)])
    return stats | dict(zip(QUANTILES, np.quantile(rows, list(QUANTILES.values()), axis=0), strict=True))


def histogram(images: NDArray[np.uint8]) -> NDArray[np.int64]:
    """How often each level occurs. `images`: (n, h, w, 3) -> (3, 256), over a sample of the pixels."""
    chosen = np.linspace(0, len(images) - 1, min(len(images), SAMPLED_FRAMES)).round().astype(int)
    pixels = images[chosen, ::2, ::2].reshape(-1, 3)
    return np.stack([np.bincount(pixels[:, channel], minlength=256) for channel in range(3)])


def of_pixels(levels: NDArray[np.int64], frames: int) -> Stats:
    """As `of_rows`, of pixels in [0, 1] by channel, shapes (3, 1, 1). `levels`: `histogram` of `frames`."""
    total = levels.sum(axis=1)
    shades = np.arange(256) / 255
    mean = levels @ shades / total
    variance = levels @ shades**2 / total - mean**2
    below = levels.cumsum(axis=1)
    stats: Stats = {
        "min": shades[(levels > 0).argmax(axis=1)],
        "max": shades[255 - (levels[:, ::-1] > 0).argmax(axis=1)],
        "mean": mean,
        "std": np.sqrt(np.maximum(variance, 0)),
        **{name: shades[(below >= (q * total)[:, None]).argmax(axis=1)] for name, q in QUANTILES.items()},
    }
    return {name: value.reshape(3, 1, 1) for name, value in stats.items()} | {"count": np.array([frames])}
