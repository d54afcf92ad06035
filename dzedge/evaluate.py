"""Closed-loop evaluation: how often a policy does its task in scenes it has not seen, and under which settings.

Which scenes, see `dzedge.suite`. Everything that an episode comes from is in the document, so that it can be played
again: with its own latency table (`--latency DOCUMENT`) a lockstep evaluation repeats byte for byte.
"""

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import msgspec
from rich.table import Table

from dzedge import latency
from dzedge.bundle import Bundle
from dzedge.conditions import Conditions
from dzedge.config import RobotConfig
from dzedge.engine import Machine
from dzedge.errors import DzedgeError, SafetyError, UsageError
from dzedge.hardware.sim import task as tasks
from dzedge.history import RunResult
from dzedge.proportion import wilson
from dzedge.realtime import die_with_parent
from dzedge.robot import verified_bundle
from dzedge.suite import SPLITS, Scene

RATES_HZ = (2, 15)
"""What the robot file allows as policy.rate_hz; lockstep has no such bound."""


class Runner(Protocol):
    """Runs one episode: `lockstep.run_lockstep` or `supervisor.run_robot`, the rest of its arguments bound."""

    def __call__(self, config: RobotConfig, bundle: Bundle, *, task: str | None, seed: int) -> RunResult: ...


@dataclass(frozen=True, slots=True)
class Settings:
    """How the episodes were played. execute: actions run before the next chunk, None: as the robot file says;
    delay_ms, synchronous, prefix, smoothing: as in `Conditions`; realtime: in the four processes of a robot instead of
    in lockstep.
    """

    suite: str
    episodes: int
    seeds: tuple[int, ...]
    execute: int | None = None
    delay_ms: float = 0.0
    synchronous: bool = False
    prefix: bool = True
    smoothing: bool = True
    realtime: bool = False

    def check(self) -> None:
        """Raises UsageError for what cannot be together."""
        if self.synchronous and self.delay_ms:
            raise UsageError(f"--synchronous with --delay {self.delay_ms:g}: a world that waits has none; drop one")
        altered = self.synchronous or self.delay_ms or not self.prefix or not self.smoothing
        if self.realtime and altered:
            raise UsageError(
                "--realtime: a real robot's time is its own; leave out --delay, --synchronous, --no-prefix and "
                "--no-smoothing, or --realtime"
            )

    def conditions(self, drawn: latency.Latency) -> Conditions:
        """What lockstep lays on the policy. drawn: where its latencies come from."""
        return Conditions(drawn, self.delay_ms, self.synchronous, self.prefix, self.smoothing)

    def apply(self, config: RobotConfig, bundle: Bundle) -> RobotConfig:
        """The robot file as the episodes want it. Raises UsageError."""
        policy = config.policy
        if self.execute is not None:
            section = bundle.manifest.dzedge
            if not 1 <= self.execute < section.horizon:
                raise UsageError(
                    f"--execute {self.execute}: must be 1 to {section.horizon - 1}, below the {section.horizon} "
                    f"actions of a chunk of {section.model_id}"
                )
            rate_hz = 1e9 / (self.execute * section.dt_ns)
            if self.realtime and not RATES_HZ[0] <= rate_hz <= RATES_HZ[1]:
                raise UsageError(
                    f"--execute {self.execute} --realtime: {rate_hz:.2f} chunks a second, a robot file allows "
                    f"{RATES_HZ[0]} to {RATES_HZ[1]}; choose another, or lockstep"
                )
            policy = msgspec.structs.replace(policy, rate_hz=rate_hz)
        if not self.realtime:
            # One thread: workers share the cores, and sums come out the same however many there are.
            policy = msgspec.structs.replace(policy, threads=1)
        return msgspec.structs.replace(config, policy=policy)


KNOBS = ("execute", "no_prefix", "delay", "synchronous", "no_smoothing", "latency", "realtime", "workers")
"""Parameters of the command that say how an episode is played."""


