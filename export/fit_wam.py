"""How the world action model learns: flow matching of future frames and actions with times of their own.

What decides success here was measured (the recipe keeps each as a number): a grounding loss that names the
object, windows of standing still thinned out, the history frame hidden often, finished videos shown to the
action stream. One pass from pure noise is how the model is used, so t = 0 has a share of its own.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as fn

from dzedge.export.episodes import LABELLED, VIDEO
from dzedge.export.model.latent import SCALE, used
from dzedge.export.model.moments import Moments
from dzedge.export.model.sizes import Sizes
from dzedge.export.model.wam import Given, Wam
from dzedge.export.recipe import PolicyRecipe
from dzedge.export.windows import Batch, Windows

FLASH_BETA = 7.0
"""DreamZero-Flash: the noise in the video of one-pass sampling is drawn from Beta(7, 1)."""


@dataclass(frozen=True, slots=True)
class Draw:
    """What chance decides for one batch: times, noises, what is hidden."""

    t_video: Tensor
    t_action: Tensor
    clean: Tensor
    blur: Tensor
    given: Tensor
    noise_video: Tensor
    noise_action: Tensor
    prefix_mask: Tensor
    valid: Tensor
    words: Tensor


def draw(recipe: PolicyRecipe, batch: Batch, acting: int, rng: torch.Generator) -> Draw:
    """The first `acting` rows have actions."""
    count = len(batch.latent)
    device = batch.latent.device

    def uniform(n: int) -> Tensor:
        return torch.rand(n, generator=rng)

    t_video = uniform(count) ** 1.5
    t_video[uniform(count) < recipe.start_share] = 0.0
    clean = uniform(count) < (0.0 if recipe.auxiliary else recipe.clean_share)
    clean[acting:] = False
    flash = (uniform(count) < recipe.flash_share) & ~clean
    flash[acting:] = False
    t_video = torch.where(flash, 1.0 - uniform(count) ** (1.0 / FLASH_BETA), t_video)
    if recipe.auxiliary:
        t_video[:acting] = 0.0
    t_video[clean] = 1.0
    t_action = uniform(acting)
    coupled = (uniform(acting) < recipe.coupled_share / (1.0 - recipe.clean_share)) & ~clean[:acting] & ~flash[:acting]
    t_action = torch.where(coupled, t_video[:acting], t_action)
    t_action[uniform(acting) < recipe.start_share] = 0.0
    history = batch.has_history.cpu() * (uniform(count) >= recipe.history_hidden).float()
    words = (uniform(count) >= recipe.language_hidden).long().unsqueeze(1)
    drawn = Draw(
        t_video=t_video, t_action=t_action, clean=clean,
        blur=clean.float() * recipe.clean_noise * uniform(count),
        given=(uniform(count) < recipe.given_share).float() * (torch.arange(count) < acting).float(),
        noise_video=torch.randn(batch.video.shape, generator=rng),
        noise_action=torch.randn(acting, *batch.action.shape[1:], generator=rng),
        prefix_mask=committed(recipe, acting, batch.action.shape[1], rng),
        valid=torch.stack([torch.ones(count), history], dim=1), words=words,
    )  # fmt: skip
    moved = {name: getattr(drawn, name).to(device) for name in Draw.__slots__}
    return Draw(**{**moved, "words": batch.words * moved["words"]})


def committed(recipe: PolicyRecipe, acting: int, horizon: int, rng: torch.Generator) -> Tensor:
    """Which actions of each row are committed to already: none, or the first 1..max_prefix. Shape (acting, H)."""
    if recipe.max_prefix == 0:
        return torch.zeros(acting, horizon)
    depth = torch.randint(1, recipe.max_prefix + 1, (acting,), generator=rng)
    depth = torch.where(torch.rand(acting, generator=rng) < recipe.prefix_share, depth, torch.zeros_like(depth))
    return (torch.arange(horizon) < depth.unsqueeze(1)).float()


def mixed(clean: Tensor, noise: Tensor, at: Tensor) -> Tensor:
    """x_t = (1 - t) noise + t x."""
    t = at.reshape(-1, *([1] * (clean.dim() - 1)))
    return (1.0 - t) * noise + t * clean


def moments_of(window: int) -> Tensor:
    """Positions of the window's slots in steps of a frame: 0, -1, ..."""
    return -torch.arange(window).float()


