"""Low-rank adapters: W + B A alpha / r, as the published server merges them before it runs.

Source: facts/dreamzero 4, and Hu et al. 2021 (arXiv 2106.09685), section 4.1. A: Shape (r, in); B: Shape (out, r).
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from dzedge.errors import UsageError
from dzedge.export.shards import Tensors

ADAPTER = re.compile(r"^(?P<layer>.+)\.lora_(?P<side>[AB])(\.default)?\.weight$")


@dataclass(frozen=True, slots=True)
class Merged:
    """Weights with their adapters added when they are read, in float32. adapters: of a weight's name, A and B."""

    weights: Tensors
    source: Tensors
    adapters: dict[str, tuple[str, str]]
    alpha: float

    def names(self) -> Iterable[str]:
        return self.weights.names()

    def shape(self, name: str) -> tuple[int, ...]:
        return self.weights.shape(name)

    def read(self, name: str) -> Tensor:
        if name not in self.adapters:
            return self.weights.read(name)
        low, high = (self.source.read(side).to(torch.float32) for side in self.adapters[name])
        return self.weights.read(name).to(torch.float32) + high @ low * (self.alpha / low.shape[0])


def split(names: Iterable[str]) -> tuple[list[str], dict[str, tuple[str, str]]]:
    """Names without adapters, and of each adapted weight the names of A and B. Raises UsageError for half a pair."""
    plain: list[str] = []
    sides: dict[str, dict[str, str]] = {}
    for name in names:
        if match := ADAPTER.match(name):
            sides.setdefault(f"{match['layer']}.weight", {})[match["side"]] = name
        else:
            plain.append(name)
    halves = sorted(weight for weight, found in sides.items() if len(found) < 2)
    if halves:
        raise UsageError(f"lora: {', '.join(halves)}: A without B, or B without A; the file is not whole")
    return plain, {weight: (found["A"], found["B"]) for weight, found in sides.items()}


def check(weights: Tensors, source: Tensors, adapters: dict[str, tuple[str, str]], rank: int) -> None:
    """Raises UsageError where an adapter has no weight, or does not fit it, or is not of the configured rank."""
    known = set(weights.names())
    if lost := sorted(set(adapters) - known):
        raise UsageError(f"lora: {', '.join(lost)}: adapters without the weight they change; name the base model too")
    for name, pair in adapters.items():
        (low, inputs), (outputs, high) = (source.shape(side) for side in pair)
        if (outputs, inputs) != weights.shape(name) or not low == high == rank:
            raise UsageError(
                f"lora: {name}: A ({low}, {inputs}) and B ({outputs}, {high}) on {weights.shape(name)}, "
                f"expected rank {rank}; the adapter is of another model"
            )
