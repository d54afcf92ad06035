"""ONNX of a model that does not fit into memory: graphs without weights, and the weights streamed beside them.

A graph is traced with weights that have a shape and no memory. Its tensors refer to one `weights.safetensors`, which
all graphs of a model share; it is written tensor by tensor, each read from its shard, turned into the layout that the
graph wants (so that nothing has to be transposed when the model is loaded) and let go.
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnx_ir as ir
import torch
from onnx_ir.passes import common
from onnxscript import optimizer
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from dzedge.errors import UsageError
from dzedge.export.model.graphs import Graph
from dzedge.export.onnx import OPSET, _quiet, strip
from dzedge.export.shards import Tensors

WEIGHTS = "weights.safetensors"
KINDS = {torch.float32: ("F32", ir.DataType.FLOAT), torch.float16: ("F16", ir.DataType.FLOAT16)}
"""What weights may be written as: the names that safetensors and ONNX have for it."""
ALIGNMENT = 64
"""Of the first byte of the weights, so that a mapped file needs no copy."""


@dataclass(frozen=True, slots=True)
class Layout:
    """How a graph wants a tensor: turned (the two axes of a matrix swapped), or under another shape."""

    shape: tuple[int, ...]
    turned: bool = False

    def of(self, tensor: Tensor) -> Tensor:
        return (tensor.t() if self.turned else tensor).reshape(self.shape)


Weights = dict[str, tuple[str, Layout]]
"""Names in `weights.safetensors` -> a tensor's own name and its layout there."""


def export_layered(
    make: Callable[[], list[Graph]], weights: Tensors, folder: Path, dtype: torch.dtype = torch.float32
) -> dict[str, Path]:  # fmt: skip
    """Writes NAME.onnx of every graph and one `weights.safetensors` into a folder. Returns the paths by graph name.

    make: builds model and graphs; called where tensors have no memory; weights: by the names that the model's
    parameters have behind the first dot in a graph's module; dtype: that the graphs compute in (float32, or float16
    behind modules that cast). Raises UsageError: a parameter without weights, weights that no graph uses, or another
    dtype.
    """
    if dtype not in KINDS:
        raise UsageError(f"layered: dtype {dtype}, allowed: {', '.join(str(kind) for kind in KINDS)}")
    folder.mkdir(parents=True, exist_ok=True)
    known, stored = set(weights.names()), Weights()
    models: dict[str, tuple[ir.Model, dict[str, str]]] = {}
    with FakeTensorMode(), torch.no_grad():
        for graph in make():
            model = _trace(graph)
            models[graph.name] = model, _fold(model.graph, _sources(graph, model, known), stored)
    used = {name for name, _ in stored.values()}
    if spare := sorted(known - used):
        raise UsageError(f"layered: no graph uses {', '.join(spare)}; a graph is missing")
    order = {name: number for number, name in enumerate(weights.names())}  # one shard after the other
    places = write(dict(sorted(stored.items(), key=lambda item: order[item[1][0]])), weights, folder / WEIGHTS, dtype)
    return {
        name: _save(model, names, places, dtype, folder / f"{name}.onnx") for name, (model, names) in models.items()
    }


def write(stored: Weights, weights: Tensors, path: Path, dtype: torch.dtype) -> dict[str, tuple[int, int]]:
    """Streams tensors into a safetensors file. Returns the first byte and the length of each."""
    sizes = {name: math.prod(layout.shape) * dtype.itemsize for name, (_, layout) in stored.items()}
    header: dict[str, object] = {}
    end = 0
    for name, size in sizes.items():
        shape = list(stored[name][1].shape)
        header[name] = {"dtype": KINDS[dtype][0], "shape": shape, "data_offsets": [end, end + size]}
        end += size
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-(len(head) + 8) % ALIGNMENT)
    places: dict[str, tuple[int, int]] = {}
    with path.open("wb") as file:
        file.write(len(head).to_bytes(8, "little") + head)
        for name, (source, layout) in stored.items():
            places[name] = (file.tell(), sizes[name])
            tensor = layout.of(weights.read(source).to(dtype)).contiguous()
            if not torch.isfinite(tensor).all():
                raise UsageError(f"layered: {source} does not fit {dtype}: a value is not finite; use float32")
            file.write(memoryview(tensor.numpy()).cast("B"))  # type: ignore[arg-type]
    return places


