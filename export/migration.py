"""Outlier channels, moved out of activations into the weights that follow them, exactly.

What feeds a matrix behind an AdaLN is a = norm(x) * (1 + scale) + shift. One scale quantizes the whole tensor, so a
channel 25 times as large as the others leaves them a few steps of the 255 (28 % of the result, measured). With a
factor s for each channel,

    a @ W  =  (norm(x) / s * (1 + scale) + shift / s) @ (s * W)

and a / s has no such channel, while W has a scale of its own for every output column and takes the factor with little
loss (s = max|a|^strength / max|W|^(1 - strength): SmoothQuant, Xiao et al. 2023, equation 4).

1 / s becomes the gain that the norm has anyway (ones, as exported) and one product with a vector, on the shift. The
modulation, which every layer reads, stays as it is, so no other graph needs to know. What lies behind no norm is left
alone: there the factors would cost products of whole tensors.
"""

from collections import Counter, defaultdict
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from dzedge.errors import UsageError
from dzedge.export.calibration import Feed, inside
from dzedge.export.layers import Layer, constants, drop_unused, layers, replace_nodes

Floats = NDArray[np.float64]
STRENGTH = 0.75
"""Share of an activation's spread that its weights take over; with 0.5 a channel 25 times as large is still 5 times."""
LEAST = 0.05
"""Of the largest channel: one that was silent while it was recorded must not fill the range when it speaks."""
NORM = "LayerNormalization"


@dataclass(frozen=True, slots=True)
class Entrance:
    """What wide matrices, and nothing else, read behind a norm. activation: its name; norm: the LayerNormalization;
    shift: the Add that makes it of the norm's output and which input of that is the shift, none where there is none."""

    activation: str
    matrices: tuple[Layer, ...]
    norm: str
    shift: tuple[str, int] | None


def entrances(model: onnx.ModelProto) -> list[Entrance]:
    """All of a graph, in its order."""
    made = {name: node for node in model.graph.node for name in node.output}
    nodes = {node.name: node for node in model.graph.node}
    readers: Counter[str] = Counter(name for node in model.graph.node for name in node.input)
    readers.update(value.name for value in model.graph.output)
    read: dict[str, list[Layer]] = defaultdict(list)
    for layer in layers(model):
        if layer.op == "MatMul" and layer.wide:
            read[nodes[layer.node].input[0]].append(layer)
    found = [
        _entrance(activation, tuple(matrices), made, readers, constants(model).keys())
        for activation, matrices in read.items()
        if len(matrices) == readers[activation]
    ]
    return [entrance for entrance in found if entrance is not None]


def _entrance(
    activation: str, matrices: tuple[Layer, ...], made: Mapping[str, onnx.NodeProto], readers: Mapping[str, int],
    known: Container[str],
) -> Entrance | None:  # fmt: skip
    """Walk back from what matrices read: Add (shift), Mul (scale), LayerNormalization without a bias."""
    node, shift = made.get(activation), None
    for op in ("Add", "Mul"):
        if node is None or node.op_type != op:
            continue
        sides = [made.get(name) for name in node.input]
        behind = [i for i, side in enumerate(sides) if side is not None and _from_norm(side, made, op == "Add")]
        if len(behind) != 1 or readers[node.input[behind[0]]] != 1:
            return None
        shift = (node.name, 1 - behind[0]) if op == "Add" else shift
        node = sides[behind[0]]
    if node is None or node.op_type != NORM or len(node.input) != 2 or node.input[1] not in known:
        return None
    return Entrance(activation, matrices, node.name, shift)


def _from_norm(node: onnx.NodeProto, made: Mapping[str, onnx.NodeProto], scaled: bool) -> bool:
    """Whether a node is a norm or, where it may be `scaled`, a Mul of one."""
    if scaled and node.op_type == "Mul":
        return any(name in made and made[name].op_type == NORM for name in node.input)
    return node.op_type == NORM


def peaks_of(model: onnx.ModelProto, names: Sequence[str], feeds: Sequence[Feed]) -> dict[str, Floats]:
    """Largest size of every channel of intermediate tensors over recorded feeds. Shape (d,) each.

    Raises UsageError without recorded inputs.
    """
    if not feeds:
        raise UsageError("migration without recorded inputs: its factors come from them; record some")
    found: dict[str, Floats] = {}
    for arrays in inside(model, names, feeds):
        for name, array in arrays.items():
            peak = np.abs(array.reshape(-1, array.shape[-1])).max(axis=0).astype(np.float64)
            found[name] = np.maximum(found.get(name, peak), peak)
    return found


def factors(peak: Floats, weights: Sequence[Floats], strength: float) -> Floats:
    """s of every channel. peak: largest activation, Shape (d,); weights: of all matrices that read it, (d, outputs)."""
    heaviest = np.max([np.abs(matrix).max(axis=1) for matrix in weights], axis=0)
    sizes = [np.maximum(size, max(LEAST * size.max(), 1e-12)) for size in (peak, heaviest)]
    found = sizes[0] ** strength / sizes[1] ** (1.0 - strength)
    scaled: Floats = found / np.exp(np.log(found).mean())  # only ratios count
    return scaled


def migrate(model: onnx.ModelProto, feeds: Sequence[Feed], strength: float = STRENGTH) -> onnx.ModelProto:
    """The same function with smaller outliers before its matrices; equal to rounding (1e-6 relative).

    feeds: recorded inputs; strength: 0 leaves all as it is. Returns a model of its own. Raises UsageError without
    recorded inputs.
    """
    moved = onnx.ModelProto()
    moved.CopyFrom(model)
    places = entrances(moved)
    if not places or not strength:
        return moved
    peaks = peaks_of(moved, [place.activation for place in places], feeds)
    for place in places:
        known = constants(moved)
        weights = [numpy_helper.to_array(known[layer.weight]).astype(np.float64) for layer in place.matrices]
        s = factors(peaks[place.activation], weights, strength)
        for layer, matrix in zip(place.matrices, weights, strict=True):
            _replace(moved, layer.node, matrix * s[:, None])
        gain = numpy_helper.to_array(known[_named(moved, place.norm).input[1]])
        _replace(moved, place.norm, gain / s)
        if place.shift is not None:
            _divide(moved, *place.shift, s)
    drop_unused(moved)
    return moved


def _named(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    return next(node for node in model.graph.node if node.name == name)


def _constant(model: onnx.ModelProto, name: str, values: Floats) -> str:
    model.graph.initializer.append(numpy_helper.from_array(values.astype(np.float32), name))
    return name


def _replace(model: onnx.ModelProto, node: str, values: Floats) -> None:
    """A node's second input becomes a constant of its own: others may read the old one."""
    _named(model, node).input[1] = _constant(model, f"{node}_moved", values)


def _divide(model: onnx.ModelProto, name: str, index: int, divisor: Floats) -> None:
    """One input of a node, divided by a vector."""
    nodes = list(model.graph.node)
    at = next(i for i, node in enumerate(nodes) if node.name == name)
    inverse = _constant(model, f"{name}_inverse", 1.0 / divisor)
    product = helper.make_node("Mul", [nodes[at].input[index], inverse], [f"{name}_divided"], f"{name}_divide")
    nodes[at].input[index] = product.output[0]
    replace_nodes(model, [*nodes[:at], product, *nodes[at:]])
