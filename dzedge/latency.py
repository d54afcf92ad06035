"""How long a policy takes from a frame to its chunk, as an empirical distribution that lockstep draws from."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from dzedge import strict
from dzedge.errors import UsageError

POINTS = 101
"""Quantiles kept: 0, 1, ... 100 %."""
DECISIONS = 200
"""How many a table is measured over, unless told otherwise."""
Milliseconds = Annotated[float, Meta(ge=0, le=60_000, description="[ms]")]


class Latency(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Time from a frame's arrival to its chunk: encoding, building the observation, the policy itself.

    quantiles_ms: Shape (101,), at 0, 1, ... 100 %, linear between them; decisions: how many were measured, 0: none
    was, the table is made up; policy: whose.
    """

    policy: str
    decisions: Annotated[int, Meta(ge=0)]
    quantiles_ms: Annotated[tuple[Milliseconds, ...], Meta(min_length=POINTS, max_length=POINTS)]

    def __post_init__(self) -> None:
        if any(b < a for a, b in zip(self.quantiles_ms, self.quantiles_ms[1:], strict=False)):
            raise ValueError("quantiles_ms must not fall; measure it again")

    @classmethod
    def of(cls, samples_ms: Sequence[float] | NDArray[np.float64], policy: str, decisions: int) -> "Latency":
        """The distribution of these samples, to 0.1 us."""
        rows = np.quantile(np.asarray(samples_ms, np.float64), np.linspace(0.0, 1.0, POINTS))
        return cls(policy=policy, decisions=decisions, quantiles_ms=tuple(round(float(row), 4) for row in rows))

    def draw_ns(self, random: np.random.Generator) -> int:
        """One latency [ns]."""
        place = random.random() * (POINTS - 1)
        below = int(place)
        low, high = self.quantiles_ms[below], self.quantiles_ms[below + 1]
        return int((low + (place - below) * (high - low)) * 1e6)

    def document(self) -> dict[str, Any]:
        """As plain values; what `read` takes back."""
        return {"policy": self.policy, "decisions": self.decisions, "quantiles_ms": list(self.quantiles_ms)}


DEFAULT = Latency.of(
    np.repeat([3.0, 3.5, 4.0, 4.5, 5.0, 6.0, 8.0, 12.0, 20.0, 35.0], [30, 50, 44, 30, 20, 12, 6, 4, 3, 1]), "default", 0
)
"""What `dzedge run --lockstep` draws from, so that it repeats on every machine: made up, near a small model's on a
laptop, with the long tail of a busy board (one in 200 takes 35 ms)."""


def read(path: Path, policy: str) -> Latency:
    """The table in a JSON file: bare, or that of `policy` in a document of `dzedge evaluate`. Raises UsageError."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"--latency {path}: cannot be read: {error}; give a document of dzedge evaluate") from error
    if isinstance(document, dict) and isinstance(document.get("results"), list):
        entries = [entry for entry in document["results"] if isinstance(entry, dict)]
        document = next((entry.get("latency") for entry in entries if entry.get("policy") == policy), None)
        if document is None:
            raise UsageError(f"--latency {path}: has no latency of {policy}; measure it: leave --latency out")
    return strict.convert(document, Latency, f"--latency {path}", UsageError)
