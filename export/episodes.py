"""Episodes of LeRobot datasets as arrays: latents of what the camera saw, joints, commands, words."""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from dzedge.errors import UsageError
from dzedge.export.dataset import Dataset
from dzedge.export.footage import Lens
from dzedge.export.model.sizes import Sizes
from dzedge.export.model.text import colour_of, words_of
from dzedge.export.source import ACTION, STATE, Source

LABELLED, PLAY, VIDEO = 0, 1, 2
"""An episode with actions and a task, with actions alone, with a task alone."""


@dataclass(frozen=True, slots=True)
class Episodes:
    """All steps of all episodes. latents: Shape (N, K, C); joints, commands: Shape (N, J), [rad]; disturbed: Shape
    (N,); start, end: of its episode, for each step; kind, words, colour, body: of its episode, for each step."""

    latents: NDArray[np.float32]
    joints: NDArray[np.float32]
    commands: NDArray[np.float32]
    disturbed: NDArray[np.bool_]
    start: NDArray[np.int64]
    end: NDArray[np.int64]
    kind: NDArray[np.int64]
    words: NDArray[np.int64]
    colour: NDArray[np.int64]
    body: NDArray[np.int64]

    @classmethod
    def joined(cls, parts: "list[Episodes]") -> "Episodes":
        """All of them, one after the other."""
        bases = np.cumsum([0, *(len(part.start) for part in parts)])
        moved = [replace(part, start=part.start + base, end=part.end + base)
                 for part, base in zip(parts, bases[:-1].tolist(), strict=True)]  # fmt: skip
        return cls(*(np.concatenate([getattr(part, field.name) for part in moved]) for field in fields(cls)))

    def chosen(self, numbers: range) -> "Episodes":
        """Only the episodes of these numbers, counted from 0."""
        number = np.cumsum(np.append(False, self.start[1:] != self.start[:-1]))
        keep = (number >= numbers.start) & (number < numbers.stop)
        return self if keep.all() else self.taken(keep)

    def taken(self, keep: NDArray[np.bool_]) -> "Episodes":
        """Only some episodes. keep: for each step, equal throughout an episode."""
        kept = np.cumsum(keep) - 1
        part = Episodes(*(getattr(self, field.name)[keep] for field in fields(self)))
        start = kept[part.start]
        return replace(part, start=start, end=start + part.end - part.start)


def encode(encoder: nn.Module, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Latents of frames. images: Shape (N, h, w, 3), uint8 -> Shape (N, K, C)."""
    out = []
    with torch.no_grad():
        for start in range(0, len(images), 128):
            image = torch.from_numpy(images[start : start + 128]).permute(0, 3, 1, 2).float() / 127.5 - 1.0
            out.append(encoder(image).numpy())
    return np.concatenate(out)


def read(root: Path, encoder: nn.Module, sizes: Sizes, source: Source | None = None) -> Episodes:
    """One dataset, its frames through the tokenizer. Columns that only our own datasets have (`acts`, `disturbed`,
    `embodiment`) may be missing: then everything acts, nothing is disturbed, the body is ours. source: none for the
    simulator's.

    Raises UsageError where the dataset is not of this robot.
    """
    data, source = Dataset(root), source or Source()
    offsets = data.offsets
    lengths = np.diff(offsets)
    joints = data.column(STATE).astype(np.float32)
    if joints.shape[1] != sizes.joints:
        raise UsageError(f"{root}: {joints.shape[1]} joints in observation.state, the model has {sizes.joints}")

    def optional(name: str, value: int) -> NDArray[np.int64]:
        if name not in data.features:
            return np.full(len(joints), value, np.int64)
        return data.column(name).reshape(-1).astype(np.int64)

    lens, tasks = Lens(sizes), data.tasks
    latents = [encode(encoder, lens.shrink(frames)) for frames in data.video(source.camera)]
    words = [words_of(task, sizes.words, source.vocabulary) for task in tasks]
    colours = [colour_of(task) if sizes.structured else -1 for task in tasks]
    acts, first = optional("acts", 1), offsets[:-1]
    kind = np.where(acts[first] == 0, VIDEO, np.where(np.array([not task for task in tasks]), PLAY, LABELLED))
    return Episodes(
        latents=np.concatenate(latents), joints=source.radians(joints, f"{root}: {STATE}"),
        commands=source.radians(data.column(ACTION).astype(np.float32), f"{root}: {ACTION}"),
        disturbed=optional("disturbed", 0) > 0,
        start=np.repeat(offsets[:-1], lengths), end=np.repeat(offsets[1:], lengths), kind=np.repeat(kind, lengths),
        words=np.repeat(np.array(words, np.int64), lengths, axis=0),
        colour=np.repeat(np.array(colours, np.int64), lengths),
        body=optional("embodiment", 0),
    )  # fmt: skip


def cached(
    root: Path, tokenizer: Path, encoder: nn.Module, sizes: Sizes, log: Callable[[str], None],
    source: Source | None = None,
) -> Episodes:  # fmt: skip
    """`read`, from the cache beside the tokenizer where it has encoded this dataset before."""
    digest, source = hashlib.sha256(tokenizer.read_bytes()), source or Source()
    if source != Source():
        digest.update(f"{source} {sizes.words}".encode())
    for path in sorted(root.rglob("*")):
        if path.is_file():
            digest.update(f"{path.relative_to(root)} {path.stat().st_size}".encode())
    kept = tokenizer.parent / f"{root.name}-{digest.hexdigest()[:16]}.npz"
    if not kept.exists():
        log(f"encoding {root}")
        episodes = read(root, encoder, sizes, source)
        half = kept.with_name(f"{os.getpid()}-{kept.name}")  # an interruption or another process leaves no part of one
        np.savez(half, **{field.name: getattr(episodes, field.name) for field in fields(Episodes)})
        half.replace(kept)
    with np.load(kept) as arrays:
        return Episodes(**{field.name: arrays[field.name] for field in fields(Episodes)})
