"""Closed-loop evaluation in lockstep: how often a policy does its task in scenes it has not seen.

Scenes of evaluation are numbered below one million, training's above: they never meet.
"""

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from itertools import islice
from multiprocessing import get_context
from typing import Any, Protocol

import numpy as np
from rich.table import Table

from dzedge.bundle import Bundle
from dzedge.config import RobotConfig
from dzedge.errors import UsageError
from dzedge.hardware.sim import task as tasks
from dzedge.hardware.sim.scene import COLOURS, CUBE, draw_layout
from dzedge.history import OnStatus, RunResult
from dzedge.realtime import die_with_parent
from dzedge.robot import verified_bundle

SCENES_PER_SEED = 1000
Z95 = 1.959963984540054
"""Standard normal quantile of a two-sided interval of 95 %."""


class Runner(Protocol):
    """Runs one episode in lockstep (`lockstep.run_lockstep`)."""

    def __call__(
        self,
        config: RobotConfig,
        bundle: Bundle,
        *,
        task: str | None,
        seed: int,
        duration_s: float | None,
        on_status: OnStatus,
    ) -> RunResult: ...


@dataclass(frozen=True)
class Episode:
    """One attempt. verb, split: of its task, as `hardware.sim.task` sorts them."""

    seed: int
    task: str
    verb: str
    split: str
    success: bool
    duration_s: float


@dataclass(frozen=True)
class Scene:
    """A scene and what is asked in it; task None: the scene's own."""

    seed: int
    task: str | None


def scenes(suite: str, episodes: int, seeds: Sequence[int]) -> list[Scene]:
    """`episodes` scenes of each seed, and in suite `verbs` of each verb and motion. Raises UsageError.

    `reach`: the default task. `verbs`: every verb and motion about a cube of the scene; scenes in which a push has no
    free lane are passed over.
    """
    if suite == "reach":
        return [Scene(SCENES_PER_SEED * seed + i, None) for seed in seeds for i in range(episodes)]
    if suite != "verbs":
        raise UsageError(f"--suite {suite}: must be reach or verbs")
    chosen = []
    for seed in seeds:
        for verb in (*tasks.VERBS, *tasks.MOTIONS):
            found = (scene for i in range(SCENES_PER_SEED) for scene in _asked(verb, SCENES_PER_SEED * seed + i))
            chosen += list(islice(found, episodes))
    return chosen


def _asked(verb: str, seed: int) -> list[Scene]:
    """The scene of `seed` with a task of that verb, or nothing where no cube is fit for it."""
    layout = draw_layout(seed)
    cubes = np.zeros((len(COLOURS), 4))
    for colour, (x, y, _) in zip(layout.colours, layout.places, strict=True):
        cubes[colour] = x, y, CUBE / 2, 1.0
    fit = [task for task in (tasks.Task(verb, COLOURS[c]) for c in sorted(layout.colours))
           if tasks.lane_is_free(task, cubes)]  # fmt: skip
    return [Scene(seed, fit[seed % len(fit)].instruction)] if fit else []


def episodes(runner: Runner, config: RobotConfig, chosen: Sequence[Scene], workers: int) -> Iterator[Episode]:
    """Play each scene; yields as they end, in the order of `chosen`."""
    if workers < 2 or len(chosen) < 2:
        for scene in chosen:
            yield attempt(runner, config, scene)
        return
    context = get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, initializer=die_with_parent, initargs=(os.getpid(),))
    try:
        yield from pool.map(attempt, [runner] * len(chosen), [config] * len(chosen), chosen)
    finally:
        pool.shutdown(cancel_futures=True)


_opened: dict[str, Bundle] = {}


def attempt(runner: Runner, config: RobotConfig, scene: Scene) -> Episode:
    """One episode; the bundle is opened once a process."""
    name = config.policy.bundle
    if name not in _opened:
        _opened[name] = verified_bundle(config)
    bundle = _opened[name]
    result = runner(
        config, bundle, task=scene.task, seed=scene.seed, duration_s=None, on_status=lambda status: None
    )
    known = tasks.parse(result.task)
    verb, split = (known.verb, known.split) if known else ("", "seen")
    return Episode(scene.seed, result.task, verb, split, bool(result.success), result.duration_s)


def wilson(successes: int, n: int) -> tuple[float, float]:
    """Bounds of the 95 % interval of a success rate (Wilson 1927: right near 0 and 1 and for small n)."""
    if n == 0:
        return 0.0, 1.0
    rate, z2 = successes / n, Z95 * Z95
    centre = (rate + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 / (1 + z2 / n) * math.sqrt(rate * (1 - rate) / n + z2 / (4 * n * n))
    # At the ends the formula gives 0 and 1 but for rounding.
    return (centre - half if successes else 0.0), (centre + half if successes < n else 1.0)


def rates(played: Sequence[Episode], key: Callable[[Episode], str]) -> dict[str, dict[str, Any]]:
    """{group: {success, n, low, high}} of the groups that `key` makes; success is a share."""
    groups: dict[str, list[bool]] = {}
    for episode in played:
        groups.setdefault(key(episode), []).append(episode.success)
    out = {}
    for name, results in groups.items():
        low, high = wilson(sum(results), len(results))
        out[name] = {"success": sum(results) / len(results), "n": len(results), "low": low, "high": high}
    return out


def document(policy: str, suite: str, played: Sequence[Episode]) -> dict[str, Any]:
    """One entry of `results`."""
    entry: dict[str, Any] = {"policy": policy, "suite": suite}
    for split, rate in rates(played, lambda episode: episode.split).items():
        verbs = rates([e for e in played if e.split == split], lambda episode: episode.verb)
        entry[split] = rate | {"verbs": verbs}
    return entry | {"episodes": [asdict(episode) for episode in played]}


def table(entry: Mapping[str, Any]) -> Table:
    """Success of one policy by split and verb."""
    rows = Table(title=f"{entry['policy']} ({entry['suite']})", box=None, header_style="bold")
    for column in ("split", "verb", "done", "success", "95 % interval"):
        rows.add_column(column, justify="left" if column in ("split", "verb") else "right")
    for split, rate in entry.items():
        if isinstance(rate, dict):
            total = [("all", rate)] if len(rate["verbs"]) > 1 else []
            for verb, row in [*rate["verbs"].items(), *total]:
                done = f"{round(row['success'] * row['n'])} of {row['n']}"
                interval = f"{100 * row['low']:.0f} to {100 * row['high']:.0f} %"
                rows.add_row(split, verb, done, f"{100 * row['success']:.0f} %", interval)
    failed = [f"{e['seed']} ({e['task']})" for e in entry["episodes"] if not e["success"]]
    rows.caption = f"not reached: {', '.join(failed)}" if failed else None
    return rows
