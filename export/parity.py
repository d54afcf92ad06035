"""Graph by graph: does ONNX Runtime say what torch says?"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch

from dzedge.errors import DzedgeError
from dzedge.export.model.graphs import Graph
from dzedge.export.onnx import arrays

TOLERANCE = 1e-4
"""Largest allowed absolute difference of float32 outputs; measured differences are near 1e-6."""


class ParityError(DzedgeError):
    """An exported graph that does not compute what the torch module computes."""


@dataclass(frozen=True, slots=True)
class Parity:
    """graph, output: names; difference: largest absolute difference; scale: largest absolute torch value."""

    graph: str
    output: str
    difference: float
    scale: float


def session(path: Path, qdq_off: bool = False) -> ort.InferenceSession:
    """A one-thread CPU session that does not spin. qdq_off runs a quantized file's arithmetic in float:
    the numerics of the boards' int8, which plain x86 int8 without VNNI saturates."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if qdq_off:
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def compare(graph: Graph, path: Path) -> list[Parity]:
    """Runs the module and the file on the graph's example inputs."""
    with torch.no_grad():
        wanted = graph.module.eval()(*graph.inputs.values())
    wanted = wanted if isinstance(wanted, tuple) else (wanted,)
    got = session(path).run(list(graph.outputs), arrays(graph.inputs))
    found = []
    for name, ours, theirs in zip(graph.outputs, got, wanted, strict=True):
        reference = theirs.numpy()
        if ours.shape != reference.shape:
            raise ParityError(f"{graph.name}.{name} has shape {ours.shape}, expected {reference.shape}: export again")
        found.append(Parity(graph.name, name, float(np.abs(ours - reference).max()), float(np.abs(reference).max())))
    return found


def check(graphs: list[Graph], files: dict[str, Path], tolerance: float = TOLERANCE) -> list[Parity]:
    """Every output of every graph. Raises ParityError where one differs by more than `tolerance`."""
    found = [parity for graph in graphs for parity in compare(graph, files[graph.name])]
    for parity in found:
        if not parity.difference <= tolerance:
            raise ParityError(
                f"{parity.graph}.{parity.output} differs by {parity.difference:.3g} from torch, "
                f"allowed 0..{tolerance:g}: "
                "do not ship this export"
            )
    return found
