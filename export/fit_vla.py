"""How the VLA families learn: the same windows, words and grounding as the world action model, but no video.

All three read the newest frame and the one before, and commit to a prefix as the world action model does.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as fn

from dzedge.export.episodes import LABELLED
from dzedge.export.fit_wam import action_loss, committed, explained, grounding_term, mixed
from dzedge.export.model.dual_vla import DualVla
from dzedge.export.model.flow_vla import FlowVla
from dzedge.export.model.moments import Moments
from dzedge.export.model.sizes import Sizes
from dzedge.export.model.token_vla import BINS, TokenVla
from dzedge.export.recipe import PolicyRecipe
from dzedge.export.windows import Batch, Windows

FEW_STEPS = 4
"""Denoise steps of the held-out figures."""


def hidden(recipe: PolicyRecipe, batch: Batch, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """What is left of words, Shape (B, W), and of histories, 1 or 0, Shape (B,)."""
    count, device = len(batch.words), batch.words.device
    words = (torch.rand(count, generator=rng) >= recipe.language_hidden).long().to(device)
    history = (torch.rand(count, generator=rng) >= recipe.history_hidden).float().to(device)
    return batch.words * words.unsqueeze(1), history


def noise_of(recipe: PolicyRecipe, batch: Batch, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Noise (B, H, J), committed mask (B, H) and time (B,) of an action flow."""
    count, horizon, device = len(batch.action), batch.action.shape[1], batch.action.device
    time = torch.rand(count, generator=rng)
    time[torch.rand(count, generator=rng) < recipe.start_share] = 0.0
    noise = torch.randn(batch.action.shape, generator=rng)
    return noise.to(device), committed(recipe, count, horizon, rng).to(device), time.to(device)


