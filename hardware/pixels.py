"""What a webcam delivers, as RGB."""

import io
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dzedge.kernels.yuyv import yuyv_to_rgb

Pixels = NDArray[np.uint8]
Bytes = Any
"""What supports the buffer protocol."""

def yuyv(data: Bytes, width: int, height: int, stride: int) -> Pixels:
    """RGB of YUYV (4:2:2). data: `height` rows of `stride` bytes; width: even. Shape (height, width, 3). Raises
    ValueError when data is too short."""
    rgb = np.empty((height, width, 3), np.uint8)
    yuyv_to_rgb(_rows(data, 2 * width, height, stride).reshape(height, width, 2), rgb)
    return rgb


def grey(data: Bytes, width: int, height: int, stride: int) -> Pixels:
    """RGB of eight bits of brightness, for data, shapes and errors see `yuyv`."""
    return np.repeat(_rows(data, width, height, stride)[..., None], 3, axis=2)


def mjpeg(data: Bytes, width: int, height: int, stride: int) -> Pixels:
    """RGB of one JPEG picture, with or without Huffman tables (webcams leave the standard ones out). Raises ValueError
    when it is damaged or of another size."""
    from PIL import Image  # not before: robots without such a webcam do without it

    try:
        with Image.open(io.BytesIO(data), formats=("JPEG",)) as picture:
            if picture.size != (width, height):
                raise ValueError(f"JPEG of {picture.size[0]}x{picture.size[1]}, expected {width}x{height}")
            return np.array(picture.convert("RGB"))
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"damaged JPEG: {error}") from error


def _rows(data: Bytes, used: int, height: int, stride: int) -> Pixels:
    """The first `used` bytes of each row. Shape (height, used)."""
    needed = stride * (height - 1) + used
    pixels = np.frombuffer(data, np.uint8)
    if len(pixels) < needed:
        raise ValueError(f"{len(pixels)} bytes, expected {needed}")
    if len(pixels) < stride * height:  # the padding of the last row may be left out
        pixels = np.pad(pixels, (0, stride * height - len(pixels)))
    return pixels[: stride * height].reshape(height, stride)[:, :used]


CONVERTERS: dict[str, Callable[[Bytes, int, int, int], Pixels]] = {"yuyv": yuyv, "mjpeg": mjpeg, "grey": grey}
