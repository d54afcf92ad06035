"""The picture of a run: joints over time with the seams between chunks; imagined beside observed frames."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dzedge.canvas import FAINT, INK, MUTED, Axes, Canvas
from dzedge.clock import NS
from dzedge.config import Joint, RobotConfig
from dzedge.history import History, Imagination, RunResult, Seen
from dzedge.kernels.tick import State

COMMANDED, MEASURED, SEAM = "#2f6fde", "#e8710a", "#c9d2dc"
STATE_COLOURS = {
    State.RUN: "#37a169", State.HOLD: "#f2b632", State.FAULT: "#d63a3a", State.ESTOP: "#8f1d1d",
    State.STOPPING: "#8d6cc9", State.ARMED: "#7fa3c7", State.READY: "#b9c4cf",
}  # fmt: skip
OTHER_STATE = "#b9c4cf"
GOOD, BAD, PLAIN = "#37a169", "#d63a3a", "#6b7785"
VERDICTS = {True: ("success", GOOD), False: ("not reached", BAD), None: ("not judged", PLAIN)}
WIDTH, MARGIN = 1600, 48
COLUMNS, PLOT_HEIGHT, BAND = 3, 170, 8
PHOTO = (136, 102)
"""Width and height of an observed or imagined frame in the picture."""
MOMENTS = 4
LEAST_SPAN = 0.2
"""A joint's plot spans at least this much [rad], so that noise of a resting joint stays small."""


@dataclass(frozen=True)
class Imaginer:
    """What a policy can say about its imagination.

    draw: latents, Shape (F * K * C,), and the frame that they were imagined from, to Shape (F, h, w, 3), uint8;
    frame_dt_ns: frame i was imagined for `t_obs + (i + 1) * frame_dt_ns`; frames: F.
    """

    draw: Callable[[NDArray[np.float32], Seen], NDArray[np.uint8]]
    frame_dt_ns: int
    frames: int


