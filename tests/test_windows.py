"""Windows: what a window holds is of its episode, comes before the next disturbance, and is counted from the joints."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from dzedge.export.episodes import LABELLED, PLAY, VIDEO, Episodes
from dzedge.export.model.sizes import Sizes
from dzedge.export.windows import IDLE_KEPT, Batch, Windows

TOY = Sizes(width=32, layers=1, heads=2)
LENGTH = 24
FRAME_STRIDE = 2
"""Steps of 0.1 s between frames."""


@pytest.fixture
def episodes(made_episodes: Callable[..., Episodes]) -> Episodes:
    return made_episodes(TOY)


@pytest.fixture
def windows(episodes: Episodes) -> Windows:
    return Windows(episodes, TOY)


def _disturbed(episodes: Episodes, *steps: int) -> Episodes:
    marks = episodes.disturbed.copy()
    marks[list(steps)] = True
    return replace(episodes, disturbed=marks)


class TestEnd:
    """Of an episode: nothing of the next one is ever seen."""

    def test_no_window_reaches_into_the_next_episode(self, windows: Windows) -> None:
        for picks in windows.by_kind:
            batch = windows.batch(picks)
            number = batch.latent[:, -1, -1]
            residual = batch.video * torch.from_numpy(windows.moments.residual_std).float()
            assert (residual[:, :, -1, -1].abs() < 1e-5).all(), "another episode's number"
            assert (batch.before[:, -1, -1] == number).all()
            assert (batch.slow[:, -1, -1] == number).all()
            assert (batch.slow_before[:, -1, -1] == number).all()

    def test_actions_after_the_end_repeat_the_last(self, windows: Windows) -> None:
        data = windows.episodes
        start = LENGTH - 4
        batch = windows.batch(np.array([start]))
        restored = batch.action[0].numpy() * windows.moments.action_std + data.joints[start]
        np.testing.assert_allclose(restored[:4], data.commands[start:LENGTH], atol=1e-5)
        np.testing.assert_allclose(restored[4:], np.tile(data.commands[LENGTH - 1], (4, 1)), atol=1e-5)
        assert batch.action_mask.all(), "standing still at the end is a lesson"

    def test_only_labelled_windows_pass_the_end(self, windows: Windows) -> None:
        data = windows.episodes
        for kind, picks in enumerate(windows.by_kind):
            left = data.end[picks] - picks
            assert left.min() == (TOY.horizon + 1 if kind != LABELLED else 4), "H steps on, and a frame after them"

    def test_last_frame(self, windows: Windows) -> None:
        batch = windows.batch(np.array([20]))
        assert batch.video.shape == (1, TOY.frames, TOY.tokens, TOY.channels)
        residual = batch.video.numpy() * windows.moments.residual_std
        expected = windows.episodes.latents[23] - windows.episodes.latents[20]
        np.testing.assert_allclose(residual[0, -1], expected, atol=1e-5)


class TestDisturbance:
    def test_what_it_spoils_is_masked(self, episodes: Episodes) -> None:
        batch = Windows(_disturbed(episodes, 5), TOY).batch(np.array([2, 5, 6]))
        assert batch.action_mask[0].tolist() == [1, 1, 1, 1, 0, 0, 0, 0], "the label at the step itself is right"
        assert batch.frame_mask[0].tolist() == [1, 0, 0, 0]
        assert batch.action_mask[1].tolist() == [1, 0, 0, 0, 0, 0, 0, 0]
        assert batch.frame_mask[1].tolist() == [0, 0, 0, 0]
        assert batch.action_mask[2].all()
        assert batch.frame_mask[2].all()

    def test_the_next_episodes_is_not_its_own(self, episodes: Episodes) -> None:
        windows = Windows(_disturbed(episodes, LENGTH, LENGTH + 1), TOY)
        assert windows.batch(np.arange(LENGTH - 8, LENGTH)).action_mask.all()

    def test_windows_that_show_nothing_are_left_out(self, episodes: Episodes) -> None:
        calm, wild = Windows(episodes, TOY), Windows(_disturbed(episodes, 8, 9), TOY)
        assert set(calm.by_kind[LABELLED]) - set(wild.by_kind[LABELLED]) == {7, 8, 9}

    def test_every_mask_ends_at_the_next_one(self, episodes: Episodes) -> None:
        rng = np.random.default_rng(3)
        acting = np.flatnonzero(episodes.kind != VIDEO)
        marked = _disturbed(episodes, *rng.choice(acting, 12, replace=False))
        windows = Windows(marked, TOY)
        for kind in (LABELLED, PLAY):
            picks = windows.by_kind[kind]
            batch = windows.batch(picks)
            for row, step in enumerate(picks):
                shown = range(step, min(step + TOY.horizon, marked.end[step]))
                first = next((i for i in shown if marked.disturbed[i]), step + 99)
                for i in range(TOY.horizon):
                    assert batch.action_mask[row, i] == (step + i <= first)
                for i in range(TOY.frames):
                    assert batch.frame_mask[row, i] == (step + FRAME_STRIDE * (i + 1) <= first)


class TestContents:
    def test_actions_are_relative_to_the_measured_joints(self, windows: Windows) -> None:
        batch, data = windows.batch(np.array([6])), windows.episodes
        restored = batch.action[0].numpy() * windows.moments.action_std + data.joints[6]
        np.testing.assert_allclose(restored, data.commands[6:14], atol=1e-5)
        state = batch.state[0].numpy() * windows.moments.state_std + windows.moments.state_mean
        np.testing.assert_allclose(state, data.joints[6], atol=1e-5)

    def test_history(self, windows: Windows) -> None:
        batch = windows.batch(np.array([0, 1, 2, LENGTH, LENGTH + 2]))
        assert batch.has_history.tolist() == [0, 0, 1, 0, 1]
        np.testing.assert_array_equal(batch.before[4], windows.episodes.latents[LENGTH])
        np.testing.assert_array_equal(batch.before[3], windows.episodes.latents[LENGTH])

    def test_kinds_and_bodies(self, windows: Windows) -> None:
        for kind, picks in enumerate(windows.by_kind):
            assert len(picks) > 0
            assert (windows.episodes.kind[picks] == kind).all()
            bodies = set(windows.batch(picks).body.tolist())
            assert bodies == ({0, 1} if kind == VIDEO else {0}), "only videos show the hand"

    def test_videos_never_act(self, windows: Windows) -> None:
        data = windows.episodes
        acting = np.concatenate([windows.by_kind[LABELLED], windows.by_kind[PLAY]])
        assert (data.kind[acting] != VIDEO).all()
        spoiled = replace(data, joints=np.where(data.kind[:, None] == VIDEO, np.float32(99.0), data.joints))
        np.testing.assert_array_equal(Windows(spoiled, TOY).moments.state_mean, windows.moments.state_mean)
        np.testing.assert_array_equal(Windows(spoiled, TOY).moments.action_std, windows.moments.action_std)

    def test_idle_windows_are_thinned(self, made_episodes: Callable[..., Episodes]) -> None:
        busy = made_episodes(TOY, count=200)
        still = busy.start % (8 * LENGTH) == 0
        idle = replace(busy, commands=np.where(still[:, None], busy.joints, busy.commands),
                       joints=np.where(still[:, None], busy.joints[busy.start], busy.joints))  # fmt: skip
        idle = replace(idle, commands=np.where(still[:, None], idle.joints, idle.commands))
        kept = Windows(idle, TOY).by_kind[LABELLED]
        some, all_of_them = still[kept].sum(), 25 * (LENGTH - 3)
        assert 0.5 * IDLE_KEPT < some / all_of_them < 1.6 * IDLE_KEPT
        assert np.array_equal(kept, Windows(idle, TOY, seed=0).by_kind[LABELLED])
        assert not np.array_equal(kept, Windows(idle, TOY, seed=1).by_kind[LABELLED])

    def test_moments_of_others_are_used_as_they_are(self, windows: Windows, episodes: Episodes) -> None:
        other = replace(episodes, joints=episodes.joints * 2.0)
        assert Windows(other, TOY, windows.moments).moments is windows.moments
        assert not np.array_equal(Windows(other, TOY).moments.state_std, windows.moments.state_std)

    def test_bins_span_nearly_all_actions(self, windows: Windows) -> None:
        moments, batch = windows.moments, windows.batch(windows.by_kind[LABELLED])
        inside = (batch.action.numpy() > moments.action_low) & (batch.action.numpy() < moments.action_high)
        assert inside.mean() > 0.99
        assert (moments.action_high > moments.action_low + 0.9).all()


class TestSlow:
    """What a dual-system VLA's slow system saw is the right number of steps older."""

    def test_is_that_many_steps_older(self, windows: Windows) -> None:
        pick, ago = np.array([10, 10, 10, LENGTH + 9]), np.array([0, 1, 4, 3])
        batch, data = windows.batch(pick, ago), windows.episodes
        np.testing.assert_array_equal(batch.slow, data.latents[pick - ago])
        np.testing.assert_array_equal(batch.slow_before, data.latents[pick - ago - FRAME_STRIDE])
        np.testing.assert_allclose(batch.slow_age, ago * 0.1)
        assert batch.slow_history.tolist() == [1, 1, 1, 1]
        np.testing.assert_array_equal(batch.latent, data.latents[pick])

    def test_not_older_than_its_episode(self, windows: Windows) -> None:
        batch, data = windows.batch(np.array([LENGTH + 1, LENGTH + 3]), np.array([4, 2])), windows.episodes
        np.testing.assert_array_equal(batch.slow, data.latents[[LENGTH, LENGTH + 1]])
        np.testing.assert_allclose(batch.slow_age, [0.1, 0.2])
        np.testing.assert_array_equal(batch.slow_before, data.latents[[LENGTH, LENGTH]])
        assert batch.slow_history.tolist() == [0, 0]

    def test_others_have_just_looked(self, windows: Windows) -> None:
        batch = windows.batch(np.array([10, LENGTH + 1]))
        assert torch.equal(batch.slow, batch.latent)
        assert torch.equal(batch.slow_before, batch.before)
        assert torch.equal(batch.slow_history, batch.has_history)
        assert not batch.slow_age.any()


def test_a_batch_moves_whole(windows: Windows) -> None:
    moved: Any = windows.batch(np.array([3, 4])).to(torch.device("meta"))
    assert isinstance(moved, Batch)
    assert all(getattr(moved, name).device.type == "meta" for name in Batch.__slots__)
