"""Graphs and weights apart: what ONNX Runtime computes from them is what the module computes, chained too."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from torch import Tensor

from dzedge.errors import UsageError
from dzedge.export import layered, official_stub
from dzedge.export.model.graphs import Graph
from dzedge.export.model.wan_config import Config, Window
from dzedge.export.model.wan_joint import WanJoint
from dzedge.export.official_graphs import half_graphs, official_graphs
from dzedge.export.official_keys import expected

TOY = Config(
    width=48, layers=2, heads=2, feed=96, channels=16, condition_channels=20, latent_height=4, latent_width=6,
    text_tokens=5, text_width=16, image_tokens=3, image_width=8, action_width=6, state_width=7, hidden=32,
    time_width=16, actions=8, window=3, state_sees_all=True,
)  # fmt: skip


class Drawn:
    """Weights made when they are read. reads: how often each was."""

    def __init__(self, shapes: dict[str, tuple[int, ...]]) -> None:
        self.shapes = shapes
        self.reads: list[str] = []

    def names(self) -> list[str]:
        return list(self.shapes)

    def shape(self, name: str) -> tuple[int, ...]:
        return self.shapes[name]

    def read(self, name: str) -> Tensor:
        self.reads.append(name)
        return official_stub.drawn(name, self.shapes[name])


def module() -> WanJoint:
    model = WanJoint(TOY)
    model.load_state_dict({name: official_stub.drawn(name, shape) for name, shape in expected(TOY).items()})
    return model.eval()


@pytest.fixture(scope="module")
def weights() -> Drawn:
    return Drawn(expected(TOY))


@pytest.fixture(scope="module")
def paths(weights: Drawn, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return layered.export_layered(
        lambda: official_graphs(WanJoint(TOY)), weights, tmp_path_factory.mktemp("parts")
    )  # fmt: skip


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def run(path: Path, feed: dict[str, Any]) -> list[NDArray[np.float32]]:
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [given.name for given in session.get_inputs()]
    return session.run(None, {name: np.asarray(feed[name], np.float32) for name in names})


def differ(found: list[NDArray[np.float32]], wanted: tuple[Tensor, ...]) -> float:
    """Largest difference of any output, by the output's size."""
    return max(
        float(np.abs(a - b.numpy()).max() / b.abs().max()) for a, b in zip(found, wanted, strict=True)
    )  # fmt: skip


