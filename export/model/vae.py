"""A convolutional frame tokenizer that needs no labels: one camera image <-> one token a square patch.

A variational autoencoder whose mean lies on a sphere: every token has root mean square 1, so that a trunk sees the
same scale everywhere and only the noise has a size to learn. One frame at a time, no frame knows of another.
"""

import torch
from torch import Tensor, nn

from dzedge.export.model.sizes import Sizes
from dzedge.export.model.tokenizer import convolution

LOG_SIGMA = (-6.0, 1.0)
"""Least and most of the logarithm of the code's noise."""


class Residual(nn.Module):
    """Two convolutions beside the identity. Shape (B, width, h, w) -> the same."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(convolution(width, width), convolution(width, width))

    def forward(self, rows: Tensor) -> Tensor:
        return rows + self.body(rows)


class VaeEncoder(nn.Module):
    """Image -> latent. image: Shape (B, 3, h, w) in [-1, 1] -> Shape (B, K, C), each token of root mean square 1."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        w, last = sizes.encoder_width, sizes.cell // 4
        self.sizes = sizes
        self.body = nn.Sequential(
            convolution(3, w, 5, 2), convolution(w, 2 * w, 3, 2), Residual(2 * w),
            convolution(2 * w, 4 * w, 5, last), Residual(4 * w), Residual(4 * w),
            nn.Conv2d(4 * w, 2 * sizes.channels, 1),
        )  # fmt: skip

    def forward(self, image: Tensor) -> Tensor:
        return self.code(image)[0]

    def code(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log standard deviation of the code, each Shape (B, K, C)."""
        mean, log_sigma = self.body(image).float().flatten(2).transpose(1, 2).chunk(2, dim=-1)
        mean = mean * torch.rsqrt((mean**2).mean(-1, keepdim=True) + 1e-6)
        return mean, log_sigma.clamp(*LOG_SIGMA)


class VaeDecoder(nn.Module):
    """Latent -> image. Shape (B, K, C) -> Shape (B, 3, h, w) in [-1, 1].

    It draws the difference to a fixed background, and begins with none.
    """

    background: Tensor

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        w, last = sizes.decoder_width, sizes.cell // 4
        self.sizes = sizes
        self.body = nn.Sequential(
            convolution(sizes.channels, 4 * w), Residual(4 * w), Residual(4 * w),
            nn.Conv2d(4 * w, 2 * w * last**2, 3, 1, 1), nn.PixelShuffle(last), nn.ReLU(), Residual(2 * w),
            nn.Conv2d(2 * w, 4 * w, 3, 1, 1), nn.PixelShuffle(2), nn.ReLU(), convolution(w, w),
        )  # fmt: skip
        self.leave = nn.Conv2d(w, 12, 3, 1, 1)
        for weight in self.leave.parameters():
            nn.init.zeros_(weight)
        self.shuffle = nn.PixelShuffle(2)
        self.register_buffer("background", torch.zeros(1, 3, sizes.image_height, sizes.image_width))

    def forward(self, latent: Tensor) -> Tensor:
        return self.draw(latent).clamp(-1.0, 1.0)

    def draw(self, latent: Tensor) -> Tensor:
        """The image before it is clamped: what the loss sees, so that no pixel loses its gradient."""
        rows = latent.transpose(1, 2).unflatten(2, self.sizes.grid)
        return self.shuffle(self.leave(self.body(rows))).float() + self.background


class Vae(nn.Module):
    """Encoder and decoder together, for one optimizer and one checkpoint."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.encoder = VaeEncoder(sizes)
        self.decoder = VaeDecoder(sizes)