class WamLearner:
    """The world action model in training."""

    def build(self, sizes: Sizes, moments: Moments) -> nn.Module:
        return Wam(sizes)

    def batch(self, windows: Windows, pick: NDArray[np.int64], rng: np.random.Generator) -> Batch:
        return windows.batch(pick)

    def losses(
        self, model: nn.Module, recipe: PolicyRecipe, batch: Batch, acting: int, chance: torch.Generator
    ) -> dict[str, Tensor]:
        assert isinstance(model, Wam)
        return losses(model, recipe, batch, draw(recipe, batch, acting, chance))

    def figures(self, model: nn.Module, windows: Windows) -> dict[str, float]:
        assert isinstance(model, Wam)
        return figures(model, windows)


def importance_of(sizes: Sizes, cube_weight: float) -> Tensor:
    """Weights of latent channels in the video term, of mean 1. Shape (K, C)."""
    if not sizes.structured:
        return torch.ones(sizes.tokens, sizes.channels)
    weight = torch.from_numpy(used(sizes.channels).astype(np.float32))
    weight[1:] *= cube_weight
    return weight * (weight.numel() / weight.sum())


def losses(model: Wam, recipe: PolicyRecipe, batch: Batch, chance: Draw) -> dict[str, Tensor]:
    """The three terms, weighted."""
    acting = len(chance.t_action)
    text = model.text(chance.words)
    window = model.window(torch.stack([batch.latent, batch.before], dim=1))
    noisy = mixed(batch.video, chance.noise_video, chance.t_video)
    # A finished imagination is never exactly right, so the true one shown to the action stream is blurred a little.
    noisy = noisy + chance.blur.reshape(-1, 1, 1, 1) * chance.noise_video
    slot_pos = moments_of(model.sizes.window).to(noisy.device).expand(len(noisy), -1)
    given = (batch.action, chance.given) if model.sizes.given else None
    clean, rows, logits = model.video(
        noisy, batch.latent, window, slot_pos, chance.valid, text, chance.t_video, batch.body, given
    )
    shown = (~chance.clean).float()
    importance = shown / (1.0 - chance.t_video).clamp(min=0.3)
    weight = importance_of(model.sizes, recipe.cube_weight).to(noisy.device)
    error = ((clean - batch.video) ** 2 * weight).mean((2, 3)) * batch.frame_mask
    video = (error.sum(1) * importance).sum() / (batch.frame_mask.sum(1) * shown).sum().clamp(min=1.0)
    rows = (rows[0][:acting], rows[1][:acting])
    prefix = batch.action[:acting] * chance.prefix_mask.unsqueeze(-1)
    noisy_action = mixed(batch.action[:acting], chance.noise_action, chance.t_action)
    chunk = model.action(noisy_action, prefix, chance.prefix_mask, batch.state[:acting], rows, chance.t_action)
    return {
        "video": video,
        "action": recipe.action_weight * action_loss(chunk, batch, chance.prefix_mask, chance.t_action),
        **grounding_term(recipe, logits, chance.words, batch.colour),
    }


def grounding_term(recipe: PolicyRecipe, logits: Tensor, words: Tensor, colour: Tensor) -> dict[str, Tensor]:
    """The loss `ground`, or nothing where tokens have no names."""
    if logits.shape[1] == 1:
        return {}
    return {"ground": recipe.grounding * grounding_loss(logits, words, colour)}


def grounding_loss(logits: Tensor, words: Tensor, colour: Tensor) -> Tensor:
    """Cross-entropy of the thing that is named, over rows that name one. logits: Shape (B, K); colour: Shape (B,)."""
    named = torch.where(words.sum(1) > 0, colour, -1)
    return fn.cross_entropy(logits, named, ignore_index=-1, reduction="sum") / (named >= 0).sum().clamp(min=1)


def action_loss(chunk: Tensor, batch: Batch, prefix_mask: Tensor, time: Tensor) -> Tensor:
    """Squared error of predicted clean actions that are neither committed nor unknown, later times weighted more.
    chunk: Shape (acting, H, J); prefix_mask: (acting, H); time: (acting,)."""
    acting = len(chunk)
    counted = batch.action_mask[:acting] * (1.0 - prefix_mask)
    miss = ((chunk - batch.action[:acting]) ** 2).mean(2) * counted
    importance = 1.0 / (1.0 - time).clamp(min=0.3)
    return (miss.sum(1) * importance).sum() / counted.sum().clamp(min=1.0)


