"""Stage 1: the tokenizer, on labelled stills."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as fn

from dzedge.export import checkpoint, fit_frames
from dzedge.export.model.latent import latent_mean, latent_std, to_latent
from dzedge.export.model.sizes import Sizes
from dzedge.export.model.tokenizer import ARM_MAPS, FrameDecoder, FrameEncoder
from dzedge.export.recipe import TokenizerRecipe
from dzedge.export.stills import Stills
from dzedge.hardware.sim import camera, scene

SUPERVISED_ARM_MAPS = 3
SHOULDER = (scene.SHOULDER_X, 0.0, scene.SHOULDER_Z)
"""Where the drawn arm begins [m]."""
FOREGROUND = 6.0
"""Weight of pixels that differ from the empty table: arm and cubes cover a twentieth of the image."""


class Tokenizer(nn.Module):
    """Encoder and decoder together, for one optimizer and one checkpoint."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.encoder = FrameEncoder(sizes)
        self.decoder = FrameDecoder(sizes)
        with torch.no_grad():
            self.decoder.base.copy_(torch.tensor(SHOULDER))
        self.decoder.latent_mean.copy_(torch.from_numpy(latent_mean(sizes.channels)))
        self.decoder.latent_std.copy_(torch.from_numpy(latent_std(sizes.channels)))


Cameras = tuple[Tensor, Tensor]
"""Where cameras stand, Shape (B, 1, 3), [m], and their rotations to the world, Shape (B, 3, 3)."""


def cameras(views: NDArray[np.float64]) -> Cameras:
    """The simulator's cameras of these scenes. views: Shape (B, 6), see `scene.Layout`."""
    eyes, rotations = zip(*(camera.placed(view) for view in views), strict=True)
    return torch.from_numpy(np.stack(eyes)).float().unsqueeze(1), torch.from_numpy(np.stack(rotations)).float()


def project(points: Tensor, stand: Cameras) -> Tensor:
    """Where cameras see points of the world. Shape (B, n, 3), [m] -> (B, n, 2), (u, v) in [-1, 1]."""
    seen = (points - stand[0]) @ stand[1]
    scale = torch.tensor([2.0 * camera.FOCAL / camera.WIDTH, 2.0 * camera.FOCAL / camera.HEIGHT])
    return seen[..., :2] / seen[..., 2:].clamp(min=0.05) * scale


def heat_loss(log_heat: Tensor, labels: Tensor, stand: Cameras, cells: Tensor, spacing: float) -> Tensor:
    """Cross-entropy of heat maps against a blob of one cell's width at the projected point, where it is in view."""
    points = torch.cat([labels[:, 0, :9].unflatten(-1, (3, 3)), labels[:, 1:, :3]], dim=1)
    shown = torch.cat([torch.ones(len(labels), SUPERVISED_ARM_MAPS), labels[:, 1:, 3]], dim=1)
    where = project(points, stand)
    shown = shown * (where.abs() < 1.0).all(-1)
    square = ((where.unsqueeze(2) - cells) ** 2).sum(-1)
    target = (-square / (2.0 * (0.7 * spacing) ** 2)).softmax(-1)
    maps = torch.cat([log_heat[:, :SUPERVISED_ARM_MAPS], log_heat[:, ARM_MAPS:]], dim=1)
    return -((target * maps).sum(-1) * shown).sum() / shown.sum().clamp(min=1.0)


def encoder_loss(
    model: Tokenizer, image: Tensor, labels: Tensor, latent: Tensor, stand: Cameras, heat: float, half: bool
) -> Tensor:
    """Positions by a robust distance, presence by cross-entropy, heat maps by where things project to.
    half: convolutions in bfloat16."""
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        features = model.encoder.features(image)
    predicted, logit, log_heat = model.encoder.locate(features.float())
    present = labels[:, 1:, 3:4]
    arm = fn.smooth_l1_loss(predicted[:, 0], latent[:, 0], beta=0.05)
    cube = (
        fn.smooth_l1_loss(predicted[:, 1:, :3], latent[:, 1:, :3], beta=0.05, reduction="none") * (0.1 + present)
    ).mean()
    presence = fn.binary_cross_entropy_with_logits(logit, labels[:, 1:, 3])
    cells = model.encoder.cells
    spacing = 4.0 / model.encoder.sizes.image_width
    return 3.0 * arm + 3.0 * cube + 0.3 * presence + heat * heat_loss(log_heat, labels, stand, cells, spacing)


def shows_arm(labels: Tensor) -> Tensor:
    """Which frames show our arm: its tip is as far from its wrist as the hand is long. The decoder draws nothing
    else. labels: Shape (B, K, C), [m] -> Shape (B,), bool."""
    hand = (labels[:, 0, :3] - labels[:, 0, 3:6]).norm(dim=-1)
    return (hand - scene.HAND).abs() < 0.01


