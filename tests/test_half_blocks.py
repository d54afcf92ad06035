"""Pictures of half blocks."""

import io

import numpy as np
import pytest
from rich.console import Console

from dzedge.half_blocks import fit, half_blocks


def test_each_character_is_two_pixels():
    image = np.zeros((2, 3, 3), np.uint8)
    image[0, 1], image[1, 1] = (255, 0, 0), (0, 0, 255)
    text = half_blocks(image, 80, 24)
    assert text.plain == "\u2580" * 3 + "\n"
    styles = [span.style for span in text.spans]
    assert [(s.color.triplet.hex, s.bgcolor.triplet.hex) for s in styles] == [
        ("#000000", "#000000"), ("#ff0000", "#0000ff"), ("#000000", "#000000"),
    ]  # fmt: skip


def test_on_a_terminal():
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, color_system="truecolor", width=10)
    console.print(half_blocks(np.full((4, 4, 3), 200, np.uint8), 10, 10))
    assert out.getvalue().count("\x1b[38;2;200;200;200;48;2;200;200;200m") == 8


@pytest.mark.parametrize(
    ("size", "room", "wanted"),
    [((640, 480), (80, 24), (64, 48)), ((640, 480), (20, 24), (20, 16)), ((16, 12), (80, 24), (16, 12)),
     ((1000, 10), (50, 24), (50, 2))],
)  # fmt: skip
def test_fits_in_proportion(size, room, wanted):
    assert fit(*size, *room) == wanted
    text = half_blocks(np.zeros((size[1], size[0], 3), np.uint8), *room)
    lines = text.plain.splitlines()
    assert (len(lines[0]), 2 * len(lines)) == wanted
