"""The coupled layout in training: sequences, times, and that it learns what the robot then computes."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dzedge.errors import UsageError
from dzedge.export import checkpoint, families, fit_policy
from dzedge.export.episodes import LABELLED, VIDEO, Episodes
from dzedge.export.fit_wan import Draw, Sequences, WanLearner, draw, losses, sequences
from dzedge.export.model.sizes import Sizes
from dzedge.export.model.wan_policy import WanPolicy, blocks_of, newest_position
from dzedge.export.model.wan_stream import Noisy, Stream
from dzedge.export.recipe import PolicyRecipe
from dzedge.export.source import Source
from dzedge.export.windows import Windows

TINY = Sizes(
    tokenizer="vae", image_height=36, image_width=48, cell=12, tokens=12, channels=6, frames=2, window=3, width=24,
    layers=2, heads=2,
)  # fmt: skip
RECIPE = PolicyRecipe(family="wan_joint", iterations=6, labelled=4, play=2, video=3, save_every=2)
SOURCE = Source(frame_dt_ns=400_000_000)
STRIDE, BLOCKS, LENGTH = 8, 3, 40


class Interrupted(Exception):
    """The power goes off."""


@pytest.fixture(scope="module")
def windows(made_episodes: Callable[..., Episodes]) -> Windows:
    return Windows(made_episodes(TINY, length=LENGTH), TINY, source=SOURCE)


def filled(windows: Windows, sizes: Sizes = TINY) -> WanPolicy:
    """A model whose every parameter counts."""
    torch.manual_seed(0)
    model = WanPolicy(sizes, windows.moments)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


def asked(windows: Windows, recipe: PolicyRecipe = RECIPE, seed: int = 0) -> tuple[Any, int]:
    """A batch, and how many of its sequences have actions."""
    pick = fit_policy.picks(windows, recipe, np.random.default_rng(seed), 1)
    return WanLearner().batch(windows, pick, np.random.default_rng(0)), recipe.labelled + recipe.play


class TestSequences:
    def test_are_the_dataset_s_steps(self, windows: Windows) -> None:
        model, data = WanPolicy(TINY, windows.moments), windows.episodes
        pick = windows.by_kind[LABELLED][[0, 5, 9]]
        seen = sequences(model, WanLearner().batch(windows, pick, np.random.default_rng(0)))
        assert seen.clean.shape == (3, 1 + 2 * BLOCKS, 12, 6) and seen.action.shape == (3, 8 * BLOCKS, 6)
        for row, start in enumerate(pick):
            last = data.end[start] - 1
            for frame in range(1 + 2 * BLOCKS):
                latent = torch.from_numpy(data.latents[min(start + 4 * frame, last)])
                torch.testing.assert_close(model.raw(seen.clean[row, frame]), latent, rtol=1e-4, atol=1e-4)
            for block in range(BLOCKS):
                begin = min(start + STRIDE * block, last)
                offset = data.commands[np.minimum(begin + np.arange(8), last)] - data.joints[begin]
                scaled = (offset / windows.moments.action_std).astype(np.float32)
                np.testing.assert_allclose(seen.action[row, 8 * block : 8 * block + 8], scaled, rtol=1e-4, atol=1e-5)
                state = (data.joints[begin] - windows.moments.state_mean) / windows.moments.state_std
                np.testing.assert_allclose(seen.state[row, block], state.astype(np.float32), rtol=1e-4, atol=1e-5)

    def test_blocks_beyond_the_end_do_not_count(self, windows: Windows) -> None:
        data = windows.episodes
        first, model = int(data.start[windows.by_kind[LABELLED][0]]), WanPolicy(TINY, windows.moments)
        for start, blocks in ((first, 3), (first + LENGTH - 25, 3), (first + LENGTH - 24, 2), (first + LENGTH - 12, 1)):
            batch = WanLearner().batch(windows, np.array([start]), np.random.default_rng(0))
            seen = sequences(model, batch)
            assert seen.frame_mask[0].tolist() == [0.0] + [1.0] * 2 * blocks + [0.0] * 2 * (BLOCKS - blocks), start
            assert seen.action_mask[0].tolist() == [1.0] * 8 * blocks + [0.0] * 8 * (BLOCKS - blocks), start

    def test_block_and_chunk_must_be_as_long(self, windows: Windows) -> None:
        short = Windows(windows.episodes, TINY, source=Source(frame_dt_ns=200_000_000))
        with pytest.raises(UsageError, match=r"frames 2 of 0.2 s, horizon 8 of 0.1 s: must reach equally far"):
            WanLearner().batch(short, short.by_kind[LABELLED][:2], np.random.default_rng(0))

    @pytest.mark.parametrize(
        ("window", "frames", "blocks", "positions"),
        [(3, 2, 3, [0, 2, 2, 4, 4]), (1, 2, 2, [0, 2, 2]), (5, 4, 3, [0, 4, 4, 4, 4, 8]), (4, 2, 4, [0, 4, 4, 4, 6])],
    )  # fmt: skip
    def test_the_robot_stands_where_training_stood(
        self, window: int, frames: int, blocks: int, positions: list[int]
    ) -> None:
        assert blocks_of(window, frames) == blocks
        assert [newest_position(seen + 1, window, frames) for seen in range(len(positions))] == positions
        assert max(positions) == frames * (blocks - 1)


class TestTrainingIsInference:
    @pytest.mark.parametrize("block", range(BLOCKS))
    def test_a_block_is_the_stream_s(self, windows: Windows, block: int) -> None:
        """One teacher-forced pass over all blocks, against frames that come one by one: the first, those that fill
        the window, those that make it slide."""
        model = filled(windows)
        batch, _ = asked(windows)
        seen = sequences(model, batch)
        rng = torch.Generator().manual_seed(1)
        video, action = (torch.randn(part.shape, generator=rng) for part in (seen.clean, seen.action))
        times = torch.tensor([[0.3, 0.3], [0.1, 0.7], [0.9, 0.2]])[:BLOCKS]
        t_video = torch.cat([torch.tensor([0.5]), times[:, 0].repeat_interleave(2)]).expand(len(video), -1)
        t_action = times[:, 1].repeat_interleave(8).expand(len(video), -1)
        cells = model.grid.cells
        with torch.no_grad():
            words = model.context(seen.words)
            v_video, v_action = model.trunk.teacher_forced(
                cells(seen.clean), cells(video), action, seen.state, words, t_video, t_action
            )
            stream = Stream(model, seen.words)
            for time in range(1 + 2 * block):
                stream.push(model.raw(seen.clean[:, time]), float(time))
            frames, chunk = slice(1 + 2 * block, 3 + 2 * block), slice(8 * block, 8 * block + 8)
            noisy = Noisy(stream, video[:, frames], action[:, chunk], seen.state[:, block])
            found = noisy.velocities(*times[block].tolist())
        assert v_action is not None
        torch.testing.assert_close(found[0], model.grid.patches(v_video)[:, frames], rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(found[1], v_action[:, chunk], rtol=1e-3, atol=1e-4)

    def test_clean_frames_do_not_see_later_ones(self, windows: Windows) -> None:
        """Streaming and the published rule differ, and only in the block that a frame belongs to."""
        model = filled(windows)
        batch, _ = asked(windows)
        clean = model.grid.cells(sequences(model, batch).clean)
        later = clean.clone()
        later[:, 2] += 1.0  # the second frame of block 1
        at, found = torch.full(clean.shape[:2], 0.4), []
        with torch.no_grad():
            words = model.context(batch.words[: len(clean)])
            for streaming in (True, False):
                model.trunk.config = replace(model.trunk.config, streaming=streaming)
                rows = [
                    model.trunk.teacher_forced(each, clean, None, None, words, at, None)[0] for each in (clean, later)
                ]
                found.append(rows)
        assert (found[0][0][:, 3:5] - found[1][0][:, 3:5]).abs().max() > 1e-3
        for rows in found:
            torch.testing.assert_close(rows[0][:, 1:3], rows[1][:, 1:3], rtol=0.0, atol=0.0)
            assert (rows[0][:, 3:5] - rows[1][:, 3:5]).abs().max() > 1e-3


class TestTimes:
    def drawn(self, windows: Windows, **changed: float) -> tuple[Draw, int]:
        recipe = replace(RECIPE, labelled=400, play=0, video=400, **changed)
        batch, acting = asked(windows, recipe)
        seen = sequences(WanPolicy(TINY, windows.moments), batch)
        return draw(recipe, seen, acting, checkpoint.torch_seed(3)), acting

    def test_shares(self, windows: Windows) -> None:
        found, acting = self.drawn(windows, clean_share=0.3, flash_share=0.1, coupled_share=0.4, start_share=0.0)
        t_video, t_action = found.t_video[:acting], found.t_action
        assert (t_video == 1.0).float().mean().item() == pytest.approx(0.3, abs=0.05)
        assert (t_video == t_action[:acting]).float().mean().item() == pytest.approx(0.4, abs=0.05)
        assert found.t_video[acting:].max() < 1.0, "of a finished video nothing is learned but actions"

    def test_coupled_alone(self, windows: Windows) -> None:
        found, acting = self.drawn(windows, clean_share=0.0, flash_share=0.0, coupled_share=1.0)
        assert torch.equal(found.t_video[:acting], found.t_action[:acting])
        assert found.t_video.max() < 1.0
        assert (found.t_video == 0.0).float().mean().item() == pytest.approx(RECIPE.start_share, abs=0.05)


class TestLosses:
    def terms(self, windows: Windows, change: Callable[[Sequences, Draw], tuple[Sequences, Draw]]) -> dict[str, float]:
        model = filled(windows)
        batch, acting = asked(windows)
        seen = sequences(model, batch)
        seen, chance = change(seen, draw(replace(RECIPE, max_prefix=0), seen, acting, checkpoint.torch_seed(1)))
        with torch.no_grad():
            return {name: term.item() for name, term in losses(model, RECIPE, seen, acting, chance).items()}

    def test_what_is_masked_does_not_count(self, windows: Windows) -> None:
        def same(seen: Sequences, chance: Draw) -> tuple[Sequences, Draw]:
            return seen, chance

        def lies(seen: Sequences, chance: Draw) -> tuple[Sequences, Draw]:
            """The last block is none of the first's business, and is not counted."""
            mask, frames = seen.action_mask.clone(), seen.frame_mask.clone()
            mask[:, 16:], frames[:, 5:] = 0.0, 0.0
            return replace(seen, action_mask=mask, frame_mask=frames), chance

        def more_lies(seen: Sequences, chance: Draw) -> tuple[Sequences, Draw]:
            seen, chance = lies(seen, chance)
            action, clean = seen.action.clone(), seen.clean.clone()
            action[:, 16:] += 3.0
            clean[:, 5:] += 3.0
            return replace(seen, action=action, clean=clean), chance

        plain, masked, lied = (self.terms(windows, change) for change in (same, lies, more_lies))
        assert masked == pytest.approx(lied, rel=1e-5)
        assert abs(plain["action"] - masked["action"]) > 1e-4

    def test_committed_actions_do_not_count_but_are_seen_clean(self, windows: Windows) -> None:
        def commit(noise: float) -> Callable[[Sequences, Draw], tuple[Sequences, Draw]]:
            def change(seen: Sequences, chance: Draw) -> tuple[Sequences, Draw]:
                mask = torch.zeros_like(chance.committed)
                mask[:, 0:3] = 1.0
                other = chance.noise_action + noise * mask.unsqueeze(-1)
                return seen, replace(chance, committed=mask, noise_action=other)

            return change

        one, two = self.terms(windows, commit(0.0)), self.terms(windows, commit(5.0))
        assert one == pytest.approx(two, rel=1e-6)
        assert one != pytest.approx(self.terms(windows, lambda seen, chance: (seen, chance)), rel=1e-3)

    def test_videos_are_no_business_of_the_action_term(self, windows: Windows) -> None:
        data = windows.episodes
        lies = np.where(data.kind[:, None] == VIDEO, np.float32(5.0), data.commands)
        found = []
        for source in (windows, Windows(replace(data, commands=lies), TINY, windows.moments, source=SOURCE)):
            batch, acting = asked(source)
            terms = WanLearner().losses(filled(windows), RECIPE, batch, acting, checkpoint.torch_seed(1))
            found.append({name: term.item() for name, term in terms.items()})
        assert found[0] == found[1]

    def test_everything_learns(self, windows: Windows) -> None:
        model = filled(windows)
        batch, acting = asked(windows)
        terms = WanLearner().losses(model, RECIPE, batch, acting, checkpoint.torch_seed(1))
        sum(terms.values(), torch.zeros(())).backward()
        still = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
        assert still == []


