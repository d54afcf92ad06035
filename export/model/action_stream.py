"""The stream that denoises a chunk of actions against rows of another stream: a finished video, or a context."""

import torch
from torch import Tensor, nn
from torch.nn import functional as fn

from dzedge.export.model.blocks import Block, Rows, TimeEncoder, by_layer, layers_of, modulations, normalised
from dzedge.export.model.sizes import Sizes


class ActionStream(nn.Module):
    """Denoises a chunk of actions against the rows of another stream. The joint state is its first token, where
    `with_state`: rows may have seen the joints already."""

    def __init__(self, sizes: Sizes, with_state: bool = True) -> None:
        super().__init__()
        self.sizes = sizes
        width = sizes.width
        patches = sizes.horizon // sizes.patch
        if with_state:
            self.state = nn.Sequential(nn.Linear(sizes.joints, width), nn.GELU(), nn.Linear(width, width))
        self.enter = nn.Linear(sizes.patch * (sizes.joints + 1), width)
        self.names = nn.Parameter(0.2 * torch.randn(with_state + patches, width))
        self.time = TimeEncoder(width)
        self.shared = nn.Linear(width, 6 * width)
        self.blocks = nn.ModuleList(Block(width, sizes.heads) for _ in range(sizes.layers))
        self.leave = nn.Linear(width, sizes.patch * sizes.joints)

    def modulation(self, time: Tensor) -> Tensor:
        """Every layer's six vectors at a time. Shape (B,) -> Shape (B, 6 L, d)."""
        return modulations(self.blocks, self.shared(fn.silu(self.time(time))))

    def forward(
        self, action: Tensor, prefix: Tensor, prefix_mask: Tensor, state: Tensor | None, rows: Rows, time: Tensor
    ) -> Tensor:
        """`denoise` at a time, Shape (B,)."""
        return self.denoise(action, prefix, prefix_mask, state, rows, self.modulation(time))

    def denoise(
        self, action: Tensor, prefix: Tensor, prefix_mask: Tensor, state: Tensor | None, rows: Rows, modulation: Tensor
    ) -> Tensor:
        """Predicted clean actions (B, H, J), equal to the prefix where it is committed.

        action, prefix: Shape (B, H, J); prefix_mask: Shape (B, H), 1 = committed (that action is clean whatever
        the time); state: Shape (B, J); rows: keys and values, Shape (B, L, A, n, hd); modulation: of the time.
        """
        sizes = self.sizes
        committed = prefix_mask.unsqueeze(-1)
        known = committed * prefix + (1.0 - committed) * action
        packed = torch.cat([known, committed], dim=-1).unflatten(1, (-1, sizes.patch)).flatten(2)
        hidden = self.enter(packed)
        if state is not None:
            hidden = torch.cat([self.state(state).unsqueeze(1), hidden], dim=1)
        hidden = hidden + self.names
        vectors = by_layer(modulation)
        for layer, block in enumerate(layers_of(self.blocks)):
            scale, shift, gate, scale_up, shift_up, gate_up = vectors[layer]
            query, key, value = block.project(hidden, scale, shift)
            key = torch.cat([key, rows[0][:, layer]], dim=2)
            value = torch.cat([value, rows[1][:, layer]], dim=2)
            hidden = hidden + (1.0 + gate) * block.attend(query, key, value, None)
            hidden = hidden + (1.0 + gate_up) * block.feed(hidden, scale_up, shift_up)
        said = hidden[:, -(sizes.horizon // sizes.patch) :]
        clean = self.leave(normalised(said)).unflatten(-1, (sizes.patch, sizes.joints)).flatten(1, 2)
        return committed * prefix + (1.0 - committed) * clean