def idle_options(suite: str, pair: bool, realtime: bool, synchronous: bool) -> dict[str, str]:
    """Parameters that have no effect beside others, and why."""
    if pair:
        chosen = ("policies", "suite", "episodes", "seeds", "sampler", "precision", *KNOBS)
        return dict.fromkeys(chosen, "--pair compares documents that were written before")
    if suite == "imagination":
        return dict.fromkeys(KNOBS, "the suite imagination judges dreams, one after the other, and plays nothing")
    if realtime:
        return dict.fromkeys(("latency", "workers"), "--realtime takes the time it takes, one robot at once")
    if synchronous:
        return {"latency": "--synchronous: a world that waits has none"}
    return {}


@dataclass(frozen=True, slots=True)
class Episode:
    """One attempt. verb, split: of its task, as `hardware.sim.task` sorts them; delay_ms: median from a frame's capture
    to its chunk's arrival; measure: the judge's last number, lockstep only; fault: why the arm was stopped for good, ""
    where it was not.
    """

    seed: int
    task: str
    verb: str
    split: str
    success: bool
    duration_s: float
    chunks: int = 0
    delay_ms: float | None = None
    measure: float | None = None
    fault: str = ""


class Robots(NamedTuple):
    """What plays a robot; handed in, because it stands beside this file.

    lockstep, realtime: `lockstep.run_lockstep`, `supervisor.run_robot`; measure: `lockstep.measure`.
    """

    lockstep: Callable[..., RunResult]
    realtime: Callable[..., RunResult]
    measure: Callable[..., latency.Latency]


Progress = Callable[[str, int], AbstractContextManager[Any]]
"""`console.progress`: words and a number of steps; what it yields is called after each, with words about it."""


def run(
    robots: Robots,
    config: RobotConfig,
    bundle: Bundle,
    settings: Settings,
    chosen: Sequence[Scene],
    workers: int,
    table: Path | None,
    progress: Progress,
) -> dict[str, Any]:
    """One policy's entry of `results`. table: file of the latency, instead of measuring it. Raises DzedgeError.

    A latency is measured with the robot's own number of threads, before the workers fill the cores.
    """
    model, wanted = bundle.manifest.dzedge.model_id, settings.apply(config, bundle)
    drawn = None
    if settings.realtime:
        runner, workers = partial(robots.realtime, duration_s=None, on_status=lambda status: None), 1
    else:
        if not settings.synchronous:
            drawn = _latency(robots, table, config, wanted, bundle, progress)
        conditions = settings.conditions(drawn or latency.DEFAULT)
        rest = {"conditions": conditions, "lean": True}
        runner = partial(robots.lockstep, duration_s=None, **rest)
    played: list[Episode] = []
    with progress(model, len(chosen)) as advance:
        for episode in episodes(runner, wanted, chosen, workers):
            played.append(episode)
            advance(tally(played))
    return document(wanted, bundle, settings, drawn, played)


def _latency(
    robots: Robots, table: Path | None, config: RobotConfig, wanted: RobotConfig, bundle: Bundle, progress: Progress
) -> latency.Latency:
    model = bundle.manifest.dzedge.model_id
    if table is not None:
        return latency.DEFAULT if str(table) == "default" else latency.read(table, model)
    policy = msgspec.structs.replace(wanted.policy, threads=config.policy.threads)
    with progress(f"latency of {model}", latency.DECISIONS) as advance:
        return robots.measure(msgspec.structs.replace(wanted, policy=policy), bundle, on_decision=advance)


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
    """One episode; the bundle is opened, and its sessions are made, once a process. Raises DzedgeError.

    The scene's number is the policy's seed too, and nothing else is handed on from one episode to the next.
    """
    name = config.policy.bundle
    if name not in _opened:
        _opened[name] = verified_bundle(config)
    config = msgspec.structs.replace(config, sim=msgspec.structs.replace(config.sim, seed=scene.seed))
    try:
        result = runner(config, _opened[name], task=scene.task, seed=scene.seed)
    except SafetyError as error:
        if scene.task is None:
            raise
        return _episode(scene.seed, scene.task, False, config.task.timeout_s, fault=str(error))
    if result.success is None:
        raise DzedgeError(f"interrupted in scene {scene.seed}; start the evaluation again")
    delay_ms = result.stages.get("inference.delay", {}).get("p50_ms")
    measure = result.measure if result.measure is not None and math.isfinite(result.measure) else None
    return _episode(scene.seed, result.task, result.success, result.duration_s, result.chunks, delay_ms, measure)


