"""Sessions: the required provider or none, what ran where, and a cache that changes nothing but the start."""

import types
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from dzedge import machine as machines
from dzedge import session as sessions
from dzedge.errors import BundleError, PolicyError
from dzedge.export import stub
from dzedge.graph_cache import FOLDER, GraphCache, state_folder
from dzedge.machine import PROVIDERS, Machine
from dzedge.session import Operator, fresh, placement, providers

CPU, CACHED = Machine("cpu", "avx2", 1), Machine("cpu", "avx2", 1, cache=True)
CUDA, TENSORRT = Machine("cuda", "avx2", 1), Machine("tensorrt", "avx2", 1)
BUNDLE = Path(__file__).resolve().parents[1] / "bundles" / "wam-nano.dzp"


def graph(text: str) -> bytes:
    data: bytes = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": 20]> toy {text}').SerializeToString()
    return data


TOY = graph("(float[2,3] x, float[3] y) => (float[2,3] double) { sum = Add(x, y) double = Mul(sum, sum) }")


def outputs(loaded: Any) -> list[bytes]:
    rng = np.random.default_rng(0)
    feeds = {
        node.name: (rng.random(node.shape) * 0.5).astype(sessions.DTYPES[node.type]) for node in loaded.get_inputs()
    }
    return [array.tobytes() for array in loaded.run(None, feeds)]


class TestProvider:
    @pytest.mark.parametrize("ep", ["cuda", "tensorrt"])
    def test_that_is_not_there(self, ep: str) -> None:
        with pytest.raises(PolicyError, match="ExecutionProvider is not in this ONNX Runtime"):
            fresh("toy", TOY, Machine(ep, "avx2", 1))

    @pytest.mark.parametrize("data", [b"", b"not a graph", TOY[:40]])
    def test_not_a_graph(self, data: bytes) -> None:
        for machine in (CPU, CACHED):
            with pytest.raises(BundleError, match=r"graph toy: ONNX Runtime .* cannot load it"):
                fresh("toy", data, machine)

    def test_options(self) -> None:
        assert providers(CPU) == [("CPUExecutionProvider", {})]
        assert providers(CUDA) == [("CUDAExecutionProvider", {})]
        captured = Machine("cuda", "avx2", 1, cuda_graph=True)
        assert providers(captured) == [("CUDAExecutionProvider", {"enable_cuda_graph": "1"})]
        captured = Machine("tensorrt", "avx2", 1, cuda_graph=True)
        (first, options), second = providers(captured, Path("/state/key"))
        assert (first, second) == ("TensorrtExecutionProvider", ("CUDAExecutionProvider", {}))
        assert options["trt_cuda_graph_enable"] == options["trt_engine_cache_enable"] == "1"
        assert options["trt_engine_cache_path"] == options["trt_timing_cache_path"] == "/state/key"
        assert not {"trt_fp16_enable", "trt_int8_enable"} & set(options), "types are the graph's own"
        assert providers(TENSORRT)[0] == ("TensorrtExecutionProvider", {})


