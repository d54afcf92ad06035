"""How the coupled layout learns: flow matching of video and actions, teacher-forced over blocks.

A sequence is a first frame and blocks of F frames, H actions and one joint state, each block given the clean frames
before it; its last block is one whose window has slid. Of each block: one time for video and actions (coupled, as the
published checkpoints were trained), or a time of each its own, among them finished video (then actions can be inferred
from it) and video that is nearly noise (DreamZero-Flash).
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dzedge.errors import UsageError
from dzedge.export.episodes import LABELLED, VIDEO
from dzedge.export.fit_wam import FLASH_BETA, committed, explained
from dzedge.export.model.moments import Moments
from dzedge.export.model.sizes import Sizes
from dzedge.export.model.wan_policy import WanPolicy, blocks_of
from dzedge.export.model.wan_stream import Noisy, Stream
from dzedge.export.recipe import PolicyRecipe
from dzedge.export.windows import Batch, Windows

STEPS = 4
"""Of the sampler that figures are measured with."""


@dataclass(frozen=True, slots=True)
class Sequences:
    """B sequences of N blocks, T = 1 + N F frames, as the trunk takes them. clean: Shape (B, T, K, C); frame_mask:
    Shape (B, T), which frames count, the first never; action: Shape (B, N H, J); action_mask: Shape (B, N H); state:
    Shape (B, N, J); words: Shape (B, W)."""

    clean: Tensor
    frame_mask: Tensor
    action: Tensor
    action_mask: Tensor
    state: Tensor
    words: Tensor


@dataclass(frozen=True, slots=True)
class Draw:
    """What chance decides of B sequences of N blocks. t_video, t_action: Shape (B, N); committed: Shape (B, N H), 1
    where an action is; noise_video: Shape (B, T, K, C); noise_action: Shape (B, N H, J); words: Shape (B, 1), 0 where
    the instruction is hidden."""

    t_video: Tensor
    t_action: Tensor
    committed: Tensor
    noise_video: Tensor
    noise_action: Tensor
    words: Tensor


def sequences(model: WanPolicy, batch: Batch) -> Sequences:
    """The sequences of a batch whose rows are windows: all first blocks, then all second ones, ..."""
    blocks = blocks_of(model.sizes.window, model.sizes.frames)

    def each(rows: Tensor) -> Tensor:
        """Shape (N B, ...) -> Shape (B, N, ...)."""
        return rows.unflatten(0, (blocks, -1)).transpose(0, 1)

    latent = each(batch.latent)
    ahead = latent.unsqueeze(2) + each(batch.video) * model.ahead
    clean = torch.cat([latent[:, :1], ahead.flatten(1, 2)], dim=1)
    mask = each(batch.frame_mask).flatten(1)
    return Sequences(
        clean=model.scaled(clean), frame_mask=torch.cat([torch.zeros_like(mask[:, :1]), mask], dim=1),
        action=each(batch.action).flatten(1, 2), action_mask=each(batch.action_mask).flatten(1),
        state=each(batch.state), words=each(batch.words)[:, 0],
    )  # fmt: skip


def draw(recipe: PolicyRecipe, seen: Sequences, acting: int, rng: torch.Generator) -> Draw:
    """The first `acting` rows have actions: only theirs may differ in time from the video's."""
    count, blocks = seen.state.shape[:2]

    def uniform() -> Tensor:
        return torch.rand(count, blocks, generator=rng)

    def start(time: Tensor) -> Tensor:
        return torch.where(uniform() < recipe.start_share, torch.zeros_like(time), time)

    t_video, t_action, which = start(uniform() ** 1.5), start(uniform()), uniform()
    which[acting:] = 1.0
    bounds = np.cumsum([recipe.clean_share, recipe.flash_share, recipe.coupled_share])
    flash = 1.0 - uniform() ** (1.0 / FLASH_BETA)
    t_action = torch.where((which >= bounds[1]) & (which < bounds[2]), t_video, t_action)
    t_video = torch.where(which < bounds[1], flash, t_video)
    t_video = torch.where(which < bounds[0], torch.ones_like(t_video), t_video)
    told = (torch.rand(count, 1, generator=rng) >= recipe.language_hidden).long()
    horizon = seen.action.shape[1] // blocks
    drawn = Draw(
        t_video, t_action, committed(recipe, count * blocks, horizon, rng).reshape(count, -1),
        torch.randn(seen.clean.shape, generator=rng), torch.randn(seen.action.shape, generator=rng), told,
    )  # fmt: skip
    return Draw(*(getattr(drawn, name).to(seen.clean.device) for name in Draw.__slots__))


