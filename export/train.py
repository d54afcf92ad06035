"""Training: `python -m dzedge.export.train tokenizer|dit|all --data data --out checkpoints`.

Shards come from `python -m dzedge.export.data`. Every stage resumes from its own checkpoint; the latents of all
frames are kept beside it, under the digest of the tokenizer that made them.
"""

import argparse
import dataclasses
import hashlib
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dzedge.errors import UsageError
from dzedge.export import fit_tokenizer, fit_wam
from dzedge.export.fit_tokenizer import TokenizerRecipe
from dzedge.export.fit_wam import WamRecipe
from dzedge.export.model.sizes import Sizes
from dzedge.export.stills import load_or_generate
from dzedge.export.windows import Episodes, Windows, labelled_frames, read_episodes

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

log = logging.getLogger("dzedge.export.train")

RECIPE = Path(__file__).with_name("recipe_cpu.toml")
TRAIN_STILLS, TEST_STILLS = 1, 2
"""Seeds of the stills."""
SHARD_STRIDE = 3


@dataclasses.dataclass(frozen=True, slots=True)
class Recipe:
    """A whole training, as a TOML file says it."""

    sizes: Sizes
    tokenizer: TokenizerRecipe
    dit: WamRecipe
    stills: int


def _part(kind: Callable[..., Any], table: dict[str, Any], name: str) -> Any:
    try:
        return kind(**table)
    except TypeError as error:
        raise UsageError(f"recipe: table [{name}]: {error}; remove or rename that key") from error


def read_recipe(path: Path = RECIPE) -> Recipe:
    """Strictly: an unknown key is refused. Raises UsageError."""
    table = tomllib.loads(path.read_text())
    unknown = set(table) - {"sizes", "tokenizer", "dit", "stills"}
    if unknown:
        raise UsageError(f"recipe {path}: unknown key {sorted(unknown)[0]!r}; remove it")
    return Recipe(
        _part(Sizes, table.get("sizes", {}), "sizes"),
        _part(TokenizerRecipe, table.get("tokenizer", {}), "tokenizer"),
        _part(WamRecipe, table.get("dit", {}), "dit"),
        int(table.get("stills", 24000)),
    )


def train_tokenizer(recipe: Recipe, data: Path, out: Path) -> None:
    """Stage 1 into out/tokenizer.pt: on stills, and on every third frame of the shards that there are."""
    frames, labels = load_or_generate(data / "stills.npz", recipe.stills, TRAIN_STILLS)
    for path in sorted(data.glob("shard*.npz"))[:-1]:
        more, more_labels = labelled_frames(path, SHARD_STRIDE)
        frames, labels = np.concatenate([frames, more]), np.concatenate([labels, more_labels])
    held_out = load_or_generate(data / "stills_val.npz", 1000, TEST_STILLS)
    fit_tokenizer.fit(recipe.tokenizer, recipe.sizes, frames, labels, held_out, out / "tokenizer.pt", log.info)


def episodes_of(recipe: Recipe, paths: list[Path], out: Path) -> Episodes:
    """Encoded episodes, from the cache where this tokenizer has encoded these shards before."""
    checkpoint = out / "tokenizer.pt"
    if not checkpoint.exists():
        raise UsageError(f"{checkpoint}: no tokenizer; train it first with `train tokenizer`")
    digest = hashlib.sha256(checkpoint.read_bytes())
    for path in paths:
        digest.update(f"{path.name} {path.stat().st_size}".encode())
    kept = out / f"episodes-{digest.hexdigest()[:16]}.npz"
    if not kept.exists():
        log.info("encoding %d shards", len(paths))
        episodes = read_episodes(paths, fit_tokenizer.load(checkpoint).encoder, recipe.sizes)
        np.savez(kept, **{name: getattr(episodes, name) for name in Episodes.__slots__})
    with np.load(kept) as arrays:
        return Episodes(**{name: arrays[name] for name in Episodes.__slots__})


def train_dit(recipe: Recipe, data: Path, out: Path) -> None:
    """Stage 2 into out/dit.pt. The last shard is held out."""
    paths = sorted(data.glob("shard*.npz"))
    if len(paths) < 2:
        raise UsageError(f"{data}: {len(paths)} shards, at least 2 needed; make them with dzedge.export.data")
    checkpoint = out / "dit.pt"
    moments = fit_wam.load(checkpoint)[1] if checkpoint.exists() else None
    windows = Windows(episodes_of(recipe, paths[:-1], out), recipe.sizes, moments)
    held_out = Windows(episodes_of(recipe, paths[-1:], out), recipe.sizes, windows.moments)
    log.info("windows: labelled %d, play %d, video %d", *map(len, windows.by_kind))
    fit_wam.fit(recipe.dit, recipe.sizes, windows, held_out, checkpoint, log.info)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stage", choices=("tokenizer", "dit", "all"))
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--out", type=Path, default=Path("checkpoints"))
    parser.add_argument("--recipe", type=Path, default=RECIPE)
    parser.add_argument("--threads", type=int, default=1, help="more than one is slower on a machine with other work")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(options.threads)
    recipe = read_recipe(options.recipe)
    options.out.mkdir(parents=True, exist_ok=True)
    if options.stage in ("tokenizer", "all"):
        train_tokenizer(recipe, options.data, options.out)
    if options.stage in ("dit", "all"):
        train_dit(recipe, options.data, options.out)


if __name__ == "__main__":
    main()
