"""Episodes as training windows: latents of what the camera saw, commands relative to the measured joints."""

from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dzedge.export.episodes import LABELLED, PLAY, VIDEO, Episodes
from dzedge.export.model.moments import Moments
from dzedge.export.model.sizes import Sizes

STEP_S = 0.1
FRAME_STRIDE = 2
"""Seconds between steps; steps between imagined frames, and back to the history frame."""

IDLE, IDLE_KEPT = 0.15, 0.1
"""A window whose actions stay below this share of their spread is idle; that share of the idle ones is kept:
a policy that sees half of its life standing still learns to stand still."""
OUTERMOST = (0.001, 0.999)
"""Quantiles of the actions that bins of a token policy span."""
LEAST_SPREAD = 0.02
LEAST_RESIDUAL = 0.15
"""Floors of the statistics [rad] and [latent units]: what hardly moves is not blown up to unit noise."""


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch of windows, normalised. latent, before: Shape (B, K, C), current and history frame; video: Shape
    (B, F, K, C), residuals; frame_mask: Shape (B, F); action: Shape (B, H, J); action_mask: Shape (B, H); state:
    Shape (B, J); has_history: Shape (B,); words: Shape (B, W); colour: Shape (B,), -1 where none is named."""

    latent: Tensor
    before: Tensor
    has_history: Tensor
    video: Tensor
    frame_mask: Tensor
    action: Tensor
    action_mask: Tensor
    state: Tensor
    words: Tensor
    colour: Tensor
    body: Tensor
    slow: Tensor
    slow_before: Tensor
    slow_history: Tensor
    slow_age: Tensor

    def to(self, device: torch.device) -> "Batch":
        """The batch on another device."""
        return Batch(*(getattr(self, field.name).to(device) for field in fields(self)))


class Windows:
    """Windows over episodes, by kind, with their statistics."""

    def __init__(self, episodes: Episodes, sizes: Sizes, moments: Moments | None = None, seed: int = 0) -> None:
        self.episodes, self.sizes = episodes, sizes
        steps = np.arange(len(episodes.start))
        self._ahead = (np.arange(sizes.frames) + 1) * FRAME_STRIDE
        horizon = np.arange(sizes.horizon)
        last = episodes.end - 1
        self._clean = self._clean_steps(last)
        # The end of an episode is a good place to stand still: a labelled window may run past it and repeats it.
        slack = np.where(episodes.kind == LABELLED, sizes.horizon - 3, 0)
        usable = (steps + self._ahead[-1] <= last + slack) & (self._clean >= 2)
        moving = np.minimum(steps[:, None] + horizon, last[:, None])
        relative = episodes.commands[moving] - episodes.joints[:, None]
        acting = usable & (episodes.kind != VIDEO)
        if moments is None:
            moments = self._moments(relative[acting], usable)
        self.moments = moments
        size = np.abs(relative / moments.action_std.astype(np.float32)).mean(axis=(1, 2))
        rng = np.random.default_rng([seed, 1])
        kept = usable & ((size > IDLE) | (episodes.kind == VIDEO) | (rng.random(len(steps)) < IDLE_KEPT))
        self.by_kind = [steps[kept & (episodes.kind == kind)] for kind in (LABELLED, PLAY, VIDEO)]

    def _clean_steps(self, last: NDArray[np.int64]) -> NDArray[np.int64]:
        """How many steps from each on nothing disturbs: labels beyond would answer what is not shown."""
        steps = np.arange(len(last))
        marks = np.where(self.episodes.disturbed, steps, len(last) + 100)
        following = np.minimum.accumulate(marks[::-1])[::-1]
        return np.where(following <= last, following - steps, self.sizes.horizon)

    def _moments(self, relative: NDArray[np.float32], usable: NDArray[np.bool_]) -> Moments:
        episodes = self.episodes
        joints = episodes.joints[episodes.kind != VIDEO].astype(np.float64)
        steps = np.flatnonzero(usable)
        ahead = np.minimum(steps[:, None] + self._ahead, episodes.end[steps, None] - 1)
        residual = episodes.latents[ahead] - episodes.latents[steps, None]
        spread = np.maximum(np.sqrt((relative.astype(np.float64) ** 2).mean(axis=0)), LEAST_SPREAD)
        low, high = np.quantile(relative, OUTERMOST, axis=0) / spread
        return Moments(
            action_std=spread,
            state_mean=joints.mean(axis=0),
            state_std=np.maximum(joints.std(axis=0), 0.05),
            residual_std=np.maximum(np.sqrt((residual.astype(np.float64) ** 2).mean(axis=0)), LEAST_RESIDUAL),
            action_low=np.minimum(low - 0.05, -0.5), action_high=np.maximum(high + 0.05, 0.5),
        )  # fmt: skip

    def batch(self, pick: NDArray[np.int64], slow_steps: NDArray[np.int64] | None = None) -> Batch:
        """Windows that start at these steps. slow_steps: Shape (B,), how many steps before them a slow system last
        looked; none: just now."""
        episodes, moments = self.episodes, self.moments
        ago = np.zeros_like(pick) if slow_steps is None else np.minimum(slow_steps, pick - episodes.start[pick])
        looked = pick - ago
        earlier = np.maximum(looked - FRAME_STRIDE, episodes.start[pick])
        last = episodes.end[pick] - 1
        clean = self._clean[pick]
        frames = np.minimum(pick[:, None] + self._ahead, last[:, None])
        latent = episodes.latents[pick]
        video = (episodes.latents[frames] - latent[:, None]) / moments.residual_std.astype(np.float32)
        horizon = np.arange(self.sizes.horizon)
        steps = np.minimum(pick[:, None] + horizon, last[:, None])
        action = (episodes.commands[steps] - episodes.joints[pick, None]) / moments.action_std.astype(np.float32)
        past = np.maximum(pick - FRAME_STRIDE, episodes.start[pick])
        state = (episodes.joints[pick] - moments.state_mean) / moments.state_std
        as_tensor = torch.from_numpy
        return Batch(
            latent=as_tensor(latent),
            before=as_tensor(episodes.latents[past]),
            has_history=as_tensor((past == pick - FRAME_STRIDE).astype(np.float32)),
            video=as_tensor(video),
            frame_mask=as_tensor((self._ahead <= clean[:, None]).astype(np.float32)),
            action=as_tensor(action),
            action_mask=as_tensor((horizon <= clean[:, None]).astype(np.float32)),
            state=as_tensor(state.astype(np.float32)),
            words=as_tensor(episodes.words[pick]),
            colour=as_tensor(episodes.colour[pick]),
            body=as_tensor(episodes.body[pick]),
            slow=as_tensor(episodes.latents[looked]),
            slow_before=as_tensor(episodes.latents[earlier]),
            slow_history=as_tensor((earlier == looked - FRAME_STRIDE).astype(np.float32)),
            slow_age=as_tensor((ago * STEP_S).astype(np.float32)),
        )
