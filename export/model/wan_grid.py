"""Between a tokenizer's patches, one row each, and the grid of latents that the coupled layout cuts into tokens."""

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as fn

from dzedge.export.model.wan_config import PATCH


@dataclass(frozen=True, slots=True)
class Grid:
    """rows x columns patches of an image, in the order in which it is read. An odd side gets one more row or column,
    of zeros, that nothing is learned of."""

    rows: int
    columns: int

    @property
    def padded(self) -> tuple[int, int]:
        """Height and width of the grid of latents, both even."""
        return self.rows + self.rows % PATCH, self.columns + self.columns % PATCH

    def cells(self, latent: Tensor) -> Tensor:
        """Shape (B, f, rows * columns, C) -> Shape (B, f, C, h, w)."""
        cells = latent.transpose(2, 3).unflatten(3, (self.rows, self.columns))
        height, width = self.padded
        if (height, width) == (self.rows, self.columns):
            return cells
        return fn.pad(cells, (0, width - self.columns, 0, height - self.rows))

    def patches(self, cells: Tensor) -> Tensor:
        """Shape (B, f, C, h, w) -> Shape (B, f, rows * columns, C)."""
        return cells[..., : self.rows, : self.columns].flatten(3).transpose(2, 3)
