"""The engine: the right variant for a machine, buffers without copies, no silent fallback, clear refusals."""

import importlib.metadata
import os
import sys
import types
from pathlib import Path

import numpy as np
import onnx
import pytest

from dzedge import engine
from dzedge.bundle import Variant, open_bundle
from dzedge.engine import Graph, Machine, Noise, choose, cpu_isa, load_graph
from dzedge.errors import BundleError, PolicyError
from dzedge.export import stub

CPU = Machine("cpu", "avx2", 1)
FP32 = Variant(file="g.fp32.onnx", precision="fp32", ep="any", isa="any")
U8S8 = Variant(file="g.u8s8.onnx", precision="int8", ep="cpu", isa="avx2")
S8S8 = Variant(file="g.s8s8.onnx", precision="int8", ep="any", isa="vnni|neon|gpu")
ANY8 = Variant(file="g.int8.onnx", precision="int8", ep="any", isa="any")


def graph(text: str, name: str = "toy") -> bytes:
    data: bytes = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": 20]> {name} {text}').SerializeToString()
    return data


TOY = graph("(float[2,3] x, float[3] y) => (float[2,3] sum, float[2,3] double) "
            "{ sum = Add(x, y) double = Add(sum, sum) }")  # fmt: skip


class TestIsa:
    @pytest.mark.parametrize(
        ("cpuinfo", "architecture", "isa"),
        [
            ("flags\t\t: fpu sse4_2 avx2 fma", "x86_64", "avx2"),
            ("flags\t\t: fpu avx2 avx512f avx512_vnni", "x86_64", "vnni"),
            ("flags\t\t: fpu avx2 avx_vnni", "x86_64", "vnni"),
            ("flags\t\t: fpu sse4_2", "x86_64", "plain"),
            ("Features\t: fp asimd asimddp", "aarch64", "neon"),
            ("Features\t: fp asimd", "aarch64", "plain"),
            ("model name\t: avx2 avx_vnni", "x86_64", "plain"),
            ("", "riscv64", "plain"),
        ],
    )
    def test_from_cpuinfo(self, cpuinfo: str, architecture: str, isa: str) -> None:
        assert cpu_isa(cpuinfo, architecture) == isa

    def test_this_machine(self) -> None:
        found = Machine.detect()
        assert found.ep == "cpu"
        assert 1 <= found.threads <= max(1, len(os.sched_getaffinity(0)) - 1)
        assert Machine.detect(threads=3).threads == 3


class TestChoice:
    @pytest.mark.parametrize(
        ("precision", "isa", "ep", "chosen"),
        [
            ("auto", "avx2", "cpu", U8S8),
            ("auto", "vnni", "cpu", S8S8),
            ("auto", "neon", "cpu", S8S8),
            ("auto", "plain", "cpu", FP32),
            ("auto", "avx2", "cuda", S8S8),
            ("fp32", "avx2", "cpu", FP32),
            ("int8", "avx2", "cpu", U8S8),
            ("fp32", "neon", "tensorrt", FP32),
        ],
    )
    def test_of_all_three(self, precision: str, isa: str, ep: str, chosen: Variant) -> None:
        assert choose("g", (FP32, U8S8, S8S8), precision, Machine(ep, isa, 1)) == chosen

    @pytest.mark.parametrize("isa", ["avx2", "plain"])
    def test_s8s8_never_runs_on_x86_without_vnni(self, isa: str) -> None:
        for variant in (S8S8, ANY8):
            assert choose("g", (variant, FP32), "auto", Machine("cpu", isa, 1)) == FP32
            with pytest.raises(BundleError, match=rf"no variant with precision 'int8'.*{isa}.*{variant.file}"):
                choose("g", (variant, FP32), "int8", Machine("cpu", isa, 1))

    def test_int8_insists_only_where_there_is_any(self) -> None:
        assert choose("text", (FP32,), "int8", CPU) == FP32

    def test_fp32_that_is_not_there(self) -> None:
        with pytest.raises(BundleError, match="no variant with precision 'fp32'"):
            choose("g", (U8S8,), "fp32", CPU)


class TestGraph:
    def test_runs_in_place(self) -> None:
        toy = Graph("toy", TOY, CPU)
        x, total = toy.inputs["x"], toy.outputs["sum"]
        for value in (1.0, 5.0):
            x[:] = value
            toy.inputs["y"][:] = [1, 2, 3]
            toy.run()
            np.testing.assert_array_equal(total, value + np.tile([1, 2, 3], (2, 1)))
            np.testing.assert_array_equal(toy.outputs["double"], 2 * total)

    def test_bound_run_leaves_other_outputs_alone(self) -> None:
        toy = Graph("toy", TOY, CPU)
        toy.inputs["x"][:] = 1
        toy.bind("sum").run()
        assert np.all(toy.outputs["sum"] == 1)
        assert np.all(toy.outputs["double"] == 0)

    def test_one_graphs_output_is_anothers_input(self) -> None:
        first = Graph("first", TOY, CPU)
        second = Graph("second", TOY, CPU, share={"x": first.outputs["sum"]})
        assert second.inputs["x"] is first.outputs["sum"]
        first.inputs["x"][:] = 3
        first.run()
        second.run()
        assert np.all(second.outputs["double"] == 6)

    def test_integer_inputs(self) -> None:
        ids = Graph("ids", graph("(int64[1,2] i) => (float[1,2] o) { o = Cast<to=1>(i) }"), CPU)
        assert ids.inputs["i"].dtype == np.int64
        ids.inputs["i"][0] = [3, 4]
        ids.run()
        assert ids.outputs["o"].tolist() == [[3.0, 4.0]]

    def test_repeats_are_bit_equal_for_any_threads(self) -> None:
        model = stub.model("action_step")
        results = []
        for threads in (1, 2, 1):
            run = Graph("action_step", model, Machine("cpu", "avx2", threads))
            rng = np.random.default_rng(0)
            for array in run.inputs.values():
                array[:] = rng.random(array.shape) * 0.5
            run.run()
            results.append(run.outputs["v_action"].tobytes())
        assert len(set(results)) == 1


