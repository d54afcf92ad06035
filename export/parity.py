"""Graph by graph: does ONNX Runtime say what torch says?

Float32 files are compared on seeded inputs, at the extremes too: both ends of time, an empty window, nothing and
everything committed. A quantized file knows only what it was calibrated on, so it is compared on recorded inputs.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from torch import Tensor

from dzedge.errors import DzedgeError
from dzedge.export.model.graphs import Graph

TOLERANCE = 1e-5
"""Largest allowed difference of float32 outputs, by the largest |torch| of that output; measured: near 1e-6."""

Feed = Mapping[str, NDArray[Any]]


class ParityError(DzedgeError):
    """An exported graph that does not compute what the torch module computes."""


@dataclass(frozen=True, slots=True)
class Parity:
    """graph, output: names; difference: largest absolute difference; scale: largest absolute torch value."""

    graph: str
    output: str
    difference: float
    scale: float

    @property
    def relative(self) -> float:
        """difference / scale: 0 where both are 0, infinite where only the scale is."""
        if self.scale == 0.0:
            return 0.0 if self.difference == 0.0 else math.inf
        return self.difference / self.scale


def session(path: Path, qdq_off: bool = False) -> ort.InferenceSession:
    """A one-thread CPU session that does not spin. qdq_off runs a quantized file's arithmetic in float:
    the numerics of the boards' int8, which plain x86 int8 without VNNI saturates."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if qdq_off:
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


EXTREMES: dict[str, tuple[float, ...]] = {
    "t_video": (0.0, 1.0), "t_action": (0.0, 1.0), "t": (0.0, 1.0),
    "valid": (0.0,), "has_before": (0.0,), "prefix_mask": (0.0, 1.0), "age": (0.0,),
    "token": (0, 256), "position": (0,), "words": (0,), "given": (0.0, 1.0),
}  # fmt: skip
"""Constants that an input of this name may as well be filled with: legal, and where exports break."""
HIDDEN = -1e4
"""What an additive mask adds to rows that may not be seen."""


def variations(graph: Graph) -> list[dict[str, Tensor]]:
    """The graph's example inputs, and the same with one of them at an extreme."""
    found = [dict(graph.inputs)]
    for name, value in graph.inputs.items():
        found += [{**graph.inputs, name: torch.full_like(value, extreme)} for extreme in EXTREMES.get(name, ())]
        if name == "mask":  # additive, of the window's rows and, last, of language: only language is left
            hidden = torch.full_like(value, HIDDEN)
            hidden[..., -1] = 0.0
            found.append({**graph.inputs, name: hidden})
    return found


def compare(graph: Graph, path: Path, feeds: Iterable[Feed] = (), qdq_off: bool = False) -> list[Parity]:
    """Runs module and file on recorded `feeds`, or where there are none on `variations`; the worst of each output.

    Raises ParityError for an output of another shape.
    """
    made = [{name: torch.from_numpy(np.array(value)) for name, value in feed.items()} for feed in feeds]
    running, module = session(path, qdq_off), graph.module.eval()
    found: list[Parity] = []
    for inputs in made or variations(graph):
        with torch.no_grad():
            answer = module(*(inputs[name] for name in graph.inputs))
        wanted = answer if isinstance(answer, tuple) else (answer,)
        got = running.run(list(graph.outputs), {name: value.numpy() for name, value in inputs.items()})
        found += [_measured(graph.name, *row) for row in zip(graph.outputs, got, wanted, strict=True)]
    return worst(found)


def _measured(graph: str, output: str, ours: NDArray[Any], answer: Tensor) -> Parity:
    torchs = answer.numpy()
    if ours.shape != torchs.shape:
        raise ParityError(f"{graph}.{output} has shape {ours.shape}, expected {torchs.shape}: export again")
    return Parity(graph, output, float(np.abs(ours - torchs).max()), float(np.abs(torchs).max()))


def worst(found: Iterable[Parity]) -> list[Parity]:
    """Of several findings of an output, the one with the largest relative difference; a nan is the worst."""
    kept: dict[tuple[str, str], Parity] = {}
    for parity in found:
        held = kept.setdefault((parity.graph, parity.output), parity)
        if not math.isnan(held.relative) and not parity.relative <= held.relative:
            kept[parity.graph, parity.output] = parity
    return list(kept.values())


def check(graphs: Sequence[Graph], files: Mapping[str, Path], tolerance: float = TOLERANCE) -> list[Parity]:
    """Every output of every graph. Raises ParityError where one differs by more than `tolerance`, relative to it."""
    found = [parity for graph in graphs for parity in compare(graph, files[graph.name])]
    require(found, tolerance)
    return found


def require(found: Iterable[Parity], tolerance: float) -> None:
    """Raises ParityError naming every output that differs by more than `tolerance`, relative to its scale."""
    broken = [
        f"{p.graph}.{p.output} differs by {p.difference:.3g} from torch, {p.relative:.3g} of its {p.scale:.3g}, "
        f"allowed 0..{tolerance:g}: do not ship this export"
        for p in found
        if not p.relative <= tolerance
    ]
    if broken:
        raise ParityError("\n".join(broken))
