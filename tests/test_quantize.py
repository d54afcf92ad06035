"""Smaller files of a graph: what is taken, how few bytes are left, what it costs; outliers, moved exactly."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from numpy.typing import NDArray
from onnx import numpy_helper

from dzedge.errors import UsageError
from dzedge.export import calibration, layers, migration, parity, quantize, sensitivity
from dzedge.export.fit_tokenizer import Tokenizer
from dzedge.export.model.graphs import graphs
from dzedge.export.model.sizes import Sizes
from dzedge.export.model.wam import Wam
from dzedge.export.onnx import export_all

TOY = Sizes(width=128, layers=2, heads=2, encoder_width=4, decoder_width=4)
EXPORTED = ("modulation", "frame_encoder", "prefill", "video_step", "action_step")
Feeds = calibration.Feeds

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    torch.manual_seed(3)
    wam, tokenizer = Wam(TOY).eval(), Tokenizer(TOY).eval()
    for stream in (wam.video, wam.action):
        torch.nn.init.normal_(stream.leave.weight, std=0.1)
        torch.nn.init.normal_(stream.shared.weight, std=0.05)
    cut = [graph for graph in graphs(wam, tokenizer.encoder, tokenizer.decoder) if graph.name in EXPORTED]
    return export_all(cut, tmp_path_factory.mktemp("onnx"))


@pytest.fixture(scope="module")
def feeds() -> Feeds:
    """Seeded inputs of every graph, at two times of the sampler."""
    wam, tokenizer = Wam(TOY).eval(), Tokenizer(TOY).eval()
    found: Feeds = {}
    for seed in range(12):
        for graph in graphs(wam, tokenizer.encoder, tokenizer.decoder, seed):
            feed = {name: value.numpy() for name, value in graph.inputs.items()}
            for name in set(feed) & set(calibration.TIMES):
                feed[name] = np.array([0.25 if seed % 3 else 0.75], np.float32)
            found.setdefault(graph.name, []).append(feed)
    return found


@pytest.fixture(scope="module")
def built(files: dict[str, Path], feeds: Feeds) -> dict[str, list[quantize.Variant]]:
    return quantize.build(files, feeds, ("fp32", "int8", "fp16", "w8", "w4"))


def outputs(path: Path, feed: calibration.Feed, in_float: bool = False) -> list[NDArray[np.float32]]:
    found: list[NDArray[np.float32]] = parity.session(path, in_float).run(None, dict(feed))
    return found


def difference(ours: list[NDArray[np.float32]], theirs: list[NDArray[np.float32]]) -> float:
    """Root mean square, by that of theirs; of all outputs together."""
    a, b = (np.concatenate([array.ravel() for array in both]) for both in (ours, theirs))
    return float(np.sqrt(((a - b) ** 2).mean() / (b**2).mean()))


class TestFiles:
    def test_variants_say_where_they_are_right(self, built: dict[str, list[quantize.Variant]]) -> None:
        wanted = {
            ("video_step.u8s8.onnx", "int8", "cpu", "avx2"), ("video_step.full.onnx", "int8", "cpu", "vnni|neon"),
            ("video_step.s8s8.onnx", "int8", "cuda|tensorrt", "gpu"), ("video_step.fp16.onnx", "fp16", "any", "any"),
            ("video_step.w8.onnx", "w8", "cpu|cuda", "any"), ("video_step.w4.onnx", "w4", "cpu|cuda", "any"),
        }  # fmt: skip
        assert {(v.file, v.precision, v.ep, v.isa) for v in built["video_step"]} == wanted
        whole = {"frame_encoder", "prefill", "video_step", "action_step"}
        assert {name for name, found in built.items() if any(v.precision == "int8" for v in found)} == whole

    @pytest.mark.parametrize("graph", ["video_step", "action_step"])
    def test_int8_step_graphs_are_a_third(
        self, graph: str, built: dict[str, list[quantize.Variant]], files: dict[str, Path]
    ) -> None:
        assert built
        for form in quantize.INT8_FORMS:
            assert _size(files[graph], form) <= 0.32 * files[graph].stat().st_size, form
        assert _size(files[graph], "w4") < 0.25 * files[graph].stat().st_size
        assert _size(files[graph], "fp16") < 0.55 * files[graph].stat().st_size

    @pytest.mark.parametrize("graph", ["frame_encoder", "prefill", "video_step", "action_step"])
    def test_each_costs_little_and_something(
        self, graph: str, built: dict[str, list[quantize.Variant]], files: dict[str, Path], feeds: Feeds
    ) -> None:
        feed = feeds[graph][5]
        exact = outputs(files[graph], feed)
        for variant in built[graph]:
            found = outputs(files[graph].with_name(variant.file), feed, in_float=variant.isa == "gpu")
            worst = {"fp16": 5e-3, "int8": 0.03, "w8": 0.02, "w4": 0.2}[variant.precision]
            assert 0.0 < difference(found, exact) < worst, variant.file

    def test_names_of_machines_and_tools_stay_out(
        self, built: dict[str, list[quantize.Variant]], files: dict[str, Path]
    ) -> None:
        for variant in built["video_step"]:
            model = onnx.load(str(files["video_step"].with_name(variant.file)))
            assert not model.producer_name
            assert not model.graph.value_info
            assert {node.domain for node in model.graph.node} <= {"", "com.microsoft"}, variant.file

    def test_board_pairs_are_symmetric_with_float_results(
        self, built: dict[str, list[quantize.Variant]], files: dict[str, Path]
    ) -> None:
        model = onnx.load(str(files["video_step"].with_name("video_step.s8s8.onnx")))
        known = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
        points = [known[n.input[2]] for n in model.graph.node if n.op_type.endswith("Linear") and len(n.input) > 2]
        assert points
        assert all(point.dtype == np.int8 and not point.any() for point in points)
        results = {n.output[0] for n in model.graph.node if n.op_type == "MatMul"}
        assert not results & {n.input[0] for n in model.graph.node if n.op_type == "QuantizeLinear"}

    def test_reduced_range_has_seven_bits(
        self, built: dict[str, list[quantize.Variant]], files: dict[str, Path]
    ) -> None:
        """AVX2 adds two 8-bit products in 16 bits: with 8 bits of weights they saturate."""
        peak = {}
        for form in ("u8s8", "full"):
            model = onnx.load(str(files["video_step"].with_name(f"video_step.{form}.onnx")))
            kept = [numpy_helper.to_array(t) for t in model.graph.initializer if t.data_type == onnx.TensorProto.INT8]
            peak[form] = max(int(np.abs(weights.astype(int)).max()) for weights in kept)
        assert peak == {"u8s8": 64, "full": 127}

    def test_kept_layers_compute_in_float(self, files: dict[str, Path], feeds: Feeds, tmp_path: Path) -> None:
        """Their weights are int8 all the same, unless a few large ones would make that too coarse."""
        model = onnx.load(str(files["action_step"]))
        maker = quantize.Int8(model, feeds["action_step"], tmp_path)
        first, everything = maker.layers[0], {layer.node for layer in maker.layers}
        less = maker.make("full", {first.node})
        assert _integer(maker.make("full")) - _integer(less) == 1
        assert len(less.SerializeToString()) < len(maker.make("full").SerializeToString()) + 0.1 * first.bytes
        assert not [n for n in maker.make("s8s8", everything).graph.node if n.op_type == "QuantizeLinear"]
        tensor = layers.constants(model)[layers.trunk(model)[0].weight]
        weights = numpy_helper.to_array(tensor).copy()
        weights[0] *= 300.0
        tensor.CopyFrom(numpy_helper.from_array(weights, tensor.name))
        (tmp_path / "coarse").mkdir()
        coarse = quantize.Int8(model, feeds["action_step"], tmp_path / "coarse", quantize.Recipe(strength=0.0))
        kept = coarse.make("full", {first.node})
        assert len(kept.SerializeToString()) > len(less.SerializeToString()) + 0.5 * first.bytes

    def test_what_cannot_be_made_is_refused(self, files: dict[str, Path], feeds: Feeds) -> None:
        with pytest.raises(UsageError, match="fp8"):
            quantize.build(files, feeds, ("fp8",))
        with pytest.raises(UsageError, match="no recorded inputs"):
            quantize.build({"video_step": files["video_step"]}, {}, ("int8",))
        with pytest.raises(UsageError, match="calibration 'mean'"):
            quantize.Recipe(method="mean")
        with pytest.raises(UsageError, match=r"strength 1\.5"):
            quantize.Recipe(strength=1.5)


def _integer(model: onnx.ModelProto) -> int:
    """Matrices with integer sums."""
    return sum(node.op_type == "MatMulInteger" for node in model.graph.node)


def _size(source: Path, form: str) -> int:
    return quantize.path_of(source, form).stat().st_size


class TestLayers:
    def test_only_the_trunk_is_quantized(self, files: dict[str, Path]) -> None:
        names = {graph: len(layers.trunk(onnx.load(str(path)))) for graph, path in files.items()}
        assert names["video_step"] == names["action_step"] == 4 * TOY.layers, "qkv, out, up, down of each layer"
        assert names["prefill"] == 5, "its block, and the rows"
        assert names["frame_encoder"] == 9 + 2 - 1, "all but the first and last convolution"

    def test_compact_changes_names_alone(self, files: dict[str, Path], feeds: Feeds, tmp_path: Path) -> None:
        model = onnx.load(str(files["video_step"]))
        small = tmp_path / "small.onnx"
        onnx.save(layers.compact(model), str(small))
        assert small.stat().st_size < files["video_step"].stat().st_size
        feed = feeds["video_step"][0]
        for ours, theirs in zip(outputs(small, feed), outputs(files["video_step"], feed), strict=True):
            np.testing.assert_array_equal(ours, theirs)

    def test_gemms_stored_small_are_products(self, files: dict[str, Path], feeds: Feeds, tmp_path: Path) -> None:
        model = onnx.load(str(files["modulation"]))
        rows = layers.single_rows(model)
        assert rows
        small = tmp_path / "small.onnx"
        onnx.save(layers.store_small(model, rows), str(small))
        assert small.stat().st_size < 0.5 * files["modulation"].stat().st_size
        feed = feeds["modulation"][0]
        assert 0.0 < difference(outputs(small, feed), outputs(files["modulation"], feed)) < 0.01


class TestMigration:
    def test_every_matrix_behind_a_norm_is_found(self, files: dict[str, Path]) -> None:
        found = migration.entrances(onnx.load(str(files["video_step"])))
        assert len(found) == 2 * TOY.layers
        assert all(place.shift is not None for place in found)

    @pytest.mark.parametrize("graph", ["prefill", "video_step", "action_step"])
    def test_function_stays_and_outliers_go(
        self, graph: str, files: dict[str, Path], feeds: Feeds, tmp_path: Path
    ) -> None:
        """25-fold channels put into an AdaLN, without a change of the function: int8 suffers, unless they are moved."""
        plain = onnx.load(str(files[graph]))
        wild = with_outliers(plain)
        feed, path = feeds[graph][0], tmp_path / "graph.onnx"
        exact = outputs(files[graph], feed)

        def lost(model: onnx.ModelProto) -> float:
            onnx.save(model, str(path))
            return difference(outputs(path, feed), exact)

        def lost_in_int8(strength: float, form: str) -> float:
            folder = tmp_path / f"{strength}-{form}"
            folder.mkdir()
            made = quantize.Int8(wild, feeds[graph], folder, quantize.Recipe(strength=strength)).make(form)
            onnx.save(made, str(path))
            return difference(outputs(path, feed, in_float=form == "s8s8"), exact)

        assert lost(wild) < 1e-5
        assert lost(migration.migrate(wild, feeds[graph])) < 1e-5
        assert lost(migration.migrate(plain, feeds[graph], 0.8)) < 1e-5
        for form in ("s8s8", "full"):
            assert lost_in_int8(migration.STRENGTH, form) < 0.5 * lost_in_int8(0.0, form), form

    def test_needs_recorded_inputs(self, files: dict[str, Path]) -> None:
        with pytest.raises(UsageError, match="record some"):
            migration.migrate(onnx.load(str(files["prefill"])), [])

    def test_a_silent_channel_keeps_its_place(self) -> None:
        """It has no size to go by; a factor of its own would make it fill the range as soon as it speaks."""
        found = migration.factors(np.array([4.0, 0.0, 4.0, 36.0]), [np.ones((4, 3))], 0.5)
        assert found[3] / found[0] == pytest.approx(3.0)
        assert found[0] / found[1] < 2.0
        np.testing.assert_allclose(np.log(found).mean(), 0.0, atol=1e-12)


def with_outliers(model: onnx.ModelProto, size: float = 25.0, count: int = 4) -> onnx.ModelProto:
    """The same function with a few channels of every AdaLN's output much larger: `migrate` backwards."""
    wild = onnx.ModelProto()
    wild.CopyFrom(model)
    for number, place in enumerate(migration.entrances(wild)):
        known = layers.constants(wild)
        factor = np.ones(place.matrices[0].shape[0])
        factor[np.random.default_rng(number).choice(len(factor), count, replace=False)] = 1.0 / size
        for layer in place.matrices:
            matrix = numpy_helper.to_array(known[layer.weight]).astype(np.float64)
            migration._replace(wild, layer.node, matrix * factor[:, None])
        migration._replace(wild, place.norm, 1.0 / factor)
        if place.shift is not None:
            migration._divide(wild, *place.shift, factor)
    for node in wild.graph.node:  # so that what is made of it has names of its own
        node.name = f"{node.name}_wild"
    return wild