class TestRefusal:
    @pytest.mark.parametrize("data", [b"", b"not a graph", TOY[:40]])
    def test_not_a_graph(self, data: bytes) -> None:
        with pytest.raises(BundleError, match=r"graph toy: ONNX Runtime .* cannot load it"):
            Graph("toy", data, CPU)

    def test_dynamic_shapes(self) -> None:
        with pytest.raises(BundleError, match=r"'x' is tensor\(float\) .*only static"):
            Graph("toy", graph("(float[n,3] x) => (float[n,3] y) { y = Neg(x) }"), CPU)

    def test_other_types(self) -> None:
        with pytest.raises(BundleError, match=r"'x' is tensor\(double\)"):
            Graph("toy", graph("(double[3] x) => (double[3] y) { y = Neg(x) }"), CPU)

    def test_shared_buffer_of_another_shape(self) -> None:
        with pytest.raises(BundleError, match=r"'x' is float32 \(2, 3\), its other graph has float32 \(3, 2\)"):
            Graph("toy", TOY, CPU, share={"x": np.zeros((3, 2), np.float32)})

    def test_names_and_shapes_against_the_manifest(self) -> None:
        toy = Graph("toy", TOY, CPU)
        outputs = {"sum": (2, 3), "double": (2, 3)}
        toy.expect({"x": (2, 3), "y": (3,)}, outputs)
        with pytest.raises(BundleError, match=r"inputs are \['x', 'y'\], wanted \['x', 'z'\]"):
            toy.expect({"x": (2, 3), "z": (3,)}, outputs)
        with pytest.raises(BundleError, match=r"input 'y' has shape \(3,\), the manifest says \(4,\)"):
            toy.expect({"x": (2, 3), "y": (4,)}, outputs)

    @pytest.mark.parametrize("ep", ["cuda", "tensorrt"])
    def test_provider_that_is_not_there(self, ep: str) -> None:
        with pytest.raises(PolicyError, match="ExecutionProvider is not in this ONNX Runtime"):
            Graph("toy", TOY, Machine(ep, "avx2", 1))

    def test_silent_fallback(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A build that lists a provider, accepts it, and runs on another."""
        real = engine.runtime()
        fake = types.SimpleNamespace(**vars(real))
        fake.get_available_providers = lambda: ["CUDAExecutionProvider"]
        fake.InferenceSession = lambda model, options, providers: real.InferenceSession(model)
        monkeypatch.setattr(engine, "runtime", lambda: fake)
        with pytest.raises(PolicyError, match="runs on CPUExecutionProvider instead of the required CUDA"):
            Graph("toy", TOY, Machine("cuda", "avx2", 1))

    def test_graph_that_the_bundle_has_not(self, tmp_path: Path) -> None:
        opened = open_bundle(stub.write(tmp_path / "stub.dzp"), allow_test_key=True)
        assert load_graph(opened, "text", "auto", CPU).outputs["text"].shape == (1, 1, stub.D)
        with pytest.raises(BundleError, match="no graph 'joint_step'; it has: text"):
            load_graph(opened, "joint_step", "auto", CPU)


class TestInstallation:
    def test_missing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "onnxruntime", None)
        with pytest.raises(PolicyError, match=r"not installed: pip install 'dzedge\[cpu\]'"):
            engine.runtime()

    def test_one_removed_over_the_other(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "onnxruntime", types.ModuleType("onnxruntime"))
        with pytest.raises(PolicyError, match="uninstall both, then install one"):
            engine.runtime()

    def test_both_installed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(importlib.metadata, "distribution", lambda name: name)
        with pytest.raises(PolicyError, match="onnxruntime and onnxruntime-gpu own the same module"):
            engine.runtime()


class TestNoise:
    def test_same_seed_and_chunk_same_noise(self) -> None:
        first = Noise(3).of(7).standard_normal(64)
        np.testing.assert_array_equal(Noise(3).of(7).standard_normal(64), first)

    def test_every_chunk_begins_anew(self) -> None:
        noise = Noise(3)
        first = noise.of(7).standard_normal(64)
        noise.of(8).standard_normal(5, dtype=np.float32)
        np.testing.assert_array_equal(noise.of(7).standard_normal(64), first)

    @pytest.mark.parametrize(("seed", "chunk_id"), [(3, 8), (4, 7), (7, 3)])
    def test_next_seed_or_chunk_differs(self, seed: int, chunk_id: int) -> None:
        assert not np.array_equal(Noise(3).of(7).standard_normal(64), Noise(seed).of(chunk_id).standard_normal(64))

    def test_is_philox_of_the_two_keys(self) -> None:
        fresh = np.random.Generator(np.random.Philox(key=np.array([3, 7], np.uint64)))
        np.testing.assert_array_equal(Noise(3).of(7).standard_normal(64), fresh.standard_normal(64))

    def test_golden_words(self) -> None:
        """Philox-4x64-10 of key (1, 2): a replay must find these on every machine."""
        words = [5705853004827290377, 6584680345644299050, 680768428710196683]
        assert Noise(1).of(2).bit_generator.random_raw(3).tolist() == words
