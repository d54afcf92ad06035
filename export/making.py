"""A bundle in the making: float graphs, quantized files, prompts, golden vectors, in a folder beside the old bundle.

Each step leaves the folder such that it can be packed, signed and opened as a robot does; `release` has the order.
"""

import logging
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray

from dzedge import bundle, suite
from dzedge.bundle import UNROLLED, Bundle, Section, Variant
from dzedge.config import default_path
from dzedge.config import load as load_robot
from dzedge.engine import Machine
from dzedge.errors import UsageError
from dzedge.export import (
    bounds,
    calibration,
    families,
    golden,
    judge,
    optim,
    parity,
    prompts,
    quantize,
    sampler_errors,
    sensitivity,
    unrolled,
)
from dzedge.export.calibration import Feeds
from dzedge.export.card import card
from dzedge.export.decisions import Decision, decide
from dzedge.export.model.graphs import Graph
from dzedge.export.model.latent import SCALE
from dzedge.export.model.wam import Wam
from dzedge.export.onnx import OPSET, export_all
from dzedge.export.package import Release, samplers_of, section
from dzedge.export.source import Source
from dzedge.export.torch_policy import Trained, torch_policy
from dzedge.hardware.sim import task as tasks
from dzedge.hardware.sim.scene import COLOURS
from dzedge.manifest import Precision
from dzedge.minisign import SecretKey

log = logging.getLogger("dzedge.export.making")

SIMULATED = Source().robot
SEEDS = (0, 1, 2)
"""Of the inputs that float graphs are compared on."""
SCENES, SECONDS = 24, 5.0
"""Tuning scenes that calibrate, and how long each is driven at most [s]."""
CALIBRATION, COMPARED = 128, 24
"""Recorded inputs of a graph that calibrate, and others that its quantized files are compared on."""
WATCHED = 8
"""Decisions whose inputs are held at a time, whole pairs."""
SAMPLED = 32
"""Fresh decisions that samplers are held against each other on."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What to make. version: grows with every release; created: wall time; precisions: beside fp32; text: whether the
    text graph goes along, or only what it makes of known instructions; unrolled: whether act.onnx does; limits: a table
    of bounds; sensitivity: forms of int8, as `quantize.INT8_FORMS`, that choose which layers compute in float; notes: a
    sentence for the card; pairs: of held-out decisions that it is judged on."""

    key: SecretKey
    version: int
    created: str
    precisions: tuple[Precision, ...] = ("fp32", "int8")
    opset: int = OPSET
    text: bool = True
    unrolled: bool = False
    limits: Path = bounds.DEFAULT
    sensitivity: tuple[str, ...] = ()
    notes: str = ""
    pairs: int = 64

    @property
    def quantized(self) -> list[Precision]:
        """Those that are made of the float files."""
        return [precision for precision in self.precisions if precision != "fp32"]