def losses(model: WanPolicy, recipe: PolicyRecipe, seen: Sequences, acting: int, chance: Draw) -> dict[str, Tensor]:
    """Squared errors of the velocities, weighted: of video, of actions."""
    context = model.context(seen.words * chance.words)
    frames, horizon = model.sizes.frames, model.sizes.horizon
    t_video = chance.t_video.repeat_interleave(frames, dim=1)
    t_video = torch.cat([t_video[:, :1], t_video], dim=1)
    t_action = chance.t_action.repeat_interleave(horizon, dim=1)
    t_action = chance.committed + (1.0 - chance.committed) * t_action
    noisy = _mixed(seen.clean, chance.noise_video, t_video[..., None, None])
    action = _mixed(seen.action, chance.noise_action, t_action.unsqueeze(-1))
    cells, found, acted = model.grid.cells, [], seen.action[:acting]
    for rows, acts in ((slice(0, acting), True), (slice(acting, len(noisy)), False)):
        if not len(noisy[rows]):
            continue
        v_video, v_action = model.trunk.teacher_forced(
            cells(seen.clean[rows]), cells(noisy[rows]), action[rows] if acts else None,
            seen.state[rows] if acts else None, (context[0][rows], context[1][rows]), t_video[rows],
            t_action[rows] if acts else None,
        )  # fmt: skip
        found.append(model.grid.patches(v_video))
        acted = acted if v_action is None else v_action
    miss = ((torch.cat(found) - (seen.clean - chance.noise_video)) ** 2).mean((2, 3))
    shown = seen.frame_mask * (t_video < 1.0)
    counted = (seen.action_mask * (1.0 - chance.committed))[:acting]
    wrong = ((acted - (seen.action - chance.noise_action)[:acting]) ** 2).mean(2)
    return {"video": _mean(miss, shown), "action": recipe.action_weight * _mean(wrong, counted)}


def _mixed(clean: Tensor, noise: Tensor, time: Tensor) -> Tensor:
    return (1.0 - time) * noise + time * clean


def _mean(values: Tensor, counted: Tensor) -> Tensor:
    return (values * counted).sum() / counted.sum().clamp(min=1.0)


class WanLearner:
    """The coupled layout in training."""

    def build(self, sizes: Sizes, moments: Moments) -> nn.Module:
        return WanPolicy(sizes, moments)

    def batch(self, windows: Windows, pick: NDArray[np.int64], rng: np.random.Generator) -> Batch:
        """Windows that follow each other: all first blocks, then all second ones, ...

        Blocks beyond the end of their episode do not count. UsageError where frames and actions of a block do not
        reach equally far.
        """
        sizes, source = windows.sizes, windows.source
        stride = sizes.frames * source.frame_steps
        if stride != sizes.horizon * source.action_steps:
            raise UsageError(
                f"sizes.frames {sizes.frames} of {source.frame_dt_ns / 1e9:g} s, horizon {sizes.horizon} of "
                f"{source.dt_ns / 1e9:g} s: must reach equally far; change one of [sizes] frames, horizon or [data] "
                "dt, frame_dt"
            )
        last = windows.episodes.end[pick] - 1
        starts = [pick + block * stride for block in range(blocks_of(sizes.window, sizes.frames))]
        inside = np.concatenate([start + stride * (number > 0) <= last for number, start in enumerate(starts)])
        batch = windows.batch(np.concatenate([np.minimum(start, last) for start in starts]))
        counts = torch.from_numpy(inside.astype(np.float32)).unsqueeze(1)
        return replace(batch, frame_mask=batch.frame_mask * counts, action_mask=batch.action_mask * counts)

    def losses(
        self, model: nn.Module, recipe: PolicyRecipe, batch: Batch, acting: int, chance: torch.Generator
    ) -> dict[str, Tensor]:
        assert isinstance(model, WanPolicy)
        seen = sequences(model, batch)
        return losses(model, recipe, seen, acting, draw(recipe, seen, acting, chance))

    def figures(self, model: nn.Module, windows: Windows) -> dict[str, float]:
        assert isinstance(model, WanPolicy)
        return figures(model, windows, self)


@torch.no_grad()
def figures(model: WanPolicy, windows: Windows, learner: WanLearner, count: int = 128) -> dict[str, float]:
    """Held-out, by kind, of the last block that episodes are long enough for: R2 of imagined frames against standing
    still, and of actions, sampled together with them and from the true video."""
    found: dict[str, float] = {}
    for kind, name in ((LABELLED, "lab"), (VIDEO, "nov")):
        pool = windows.by_kind[kind]
        if not len(pool):
            continue
        pick = pool[np.linspace(0, len(pool) - 1, min(count, len(pool))).astype(int)]
        seen = sequences(model, learner.batch(windows, pick, np.random.default_rng(0)))
        frames, horizon = model.sizes.frames, model.sizes.horizon
        block = (int(seen.frame_mask.any(0).nonzero().max()) - 1) // frames
        ahead = slice(1 + block * frames, 1 + (block + 1) * frames)
        noisy, now, mask = asked(model, seen, block), seen.clean[:, ahead.start - 1, None], seen.frame_mask[:, ahead]
        noisy.joint(STEPS)
        future = seen.clean[:, ahead]
        found[f"{name}_video_r2"] = explained(noisy.video - now, future - now, mask[..., None, None])
        if kind == LABELLED:
            chunk = slice(block * horizon, (block + 1) * horizon)
            true, counted = seen.action[:, chunk], seen.action_mask[:, chunk, None]
            found["act_r2"] = explained(noisy.action, true, counted)
            noisy = asked(model, seen, block)
            noisy.video = future
            noisy.act(STEPS)
            found["idm_r2"] = explained(noisy.action, true, counted)
    return found


def asked(model: WanPolicy, seen: Sequences, block: int) -> Noisy:
    """A block of sequences as noise, all frames before it taken in one by one."""
    sizes, stream, rng = model.sizes, Stream(model, seen.words), torch.Generator().manual_seed(1)
    for time, frame in enumerate(seen.clean[:, : 1 + block * sizes.frames].unbind(1)):
        stream.push(model.raw(frame), float(time))
    count = len(seen.words)
    video = torch.randn(count, sizes.frames, sizes.tokens, sizes.channels, generator=rng)
    action = torch.randn(count, sizes.horizon, sizes.joints, generator=rng)
    return Noisy(stream, video, action, seen.state[:, block])
