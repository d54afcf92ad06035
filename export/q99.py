"""Ranges: the published normalisation by quantiles, 2 (x - q01) / (q99 - q01) - 1, clamped to [-1, 1].

Source: facts/dreamzero 1.4, the published `Normalizer` in mode q99, commit ab790c1. Kept of it, because a checkpoint
was trained that way: quantiles are rounded to float32 before they are compared; a value whose quantiles are equal
enters as it is (clamped) and leaves as q01, so it cannot be restored; leaving, nothing is clamped.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dzedge.errors import UsageError

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Range:
    """Quantiles of J values. names: one each; low, high: q01 and q99, Shape (J,), in the units of the data;
    width: how many values the model takes, the rest of them 0."""

    names: tuple[str, ...]
    low: Floats
    high: Floats
    width: int

    @classmethod
    def of(cls, names: Sequence[str], low: Sequence[float], high: Sequence[float], width: int) -> "Range":
        """Raises UsageError: not one quantile a name, more values than the model takes, not finite, or crossed."""
        lows, highs = (np.asarray(values, np.float32).astype(np.float64) for values in (low, high))
        if not lows.shape == highs.shape == (len(names),):
            raise UsageError(f"q99: {len(names)} values, {lows.shape} q01, {highs.shape} q99; one each is wanted")
        if len(names) > width:
            raise UsageError(f"q99: {len(names)} values, allowed 1..{width}; the model is narrower than its data")
        for name, first, last in zip(names, lows, highs, strict=True):
            if not (np.isfinite(first) and np.isfinite(last) and first <= last):
                raise UsageError(
                    f"q99: {name}: q01 {first:g}, q99 {last:g}; allowed: finite, q01 <= q99; check metadata.json"
                )
        return cls(tuple(names), lows, highs, width)

    @property
    def constant(self) -> tuple[str, ...]:
        """Names of the values that cannot be restored: their quantiles are equal."""
        return tuple(name for name, same in zip(self.names, self._same, strict=True) if same)

    @property
    def _same(self) -> NDArray[np.bool_]:
        same: NDArray[np.bool_] = self.low == self.high
        return same

    def normalise(self, values: NDArray[np.floating]) -> Floats:
        """Shape (..., J) in the units of the data -> Shape (..., width) in [-1, 1]."""
        self._expect(values.shape, len(self.names))
        span = np.where(self._same, 1.0, self.high - self.low)
        scaled = np.where(self._same, values, 2.0 * ((values - self.low) / span) - 1.0)
        padding = [(0, 0)] * (values.ndim - 1) + [(0, self.width - len(self.names))]
        return np.pad(np.clip(scaled, -1.0, 1.0), padding)

    def restore(self, values: NDArray[np.floating]) -> Floats:
        """Shape (..., width) -> Shape (..., J) in the units of the data. Not clamped: a model may reach further."""
        self._expect(values.shape, self.width)
        kept = values[..., : len(self.names)].astype(np.float64)
        restored: Floats = (kept + 1.0) / 2.0 * (self.high - self.low) + self.low
        return restored

    def _expect(self, shape: tuple[int, ...], width: int) -> None:
        if not shape or shape[-1] != width:
            raise UsageError(f"q99: shape {shape}, expected (..., {width})")