def summary(result: RunResult, config: RobotConfig, imaginer: Imaginer | None, path: Path) -> None:
    """Draw a run. imaginer: None for a policy that imagines nothing."""
    moments = pick_moments(result.history, imaginer, MOMENTS) if imaginer else []
    joints = config.arm.joints
    plots = -(-len(joints) // COLUMNS) * (PLOT_HEIGHT + 76)
    rows = -(-len(moments) // 2)
    photos = rows * (2 * PHOTO[1] + 56) + 72 if moments else 0
    canvas = Canvas(WIDTH, 196 + 44 + plots + photos + 28)
    _header(canvas, result)
    _latencies(canvas, result.stages)
    _joints(canvas, 196, result.history, joints)
    if imaginer and moments:
        _imaginations(canvas, 196 + 44 + plots, result.history, moments, imaginer)
    canvas.save(path)


def pick_moments(history: History, imaginer: Imaginer, count: int) -> list[Imagination]:
    """Of each of `count` equal spans of the run the chunk during which most was commanded to move."""
    reach = imaginer.frames * imaginer.frame_dt_ns
    whole = observed(history, imaginer)
    if not whole:
        return []
    times, commands = np.array(history.times_ns), np.array(history.commands)

    def motion(chunk: Imagination) -> float:
        first, last = np.searchsorted(times, (chunk.t_obs_ns, chunk.t_obs_ns + reach))
        last = min(int(last), len(times) - 1)
        return float(np.abs(commands[last] - commands[min(int(first), last)]).sum())

    start, end = whole[0].t_obs_ns, whole[-1].t_obs_ns + 1
    spans: list[list[Imagination]] = [[] for _ in range(count)]
    for chunk in whole:
        spans[(chunk.t_obs_ns - start) * count // (end - start)].append(chunk)
    return [max(span, key=motion) for span in spans if span]


def observed(history: History, imaginer: Imaginer) -> list[Imagination]:
    """The chunks whose present and whole future the camera saw."""
    reach = imaginer.frames * imaginer.frame_dt_ns
    newest = history.seen[-1].capture_ns if history.seen else 0
    oldest = history.seen[0].capture_ns if history.seen else 0
    return [
        chunk
        for chunk in history.imaginations
        if oldest <= chunk.t_obs_ns and chunk.t_obs_ns + reach <= newest and chunk.imagined.size
    ]


def nearest(seen: Sequence[Seen], time_ns: int) -> Seen:
    """The frame captured nearest to a time."""
    return min(seen, key=lambda frame: abs(frame.capture_ns - time_ns))


def difference(seen: NDArray[np.uint8], imagined: NDArray[np.uint8]) -> float:
    """Mean absolute difference of two images, 0..1, at the size of the second. Shapes (h, w, 3), uint8."""
    height, width, _ = imagined.shape
    small = Image.fromarray(seen).resize((width, height), Image.Resampling.BOX)
    return float(np.abs(np.asarray(small, dtype=np.float64) - imagined).mean() / 255)


def _header(canvas: Canvas, result: RunResult) -> None:
    canvas.text((MARGIN, 78), result.task, 34, bold=True)
    verdict, colour = VERDICTS[result.success]
    width = canvas.text_width(verdict, 16) + 28
    left = MARGIN + canvas.text_width(result.task, 34) + 24
    canvas.box(left, 50, left + width, 80, colour, 15)
    canvas.text((left + width / 2, 65), verdict, 16, "#ffffff", "mm", bold=True)
    refused = sum(result.refused.values())
    facts = [
        (f"{result.duration_s:.1f} s", "duration"),
        (str(result.seed), "seed"),
        (str(result.chunks), "chunks"),
        (str(refused), "refused"),
        (str(result.restarts), "restarts"),
    ]
    x = float(MARGIN)
    for value, name in facts:
        canvas.text((x, 128), value, 22, INK)
        canvas.text((x, 150), name, 13, MUTED)
        x += max(canvas.text_width(value, 22), canvas.text_width(name, 13)) + 36


def _latencies(canvas: Canvas, stages: dict[str, dict[str, float]]) -> None:
    """A bar from p50 to p99 of each stage, on a logarithmic axis."""
    timed = [item for item in stages.items() if "p99_ms" in item[1]]
    rows = sorted(timed, key=lambda item: -item[1]["p99_ms"])[:14]
    columns = [rows[: -(-len(rows) // 2)], rows[-(-len(rows) // 2) :]] if len(rows) > 7 else [[], rows]
    if rows:
        canvas.text((WIDTH - MARGIN, 34), "stage latency, p50 to p99 [ms]", 13, MUTED, "rm")
    for column, chosen in enumerate(columns):
        right = WIDTH - MARGIN - (1 - column) * 350
        bar = (right - 168, right - 78)
        for row, (name, timing) in enumerate(chosen):
            y = 58 + 19 * row
            low, high = (_log_position(max(timing[key], 1e-3), bar) for key in ("p50_ms", "p99_ms"))
            canvas.text((bar[0] - 12, y), name, 12, INK, "rm")
            canvas.box(bar[0], y - 3, bar[1], y + 3, "#eef1f5", 3)
            canvas.box(low - 3, y - 3, max(high, low) + 3, y + 3, COMMANDED, 3)
            numbers = f"{_short(timing['p50_ms'])} · {_short(timing['p99_ms'])}"
            canvas.text((right, y), numbers, 12, MUTED, "rm")


def _log_position(value_ms: float, bar: tuple[float, float]) -> float:
    """Pixel of a duration between 1 us and 1 s."""
    share = (np.log10(value_ms) + 3.0) / 6.0
    return float(bar[0] + np.clip(share, 0.03, 0.97) * (bar[1] - bar[0]))


def _short(value_ms: float) -> str:
    return f"{value_ms:.0f}" if value_ms >= 100 else f"{value_ms:.1f}" if value_ms >= 1 else f"{value_ms:.2g}"


def _joints(canvas: Canvas, top: float, history: History, joints: Sequence[Joint]) -> None:
    times = np.array(history.times_ns, dtype=np.int64)
    if not len(times):
        canvas.text((MARGIN, top + 30), "the control loop never ran", 16, MUTED)
        return
    seconds = (times - times[0]) / NS
    seams = [(t - int(times[0])) / NS for t in history.seams_ns]
    _legend(canvas, top, sorted(set(history.states)), len(seams))
    measured, commanded = np.array(history.positions), np.array(history.commands)
    cell = (WIDTH - 2 * MARGIN) / COLUMNS
    span = (0.0, max(float(seconds[-1]), 0.1))
    for index, joint in enumerate(joints):
        row, column = divmod(index, COLUMNS)
        left, y = MARGIN + column * cell + 44, top + 44 + row * (PLOT_HEIGHT + 76) + 26
        box = (left, y, left + cell - 76, y + PLOT_HEIGHT)
        axes = Axes(canvas, box, span, _range(measured[:, index], commanded[:, index]))
        unit = "[0 closed, 1 open]" if joint.kind == "gripper" else "[rad]"
        canvas.text((left, y - 14), joint.name, 15, bold=True)
        canvas.text((left + canvas.text_width(joint.name, 15) + 10, y - 14), unit, 13, MUTED)
        axes.grid(x_labels=True)
        canvas.text((box[2] + 24, box[3] + 24), "s", 12, MUTED, "mm")
        _seams(axes, seams)
        _states(axes, seconds, history.states)
        axes.curve(seconds, measured[:, index], MEASURED, 2.6)
        axes.curve(seconds, commanded[:, index], COMMANDED, 1.5)


def _range(*curves: NDArray[np.float64]) -> tuple[float, float]:
    """Of finite values, with room above and below."""
    values = np.concatenate(curves)
    values = values[np.isfinite(values)]
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 0.0)
    spare = max(0.08 * (high - low), (LEAST_SPAN - (high - low)) / 2)
    return low - spare, high + spare


def _seams(axes: Axes, seams: Sequence[float]) -> None:
    """A hairline where a chunk took over; only its lower end where they would run together."""
    _, top, _, bottom = axes.box
    dense = len(seams) > (axes.box[2] - axes.box[0]) / 5
    for time in seams:
        x = axes.across(time)
        axes.canvas.line([(x, bottom - 9 if dense else top), (x, bottom)], SEAM, 0.8)


def _states(axes: Axes, seconds: NDArray[np.float64], states: Sequence[int]) -> None:
    """The band under a plot: the control loop's state."""
    codes = np.array(states)
    starts = [0, *(np.flatnonzero(np.diff(codes)) + 1).tolist()]
    top = axes.box[3] + 3
    for start, end in zip(starts, [*starts[1:], len(codes) - 1], strict=True):
        colour = STATE_COLOURS.get(State(int(codes[start])), OTHER_STATE)
        axes.canvas.box(axes.across(seconds[start]), top, axes.across(seconds[end]), top + BAND, colour)


def _legend(canvas: Canvas, top: float, states: Sequence[int], seams: int) -> None:
    y = top + 14
    x = MARGIN + 44.0
    for name, colour, width in (("commanded", COMMANDED, 2.5), ("measured", MEASURED, 3.5)):
        canvas.line([(x, y), (x + 26, y)], colour, width)
        canvas.text((x + 34, y), name, 13, INK, "lm")
        x += 34 + canvas.text_width(name, 13) + 28
    canvas.line([(x + 6, y - 9), (x + 6, y + 9)], MUTED, 1.2)
    words = f"a new chunk takes over ({seams})"
    canvas.text((x + 16, y), words, 13, INK, "lm")
    x += 16 + canvas.text_width(words, 13) + 36
    for state in states:
        name = State(state).name
        canvas.box(x, y - 4, x + 26, y + 4, STATE_COLOURS.get(State(state), OTHER_STATE))
        canvas.text((x + 34, y), name, 13, INK, "lm")
        x += 34 + canvas.text_width(name, 13) + 24


def _imaginations(
    canvas: Canvas, top: float, history: History, moments: Sequence[Imagination], imaginer: Imaginer
) -> None:
    canvas.line([(MARGIN, top + 8), (WIDTH - MARGIN, top + 8)], FAINT, 1)
    canvas.text((MARGIN, top + 46), "imagined and observed", 20, bold=True)
    words = (
        "above what the camera saw, below what the model had imagined, in the frame it began from; ± mean difference"
    )
    canvas.text((MARGIN + canvas.text_width("imagined and observed", 20) + 18, top + 46), words, 13, MUTED)
    block = WIDTH - 2 * MARGIN - _block_width(imaginer)
    for index, moment in enumerate(moments):
        row, column = divmod(index, 2)
        at = (MARGIN + column * block, top + 64 + row * (2 * PHOTO[1] + 56))
        _moment(canvas, at, history, moment, imaginer)


def _moment(canvas: Canvas, at: tuple[float, float], history: History, moment: Imagination, imaginer: Imaginer) -> None:
    """One chunk: the frame it was made from, then observed above imagined."""
    width, height = PHOTO
    left, top = at
    start = history.times_ns[0] if history.times_ns else moment.t_obs_ns
    small = max(11.0, width / 14)
    present = nearest(history.seen, moment.t_obs_ns)
    canvas.text((left, top + 14), f"at {(moment.t_obs_ns - start) / NS:.1f} s", small, INK, "ls", bold=True)
    canvas.picture((left, top + 22), present.image, width, height)
    for index, picture in enumerate(imaginer.draw(moment.imagined, present)):
        x = left + (index + 1) * (width + 10) + 12
        wanted_ns = (index + 1) * imaginer.frame_dt_ns
        came = nearest(history.seen, moment.t_obs_ns + wanted_ns).image
        canvas.text((x, top + 14), f"+{wanted_ns / NS:.1f} s", small, INK)
        canvas.text((x + width, top + 14), f"±{100 * difference(came, picture):.1f} %", small, MUTED, "rs")
        canvas.picture((x, top + 22), came, width, height)
        canvas.picture((x, top + 26 + height), picture, width, height)
    canvas.text((left + width, top + 26 + height * 1.5), "imagined", small, MUTED, "rm")


def _block_width(imaginer: Imaginer) -> float:
    return (1 + imaginer.frames) * (PHOTO[0] + 10) + 2.0
