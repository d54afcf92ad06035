"""What graphs see while the policy drives: recorded in closed loop, spread evenly over the sampler's times.

A quantizer learns the ranges of activations from it. Frames out of a dataset are not enough: a policy visits places of
its own, its window holds what it saw before, its prefix is what it committed to, and a step graph's activations depend
on how noisy its input is, so every time of the sampler must be there, and none more often than another.
"""

import contextlib
import io
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader

from dzedge import engine
from dzedge.bundle import Bundle
from dzedge.config import RobotConfig
from dzedge.lockstep import run_lockstep
from dzedge.suite import Scene

Feed = Mapping[str, NDArray[np.generic]]
Feeds = dict[str, list[Feed]]
TIMES = ("t_video", "t_action")
"""Inputs that say how noisy another input is."""


class Reader(CalibrationDataReader):
    """Recorded inputs of one graph, one after the other, as ONNX Runtime's calibrators take them."""

    def __init__(self, feeds: Iterable[Feed]) -> None:
        self._feeds: Iterator[Feed] = iter(feeds)

    def get_next(self) -> Feed | None:
        return next(self._feeds, None)


class _Watched:
    """A bound run that leaves a copy of its graph's inputs before it runs."""

    def __init__(self, graph: engine.Graph, bound: engine.Pass, seen: Feeds) -> None:
        self._graph, self._bound, self._seen = graph, bound, seen

    def run(self) -> None:
        self._seen[self._graph.name].append({name: array.copy() for name, array in self._graph.inputs.items()})
        self._bound.run()


@contextlib.contextmanager
def recording() -> Iterator[Feeds]:
    """Every input of every run of the graphs that are loaded inside it, by graph. First runs, which only allocate, are
    among them: `drive` drops them."""
    seen: Feeds = defaultdict(list)
    bind = engine.Graph.bind

    def watched(graph: engine.Graph, *outputs: str) -> engine.Pass:
        return _Watched(graph, bind(graph, *outputs), seen)  # type: ignore[return-value]

    engine.Graph.bind = watched  # type: ignore[method-assign, assignment]
    try:
        yield seen
    finally:
        engine.Graph.bind = bind  # type: ignore[method-assign]


def drive(config: RobotConfig, bundle: Bundle, scenes: Sequence[Scene], seconds: float = 6.0) -> Feeds:
    """What the graphs see while a bundle's float graphs drive the simulated robot through scenes, in lockstep.

    seconds: of each scene at most. Choose scenes for tuning (`suite.FIRST_TUNING_SCENE` on), never those of a test.
    """
    policy = msgspec.structs.replace(config.policy, precision="fp32", threads=1)
    plain = msgspec.structs.replace(config, policy=policy)
    gathered: Feeds = defaultdict(list)
    for scene in scenes:
        with recording() as seen:
            run_lockstep(plain, bundle, task=scene.task, seed=scene.seed, duration_s=seconds, lean=True)
        for name, feeds in seen.items():
            gathered[name] += feeds[1:]  # the first is the empty run that allocates
    return dict(gathered)


def inside(
    model: onnx.ModelProto, names: Sequence[str], feeds: Sequence[Feed]
) -> Iterator[dict[str, NDArray[np.generic]]]:  # fmt: skip
    """What intermediate tensors of a graph hold, recorded input by recorded input."""
    if not feeds or not names:
        return
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    watched.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = ort.InferenceSession(watched.SerializeToString(), options, providers=["CPUExecutionProvider"])
    for feed in feeds:
        yield dict(zip(names, session.run(list(names), dict(feed)), strict=True))


def time_of(feed: Feed) -> float | None:
    """The sampler's time of a recorded input, none for a graph that has none."""
    return next((float(feed[name][0]) for name in TIMES if name in feed), None)


def balanced(feeds: Sequence[Feed], count: int, seed: int = 0) -> list[Feed]:
    """At most `count` of one graph's feeds, the same number of every time, drawn evenly over the recording."""
    bins: dict[float | None, list[Feed]] = defaultdict(list)
    for feed in feeds:
        bins[time_of(feed)].append(feed)
    share = min(max(1, count // max(1, len(bins))), *(len(found) for found in bins.values())) if bins else 0
    rng = np.random.default_rng([seed, len(feeds)])
    chosen = []
    for time in sorted(bins, key=lambda t: -1.0 if t is None else t):
        chosen += [bins[time][i] for i in sorted(rng.choice(len(bins[time]), share, replace=False))]
    return chosen


def pack(feeds: Feeds) -> bytes:
    """Recorded inputs as one npz archive: an array a graph and input, the recordings along its first axis."""
    arrays = {
        f"{graph}/{name}": np.stack([feed[name] for feed in found])
        for graph, found in feeds.items()
        for name in (found[0] if found else ())
    }
    archive = io.BytesIO()
    np.savez_compressed(archive, **arrays)  # type: ignore[arg-type]
    return archive.getvalue()


def unpack(archive: bytes | Path) -> Feeds:
    """The reverse of `pack`."""
    source = io.BytesIO(archive) if isinstance(archive, bytes) else archive
    by_graph: dict[str, dict[str, NDArray[np.generic]]] = defaultdict(dict)
    with np.load(source, allow_pickle=False) as arrays:
        for key in arrays.files:
            graph, _, name = key.partition("/")
            by_graph[graph][name] = arrays[key]
    return {
        graph: [{name: array[i] for name, array in inputs.items()} for i in range(len(next(iter(inputs.values()))))]
        for graph, inputs in by_graph.items()
    }
