"""Stage 2: the trunk, on latents. Flow matching of future frames and actions with times of their own.

What decides success here was measured (the recipe keeps each as a number): a grounding loss that names the
object, windows of standing still thinned out, the history frame hidden often, finished videos shown to the
action stream. One pass from pure noise is how the model is used, so t = 0 has a share of its own.
"""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as fn

from dzedge.export import optim
from dzedge.export.model.latent import SCALE, used
from dzedge.export.model.moments import Moments
from dzedge.export.model.sizes import Sizes
from dzedge.export.model.wam import Wam
from dzedge.export.windows import LABELLED, PLAY, VIDEO, Batch, Windows


@dataclass(frozen=True, slots=True)
class WamRecipe:
    """labelled, play, video: rows of each kind in a batch; start_share: of rows at t = 0; clean_share: of acting
    rows that see the true video; coupled_share: of acting rows with one time for both; history_hidden,
    language_hidden: shares of rows; prefix_share: of acting rows with 1..max_prefix committed actions."""

    iterations: int = 12000
    labelled: int = 44
    play: int = 20
    video: int = 64
    rate: float = 2e-3
    matrix_rate: float = 4e-3
    average: float = 0.998
    start_share: float = 0.35
    clean_share: float = 0.45
    coupled_share: float = 0.25
    clean_noise: float = 0.15
    history_hidden: float = 0.35
    language_hidden: float = 0.08
    max_prefix: int = 3
    prefix_share: float = 0.4
    grounding: float = 0.3
    action_weight: float = 1.0
    cube_weight: float = 0.3
    save_every: int = 500
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Draw:
    """What chance decides for one batch: times, noises, what is hidden."""

    t_video: Tensor
    t_action: Tensor
    clean: Tensor
    noise_video: Tensor
    noise_action: Tensor
    prefix_mask: Tensor
    valid: Tensor
    words: Tensor


def draw(recipe: WamRecipe, batch: Batch, acting: int, rng: torch.Generator) -> Draw:
    """The first `acting` rows have actions."""
    count = len(batch.latent)

    def uniform(n: int) -> Tensor:
        return torch.rand(n, generator=rng)

    t_video = uniform(count) ** 1.5
    t_video[uniform(count) < recipe.start_share] = 0.0
    clean = uniform(count) < recipe.clean_share
    clean[acting:] = False
    t_video[clean] = 1.0
    t_action = uniform(acting)
    coupled = (uniform(acting) < recipe.coupled_share / (1.0 - recipe.clean_share)) & ~clean[:acting]
    t_action = torch.where(coupled, t_video[:acting], t_action)
    t_action[uniform(acting) < recipe.start_share] = 0.0
    depth = (
        torch.randint(1, recipe.max_prefix + 1, (acting,), generator=rng) if recipe.max_prefix else torch.zeros(acting)
    )
    depth = torch.where(uniform(acting) < recipe.prefix_share, depth, torch.zeros_like(depth))
    horizon = batch.action.shape[1]
    history = batch.has_history * (uniform(count) >= recipe.history_hidden).float()
    words = batch.words * (uniform(count) >= recipe.language_hidden).long().unsqueeze(1)
    return Draw(
        t_video=t_video, t_action=t_action, clean=clean,
        noise_video=torch.randn(batch.video.shape, generator=rng),
        noise_action=torch.randn(acting, *batch.action.shape[1:], generator=rng),
        prefix_mask=(torch.arange(horizon) < depth.unsqueeze(1)).float(),
        valid=torch.stack([torch.ones(count), history], dim=1), words=words,
    )  # fmt: skip


def mixed(clean: Tensor, noise: Tensor, at: Tensor) -> Tensor:
    """x_t = (1 - t) noise + t x."""
    t = at.reshape(-1, *([1] * (clean.dim() - 1)))
    return (1.0 - t) * noise + t * clean


def moments_of(window: int) -> Tensor:
    """Positions of the window's slots in steps of a frame: 0, -1, ..."""
    return -torch.arange(window).float()


