"""The manifest's statistics as arrays, and what they do: physical units to those of the model and back.

Host arithmetic is float64.
"""

import numpy as np
from numpy.typing import NDArray

from dzedge.bundle import Section
from dzedge.errors import BundleError

Floats = NDArray[np.float64]


class Statistics:
    """Statistics of the training set. Raises BundleError where a shape or a value is wrong.

    action_std, action_mean: Shape (H, J), [rad] relative to the anchor; state_mean, state_std: (J,), [rad];
    residual_std: (F, K, C); latent_mean, latent_std: (K, C); relative: (J,), 0 for an absolute joint, else 1.
    """

    def __init__(self, section: Section) -> None:
        joints, horizon, video = len(section.joints), section.horizon, section.video
        chunk, tokens = (horizon, joints), (video.tokens, video.channels)
        read, frames = section.statistics, (video.frames, *tokens)
        self.action_std = table("action_std", read.action_std, chunk, positive=True)
        self.action_mean = table("action_mean", read.action_mean or np.zeros(chunk), chunk)
        self.state_mean = table("state_mean", read.state_mean, (joints,))
        self.state_std = table("state_std", read.state_std, (joints,), positive=True)
        # A token that never moves has residual 0: only division needs a positive value.
        self.residual_std = table("residual_std", read.residual_std or np.zeros(frames), frames)
        self.latent_mean = table("latent_mean", read.latent_mean, tokens)
        self.latent_std = table("latent_std", read.latent_std, tokens)
        self.relative = np.array([name not in section.absolute_joints for name in section.joints], np.float64)

    def state(self, anchor: Floats) -> Floats:
        """Measured joints as the model takes them. Shape (J,), [rad] -> (J,)."""
        scaled: Floats = (anchor - self.state_mean) / self.state_std
        return scaled

    def actions(self, positions: Floats, anchor: Floats) -> Floats:
        """The first d targets of a chunk as the model takes them. Shape (d, J), [rad] -> (d, J)."""
        count = len(positions)
        offset = positions - anchor * self.relative - self.action_mean[:count]
        scaled: Floats = offset / self.action_std[:count]
        return scaled

    def positions(self, actions: NDArray[np.float32], anchor: Floats) -> Floats:
        """What the model wants, as targets. Shape (H, J) -> (H, J), [rad], absolute."""
        targets: Floats = anchor * self.relative + actions * self.action_std + self.action_mean
        return targets


def table(name: str, values: object, shape: tuple[int, ...], positive: bool = False) -> Floats:
    """One table of the manifest, read-only. Raises BundleError where its shape, or a sign, is wrong."""
    try:
        array = np.array(values, dtype=np.float64)
    except ValueError:
        array = np.empty(0)
    if array.shape != shape:
        raise BundleError(f"statistics.{name}: shape {array.shape}, the manifest's sizes say {shape}; export again")
    if positive and not np.all(array > 0):
        raise BundleError(f"statistics.{name}: {array.min()} must be positive; export again")
    array.setflags(write=False)
    return array
