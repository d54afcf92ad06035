"""Stage 2: a policy's trunk, on latents: one loop for every family.

What a step sees follows from (seed, step, rank) alone, so a training that was interrupted goes on exactly as if it
had not been. Several processes share one batch under torch's launcher (`torchrun`): one flat all-reduce a step.
"""

import os
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch import distributed as dist

from dzedge.errors import UsageError
from dzedge.export import checkpoint, optim
from dzedge.export.episodes import LABELLED, PLAY, VIDEO
from dzedge.export.model.moments import Moments
from dzedge.export.model.sizes import Sizes
from dzedge.export.recipe import PolicyRecipe
from dzedge.export.source import Source
from dzedge.export.windows import Batch, Windows

Log = Callable[[dict[str, Any]], None]


class Learner(Protocol):
    """How one family learns."""

    def build(self, sizes: Sizes, moments: Moments) -> nn.Module:
        """A fresh model."""

    def batch(self, windows: Windows, pick: Any, rng: np.random.Generator) -> Batch:
        """The batch of those windows, whatever else of it chance decides."""

    def losses(
        self, model: nn.Module, recipe: PolicyRecipe, batch: Batch, acting: int, chance: torch.Generator
    ) -> dict[str, Tensor]:
        """Named terms, each already weighted. The first `acting` rows have actions."""

    def figures(self, model: nn.Module, windows: Windows) -> dict[str, float]:
        """What is measured on held-out windows."""


def picks(windows: Windows, recipe: PolicyRecipe, rng: np.random.Generator, share: int) -> Any:
    """Steps of one batch, acting rows first; a process of `share` takes its part of every kind."""
    counts = {LABELLED: recipe.labelled, PLAY: recipe.play, VIDEO: recipe.video}
    return np.concatenate([rng.choice(windows.by_kind[kind], count // share) for kind, count in counts.items()])


def fit(
    learner: Learner, recipe: PolicyRecipe, sizes: Sizes, windows: Windows, held_out: Windows, path: Path, log: Log,
    on_step: Callable[[int], None] = lambda step: None,
) -> nn.Module:  # fmt: skip
    """Trains, or goes on from the checkpoint at `path`. on_step: told after every step.

    Raises UsageError where the recipe asks for windows that the data have not.
    """
    rank, ranks = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    place = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"
    device = torch.device(place)
    _check_stock(windows, recipe)
    torch.manual_seed(recipe.seed)
    model = learner.build(sizes, windows.moments).to(device)
    optimizer = optim.Muon(model, recipe.rate, recipe.matrix_rate)
    average = optim.Average(model, recipe.average)
    start = _resume(path, recipe, model, optimizer, average)
    windows.to(device)
    if recipe.compile:
        for part in model.children():
            part.compile()
    half = torch.autocast(device.type, torch.bfloat16) if recipe.half else nullcontext()
    acting = (recipe.labelled // ranks) + (recipe.play // ranks)
    running: dict[str, float] = {}
    for step in range(start, recipe.iterations):
        rng = np.random.Generator(np.random.Philox(key=[recipe.seed, step * 1024 + rank]))
        batch = learner.batch(windows, picks(windows, recipe, rng, ranks), rng).to(device)
        with half:
            found = learner.losses(model, recipe, batch, acting, checkpoint.torch_seed(recipe.seed, step, rank))
        sum(found.values(), torch.zeros((), device=device)).backward()
        if ranks > 1:
            _reduce(model, ranks)
        optimizer.step(optim.schedule(step, recipe.iterations))
        average.update(model)
        for name, term in found.items():
            running[name] = running.get(name, term.item()) * 0.98 + term.item() * 0.02
        on_step(step + 1)
        if rank == 0 and ((step + 1) % recipe.save_every == 0 or step + 1 == recipe.iterations):
            store(path, recipe, sizes, windows.moments, step + 1, model, optimizer, average, windows.source)
            tested, _ = load(path, learner)
            means = {name: round(value, 4) for name, value in running.items()}
            spent = round(time.process_time())
            log({"step": step + 1, "cpu_s": spent, **means, **learner.figures(tested, held_out)})
    if ranks > 1:
        dist.barrier()  # the last checkpoint is the first process's to write
    return load(path, learner)[0]


def _check_stock(windows: Windows, recipe: PolicyRecipe) -> None:
    for name, kind in (("labelled", LABELLED), ("play", PLAY), ("video", VIDEO)):
        rows = getattr(recipe, name)
        if rows and not len(windows.by_kind[kind]):
            raise UsageError(f"recipe: policy.{name} {rows}: the data have no such windows; set it to 0 or add some")


def _reduce(model: nn.Module, ranks: int) -> None:
    """Mean of all processes' gradients, in one message."""
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    flat = torch.cat([g.reshape(-1) for g in gradients]) / ranks
    dist.all_reduce(flat)
    start = 0
    for gradient in gradients:
        gradient.copy_(flat[start : start + gradient.numel()].view_as(gradient))
        start += gradient.numel()


def _resume(
    path: Path, recipe: PolicyRecipe, model: nn.Module, optimizer: optim.Muon, average: optim.Average
) -> int:  # fmt: skip
    if not path.exists():
        return 0
    state = checkpoint.load(path)
    checkpoint.same(path, "policy", state["recipe"], asdict(recipe))
    return checkpoint.restore(state, model, optimizer, average)


def store(
    path: Path, recipe: PolicyRecipe, sizes: Sizes, moments: Moments, step: int, model: nn.Module,
    optimizer: optim.Muon, average: optim.Average, source: Source | None = None,
) -> None:  # fmt: skip
    """One checkpoint: weights, their average, optimizer, statistics, what the data were like."""
    checkpoint.save(
        path, recipe=asdict(recipe), sizes=sizes.to_json(), moments=moments.to_json(), step=step,
        model=model.state_dict(), optimizer=optimizer.state_dict(), average=average.values,
        source=(source or Source()).to_json(),
    )  # fmt: skip


def load(path: Path, learner: Learner) -> tuple[Any, Moments]:
    """The averaged weights of a checkpoint, and the statistics that belong to them."""
    state = checkpoint.load(path)
    moments = Moments.from_json(state["moments"])
    model = learner.build(Sizes.from_json(state["sizes"]), moments)
    model.load_state_dict(state["average"])
    return model.eval(), moments