def losses(model: Wam, recipe: WamRecipe, batch: Batch, chance: Draw, weight: Tensor) -> dict[str, Tensor]:
    """The three terms. weight: Shape (K, C), of latent channels in the video term."""
    acting = len(chance.t_action)
    text = model.text(chance.words)
    window = model.window(torch.stack([batch.latent, batch.before], dim=1))
    noisy = mixed(batch.video, chance.noise_video, chance.t_video)
    # A finished imagination is never exactly right, so the true one shown to the action stream is blurred a little.
    blur = chance.clean.float() * recipe.clean_noise
    noisy = noisy + blur.reshape(-1, 1, 1, 1) * chance.noise_video * torch.rand(len(noisy), 1, 1, 1)
    slot_pos = moments_of(model.sizes.window).expand(len(noisy), -1)
    clean, rows, logits = model.video(noisy, batch.latent, window, slot_pos, chance.valid, text, chance.t_video)
    shown = (~chance.clean).float()
    importance = shown / (1.0 - chance.t_video).clamp(min=0.3)
    error = ((clean - batch.video) ** 2 * weight).mean((2, 3)) * batch.frame_mask
    video = (error.sum(1) * importance).sum() / (batch.frame_mask.sum(1) * shown).sum().clamp(min=1.0)
    named = torch.where(chance.words.sum(1) > 0, batch.colour, -1)
    ground = fn.cross_entropy(logits, named, ignore_index=-1)
    prefix_mask = chance.prefix_mask.unsqueeze(-1)
    noisy_action = mixed(batch.action[:acting], chance.noise_action, chance.t_action)
    rows = (rows[0][:acting], rows[1][:acting])
    chunk = model.action(
        noisy_action,
        batch.action[:acting] * prefix_mask,
        chance.prefix_mask,
        batch.state[:acting],
        rows,
        chance.t_action,
    )
    counted = batch.action_mask[:acting] * (1.0 - chance.prefix_mask)
    miss = ((chunk - batch.action[:acting]) ** 2).mean(2) * counted
    importance = 1.0 / (1.0 - chance.t_action).clamp(min=0.3)
    action = (miss.sum(1) * importance).sum() / counted.sum().clamp(min=1.0)
    return {"video": video, "action": action, "ground": ground}


class Sampler:
    """Shuffled windows with a fixed number of each kind in a batch, acting rows first."""

    def __init__(self, windows: Windows, recipe: WamRecipe, seed: int) -> None:
        self._windows = windows
        self._rng = np.random.default_rng([seed, 2])
        self._counts = {LABELLED: recipe.labelled, PLAY: recipe.play, VIDEO: recipe.video}
        self._queues = {kind: np.zeros(0, dtype=np.int64) for kind in self._counts}
        self.acting = recipe.labelled + recipe.play

    def next(self) -> Batch:
        picks = []
        for kind, count in self._counts.items():
            if len(self._queues[kind]) < count:
                self._queues[kind] = self._rng.permutation(self._windows.by_kind[kind])
            picks.append(self._queues[kind][:count])
            self._queues[kind] = self._queues[kind][count:]
        return self._windows.batch(np.concatenate(picks))


