"""Curves of a training as a picture: every figure of its log over the steps."""

import json
from pathlib import Path

import numpy as np

from dzedge.canvas import FAINT, INK, MUTED, Axes, Canvas

COLUMNS, CELL_WIDTH, CELL_HEIGHT, MARGIN = 3, 400, 220, 60
CURVE = "#0b6bcb"


def draw(lines: Path, picture: Path) -> None:
    """Draw the log `lines` (one JSON object a line, with a `step`) into `picture`, a PNG."""
    rows = [json.loads(line) for line in lines.read_text().splitlines()]
    names = [name for name in rows[-1] if name not in ("step", "cpu_s")]
    canvas = Canvas(COLUMNS * CELL_WIDTH + MARGIN, -(-len(names) // COLUMNS) * CELL_HEIGHT + MARGIN)
    canvas.text((MARGIN, 30), lines.stem, 18, INK, bold=True)
    last = f"{rows[-1]['step']} steps, {rows[-1]['cpu_s']} s of CPU time"
    canvas.text((MARGIN + canvas.text_width(lines.stem, 18) + 16, 30), last, 13, MUTED)
    for index, name in enumerate(names):
        steps = np.array([row["step"] for row in rows if name in row], dtype=float)
        values = np.array([row[name] for row in rows if name in row], dtype=float)
        left = MARGIN + (index % COLUMNS) * CELL_WIDTH
        top = MARGIN + 20 + (index // COLUMNS) * CELL_HEIGHT
        room = max(0.08 * float(np.ptp(values)), 1e-3)
        box = (left, top, left + CELL_WIDTH - 90, top + CELL_HEIGHT - 80)
        axes = Axes(canvas, box, (0.0, max(steps[-1], 1.0)), (float(values.min()) - room, float(values.max()) + room))
        canvas.text((left, top - 8), f"{name} {values[-1]:g}", 13, INK)
        axes.grid(x_labels=True)
        canvas.line([(left, box[3]), (box[2], box[3])], FAINT)
        axes.curve(steps, values, CURVE, 1.8)
    canvas.save(picture)
