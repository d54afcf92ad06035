"""Stage 1 without labels: the convolutional tokenizer, on frames of any dataset.

Reconstruction and a small divergence of the code from noise. Pixels that differ from the dataset's median frame weigh
more: a thin arm covers so little of an image that the cheapest picture of it is none.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dzedge.export import checkpoint, fit_frames
from dzedge.export.fit_tokenizer import augmented
from dzedge.export.model.sizes import Sizes
from dzedge.export.model.vae import Vae
from dzedge.export.recipe import TokenizerRecipe

Frames = NDArray[np.uint8]
RARE = (0.1, 0.5)
"""Differences to the median frame, image units, at which a pixel begins to weigh more and weighs most."""
MOVED = 16
"""A pixel has moved where a channel differs by more than this [8-bit counts], as `dzedge.foresight` has it."""


def as_image(frames: Frames) -> Tensor:
    """uint8 (B, h, w, 3) -> float (B, 3, h, w) in [-1, 1]."""
    return torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 127.5 - 1.0


def rarity(image: Tensor, background: Tensor) -> Tensor:
    """0 where an image is as the median frame, 1 where it is clearly not. Shape (B, 3, h, w) -> (B, 1, h, w)."""
    least, most = RARE
    return (((image - background).abs().amax(1, keepdim=True) - least) / (most - least)).clamp(0.0, 1.0)


def divergence(log_sigma: Tensor) -> Tensor:
    """Of a code from unit noise, nats a channel; its mean lies on the unit sphere whatever is learned."""
    return 0.5 * ((2.0 * log_sigma).exp() - 2.0 * log_sigma).mean()


def picture_loss(model: Vae, image: Tensor, weight: Tensor, recipe: TokenizerRecipe, chance: torch.Generator) -> Tensor:
    """Absolute errors of pixels, weighted, and the divergence. weight: Shape (B, 1, h, w)."""
    with torch.autocast(image.device.type, torch.bfloat16, enabled=recipe.half):
        mean, log_sigma = model.encoder.code(image)
        spread = torch.sqrt((2.0 * log_sigma).exp() + recipe.noise**2)
        noise = torch.randn(mean.shape, generator=chance).to(mean.device)
        drawn = model.decoder.draw(mean + spread * noise)
    pixels = ((drawn - image).abs() * weight).sum() / (weight.sum() * image.shape[1])
    return pixels + recipe.kl * divergence(log_sigma)


@torch.no_grad()
def errors(model: Vae, held_out: Frames) -> dict[str, float]:
    """PSNR [dB] of held-out frames through the tokenizer: all pixels; those that moved since an earlier frame, against
    copying that frame. held_out: Shape (N, 2, h, w, 3), the earlier frame first."""
    square, moved_square, copied_square, moved = 0.0, 0.0, 0.0, 0
    for start in range(0, len(held_out), 100):
        before, after = held_out[start : start + 100, 0], held_out[start : start + 100, 1]
        image = as_image(after)
        error = ((model.decoder(model.encoder(image)) - image) ** 2).mean(1).numpy() / 4.0
        copied = ((before.astype(np.float32) - after) ** 2).mean(-1) / 255.0**2
        mask = (np.abs(before.astype(np.int16) - after) > MOVED).any(-1)
        square, moved = square + float(error.sum()), moved + int(mask.sum())
        moved_square, copied_square = moved_square + float(error[mask].sum()), copied_square + float(copied[mask].sum())
    found = {"psnr_db": square / held_out[:, 0, ..., 0].size}
    if moved:
        found |= {"moving_db": moved_square / moved, "copied_db": copied_square / moved}
    return {name: float(-10.0 * np.log10(max(value, 1e-10))) for name, value in found.items()}


def fit(
    recipe: TokenizerRecipe, sizes: Sizes, frames: Frames, held_out: Frames, path: Path, log: fit_frames.Log,
    on_step: Callable[[int], None] = lambda step: None,
) -> Vae:  # fmt: skip
    """Trains, or goes on from the checkpoint at `path`. frames: Shape (N, h, w, 3); held_out: as in `errors`; on_step:
    told after every step. On the first GPU where there is one. Raises UsageError."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(recipe.seed)
    model = Vae(sizes)
    median = np.median(frames[:: -(-len(frames) // 400)], axis=0).astype(np.uint8)
    model.decoder.background.copy_(as_image(median[None]))
    model = model.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def loss_of(step: int, rng: np.random.Generator) -> Tensor:
        pick = rng.integers(0, len(frames), recipe.batch)
        weight = 1.0 + recipe.rare * rarity(as_image(frames[pick]).to(device), model.decoder.background)
        image = augmented(frames[pick], rng).to(device)
        return picture_loss(model, image, weight, recipe, checkpoint.torch_seed(recipe.seed, step))

    def figures() -> dict[str, float]:
        return {name: round(value, 2) for name, value in errors(checkpoint.averaged(path, Vae), held_out).items()}

    fit_frames.fit(model, recipe, sizes, loss_of, figures, path, log, on_step)
    return checkpoint.averaged(path, Vae)