@contextmanager
def staged(out: Path) -> Iterator[Path]:
    """An empty folder beside `out` that takes its place where all went well; else it goes, and `out` is as it was."""
    folder, old = out.with_suffix(".staging"), out.with_suffix(".old")
    for left in (folder, old):
        shutil.rmtree(left, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
        if out.exists():
            out.rename(old)
        folder.rename(out)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@dataclass(slots=True)
class Making:
    """folder: where the files are; name: of the policy; cut: the graphs on the torch side; files: float ones by graph;
    variants: all files by graph; recipe: of int8; errors: of samplers, [rad]; report: what was measured so far."""

    trained: Trained
    wanted: Wanted
    folder: Path
    name: str
    cut: list[Graph] = field(default_factory=list)
    files: dict[str, Path] = field(default_factory=dict)
    variants: dict[str, list[Variant]] = field(default_factory=dict)
    recipe: quantize.Recipe = field(default_factory=quantize.Recipe)
    errors: dict[str, float] = field(default_factory=dict)
    report: dict[str, Any] = field(default_factory=dict)

    def section(self) -> Section:
        """The manifest's section of the files that there are by now."""
        trained, wanted = self.trained, self.wanted
        about = Release(
            self.name, wanted.version, trained.family, samplers_of(trained.family, trained.recipe),
            max_prefix=int(trained.recipe.get("max_prefix", 0)),
        )  # fmt: skip
        sizes, moments = trained.model.sizes, trained.moments
        return section(sizes, moments, about, self.variants, trained.source, self.errors, wanted.opset)

    def seal(self) -> Bundle:
        """Pack and sign what lies in the folder, and open it as a robot does."""
        bundle.pack(self.folder, self.section(), self.wanted.key, self.wanted.created, self.name)
        return bundle.open_bundle(self.folder, (self.wanted.key.public,), allow_test_key=True)

    def about(self) -> None:
        """Into the report: what is exported, by what."""
        trained, tokenizer = self.trained, self.trained.tokenizer
        self.report |= {
            "family": trained.family, "recipe": trained.recipe, "opset": self.wanted.opset,
            "parameters": {
                "trunk": optim.count(trained.model.parameters()),
                "encoder": optim.count(tokenizer.encoder.parameters()),
                "decoder": optim.count(tokenizer.decoder.parameters()),
            },
            "machine": {
                "isa": Machine.detect().isa, "onnxruntime": onnxruntime.__version__, "torch": torch.__version__,
            },
        }  # fmt: skip

    def graphs(self) -> None:
        """Every graph as a float32 file."""
        self.cut = families.cut(self.trained.model, self.trained.tokenizer, SEEDS[0])
        self.files = export_all(self.cut, self.folder, self.wanted.opset)
        self.variants = {
            name: [Variant(file=path.name, precision="fp32", ep="any", isa="any")] for name, path in self.files.items()
        }

    def unroll(self) -> None:
        """Besides, a whole chunk as one graph, for other programs. Raises UsageError for a family that has none."""
        trained = self.trained
        if not isinstance(trained.model, Wam):
            raise UsageError(f"--unrolled: family {trained.family} has no {UNROLLED}, only wam has; leave it out")
        unrolled.write(
            self.folder, trained.model, trained.tokenizer.encoder, trained.moments, opset=self.wanted.opset
        )

    def compare(self) -> None:
        """Float32 files with torch. Raises ParityError."""
        model, tokenizer = self.trained.model, self.trained.tokenizer
        cuts = [self.cut, *(families.cut(model, tokenizer, seed) for seed in SEEDS[1:])]
        graphs = [graph for cut in cuts for graph in cut]
        found = parity.worst(row for graph in graphs for row in parity.compare(graph, self.files[graph.name]))
        parity.require(found, parity.TOLERANCE)
        self.report["parity"] = {
            f"{row.graph}.{row.output}": {"relative": short(row.relative), "absolute": short(row.difference)}
            for row in found
        }

    def say(self, instructions: Iterable[str]) -> None:
        """What the text graph makes of known instructions; without `wanted.text` that is all that goes along of it."""
        trained, text = self.trained, self.files["text"]
        sizes, vocabulary = trained.model.sizes, trained.source.vocabulary
        self.report["prompts"] = prompts.write(self.folder, text, instructions, sizes.words, vocabulary)
        if not self.wanted.text:
            del self.files["text"], self.variants["text"]
            text.unlink()

    def choose_layers(
        self, opened: Bundle, decisions: Sequence[Decision], feeds: Feeds, bound: float, advance: Callable[[str], None]
    ) -> None:  # fmt: skip
        """Measure every layer in the int8 forms that are wanted so, and keep in float what breaks the bound.

        opened: the float32 bundle; decisions: others than it is judged on; bound: of action_share; advance: told of
        every layer. Raises UsageError where no choice keeps the bound.
        """
        chunks = decide(torch_policy(self.trained, decisions[0].camera, opened.manifest.dzedge.samplers[0]), decisions)
        for form in self.wanted.sensitivity:
            board = form == "s8s8"  # made for GPUs: here its arithmetic is computed in float
            found = sensitivity.sensitivity(
                self.files, feeds, lambda files: judge.share(judge.trial(opened, files), decisions, chunks, board),  # noqa: B023
                bound, form, self.recipe, on_layer=advance,
            )  # fmt: skip
            self.recipe = replace(self.recipe, keep=self.recipe.keep | found.keep)
            self.report.setdefault("sensitivity", {})[form] = found.document()

    def quantize(self, feeds: Feeds) -> None:
        """The files of the other precisions. feeds: recorded inputs by graph."""
        self.report["calibration"] = {name: len(rows) for name, rows in feeds.items() if name in self.files}
        for name, made in quantize.build(self.files, feeds, self.wanted.quantized, self.recipe).items():
            self.variants[name] += made

    def judge(self, opened: Bundle, decisions: Sequence[Decision], limits: bounds.Bounds) -> list[str]:
        """Every way to run the bundle against torch, and its golden vector. Returns a sentence for every bound that is
        broken. Raises ParityError where the vector's float32 files are far off."""
        trained, camera = self.trained, decisions[0].camera
        chunks = decide(torch_policy(trained, camera, opened.manifest.dzedge.samplers[0]), decisions)
        best = golden.pick(list(decisions))
        golden.write(self.folder, opened, decisions[best], chunks[best])
        feeds = watched(opened, decisions, COMPARED)
        tip = tip_mm if trained.model.sizes.structured else None
        judging = judge.Judge(opened, decisions, chunks, self.cut, feeds, self.folder, tip)
        costs = {}
        for way in judge.ways(opened, Machine.detect().isa):
            cost = costs[way] = judging.cost(way)
            log.info(
                "%s: actions %.3g %% off, worst %.3g rad at %s, step graphs %.2f of fp32",
                way.name, 100 * cost.action_share, cost.worst_rad, cost.worst_joint, cost.step_bytes,
            )  # fmt: skip
        self.report["decisions"] = len(decisions)
        self.report["precisions"] = judge.document({way.name: cost for way, cost in costs.items()})
        broken = (limits.broken(trained.family, w.precision, c.measured(), w.name) for w, c in costs.items())
        return [sentence for sentences in broken for sentence in sentences]

    def sample(self, opened: Bundle, decisions: Sequence[Decision]) -> None:
        """The error of every sampler."""
        fresh = [decision for decision in decisions if decision.fresh][:SAMPLED]
        self.errors = self.report["sampler_errors"] = sampler_errors.measure(opened, fresh)

    def document(self) -> None:
        """The card."""
        trained = self.trained
        self.report["bytes"] = {path.name: path.stat().st_size for path in sorted(self.folder.glob("*.onnx"))}
        structured = trained.model.sizes.structured
        said = card(trained.family, self.report, self.wanted.notes, trained.source.robot, structured)
        (self.folder / "README.md").write_text(said)


def instructions_of(roots: Iterable[Path], source: Source) -> list[str]:
    """Every instruction that is known: of the datasets, and for the simulated robot all that its judges know."""
    known = set(prompts.instructions_of(roots))
    if source.robot == SIMULATED:
        known |= {tasks.Task(verb, colour).instruction for verb in (*tasks.VERBS, *tasks.MOTIONS) for colour in COLOURS}
    return sorted(known)


def calibrating(opened: Bundle, decisions: Sequence[Decision]) -> Feeds:
    """What the graphs see, evenly over the sampler's times: while the bundle drives the simulated robot through tuning
    scenes, and while it decides on recorded observations, which have beginnings and commitments of every kind. For
    another robot there is no simulator here, only its recordings."""
    robot, section_of = load_robot(default_path()), opened.manifest.dzedge
    gathered: Feeds = defaultdict(list)
    if section_of.robot == SIMULATED and section_of.joints == robot.arm.names:
        for scene in suite.tuning_scenes(SCENES):  # thinned scene by scene: whole recordings fill gigabytes
            for name, rows in calibration.drive(robot, opened, [scene], SECONDS).items():
                gathered[name] += calibration.balanced(rows, 2 * CALIBRATION // SCENES)
    driven = {name: calibration.balanced(rows, CALIBRATION) for name, rows in gathered.items()}
    recorded = watched(opened, decisions, CALIBRATION)
    return {name: driven.get(name, []) + rows for name, rows in recorded.items()}


def watched(opened: Bundle, decisions: Sequence[Decision], most: int) -> Feeds:
    """What the float graphs see while they decide, at most so many of each graph, evenly over the decisions."""
    seen: Feeds = defaultdict(list)
    with calibration.recording() as now:
        policy = judge.policy_of(opened, judge.Way(), decisions[0].camera)
        for first in range(0, len(decisions), WATCHED):  # thinned as they come: a token is a run
            now.clear()  # first runs are on empty buffers
            part = decisions[first : first + WATCHED]
            decide(policy, part)
            for name, rows in now.items():
                seen[name] += calibration.balanced(rows, max(8, 2 * most * len(part) // len(decisions)))
    return {name: calibration.balanced(rows, most) for name, rows in seen.items()}


def tip_mm(difference: NDArray[np.float64]) -> float:
    """How far the arm's tip moves by a difference of latents that are things. Shape (K, C) -> [mm]."""
    return float(np.linalg.norm(difference[0, :3])) * SCALE * 1e3


def short(value: float) -> float:
    """To three digits."""
    return float(f"{value:.3g}")