def imagine(
    model: Wam, batch: Batch, noise: Tensor, steps: int, given: Given | None = None
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Video-first sampling of the residuals, then the rows of the finished video. given: actions to follow."""
    text = model.text(batch.words)
    window = model.window(torch.stack([batch.latent, batch.before], dim=1))
    slot_pos = moments_of(model.sizes.window).expand(len(noise), -1)
    valid = torch.stack([torch.ones_like(batch.has_history), batch.has_history], dim=1)
    video = noise
    for step in range(steps):
        at = torch.full((len(noise),), step / steps)
        clean, _, _ = model.video(video, batch.latent, window, slot_pos, valid, text, at, batch.body, given)
        video = video + (clean - video) / (steps - step)
    ones = torch.ones(len(noise))
    _, rows, _ = model.video(video, batch.latent, window, slot_pos, valid, text, ones, batch.body)
    return video, rows


def act(model: Wam, batch: Batch, rows: tuple[Tensor, Tensor], noise: Tensor) -> Tensor:
    """One action pass from noise, nothing committed."""
    nothing = torch.zeros(noise.shape[:2])
    return model.action(noise, torch.zeros_like(noise), nothing, batch.state, rows, torch.zeros(len(noise)))


def explained(predicted: Tensor, true: Tensor, mask: Tensor) -> float:
    """R2 against predicting zero (stay where you are), over unmasked steps."""
    share = ((predicted - true) ** 2 * mask).sum() / (true**2 * mask).sum().clamp(min=1e-6)
    return round(1.0 - share.item(), 3)


@torch.no_grad()
def figures(model: Wam, windows: Windows, count: int = 256) -> dict[str, float]:
    """Held-out, by kind: how good imagined frames are (`imagined`), and R2 of actions."""
    found: dict[str, float] = {}
    scale = torch.from_numpy(windows.moments.residual_std.astype(np.float32))
    for kind, name in ((LABELLED, "lab"), (VIDEO, "nov")):
        pool = windows.by_kind[kind]
        if not len(pool):
            continue
        batch = windows.batch(pool[np.linspace(0, len(pool) - 1, min(count, len(pool))).astype(int)])
        rng = torch.Generator().manual_seed(1)
        video, rows = imagine(model, batch, torch.randn(batch.video.shape, generator=rng), 1)
        found |= {f"{name}_{figure}": value for figure, value in imagined(model.sizes, batch, video, scale).items()}
        if kind == LABELLED:
            noise = torch.randn(batch.action.shape, generator=rng)
            mask = batch.action_mask.unsqueeze(-1)
            found["act_r2"] = explained(act(model, batch, rows, noise), batch.action, mask)
            _, true_rows = imagine(model, batch, batch.video, 0)
            found["idm_r2"] = explained(act(model, batch, true_rows, noise), batch.action, mask)
            if model.sizes.given:
                told = (batch.action, torch.ones(len(batch.action)))
                video, _ = imagine(model, batch, torch.randn(batch.video.shape, generator=rng), 1, told)
                following = imagined(model.sizes, batch, video, scale)
                found |= {f"given_{name}": value for name, value in following.items() if name != "copy_mm"}
    return found


def imagined(sizes: Sizes, batch: Batch, video: Tensor, scale: Tensor) -> dict[str, float]:
    """Tip error of the last frame [mm] against copying, and R2 of the arm's token; of patches R2 of all alone.
    video: Shape (B, F, K, C); scale: its units, Shape (F, K, C)."""
    mask = batch.frame_mask[..., None, None]
    if not sizes.structured:
        return {"video_r2": explained(video, batch.video, mask)}
    last = batch.frame_mask[:, -1] > 0
    gap, copied = (
        (moved * scale)[last][:, -1, 0, :3].norm(dim=-1).mean().item() for moved in (video - batch.video, batch.video)
    )
    return {
        "tip_mm": round(gap * SCALE * 1e3, 1), "copy_mm": round(copied * SCALE * 1e3, 1),
        "video_r2": explained(video[:, :, :1], batch.video[:, :, :1], mask),
    }  # fmt: skip