class Fake:
    """A build that says it has a GPU. places: what its sessions say of where operators run; fails: whether they can
    only be made where operators may fall back; lies: whether they run on the CPU without a word."""

    def __init__(self, places: dict[str, str], fails: bool = False, lies: bool = False) -> None:
        self.real = machines.runtime()
        self.places, self.fails, self.lies = places, fails, lies
        self.made: list[list[Any]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def get_available_providers(self) -> list[str]:
        return list(PROVIDERS.values())

    def InferenceSession(self, model: bytes, options: Any, providers: list[Any], enable_fallback: int) -> Any:
        assert enable_fallback == 0, "ONNX Runtime's Python would go on with the CPU by itself"
        strict = _entry(options, sessions.NO_FALLBACK) == "1"
        self.made.append(providers)
        if strict and self.fails:
            raise RuntimeError("an operator is assigned to the CPU")
        parts = [
            types.SimpleNamespace(ep_name=ep, get_nodes=lambda n=name: [types.SimpleNamespace(name=n, op_type="Add")])
            for name, ep in self.places.items()
        ]
        first = "CPUExecutionProvider" if self.lies else providers[0][0]
        return types.SimpleNamespace(
            get_providers=lambda: [first, "CPUExecutionProvider"], get_provider_graph_assignment_info=lambda: parts
        )


def _entry(options: Any, key: str) -> str:
    try:
        return str(options.get_session_config_entry(key))
    except RuntimeError:
        return ""


class TestFallback:
    def fake(self, monkeypatch: pytest.MonkeyPatch, places: dict[str, str], **how: bool) -> Fake:
        fake = Fake({name: PROVIDERS[ep] for name, ep in places.items()}, **how)
        monkeypatch.setattr(machines, "runtime", lambda: fake)
        return fake

    def test_all_where_they_should_be(self, monkeypatch: pytest.MonkeyPatch) -> None:
        fake = self.fake(monkeypatch, {"a": "cuda", "b": "cuda"})
        assert fresh("toy", TOY, CUDA).operators == (
            Operator("a", "Add", "CUDAExecutionProvider"), Operator("b", "Add", "CUDAExecutionProvider"),
        )  # fmt: skip
        assert fake.made == [providers(CUDA)]

    def test_silent(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A build that lists a provider, accepts it, and runs on another."""
        self.fake(monkeypatch, {"a": "cpu"}, lies=True)
        with pytest.raises(PolicyError, match="runs on CPUExecutionProvider instead of the required CUDA"):
            fresh("toy", TOY, CUDA)

    def test_refused_by_onnx_runtime_without_saying_which(self, monkeypatch: pytest.MonkeyPatch) -> None:
        fake = self.fake(monkeypatch, {"a": "cuda", "b": "cpu"}, fails=True)
        with pytest.raises(PolicyError, match=r"graph toy: 1 operators do not run on CUDAExec.*: b \(Add\) on CPUExec"):
            fresh("toy", TOY, CUDA)
        assert len(fake.made) == 2, "once strictly, once to find out"

    def test_recorded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        many = {f"n{i}": "cpu" for i in range(20)} | {"a": "cuda"}
        self.fake(monkeypatch, many)
        with pytest.raises(PolicyError, match=r"20 operators do not run .* n7 \(Add\) on CPU\w+ and 12 more;"):
            fresh("toy", TOY, CUDA)

    def test_tensorrt_may_be_helped_by_cuda_and_that_is_told(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.fake(monkeypatch, {"a": "tensorrt", "b": "cuda"})
        operators = fresh("toy", TOY, TENSORRT).operators
        assert operators is not None
        assert [one.name for one in sessions.elsewhere(operators, TENSORRT)] == ["b"]
        assert sessions.counts(operators) == {PROVIDERS["tensorrt"]: 1, PROVIDERS["cuda"]: 1}

    @pytest.mark.parametrize("places", [{"a": "cuda", "b": "cuda"}, {"a": "tensorrt", "b": "cpu"}])
    def test_but_not_replaced(self, monkeypatch: pytest.MonkeyPatch, places: dict[str, str]) -> None:
        self.fake(monkeypatch, places)
        with pytest.raises(PolicyError, match="do not run on TensorrtExecutionProvider"):
            fresh("toy", TOY, TENSORRT)


class TestPlacement:
    def test_recorded(self) -> None:
        found = placement("toy", TOY, CPU)
        assert {(one.kind, one.provider) for one in found} == {(kind, PROVIDERS["cpu"]) for kind in ("Add", "Mul")}
        assert sessions.elsewhere(found, CPU) == ()
        assert len(sessions.elsewhere(found, CUDA)) == 2

    def test_by_a_profile_where_nothing_is_recorded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sessions, "_recorded", lambda made: None)
        model = stub.model("text")
        assert fresh("text", model, CPU).operators is None
        sessions._made.cache_clear()
        found = placement("text", model, CPU)
        assert {one.provider for one in found} == {PROVIDERS["cpu"]}
        assert "MatMul" in {one.kind for one in found}
        sessions._made.cache_clear()


class TestCache:
    @pytest.fixture(autouse=True)
    def folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
        monkeypatch.delenv("STATE_DIRECTORY", raising=False)

    def files(self) -> list[Path]:
        return sorted((state_folder() / FOLDER).glob("*.kept"))

    @pytest.mark.parametrize("file", ["video_step.fp32.onnx", "video_step.s8s8.onnx", "frame_encoder.u8s8.onnx"])
    def test_results_are_the_same_bits(self, file: str) -> None:
        model = (BUNDLE / file).read_bytes()
        plain, first, second = (fresh("g", model, machine) for machine in (CPU, CACHED, CACHED))
        assert (plain.cached, first.cached, second.cached) == (False, False, True)
        assert outputs(plain.onnx) == outputs(first.onnx) == outputs(second.onnx)
        assert len(self.files()) == 1

    def test_threads_share_it(self) -> None:
        fresh("g", TOY, CACHED)
        assert fresh("g", TOY, Machine("cpu", "avx2", 2, cache=True)).cached

    def test_what_matters_has_its_own(self, monkeypatch: pytest.MonkeyPatch) -> None:
        key = sessions._key(TOY, CACHED, "1.0")
        assert key == sessions._key(TOY, CACHED, "1.0")
        others = [
            sessions._key(TOY + b" ", CACHED, "1.0"),
            sessions._key(TOY, CACHED, "1.1"),
            sessions._key(TOY, CUDA, "1.0"),
            sessions._key(TOY, Machine("cpu", "avx2", 1, in_float=True), "1.0"),
        ]
        monkeypatch.setattr(machines, "device", lambda ep: "another")
        others.append(sessions._key(TOY, CACHED, "1.0"))
        assert len({key, *others}) == 6

    def test_off(self) -> None:
        fresh("g", TOY, CPU)
        assert not state_folder().exists()

    def test_altered_is_made_again(self) -> None:
        fresh("g", TOY, CACHED)
        (file,) = self.files()
        good = file.read_bytes()
        file.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
        assert not fresh("g", TOY, CACHED).cached
        assert self.files()[0].read_bytes() == good

    def test_that_onnx_runtime_refuses_is_made_again(self) -> None:
        key = sessions._key(TOY, CACHED, machines.runtime().__version__)
        GraphCache.of_this_machine().write(key, b"not a graph")
        assert not fresh("g", TOY, CACHED).cached
        assert fresh("g", TOY, CACHED).cached

    def test_a_folder_of_others_is_not_used(self) -> None:
        folder = state_folder() / FOLDER
        folder.mkdir(parents=True)
        folder.chmod(0o777)
        assert not fresh("g", TOY, CACHED).cached
        assert not fresh("g", TOY, CACHED).cached
        assert not list(folder.iterdir())

    def test_but_tensorrt_says_so(self, monkeypatch: pytest.MonkeyPatch) -> None:
        folder = state_folder() / FOLDER
        folder.mkdir(parents=True)
        folder.chmod(0o777)
        fake = Fake({"a": PROVIDERS["tensorrt"]})
        monkeypatch.setattr(machines, "runtime", lambda: fake)
        with pytest.raises(PolicyError, match=r"graph cache .* mode 777; remove it"):
            fresh("g", TOY, Machine("tensorrt", "avx2", 1, cache=True))
        folder.chmod(0o700)
        fresh("g", TOY, Machine("tensorrt", "avx2", 1, cache=True))
        path = Path(fake.made[-1][0][1]["trt_engine_cache_path"])
        assert path.parent == folder and path.stat().st_mode & 0o777 == 0o700

    def test_a_full_disk_does_not_stop_a_robot(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(self: GraphCache, key: str, model: bytes) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(GraphCache, "write", full)
        assert outputs(fresh("g", TOY, CACHED).onnx) == outputs(fresh("g", TOY, CPU).onnx)
