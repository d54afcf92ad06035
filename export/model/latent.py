"""Metres <-> latent units: fixed numbers, so that a latent means the same in every checkpoint."""

import numpy as np
from numpy.typing import NDArray

from dzedge.export.model.sizes import TOKEN_NAMES

SCALE = 0.1
"""One latent unit of position [m]; the same along every axis keeps distances comparable."""

_ARM = ((0.20, 0.0, 0.08), (0.13, 0.0, 0.14), (0.06, 0.0, 0.22))
_CUBE = (0.22, 0.0, 0.02)


def latent_mean(channels: int = 10) -> NDArray[np.float32]:
    """Shape (K, C)."""
    mean = np.zeros((len(TOKEN_NAMES), channels), dtype=np.float32)
    mean[0, :9] = np.ravel(_ARM)
    mean[0, 9] = 0.5
    mean[1:, :3] = _CUBE
    return mean


def latent_std(channels: int = 10) -> NDArray[np.float32]:
    """Shape (K, C); 1 where a channel has no unit (presence) or no use."""
    std = np.ones((len(TOKEN_NAMES), channels), dtype=np.float32)
    std[0, :9] = SCALE
    std[0, 9] = 0.5
    std[1:, :3] = SCALE
    return std


def used(channels: int = 10) -> NDArray[np.bool_]:
    """Which channels carry anything. Shape (K, C)."""
    mask = np.zeros((len(TOKEN_NAMES), channels), dtype=bool)
    mask[0, :] = True
    mask[1:, :4] = True
    return mask


def to_latent(labels: NDArray[np.float32]) -> NDArray[np.float32]:
    """Labels in metres, Shape (..., K, C), to latents; an absent cube's position becomes 0, as the encoder gives it."""
    latent = (labels - latent_mean(labels.shape[-1])) / latent_std(labels.shape[-1])
    latent[..., 1:, :3] *= labels[..., 1:, 3:4]
    return latent.astype(np.float32)
