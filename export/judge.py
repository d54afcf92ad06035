"""What each precision of a bundle costs: whole chunks on the real runtime against torch, from the same noise.

Errors are in physical units: radians at the joints, millimetres at the imagined tip. A bundle is judged as it lies
there, packed and signed; each way to run it gets a row.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from dzedge.bundle import Bundle
from dzedge.bundle import Graph as GraphFiles
from dzedge.engine import Machine
from dzedge.export import parity
from dzedge.export.calibration import Feeds
from dzedge.export.decisions import Decision, decide
from dzedge.export.model.graphs import Graph
from dzedge.manifest import Precision, Variant
from dzedge.policies import FAMILIES, BundledPolicy
from dzedge.types import ActionChunk

CPU = "cpu"
PAIRS, WARM = 60, 10
"""Interleaved timings of one chunk, and how many before them do not count."""


@dataclass(frozen=True, slots=True)
class Way:
    """One way to run a bundle: its files of one precision for one kind of processor, float32 where there are none.

    ep, isa: as in the manifest's variants; in_float: 8-bit arithmetic is computed in float, as a board rounds it.
    """

    precision: Precision = "fp32"
    ep: str = "any"
    isa: str = "any"
    in_float: bool = False

    @property
    def name(self) -> str:
        """`fp32`, `int8 (vnni or neon)`, `int8 (gpu, in float)`."""
        where = [] if self.isa == "any" else [self.isa.replace("|", " or ")]
        where += ["in float"] if self.in_float else []
        return f"{self.precision} ({', '.join(where)})" if where else self.precision

    def variant(self, graph: GraphFiles) -> Variant:
        """The file of a graph that this way runs."""
        for variant in graph.variants:
            if (variant.precision, variant.ep, variant.isa) == (self.precision, self.ep, self.isa):
                return variant
        return next(variant for variant in graph.variants if variant.precision == "fp32")

    def only(self, bundle: Bundle) -> Bundle:
        """The opened bundle with nothing but these files in its manifest, each said to be right anywhere."""
        section = bundle.manifest.dzedge
        chosen = {
            name: GraphFiles(variants=(Variant(file=self.variant(graph).file, precision="fp32", ep="any", isa="any"),))
            for name, graph in section.graphs.items()
        }
        manifest = msgspec.structs.replace(bundle.manifest, dzedge=msgspec.structs.replace(section, graphs=chosen))
        return replace(bundle, manifest=manifest)


def ways(bundle: Bundle, isa: str) -> list[Way]:
    """Every way to run a bundle by a CPU, fp32 first. isa: of this processor.

    Files for other processors or providers are run in float: a board's rounding, not its speed. Weights of 7 bits, for
    AVX2, are right on every x86, so they run as they are on one with VNNI too.
    """
    variants = [variant for graph in bundle.manifest.dzedge.graphs.values() for variant in graph.variants]
    found = [Way()]
    for precision, ep, kinds in dict.fromkeys((v.precision, v.ep, v.isa) for v in variants if v.precision != "fp32"):
        here = ep == "any" or CPU in ep.split("|")
        right = {"any", isa, *(("avx2",) if isa == "vnni" else ())} & set(kinds.split("|"))
        native = here and bool(right) and precision not in ("fp8", "nvfp4")
        found.append(Way(precision, ep, kinds, in_float=not native))
    return found


@dataclass(frozen=True, slots=True)
class Cost:
    """What one way costs. Keys and units as in bounds.toml, and besides: worst_graph: where `graph` is;
    action_mean: [rad]; worst_joint: where worst_rad is; imagined_rms: [latent units]; bytes: of all its files;
    chunk_ratio: time of a chunk by that of fp32, median of interleaved pairs on one thread, None where the arithmetic
    is not the real one."""

    graph: float
    worst_graph: str
    action_mean: float
    action_share: float
    worst_rad: float
    worst_joint: str
    imagined_rms: float | None
    imagined_mm: float | None
    bytes: int
    step_bytes: float
    chunk_ratio: float | None

    def measured(self) -> dict[str, Any]:
        """All of it by key, as `Bounds.broken` takes it."""
        return asdict(self)


Tip = Callable[[NDArray[np.float64]], float]
"""Distance [mm] of the tip that a difference of one frame's latents makes, Shape (K, C)."""


