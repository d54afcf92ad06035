"""From torch to files: parity, int8, windows, a signed bundle, a checkpoint that goes on where it stopped."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from dzedge.bundle import open_bundle
from dzedge.errors import UsageError
from dzedge.export import fit_tokenizer, optim, parity, quantize, rollout, stills
from dzedge.export.fit_tokenizer import Tokenizer
from dzedge.export.fit_wam import Sampler, WamRecipe, figures, fit, load
from dzedge.export.model.graphs import graphs
from dzedge.export.model.moments import Moments
from dzedge.export.model.sizes import Sizes
from dzedge.export.model.text import words_of
from dzedge.export.model.wam import Wam
from dzedge.export.onnx import OPSET, export_all
from dzedge.export.package import Release, package
from dzedge.export.sampler import Case, Graphs
from dzedge.export.train import read_recipe
from dzedge.export.windows import LABELLED, PLAY, VIDEO, Episodes, Windows
from dzedge.minisign import SecretKey

TOY = Sizes(width=64, layers=2, heads=2, encoder_width=4, decoder_width=4)


@pytest.fixture(scope="module")
def model() -> tuple[Wam, Tokenizer]:
    torch.manual_seed(3)
    wam, tokenizer = Wam(TOY), Tokenizer(TOY)
    for stream in (wam.video, wam.action):
        torch.nn.init.normal_(stream.leave.weight, std=0.1)
        torch.nn.init.normal_(stream.shared.weight, std=0.05)
    return wam.eval(), tokenizer.eval()


@pytest.fixture(scope="module")
def files(model: tuple[Wam, Tokenizer], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    wam, tokenizer = model
    return export_all(graphs(wam, tokenizer.encoder, tokenizer.decoder), tmp_path_factory.mktemp("onnx"))


def cases(count: int) -> list[Case]:
    rng = np.random.default_rng(0)
    words = np.array([words_of("reach the red cube", TOY.words)])
    shape = (1, 3, TOY.image_height, TOY.image_width)
    return [
        Case(
            rng.uniform(-1, 1, shape).astype(np.float32),
            rng.uniform(-1, 1, shape).astype(np.float32),
            words,
            rng.normal(size=TOY.joints),
        )
        for _ in range(count)
    ]


@pytest.mark.slow
class TestGraphs:
    def test_parity(self, model: tuple[Wam, Tokenizer], files: dict[str, Path]) -> None:
        wam, tokenizer = model
        found = parity.check(graphs(wam, tokenizer.encoder, tokenizer.decoder, seed=5), files)
        assert {p.graph for p in found} == set(files)
        assert all(p.scale > 1e-3 for p in found), "an output of zeros proves nothing"

    def test_parity_fails_where_it_should(self, model: tuple[Wam, Tokenizer], files: dict[str, Path]) -> None:
        wam, tokenizer = model
        cut = [g for g in graphs(wam, tokenizer.encoder, tokenizer.decoder) if g.name == "prefill"]
        kept = wam.prefill.enter.weight.detach().clone()
        with torch.no_grad():
            wam.prefill.enter.weight[0, 0] += 0.01
        try:
            with pytest.raises(parity.ParityError, match="prefill"):
                parity.check(cut, files)
        finally:
            with torch.no_grad():
                wam.prefill.enter.weight.copy_(kept)

    def test_files_are_plain(self, files: dict[str, Path]) -> None:
        for path in files.values():
            proto = onnx.load(str(path))
            assert [o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")] == [OPSET]
            assert b"/export/model/" not in path.read_bytes(), "source paths travel with the graph"
            for value in [*proto.graph.input, *proto.graph.output]:
                assert all(d.HasField("dim_value") for d in value.type.tensor_type.shape.dim)

    def test_int8(self, model: tuple[Wam, Tokenizer], files: dict[str, Path]) -> None:
        moments = Moments.neutral(TOY)
        reference = Graphs(files, TOY, moments)
        variants = quantize.quantize_all(files, quantize.record(reference, cases(4)))
        assert set(variants) == set(quantize.QUANTIZED)
        board = Graphs(quantize.with_variant(files, "s8s8"), TOY, moments, qdq_off=True)
        narrow = Graphs(quantize.with_variant(files, "u8s8"), TOY, moments)
        for graphs_of in (board, narrow):
            cost = quantize.loss(reference, graphs_of, cases(3), moments)
            assert 0.0 < cost.action_share < 0.2
        assert quantize.loss(reference, reference, cases(2), moments).action_worst == 0.0

    def test_only_the_trunk_is_quantized(self, files: dict[str, Path]) -> None:
        chosen = quantize.chosen_nodes(files["video_step"])
        assert len(chosen) == 2 + 4 * TOY.layers - 1, (
            "text rows excluded where narrow; qkv, out, up, down of each layer"
        )

    def test_bundle(self, model: tuple[Wam, Tokenizer], files: dict[str, Path], tmp_path: Path) -> None:
        key = Path(__file__).parents[1] / "export" / "test.key"
        secret = SecretKey.decode(key.read_text(), "test.key")
        folder = tmp_path / "toy.dzp"
        wam, tokenizer = model
        package(
            folder, wam, tokenizer, Moments.neutral(TOY), Release("toy", 1), secret,
            "2026-01-01T00:00:00Z", files=files, card="# toy\n",
        )  # fmt: skip
        section = open_bundle(folder, allow_test_key=True).manifest.dzedge
        assert section.horizon == TOY.horizon
        assert set(section.graphs) == set(files)
        assert section.window.head_dim == TOY.head_width


def episodes(count: int = 12, length: int = 24) -> Episodes:
    """Made-up episodes in which the arm's token drifts and the commands drift with it."""
    rng = np.random.default_rng(0)
    n = count * length
    episode = np.repeat(np.arange(count), length)
    time = np.tile(np.arange(length), count)
    drift = rng.normal(size=(count, 1, TOY.channels))[episode] * time[:, None, None] * 0.05
    latents = np.zeros((n, TOY.tokens, TOY.channels), np.float32)
    latents[:, :1] = drift
    joints = (drift[:, 0, : TOY.joints] * 0.3).astype(np.float32)
    kind = np.array([LABELLED, PLAY, VIDEO])[np.arange(count) % 3][episode]
    words = np.array([words_of("reach the red cube", TOY.words)] * n)
    noised = np.zeros(n, bool)
    noised[5] = True
    return Episodes(
        latents=latents, joints=joints, commands=joints + 0.1, noised=noised,
        start=(episode * length).astype(np.int64), end=((episode + 1) * length).astype(np.int64),
        kind=kind, words=words, colour=np.zeros(n, np.int64), verb=np.array(["reach"] * n),
        points=np.zeros((n, 9), np.float32),
    )  # fmt: skip


