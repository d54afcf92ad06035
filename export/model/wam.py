"""The World Action Model: p(future frames, actions | frames, joints, instruction) by flow matching.

Two streams with weights of their own. The video stream (one token per thing, its F future frames side by
side) attends to itself, to the rows of clean frames and to language. The action stream (the joint state and
H actions in patches) attends to the video stream's rows and to itself, never to language, and the video
never attends to actions: so the rows of a finished video are computed once and every action pass is cheap,
and video without actions is in distribution. Each stream has its own time t: 0 is noise, 1 is clean.

Both predict the clean value x inside and give the velocity (x - x_t) / (1 - t) outside: residuals to the
current frame and targets relative to the measured joints have structure that noise has not.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as fn

from dzedge.export.model.sizes import Sizes
from dzedge.export.model.text import POINTERS, TextEncoder

MIN_REMAINING = 0.05
"""Least 1 - t that a velocity divides by."""

Rows = tuple[Tensor, Tensor]
"""Keys and values, each Shape (B, L, A, rows, hd)."""


def velocity(clean: Tensor, noisy: Tensor, time: Tensor) -> Tensor:
    """(x - x_t) / (1 - t) for a predicted clean x. time: Shape (B,)."""
    remaining = (1.0 - time).clamp(min=MIN_REMAINING)
    return (clean - noisy) / remaining.reshape(-1, *([1] * (clean.dim() - 1)))


def rotate(rows: Tensor, position: Tensor) -> Tensor:
    """Rotary position code. rows: Shape (B, ..., n, hd); position: Shape (B, 1, ..., n), in steps of a frame."""
    half = rows.shape[-1] // 2
    frequency = torch.exp(torch.arange(half, dtype=rows.dtype) * (-math.log(20.0) / half))
    angle = position.unsqueeze(-1) * frequency
    cos, sin = angle.cos(), angle.sin()
    first, second = rows[..., :half], rows[..., half:]
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)


def normalised(rows: Tensor) -> Tensor:
    """Layer norm without parameters: the modulation brings them."""
    return fn.layer_norm(rows, rows.shape[-1:])


class TimeEncoder(nn.Module):
    """Sinusoids of t and two layers. Shape (B,) -> Shape (B, d)."""

    frequency: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("frequency", torch.exp(torch.linspace(0.0, math.log(100.0), 16)), persistent=False)
        self.mix = nn.Sequential(nn.Linear(33, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, time: Tensor) -> Tensor:
        angle = time.unsqueeze(-1) * self.frequency
        return self.mix(torch.cat([time.unsqueeze(-1), angle.sin(), angle.cos()], dim=-1))


class Block(nn.Module):
    """One pre-norm layer of a stream, in three steps so that streams can meet between them."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)
        self.bias = nn.Parameter(torch.zeros(6 * width))

    def modulation(self, shared: Tensor) -> tuple[Tensor, ...]:
        """Six vectors, each Shape (B, 1, d). `unbind`, because slicing zero-fills in the backward pass."""
        return (shared + self.bias).unflatten(-1, (6, -1)).unsqueeze(2).unbind(1)

    def project(self, rows: Tensor, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys, values, each Shape (B, A, n, hd)."""
        qkv = self.qkv(normalised(rows) * (1.0 + scale) + shift)
        return qkv.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        seen = fn.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return self.out(seen.transpose(1, 2).flatten(2))

    def feed(self, rows: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        return self.down(fn.gelu(self.up(normalised(rows) * (1.0 + scale) + shift), approximate="tanh"))


def names_of(names: Tensor, tokens: int) -> Tensor:
    """Which kind of thing a token is: the arm, or a cube. Shape (2, d) -> Shape (K, d).

    Cubes share one name, so what is learned about one colour holds for all; language points at the one it means.
    """
    return torch.cat([names[:1], names[1:].expand(tokens - 1, -1)])


def layers_of(blocks: nn.ModuleList) -> list[Block]:
    """The blocks of a list, as what they are."""
    return [block for block in blocks if isinstance(block, Block)]


class Prefill(nn.Module):
    """Clean latents -> the rows that later passes attend to. One block per frame, then every layer's rows.

    A clean frame attends only to itself, so its rows do not depend on what else is in the window.
    """

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.enter = nn.Linear(sizes.channels, sizes.width)
        self.names = nn.Parameter(0.2 * torch.randn(2, sizes.width))
        self.block = Block(sizes.width, sizes.heads)
        self.rows = nn.Linear(sizes.width, sizes.layers * 2 * sizes.width)

    def forward(self, latent: Tensor) -> Rows:
        hidden = self.enter(latent) + names_of(self.names, self.sizes.tokens)
        still = torch.zeros(1, 1, self.sizes.width)
        query, key, value = self.block.project(hidden, still, still)
        hidden = hidden + self.block.attend(query, key, value, None)
        hidden = hidden + self.block.feed(hidden, still, still)
        rows = self.rows(normalised(hidden))
        rows = rows.unflatten(-1, (2, self.sizes.layers, self.sizes.heads, -1)).permute(2, 0, 3, 4, 1, 5)
        return rows.unbind(0)


class VideoStream(nn.Module):
    """Denoises the residuals of F future frames."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.sizes = sizes
        width = sizes.width
        self.enter = nn.Linear((sizes.frames + 1) * sizes.channels, width)
        self.names = nn.Parameter(0.2 * torch.randn(2, width))
        self.named = nn.Parameter(torch.randn(width))
        self.time = TimeEncoder(width)
        self.doing = nn.Linear(width - POINTERS, width)
        self.shared = nn.Linear(width, 6 * width)
        self.text_rows = nn.Linear(width, sizes.layers * 2 * width)
        self.blocks = nn.ModuleList(Block(width, sizes.heads) for _ in range(sizes.layers))
        self.leave = nn.Linear(width, sizes.frames * sizes.channels)

    def _outside(self, window: Rows, slot_pos: Tensor, valid: Tensor, text: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rows of the window (rotated now) and of language, and the mask that hides empty slots."""
        key, value = window
        position = slot_pos.unsqueeze(-1).expand(-1, -1, self.sizes.tokens)[:, :, None, None]
        key = rotate(key, position).permute(0, 2, 3, 1, 4, 5).flatten(3, 4)
        value = value.permute(0, 2, 3, 1, 4, 5).flatten(3, 4)
        words = self.text_rows(text).unflatten(-1, (2, self.sizes.layers, self.sizes.heads, -1))
        words_key, words_value = words.permute(2, 0, 3, 4, 1, 5).unbind(0)
        hidden = (1.0 - valid).repeat_interleave(self.sizes.tokens, dim=1) * -1e4
        mask = fn.pad(hidden, (self.sizes.tokens, 1))[:, None, None]
        return torch.cat([key, words_key], dim=3), torch.cat([value, words_value], dim=3), mask

    def forward(
        self,
        video: Tensor,
        latent: Tensor,
        window: Rows,
        slot_pos: Tensor,
        valid: Tensor,
        text: Tensor,
        time: Tensor,
    ) -> tuple[Tensor, Rows, Tensor]:
        """Predicted clean residuals (B, F, K, C); own rows (B, L, A, K, hd); logits over cubes and none (B, K).

        video: Shape (B, F, K, C); latent: Shape (B, K, C); window: keys and values, Shape (B, S, L, A, K, hd);
        slot_pos, valid: Shape (B, S); text: Shape (B, 1, d); time: Shape (B,).
        """
        sizes = self.sizes
        doing = self.doing(text[..., :-POINTERS])
        # A last logit of zero stands for "nothing named": then every cube gets the same small share.
        logits = fn.pad(text[:, 0, -POINTERS:], (0, 1))
        pointer = fn.pad(logits.softmax(-1)[:, :-1], (1, 0)).unsqueeze(-1)
        outside_key, outside_value, mask = self._outside(window, slot_pos, valid, doing)
        packed = torch.cat([latent, video.transpose(1, 2).flatten(2)], dim=-1)
        hidden = self.enter(packed) + names_of(self.names, sizes.tokens) + pointer * self.named
        shared = self.shared(fn.silu(self.time(time) + doing.squeeze(1)))
        ahead = torch.ones(1, 1, sizes.tokens)
        keys, values = [], []
        for layer, block in enumerate(layers_of(self.blocks)):
            scale, shift, gate, scale_up, shift_up, gate_up = block.modulation(shared)
            query, key, value = block.project(hidden, scale, shift)
            query, turned = rotate(query, ahead), rotate(key, ahead)
            seen_key = torch.cat([turned, outside_key[:, layer]], dim=2)
            seen_value = torch.cat([value, outside_value[:, layer]], dim=2)
            hidden = hidden + (1.0 + gate) * block.attend(query, seen_key, seen_value, mask)
            hidden = hidden + (1.0 + gate_up) * block.feed(hidden, scale_up, shift_up)
            keys.append(key)
            values.append(value)
        clean = self.leave(normalised(hidden)).unflatten(-1, (sizes.frames, sizes.channels)).transpose(1, 2)
        return clean, (torch.stack(keys, dim=1), torch.stack(values, dim=1)), logits


class ActionStream(nn.Module):
    """Denoises a chunk of actions against the video stream's rows. The joint state is its first token."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.sizes = sizes
        width = sizes.width
        patches = sizes.horizon // sizes.patch
        self.state = nn.Sequential(nn.Linear(sizes.joints, width), nn.GELU(), nn.Linear(width, width))
        self.enter = nn.Linear(sizes.patch * (sizes.joints + 1), width)
        self.names = nn.Parameter(0.2 * torch.randn(1 + patches, width))
        self.time = TimeEncoder(width)
        self.shared = nn.Linear(width, 6 * width)
        self.blocks = nn.ModuleList(Block(width, sizes.heads) for _ in range(sizes.layers))
        self.leave = nn.Linear(width, sizes.patch * sizes.joints)

    def forward(
        self, action: Tensor, prefix: Tensor, prefix_mask: Tensor, state: Tensor, video: Rows, time: Tensor
    ) -> Tensor:
        """Predicted clean actions (B, H, J), equal to the prefix where it is committed.

        action, prefix: Shape (B, H, J); prefix_mask: Shape (B, H), 1 = committed (that action is clean whatever
        the time); state: Shape (B, J); video: keys and values, Shape (B, L, A, K, hd); time: Shape (B,).
        """
        sizes = self.sizes
        committed = prefix_mask.unsqueeze(-1)
        known = committed * prefix + (1.0 - committed) * action
        packed = torch.cat([known, committed], dim=-1).unflatten(1, (-1, sizes.patch)).flatten(2)
        hidden = torch.cat([self.state(state).unsqueeze(1), self.enter(packed)], dim=1) + self.names
        shared = self.shared(fn.silu(self.time(time)))
        for layer, block in enumerate(layers_of(self.blocks)):
            scale, shift, gate, scale_up, shift_up, gate_up = block.modulation(shared)
            query, key, value = block.project(hidden, scale, shift)
            key = torch.cat([key, video[0][:, layer]], dim=2)
            value = torch.cat([value, video[1][:, layer]], dim=2)
            hidden = hidden + (1.0 + gate) * block.attend(query, key, value, None)
            hidden = hidden + (1.0 + gate_up) * block.feed(hidden, scale_up, shift_up)
        clean = self.leave(normalised(hidden[:, 1:])).unflatten(-1, (sizes.patch, sizes.joints)).flatten(1, 2)
        return committed * prefix + (1.0 - committed) * clean


class Wam(nn.Module):
    """The whole trunk: text, prefill, video stream, action stream."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.text = TextEncoder(sizes.width)
        self.prefill = Prefill(sizes)
        self.video = VideoStream(sizes)
        self.action = ActionStream(sizes)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        for stream in (self.video, self.action):
            nn.init.zeros_(stream.shared.weight)
            nn.init.zeros_(stream.leave.weight)

    def window(self, latents: Tensor) -> Rows:
        """Rows of S clean frames. latents: Shape (B, S, K, C) -> Shape (B, S, L, A, K, hd), twice."""
        key, value = self.prefill(latents.flatten(0, 1))
        return key.unflatten(0, latents.shape[:2]), value.unflatten(0, latents.shape[:2])
