"""Drawing for pictures: lengths in pixels of the finished image; drawn larger, then averaged down."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Colour = str
Point = tuple[float, float]
Range = tuple[float, float]
INK, MUTED, FAINT, PAPER = "#1b2430", "#6b7785", "#dfe4ea", "#ffffff"
OVERSAMPLING = 3
"""Finished pixels are averages of 3 x 3 drawn ones."""
TICK_STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)


class Canvas:
    """A white sheet. Texts use Pillow's built-in font, whose glyphs are those of Latin-1."""

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        self._drawn = Image.new("RGB", (width * OVERSAMPLING, height * OVERSAMPLING), PAPER)
        self._draw = ImageDraw.Draw(self._drawn)
        self._fonts: dict[float, ImageFont.FreeTypeFont | ImageFont.ImageFont] = {}
        self._pasted: list[tuple[Image.Image, tuple[int, int]]] = []

    def text(
        self,
        at: Point,
        words: str,
        size: float,
        colour: Colour = INK,
        anchor: str = "ls",
        bold: bool = False,
    ) -> None:
        """Write `words`; anchor: as Pillow's, `ls` = left end of the baseline."""
        stroke = OVERSAMPLING / 5 * size / 14 if bold else 0.0
        x, y = self._scaled(at)
        self._draw.text((x, y), words, fill=colour, font=self._font(size), anchor=anchor, stroke_width=stroke)

    def text_width(self, words: str, size: float) -> float:
        """Width of `words` [pixels]."""
        return float(self._font(size).getlength(words)) / OVERSAMPLING

    def line(self, points: Sequence[Point], colour: Colour, width: float = 1.0) -> None:
        """A line through `points`."""
        scaled = [self._scaled(point) for point in points]
        self._draw.line(scaled, fill=colour, width=max(1, round(width * OVERSAMPLING)), joint="curve")

    def box(
        self, left: float, top: float, right: float, bottom: float, colour: Colour, radius: float = 0.0
    ) -> None:
        """A filled rectangle; radius: of its corners."""
        corners = (*self._scaled((left, top)), *self._scaled((right, bottom)))
        if corners[2] > corners[0] and corners[3] > corners[1]:
            self._draw.rounded_rectangle(corners, radius * OVERSAMPLING, fill=colour)

    def dot(self, at: Point, radius: float, colour: Colour) -> None:
        """A filled circle."""
        x, y = self._scaled(at)
        r = radius * OVERSAMPLING
        self._draw.ellipse((x - r, y - r, x + r, y + r), fill=colour)

    def picture(self, at: Point, pixels: NDArray[np.uint8], width: int, height: int) -> None:
        """Place an image, scaled to width x height. pixels: Shape (h, w, 3), uint8."""
        image = Image.fromarray(np.ascontiguousarray(pixels))
        scaled = image.resize((width, height), Image.Resampling.BICUBIC)
        self._pasted.append((scaled, (round(at[0]), round(at[1]))))

    def save(self, path: Path) -> None:
        """Write the sheet as a PNG."""
        sheet = self._drawn.reduce(OVERSAMPLING)
        for image, at in self._pasted:
            sheet.paste(image, at)
        sheet.save(path, optimize=True)

    def _scaled(self, at: Point) -> Point:
        return at[0] * OVERSAMPLING, at[1] * OVERSAMPLING

    def _font(self, size: float) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
        if size not in self._fonts:
            self._fonts[size] = ImageFont.load_default(size * OVERSAMPLING)
        return self._fonts[size]


class Axes:
    """A plot: data coordinates to pixels. box: left, top, right, bottom [pixels]; x, y: data ranges."""

    def __init__(self, canvas: Canvas, box: tuple[float, float, float, float], x: Range, y: Range) -> None:
        self.canvas, self.box, self.x, self.y = canvas, box, x, y

    def across(self, value: float) -> float:
        """Pixel of a value on the x axis."""
        left, _, right, _ = self.box
        return left + (value - self.x[0]) / (self.x[1] - self.x[0]) * (right - left)

    def up(self, value: float) -> float:
        """Pixel of a value on the y axis."""
        _, top, _, bottom = self.box
        return bottom - (value - self.y[0]) / (self.y[1] - self.y[0]) * (bottom - top)

    def grid(self, x_labels: bool) -> None:
        """Horizontal lines at round values with their labels; labels of the x axis where wanted."""
        left, _, right, bottom = self.box
        for value in ticks(*self.y, 4):
            y = self.up(value)
            self.canvas.line([(left, y), (right, y)], FAINT, 0.8)
            self.canvas.text((left - 8, y), label(value), 13, MUTED, "rm")
        if x_labels:
            for value in ticks(*self.x, 8):
                self.canvas.text((self.across(value), bottom + 24), label(value), 13, MUTED, "mm")

    def curve(self, x: NDArray[np.float64], y: NDArray[np.float64], colour: Colour, width: float) -> None:
        """A line through data. x, y: Shape (n,)."""
        if len(x) < 2:
            return
        left, _, right, _ = self.box
        step = max(1, len(x) // int(4 * (right - left)))
        points = [
            (self.across(a), self.up(b)) for a, b in zip(x[::step].tolist(), y[::step].tolist(), strict=True)
        ]
        self.canvas.line(points, colour, width)


def ticks(low: float, high: float, wanted: int) -> list[float]:
    """At most `wanted` + 1 round values in [low, high], evenly spaced."""
    span = max(high - low, 1e-12)
    power = 10.0 ** np.floor(np.log10(span / wanted))
    step = next((power * s for s in TICK_STEPS if span / (power * s) <= wanted), power * 10.0)
    first, last = int(np.ceil(low / step - 1e-9)), int(np.floor(high / step + 1e-9))
    return [float(step * k) for k in range(first, last + 1)]


def label(value: float) -> str:
    """A tick's value in as few characters as say it."""
    return f"{value:.3g}" if abs(value) > 1e-9 else "0"