def imagine(model: Wam, batch: Batch, noise: Tensor, steps: int) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Video-first sampling of the residuals, then the rows of the finished video."""
    text = model.text(batch.words)
    window = model.window(torch.stack([batch.latent, batch.before], dim=1))
    slot_pos = moments_of(model.sizes.window).expand(len(noise), -1)
    valid = torch.stack([torch.ones_like(batch.has_history), batch.has_history], dim=1)
    video = noise
    for step in range(steps):
        at = torch.full((len(noise),), step / steps)
        clean, _, _ = model.video(video, batch.latent, window, slot_pos, valid, text, at)
        video = video + (clean - video) / (steps - step)
    _, rows, _ = model.video(video, batch.latent, window, slot_pos, valid, text, torch.ones(len(noise)))
    return video, rows


def act(model: Wam, batch: Batch, rows: tuple[Tensor, Tensor], noise: Tensor) -> Tensor:
    """One action pass from noise, nothing committed."""
    nothing = torch.zeros(noise.shape[:2])
    return model.action(noise, torch.zeros_like(noise), nothing, batch.state, rows, torch.zeros(len(noise)))


def decide_together(model: Wam, batch: Batch, video: Tensor, action: Tensor, steps: int) -> Tensor:
    """Joint sampling, for comparison: video and actions leave the noise side by side. One step is "flash"."""
    text = model.text(batch.words)
    window = model.window(torch.stack([batch.latent, batch.before], dim=1))
    slot_pos = moments_of(model.sizes.window).expand(len(video), -1)
    valid = torch.stack([torch.ones_like(batch.has_history), batch.has_history], dim=1)
    nothing = torch.zeros(action.shape[:2])
    for step in range(steps):
        at = torch.full((len(video),), step / steps)
        clean, rows, _ = model.video(video, batch.latent, window, slot_pos, valid, text, at)
        chunk = model.action(action, torch.zeros_like(action), nothing, batch.state, rows, at)
        video = video + (clean - video) / (steps - step)
        action = action + (chunk - action) / (steps - step)
    return action


def explained(predicted: Tensor, true: Tensor, mask: Tensor) -> float:
    """R2 against predicting zero (stay where you are), over unmasked steps."""
    share = ((predicted - true) ** 2 * mask).sum() / (true**2 * mask).sum().clamp(min=1e-6)
    return round(1.0 - share.item(), 3)


@torch.no_grad()
def figures(model: Wam, windows: Windows, count: int = 256) -> dict[str, float]:
    """Held-out: tip error of the last imagined frame [mm] against copying, and R2 of actions, by kind."""
    found: dict[str, float] = {}
    scale = torch.from_numpy(windows.moments.residual_std.astype(np.float32))
    for kind, name in ((LABELLED, "lab"), (VIDEO, "nov")):
        pool = windows.by_kind[kind]
        batch = windows.batch(pool[np.linspace(0, len(pool) - 1, min(count, len(pool))).astype(int)])
        rng = torch.Generator().manual_seed(1)
        video, rows = imagine(model, batch, torch.randn(batch.video.shape, generator=rng), 1)
        last = batch.frame_mask[:, -1] > 0
        gap = ((video - batch.video) * scale)[last][:, -1, 0, :3].norm(dim=-1)
        copy = (batch.video * scale)[last][:, -1, 0, :3].norm(dim=-1)
        found[f"{name}_tip_mm"] = round(gap.mean().item() * SCALE * 1e3, 1)
        found[f"{name}_copy_mm"] = round(copy.mean().item() * SCALE * 1e3, 1)
        found[f"{name}_video_r2"] = explained(video[:, :, 0], batch.video[:, :, 0], batch.frame_mask.unsqueeze(-1))
        if kind == LABELLED:
            noise = torch.randn(batch.action.shape, generator=rng)
            mask = batch.action_mask.unsqueeze(-1)
            found["act_r2"] = explained(act(model, batch, rows, noise), batch.action, mask)
            _, true_rows = imagine(model, batch, batch.video, 0)
            found["idm_r2"] = explained(act(model, batch, true_rows, noise), batch.action, mask)
    return found


def fit(
    recipe: WamRecipe,
    sizes: Sizes,
    windows: Windows,
    held_out: Windows,
    path: Path,
    log: Callable[[str], None],
) -> Wam:
    """Trains, or goes on from the checkpoint at `path`."""
    torch.manual_seed(recipe.seed)
    model = Wam(sizes)
    optimizer = optim.Muon(model, recipe.rate, recipe.matrix_rate)
    average = optim.Average(model, recipe.average)
    start = 0
    if path.exists():
        state = optim.load(path)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        average.values, average.count, start = state["average"], state["step"], state["step"]
    sampler = Sampler(windows, recipe, recipe.seed + start)
    chance = torch.Generator().manual_seed(recipe.seed * 1_000_003 + start)
    weight = torch.from_numpy(used(sizes.channels).astype(np.float32))
    weight[1:] *= recipe.cube_weight
    weight *= weight.numel() / weight.sum()
    running: dict[str, float] = {}
    for step in range(start, recipe.iterations):
        batch = sampler.next()
        terms = losses(model, recipe, batch, draw(recipe, batch, sampler.acting, chance), weight)
        total = terms["video"] + recipe.action_weight * terms["action"] + recipe.grounding * terms["ground"]
        total.backward()
        optimizer.step(optim.schedule(step, recipe.iterations))
        average.update(model)
        for name, term in terms.items():
            running[name] = running.get(name, term.item()) * 0.98 + term.item() * 0.02
        if (step + 1) % recipe.save_every == 0 or step + 1 == recipe.iterations:
            store(path, recipe, sizes, windows.moments, step + 1, model, optimizer, average)
            tested, _ = load(path)
            measured = {
                **{name: round(value, 4) for name, value in running.items()},
                **figures(tested, held_out),
            }
            log(json.dumps({"step": step + 1, "cpu_s": round(time.process_time()), **measured}))
    return load(path)[0]


def store(
    path: Path, recipe: WamRecipe, sizes: Sizes, moments: Moments, step: int, model: Wam,
    optimizer: optim.Muon, average: optim.Average,
) -> None:  # fmt: skip
    """One checkpoint: weights, their average, optimizer, statistics."""
    optim.save(
        path, recipe=asdict(recipe), sizes=sizes.to_json(), moments=moments.to_json(), step=step,
        model=model.state_dict(), optimizer=optimizer.state_dict(), average=average.values,
    )  # fmt: skip


def load(path: Path) -> tuple[Wam, Moments]:
    """The averaged weights of a checkpoint, and the statistics that belong to them."""
    state = optim.load(path)
    model = Wam(Sizes.from_json(state["sizes"]))
    model.load_state_dict(state["average"])
    return model.eval(), Moments.from_json(state["moments"])
