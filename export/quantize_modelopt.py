"""int8, fp8 and nvfp4 files by NVIDIA's own quantizer, in an environment of its own, for boards that have them.

nvidia-modelopt pins an older onnx and the GPU build of ONNX Runtime, so it never shares an environment with anything
else (`make modelopt` builds `.venv-modelopt`); it runs in a subprocess, without a GPU: calibration is on the CPU.

    precision  weights                              activations         what runs it
    int8       int8, a scale a column               int8, calibrated    TensorRT; ONNX Runtime's CPU
    fp8        E4M3, a scale a column               E4M3, calibrated    TensorRT on Ada, Hopper, Thor
    nvfp4      E2M1 in blocks of 16 with fp8 scales float16             TensorRT on Blackwell and Thor
"""

import json
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import onnx

from dzedge.bundle import Variant
from dzedge.errors import DzedgeError, UsageError
from dzedge.export import layers, quantize
from dzedge.export.calibration import Feed, Feeds

SCRIPT = Path(__file__).with_name("modelopt_script.py")
PYTHON = Path(".venv-modelopt/bin/python")
Precision = Literal["int8", "fp8", "nvfp4"]
PATIENCE_S = 1800
"""Longest that one graph may take."""
TOLD = 600
"""Characters of a failure that are passed on."""


class ModelOptError(DzedgeError):
    """nvidia-modelopt could not quantize a graph."""


def build(
    files: Mapping[str, Path], feeds: Feeds, precisions: Sequence[Precision], python: Path = PYTHON, rest: str = "fp16"
) -> dict[str, list[Variant]]:  # fmt: skip
    """Writes NAME.modelopt-PRECISION.onnx beside the float file of every graph that has a trunk. rest: "fp16" or
    "fp32", what stays unquantized. Returns the manifest's variants by graph.

    Raises UsageError without that environment, ModelOptError with the tool's own words where it fails.
    """
    if not python.exists():
        raise UsageError(f"{python}: no such Python; `make modelopt` builds the environment, or name another")
    variants: dict[str, list[Variant]] = {}
    for name, source in files.items():
        nodes = [layer.node for layer in layers.trunk(onnx.load(str(source)))]
        if name in quantize.ONCE or not nodes or not feeds.get(name):
            continue
        variants[name] = []
        for precision in precisions:
            target = quantize.path_of(source, f"modelopt-{precision}")
            run(source, target, feeds[name], precision, nodes, python, rest)
            variants[name].append(Variant(file=target.name, precision=precision, ep="tensorrt", isa="gpu"))
    return variants


def run(
    source: Path, target: Path, feeds: Sequence[Feed], precision: Precision, nodes: Sequence[str], python: Path,
    rest: str,
) -> Path:  # fmt: skip
    """One graph. Returns `target`. Raises ModelOptError."""
    with tempfile.TemporaryDirectory() as folder:
        recorded, job = Path(folder, "feeds.npz"), Path(folder, "job.json")
        np.savez(recorded, **{key: np.stack([feed[key] for feed in feeds]) for key in feeds[0]})  # type: ignore[arg-type]
        asked = {"source": str(source.resolve()), "target": str(target.resolve()), "feeds": str(recorded)}
        job.write_text(json.dumps(asked | {"precision": precision, "nodes": list(nodes), "rest": rest}))
        command = [str(python), "-I", str(SCRIPT), str(job)]
        try:
            ended = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, cwd=folder)
        except subprocess.TimeoutExpired as error:
            raise ModelOptError(
                f"{source.name}: {precision} took more than {PATIENCE_S} s; calibrate on fewer inputs"
            ) from error
    if ended.returncode or not target.exists():
        said = ended.stderr.strip()[-TOLD:] or f"exit status {ended.returncode}"
        raise ModelOptError(f"{source.name}: modelopt made no {precision} file: {said}")
    model = onnx.load(str(target))
    layers.drop_unused(model)
    return quantize.write(model, target)
