"""The layers of an ONNX graph that a quantizer may take: matrices and convolutions by constant weights.

Which of them are worth it follows from their shapes: a matrix narrower than LEAST_FEATURES on either side is an
embedding or a head, which costs little and hurts much; a Gemm works on one row (a modulation, a joint state), so its
weights alone are worth storing small; the first and last convolution see pixels and heat maps.
"""

from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper, numpy_helper

LEAST_FEATURES = 64
"""A matrix narrower than this on either side is an embedding or a head."""
LEAST = 1e-12
"""Largest weight of a column that is all zeros, so that it has a scale."""
COARSE = 0.1
"""The coarsest step of int8 weights, by their median size; 0.035 is usual."""


@dataclass(frozen=True, slots=True)
class Layer:
    """A node with constant weights. node: its name; op: MatMul, Gemm or Conv; weight: name of the constant; shape: of
    it, a matrix as (inputs, outputs)."""

    node: str
    op: str
    weight: str
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Of the weights in float32."""
        return 4 * int(np.prod(self.shape))

    @property
    def wide(self) -> bool:
        """A matrix of a trunk, neither an embedding nor a head."""
        return self.op != "Conv" and min(self.shape) >= LEAST_FEATURES


def constants(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    """Initializers by name."""
    return {tensor.name: tensor for tensor in model.graph.initializer}


def layers(model: onnx.ModelProto) -> list[Layer]:
    """Every MatMul, Gemm and Conv by constant float weights, in the graph's order."""
    known = {name: t for name, t in constants(model).items() if t.data_type == onnx.TensorProto.FLOAT}
    found = []
    for node in model.graph.node:
        if node.op_type not in ("MatMul", "Gemm", "Conv") or len(node.input) < 2 or node.input[1] not in known:
            continue
        shape = tuple(known[node.input[1]].dims)
        if node.op_type != "Conv" and len(shape) != 2:
            continue
        found.append(Layer(node.name, node.op_type, node.input[1], shape[::-1] if _turned(node) else shape))
    return found


def _turned(node: onnx.NodeProto) -> bool:
    """Whether a Gemm's weights are stored (outputs, inputs)."""
    return any(attribute.name == "transB" and attribute.i for attribute in node.attribute)


def trunk(model: onnx.ModelProto) -> list[Layer]:
    """What weights and activations of are quantized: wide matrices on many rows, all but the first and last
    convolution."""
    found = layers(model)
    return [layer for layer in found if layer.op == "MatMul" and layer.wide] + [
        layer for layer in found if layer.op == "Conv"
    ][1:-1]


def single_rows(model: onnx.ModelProto) -> list[Layer]:
    """Wide matrices that work on one row: their weights alone are worth storing small. None behind convolutions: there
    they are heads that place things (4 % of the actions, measured)."""
    found = layers(model)
    return [] if any(layer.op == "Conv" for layer in found) else [x for x in found if x.op == "Gemm" and x.wide]


def store_small(model: onnx.ModelProto, chosen: list[Layer]) -> onnx.ModelProto:
    """Weights of matrices as int8, one scale an output column, behind a DequantizeLinear; activations stay float.

    A Gemm becomes MatMul and Add: ONNX Runtime fuses weights so stored with a MatMul alone, and then never unpacks
    them. Returns the same model, changed.
    """
    as_products(model, [layer for layer in chosen if layer.op == "Gemm"])
    wanted, known, nodes = {layer.node for layer in chosen}, constants(model), []
    for node in model.graph.node:
        if node.name in wanted:
            weights = numpy_helper.to_array(known[node.input[1]])
            scale = np.maximum(np.abs(weights).max(axis=0), LEAST).astype(np.float32) / np.float32(127)
            names, whole = [f"{node.name}_{part}" for part in ("small", "scale")], f"{node.name}_weights"
            stored = np.rint(weights / scale).astype(np.int8), scale
            model.graph.initializer.extend(map(numpy_helper.from_array, stored, names))
            nodes.append(helper.make_node("DequantizeLinear", names, [whole], f"{node.name}_unpack", axis=1))
            node.input[1] = whole
        nodes.append(node)
    replace_nodes(model, nodes)
    drop_unused(model)
    return model


