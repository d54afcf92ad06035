"""What a VLA knows before it acts: frames, words and joints, attending to each other without a mask.

It stands in for the vision-language backbone of pi0.5, RT-2 and GR00T N1 at the size of our trunk, with the same
frame tokens, the same text encoder and the same pointing at the named thing as the world action model has.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as fn

from dzedge.export.model.blocks import Block, Rows, layers_of, names_of, normalised
from dzedge.export.model.sizes import Sizes
from dzedge.export.model.text import pointer_of, said


class Context(nn.Module):
    """Newest frame, the frame before, words and, where `with_state`, joints -> N tokens through L layers."""

    def __init__(self, sizes: Sizes, with_state: bool) -> None:
        super().__init__()
        self.sizes, width = sizes, sizes.width
        self.enter = nn.Linear(sizes.channels, width)
        self.names = nn.Parameter(0.2 * torch.randn(sizes.kinds, width))
        self.when = nn.Parameter(0.2 * torch.randn(2, 1, width))
        self.missing = nn.Parameter(0.2 * torch.randn(1, 1, width))
        if sizes.pointers:
            self.named = nn.Parameter(torch.randn(width))
        self.doing = nn.Linear(width - sizes.pointers, width)
        self.shared = nn.Linear(width, 6 * width)
        self.state = nn.Sequential(nn.Linear(sizes.joints, width), nn.GELU(), nn.Linear(width, width))
        self.with_state = with_state
        if not with_state:
            del self.state
        self.blocks = nn.ModuleList(Block(width, sizes.heads) for _ in range(sizes.layers))

    @property
    def length(self) -> int:
        """N: 2 K frame tokens, words, and joints where they are read."""
        return 2 * self.sizes.tokens + 1 + self.with_state

    def forward(
        self, latent: Tensor, before: Tensor, has_before: Tensor, text: Tensor, state: Tensor | None = None
    ) -> tuple[Tensor, Rows, Tensor]:
        """Final hidden states (B, N, d); every layer's rows (B, L, A, N, hd); logits over cubes and none (B, K),
        over none alone (B, 1) where tokens are patches.

        latent, before: Shape (B, K, C); has_before: Shape (B,), 1 or 0; text: Shape (B, 1, d); state: Shape (B, J).
        """
        doing, logits = said(text, self.sizes.pointers)
        doing = self.doing(doing)
        names = names_of(self.names, self.sizes.tokens)
        if self.sizes.pointers:
            names = names + pointer_of(logits) * self.named
        there = has_before.reshape(-1, 1, 1)
        now = self.enter(latent) + names + self.when[0]
        past = there * self.enter(before) + (1.0 - there) * self.missing + names + self.when[1]
        parts = [now, past, doing]
        if state is not None:
            parts.append(self.state(state).unsqueeze(1))
        hidden = torch.cat(parts, dim=1)
        shared = self.shared(fn.silu(doing.squeeze(1)))
        keys, values = [], []
        for block in layers_of(self.blocks):
            scale, shift, gate, scale_up, shift_up, gate_up = block.modulation(shared)
            query, key, value = block.project(hidden, scale, shift)
            hidden = hidden + (1.0 + gate) * block.attend(query, key, value, None)
            hidden = hidden + (1.0 + gate_up) * block.feed(hidden, scale_up, shift_up)
            keys.append(key)
            values.append(value)
        return normalised(hidden), (torch.stack(keys, dim=1), torch.stack(values, dim=1)), logits
