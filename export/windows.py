"""Episodes as training windows: latents of what the camera saw, commands relative to the measured joints."""

from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dzedge.export.episodes import LABELLED, PLAY, VIDEO, Episodes
from dzedge.export.model.moments import Moments
from dzedge.export.model.sizes import Sizes
from dzedge.export.source import Source

IDLE, IDLE_KEPT = 0.15, 0.1
"""A window whose actions stay below this share of their spread is idle; that share of the idle ones is kept:
a policy that sees half of its life standing still learns to stand still."""
OUTERMOST = (0.001, 0.999)
"""Quantiles of the actions that bins of a token policy span."""
LEAST_SPREAD = 0.02
LEAST_RESIDUAL = 0.15
"""Floors of the statistics [rad] and [latent units]: what hardly moves is not blown up to unit noise."""
LATENTS = 1 << 26
"""Numbers that statistics of residuals are made of, about: with patches there are more than fit into memory."""


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
    """Windows over episodes, by kind, with their statistics. source: says how far apart actions and frames are, none
    for the simulator's."""

    def __init__(
        self, episodes: Episodes, sizes: Sizes, moments: Moments | None = None, seed: int = 0,
        source: Source | None = None,
    ) -> None:  # fmt: skip
        self.episodes, self.sizes, self.source = episodes, sizes, source or Source()
        self.latents = torch.from_numpy(episodes.latents)
        steps, stride = np.arange(len(episodes.start)), self.source.action_steps
        self._ahead = (np.arange(sizes.frames) + 1) * self.source.frame_steps
        # Commands are targets for one step later, chunk targets for a whole action later.
        self._horizon = (np.arange(sizes.horizon) + 1) * stride - 1
        last = episodes.end - 1
        self._clean = self._clean_steps(last)
        # The end of an episode is a good place to stand still: a labelled window may run past it and repeats it.
        slack = np.where(episodes.kind == LABELLED, (sizes.horizon - 3) * stride, 0)
        usable = (steps + self._ahead[-1] <= last + slack) & (self._clean >= 2 * stride)
        moving = np.minimum(steps[:, None] + self._horizon, last[:, None])
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
        return np.where(following <= last, following - steps, max(self._horizon[-1] + 1, self._ahead[-1]))

    def _moments(self, relative: NDArray[np.float32], usable: NDArray[np.bool_]) -> Moments:
        episodes = self.episodes
        joints = episodes.joints[episodes.kind != VIDEO].astype(np.float64)
        steps = np.flatnonzero(usable)
        steps = steps[:: 1 + len(steps) * len(self._ahead) * episodes.latents[0].size // LATENTS]
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
            **self._latent_moments(steps),
        )  # fmt: skip

    def _latent_moments(self, steps: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
        """Of latents whose units are not fixed."""
        if self.sizes.structured:
            return {}
        latents = self.episodes.latents[steps].astype(np.float64)
        return {"latent_mean": latents.mean(axis=0), "latent_std": np.maximum(latents.std(axis=0), LEAST_RESIDUAL)}

    def to(self, device: torch.device) -> None:
        """Keeps the latents on another device, where batches are put together from them."""
        self.latents = self.latents.to(device)

    def batch(self, pick: NDArray[np.int64], slow_steps: NDArray[np.int64] | None = None) -> Batch:
        """Windows that start at these steps. slow_steps: Shape (B,), how many actions before them a slow system last
        looked; none: just now."""
        episodes, moments, back = self.episodes, self.moments, self.source.frame_steps
        since = np.zeros_like(pick) if slow_steps is None else slow_steps * self.source.action_steps
        ago = np.minimum(since, pick - episodes.start[pick])
        looked = pick - ago
        earlier = np.maximum(looked - back, episodes.start[pick])
        last = episodes.end[pick] - 1
        clean = self._clean[pick]
        frames = np.minimum(pick[:, None] + self._ahead, last[:, None])
        latent = self._latent(pick)
        spread = torch.from_numpy(moments.residual_std.astype(np.float32)).to(latent.device)
        video = (self._latent(frames) - latent.unsqueeze(1)) / spread
        steps = np.minimum(pick[:, None] + self._horizon, last[:, None])
        action = (episodes.commands[steps] - episodes.joints[pick, None]) / moments.action_std.astype(np.float32)
        past = np.maximum(pick - back, episodes.start[pick])
        state = (episodes.joints[pick] - moments.state_mean) / moments.state_std
        as_tensor = torch.from_numpy
        return Batch(
            latent=latent,
            before=self._latent(past),
            has_history=as_tensor((past == pick - back).astype(np.float32)),
            video=video,
            frame_mask=as_tensor((self._ahead <= clean[:, None]).astype(np.float32)),
            action=as_tensor(action),
            action_mask=as_tensor((self._horizon <= clean[:, None]).astype(np.float32)),
            state=as_tensor(state.astype(np.float32)),
            words=as_tensor(episodes.words[pick]),
            colour=as_tensor(episodes.colour[pick]),
            body=as_tensor(episodes.body[pick]),
            slow=self._latent(looked),
            slow_before=self._latent(earlier),
            slow_history=as_tensor((earlier == looked - back).astype(np.float32)),
            slow_age=as_tensor((ago * (1.0 / self.source.fps)).astype(np.float32)),
        )

    def _latent(self, steps: NDArray[np.int64]) -> Tensor:
        """Of these steps. Shape (...) -> Shape (..., K, C)."""
        return self.latents[torch.from_numpy(steps).to(self.latents.device)]