class TestFit:
    def fit(
        self, recipe: PolicyRecipe, windows: Windows, path: Path, on_step: Callable[[int], None] = lambda step: None
    ) -> list[dict[str, Any]]:
        lines: list[dict[str, Any]] = []
        fit_policy.fit(WanLearner(), recipe, TINY, windows, windows, path, lines.append, on_step)
        return lines

    def test_learns(self, windows: Windows, tmp_path: Path) -> None:
        recipe = replace(
            RECIPE, iterations=60, save_every=60, labelled=8, play=4, video=4, average=0.9, rate=1e-2, matrix_rate=2e-2
        )  # fmt: skip
        lines = self.fit(recipe, windows, tmp_path / "wan.safetensors")
        batch, acting = asked(windows, seed=1)
        torch.manual_seed(0)
        fresh = WanPolicy(TINY, windows.moments)
        learned, _ = fit_policy.load(tmp_path / "wan.safetensors", WanLearner())
        before, after = (
            WanLearner().losses(model, RECIPE, batch, acting, checkpoint.torch_seed(1)) for model in (fresh, learned)
        )
        assert after["video"] < 0.7 * before["video"] and after["action"] < 0.9 * before["action"], (before, after)
        assert set(lines[-1]) >= {"video", "action", "act_r2", "idm_r2", "lab_video_r2", "nov_video_r2"}
        family, model, moments, found = families.load(tmp_path / "wan.safetensors")
        assert (family, type(model), found["family"]) == ("wan_joint", WanPolicy, "wan_joint")
        np.testing.assert_array_equal(moments.latent_std, windows.moments.latent_std)
        np.testing.assert_allclose(model.spread, windows.moments.latent_std, rtol=1e-6)

    def test_resumed_is_uninterrupted(self, windows: Windows, tmp_path: Path) -> None:
        self.fit(RECIPE, windows, tmp_path / "whole.safetensors")

        def power(step: int) -> None:
            if step == 5:
                raise Interrupted

        with pytest.raises(Interrupted):
            self.fit(RECIPE, windows, tmp_path / "torn.safetensors", power)
        self.fit(RECIPE, windows, tmp_path / "torn.safetensors")
        self.fit(replace(RECIPE, seed=1), windows, tmp_path / "other.safetensors")
        whole, torn, other = (checkpoint.load(tmp_path / f"{name}.safetensors") for name in ("whole", "torn", "other"))
        assert whole["step"] == torn["step"] == 6
        assert all(torch.equal(value, torn["average"][name]) for name, value in whole["average"].items())
        assert not all(torch.equal(value, other["average"][name]) for name, value in whole["average"].items())
