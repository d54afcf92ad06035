"""export: what the exported bundle gains over the ways one would run the same model without dzedge.

chunk_*: one chunk, camera image to absolute actions and imagined latents, for the shipped sizes (nano) and for 9.5 M
parameters of the same structure (9m), by 1 and 2 threads: our runtime in its best precision against

    eager      torch, the same sampler, and everything kept that dzedge keeps
    plain      ONNX Runtime in float32, a loop that makes text, the window's rows and modulation anew in every pass
    whole      the same as one graph a step, video and actions together, as the original exports it (reported)
    float      our runtime in float32 (reported): what int8 gains by itself
    compiled   torch.compile by inductor, everything kept (9m, 1 thread, reported)

The nano is the shipped bundle; all other weights are seeded, not trained: they do not change the time. Pairs are
interleaved, each side first in turn, after a pause in which the other's threads fall asleep; ratio = median over the
pairs.

flops_cached: FLOPs of a chunk here by those of the original server's request (`export/workload.py`), the 5 B model in
as many evaluations as the server makes. int8_bytes: step graphs of the shipped bundle against float32. int8_error: its
chunks against its float32 ones on what the robot sees in closed loop, root mean square by that of the actions.
"""

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import rivals
import torch
import untrained
from rivals import Plain, Task, Torch

from dzedge import bundle, config, minisign, suite
from dzedge.export import families
from dzedge.export.flops import flops
from dzedge.export.workload import WAMS, named
from dzedge.lockstep import run_lockstep
from dzedge.policies import WorldActionModel
from dzedge.types import ActionPrefix, Observation

PAIRS = {"wam-nano": 120, "wam-9m": 60}
WARM = 8
PAUSE_S = 0.004
THREADS = (1, 2)
BARS = {"eager": 0.45, "plain": 0.62}
"""At 9 M; the nano's ratios are reported."""
ROBOT = config.load(config.default_path())
SHIPPED = Path(ROBOT.policy.bundle)
ASKED = "reach the red cube"
SCENES, SCENE_S = 6, 5.0
STEPS = ("video_step", "action_step")
Side = Callable[[int], Any]
Row = dict[str, object]
Decided = tuple[Observation, ActionPrefix, int]


def run() -> list[Row]:
    """All rows."""
    rows = [row for name in WAMS for threads in THREADS for row in chunks(name, threads)]
    return [*rows, *counted(), *shipped()]


def row(name: str, value: float, unit: str, rival: str, ratio: float, bar: float | None) -> Row:
    """bar: none where it is only reported."""
    ok = bar is None or ratio <= bar
    return {"id": name, "value": value, "unit": unit, "rival": rival, "ratio": ratio, "bar": bar, "ok": ok}


def chunks(name: str, threads: int) -> Iterator[Row]:
    """Chunk latency of one size against every rival."""
    torch.set_num_threads(threads)
    sizes = WAMS[name]
    path = SHIPPED if name == "wam-nano" else untrained.kept(name, sizes)
    ours = Ours(untrained.load(path, threads))
    if ours.policy.video.inputs["mod_video"].shape != (1, 6 * sizes.layers, sizes.width):
        raise RuntimeError(f"{path}: its sizes are not those of {name!r} in export/workload.py: change them there")
    trunk, tokenizer = untrained.models(sizes)
    task = Task(ours.policy, sizes, untrained.CAMERA)
    cut, files = families.cut(trunk, tokenizer), rivals.export_plain(task, trunk, untrained.folder(name, sizes))
    encoder = (path / "frame_encoder.fp32.onnx").read_bytes()
    short = name.removeprefix("wam-")
    makers: dict[str, Callable[[], Side]] = {
        "eager": lambda: turn(Torch(task, cut)),
        "plain": lambda: turn(Plain(task, files, encoder, threads, whole=False)),
        "whole": lambda: turn(Plain(task, files, encoder, threads, whole=True)),
        "float": lambda: Ours(untrained.load(path, threads, "fp32")),
    }
    if short == "9m" and threads == 1:
        makers["compiled"] = lambda: turn(Torch(task, cut, compiled=True))
    for rival, make in makers.items():
        bar = BARS.get(rival) if short == "9m" else None
        identity = f"chunk_{rival}_{short}_{threads}"
        if rival == "compiled" and shutil.which("g++") is None:
            yield row(identity, float("nan"), "not run: inductor needs g++", "", float("nan"), None)
            continue
        mine_ms, theirs_ms, ratio = measured(ours, make(), PAIRS[name])
        yield row(identity, mine_ms, "ms, image to chunk", f"{theirs_ms:.3g} ms", ratio, bar)


