"""What every trunk is built of: transformer layers in steps, rotary positions, times, flow velocities."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as fn

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
    steps = torch.arange(half, dtype=position.dtype, device=position.device)  # float32 under bfloat16 rows too
    frequency = torch.exp(steps * (-math.log(20.0) / half))
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
        return self.six(shared).unsqueeze(2).unbind(1)

    def six(self, shared: Tensor) -> Tensor:
        """Scale, shift, gate of attention and of the feed-forward part. shared: Shape (B, 6 d) -> Shape (B, 6, d)."""
        return (shared + self.bias).unflatten(-1, (6, -1))

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
    """Which kind of thing a token is: the arm, or a cube; or which patch. Shape (2, d) or (K, d) -> Shape (K, d).

    Cubes share one name, so what is learned about one colour holds for all; language points at the one it means.
    """
    if len(names) == tokens:
        return names
    return torch.cat([names[:1], names[1:].expand(tokens - 1, -1)])


def layers_of(blocks: nn.ModuleList) -> list[Block]:
    """The blocks of a list, as what they are."""
    return [block for block in blocks if isinstance(block, Block)]


def modulations(blocks: nn.ModuleList, shared: Tensor) -> Tensor:
    """The six vectors of every block. shared: Shape (B, 6 d) -> Shape (B, 6 L, d), layer by layer."""
    return torch.cat([block.six(shared) for block in layers_of(blocks)], dim=1)


def by_layer(modulation: Tensor) -> list[tuple[Tensor, ...]]:
    """Shape (B, 6 L, d) -> of each layer its six vectors, each Shape (B, 1, d). One `split`: one node of a graph."""
    rows = modulation.split(1, dim=1)
    return [rows[first : first + 6] for first in range(0, len(rows), 6)]


def rows_of(packed: Tensor, layers: int, heads: int) -> Rows:
    """One projection of n tokens into every layer's keys and values. Shape (B, n, 2 L d) -> (B, L, A, n, hd), twice."""
    rows = packed.unflatten(-1, (2, layers, heads, -1)).permute(2, 0, 3, 4, 1, 5)
    return rows.unbind(0)


def start_small(module: nn.Module, streams: list[nn.Module]) -> None:
    """Xavier for every matrix; modulation and output of a stream begin at zero."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.xavier_uniform_(part.weight)
            nn.init.zeros_(part.bias)
    for stream in streams:
        for name in ("shared", "leave"):
            head = getattr(stream, name, None)
            if isinstance(head, nn.Linear):
                nn.init.zeros_(head.weight)
