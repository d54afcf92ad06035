"""A VLA in the manner of GR00T N1: a slow vision-language system, and a fast diffusion transformer for actions.

The slow system's last hidden states are computed at a low rate and grow old; the fast one cross-attends to them,
knows their age and reads the joints anew for every chunk.
"""

import torch
from torch import Tensor, nn

from dzedge.export.model.action_stream import ActionStream
from dzedge.export.model.blocks import rows_of, start_small
from dzedge.export.model.context import Context
from dzedge.export.model.sizes import Sizes
from dzedge.export.model.text import text_encoder


class ActionHead(nn.Module):
    """The fast system: features and their age -> rows for the action stream."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.age = nn.Sequential(nn.Linear(1, sizes.width), nn.SiLU(), nn.Linear(sizes.width, sizes.width))
        self.rows = nn.Linear(sizes.width, sizes.layers * 2 * sizes.width)
        self.stream = ActionStream(sizes)

    def forward(
        self, action: Tensor, prefix: Tensor, prefix_mask: Tensor, state: Tensor, features: Tensor, age: Tensor,
        time: Tensor,
    ) -> Tensor:  # fmt: skip
        """Predicted clean actions (B, H, J). features: Shape (B, N, d); age: Shape (B,), [s]; the rest as
        `ActionStream`."""
        aged = torch.cat([features, self.age(age.reshape(-1, 1)).unsqueeze(1)], dim=1)
        rows = rows_of(self.rows(aged), self.sizes.layers, self.sizes.heads)
        return self.stream(action, prefix, prefix_mask, state, rows, time)


class DualVla(nn.Module):
    """Text, slow context, fast head."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.text = text_encoder(sizes)
        self.context = Context(sizes, with_state=False)
        self.head = ActionHead(sizes)
        start_small(self, [self.context, self.head.stream])

    def forward(
        self, seen: tuple[Tensor, Tensor, Tensor], words: Tensor, age: Tensor, state: Tensor, action: Tensor,
        prefix: Tensor, prefix_mask: Tensor, time: Tensor,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Predicted clean actions (B, H, J) and logits over cubes (B, K); `seen` is `age` seconds old."""
        features, _, logits = self.context(*seen, self.text(words))
        return self.head(action, prefix, prefix_mask, state, features, age, time), logits
