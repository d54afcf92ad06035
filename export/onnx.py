"""torch -> ONNX: opset 20 (or 23), static shapes, batch 1, one file a graph.

Opset 20 because TensorRT of every JetPack parses it and ONNX Runtime 1.23 (the last for Python 3.10) has its
quantized kernels; opset 23's Attention gains 3 % on a CPU, and only TensorRT 10.15 parses it all.
"""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import onnx
import torch
from torch import Tensor

from dzedge.errors import UsageError
from dzedge.export.model.graphs import Graph

OPSET = 20
OPSETS = (20, 23)
"""24 runs on no ONNX Runtime for Python 3.10."""


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter narrates on stdout and warns about packages that we do not use."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        previous = logging.root.manager.disable
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(previous)


def export_graph(graph: Graph, path: Path, opset: int = OPSET) -> Path:
    """Writes one graph, without the file names and line numbers that the exporter leaves in it. Returns the path.

    Raises UsageError for an opset outside OPSETS.
    """
    if opset not in OPSETS:
        raise UsageError(f"opset {opset}: must be one of {', '.join(map(str, OPSETS))}; choose one")
    names = list(graph.inputs)
    with _quiet():
        program = torch.onnx.export(
            graph.module.eval(),
            tuple(graph.inputs.values()),
            dynamo=True,
            opset_version=opset,
            input_names=names,
            output_names=list(graph.outputs),
            optimize=True,
            verbose=False,
        )
        if program is None:
            raise RuntimeError(f"the exporter returned nothing for graph {graph.name!r}")
        model = program.model_proto
    onnx.save(strip(model), str(path))
    return path


def strip(model: onnx.ModelProto) -> onnx.ModelProto:
    """Drops metadata and intermediate shapes: machine paths do not belong in a bundle, and a quantizer that
    meets stale shapes refuses the file."""
    del model.metadata_props[:]
    del model.graph.metadata_props[:]
    del model.graph.value_info[:]
    model.doc_string = ""
    model.producer_version = ""
    for node in model.graph.node:
        node.doc_string = ""
        del node.metadata_props[:]
    for value in [*model.graph.input, *model.graph.output, *model.graph.initializer]:
        value.doc_string = ""
        del value.metadata_props[:]
    return model


def export_all(graphs: list[Graph], folder: Path, opset: int = OPSET) -> dict[str, Path]:
    """Writes NAME.fp32.onnx for every graph into a folder. Returns the paths by graph name. Raises UsageError."""
    folder.mkdir(parents=True, exist_ok=True)
    with torch.no_grad():
        return {graph.name: export_graph(graph, folder / f"{graph.name}.fp32.onnx", opset) for graph in graphs}


def arrays(inputs: dict[str, Tensor]) -> dict[str, object]:
    """Example inputs as the arrays that ONNX Runtime takes."""
    return {name: value.numpy() for name, value in inputs.items()}