def _episode(seed: int, task: str, success: bool, duration_s: float, *rest: Any, **more: Any) -> Episode:
    known = tasks.parse(task)
    verb, split = (known.verb, known.split) if known else ("", "seen")
    return Episode(seed, task, verb, split, success, round(duration_s, 3), *rest, **more)


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


def tally(played: Sequence[Episode]) -> str:
    """Success so far, by split, in few words."""
    found = rates(played, lambda episode: episode.split)
    return "  ".join(f"{split} {100 * found[split]['success']:.0f} %" for split in SPLITS if split in found)


def document(
    config: RobotConfig,
    bundle: Bundle,
    settings: Settings,
    drawn: latency.Latency | None,
    played: Sequence[Episode],
) -> dict[str, Any]:
    """One entry of `results`. drawn: the table of lockstep's latencies, None where time was real or stood still."""
    section, policy = bundle.manifest.dzedge, config.policy
    sampler = section.samplers[0] if policy.sampler == "auto" else policy.sampler
    how = {"sampler": sampler, "precision": policy.precision, "isa": Machine.detect().isa, "rate_hz": policy.rate_hz}
    told = asdict(settings) | {"seeds": list(settings.seeds)} | how
    entry: dict[str, Any] = {"policy": section.model_id, "manifest_sha256": bundle.digest, "settings": told}
    for split, rate in rates(played, lambda episode: episode.split).items():
        verbs = rates([e for e in played if e.split == split], lambda episode: episode.verb)
        entry[split] = rate | {"verbs": verbs}
    return entry | {"latency": drawn and drawn.document(), "episodes": [asdict(episode) for episode in played]}


def table(entry: Mapping[str, Any]) -> Table:
    """Success of one policy by split and verb."""
    rows = Table(title=f"{entry['policy']} ({entry['settings']['suite']})", box=None, header_style="bold")
    for column in ("split", "verb", "done", "success", "95 % interval"):
        rows.add_column(column, justify="left" if column in ("split", "verb") else "right")
    for split in SPLITS:
        rate = entry.get(split)
        if rate is None:
            continue
        total = [("all", rate)] if len(rate["verbs"]) > 1 else []
        for verb, row in [*rate["verbs"].items(), *total]:
            done = f"{round(row['success'] * row['n'])} of {row['n']}"
            interval = f"{100 * row['low']:.0f} to {100 * row['high']:.0f} %"
            rows.add_row(split, verb, done, f"{100 * row['success']:.0f} %", interval)
    rows.caption = caption(entry)
    return rows


FAILURES_NAMED = 10


def caption(entry: Mapping[str, Any]) -> str | None:
    """Latency, and the first scenes that failed."""
    failed = [f"{e['seed']} ({e['task']})" for e in entry["episodes"] if not e["success"]]
    more = ", ..." if len(failed) > FAILURES_NAMED else ""
    words = [f"not reached: {', '.join(failed[:FAILURES_NAMED])}{more}"] if failed else []
    if entry["latency"] is not None:
        quantiles = entry["latency"]["quantiles_ms"]
        words.insert(0, f"latency {quantiles[50]:.1f} ms median, {quantiles[99]:.1f} ms p99")
    return "\n".join(words) or None