class FlowLearner:
    """pi0.5-like."""

    def build(self, sizes: Sizes, moments: Moments) -> nn.Module:
        return FlowVla(sizes)

    def batch(self, windows: Windows, pick: NDArray[np.int64], rng: np.random.Generator) -> Batch:
        return windows.batch(pick)

    def losses(
        self, model: nn.Module, recipe: PolicyRecipe, batch: Batch, acting: int, chance: torch.Generator
    ) -> dict[str, Tensor]:
        words, history = hidden(recipe, batch, chance)
        noise, mask, time = noise_of(recipe, batch, chance)
        noisy, prefix = mixed(batch.action, noise, time), batch.action * mask.unsqueeze(-1)
        chunk, logits = self.ask(model, batch, words, history, noisy, prefix, mask, time)
        return {
            "action": recipe.action_weight * action_loss(chunk, batch, mask, time),
            **grounding_term(recipe, logits, words, batch.colour),
        }

    def ask(
        self, model: nn.Module, batch: Batch, words: Tensor, history: Tensor, *flow: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Predicted clean actions and pointing logits. flow: noisy actions, prefix, its mask, time."""
        seen = (batch.latent, batch.before, batch.has_history * history)
        answer: tuple[Tensor, Tensor] = model(seen, words, batch.state, *flow)
        return answer

    def chunk(self, model: nn.Module, batch: Batch, noise: Tensor) -> Tensor:
        """Euler steps from noise, nothing committed. Shape (B, H, J)."""
        nothing, all_of_them = torch.zeros(noise.shape[:2]), torch.ones(len(noise))
        action = noise
        for step in range(FEW_STEPS):
            at = torch.full((len(noise),), step / FEW_STEPS)
            flow = (action, torch.zeros_like(action), nothing, at)
            clean, _ = self.ask(model, batch, batch.words, all_of_them, *flow)
            action = action + (clean - action) / (FEW_STEPS - step)
        return action

    def figures(self, model: nn.Module, windows: Windows) -> dict[str, float]:
        return figures(self, model, windows)


class DualLearner(FlowLearner):
    """GR00T-N1-like: what the slow system saw is up to SLOW_STEPS old."""

    def build(self, sizes: Sizes, moments: Moments) -> nn.Module:
        return DualVla(sizes)

    def batch(self, windows: Windows, pick: NDArray[np.int64], rng: np.random.Generator) -> Batch:
        return windows.batch(pick, rng.integers(0, SLOW_STEPS + 1, len(pick)))

    def ask(
        self, model: nn.Module, batch: Batch, words: Tensor, history: Tensor, *flow: Tensor
    ) -> tuple[Tensor, Tensor]:
        seen = (batch.slow, batch.slow_before, batch.slow_history * history)
        answer: tuple[Tensor, Tensor] = model(seen, words, batch.slow_age, batch.state, *flow)
        return answer


SLOW_STEPS = 4
"""Oldest features that a fast head is trained with, in steps of 0.1 s."""


class TokenLearner:
    """RT-2-like."""

    def __init__(self) -> None:
        self._bounds: tuple[Tensor, Tensor] | None = None

    def build(self, sizes: Sizes, moments: Moments) -> nn.Module:
        low, high = (torch.from_numpy(table).float() for table in (moments.action_low, moments.action_high))
        self._bounds = low, high
        return TokenVla(sizes)

    def batch(self, windows: Windows, pick: NDArray[np.int64], rng: np.random.Generator) -> Batch:
        return windows.batch(pick)

    def losses(
        self, model: nn.Module, recipe: PolicyRecipe, batch: Batch, acting: int, chance: torch.Generator
    ) -> dict[str, Tensor]:
        words, history = hidden(recipe, batch, chance)
        mask = committed(recipe, len(batch.action), batch.action.shape[1], chance).to(batch.action.device)
        seen = (batch.latent, batch.before, batch.has_history * history)
        tokens = self.tokens(batch.action)
        said, logits = model(seen, words, batch.state, tokens.flatten(1))
        counted = (batch.action_mask * (1.0 - mask)).unsqueeze(-1).expand_as(batch.action).flatten(1)
        miss = fn.cross_entropy(said.flatten(0, 1), tokens.flatten(), reduction="none").view_as(counted)
        return {
            "action": recipe.action_weight * (miss * counted).sum() / counted.sum().clamp(min=1.0),
            **grounding_term(recipe, logits, words, batch.colour),
        }

    def tokens(self, action: Tensor) -> Tensor:
        """Bins of normalised actions. Shape (B, H, J), int64."""
        assert self._bounds is not None
        low, high = (bound.to(action.device) for bound in self._bounds)
        return ((action - low) / (high - low) * BINS).long().clamp(0, BINS - 1)

    def values(self, tokens: Tensor) -> Tensor:
        """Centres of bins. Shape (B, H, J)."""
        assert self._bounds is not None
        low, high = self._bounds
        return low + (tokens.float() + 0.5) / BINS * (high - low)

    def chunk(self, model: nn.Module, batch: Batch, noise: Tensor) -> Tensor:
        """The likeliest token after the likeliest token."""
        assert isinstance(model, TokenVla)
        sizes, stream = model.sizes, model.stream
        seen = (batch.latent, batch.before, batch.has_history)
        _, context, _ = model.context(*seen, model.text(batch.words), batch.state)
        shape = (len(noise), sizes.layers, sizes.heads, stream.length, sizes.head_width)
        past = (torch.zeros(shape), torch.zeros(shape))
        token, said = torch.full((len(noise),), BINS), []
        for place in range(stream.length):
            logits, own = stream.say(token, torch.tensor([place]), context, past)
            past[0][:, :, :, place], past[1][:, :, :, place] = own[0][:, :, :, 0], own[1][:, :, :, 0]
            token = logits.argmax(-1)
            said.append(token)
        return self.values(torch.stack(said, dim=1).view_as(noise))

    def figures(self, model: nn.Module, windows: Windows) -> dict[str, float]:
        return figures(self, model, windows)


@torch.no_grad()
def figures(
    learner: FlowLearner | TokenLearner, model: nn.Module, windows: Windows, count: int = 256
) -> dict[str, float]:
    """Held-out: R2 of actions on labelled windows."""
    pool = windows.by_kind[LABELLED]
    pick = pool[np.linspace(0, len(pool) - 1, min(count, len(pool))).astype(int)]
    batch = learner.batch(windows, pick, np.random.default_rng(1))
    noise = torch.randn(batch.action.shape, generator=torch.Generator().manual_seed(1))
    return {"act_r2": explained(learner.chunk(model, batch, noise), batch.action, batch.action_mask.unsqueeze(-1))}
