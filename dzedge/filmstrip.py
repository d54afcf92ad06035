"""The picture of `dzedge imagine`: what a robot saw of its task, and below what its model had imagined it would see."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from dzedge.bundle import Bundle
from dzedge.canvas import INK, MUTED, Canvas
from dzedge.clock import NS
from dzedge.hardware.sim import task as tasks
from dzedge.hardware.sim.scene import COLOURS, CUBE, draw_layout
from dzedge.history import History, Imagination, RunResult
from dzedge.picture import MARGIN, VERDICTS, Imaginer, difference, nearest, observed

DREAMS = 2
"""Dreams one after the other in a strip, each from the frame that the camera had taken by then."""
PHOTO = (148, 111)
GAP, BETWEEN, LABEL, HEAD = 6, 26, 74, 84
"""Between frames, between dreams, for the rows' names, for a strip's title [pixels]."""
LATE_NS = NS // 10
"""The next dream begins where the last one ends, give or take this: chunks come when they come."""
SEARCHED = 1000
"""Scenes looked at for one where a task can be done."""
SPLITS = {
    "seen": "shown with actions in training",
    "semantic": "verb and colour were never shown together",
    "novel": "unseen motion: in training only as video, never with actions",
}
Image = NDArray[np.uint8]


@dataclass(frozen=True)
class Dream:
    """What was imagined at `at_s` [s], and what came.

    present: Shape (h, w, 3), uint8; came: Shape (F, h, w, 3); imagined: Shape (F, ...), of the model's own size;
    ahead_s: of each frame after `at_s`.
    """

    at_s: float
    present: Image
    imagined: Image
    came: Image
    ahead_s: tuple[float, ...]


@dataclass(frozen=True)
class Strip:
    """The dreams of one run."""

    task: str
    seed: int
    success: bool | None
    dreams: tuple[Dream, ...]

    @property
    def split(self) -> str:
        """Of its task; empty for words that no judge knows."""
        known = tasks.parse(self.task)
        return known.split if known else ""

    @property
    def apart(self) -> float:
        """Mean difference of imagined and observed frames, 0..1."""
        pairs = [pair for dream in self.dreams for pair in zip(dream.came, dream.imagined, strict=True)]
        return float(np.mean([difference(came, imagined) for came, imagined in pairs]))


def choose(bundle: Bundle, seed: int, cubes: int) -> list[str]:
    """Instructions worth dreaming of in that scene: a labelled verb and a motion never labelled, as far as the model
    knows their words, about the cube farthest aside, where the arm has the longest way."""
    layout = draw_layout(seed, cubes)
    colour = COLOURS[layout.colours[int(np.abs(layout.places[:, 1]).argmax())]]
    asked = [tasks.Task(verb, colour).instruction for verb in (tasks.VERBS[0], tasks.MOTIONS[0])]
    known = bundle.manifest.dzedge.language.vocabulary
    return [words for words in asked if all(word in known for word in words.split())] or asked[:1]


def find_scene(words: str, seed: int, cubes: int) -> int:
    """The first scene from `seed` on where that can be done: its cube is there, a pushed one has room. Words that no
    judge knows fit anywhere. `seed` itself where there is none."""
    known = tasks.parse(words)
    fitting = (scene for scene in range(seed, seed + SEARCHED) if known is None or _fits(known, scene, cubes))
    return next(fitting, seed)


def _fits(task: tasks.Task, seed: int, cubes: int) -> bool:
    layout = draw_layout(seed, cubes)
    table = np.zeros((len(COLOURS), 4))
    table[list(layout.colours)] = [(x, y, CUBE / 2, 1.0) for x, y, _ in layout.places]
    return bool(table[task.cube, 3]) and tasks.lane_is_free(task, table)


def cut(result: RunResult, imaginer: Imaginer) -> Strip | None:
    """The stretch of a run with most motion; of an unseen motion the last, when it is under way. None where no imagined
    frame came to pass."""
    history = result.history
    known = tasks.parse(result.task)
    reach_ns = imaginer.frames * imaginer.frame_dt_ns
    chains = _chains(observed(history, imaginer), reach_ns)
    if not chains:
        return None
    under_way = known is not None and known.split == "novel"
    chosen = chains[-1] if under_way else max(chains, key=lambda chain: _motion(history, chain, reach_ns))
    dreams = tuple(_dream(history, imaginer, chunk) for chunk in chosen)
    return Strip(result.task, result.seed, result.success, dreams)


def _chains(chunks: Sequence[Imagination], reach_ns: int) -> list[list[Imagination]]:
    """The longest chains of up to DREAMS chunks, each made where the one before ends."""
    chains = []
    for first in chunks:
        chain = [first]
        while len(chain) < DREAMS:
            end_ns = chain[-1].t_obs_ns + reach_ns
            follower = min(chunks, key=lambda chunk: abs(chunk.t_obs_ns - end_ns))
            if abs(follower.t_obs_ns - end_ns) > LATE_NS:
                break
            chain.append(follower)
        chains.append(chain)
    longest = max(map(len, chains), default=0)
    return [chain for chain in chains if len(chain) == longest]


def _motion(history: History, chain: Sequence[Imagination], reach_ns: int) -> float:
    """Way of all joints while what a chain imagined came to pass [rad]."""
    first, last = np.searchsorted(history.times_ns, (chain[0].t_obs_ns, chain[-1].t_obs_ns + reach_ns))
    return float(np.abs(np.diff(history.commands[first : last + 1], axis=0)).sum()) if last > first else 0.0


def _dream(history: History, imaginer: Imaginer, chunk: Imagination) -> Dream:
    present = nearest(history.seen, chunk.t_obs_ns)
    ahead_ns = [(i + 1) * imaginer.frame_dt_ns for i in range(imaginer.frames)]
    came = np.stack([nearest(history.seen, chunk.t_obs_ns + ahead).image for ahead in ahead_ns])
    at_s = (chunk.t_obs_ns - history.times_ns[0]) / NS
    imagined = imaginer.draw(chunk.imagined, present)
    return Dream(at_s, present.image, imagined, came, tuple(ahead / NS for ahead in ahead_ns))


def draw(strips: Sequence[Strip], path: Path) -> None:
    """Write the strips, one below the other, as a PNG."""
    widths = [sum(_width(dream) + BETWEEN for dream in strip.dreams) - BETWEEN for strip in strips]
    height = HEAD + 26 + 2 * PHOTO[1] + GAP + 30
    canvas = Canvas(2 * MARGIN + LABEL + max(widths), MARGIN // 2 + height * len(strips))
    for row, strip in enumerate(strips):
        _strip(canvas, MARGIN // 2 + height * row, strip)
    canvas.save(path)


def document(strips: Sequence[Strip], path: Path) -> dict[str, Any]:
    """The one JSON document of `dzedge imagine`. difference: mean of imagined and observed frames, 0..1."""
    dreams = [
        {"task": strip.task, "split": strip.split, "success": strip.success, "difference": strip.apart,
         "at_s": [round(dream.at_s, 3) for dream in strip.dreams]}
        for strip in strips
    ]  # fmt: skip
    apart = float(np.mean([strip.apart for strip in strips]))
    return {"seed": strips[0].seed, "difference": apart, "dreams": dreams, "files": [str(path)]}


def table(strips: Sequence[Strip]) -> Table:
    """One line for each strip."""
    rows = Table("task", "split", "", "difference", box=None, header_style="bold")
    for strip in strips:
        rows.add_row(strip.task, strip.split, VERDICTS[strip.success][0], f"{100 * strip.apart:.1f} %")
    return rows


def _width(dream: Dream) -> int:
    return (1 + len(dream.imagined)) * (PHOTO[0] + GAP) - GAP


def _strip(canvas: Canvas, top: float, strip: Strip) -> None:
    canvas.text((MARGIN, top + 42), strip.task, 26, bold=True)
    verdict, colour = VERDICTS[strip.success]
    left = MARGIN + canvas.text_width(strip.task, 26) + 22
    width = canvas.text_width(verdict, 14) + 24
    canvas.box(left, top + 20, left + width, top + 46, colour, 13)
    canvas.text((left + width / 2, top + 33), verdict, 14, "#ffffff", "mm", bold=True)
    words = [SPLITS[strip.split]] if strip.split else []
    words += [f"seed {strip.seed}", "what moves is imagined, the rest is the present frame"]
    words += [f"mean difference {100 * strip.apart:.1f} %"]
    canvas.text((MARGIN, top + 68), " · ".join(words), 14, MUTED)
    upper = top + HEAD + 26
    for name, middle in (("observed", upper + PHOTO[1] / 2), ("imagined", upper + 1.5 * PHOTO[1] + GAP)):
        canvas.text((MARGIN, middle), name, 14, INK, "lm")
    x = MARGIN + LABEL
    for dream in strip.dreams:
        _frames(canvas, x, upper, dream)
        x += _width(dream) + BETWEEN


def _frames(canvas: Canvas, left: int, top: float, dream: Dream) -> None:
    width, height = PHOTO
    lower = top + height + GAP
    canvas.text((left, top - 8), f"at {dream.at_s:.1f} s", 14, INK, bold=True)
    canvas.picture((left, top), dream.present, width, height)
    canvas.text((left + width - 8, lower + height / 2), "imagined from it", 13, MUTED, "rm")
    for i, (imagined, came) in enumerate(zip(dream.imagined, dream.came, strict=True)):
        x = left + (i + 1) * (width + GAP)
        canvas.text((x, top - 8), f"+{dream.ahead_s[i]:.1f} s", 14, INK)
        canvas.picture((x, top), came, width, height)
        canvas.picture((x, lower), imagined, width, height)
        canvas.text((x + width, lower + height + 16), f"±{100 * difference(came, imagined):.1f} %", 12, MUTED, "rs")