class TestParity:
    @pytest.mark.parametrize("name", ["context", "prefill_first", "prefill", "joint_step"])
    def test_each_graph(self, paths: dict[str, Path], name: str) -> None:
        graph = next(graph for graph in official_graphs(module()) if graph.name == name)
        wanted = graph.module(*graph.inputs.values())
        feed = {key: value.numpy() for key, value in graph.inputs.items()}
        assert differ(run(paths[name], feed), wanted) < 1e-5
        for key in feed:  # every input counts; not by a scale and a shift alone, which a norm takes away
            wave = np.cos(np.arange(feed[key].size, dtype=np.float32)).reshape(feed[key].shape)
            other = feed | {key: feed[key] * 0.5 + 0.1 * wave}
            assert differ(run(paths[name], other), wanted) > 1e-5, key

    def test_chained_is_the_model(self, paths: dict[str, Path]) -> None:
        """Prompt, first frame, one block, then a denoise step: rows go from graph to graph as a host carries them."""
        model, rng = module(), np.random.default_rng(0)

        def noise(*shape: int) -> NDArray[np.float32]:
            return rng.standard_normal(shape, dtype=np.float32)

        cells = TOY.latent_height * TOY.latent_width
        text, image = noise(1, 5, 16), noise(1, 3, 8)
        frames, condition = noise(1, 5, cells, 16), noise(1, 5, cells, 20)
        action, state = noise(1, 8, 6), noise(1, 7)
        key_text, value_text = run(paths["context"], {"text": text, "image": image})
        rows = (TOY.window, TOY.layers, TOY.heads, TOY.tokens, TOY.head_width)
        key, value, seen = np.zeros(rows, np.float32), np.zeros(rows, np.float32), 0

        def kept(ahead: int) -> dict[str, Any]:
            place = np.arange(seen - TOY.window, seen + ahead, dtype=np.float32)[None]
            valid = (place[:, : TOY.window] >= 0).astype(np.float32)
            return {"key": key, "value": value, "slot_pos": place, "valid": valid, "key_text": key_text,
                    "value_text": value_text}  # fmt: skip

        for name, part in (("prefill_first", slice(0, 1)), ("prefill", slice(1, 3))):
            feed = {"latent": frames[:, part], "condition": condition[:, part], **kept(part.stop - part.start)}
            new = run(paths[name], feed)
            key, value = (np.concatenate([*pair])[-TOY.window :] for pair in zip((key, value), new, strict=True))
            seen = part.stop
        found = run(paths["joint_step"], {
            "video": frames[:, 3:5], "condition": condition[:, 3:5], "action": action, "prefix": 0.0 * action,
            "prefix_mask": np.zeros((1, 8)), "state": state, "t_video": [0.3], "t_action": [0.6], **kept(2),
        })  # fmt: skip

        assert differ(found, self.whole(model, text, image, frames, condition, action, state)) < 1e-5

    @staticmethod
    def whole(
        model: WanJoint, text: NDArray[np.float32], image: NDArray[np.float32], frames: NDArray[np.float32],
        condition: NDArray[np.float32], action: NDArray[np.float32], state: NDArray[np.float32],
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """The same by the module alone, on grids of latents."""

        def grid(cells: NDArray[np.float32]) -> Tensor:
            folded = torch.from_numpy(cells).transpose(2, 3)
            return folded.unflatten(3, (TOY.latent_height, TOY.latent_width))

        context = model.context(torch.from_numpy(text), torch.from_numpy(image))
        video, extra = grid(frames), grid(condition)
        rows = (1, TOY.window, TOY.layers, TOY.heads, TOY.tokens, TOY.head_width)
        key, value, seen = torch.zeros(rows), torch.zeros(rows), 0

        def window(ahead: int) -> Window:
            place = torch.arange(seen - TOY.window, seen + ahead, dtype=torch.float32)[None]
            return Window(key, value, place, (place[:, : TOY.window] >= 0).float())

        for part in (slice(0, 1), slice(1, 3)):
            new = model.prefill(video[:, part], context, window(part.stop - part.start), extra[:, part])
            key, value = (torch.cat([*pair], 1)[:, -TOY.window :] for pair in zip((key, value), new, strict=True))
            seen = part.stop
        actions = torch.from_numpy(action)
        v_video, v_action = model(
            video[:, 3:5], actions, 0.0 * actions, torch.zeros(1, 8), torch.from_numpy(state).unsqueeze(1), context,
            window(2), torch.tensor([0.3]), torch.tensor([0.6]), extra[:, 3:5],
        )  # fmt: skip
        return v_video.flatten(3).transpose(2, 3), v_action

    def test_half(self, tmp_path: Path) -> None:
        """float16 inside, float32 outside; near the float32 module, and not equal to it."""
        shapes = expected(TOY)
        prompt = re.compile(r"text_embedding|img_emb|.*cross_attn\.(norm_)?[kv]")
        step = Drawn({name: shape for name, shape in shapes.items() if not prompt.match(name)})
        found = layered.export_layered(lambda: half_graphs(WanJoint(TOY))[-1:], step, tmp_path, torch.float16)
        graph = official_graphs(module())[-1]
        feed = {key: value.numpy() for key, value in graph.inputs.items()}
        outputs = run(found["joint_step"], feed)
        assert {output.dtype for output in outputs} == {np.dtype(np.float32)}
        assert 1e-6 < differ(outputs, graph.module(*graph.inputs.values())) < 1e-2


class TestFiles:
    def test_no_weight_lies_in_a_graph(self, paths: dict[str, Path]) -> None:
        for path in paths.values():
            for tensor in onnx.load(str(path), load_external_data=False).graph.initializer:
                where = {entry.key: entry.value for entry in tensor.external_data}
                named = tensor.name.startswith(("trunk.", "inner."))
                assert where.get("location") == (layered.WEIGHTS if named else None), tensor.name

    def test_weights_are_safetensors_and_shared(self, paths: dict[str, Path], weights: Drawn) -> None:
        """Every weight once, whatever the number of graphs; matrices lie as the graphs multiply them."""
        with safe_open(paths["context"].parent / layered.WEIGHTS, framework="pt") as file:
            names = set(file.keys())
            turned = file.get_tensor("blocks.1.ffn.0.weight.turned")
            plain = file.get_tensor("action_encoder.W1.W")
        assert {name.removesuffix(".turned") for name in names} == set(weights.names())
        assert torch.equal(turned, official_stub.drawn("blocks.1.ffn.0.weight", (96, 48)).t())
        assert torch.equal(plain, official_stub.drawn("action_encoder.W1.W", (1, 6, 48))[0])
        assert sorted(weights.reads[: len(names)]) == sorted(weights.names())

    def test_nothing_is_left_to_be_turned(self, paths: dict[str, Path]) -> None:
        for path in paths.values():
            graph = onnx.load(str(path), load_external_data=False).graph
            large = {tensor.name for tensor in graph.initializer if tensor.external_data}
            kinds = {node.op_type for node in graph.node if large & set(node.input)}
            assert not kinds & {"Transpose", "Reshape", "Squeeze", "Unsqueeze", "Gather"}, kinds

    def test_first_byte_is_aligned(self, paths: dict[str, Path]) -> None:
        raw = (paths["context"].parent / layered.WEIGHTS).read_bytes()
        size = int.from_bytes(raw[:8], "little")
        assert (8 + size) % layered.ALIGNMENT == 0
        assert len(raw) == 8 + size + max(entry["data_offsets"][1] for entry in json.loads(raw[8 : 8 + size]).values())

    def test_no_path_of_this_machine(self, paths: dict[str, Path]) -> None:
        for path in paths.values():
            raw = path.read_bytes()
            assert b"/export/" not in raw and str(path.parent).encode() not in raw


class Linear(torch.nn.Module):
    """One weight used in two ways: as it is, and turned."""

    def __init__(self, turned: bool) -> None:
        super().__init__()
        self.trunk = torch.nn.Linear(3, 3, bias=False)
        self.turned = turned

    def forward(self, rows: Tensor) -> Tensor:
        return self.trunk(rows) if self.turned else rows @ self.trunk.weight


def linear(*turned: bool) -> list[Graph]:
    return [Graph(f"g{int(each)}", Linear(each), {"rows": torch.ones(1, 2, 3)}, ("out",)) for each in turned]


class TestLayouts:
    def test_two_graphs_may_want_two(self, tmp_path: Path) -> None:
        weights = Drawn({"weight": (3, 3)})
        found = layered.export_layered(lambda: linear(False, True), weights, tmp_path)
        weight, rows = official_stub.drawn("weight", (3, 3)).numpy(), np.arange(6.0, dtype=np.float32).reshape(1, 2, 3)
        np.testing.assert_allclose(run(found["g1"], {"rows": rows})[0], rows @ weight.T, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(run(found["g0"], {"rows": rows})[0], rows @ weight, rtol=1e-5, atol=1e-6)
        with safe_open(tmp_path / layered.WEIGHTS, framework="pt") as file:
            assert sorted(file.keys()) == ["weight", "weight.turned"]


class TestErrors:
    def test_weights_that_are_missing_or_left_over(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match=r"g1: no weights for trunk\.weight"):
            layered.export_layered(lambda: linear(True), Drawn({}), tmp_path)
        with pytest.raises(UsageError, match="no graph uses other"):
            layered.export_layered(lambda: linear(True), Drawn({"weight": (3, 3), "other": (1,)}), tmp_path)

    def test_weights_that_float16_cannot_hold(self, tmp_path: Path) -> None:
        class Large(Drawn):
            def read(self, name: str) -> Tensor:
                return torch.full((3, 3), 1e5)

        large = Large({"weight": (3, 3)})
        layered.write({"weight": ("weight", layered.Layout((3, 3)))}, large, tmp_path / "w", torch.float32)
        with pytest.raises(UsageError, match="weight does not fit"):
            layered.write({"weight": ("weight", layered.Layout((3, 3)))}, large, tmp_path / "w", torch.float16)

    def test_dtype(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="bfloat16, allowed"):
            layered.export_layered(lambda: linear(True), Drawn({"weight": (3, 3)}), tmp_path, torch.bfloat16)
