"""What a chunk costs, counted from shapes alone: FLOPs, weights and kept rows of every graph.

A model is a set of parts, a chunk is how often each of them runs. `flops_wam.py` and `flops_wan.py` hold the formulas
of the two layouts. One multiply-add is two FLOPs; matrices, convolutions and attention count, the rest does not:
torch's `FlopCounterMode` counts the same, and tests hold the formulas against it.
"""

from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True, slots=True)
class Part:
    """One graph. flops: of one run; weights: numbers that it holds; rows: kept keys and values that it reads."""

    flops: int = 0
    weights: int = 0
    rows: int = 0

    def __add__(self, other: "Part") -> "Part":
        return Part(self.flops + other.flops, self.weights + other.weights, self.rows + other.rows)

    def __mul__(self, count: int) -> "Part":
        """`count` of the same shape, each with weights of its own."""
        return Part(self.flops * count, self.weights * count, self.rows * count)


class Run(NamedTuple):
    """How often one chunk runs a part."""

    part: Part
    times: int


Chunk = dict[str, Run]
"""How often a chunk runs each part, by the graph's name."""


def flops(chunk: Chunk) -> int:
    """FLOPs of a whole chunk."""
    return sum(part.flops * count for part, count in chunk.values())


def total(*parts: Part) -> Part:
    """Parts one after the other."""
    return sum(parts, Part())


def linear(rows: int, inputs: int, outputs: int) -> Part:
    """A matrix with a bias on `rows` rows."""
    return Part(2 * rows * inputs * outputs, inputs * outputs + outputs)


def weights(count: int) -> Part:
    """Parameters that no matrix multiplies: norms, tables, names."""
    return Part(0, count)


def attention(queries: int, keys: int, width: int) -> Part:
    """Scores and the sum that they weigh, over all heads."""
    return Part(4 * queries * keys * width)


def convolution(pixels: int, inputs: int, outputs: int, size: int) -> Part:
    """A square kernel at `pixels` places; a batch norm after it is folded in, so there always is a bias."""
    return Part(2 * pixels * inputs * outputs * size**2, inputs * outputs * size**2 + outputs)


def feed_forward(rows: int, inputs: int, hidden: int, outputs: int) -> Part:
    """Two matrices with biases."""
    return linear(rows, inputs, hidden) + linear(rows, hidden, outputs)
