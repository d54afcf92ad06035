"""Weights of 4 or 8 bits that make up for each other's rounding (GPTQ, Frantar et al. 2022, algorithm 1).

Weights are rounded row by row of a matrix's inputs; what a row loses is taken over by the rows that follow, weighed by
how inputs go together in recorded activations (H = X' X). With 4 bits a whole chunk of wam-nano is 3.8 % off so, and
8.7 % with rounding to nearest. Stored as MatMulNBits of ONNX Runtime: blocks of inputs with a scale each, no zero
points.
"""

from collections.abc import Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from dzedge.export.calibration import Feed, inside
from dzedge.export.layers import Layer, constants, drop_unused, replace_nodes

Floats = NDArray[np.float64]
DAMPING = 0.01
"""Added to H's diagonal, of its mean: inputs that were never seen must not take over all errors."""
FAST = 4
"""ONNX Runtime's accuracy_level: its CPU rounds activations to 8 bits, block by block, inside the kernel; anything else
is as slow as unpacking (8 bits: 3.0 ms against 0.23 ms, float32 0.46 ms)."""
SHRINK = (1.0, 0.95, 0.9, 0.85, 0.8)
"""Scales that are tried for a block, of the one that holds its largest weight."""


def apply(
    model: onnx.ModelProto, chosen: Sequence[Layer], bits: int, block: int, feeds: Sequence[Feed]
) -> onnx.ModelProto:  # fmt: skip
    """MatMulNBits of 4 or 8 bits for matrices whose inputs `block` divides. feeds: recorded inputs; with none, rounding
    is to nearest. Returns the same model, changed."""
    known, nodes = constants(model), {node.name: node for node in model.graph.node}
    together = {nodes[layer.node].input[0]: np.zeros((layer.shape[0],) * 2) for layer in chosen}
    for arrays in inside(model, list(together), feeds):
        for name, array in arrays.items():
            rows = array.reshape(-1, array.shape[-1]).astype(np.float64)
            together[name] += rows.T @ rows
    wanted = {layer.node for layer in chosen}
    made = []
    for node in model.graph.node:
        if node.name in wanted:
            weights = numpy_helper.to_array(known[node.input[1]]).astype(np.float64)
            levels, scales = rounded(weights, together[node.input[0]], bits, block)
            made.append(_product(model, node, levels, scales, bits))
        else:
            made.append(node)
    replace_nodes(model, made)
    drop_unused(model)
    if not any(opset.domain == "com.microsoft" for opset in model.opset_import):
        model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return model


def rounded(weights: Floats, together: Floats, bits: int, block: int) -> tuple[NDArray[np.int8], Floats]:
    """Levels, Shape (inputs, outputs), from -2^(bits - 1) on; scales of their blocks, Shape (inputs / block, outputs).

    weights: Shape (inputs, outputs); together: X' X of recorded activations, Shape (inputs, inputs), or zeros.
    """
    left, count, high = weights.copy(), len(weights), 2 ** (bits - 1) - 1
    mean = float(np.trace(together)) / count
    h = together + np.eye(count) * (DAMPING * mean if mean > 0.0 else 1.0)
    upper = np.linalg.cholesky(np.linalg.inv(h)).T
    levels, scales = np.zeros(weights.shape, np.int8), np.zeros((count // block, weights.shape[1]))
    for first in range(0, count, block):
        end, lost = first + block, np.zeros((block, weights.shape[1]))
        scale = scales[first // block] = _scale(left[first:end], np.diag(h)[first:end], high)
        for row in range(first, end):
            levels[row] = np.clip(np.rint(left[row] / scale), -high - 1, high)
            lost[row - first] = (left[row] - levels[row] * scale) / upper[row, row]
            left[row + 1 : end] -= np.outer(upper[row, row + 1 : end], lost[row - first])
        left[end:] -= upper[first:end, end:].T @ lost  # the rows far behind take their share at once
    return levels, scales


def _scale(weights: Floats, importance: Floats, high: int) -> Floats:
    """The one of SHRINK with the least square error for each column. weights: Shape (block, outputs)."""
    full = np.maximum(np.abs(weights).max(axis=0), 1e-12) / high
    tried = [full * share for share in SHRINK]
    lost = [
        (importance[:, None] * (weights - np.clip(np.rint(weights / scale), -high - 1, high) * scale) ** 2).sum(axis=0)
        for scale in tried
    ]
    best: Floats = np.choose(np.argmin(lost, axis=0), tried)
    return best


def _product(
    model: onnx.ModelProto, node: onnx.NodeProto, levels: NDArray[np.int8], scales: Floats, bits: int
) -> onnx.NodeProto:  # fmt: skip
    """The node, as MatMulNBits: zero in the middle of the range; of 4 bits two a byte, the lower one first."""
    (inputs, outputs), blocks = levels.shape, len(scales)
    stored = (levels.T.astype(np.int16) + 2 ** (bits - 1)).astype(np.uint8).reshape(outputs, blocks, -1)
    packed = stored if bits == 8 else stored[..., ::2] | (stored[..., 1::2] << 4)
    names = [f"{node.name}_levels", f"{node.name}_scales"]
    arrays = packed, np.ascontiguousarray(scales.T).astype(np.float32).ravel()
    model.graph.initializer.extend(map(numpy_helper.from_array, arrays, names))
    return helper.make_node(
        "MatMulNBits", [node.input[0], *names], [node.output[0]], node.name, domain="com.microsoft",
        K=inputs, N=outputs, bits=bits, block_size=inputs // blocks, accuracy_level=FAST,
    )  # fmt: skip