class TestWindows:
    def test_a_window_stays_in_its_episode(self) -> None:
        windows = Windows(episodes(), TOY)
        last = np.array([20])
        batch = windows.batch(last)
        assert batch.video.shape == (1, TOY.frames, TOY.tokens, TOY.channels)
        residual = batch.video.numpy() * windows.moments.residual_std
        expected = windows.episodes.latents[23] - windows.episodes.latents[20]
        np.testing.assert_allclose(residual[0, -1], expected, atol=1e-5)

    def test_what_a_disturbance_spoils_is_masked(self) -> None:
        batch = Windows(episodes(), TOY).batch(np.array([2, 6]))
        assert batch.action_mask[0].tolist() == [1, 1, 1, 1, 0, 0, 0, 0]
        assert batch.frame_mask[0].tolist() == [1, 0, 0, 0]
        assert batch.action_mask[1].all()

    def test_actions_are_relative_to_the_measured_joints(self) -> None:
        windows = Windows(episodes(), TOY)
        batch = windows.batch(np.array([6]))
        data = windows.episodes
        restored = batch.action[0].numpy() * windows.moments.action_std + data.joints[6]
        np.testing.assert_allclose(restored, data.commands[6:14], atol=1e-5)

    def test_history(self) -> None:
        windows = Windows(episodes(), TOY)
        batch = windows.batch(np.array([0, 1, 2, 26]))
        assert batch.has_history.tolist() == [0, 0, 1, 1]
        np.testing.assert_array_equal(batch.before[3], windows.episodes.latents[24])

    def test_kinds(self) -> None:
        windows = Windows(episodes(), TOY)
        for kind, picks in enumerate(windows.by_kind):
            assert len(picks) > 0
            assert (windows.episodes.kind[picks] == kind).all()


