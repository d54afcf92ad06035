"""Statistics of a training set: they travel in the checkpoint and in the manifest."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dzedge.export.model.sizes import Sizes


@dataclass(frozen=True, slots=True)
class Moments:
    """Statistics of the training set. action_std: Shape (H, J), [rad]; action_low, action_high: Shape (H, J), 0.1 and
    99.9 % quantiles in units of action_std; state_mean, state_std: Shape (J,), [rad]; residual_std: Shape (F, K, C),
    latent units; latent_mean, latent_std: Shape (K, C), of latents that a tokenizer learned, none where their units are
    fixed (`latent.py`)."""

    action_std: NDArray[np.float64]
    state_mean: NDArray[np.float64]
    state_std: NDArray[np.float64]
    residual_std: NDArray[np.float64]
    action_low: NDArray[np.float64]
    action_high: NDArray[np.float64]
    latent_mean: NDArray[np.float64] | None = None
    latent_std: NDArray[np.float64] | None = None

    @classmethod
    def neutral(cls, sizes: Sizes) -> "Moments":
        """Statistics of nothing in particular, for untrained bundles."""
        return cls(
            np.full((sizes.horizon, sizes.joints), 0.02), np.zeros(sizes.joints), np.ones(sizes.joints),
            np.full((sizes.frames, sizes.tokens, sizes.channels), 0.1),
            np.full((sizes.horizon, sizes.joints), -4.0), np.full((sizes.horizon, sizes.joints), 4.0),
        )  # fmt: skip

    def to_json(self) -> dict[str, object]:
        tables = {name: getattr(self, name) for name in self.__slots__}
        return {name: table.tolist() for name, table in tables.items() if table is not None}

    @classmethod
    def from_json(cls, data: dict[str, object]) -> "Moments":
        return cls(**{name: np.asarray(value, dtype=np.float64) for name, value in data.items()})
