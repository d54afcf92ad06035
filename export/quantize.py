"""float32 graphs -> int8 QDQ graphs, calibrated on real trajectories at the timesteps that are really used.

Two files a graph. S8S8 (symmetric, per-channel weights, float bias, float outputs) is what TensorRT, VNNI and
ARM run. U8S8 with reduced range is for AVX2 without VNNI, whose 16-bit sums saturate on anything wider (17 % error
against 2 %). Only the trunk's matrices and the encoder's inner convolutions are quantized: embeddings, modulation,
heads and the first and last convolution stay float.
"""

import contextlib
import io
import logging
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)

from dzedge.bundle import Variant
from dzedge.export.model.latent import SCALE
from dzedge.export.model.moments import Moments
from dzedge.export.sampler import Case, Feed, Graphs

QUANTIZED = ("frame_encoder", "prefill", "video_step", "action_step")
LEAST_FEATURES = 64
"""A matrix narrower than this on either side is an embedding or a head."""


class Feeds(CalibrationDataReader):
    """Recorded inputs, one after the other."""

    def __init__(self, feeds: Iterable[Feed]) -> None:
        self._feeds: Iterator[Feed] = iter(feeds)

    def get_next(self) -> Feed | None:
        return next(self._feeds, None)


def record(graphs: Graphs, cases: list[Case]) -> dict[str, list[Feed]]:
    """Every input that every graph sees while it decides these cases."""
    seen: dict[str, list[Feed]] = defaultdict(list)
    for seed, case in enumerate(cases):
        graphs.answer(case, seed, watch=lambda graph, feed: seen[graph].append(feed))
    return seen


def chosen_nodes(path: Path) -> list[str]:
    """Names of the nodes to quantize: wide matrices by constant weights, and all but the first and last convolution."""
    model = onnx.load(str(path))
    shapes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    wide = [
        node.name
        for node in model.graph.node
        if node.op_type == "MatMul" and min(shapes.get(node.input[1], (0,))) >= LEAST_FEATURES
    ]
    convolutions = [node.name for node in model.graph.node if node.op_type == "Conv"]
    return wide + convolutions[1:-1]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(previous)


def quantize(source: Path, target: Path, feeds: list[Feed], boards: bool) -> Path:
    """One graph. boards: S8S8 for VNNI, ARM and TensorRT; else U8S8 with reduced range for AVX2. Returns `target`.

    The CPU file quantizes outputs too: only then does ONNX Runtime's CPU provider run integer kernels; with float
    outputs it unpacks the weights at every run (video_step 1.28 ms against 0.47 ms, float32 0.49 ms).
    """
    with _quiet():
        quantize_static(
            str(source),
            str(target),
            Feeds(feeds),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            reduce_range=not boards,
            activation_type=QuantType.QInt8 if boards else QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_quantize=chosen_nodes(source),
            calibrate_method=CalibrationMethod.MinMax,
            extra_options={
                "ActivationSymmetric": boards,
                "WeightSymmetric": True,
                "QuantizeBias": False,
                "DedicatedQDQPair": boards,
                **({"OpTypesToExcludeOutputQuantization": ["MatMul", "Gemm", "Conv"]} if boards else {}),
            },
        )
    return target


def quantize_all(files: dict[str, Path], feeds: dict[str, list[Feed]]) -> dict[str, list[Variant]]:
    """NAME.u8s8.onnx and NAME.s8s8.onnx beside each float file. Returns the manifest's variants by graph."""
    variants = {}
    for name in QUANTIZED:
        source = files[name]
        narrow = quantize(source, source.with_name(f"{name}.u8s8.onnx"), feeds[name], boards=False)
        board = quantize(source, source.with_name(f"{name}.s8s8.onnx"), feeds[name], boards=True)
        variants[name] = [
            Variant(file=narrow.name, precision="int8", ep="cpu", isa="avx2"),
            Variant(file=board.name, precision="int8", ep="any", isa="vnni|neon|gpu"),
        ]
    return variants


@dataclass(frozen=True, slots=True)
class Loss:
    """What quantization costs against float32, over held-out decisions.

    action_mean, action_worst: [rad]; action_share: of the actions' root mean square; tip_mm: imagined last frame;
    encoder_mm: tip of the encoded frame; both none where tokens are patches.
    """

    action_mean: float
    action_worst: float
    action_share: float
    tip_mm: float | None
    encoder_mm: float | None


def loss(reference: Graphs, quantized: Graphs, cases: list[Case], moments: Moments) -> Loss:
    """Both decide the same cases from the same noise."""
    action, size, tip, encoder = [], [], [], []
    for seed, case in enumerate(cases):
        ours, theirs = quantized.answer(case, seed), reference.answer(case, seed)
        action.append(np.abs(ours.offsets - theirs.offsets))
        size.append(theirs.offsets**2)
        tip.append(
            _tip_mm(
                _imagined(ours.latent, ours.residuals, moments) - _imagined(theirs.latent, theirs.residuals, moments)
            )
        )
        encoder.append(_tip_mm(ours.latent - theirs.latent))
    stacked, structured = np.array(action), reference.sizes.structured
    return Loss(
        float(stacked.mean()), float(stacked.max()), float(np.sqrt((stacked**2).mean() / np.mean(size))),
        float(np.mean(tip)) if structured else None, float(np.mean(encoder)) if structured else None,
    )  # fmt: skip


def _imagined(latent: NDArray[np.float32], residuals: NDArray[np.float32], moments: Moments) -> NDArray[np.float64]:
    return latent + residuals[-1] * moments.residual_std[-1]


def _tip_mm(difference: NDArray[np.floating]) -> float:
    return float(np.linalg.norm(difference[0, :3])) * SCALE * 1e3


def with_variant(files: dict[str, Path], suffix: str) -> dict[str, Path]:
    """The same graphs with each quantized one replaced. suffix: `u8s8` or `s8s8`."""
    return {
        name: path.with_name(f"{name}.{suffix}.onnx") if name in QUANTIZED else path for name, path in files.items()
    }
