"""Training: `dzedge train CONFIG.toml --data data --out checkpoints`.

Data come from `python -m dzedge.export.data`, or are any LeRobotDataset v3: then by a recipe with a tokenizer of
patches (`export/recipes/own_cpu.toml`), which needs no labels. The tokenizer is trained once and serves every policy of
the same data; each policy resumes from its own checkpoint. Beside a checkpoint lie its log
(`.jsonl`) and its curves (`.png`). Several processes share the work under torch's launcher:

    torchrun --nproc-per-node 2 -m dzedge.export.train wam
"""

import argparse
import dataclasses
import json
import logging
import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import distributed as dist

from dzedge.errors import UsageError
from dzedge.export import (
    checkpoint,
    curves,
    episodes,
    families,
    fit_policy,
    fit_tokenizer,
    fit_vae,
    footage,
    inverse,
    tokenizers,
)
from dzedge.export.episodes import VIDEO, Episodes
from dzedge.export.model.sizes import Sizes
from dzedge.export.recipe import PolicyRecipe, Recipe, read_recipe, recipe_path
from dzedge.export.source import Source
from dzedge.export.stills import load_or_generate
from dzedge.export.windows import Windows

log = logging.getLogger("dzedge.export.train")

TRAIN_STILLS, TEST_STILLS = 1, 2
"""Seeds of the stills."""
TOKENIZER = "tokenizer.safetensors"
PAIRS = 500
"""Held-out frames that a tokenizer of patches is measured on."""
SEEN = ("tokenizer", "tokens", "channels", "image_height", "image_width", "cell")
"""Sizes that a policy and its tokenizer share."""
PATIENCE = timedelta(hours=6)
"""How long processes wait for the first one, which trains the tokenizer."""


class Journal:
    """A training's log lines, its curves, and a bar on a terminal."""

    def __init__(self, checkpoint: Path, total: int) -> None:
        self._lines = checkpoint.with_suffix(".jsonl")
        self._picture = checkpoint.with_suffix(".png")
        self._quiet = int(os.environ.get("RANK", "0")) > 0
        console = Console(stderr=True)
        self._bar = Progress(
            TextColumn(checkpoint.stem), BarColumn(), TextColumn("{task.completed} of {task.total}"),
            TimeRemainingColumn(), console=console, disable=self._quiet or not console.is_terminal,
        )  # fmt: skip
        self._task = self._bar.add_task(checkpoint.stem, total=total)
        self._bar.start()

    def step(self, step: int) -> None:
        self._bar.update(self._task, completed=step)

    def write(self, line: dict[str, Any]) -> None:
        """One line of figures; also redraws the curves."""
        with self._lines.open("a") as file:
            file.write(json.dumps(line) + "\n")
        log.info("%s", json.dumps(line))
        curves.draw(self._lines, self._picture)

    def close(self) -> None:
        self._bar.stop()


def train_tokenizer(recipe: Recipe, data: Path, path: Path) -> None:
    """Stage 1: on labelled stills of the simulator, or for patches on the frames of the data."""
    if not recipe.sizes.structured:
        return train_patches(recipe, data, path)
    stills = load_or_generate(data / "stills.npz", recipe.tokenizer.stills, TRAIN_STILLS)
    held_out = load_or_generate(data / "stills_val.npz", 1000, TEST_STILLS)
    journal = Journal(path, recipe.tokenizer.iterations)
    try:
        fit_tokenizer.fit(recipe.tokenizer, recipe.sizes, stills, held_out, path, journal.write, journal.step)
    finally:
        journal.close()


def train_patches(recipe: Recipe, data: Path, path: Path) -> None:
    """Stage 1 without labels."""
    paths, sizes = parts(data, recipe.policy.marker), recipe.sizes
    source = Source.of(paths, recipe.data, sizes)
    chosen, held = footage.takes(paths)
    log.info("reading frames of %s, camera %s", data, source.camera)
    frames = footage.sampled(chosen, source.camera, sizes, recipe.tokenizer.stills)
    held_out = footage.pairs(held, source.camera, sizes, PAIRS, sizes.frames * source.frame_steps)
    journal = Journal(path, recipe.tokenizer.iterations)
    try:
        fit_vae.fit(recipe.tokenizer, sizes, frames, held_out, path, journal.write, journal.step)
    finally:
        journal.close()


