"""A picture in the terminal: each character is two pixels, one above the other, in 24-bit colour."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.color import Color
from rich.style import Style
from rich.text import Text

UPPER_HALF = "\u2580"


def fit(width: int, height: int, columns: int, rows: int) -> tuple[int, int]:
    """Width and height [pixels], the latter even, of a picture as large as columns x rows characters hold, its sides in
    proportion; never larger than it is."""
    scale = min(columns / width, 2 * rows / height, 1.0)
    return max(1, round(width * scale)), max(2, 2 * round(height * scale / 2))


def half_blocks(image: NDArray[np.uint8], columns: int, rows: int) -> Text:
    """A picture of at most columns x rows characters. image: Shape (h, w, 3)."""
    height, width, _ = image.shape
    size = fit(width, height, columns, rows)
    small = np.asarray(Image.fromarray(np.ascontiguousarray(image)).resize(size, Image.Resampling.BOX))
    text = Text(no_wrap=True, end="")
    for above, below in zip(small[0::2].tolist(), small[1::2].tolist(), strict=True):
        for top, bottom in zip(above, below, strict=True):
            text.append(UPPER_HALF, Style(color=Color.from_rgb(*top), bgcolor=Color.from_rgb(*bottom)))
        text.append("\n")
    return text