class Judge:
    """Judges the ways of one bundle. chunks: torch's answers to `decisions`; graphs: the torch side of each graph;
    feeds: recorded inputs of each; folder: where the bundle's files lie; tip: None where tokens are not things."""

    def __init__(
        self, bundle: Bundle, decisions: Sequence[Decision], chunks: Sequence[ActionChunk], graphs: Sequence[Graph],
        feeds: Feeds, folder: Path, tip: Tip | None,
    ) -> None:  # fmt: skip
        self.bundle, self.decisions, self.chunks, self.tip = bundle, decisions, chunks, tip
        self.graphs, self.feeds, self.folder = graphs, feeds, folder
        self._plain = policy_of(bundle, Way(), decisions[0].camera)

    def cost(self, way: Way) -> Cost:
        """Raises BundleError or PolicyError where the way cannot be run here."""
        policy = policy_of(self.bundle, way, self.decisions[0].camera)
        found = self._parity(way)
        worst = max(found, key=lambda p: np.nan_to_num(p.relative, nan=np.inf))
        ratio = 1.0 if way.precision == "fp32" else self._ratio(policy)
        return Cost(
            graph=worst.relative, worst_graph=f"{worst.graph}.{worst.output}",
            **self._actions(decide(policy, self.decisions)), **self._bytes(way),
            chunk_ratio=None if way.in_float else ratio,
        )  # fmt: skip

    def _parity(self, way: Way) -> list[parity.Parity]:
        files = {name: self.folder / way.variant(graph).file for name, graph in self._files.items()}
        return [
            found
            for graph in self.graphs
            if graph.name in files
            for found in parity.compare(graph, files[graph.name], self.feeds.get(graph.name, ()), way.in_float)
        ]

    @property
    def _files(self) -> Mapping[str, GraphFiles]:
        return self.bundle.manifest.dzedge.graphs

    def _actions(self, chunks: Sequence[ActionChunk]) -> dict[str, Any]:
        ours, torchs = (np.stack([chunk.positions for chunk in answers]) for answers in (chunks, self.chunks))
        held = np.stack([decision.observation.state.positions for decision in self.decisions])[:, None]
        miss, moved = np.abs(ours - torchs), torchs - held
        joint = int(miss.max(axis=(0, 1)).argmax())
        dreams = [a.imagined.astype(np.float64) - b.imagined for a, b in zip(chunks, self.chunks, strict=True)]
        dreams = [dream for dream in dreams if dream.size]
        return {
            "action_mean": float(miss.mean()), "worst_rad": float(miss.max()),
            "action_share": float(np.sqrt((miss**2).mean() / (moved**2).mean())),
            "worst_joint": self.bundle.manifest.dzedge.joints[joint],
            "imagined_rms": float(np.sqrt(np.mean(np.square(dreams)))) if dreams else None,
            "imagined_mm": float(np.mean([self.tip(dream[-1]) for dream in dreams])) if dreams and self.tip else None,
        }  # fmt: skip

    def _bytes(self, way: Way) -> dict[str, Any]:
        sizes = {entry.path: entry.size for entry in self.bundle.manifest.dzedge.files}
        step = {name: graph for name, graph in self._files.items() if name.endswith("_step")}

        def total(graphs: Mapping[str, GraphFiles], of: Way) -> int:
            return sum(sizes[of.variant(graph).file] for graph in graphs.values())

        return {"bytes": total(self._files, way), "step_bytes": total(step, way) / total(step, Way())}

    def _ratio(self, policy: BundledPolicy) -> float:
        both, ratios = (policy, self._plain), []
        for one in both:
            one.reset(self.decisions[0].observation.instruction)
        for number in range(WARM + PAIRS):
            decision = self.decisions[number % len(self.decisions)]
            spent = {}
            for one in both if number % 2 else both[::-1]:
                one.perception.forget()
                begun = time.perf_counter()
                one.infer(decision.observation, decision.prefix, number)
                spent[one] = time.perf_counter() - begun
            ratios.append(spent[policy] / spent[self._plain])
        return float(median(ratios[WARM:]))


def policy_of(bundle: Bundle, way: Way, camera: tuple[int, int], sampler: str = "auto") -> BundledPolicy:
    """The real runtime on one thread, run in one way. Raises BundleError or PolicyError."""
    machine = Machine(CPU, Machine.detect().isa, 1, in_float=way.in_float)
    family = FAMILIES[bundle.manifest.dzedge.family]
    return family(way.only(bundle), machine, camera=camera, precision="fp32", sampler=sampler)


def trial(bundle: Bundle, files: Mapping[str, Path]) -> Bundle:
    """The opened bundle with other files for its graphs, verified or not: to judge them before they are packed."""
    names = {name: f"{name}.trial.onnx" for name in files}
    variants = {name: Variant(file=file, precision="fp32", ep="any", isa="any") for name, file in names.items()}
    section = bundle.manifest.dzedge
    graphs = {**section.graphs, **{name: GraphFiles(variants=(variant,)) for name, variant in variants.items()}}
    manifest = msgspec.structs.replace(bundle.manifest, dzedge=msgspec.structs.replace(section, graphs=graphs))
    contents = {**bundle._contents, **{names[name]: path.read_bytes() for name, path in files.items()}}
    return replace(bundle, manifest=manifest, _contents=contents)


def share(
    bundle: Bundle, decisions: Sequence[Decision], chunks: Sequence[ActionChunk], in_float: bool = False
) -> float:  # fmt: skip
    """Root mean square of a bundle's difference to torch's `chunks`, by that of the actions. in_float: as `Way`."""
    ours = decide(policy_of(bundle, Way(in_float=in_float), decisions[0].camera), decisions)
    miss = np.stack([a.positions - b.positions for a, b in zip(ours, chunks, strict=True)])
    moved = [b.positions - d.observation.state.positions for b, d in zip(chunks, decisions, strict=True)]
    return float(np.sqrt((miss**2).mean() / np.square(moved).mean()))


def document(costs: Mapping[str, Cost]) -> dict[str, Any]:
    """Costs by way as plain values, floats to four digits."""
    return {name: {key: _short(value) for key, value in cost.measured().items()} for name, cost in costs.items()}


def _short(value: Any) -> Any:
    return float(f"{value:.4g}") if isinstance(value, float) else value
