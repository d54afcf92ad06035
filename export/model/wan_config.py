"""The coupled layout without its weights: sizes, the named ones up to the published 5B and 14B, the runs of tokens
that a sequence is made of, their positions, and who sees whom.

Figures of 5B and 14B: the public DreamZero configuration (facts/dreamzero 1.1); of 0.1B and 0.45B: facts/dreamzero 7.1.
"""

import math
from dataclasses import asdict, dataclass, fields
from enum import IntEnum
from typing import NamedTuple

import torch
from torch import Tensor

from dzedge.errors import UsageError
from dzedge.export.model.blocks import Rows

MAY_BE_NONE = ("condition_channels", "image_tokens", "state_sees_all", "streaming", "epsilon")
"""Sizes that 0 is allowed of."""
PATCH = 2
"""Latent pixels along each side of a video token; patches are one frame deep."""


@dataclass(frozen=True, slots=True)
class Config:
    """Everything that decides a tensor's shape or who sees whom. UsageError where it cannot be built.

    width D, layers L, heads A, feed: hidden width of the feed-forward layer; channels C of a latent of
    latent_height x latent_width; condition_channels: extra input channels beside the noisy latent (14B: a mask
    of 4 and the first frame's latent of 16); text_tokens of text_width, image_tokens of image_width (0: no image
    branch); action_width, state_width: padded widths; hidden: of the state encoder and the action decoder.

    frames: latent frames F of one block, with `actions` H action tokens and `states` state tokens; window: clean
    frames S before a block that it may look back on. 7 of them and a block of 2 are the published 9.
    state_sees_all: the published server's rule, where a state token attends to all that its block's actions do.
    Off, it attends only to the states of its block, as in the published training. One rule holds for both here.
    streaming: a clean frame sees the `window` clean frames before it, so that a host adds one at a time, whenever it
    comes. Off, as published, the clean frames of a block see each other and come together.
    """

    width: int
    layers: int
    heads: int
    feed: int
    channels: int = 48
    condition_channels: int = 0
    latent_height: int = 10
    latent_width: int = 20
    text_tokens: int = 64
    text_width: int = 4096
    image_tokens: int = 0
    image_width: int = 1280
    action_width: int = 32
    state_width: int = 64
    hidden: int = 1024
    time_width: int = 256
    frames: int = 2
    actions: int = 24
    states: int = 1
    window: int = 7
    state_sees_all: bool = False
    streaming: bool = False
    epsilon: float = 1e-6

    def __post_init__(self) -> None:
        for field in fields(self):
            least = 0 if field.name in MAY_BE_NONE else 1
            if getattr(self, field.name) < least:
                raise UsageError(f"wan: {field.name} is {getattr(self, field.name)}, allowed >= {least}")
        if self.width % self.heads or self.head_width % 2 or self.head_width < 6:
            raise UsageError(
                f"wan: width {self.width} over {self.heads} heads gives {self.width / self.heads:g} each; "
                "allowed: even, >= 6 (pairs for time, row and column); change width or heads"
            )
        for name in ("latent_height", "latent_width", "time_width"):
            if getattr(self, name) % 2:
                raise UsageError(f"wan: {name} is {getattr(self, name)}, allowed: even; pad or crop to the next even")

    @property
    def head_width(self) -> int:
        return self.width // self.heads

    @property
    def rope_widths(self) -> tuple[int, int, int]:
        """Share of a head that turns with time, row and column: 44, 42, 42 of 128."""
        side = 2 * (self.head_width // 6)
        return self.head_width - 2 * side, side, side

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of video tokens in a frame."""
        return self.latent_height // PATCH, self.latent_width // PATCH

    @property
    def tokens(self) -> int:
        """Video tokens K of a frame."""
        return math.prod(self.grid)

    def to_json(self) -> dict[str, int | float | bool]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, int | float | bool]) -> "Config":
        """Raises UsageError for a key that is not a size."""
        unknown = sorted(set(data) - {field.name for field in fields(cls)})
        if unknown:
            raise UsageError(f"wan: unknown size {unknown[0]!r}; remove it, or update dzedge")
        return cls(**data)  # type: ignore[arg-type]


PRESETS = {
    "nano": Config(
        width=48, layers=2, heads=2, feed=96, channels=4, latent_height=4, latent_width=6, text_tokens=5, text_width=16,
        action_width=6, state_width=8, hidden=32, time_width=16, actions=8, window=3,
    ),
    "0.1B": Config(width=640, layers=16, heads=5, feed=2560),
    "0.45B": Config(width=1024, layers=24, heads=8, feed=4096),
    "5B": Config(width=3072, layers=30, heads=24, feed=14336, text_tokens=512, image_tokens=257),
    "14B": Config(
        width=5120, layers=40, heads=40, feed=13824, channels=16, condition_channels=20, latent_height=44,
        latent_width=80, text_tokens=512, image_tokens=257,
    ),
}  # fmt: skip


def preset(name: str) -> Config:
    """A named configuration. Raises UsageError for a name that is none."""
    if name not in PRESETS:
        raise UsageError(f"wan: size {name!r} is unknown; known: {', '.join(PRESETS)}")
    return PRESETS[name]


class Kind(IntEnum):
    """Kinds of tokens."""

    CLEAN = 0
    NOISY = 1
    ACTION = 2
    STATE = 3


def angles(position: Tensor, width: int) -> Tensor:
    """position * 10000^(-2i / width), i < width / 2, [rad]. Shape (...) -> Shape (..., width / 2)."""
    exponent = torch.arange(0, width, 2, dtype=torch.float64, device=position.device) / -width
    return position.unsqueeze(-1) * torch.pow(10000.0, exponent).to(position.dtype)


def frame_angles(config: Config, position: Tensor) -> Tensor:
    """RoPE of the tokens of frames, by time, row and column. position: Shape (B, F) -> Shape (B, F*K, hd/2)."""
    steps = [torch.arange(n, dtype=position.dtype, device=position.device) for n in config.grid]
    time, row, column = (angles(*pair) for pair in zip((position, *steps), config.rope_widths, strict=True))
    shape = (*position.shape, *config.grid, -1)
    parts = (time[:, :, None, None], row[None, None, :, None], column[None, None, None])
    return torch.cat([part.expand(shape) for part in parts], dim=-1).flatten(1, 3)


def visible(config: Config, place: Tensor) -> Tensor:
    """The one attention rule of training and inference: may token i attend to token j. Shape (3, N) -> (N, N), bool."""
    (kind, block, own), (other, other_block, frame) = place.unsqueeze(2), place.unsqueeze(1)
    start = (block - 1) * config.frames + 1
    same = block == other_block
    if config.streaming:
        alone = kind == Kind.CLEAN
        start, same = torch.where(alone, own, start), same & (~alone | (own == frame))
    recent = (other == Kind.CLEAN) & (frame >= start - config.window) & (frame < start)
    seen = recent | (same & ((kind == Kind.CLEAN) == (other == Kind.CLEAN)))
    return seen if config.state_sees_all else torch.where(kind == Kind.STATE, same & (other == Kind.STATE), seen)


class Tokens(NamedTuple):
    """A run of tokens with what time, RoPE and the attention rule must know of each.

    hidden: Shape (B, N, D); time: Shape (B, G), the distinct times; owner: Shape (N,), which of them is a token's;
    angle: Shape (B, N, hd/2), [rad]; place: Shape (3, N), kind, block and, of clean frames, index.
    """

    hidden: Tensor
    time: Tensor
    owner: Tensor
    angle: Tensor
    place: Tensor


def joined(parts: list[Tokens]) -> Tokens:
    """One run of several."""
    starts = [sum(part.time.shape[1] for part in parts[:i]) for i in range(len(parts))]
    owner = torch.cat([part.owner + start for part, start in zip(parts, starts, strict=True)])
    hidden, time, _, angle, place = zip(*parts, strict=True)
    return Tokens(torch.cat(hidden, 1), torch.cat(time, 1), owner, torch.cat(angle, 1), torch.cat(place, 1))


class Window(NamedTuple):
    """Clean frames that a pass attends to. key, value: Shape (B, S, L, A, K, hd), keys before RoPE;
    slot_pos: Shape (B, S + F), positions of the slots and then of the new frames; valid: Shape (B, S), 0 = empty."""

    key: Tensor
    value: Tensor
    slot_pos: Tensor
    valid: Tensor

    @property
    def positions(self) -> tuple[Tensor, Tensor]:
        """Of the slots, Shape (B, S), and of the new frames, Shape (B, F)."""
        slots = self.valid.shape[1]
        return self.slot_pos[:, :slots], self.slot_pos[:, slots:]

    def rows(self, layer: int) -> Rows:
        """One layer's keys and values, each Shape (B, A, S*K, hd)."""
        key, value = (rows[:, :, layer].transpose(1, 2).flatten(2, 3) for rows in (self.key, self.value))
        return key, value
