"""A VLA in the manner of RT-2: actions are words of 256 bins, said one after the other.

H x J tokens in the order of time, then joint; each attends to the context's rows and to the tokens before it.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as fn

from dzedge.export.model.blocks import Block, Rows, layers_of, normalised, start_small
from dzedge.export.model.context import Context
from dzedge.export.model.sizes import Sizes
from dzedge.export.model.text import text_encoder

BINS = 256
START = BINS
"""The token before the first."""


class TokenStream(nn.Module):
    """A causal decoder over action tokens."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.sizes, width = sizes, sizes.width
        self.length = sizes.horizon * sizes.joints
        self.tokens = nn.Parameter(0.5 * torch.randn(BINS + 1, width))
        self.places = nn.Parameter(0.2 * torch.randn(self.length, width))
        self.blocks = nn.ModuleList(Block(width, sizes.heads) for _ in range(sizes.layers))
        self.leave = nn.Linear(width, BINS)

    def forward(self, tokens: Tensor, context: Rows) -> Tensor:
        """Logits of every token, Shape (B, H J, 256), given those before it. tokens: Shape (B, H J), int64."""
        ahead = fn.pad(tokens[:, :-1], (1, 0), value=START)
        hidden = self.tokens[ahead] + self.places
        known = context[0].shape[3]
        mask = torch.ones(self.length, self.length, device=tokens.device).triu(1) * -1e4
        mask = fn.pad(mask, (known, 0))
        for layer, block in enumerate(layers_of(self.blocks)):
            hidden, _ = self._layer(block, hidden, (context[0][:, layer], context[1][:, layer]), mask)
        return self.leave(normalised(hidden))

    def say(self, token: Tensor, place: Tensor, context: Rows, past: Rows) -> tuple[Tensor, Rows]:
        """Logits of the token at `place`, Shape (B, 256), and its own rows (B, L, A, 1, hd).

        token: the one before, Shape (B,), int64; place: Shape (1,), int64; context: (B, L, A, N, hd); past: rows of
        all places, Shape (B, L, A, H J, hd), of which those before `place` are seen.
        """
        hidden = (self.tokens[token] + self.places[place]).unsqueeze(1)
        unsaid = (torch.arange(self.length) >= place).to(hidden.dtype) * -1e4
        mask = torch.cat([torch.zeros(context[0].shape[3]), unsaid, torch.zeros(1)]).unsqueeze(0)
        keys, values = [], []
        for layer, block in enumerate(layers_of(self.blocks)):
            key, value = (torch.cat([known[:, layer], said[:, layer]], dim=2)
                          for known, said in zip(context, past, strict=True))  # fmt: skip
            hidden, own = self._layer(block, hidden, (key, value), mask)
            keys.append(own[0])
            values.append(own[1])
        return self.leave(normalised(hidden)).squeeze(1), (torch.stack(keys, dim=1), torch.stack(values, dim=1))

    def _layer(self, block: Block, hidden: Tensor, seen: Rows, mask: Tensor) -> tuple[Tensor, Rows]:
        still = torch.zeros(1, 1, self.sizes.width, device=hidden.device)
        query, key, value = block.project(hidden, still, still)
        keys, values = torch.cat([seen[0], key], dim=2), torch.cat([seen[1], value], dim=2)
        hidden = hidden + block.attend(query, keys, values, mask)
        return hidden + block.feed(hidden, still, still), (key, value)


class TokenVla(nn.Module):
    """Text, context, action tokens."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.text = text_encoder(sizes)
        self.context = Context(sizes, with_state=True)
        self.stream = TokenStream(sizes)
        start_small(self, [self.context])

    def forward(
        self, seen: tuple[Tensor, Tensor, Tensor], words: Tensor, state: Tensor, tokens: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Logits of every action token (B, H J, 256) and over cubes (B, K)."""
        _, rows, logits = self.context(*seen, self.text(words), state)
        return self.stream(tokens, rows), logits