class TestSensitivity:
    def test_keeps_the_layer_that_hurts_and_no_more(self, files: dict[str, Path], feeds: Feeds, tmp_path: Path) -> None:
        """One layer that int8 ruins: weights of a matrix whose columns hold one huge value each."""
        model = onnx.load(str(files["action_step"]))
        spoiled = layers.trunk(model)[2]
        tensor = layers.constants(model)[spoiled.weight]
        weights = numpy_helper.to_array(tensor).copy()
        weights[0] *= 300.0
        tensor.CopyFrom(numpy_helper.from_array(weights, tensor.name))
        source = tmp_path / "action_step.fp32.onnx"
        onnx.save(model, str(source))
        tested = feeds["action_step"][:3]
        exact = [outputs(source, feed)[0] for feed in tested]

        def judge(found: dict[str, Path]) -> float:
            return difference([outputs(found["action_step"], feed, in_float=True)[0] for feed in tested], exact)

        told: list[str] = []
        recipe = quantize.Recipe(strength=0.0)
        only = {"action_step": source}
        loose = sensitivity.sensitivity(only, feeds, judge, 1.0, "full", recipe, told.append)  # type: ignore[arg-type]
        assert loose.keep == frozenset()
        assert loose.error == loose.everything
        assert len(told) == len(loose.layers) == 4 * TOY.layers
        assert loose.layers[0].name == f"action_step/{spoiled.node}"
        bound = 0.7 * loose.everything
        tight = sensitivity.sensitivity(only, feeds, judge, bound, "full", recipe)  # type: ignore[arg-type]
        assert f"action_step/{spoiled.node}" in tight.keep
        assert tight.error <= bound < tight.everything
        assert len(tight.keep) < len(tight.layers)
        assert tight.document()["layers"][0]["kept"] is True
        with pytest.raises(UsageError, match="allow more"):
            sensitivity.sensitivity(only, feeds, lambda found: 1.0, 0.5, "full", recipe)


def test_session_runs_what_the_bundle_says(built: dict[str, list[quantize.Variant]], files: dict[str, Path]) -> None:
    """ONNX Runtime fuses the CPU's matrices into integer kernels: none is left that unpacks weights in every run."""
    options = ort.SessionOptions()
    optimized = files["video_step"].with_name("optimized.onnx")
    options.optimized_model_filepath, options.log_severity_level = str(optimized), 3
    ort.InferenceSession(str(files["video_step"].with_name("video_step.full.onnx")), options, ["CPUExecutionProvider"])
    kinds = [node.op_type for node in onnx.load(str(optimized)).graph.node]
    assert kinds.count("DynamicQuantizeMatMul") == 4 * TOY.layers
    assert "MatMulInteger" not in kinds
