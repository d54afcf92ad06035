"""The world action model cut into graphs: the loop over them is the module, at both opsets, told actions or not."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dzedge.bundle import open_bundle
from dzedge.engine import Machine, Noise
from dzedge.errors import PolicyError, UsageError
from dzedge.export import parity, stub
from dzedge.export.fit_tokenizer import Tokenizer
from dzedge.export.model.blocks import velocity
from dzedge.export.model.graphs import Examples, graphs
from dzedge.export.model.moments import Moments
from dzedge.export.model.sizes import Sizes
from dzedge.export.model.text import words_of
from dzedge.export.model.wam import Given, Wam
from dzedge.export.onnx import export_all
from dzedge.export.package import Release, package
from dzedge.kernels.image import ImagePlan
from dzedge.minisign import SecretKey
from dzedge.policies import WorldActionModel
from dzedge.policies.sampler import Sampler
from dzedge.types import ActionPrefix, Observation

SIZES = Sizes(width=32, layers=1, heads=2, encoder_width=4, decoder_width=4, given=True)
MOMENTS = replace(Moments.neutral(SIZES), residual_std=np.full((4, 7, 10), 0.3))
CPU, SEED = Machine("cpu", "avx2", 1), 5
COMMITTED = stub.STATE + np.array([[0.01], [0.02]])
NOTHING = ActionPrefix(np.zeros((0, 6)))

pytestmark = pytest.mark.slow


def awake(sizes: Sizes) -> Wam:
    torch.manual_seed(3)
    model = Wam(sizes).eval()
    for name, part in model.named_modules():  # a fresh trunk's heads are zero; zeros prove nothing
        if isinstance(part, nn.Linear) and name.rsplit(".", 1)[-1] in ("shared", "leave"):
            nn.init.normal_(part.weight, std=0.2)
    return model


@pytest.fixture(scope="module")
def made() -> tuple[Wam, Tokenizer]:
    model = awake(SIZES)
    nn.init.normal_(model.text.points, std=0.1)
    return model, Tokenizer(SIZES).eval()


@pytest.fixture(scope="module")
def folder(made: tuple[Wam, Tokenizer], tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("bundle") / "toy.dzp"
    secret = SecretKey.decode(stub.TEST_SECRET.read_text(), "test.key")
    package(target, *made, MOMENTS, Release("toy", 1, max_prefix=3), secret, "2026-01-01T00:00:00Z")
    return target


def policy(folder: Path, sampler: str) -> WorldActionModel:
    found = WorldActionModel(open_bundle(folder, allow_test_key=True), CPU, (120, 160), sampler=sampler, seed=SEED)
    found.reset(stub.ASKED)
    return found


class Module:
    """The module itself, pass by pass, on what the robot sees: what the loop over the graphs must come to."""

    def __init__(self, made: tuple[Wam, Tokenizer], seen: Observation, chunk_id: int) -> None:
        self.model, tokenizer = made
        plan, self.latents = ImagePlan(120, 160, None, 72, 96), []
        for frame in seen.frames[::-1]:
            image = np.empty((3, 72, 96), np.float32)
            plan.run(frame.image, image)
            self.latents.append(tokenizer.encoder(torch.from_numpy(image[None])))
        there = len(self.latents)
        empty = [torch.zeros_like(self.latents[0])] * (SIZES.window - there)
        self.window = self.model.window(torch.stack([*self.latents, *empty], dim=1))
        ages = [(frame.capture_ns - seen.t_obs_ns) / 2e8 for frame in seen.frames[::-1]] + [0.0] * len(empty)
        self.moments = torch.tensor([ages], dtype=torch.float32), (torch.arange(SIZES.window) < there).float()[None]
        self.text = self.model.text(torch.tensor([words_of(stub.ASKED, SIZES.words)]))
        noise = Noise(SEED).of(chunk_id)
        self.noise = tuple(
            torch.from_numpy(noise.standard_normal(shape, dtype=np.float32)) for shape in ((1, 4, 7, 10), (1, 8, 6))
        )

    def video(self, video: Tensor, at: float, given: Given | None = None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        time, body = torch.tensor([at]), torch.zeros(1, dtype=torch.int64)
        given = given or (torch.zeros(1, 8, 6), torch.zeros(1))
        inputs = (video, self.latents[0], self.window, *self.moments, self.text, time, body, given)
        clean, rows, _ = self.model.video(*inputs)
        return velocity(clean, video, time), rows

    def action(self, action: Tensor, rows: tuple[Tensor, Tensor], at: float, committed: NDArray[np.float64]) -> Tensor:
        prefix, mask, time = torch.zeros(1, 8, 6), torch.zeros(1, 8), torch.tensor([at])
        prefix[0, : len(committed)] = torch.from_numpy((committed - stub.STATE) / 0.02).float()
        mask[0, : len(committed)] = 1.0
        state = torch.from_numpy(stub.STATE[None]).float()
        return velocity(self.model.action(action, prefix, mask, state, rows, time), action, time)

    @torch.no_grad()
    def chunk(
        self, sampler: Sampler, committed: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
        video, action = self.noise
        if sampler.coupled:
            for step in range(sampler.video_steps):
                moved, rows = self.video(video, step / sampler.video_steps)
                action = action + self.action(action, rows, step / sampler.video_steps, committed) / sampler.video_steps
                video = video + moved / sampler.video_steps
        else:
            for step in range(sampler.video_steps):
                video = video + self.video(video, step / sampler.video_steps)[0] / sampler.video_steps
            _, rows = self.video(video, 1.0)
            for step in range(sampler.action_steps):
                moved = self.action(action, rows, step / sampler.action_steps, committed)
                action = action + moved / sampler.action_steps
        return stub.STATE + action[0].numpy().astype(np.float64) * 0.02, self.future(video)

    @torch.no_grad()
    def future(self, video: Tensor) -> NDArray[np.float32]:
        return (self.latents[0] + 0.3 * video[0]).numpy()


class TestLoop:
    @pytest.mark.parametrize("numbers", [(3,), (0, 3)])
    @pytest.mark.parametrize("sampler", ["video_first(3,2)", "joint(2)", "flash(1)"])
    def test_is_the_module(
        self, made: tuple[Wam, Tokenizer], folder: Path, sampler: str, numbers: tuple[int, ...]
    ) -> None:
        with torch.no_grad():
            module = Module(made, stub.observation(*numbers), 7)
        positions, future = module.chunk(Sampler.parse(sampler), COMMITTED)
        found = policy(folder, sampler).infer(stub.observation(*numbers), ActionPrefix(COMMITTED), 7)
        np.testing.assert_allclose(found.positions, positions, atol=1e-6)
        np.testing.assert_allclose(found.imagined, future, atol=1e-5)
        assert np.abs(positions - stub.STATE).max() > 0.01, "it wants to move"

    def test_of_chunk_after_chunk_is_that_of_a_fresh_one(self, folder: Path) -> None:
        """Rows that stay in the window, rows that are new in it, a slot that falls empty."""
        used = policy(folder, "video_first(1,1)")
        for numbers in ((0, 3), (3, 5), (5,), (0, 3), (1, 3)):
            fresh = policy(folder, "video_first(1,1)").infer(stub.observation(*numbers), NOTHING, 2)
            np.testing.assert_array_equal(used.infer(stub.observation(*numbers), NOTHING, 2).positions, fresh.positions)

    def test_words_of_a_new_task_reach_every_time(self, folder: Path) -> None:
        used, fresh = policy(folder, "video_first(3,2)"), policy(folder, "video_first(3,2)")
        used.infer(stub.observation(0, 3), NOTHING, 2)
        for made_new in (used, fresh):
            made_new.reset("press the blue cube")
        chunks = [p.infer(stub.observation(0, 3), NOTHING, 2).positions for p in (used, fresh)]
        np.testing.assert_array_equal(*chunks)
        red = policy(folder, "video_first(3,2)").infer(stub.observation(0, 3), NOTHING, 2).positions
        assert np.abs(chunks[0] - red).max() > 1e-5


class TestGiven:
    """Imagine what comes of these actions."""

    ACTIONS = stub.STATE + 0.02 * np.random.default_rng(1).standard_normal((8, 6))

    def test_is_the_module_that_is_told(self, made: tuple[Wam, Tokenizer], folder: Path) -> None:
        with torch.no_grad():
            module = Module(made, stub.observation(0, 3), 7)
            given = torch.from_numpy((self.ACTIONS - stub.STATE)[None] / 0.02).float(), torch.ones(1)
            video = module.noise[0]
            for step in range(2):
                video = video + module.video(video, step / 2, given)[0] / 2
        found = policy(folder, "video_first(2,1)").imagine(stub.observation(0, 3), 7, self.ACTIONS)
        np.testing.assert_allclose(found, module.future(video), atol=1e-5)

    def test_other_actions_other_future_and_none_the_next_time(self, folder: Path) -> None:
        used = policy(folder, "video_first(2,1)")
        free = used.imagine(stub.observation(0, 3), 7)
        told = used.imagine(stub.observation(0, 3), 7, self.ACTIONS)
        other = used.imagine(stub.observation(0, 3), 7, self.ACTIONS[::-1])
        assert np.abs(told - free).max() > 1e-4
        assert np.abs(told - other).max() > 1e-4
        np.testing.assert_array_equal(used.imagine(stub.observation(0, 3), 7), free)
        np.testing.assert_array_equal(used.infer(stub.observation(0, 3), NOTHING, 7).imagined, free)

    def test_a_chunk_of_another_shape(self, folder: Path) -> None:
        with pytest.raises(PolicyError, match=r"shape \(7, 6\): must be \(8, 6\)"):
            policy(folder, "flash(1)").imagine(stub.observation(0, 3), 7, self.ACTIONS[:7])

    def test_a_model_that_cannot_be_told(self, tmp_path: Path) -> None:
        opened = open_bundle(stub.write(tmp_path / "stub.dzp"), allow_test_key=True)
        with pytest.raises(PolicyError, match="stub cannot be told actions"):
            WorldActionModel(opened, CPU, (120, 160)).imagine(stub.observation(3), 7, self.ACTIONS)


class TestPatches:
    """Tokens of an image's patches: nothing points at them."""

    NAMES = ("text", "video_step")

    SIZES = Sizes(
        width=16, layers=1, heads=2, tokenizer="vae", tokens=12, channels=6, image_height=48, image_width=64, cell=16,
        vocabulary=12, window=3,
    )  # fmt: skip

    def test_graphs_have_the_same_boundary(self, tmp_path: Path) -> None:
        model = awake(self.SIZES)
        cut = [graph for graph in graphs(model, nn.Identity(), nn.Identity(), seed=5) if graph.name in self.NAMES]
        files = export_all(cut, tmp_path)
        found = parity.check(cut, files)
        assert {row.graph for row in found} == set(self.NAMES)
        for graph in cut:
            assert [i.name for i in parity.session(files[graph.name]).get_inputs()] == list(graph.inputs)
        assert not set(Examples(self.SIZES, 0).context()) & {"given", "has_given"}


class TestOpset:
    def test_23_gives_the_same(self, made: tuple[Wam, Tokenizer], tmp_path: Path) -> None:
        steps = ("video_step", "action_step")
        cut = [graph for graph in graphs(made[0], nn.Identity(), nn.Identity(), seed=5) if graph.name in steps]
        files = export_all(cut, tmp_path, opset=23)
        parity.check(cut, files)
        model = onnx.load(str(files["action_step"]))
        assert [o.version for o in model.opset_import if o.domain in ("", "ai.onnx")] == [23]
        assert any(node.op_type == "Attention" for node in model.graph.node)

    def test_another_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="opset 24: must be one of 20, 23"):
            export_all(graphs(awake(SIZES), nn.Identity(), nn.Identity())[:1], tmp_path, opset=24)


def test_times_of_a_sampler_are_each_there_once() -> None:
    assert Sampler.parse("video_first(4,2)").times == (0.0, 0.25, 0.5, 0.75, 1.0)
    assert Sampler.parse("flash(1)").times == (0.0, 1.0)
