"""Episodes as training windows: latents of what the camera saw, commands relative to the measured joints."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dzedge.export.model.moments import Moments
from dzedge.export.model.sizes import Sizes
from dzedge.export.model.text import colour_of, words_of
from dzedge.export.model.tokenizer import FrameEncoder

FRAME_STRIDE = 2
"""Steps of 0.1 s between imagined frames, and back to the history frame."""

LABELLED, PLAY, VIDEO = 0, 1, 2
KINDS = ("labelled", "play", "video")
IDLE, IDLE_KEPT = 0.15, 0.1
"""A window whose actions stay below this share of their spread is idle; that share of the idle ones is kept:
a policy that sees half of its life standing still learns to stand still."""
LEAST_SPREAD = 0.02
LEAST_RESIDUAL = 0.15
"""Floors of the statistics [rad] and [latent units]: what hardly moves is not blown up to unit noise."""


@dataclass(frozen=True, slots=True)
class Episodes:
    """All steps of all episodes. latents: Shape (N, K, C); joints, commands: Shape (N, J), [rad]; noised: Shape (N,);
    start, end: of its episode, for each step; kind, words, colour: of its episode, for each step."""

    latents: NDArray[np.float32]
    joints: NDArray[np.float32]
    commands: NDArray[np.float32]
    noised: NDArray[np.bool_]
    start: NDArray[np.int64]
    end: NDArray[np.int64]
    kind: NDArray[np.int64]
    words: NDArray[np.int64]
    colour: NDArray[np.int64]
    verb: NDArray[np.str_]
    points: NDArray[np.float32]


def encode(encoder: FrameEncoder, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Latents of frames. images: Shape (N, h, w, 3), uint8 -> Shape (N, K, C)."""
    out = []
    with torch.no_grad():
        for start in range(0, len(images), 128):
            image = torch.from_numpy(images[start : start + 128]).permute(0, 3, 1, 2).float() / 127.5 - 1.0
            out.append(encoder(image).numpy())
    return np.concatenate(out)


def labelled_frames(path: Path, stride: int) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Every stride-th frame of a shard and what its tokens should say, for the tokenizer.

    Returns Shape (N, h, w, 3), uint8, and Shape (N, K, C), [m].
    """
    with np.load(path) as shard:
        points, gripper, cubes = (shard[name][::stride] for name in ("points", "gripper", "cubes"))
        table = np.zeros((len(points), 1 + cubes.shape[1], points.shape[1] + 1), dtype=np.float32)
        table[:, 0, :-1], table[:, 0, -1] = points, gripper
        table[:, 1:, : cubes.shape[2]] = cubes
        return shard["images"][::stride], table


def read_episodes(paths: list[Path], encoder: FrameEncoder, sizes: Sizes) -> Episodes:
    """Reads and encodes shards as `data.py` writes them."""
    parts: dict[str, list[NDArray[np.generic]]] = {name: [] for name in Episodes.__slots__}
    base = 0
    for path in paths:
        with np.load(path) as shard:
            offsets = shard["offsets"]
            lengths = np.diff(offsets)
            instruction = [str(text) for text in shard["instruction"]]
            parts["latents"].append(encode(encoder, shard["images"]))
            for name in ("joints", "commands", "noised", "points"):
                parts[name].append(shard[name])
            parts["start"].append(np.repeat(offsets[:-1] + base, lengths))
            parts["end"].append(np.repeat(offsets[1:] + base, lengths))
            parts["kind"].append(np.repeat([KINDS.index(str(kind)) for kind in shard["kind"]], lengths))
            parts["words"].append(np.repeat([words_of(text, sizes.words) for text in instruction], lengths, axis=0))
            parts["colour"].append(np.repeat([colour_of(text) for text in instruction], lengths))
            parts["verb"].append(np.repeat(shard["verb"], lengths))
            base += int(offsets[-1])
    return Episodes(**{name: np.concatenate(values) for name, values in parts.items()})


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
        marks = np.where(self.episodes.noised, steps, len(last) + 100)
        following = np.minimum.accumulate(marks[::-1])[::-1]
        return np.where(following <= last, following - steps, self.sizes.horizon)

    def _moments(self, relative: NDArray[np.float32], usable: NDArray[np.bool_]) -> Moments:
        episodes = self.episodes
        joints = episodes.joints[episodes.kind != VIDEO].astype(np.float64)
        steps = np.flatnonzero(usable)
        ahead = np.minimum(steps[:, None] + self._ahead, episodes.end[steps, None] - 1)
        residual = episodes.latents[ahead] - episodes.latents[steps, None]
        return Moments(
            action_std=np.maximum(np.sqrt((relative.astype(np.float64) ** 2).mean(axis=0)), LEAST_SPREAD),
            state_mean=joints.mean(axis=0),
            state_std=np.maximum(joints.std(axis=0), 0.05),
            residual_std=np.maximum(np.sqrt((residual.astype(np.float64) ** 2).mean(axis=0)), LEAST_RESIDUAL),
        )

    def batch(self, pick: NDArray[np.int64]) -> Batch:
        """Windows that start at these steps."""
        episodes, moments = self.episodes, self.moments
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
        )
