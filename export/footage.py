"""Frames of datasets as the model sees them, whatever size the camera gave them."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dzedge.errors import UsageError
from dzedge.export.dataset import Dataset
from dzedge.export.model.sizes import Sizes
from dzedge.kernels.image import ImagePlan

Frames = NDArray[np.uint8]
Take = tuple[Path, range]
"""A dataset, and which of its episodes."""
HELD_OUT = 10
"""Of a single dataset, every so many-th part is held out: its last episodes."""


class Lens:
    """Makes frames as small as the model's image, by the runtime's own image kernel."""

    def __init__(self, sizes: Sizes) -> None:
        self._size = sizes.image_height, sizes.image_width
        self._small = np.empty((3, *self._size), dtype=np.float32)
        self._plan: ImagePlan | None = None

    def shrink(self, frames: Frames) -> Frames:
        """Shape (n, any height, any width, 3) -> Shape (n, h, w, 3), rounded to 8 bits."""
        height, width = frames.shape[1:3]
        if self._plan is None or (self._plan.source_height, self._plan.source_width) != (height, width):
            self._plan = ImagePlan(height, width, None, *self._size)
        small = np.empty((len(frames), *self._size, 3), dtype=np.uint8)
        for frame, out in zip(frames, small, strict=True):
            self._plan.run(np.ascontiguousarray(frame), self._small)
            out[:] = np.rint((self._small.transpose(1, 2, 0) + 1.0) * 127.5)
        return small


def takes(paths: list[Path]) -> tuple[list[Take], Take]:
    """What to learn from, and what is held out: the last dataset, or the last episodes of the only one.

    paths: as `train.parts` gives them. Raises UsageError where the only one has a single episode.
    """
    counts = [Dataset(path).episodes for path in paths]
    whole = [(path, range(count)) for path, count in zip(paths, counts, strict=True)]
    if paths[0] != paths[-1]:
        return whole[:-1], whole[-1]
    path, count = paths[0], counts[0]
    if count < 2:
        raise UsageError(f"{path}: {count} episode, at least 2 needed: one is held out; record more")
    cut = count - max(1, count // HELD_OUT)
    return [(path, range(cut))], (path, range(cut, count))


def _shrunk(chosen: Iterable[Take], camera: str, sizes: Sizes) -> Iterator[Frames]:
    """Episode by episode."""
    lens = Lens(sizes)
    for root, episodes in chosen:
        for frames in Dataset(root).video(camera, episodes):
            yield lens.shrink(frames)


def sampled(chosen: list[Take], camera: str, sizes: Sizes, count: int) -> Frames:
    """At most `count` frames, evenly spread. Shape (N, h, w, 3), uint8."""
    offsets = [Dataset(root).offsets for root, _ in chosen]
    total = sum(int(at[part.stop] - at[part.start]) for at, (_, part) in zip(offsets, chosen, strict=True))
    every, skipped, kept = -(-total // count), 0, []
    for frames in _shrunk(chosen, camera, sizes):
        kept.append(frames[skipped::every].copy())
        skipped = (skipped - len(frames)) % every
    return np.concatenate(kept)


def pairs(take: Take, camera: str, sizes: Sizes, count: int, steps: int) -> Frames:
    """At most `count` pairs of frames `steps` apart, evenly spread. Shape (N, 2, h, w, 3), uint8.

    Raises UsageError where no episode is that long.
    """
    found = [np.stack([frames[:-steps], frames[steps:]], axis=1)[:: max(1, steps // 2)]
             for frames in _shrunk([take], camera, sizes) if len(frames) > steps]  # fmt: skip
    if not found:
        raise UsageError(f"{take[0]}: no held-out episode has more than {steps} frames; record longer ones")
    joined = np.concatenate(found)
    return joined[:: -(-len(joined) // count)].copy()
