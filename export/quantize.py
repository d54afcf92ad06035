"""float32 graphs -> the files of every other precision.

    precision  file             for                       weights                   activations
    int8       NAME.s8s8.onnx   TensorRT, CUDA            int8, a scale a column    int8, one scale, calibrated
               NAME.u8s8.onnx   a CPU with AVX2 alone     7 bits, a scale a column  uint8, one scale, of the run
               NAME.full.onnx   a CPU with VNNI, or ARM   int8, a scale a column    uint8, one scale, of the run
    fp16       NAME.fp16.onnx   GPUs                      float16                   float16; boundary float32
    w8, w4     NAME.w8.onnx ..  CPU and CUDA              8, 4 bits in blocks       float32

S8S8 is what TensorRT takes: symmetric, explicit Q/DQ pairs, float bias, no quantized outputs. ONNX Runtime's CPU
provider unpacks such weights in every run (0.85 ms against 0.26 ms of float32 for `video_step`), so a CPU gets
integer matrices with float results: DynamicQuantizeLinear and MatMulInteger, which it fuses into one kernel. Their
activations' range is that of the very tensor, which also halves the error. AVX2 without VNNI sums 8-bit products in 16
bits that saturate (17 % error against 2 %), so its weights have 7 bits.

Only the trunk's matrices and the encoder's inner convolutions are quantized so (`layers.trunk`); a matrix whose rounded
activations hurt can keep them in float, its weights int8 all the same (`Recipe.keep`, chosen by `sensitivity`).
"""

import contextlib
import io
import logging
import tempfile
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_dynamic, quantize_static
from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

from dzedge.bundle import Variant
from dzedge.errors import UsageError
from dzedge.export import gptq, layers, migration
from dzedge.export.calibration import Feed, Feeds, Reader

INT8_FORMS = ("u8s8", "full", "s8s8")
SEEN = {"s8s8": ("cuda|tensorrt", "gpu"), "u8s8": ("cpu", "avx2"), "full": ("cpu", "vnni|neon")}
"""Provider and instruction sets of an int8 file."""
ONCE = ("text", "modulation", "frame_decoder")
"""Graphs that run once a task, or when one looks: nothing is gained by rounding their activations."""
METHODS = {
    "minmax": CalibrationMethod.MinMax,
    "percentile": CalibrationMethod.Percentile,
    "entropy": CalibrationMethod.Entropy,
}
BLOCKS = (32, 16)
"""Weights that share a scale in w8 and w4: ONNX Runtime's CUDA kernels have 32 alone."""
DELICATE = ("LayerNormalization", "Softmax", "Sin", "Cos", "Div", "Pow", "ReduceSum", "ReduceMean", "ReduceLogSumExp")
"""Operators that keep float32 in an fp16 graph: sums over many numbers, angles, and what divides by 1 - t."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How graphs are quantized. method: of calibration, a key of METHODS; strength: of the scale migration, 0 for none;
    keep: nodes that compute in float in int8 files, as `sensitivity` names them, "GRAPH/NODE"."""

    method: str = "minmax"
    strength: float = migration.STRENGTH
    keep: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise UsageError(f"calibration {self.method!r}: must be one of {', '.join(METHODS)}; change it")
        if not 0.0 <= self.strength <= 1.0:
            raise UsageError(f"migration strength {self.strength}: must be 0 to 1; change it")


def build(
    files: Mapping[str, Path], feeds: Feeds, precisions: Sequence[str], recipe: Recipe = Recipe()
) -> dict[str, list[Variant]]:
    """Writes the files of those precisions beside the float ones, for every graph in which there is something to gain.

    files: NAME.fp32.onnx by graph; feeds: recorded inputs by graph, for int8. Returns the manifest's variants by graph,
    without the float ones. Raises UsageError for a precision that is not made here, or int8 without recorded inputs.
    """
    unknown = set(precisions) - {"fp32", "fp16", "int8", "w8", "w4"}
    if unknown:
        raise UsageError(
            f"precision {min(unknown)!r}: must be fp32, fp16, int8, w8 or w4; fp8 and nvfp4 are `quantize_modelopt`'s"
        )
    variants: dict[str, list[Variant]] = {}
    for name, source in files.items():
        found: list[Variant] = []
        if "int8" in precisions:
            found += _int8(name, source, feeds.get(name, []), recipe)
        if "fp16" in precisions:
            file = write(half(onnx.load(str(source))), path_of(source, "fp16")).name
            found.append(Variant(file=file, precision="fp16", ep="any", isa="any"))
        for bits in (8, 4):
            if f"w{bits}" in precisions and (model := weights_only(onnx.load(str(source)), bits, feeds.get(name, ()))):
                file = write(model, path_of(source, f"w{bits}")).name
                found.append(Variant(file=file, precision="w8" if bits == 8 else "w4", ep="cpu|cuda", isa="any"))
        variants[name] = found
    return variants


def _int8(name: str, source: Path, feeds: Sequence[Feed], recipe: Recipe) -> list[Variant]:
    model = onnx.load(str(source))
    keep = {node.partition("/")[2] for node in recipe.keep if node.partition("/")[0] == name}
    if name in ONCE or not [layer for layer in layers.trunk(model) if layer.node not in keep]:
        return []
    if not feeds:
        raise UsageError(f"graph {name}: no recorded inputs to calibrate int8 with; record some (export.calibration)")
    with tempfile.TemporaryDirectory() as folder:
        maker = Int8(model, feeds, Path(folder), recipe)
        for form in INT8_FORMS:
            write(maker.make(form, keep), path_of(source, form))
    return [
        Variant(file=path_of(source, form).name, precision="int8", ep=SEEN[form][0], isa=SEEN[form][1])
        for form in INT8_FORMS
    ]


