"""The coupled layout as a policy: a small text encoder in front of the trunk, latents in units of their spread.

The trunk is that of the published checkpoints, with clean frames streaming: one at a time, each attending to those
before it, because a robot decides again before a whole block of frames has come.
"""

import math

import torch
from torch import Tensor, nn

from dzedge.errors import UsageError
from dzedge.export.model.blocks import Rows
from dzedge.export.model.moments import Moments
from dzedge.export.model.sizes import Sizes
from dzedge.export.model.wan_config import Config
from dzedge.export.model.wan_grid import Grid
from dzedge.export.model.wan_joint import WanJoint


def grid_of(sizes: Sizes) -> Grid:
    """Patches of the image. Raises UsageError for tokens that are things: there is no grid of them."""
    if sizes.structured:
        raise UsageError(
            "sizes.tokenizer 'structured': family wan_joint needs 'vae': it cuts a grid of latents into patches"
        )
    return Grid(*sizes.grid)


def config_of(sizes: Sizes) -> Config:
    """The trunk for these sizes. Raises UsageError."""
    height, width = grid_of(sizes).padded
    return Config(
        width=sizes.width, layers=sizes.layers, heads=sizes.heads, feed=4 * sizes.width, channels=sizes.channels,
        latent_height=height, latent_width=width, text_tokens=sizes.words, text_width=sizes.width,
        action_width=sizes.joints, state_width=sizes.joints, hidden=min(2 * sizes.width, 1024), frames=sizes.frames,
        actions=sizes.horizon, window=sizes.window, streaming=True,
    )  # fmt: skip


def blocks_of(window: int, frames: int) -> int:
    """Blocks of a training sequence: one that has seen a single frame, those that fill the window of S frames, and one
    that has seen it slide. F frames a block."""
    return 2 + math.ceil((window - 1) / frames)


def newest_position(seen: int, window: int, frames: int) -> int:
    """Where the newest of `seen` clean frames stands, as in training: before block 1, before the block whose window is
    filled for the first time, or, for good, before the one whose window has slid."""
    if seen == 1:
        return 0
    return frames * (blocks_of(window, frames) - (2 if seen <= window else 1))


class WordEncoder(nn.Module):
    """Words -> a row each, zero where there is none, as the published text encoder's are. A word counts by its place.

    words: Shape (B, W), int64 -> Shape (B, W, d).
    """

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        width = sizes.width
        self.table = nn.Parameter(0.5 * torch.randn(sizes.vocabulary, width))
        self.places = nn.Parameter(0.5 * torch.randn(sizes.words, width))
        self.mix = nn.Sequential(nn.Linear(width, width), nn.GELU("tanh"), nn.Linear(width, width))

    def forward(self, words: Tensor) -> Tensor:
        known = (words > 0).to(self.table.dtype).unsqueeze(-1)
        return self.mix(self.table[words] + self.places) * known


class WanPolicy(nn.Module):
    """Text encoder, trunk, and units. moments: latent_mean and latent_std are used, where there are any, and
    residual_std, in units of which batches hold future frames. Raises UsageError for sizes that make no grid."""

    mean: Tensor
    spread: Tensor
    ahead: Tensor

    def __init__(self, sizes: Sizes, moments: Moments) -> None:
        super().__init__()
        self.sizes, self.grid = sizes, grid_of(sizes)
        self.words = WordEncoder(sizes)
        self.trunk = WanJoint(config_of(sizes))
        shape = (sizes.tokens, sizes.channels)
        for name, table, nothing in (("mean", moments.latent_mean, 0.0), ("spread", moments.latent_std, 1.0)):
            values = torch.full(shape, nothing) if table is None else torch.from_numpy(table).float()
            self.register_buffer(name, values, persistent=False)  # they lie in the checkpoint as moments
        self.register_buffer("ahead", torch.from_numpy(moments.residual_std).float(), persistent=False)

    def context(self, words: Tensor) -> Rows:
        """Cross-attention rows of instructions, Shape (B, L, A, W, hd), twice."""
        return self.trunk.context(self.words(words))

    def scaled(self, latent: Tensor) -> Tensor:
        """A tokenizer's latents as the trunk takes them. Shape (..., K, C)."""
        return (latent - self.mean) / self.spread

    def raw(self, scaled: Tensor) -> Tensor:
        """And back. Shape (..., K, C)."""
        return scaled * self.spread + self.mean