def _trace(graph: Graph) -> ir.Model:
    """A graph whose weights are initializers without values."""
    module: nn.Module = graph.module.eval()
    with _quiet():
        program = torch.onnx.export(
            module, tuple(graph.inputs.values()), dynamo=True, opset_version=OPSET, input_names=list(graph.inputs),
            output_names=list(graph.outputs), optimize=False, verbose=False,
        )  # fmt: skip
        if program is None:
            raise RuntimeError(f"the exporter returned nothing for graph {graph.name!r}")
        model: ir.Model = program.model
        for name, _ in module.named_parameters():
            if name in model.graph.initializers:
                model.graph.initializers[name].const_value = None  # nothing may look for values
        # The exporter's own clean-up but for its rewriting rules, whose time grows with the square of the layers.
        optimizer.inline(model)
        optimizer.fold_constants(model, onnx_shape_inference=True)
        common.RemoveUnusedNodesPass()(model)
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
        common.CommonSubexpressionEliminationPass()(model)
        common.NameFixPass()(model)
    return model


def _sources(graph: Graph, model: ir.Model, known: set[str]) -> dict[str, str]:
    """Names of a graph's weights -> their own names, which wrappers have put prefixes before."""
    found: dict[str, str] = {}
    for name, value in model.graph.initializers.items():
        if value.const_value is None:
            parts = name.split(".")
            tails = (".".join(parts[i:]) for i in range(len(parts)))
            found[name] = next((tail for tail in tails if tail in known), "")
    if lost := sorted(name for name, source in found.items() if not source):
        raise UsageError(f"layered: graph {graph.name}: no weights for {', '.join(lost)}")
    return found


def _fold(graph: ir.Graph, names: dict[str, str], stored: Weights) -> dict[str, str]:
    """Takes steps that only lay out a weight out of the graph, into its stored layout. Returns initializers' names
    with those in the weights' file."""
    found = {}
    for name, source in names.items():
        value = graph.initializers[name]
        layout = Layout(_sizes(value))
        while (step := _laid_out(graph, value, layout)) is not None:
            out, layout = step
            fresh = ir.Value(name=name, shape=out.shape, type=out.type)
            node = out.producer()
            assert node is not None  # an output has one
            out.replace_all_uses_with(fresh)
            graph.remove(node, safe=True)
            graph.initializers[name] = fresh
            value = fresh
        key = source + ".turned" * layout.turned
        if stored.setdefault(key, (source, layout)) != (source, layout):  # another graph wants another shape of it
            key += "." + "x".join(map(str, layout.shape))
            stored[key] = (source, layout)
        found[name] = key
    return found


def _sizes(value: ir.Value) -> tuple[int, ...]:
    assert value.shape is not None  # the exporter knows every weight's
    return tuple(int(size) for size in value.shape)  # type: ignore[arg-type]


def _laid_out(graph: ir.Graph, value: ir.Value, layout: Layout) -> tuple[ir.Value, Layout] | None:
    """What the only reader of a weight makes of it, if that is no more than another layout."""
    uses = list(value.uses())
    if len(uses) != 1 or layout.turned or uses[0].idx != 0:
        return None
    node = uses[0].node
    (out,) = node.outputs
    if out in graph.outputs or out.shape is None:
        return None
    if node.op_type == "Transpose" and len(layout.shape) == 2:
        return out, Layout(_sizes(out), turned=True)
    # A row picked from an axis of one is the same numbers.
    if node.op_type in ("Squeeze", "Unsqueeze", "Reshape") or (node.op_type == "Gather" and layout.shape[0] == 1):
        shape = _sizes(out)
        return (out, Layout(shape)) if math.prod(shape) == math.prod(layout.shape) else None
    return None


def _save(
    model: ir.Model, names: dict[str, str], places: dict[str, tuple[int, int]], dtype: torch.dtype, path: Path
) -> Path:  # fmt: skip
    for name, key in names.items():
        value = model.graph.initializers[name]
        offset, length = places[key]
        value.const_value = ir.ExternalTensor(
            WEIGHTS, offset, length, KINDS[dtype][1], shape=ir.Shape(_sizes(value)), name=name, base_dir=path.parent
        )  # fmt: skip
    onnx.save(strip(ir.serde.serialize_model(model)), str(path))
    return path