class Ours:
    """Our runtime, once a call: the newest frame is taken in, then a chunk is decided."""

    def __init__(self, policy: WorldActionModel) -> None:
        self.policy = policy
        policy.reset(ASKED)

    def __call__(self, n: int) -> None:
        observation, prefix = untrained.scene(n)
        self.policy.observe(observation.frames[-1])
        self.policy.infer(observation, prefix, n)


def turn(rival: Torch | Plain) -> Side:
    """A rival on the same kind of input."""
    image, positions = untrained.frame(0).image, np.zeros(untrained.JOINTS)
    return lambda n: rival.chunk(image, positions)


def measured(mine: Side, theirs: Side, pairs: int) -> tuple[float, float, float]:
    """Medians [ms] and the median of the ratios."""
    for n in range(WARM + pairs):
        untrained.scene(n)  # made now, not while the clock runs
    found = [timed_pair(mine, theirs, n) for n in range(WARM + pairs)][WARM:]
    a, b = (median(times) * 1e3 for times in zip(*found, strict=True))
    return a, b, median(ours / other for ours, other in found)


def timed_pair(mine: Side, theirs: Side, n: int) -> tuple[float, float]:
    """Seconds of both, the first to go alternating."""
    seconds = {}
    for side in (mine, theirs) if n % 2 else (theirs, mine):
        time.sleep(PAUSE_S)
        start = time.perf_counter()
        side(n)
        seconds[side] = time.perf_counter() - start
    return seconds[mine], seconds[theirs]


def counted() -> Iterator[Row]:
    """FLOPs against the original server's."""
    for identity, model in (("flops_cached_5b", named("5B", 8)), ("flops_cached_nano", named("wam-nano"))):
        here, server = flops(model.chunk), flops(model.server)
        yield row(identity, here / 1e9, "GFLOP a chunk", f"{server / 1e9:.4g} GFLOP", here / server, 1 / 3)


def shipped() -> Iterator[Row]:
    """What int8 of the shipped world action model is worth."""
    keys = minisign.load_keys(ROBOT.policy.trusted_keys)
    opened = bundle.open_bundle(SHIPPED, keys, allow_test_key=True)
    graphs, sizes = opened.manifest.dzedge.graphs, {entry.path: entry.size for entry in opened.manifest.dzedge.files}
    forms: dict[str, int] = {}
    for variant in (variant for step in STEPS for variant in graphs[step].variants):
        form = f"{variant.precision} {variant.isa}"
        forms[form] = forms.get(form, 0) + sizes[variant.file]
    largest = max(size for form, size in forms.items() if form.startswith("int8"))
    plain = forms["fp32 any"]
    yield row("int8_bytes", largest / 1e6, "MB, step graphs", f"{plain / 1e6:.3g} MB", largest / plain, 0.32)
    small, full = (untrained.load(SHIPPED, 1, precision) for precision in ("int8", "fp32"))
    error, size = 0.0, 0.0
    for instruction, seen in watched(opened):
        chosen = []
        for policy in (small, full):
            policy.reset(instruction)
            chosen.append([policy.infer(o, prefix, n).positions - o.state.positions for o, prefix, n in seen])
        rounded, exact = (np.array(chunks) for chunks in chosen)
        error, size = error + float(((rounded - exact) ** 2).sum()), size + float((exact**2).sum())
    share = (error / size) ** 0.5
    yield row("int8_error", share, "of the actions' size", "float32", share, 0.02)


def watched(opened: bundle.Bundle) -> Iterator[tuple[str, list[Decided]]]:
    """Instruction and decisions of a few tuning scenes, as the robot made them in lockstep."""
    infer = WorldActionModel.infer
    for scene in suite.tuning_scenes(SCENES):
        seen: list[Decided] = []

        def noted(policy: WorldActionModel, o: Observation, p: ActionPrefix, n: int, seen: Any = seen) -> Any:
            seen.append((o, p, n))
            return infer(policy, o, p, n)

        WorldActionModel.infer = noted  # type: ignore[method-assign]
        try:
            run_lockstep(ROBOT, opened, task=scene.task, seed=scene.seed, duration_s=SCENE_S, lean=True)
        finally:
            WorldActionModel.infer = infer  # type: ignore[method-assign]
        yield seen[0][0].instruction, seen
