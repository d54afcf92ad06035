"""The mosaic: several cameras in one picture, as the published checkpoints saw them.

Source: facts/dreamzero 1.4 and the published transforms in evaluation mode, commit ab790c1. H x W is one view's size
after `view`; a mosaic is 2H x 2W.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as fn

from dzedge.errors import UsageError

Pixels = NDArray[np.uint8]
KEPT = 0.95
"""Share of each side that the centre crop keeps."""


def view(frame: Pixels, height: int, width: int, kept: float = KEPT) -> Pixels:
    """One camera's share: the middle of the frame, resized bilinearly. Shape (h, w, 3) -> Shape (height, width, 3)."""
    if frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype != np.uint8:
        raise UsageError(f"mosaic: frame {frame.shape} of {frame.dtype}, expected (height, width, 3) of uint8")
    rows, columns = (int(side * kept) for side in frame.shape[:2])
    # Python rounds halves to even here, as the published crop does: an odd rest leaves its extra line below or right.
    top, left = (round((whole - part) / 2.0) for whole, part in zip(frame.shape, (rows, columns), strict=False))
    middle = torch.from_numpy(frame[top : top + rows, left : left + columns].copy()).permute(2, 0, 1)[None]
    scaled = fn.interpolate(
        middle.to(torch.float32) / 255.0, (height, width), mode="bilinear", align_corners=False, antialias=True
    )
    pixels: Pixels = (scaled[0].permute(1, 2, 0) * 255.0).to(torch.uint8).numpy()  # cut off, not rounded
    return pixels


def wrist_above(left: Pixels, right: Pixels, wrist: Pixels) -> Pixels:
    """DROID: the wrist camera across the whole upper half, every pixel twice; below it left and right exterior.

    Each Shape (H, W, 3) -> Shape (2H, 2W, 3).
    """
    _alike((left, right, wrist))
    return np.concatenate([np.repeat(wrist, 2, axis=1), np.concatenate([left, right], axis=1)])


def corners(first: Pixels, left: Pixels | None = None, right: Pixels | None = None) -> Pixels:
    """All others: first upper left, left below it, right beside it, what is missing and the last corner black.

    Each Shape (H, W, 3) -> Shape (2H, 2W, 3).
    """
    given = [first, *(part for part in (left, right) if part is not None)]
    _alike(given)
    black = np.zeros_like(first)
    upper = np.concatenate([first, black if right is None else right], axis=1)
    lower = np.concatenate([black if left is None else left, black], axis=1)
    return np.concatenate([upper, lower])


LAYOUTS: dict[str, Callable[..., Pixels]] = {"oxe_droid": wrist_above}
"""By embodiment tag; `corners` for the others."""


def mosaic(tag: str, views: Sequence[Pixels]) -> Pixels:
    """The picture of an embodiment, its views in the order of its modality keys; a single view stays as it is.

    Each Shape (H, W, 3) -> Shape (2H, 2W, 3). Raises UsageError for a number of views that no layout has.
    """
    if not 1 <= len(views) <= 3:
        raise UsageError(f"mosaic: {len(views)} views, allowed 1..3")
    if len(views) == 1:
        return views[0]
    return corners(*views) if len(views) < 3 else LAYOUTS.get(tag, corners)(*views)


def image(picture: Pixels, height: int, width: int) -> NDArray[np.float32]:
    """What the tokenizer sees, resized as published (bilinear, without a filter) where the model is for a smaller
    picture than the mosaic. Shape (H, W, 3) -> Shape (1, 3, height, width), RGB in [-1, 1]."""
    pixels = torch.from_numpy(picture).permute(2, 0, 1)[None].to(torch.float32) / 127.5 - 1.0
    if picture.shape[:2] != (height, width):
        pixels = fn.interpolate(pixels, (height, width), mode="bilinear", align_corners=False)
    return np.ascontiguousarray(pixels.numpy())


def _alike(views: Sequence[Pixels]) -> None:
    shapes = {part.shape for part in views}
    if len(shapes) > 1 or any(part.dtype != np.uint8 for part in views):
        raise UsageError(f"mosaic: views of {sorted(shapes)}, expected one shape (H, W, 3) of uint8; use `view` first")
