"""Curves: every figure of a log is drawn, and another log is another picture."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dzedge.export import curves


def _drawn(tmp_path: Path, rows: list[dict[str, float]], name: str = "wam-0") -> np.ndarray:
    lines, picture = tmp_path / f"{name}.jsonl", tmp_path / f"{name}.png"
    lines.write_text("".join(json.dumps(row) + "\n" for row in rows))
    curves.draw(lines, picture)
    return np.asarray(Image.open(picture).convert("RGB"))


def _rows(slope: float = -0.1) -> list[dict[str, float]]:
    return [{"step": 100 * i, "cpu_s": 5 * i, "loss": 2.0 + slope * i, "act_r2": 0.1 * i} for i in range(1, 9)]


def _curve(image: np.ndarray) -> np.ndarray:
    """Pixels of a curve's colour."""
    wanted = np.array([int(curves.CURVE[i : i + 2], 16) for i in (1, 3, 5)])
    return (np.abs(image.astype(int) - wanted) < 24).all(axis=2)


def test_a_panel_for_every_figure(tmp_path: Path) -> None:
    image = _drawn(tmp_path, _rows())
    height, width = curves.CELL_HEIGHT + curves.MARGIN, curves.COLUMNS * curves.CELL_WIDTH + curves.MARGIN
    assert image.shape[0] % height == image.shape[1] % width == 0, "whole multiples of the layout"
    scale = image.shape[1] / width
    seen = _curve(image)
    for column in range(3):
        left = int((curves.MARGIN + column * curves.CELL_WIDTH - 20) * scale)
        panel = seen[:, left : left + int(curves.CELL_WIDTH * scale)]
        assert (panel.sum() > 50) == (column < 2), "two figures, two curves; step and time are none"


def test_rises_where_the_figure_rises(tmp_path: Path) -> None:
    scale = _drawn(tmp_path, _rows()).shape[1] / (curves.COLUMNS * curves.CELL_WIDTH + curves.MARGIN)
    edge = int((curves.MARGIN + curves.CELL_WIDTH - 20) * scale)
    for slope, sign in ((-0.1, 1), (0.1, -1)):
        rows, columns = np.nonzero(_curve(_drawn(tmp_path, _rows(slope)))[:, :edge])
        assert np.sign(np.corrcoef(rows, columns)[0, 1]) == sign, "rows count downwards"


def test_another_log_another_picture(tmp_path: Path) -> None:
    one, two = _drawn(tmp_path, _rows(), "a"), _drawn(tmp_path, _rows(-0.2), "a")
    assert np.array_equal(one, _drawn(tmp_path, _rows(), "a"))
    assert not np.array_equal(one, two)


@pytest.mark.parametrize("rows", [_rows()[:1], [{"step": 1, "cpu_s": 0, "loss": 0.0}] * 2])
def test_the_first_line_alone_and_what_never_changes(tmp_path: Path, rows: list[dict[str, float]]) -> None:
    assert _drawn(tmp_path, rows).shape[2] == 3


def test_a_figure_that_came_later(tmp_path: Path) -> None:
    rows = _rows()
    for row in rows[:4]:
        del row["act_r2"]
    assert _curve(_drawn(tmp_path, rows)).sum() > 100