@pytest.mark.slow
def test_training_learns_and_resumes(tmp_path: Path) -> None:
    windows = Windows(episodes(), TOY)
    recipe = WamRecipe(iterations=12, labelled=8, play=4, video=8, save_every=6)
    lines: list[str] = []
    whole = fit(recipe, TOY, windows, windows, tmp_path / "whole.pt", lines.append)
    assert len(lines) == 2
    state = optim.load(tmp_path / "whole.pt")
    assert state["step"] == 12
    again, moments = load(tmp_path / "whole.pt")
    np.testing.assert_allclose(moments.action_std, windows.moments.action_std)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    longer = WamRecipe(iterations=18, labelled=8, play=4, video=8, save_every=6)
    fit(longer, TOY, windows, windows, tmp_path / "whole.pt", lines.append)
    assert len(lines) == 3
    assert figures(again, windows)["lab_copy_mm"] > 0.0


def test_sampler_puts_acting_rows_first() -> None:
    recipe = WamRecipe(labelled=5, play=3, video=4)
    sampler = Sampler(Windows(episodes(), TOY), recipe, 0)
    assert sampler.acting == 8
    assert len(sampler.next().latent) == 12


class TestStills:
    def test_same_seed_same_frames(self) -> None:
        frames, labels = stills.generate(6, seed=4)
        again, _ = stills.generate(6, seed=4)
        other, _ = stills.generate(6, seed=5)
        assert frames.shape == (6, TOY.image_height, TOY.image_width, 3)
        np.testing.assert_array_equal(frames, again)
        assert (frames != other).any()
        assert (labels[:, 1:, 3].sum(axis=1) == 3).all(), "three cubes a scene"
        assert (labels[:, 0, 2] > 0).mean() > 0.5, "tips over the table"

    def test_the_projection_is_the_cameras(self) -> None:
        """A bright cube's pixels lie where its centre projects to."""
        frames, labels = stills.generate(24, seed=6)
        cubes = labels[:, 1:]
        where = fit_tokenizer.project(torch.from_numpy(cubes[..., :3].copy())).numpy()
        reds = [i for i in range(len(frames)) if cubes[i, 0, 3] and (np.abs(where[i, 0]) < 0.9).all()]
        near = 0
        for i in reds:
            u, v = (where[i, 0] + 1) / 2 * (TOY.image_width, TOY.image_height)
            red, green, blue = frames[i, int(v), int(u)].astype(int)
            near += red > 1.5 * max(green, blue)
        assert near >= 0.7 * len(reds) > 0, "some are hidden by the arm, most are not"


@pytest.mark.slow
def test_tokenizer_learns_and_resumes(tmp_path: Path) -> None:
    frames, labels = stills.generate(16, seed=7)
    recipe = fit_tokenizer.TokenizerRecipe(iterations=4, batch=8, save_every=2)
    lines: list[str] = []
    path = tmp_path / "tokenizer.pt"
    fit_tokenizer.fit(recipe, TOY, frames, labels, (frames, labels), path, lines.append)
    assert len(lines) == 2
    assert "tip_mm" in lines[-1]
    longer = fit_tokenizer.TokenizerRecipe(iterations=6, batch=8, save_every=2)
    fit_tokenizer.fit(longer, TOY, frames, labels, (frames, labels), path, lines.append)
    assert len(lines) == 3
    assert fit_tokenizer.load(path).encoder.sizes == TOY


def test_rollout_of_an_untrained_policy(model: tuple[Wam, Tokenizer]) -> None:
    wam, tokenizer = model
    said: list[str] = []
    cases = (("reach", "seen"),)
    for joint_steps in (0, 2):
        plan = rollout.Plan(seconds=0.6, joint_steps=joint_steps)
        shares = rollout.table(wam, tokenizer.encoder, Moments.neutral(TOY), plan, 1, said.append, cases)
        assert shares == {"seen/reach": 0.0}
    assert len(said) == 2


class TestRecipe:
    def test_shipped(self) -> None:
        recipe = read_recipe()
        assert recipe.sizes.width % recipe.sizes.heads == 0
        assert recipe.dit.iterations > 0

    def test_unknown_key(self, tmp_path: Path) -> None:
        path = tmp_path / "recipe.toml"
        path.write_text("[dit]\niteration = 3\n")
        with pytest.raises(UsageError, match="iteration"):
            read_recipe(path)
