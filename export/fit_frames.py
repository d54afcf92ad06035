"""Stage 1's loop, of either frame tokenizer: what a step sees follows from (seed, step) alone, so a training that was
interrupted goes on exactly as if it had not been."""

import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dzedge.export import checkpoint, optim
from dzedge.export.model.sizes import Sizes
from dzedge.export.recipe import TokenizerRecipe

Log = Callable[[dict[str, Any]], None]
Loss = Callable[[int, np.random.Generator], Tensor]
"""The loss of one step, given its number and its chance."""

SIZES = ("tokenizer", "tokens", "channels", "image_height", "image_width", "cell", "encoder_width", "decoder_width")
"""Of those in a recipe, what a tokenizer's shape depends on; the rest is the policies'."""


def fit(
    model: nn.Module, recipe: TokenizerRecipe, sizes: Sizes, loss_of: Loss, figures: Callable[[], dict[str, float]],
    path: Path, log: Log, on_step: Callable[[int], None] = lambda step: None,
) -> None:  # fmt: skip
    """Trains `model` in place, or goes on from the checkpoint at `path`, where its averaged weights are afterwards.

    figures: measured on held-out frames with the weights at `path`; on_step: told after every step.

    Raises UsageError where the checkpoint was begun by another recipe, or for other sizes.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.rate, weight_decay=0.01, foreach=True)
    average = optim.Average(model, 0.995)
    start = 0
    if path.exists():
        state = checkpoint.load(path)
        checkpoint.same(path, "sizes", state["sizes"], {name: getattr(sizes, name) for name in SIZES})
        checkpoint.same(path, "tokenizer", state["recipe"], asdict(recipe))
        start = checkpoint.restore(state, model, optimizer, average)
    model.train()
    for step in range(start, recipe.iterations):
        loss = loss_of(step, np.random.Generator(np.random.Philox(key=[recipe.seed, step])))
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate * optim.schedule(step, recipe.iterations)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        average.update(model)
        on_step(step + 1)
        if (step + 1) % recipe.save_every == 0 or step + 1 == recipe.iterations:
            checkpoint.save(
                path, recipe=asdict(recipe), sizes=sizes.to_json(), step=step + 1, model=model.state_dict(),
                optimizer=optimizer.state_dict(), average=average.values,
            )  # fmt: skip
            log({"step": step + 1, "cpu_s": round(time.process_time()), "loss": round(loss.item(), 4), **figures()})
