"""The engine: buffers without copies on a CPU, and with as few as can be on a device; clear refusals; noise."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from dzedge import engine
from dzedge.bundle import open_bundle
from dzedge.engine import Graph, Machine, Noise, load_graph, variants
from dzedge.errors import BundleError
from dzedge.export import stub
from dzedge.policies import FAMILIES
from dzedge.types import ActionPrefix

CPU = Machine("cpu", "avx2", 1)


def graph(text: str, name: str = "toy") -> bytes:
    data: bytes = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": 20]> {name} {text}').SerializeToString()
    return data


TOY = graph("(float[2,3] x, float[3] y) => (float[2,3] sum, float[2,3] double) "
            "{ sum = Add(x, y) double = Add(sum, sum) }")  # fmt: skip
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

    def test_graph_that_the_bundle_has_not(self, tmp_path: Path) -> None:
        opened = open_bundle(stub.write(tmp_path / "stub.dzp"), allow_test_key=True)
        assert load_graph(opened, "text", "auto", CPU).outputs["text"].shape == (1, 1, stub.D)
        with pytest.raises(BundleError, match="no graph 'joint_step'; it has: text"):
            load_graph(opened, "joint_step", "auto", CPU)

    def test_precision_that_the_bundle_has_not(self, tmp_path: Path) -> None:
        opened = open_bundle(stub.write(tmp_path / "stub.dzp"), allow_test_key=True)
        assert {variant.precision for variant in variants(opened, "auto", CPU).values()} == {"fp32"}
        for ask in (variants, lambda *way: load_graph(way[0], "text", *way[1:])):
            with pytest.raises(BundleError, match=r"stub.dzp: no graph has precision 'int8'; it has fp32"):
                ask(opened, "int8", CPU)


class TestDevice:
    """Buffers with twins on a device, whose memory here is the CPU's: another than the arrays' all the same."""

    @pytest.fixture(autouse=True)
    def twins(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(engine, "DEVICES", {"cpu": "cpu"})

    def test_what_a_run_reads_and_fills(self) -> None:
        toy = Graph("toy", TOY, CPU)
        for value in (1.0, 5.0):
            toy.inputs["x"][:] = value
            toy.run()
            assert np.all(toy.outputs["double"] == 2 * value)

    def test_inputs_are_copied_not_read_in_place(self) -> None:
        toy = Graph("toy", TOY, CPU)
        toy.inputs["x"][:] = 1
        toy.run()
        assert toy._values["x"].ort.numpy() is not toy.inputs["x"]
        toy.inputs["x"][:] = 7
        assert np.all(toy._values["x"].ort.numpy() == 1)

    def test_bound_run_brings_back_its_own_outputs(self) -> None:
        toy = Graph("toy", TOY, CPU)
        toy.inputs["x"][:] = 1
        toy.bind("sum").run()
        assert np.all(toy.outputs["sum"] == 1)
        assert np.all(toy.outputs["double"] == 0)

    def test_an_output_given_to_another_stays_there(self) -> None:
        second = Graph("second", TOY, CPU)
        first = Graph("first", TOY, CPU, share={"sum": second.inputs["x"]})
        first.inputs["x"][:] = 3
        first.run()
        second.run()
        assert np.all(second.outputs["double"] == 6)
        assert np.all(second.inputs["x"] == 0), "copied back to the host for nobody"

    def test_an_output_taken_by_another_also_comes_back(self) -> None:
        first = Graph("first", TOY, CPU)
        second = Graph("second", TOY, CPU, share={"x": first.outputs["sum"]})
        first.inputs["x"][:] = 3
        first.run()
        second.run()
        assert np.all(second.outputs["double"] == 6)
        assert np.all(first.outputs["sum"] == 3)

    def test_a_write_that_would_never_get_there_is_refused(self) -> None:
        second = Graph("second", TOY, CPU)
        second.inputs["x"][:] = 1
        Graph("first", TOY, CPU, share={"sum": second.inputs["x"]})
        with pytest.raises(ValueError, match="read-only"):
            second.inputs["x"][:] = 2
        second.put("x", np.full((2, 3), 4, np.float32))
        second.run()
        assert np.all(second.outputs["double"] == 8)

    def test_what_is_kept_is_sent_when_it_is_said(self) -> None:
        toy = Graph("toy", TOY, CPU)
        toy.keep("x")
        toy.inputs["x"][:] = 1
        toy.run()
        assert np.all(toy.outputs["sum"] == 0)
        toy.send("x")
        toy.run()
        assert np.all(toy.outputs["sum"] == 1)

    def test_what_stays_there_can_be_looked_at(self) -> None:
        second = Graph("second", TOY, CPU)
        first = Graph("first", TOY, CPU, share={"sum": second.inputs["x"]})
        first.inputs["x"][:] = 3
        assert np.all(first.get("x") == 3), "an input that was not sent yet"
        first.run()
        assert np.all(first.get("sum") == 3)

    @pytest.mark.parametrize("family", sorted(stub.FAMILIES))
    def test_every_family_decides_the_same(
        self, family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        opened = open_bundle(stub.write(tmp_path / "stub.dzp", stub.section(family)), allow_test_key=True)
        nothing = ActionPrefix(np.zeros((0, stub.J)))
        found = []
        for devices in ({"cpu": "cpu"}, {}):
            monkeypatch.setattr(engine, "DEVICES", devices)
            policy = FAMILIES[family](opened, CPU, camera=(120, 160))
            for chunk_id, words in enumerate(("reach the red cube", "push the blue cube")):
                policy.reset(words)
                chunk = policy.infer(stub.observation(3 * chunk_id, 3 * chunk_id + 3), nothing, chunk_id)
                found.append((chunk.positions.tobytes(), np.asarray(chunk.imagined).tobytes()))
        assert found[:2] == found[2:]
        assert found[0] != found[1]


class TestMemory:
    def test_counts_what_a_graph_brings_along(self) -> None:
        first = Graph("first", TOY, CPU)
        assert first.nbytes == (6 + 3 + 6 + 6) * 4
        assert Graph("second", TOY, CPU, share={"x": first.outputs["sum"]}).nbytes == (3 + 6 + 6) * 4


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