def decoder_loss(model: Tokenizer, image: Tensor, labels: Tensor, latent: Tensor) -> Tensor:
    """Pixels, those of arm and cubes weighted, and where the decoder's own camera, which nothing moves, puts the
    points."""
    drawn = model.decoder.draw(latent + 0.03 * torch.randn_like(latent))
    moved = (image - model.decoder.background.detach()).abs().amax(1, keepdim=True) > 0.3
    pixels = ((drawn - image).abs() * (1.0 + FOREGROUND * moved)).mean()
    points = torch.cat([labels[:, 0, :9].unflatten(-1, (3, 3)), labels[:, 1:, :3]], dim=1)
    shown = torch.cat([torch.ones(len(labels), SUPERVISED_ARM_MAPS), labels[:, 1:, 3]], dim=1)
    still = cameras(np.zeros((1, 6)))
    miss = ((model.decoder.camera(points * 4.0) - project(points, still)) ** 2).sum(-1)
    return pixels + (miss * shown).mean()


def augmented(frames: NDArray[np.uint8], rng: np.random.Generator) -> Tensor:
    """uint8 (B, h, w, 3) -> float (B, 3, h, w) in [-1, 1] with another white balance, brightness and noise."""
    image = torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 127.5 - 1.0  # channels last, as it lies
    gain = torch.from_numpy(rng.uniform(0.92, 1.08, (len(frames), 3, 1, 1)).astype(np.float32))
    noise = torch.from_numpy(rng.standard_normal(image.shape, dtype=np.float32) * 0.01)
    return ((image + 1.0) * gain - 1.0 + noise).clamp(-1.0, 1.0)


def errors(model: Tokenizer, stills: Stills) -> dict[str, float]:
    """Held-out figures: median and 95th percentile distances [mm], presence errors, image error (0..1 scale)."""
    frames, labels = stills.frames, stills.labels
    model.eval()
    found, drawn = [], []
    with torch.no_grad():
        for start in range(0, len(frames), 100):
            image = torch.from_numpy(frames[start : start + 100]).permute(0, 3, 1, 2).float() / 127.5 - 1.0
            latent = model.encoder(image)
            found.append(latent.numpy())
            drawn.append(((model.decoder(latent) - image) ** 2).mean((1, 2, 3)).numpy() / 4.0)
    model.train()
    latent = np.concatenate(found)
    metres = latent * latent_std(latent.shape[-1]) + latent_mean(latent.shape[-1])
    arm = np.linalg.norm((metres - labels)[:, 0, :9].reshape(-1, 3, 3), axis=-1) * 1e3
    present = labels[:, 1:, 3] > 0.5
    cube = np.linalg.norm((metres - labels)[:, 1:, :3], axis=-1)[present] * 1e3
    wrong = ((latent[:, 1:, 3] > 0.5) != present).mean()
    return {
        "tip_mm": float(np.median(arm[:, 0])), "tip_p95_mm": float(np.percentile(arm[:, 0], 95)),
        "wrist_mm": float(np.median(arm[:, 1])), "elbow_mm": float(np.median(arm[:, 2])),
        "cube_mm": float(np.median(cube)), "cube_p95_mm": float(np.percentile(cube, 95)),
        "gripper": float(np.median(np.abs(metres - labels)[:, 0, 9])),
        "presence_wrong": float(wrong), "psnr_db": float(-10.0 * np.log10(np.concatenate(drawn).mean())),
    }  # fmt: skip


def fit(
    recipe: TokenizerRecipe, sizes: Sizes, stills: Stills, held_out: Stills, path: Path, log: fit_frames.Log,
    on_step: Callable[[int], None] = lambda step: None,
) -> Tokenizer:  # fmt: skip
    """Trains, or goes on from the checkpoint at `path`. on_step: told after every step. Raises UsageError."""
    torch.manual_seed(recipe.seed)
    model = Tokenizer(sizes).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    background = torch.from_numpy(np.median(stills.frames[:400], axis=0).astype(np.float32)) / 127.5 - 1.0
    with torch.no_grad():
        model.decoder.background.copy_(background.permute(2, 0, 1).unsqueeze(0))
    latents = to_latent(stills.labels.copy())

    def loss_of(step: int, rng: np.random.Generator) -> Tensor:
        torch.manual_seed(recipe.seed * 1_000_003 + step)
        pick = rng.integers(0, len(stills), recipe.batch)
        table, latent = torch.from_numpy(stills.labels[pick]), torch.from_numpy(latents[pick])
        image = augmented(stills.frames[pick], rng)
        loss = encoder_loss(model, image, table, latent, cameras(stills.views[pick]), recipe.heat, recipe.half)
        if step % recipe.decoder_every == 0:
            ours = shows_arm(table)
            loss = loss + decoder_loss(model, image[ours], table[ours], latent[ours])
        return loss

    def figures() -> dict[str, float]:
        return {name: round(value, 4) for name, value in errors(checkpoint.averaged(path, Tokenizer), held_out).items()}

    fit_frames.fit(model, recipe, sizes, loss_of, figures, path, log, on_step)
    return checkpoint.averaged(path, Tokenizer)