def parts(data: Path, marker: bool) -> list[Path]:
    """The datasets of a folder, or the folder itself where it is one; the last one of our robot is held out.

    Raises UsageError where there are fewer than two.
    """
    if (data / "meta").is_dir():
        return [data, data]
    found = sorted(path for path in data.iterdir() if (path / "meta").is_dir()) if data.is_dir() else []
    hands = [path for path in found if path.name.startswith("marker")] if marker else []
    robots = [path for path in found if not path.name.startswith("marker")]
    if len(robots) < 2:
        raise UsageError(f"{data}: {len(robots)} datasets, at least 2 needed; make them with dzedge.export.data")
    return hands + robots


def share_of_videos(data: Episodes, share: float) -> Episodes:
    """Only that share of the arm's videos without actions, evenly spread."""
    if share >= 1.0:
        return data
    video = (data.kind == VIDEO) & (data.body == 0)
    order = np.cumsum(np.append(True, data.start[1:] != data.start[:-1]))
    ranked = np.searchsorted(np.unique(order[video]), order)
    kept = np.floor((ranked + 1) * share) > np.floor(ranked * share)
    return data.taken(~video | kept)


def unfinished(tokenizer: Path) -> bool:
    """Whether the tokenizer's training has not begun, or was interrupted."""
    if not tokenizer.exists():
        return True
    state = checkpoint.load(tokenizer)
    return bool(state["step"] < state["recipe"]["iterations"])


def check_tokenizer(tokenizer: Path, made: Sizes, sizes: Sizes) -> None:
    """Raises UsageError where a tokenizer was made for other sizes than the recipe's. tokenizer: for the message."""
    for name in SEEN:
        ours, theirs = getattr(sizes, name), getattr(made, name)
        if ours != theirs and not (name == "cell" and sizes.structured):
            raise UsageError(f"{tokenizer}: {name} {theirs!r}, the recipe has {ours!r}; give another folder with --out")


def train_policy(recipe: Recipe, data: Path, path: Path) -> None:
    """Stage 2, on latents."""
    tokenizer, paths = path.parent / TOKENIZER, parts(data, recipe.policy.marker)
    encoder = tokenizers.load(tokenizer).encoder
    check_tokenizer(tokenizer, encoder.sizes, recipe.sizes)
    source = Source.of(paths, recipe.data, recipe.sizes)
    sizes = source.sized(recipe.sizes)
    chosen, held = footage.takes(paths)
    read = {root: episodes.cached(root, tokenizer, encoder, sizes, log.info, source) for root in dict.fromkeys(paths)}
    training = Episodes.joined([read[root].chosen(numbers) for root, numbers in chosen])
    training = share_of_videos(training, recipe.policy.video_share)
    if recipe.policy.pseudo_labels:
        training = inverse.labelled(training, recipe.policy.seed, log.info)
    windows = Windows(training, sizes, source=source)
    held_out = Windows(read[held[0]].chosen(held[1]), sizes, windows.moments, source=source)
    log.info("windows: labelled %d, play %d, video %d", *map(len, windows.by_kind))
    journal = Journal(path, recipe.policy.iterations)
    learner = families.LEARNERS[recipe.policy.family]()
    try:
        fit_policy.fit(learner, recipe.policy, sizes, windows, held_out, path, journal.write, journal.step)
    finally:
        journal.close()


def seeded(policy: PolicyRecipe, seed: int | None) -> PolicyRecipe:
    """The recipe with another seed, where one is given."""
    return policy if seed is None else dataclasses.replace(policy, seed=seed)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="dzedge train", description=__doc__.splitlines()[0])
    parser.add_argument("config", help="a recipe: one that came along, e.g. wam, or a TOML file")
    parser.add_argument("--data", type=Path, default=Path("data"), help="datasets, or a folder of datasets")
    parser.add_argument("--out", type=Path, default=Path("checkpoints"))
    parser.add_argument("--seed", type=int, help="instead of the recipe's")
    parser.add_argument("--threads", type=int, default=1, help="more than one is slower on a machine with other work")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(options.threads)
    rank, ranks = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if ranks > 1:
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo", timeout=PATIENCE)
    config = recipe_path(options.config)
    recipe = read_recipe(config)
    recipe = dataclasses.replace(recipe, policy=seeded(recipe.policy, options.seed))
    options.out.mkdir(parents=True, exist_ok=True)
    if rank == 0 and unfinished(options.out / TOKENIZER):
        train_tokenizer(recipe, options.data, options.out / TOKENIZER)
    if ranks > 1:
        dist.barrier()
    name = f"{config.stem}-{recipe.policy.seed}.safetensors"
    train_policy(recipe, options.data, options.out / name)
    if ranks > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