def path_of(source: Path, form: str) -> Path:
    """NAME.fp32.onnx -> NAME.FORM.onnx."""
    return source.with_name(f"{source.name.partition('.')[0]}.{form}.onnx")


def write(model: onnx.ModelProto, path: Path) -> Path:
    """Compact, then to a file."""
    onnx.save(layers.compact(model), str(path))
    return path


class Int8:
    """int8 forms of one graph, calibrated once for however many are made.

    feeds: recorded inputs; folder: for scratch files, the graph's own; layers: what is quantized, where it is not kept.
    """

    def __init__(
        self, model: onnx.ModelProto, feeds: Sequence[Feed], folder: Path, recipe: Recipe = Recipe()
    ) -> None:  # fmt: skip
        self._feeds, self._folder, self._method = feeds, folder, METHODS[recipe.method]
        self._model = migration.migrate(model, feeds, recipe.strength)
        self.layers = layers.trunk(self._model)

    def make(self, form: str, keep: Container[str] = ()) -> onnx.ModelProto:
        """One of INT8_FORMS. keep: names of nodes that compute in float; weights that round well are int8 there too."""
        model, boards = self._model, form == "s8s8"
        chosen = [layer for layer in self.layers if layer.node not in keep]
        kept = [layer for layer in self.layers if layer.node in keep and layer.op != "Conv"]
        stored = [layer for layer in kept if layers.rounds_well(model, layer)]
        matrices = [layer.node for layer in chosen if layer.op != "Conv"]
        convolutions = [layer.node for layer in chosen if layer.op == "Conv"]
        bits = 7 if form == "u8s8" else 8
        with _quiet():
            made = self._pairs(model, matrices + convolutions if boards else convolutions, boards, reduced=bits < 8)
            tables = [layer for layer in layers.single_rows(made) if layer.node not in keep]
            made = layers.store_small(made, [*tables, *stored])
            return made if boards else _integer_matrices(made, matrices, bits, self._folder)

    def _pairs(self, model: onnx.ModelProto, nodes: list[str], boards: bool, reduced: bool = False) -> onnx.ModelProto:
        """Q/DQ pairs around nodes. boards: symmetric S8S8 with float results; else U8S8 with quantized results: only
        then does the CPU provider run integer convolutions. reduced: weights of 7 bits. Returns a model of its own."""
        source, target = self._folder / "source.onnx", self._folder / "target.onnx"
        onnx.save(model, str(source))
        if not nodes:
            return onnx.load(str(source))
        quantize_static(
            str(source),
            str(target),
            Reader(self._feeds),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["MatMul", "Conv"],
            per_channel=True,
            reduce_range=reduced,
            activation_type=QuantType.QInt8 if boards else QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_quantize=nodes,
            calibrate_method=self._method,
            calibration_cache_path=str(self._folder / "ranges.json"),
            extra_options={
                "ActivationSymmetric": boards,
                "WeightSymmetric": True,
                "QuantizeBias": False,
                "DedicatedQDQPair": boards,
                **({"OpTypesToExcludeOutputQuantization": ["MatMul", "Conv"]} if boards else {}),
            },
        )
        return onnx.load(str(target))


def _integer_matrices(model: onnx.ModelProto, nodes: list[str], bits: int, folder: Path) -> onnx.ModelProto:
    """Matrices as DynamicQuantizeLinear and MatMulInteger: integer sums, float results."""
    if not nodes:
        return model
    source, target = folder / "floats.onnx", folder / "integers.onnx"
    onnx.save(layers.strip_shapes(model), str(source))
    quantize_dynamic(
        str(source), str(target), op_types_to_quantize=["MatMul"], per_channel=True, reduce_range=bits < 8,
        weight_type=QuantType.QInt8, nodes_to_quantize=nodes,
    )  # fmt: skip
    return onnx.load(str(target))


def half(model: onnx.ModelProto) -> onnx.ModelProto:
    """float16 inside, float32 at the boundary and in DELICATE operators. Returns a model of its own."""
    with _quiet():
        made: onnx.ModelProto = convert_float_to_float16(
            model, keep_io_types=True, op_block_list=[*DEFAULT_OP_BLOCK_LIST, *DELICATE]
        )
    return made


def weights_only(model: onnx.ModelProto, bits: int, feeds: Sequence[Feed] = ()) -> onnx.ModelProto | None:
    """Wide matrices' weights in blocks of 8 or 4 bits (`gptq`); activations float32, as far as the graph says. feeds:
    recorded inputs, which the rounding goes by. None where there is no such matrix."""
    layers.as_products(model, layers.single_rows(model))
    wide = [layer for layer in layers.layers(model) if layer.op == "MatMul" and layer.wide]
    by_block = {block: [layer for layer in wide if _block(layer.shape[0]) == block] for block in BLOCKS}
    if not any(by_block.values()):
        return None
    for block, chosen in by_block.items():
        if chosen:
            model = gptq.apply(model, chosen, bits, block, feeds)
    return model


def _block(inputs: int) -> int | None:
    """The first of BLOCKS that divides a matrix's inputs."""
    return next((block for block in BLOCKS if inputs % block == 0), None)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The tools narrate on stdout and warn about shapes that are not there."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(previous)
