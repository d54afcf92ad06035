"""A VLA in the manner of pi0.5: prefix features of a vision-language trunk, and an action expert by flow matching.

The expert attends to the trunk's keys and values layer by layer. It is the world action model without the world:
the same action stream, fed by what is seen instead of by what is imagined.
"""

from torch import Tensor, nn

from dzedge.export.model.action_stream import ActionStream
from dzedge.export.model.blocks import start_small
from dzedge.export.model.context import Context
from dzedge.export.model.sizes import Sizes
from dzedge.export.model.text import text_encoder


class FlowVla(nn.Module):
    """Text, context, action expert."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.text = text_encoder(sizes)
        self.context = Context(sizes, with_state=True)
        self.action = ActionStream(sizes, with_state=False)
        start_small(self, [self.context, self.action])

    def forward(
        self, seen: tuple[Tensor, Tensor, Tensor], words: Tensor, state: Tensor, action: Tensor, prefix: Tensor,
        prefix_mask: Tensor, time: Tensor,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Predicted clean actions (B, H, J) and logits over cubes (B, K). seen: latent, before, has_before as
        `Context`; words: Shape (B, W); the rest as `ActionStream`."""
        _, rows, logits = self.context(*seen, self.text(words), state)
        return self.action(action, prefix, prefix_mask, None, rows, time), logits
