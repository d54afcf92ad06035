"""The least time and the memory of a model on a board, by precision (facts/dreamzero 7.3)."""

from dataclasses import dataclass

from dzedge.export.boards import GB, PRECISIONS, Board
from dzedge.export.flops import Chunk
from dzedge.export.workload import Workload

RUNTIME = 0.5 * GB
"""Set aside for ONNX Runtime, its provider's libraries and activations; an estimate."""


@dataclass(frozen=True, slots=True)
class Fit:
    """One precision. memory: resident, without the language model [B]; least_s: a chunk's lower bound; server_s: the
    same for the original server's request, its language model left out; bound: what most of the trunk's time waits
    for, "memory" or "math"."""

    precision: str
    memory: float
    fits: bool
    least_s: float
    server_s: float
    bound: str


def fits(device: Board, model: Workload) -> tuple[Fit, ...]:
    """Every precision that the board has units for."""
    return tuple(_fit(device, model, name) for name in device.precisions)


def _fit(device: Board, model: Workload, precision: str) -> Fit:
    memory = resident(model, precision)
    math_s, memory_s, least_s = _times(device, model.chunk, precision)
    server_s = _times(device, model.server, precision)[2]
    return Fit(
        precision, memory, memory <= device.memory, least_s, server_s, "memory" if memory_s > math_s else "math"
    )


def resident(model: Workload, precision: str, prompt: bool = True) -> float:
    """Bytes in memory: trunk, encoder in float16, kept rows. prompt: with the weights that make a prompt's rows."""
    held = PRECISIONS[precision]
    trunk = (model.parameters - (not prompt) * model.prompt) * held.bits / 8
    return trunk + 2 * model.eye.weights + held.rows * (model.window + model.context) + RUNTIME


def least(device: Board, chunk: Chunk, precision: str) -> float:
    """A chunk's lower bound [s]."""
    return _times(device, chunk, precision)[2]


def _times(device: Board, chunk: Chunk, precision: str) -> tuple[float, float, float]:
    """Trunk's math, trunk's memory traffic, and the sum over passes of the longer one with the encoder's math [s]."""
    held = PRECISIONS[precision]
    math_s = memory_s = whole_s = 0.0
    for name, (part, count) in chunk.items():
        if name == "text":
            continue
        if name == "frame_encoder":
            whole_s += count * part.flops / device.peaks["fp16"]
            continue
        calculating = part.flops / device.peaks[held.arithmetic]
        reading = (part.weights * held.bits / 8 + part.rows * held.rows) / device.bandwidth
        math_s, memory_s = math_s + count * calculating, memory_s + count * reading
        whole_s += count * max(calculating, reading)
    return math_s, memory_s, whole_s