def rounds_well(model: onnx.ModelProto, matrix: Layer) -> bool:
    """Whether a MatMul's weights lose little as int8, one scale a column: none is stretched by a few large ones."""
    weights = np.abs(numpy_helper.to_array(constants(model)[matrix.weight]))
    return bool(np.median(weights.max(axis=0)) / 127.0 <= COARSE * np.median(weights))


def as_products(model: onnx.ModelProto, chosen: list[Layer]) -> onnx.ModelProto:
    """Gemms as MatMul, of the same name, and Add: what quantizers know. Returns the same model, changed."""
    wanted, known, nodes = {layer.node for layer in chosen}, constants(model), []
    for node in model.graph.node:
        if node.name not in wanted:
            nodes.append(node)
            continue
        weights, name = numpy_helper.to_array(known[node.input[1]]), f"{node.name}_turned"
        weights = np.ascontiguousarray(weights.T) if _turned(node) else weights
        model.graph.initializer.append(numpy_helper.from_array(weights, name))
        product = f"{node.name}_product" if len(node.input) > 2 else node.output[0]
        nodes.append(helper.make_node("MatMul", [node.input[0], name], [product], node.name))
        if len(node.input) > 2:
            nodes.append(helper.make_node("Add", [product, node.input[2]], [node.output[0]], f"{node.name}_bias"))
    replace_nodes(model, nodes)
    drop_unused(model)
    return model


def strip_shapes(model: onnx.ModelProto) -> onnx.ModelProto:
    """Without intermediate shapes: a quantizer that meets stale ones refuses the file. Returns the same model."""
    del model.graph.value_info[:]
    return model


def replace_nodes(model: onnx.ModelProto, nodes: list[onnx.NodeProto]) -> None:
    """Put other nodes, in the order of their work, in the place of a graph's own."""
    kept = [copy_of(node) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(kept)


def copy_of(node: onnx.NodeProto) -> onnx.NodeProto:
    twin = onnx.NodeProto()
    twin.CopyFrom(node)
    return twin


def drop_unused(model: onnx.ModelProto) -> None:
    """Constants that no node reads go."""
    used = {name for node in model.graph.node for name in node.input}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)


def compact(model: onnx.ModelProto) -> onnx.ModelProto:
    """Short names for everything inside, equal constants once, no remarks: a tenth of a small graph is names.

    Inputs and outputs keep theirs. Returns the same model, changed.
    """
    graph = model.graph
    _merge_equal(model)
    short = {value.name: value.name for value in [*graph.input, *graph.output]}
    for tensor in graph.initializer:
        short.setdefault(tensor.name, f"c{len(short):x}")
    for name in (name for node in graph.node for name in node.output):
        short.setdefault(name, f"v{len(short):x}" if name else "")
    for number, node in enumerate(graph.node):
        node.name, node.doc_string = f"{node.op_type}{number}", ""
        del node.metadata_props[:]
        for values in (node.input, node.output):
            renamed = [short.get(name, name) for name in values]
            del values[:]
            values.extend(renamed)
    for tensor in graph.initializer:
        tensor.name, tensor.doc_string = short[tensor.name], ""
    for kept in (graph.value_info, graph.metadata_props, model.metadata_props):
        del kept[:]
    model.producer_name = model.producer_version = model.doc_string = graph.doc_string = ""
    return model


def _merge_equal(model: onnx.ModelProto) -> None:
    """Small constants of equal type, shape and value become one."""
    first: dict[tuple[object, ...], str] = {}
    same: dict[str, str] = {}
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.nbytes <= 64:
            key = (tensor.data_type, array.shape, array.tobytes())
            same[tensor.name] = first.setdefault(key, tensor.name)
    for node in model.graph.node:
        renamed = [same.get(name, name) for name in node.input]
        del node.input[:]
        node.input.extend(renamed)
    drop_unused(model)
