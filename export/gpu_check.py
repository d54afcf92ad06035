"""Is a GPU right, and how fast? `make gpu-check`: every graph whole on it, chunks against the CPU's, latencies.

Writes docs/results/gpu.json and gpu.md. Without a GPU it says so and why, and leaves figures from elsewhere alone.
"""

import json
import platform
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from dzedge import bundle as bundles
from dzedge import footprint
from dzedge.bundle import Bundle, Section, Variant
from dzedge.clock import MonotonicClock
from dzedge.engine import Machine, runtime
from dzedge.errors import DzedgeError
from dzedge.export import families, quantize, tokenizers
from dzedge.export.model.moments import Moments
from dzedge.export.model.sizes import Sizes
from dzedge.export.onnx import export_all
from dzedge.export.package import Release, section
from dzedge.minisign import SecretKey
from dzedge.policies import FAMILIES
from dzedge.session import fresh
from dzedge.types import ActionChunk, ActionPrefix, Frame, JointState, Observation

BAR = 1e-2
"""Largest difference of a chunk from the CPU's in fp32, relative to its largest move."""
ROUNDS, WARM = 100, 10
HEADING = (
    f"Untrained models from a seed, camera image to chunk, {ROUNDS} rounds. error: of a chunk against the CPU in fp32, "
    f"relative to its largest move; at most {BAR:g} is good, with every operator on the GPU."
)
NOT_SHOWN = (
    "**Not shown.** No GPU was at hand where this page was written: that the graphs run whole on CUDA or TensorRT,",
    f"how far a chunk is from the CPU's (bar: {BAR:g}) and how long it takes at nano, 0.1 B and 0.45 B parameters has",
    "not been measured. What was: the same buffers and the same checks with a CPU in the GPU's place",
    "(`tests/test_engine.py`, `tests/test_session.py`, `tests/test_gpu_check.py`). On a machine with a GPU and its",
    "build of ONNX Runtime the command above fills this page in, and fails where a bar is missed.",
)
CAMERA, STEP_NS = (120, 160), 200_000_000
PATCHES = dict(tokenizer="vae", cell=12, tokens=48, channels=16)
MODELS: Mapping[str, tuple[str, Sizes]] = {
    "wam nano": ("wam", Sizes()),
    "wam 0.1 B": ("wam", Sizes(width=640, layers=8, heads=10)),
    "wam 0.45 B": ("wam", Sizes(width=1024, layers=14, heads=16)),
    "wan_joint nano": ("wan_joint", Sizes(**PATCHES)),  # type: ignore[arg-type]
    "wan_joint 0.1 B": ("wan_joint", Sizes(width=768, layers=9, heads=12, **PATCHES)),  # type: ignore[arg-type]
    "wan_joint 0.45 B": ("wan_joint", Sizes(width=1280, layers=15, heads=20, **PATCHES)),  # type: ignore[arg-type]
}
"""Untrained, from seed 0: arithmetic and speed do not ask what a model has learned."""
TEST_SECRET = Path(__file__).with_name("test.key")


@dataclass(frozen=True, slots=True)
class Row:
    """One model in one precision by one provider. parameters: of the trunk; error: see BAR; p50_ms, p99_ms: camera
    image to chunk; elsewhere: operators that the provider does not run; failure: "" or why there are no figures."""

    model: str
    parameters: int
    provider: str
    precision: str
    cuda_graph: bool
    error: float | None = None
    p50_ms: float | None = None
    p99_ms: float | None = None
    elsewhere: tuple[str, ...] = ()
    failure: str = ""

    @property
    def good(self) -> bool:
        return not self.failure and not self.elsewhere and self.error is not None and self.error <= BAR


def obstacle(ep: str = "cuda") -> str:
    """Why nothing can be shown here; "" where a graph runs by the provider."""
    text = '<ir_version: 10, opset_import: ["": 20]> probe (float[1] x) => (float[1] y) { y = Neg(x) }'
    try:
        fresh("probe", onnx.parser.parse_model(text).SerializeToString(), Machine.detect(1, ep))
    except DzedgeError as error:
        return str(error)
    return ""


def build(name: str, folder: Path) -> tuple[Bundle, int]:
    """A model of the list as a bundle in fp32 and fp16, and how many parameters its trunk has."""
    family, sizes = MODELS[name]
    torch.manual_seed(0)
    moments, tokenizer = Moments.neutral(sizes), tokenizers.built(sizes)
    model = families.LEARNERS[family]().build(sizes, moments).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():  # what learning starts from zero would hide all that comes before it
                parameter.normal_(std=0.02)
    folder.mkdir()
    files = export_all(families.cut(model, tokenizer), folder)
    variants = quantize.build(files, {}, ("fp16",))
    for graph, path in files.items():
        variants[graph].insert(0, Variant(file=path.name, precision="fp32", ep="any", isa="any"))
    opened = sealed(folder, section(sizes, moments, Release("gpu-check", 1, family), variants))
    return opened, sum(parameter.numel() for parameter in model.parameters())


def sealed(folder: Path, described: Section) -> Bundle:
    """What lies in a folder as a bundle, signed with the test key."""
    secret = SecretKey.decode(TEST_SECRET.read_text(encoding="ascii"), str(TEST_SECRET))
    bundles.pack(folder, described, secret, "20261122T000000Z", "gpu-check")
    return bundles.open_bundle(folder, allow_test_key=True)


def check(name: str, opened: Bundle, parameters: int, ep: str, rounds: int = ROUNDS) -> list[Row]:
    """A bundle by a provider, in every float precision it has, against the CPU in fp32."""
    offered = {v.precision for graph in opened.manifest.dzedge.graphs.values() for v in graph.variants}
    (wanted,), _ = decide(opened, Machine.detect(0), "fp32", 1)
    rows = []
    for precision in ("fp32", "fp16"):
        for captured in (False, True) if ep != "cpu" else (False,):
            if precision in offered:
                row = Row(name, parameters, ep, precision, captured)
                rows.append(_measured(row, opened, Machine.detect(0, ep, captured), wanted, rounds))
    return rows


def decide(opened: Bundle, machine: Machine, precision: str, rounds: int) -> tuple[list[ActionChunk], list[float]]:
    """The same first chunk in each of `rounds` tasks after WARM others, and how long each took [ms]."""
    section, clock = opened.manifest.dzedge, MonotonicClock()
    policy = FAMILIES[section.family](opened, machine, camera=CAMERA, precision=precision, seed=0)
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (12, 16, 3), dtype=np.uint8).repeat(10, 0).repeat(10, 1) for _ in range(2)]
    frames = tuple(Frame(np.ascontiguousarray(image), n, 10**9 + n * STEP_NS, 0) for n, image in enumerate(images))
    joints = len(section.joints)
    state = JointState(np.linspace(-0.3, 0.3, joints), np.zeros(joints), frames[-1].capture_ns)
    observation = Observation(frames, state, frames[-1].capture_ns, "reach the red cube", 0)
    chunks, times = [], []
    for _ in range(WARM + rounds if rounds > 1 else 1):
        policy.reset("reach the red cube")
        policy.observe(frames[0])
        begun_ns = clock.now_ns()
        chunks.append(policy.infer(observation, ActionPrefix(np.zeros((0, joints))), 0))
        times.append((clock.now_ns() - begun_ns) / 1e6)
    return chunks[-rounds:], times[-rounds:]


def _measured(row: Row, opened: Bundle, machine: Machine, wanted: ActionChunk, rounds: int) -> Row:
    try:
        chunks, times = decide(opened, machine, row.precision, rounds)
        placed = footprint.measure(opened, row.precision, machine)
    except DzedgeError as error:
        return replace(row, failure=str(error))
    away = tuple(f"{one.graph}: {operator}" for one in placed for operator in one.elsewhere)
    worst = max(difference(chunk, wanted) for chunk in chunks)
    p50_ms, p99_ms = np.percentile(times, (50, 99))
    return replace(row, error=worst, p50_ms=float(p50_ms), p99_ms=float(p99_ms), elsewhere=away)


def difference(chunk: ActionChunk, wanted: ActionChunk) -> float:
    """Of actions and of imagined latents, the larger one, relative to the largest of each; nan counts as infinite."""

    def relative(one: NDArray[np.floating], other: NDArray[np.floating]) -> float:
        if not other.size:
            return 0.0
        found = float(np.abs(one - other).max() / np.ptp(other))
        return found if np.isfinite(found) else np.inf

    both = ((chunk.positions, wanted.positions), (chunk.imagined, wanted.imagined))
    return max(relative(np.asarray(one), np.asarray(other)) for one, other in both)


# ------------------------------------------------------------------------- page


def page(rows: list[Row], where: str, why_not: str) -> str:
    """docs/results/gpu.md. where: what the figures are of; why_not: "", or why there are none."""
    lines = ["# On a GPU", "", "    make gpu-check", ""]
    if why_not:
        return "\n".join([*lines, *NOT_SHOWN, "", f"The check's own words: {why_not}", ""])
    lines += [where, "", HEADING, ""]
    lines += ["| model | M parameters | provider | precision | CUDA graph | error | p50 [ms] | p99 [ms] | |"]
    lines += ["|---|---|---|---|---|---|---|---|---|"]
    for row in rows:
        figures = [f"{x:.3g}" if x is not None else "" for x in (row.error, row.p50_ms, row.p99_ms)]
        captured = "yes" if row.cuda_graph else "no"
        cells = [row.model, f"{row.parameters / 1e6:.4g}", row.provider, row.precision, captured]
        lines += [f"| {' | '.join([*cells, *figures])} | {'ok' if row.good else '**failed**'} |"]
    for row in rows:
        reasons = [row.failure] if row.failure else [f"elsewhere: {one}" for one in row.elsewhere]
        lines += [f"\n- {row.model}, {row.precision} by {row.provider}: {reason}" for reason in reasons]
    return "\n".join([*lines, ""])


def write(folder: Path, rows: list[Row], where: str, why_not: str = "") -> bool:
    """Write page and gpu.json. Without figures, those of another machine stay. Returns whether anything was written."""
    table = folder / "gpu.json"
    if why_not and table.exists():
        return False
    folder.mkdir(parents=True, exist_ok=True)
    if not why_not:
        told = {"where": where, "bar": BAR, "rows": [asdict(row) | {"ok": row.good} for row in rows]}
        table.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    (folder / "gpu.md").write_text(page(rows, where, why_not), encoding="utf-8")
    return True


def main(folder: Path = Path("docs/results")) -> int:
    """Exit code: 0 where all is good or nothing can be shown, 1 where a GPU is there and something is not."""
    if why := obstacle():
        written = write(folder, [], "", why)
        kept = "" if written else f"; {folder}/gpu.md keeps what was measured elsewhere"
        sys.stderr.write(f"gpu-check: not shown: {why}{kept}\n")
        return 0
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for number, name in enumerate(MODELS):
            opened, parameters = build(name, Path(scratch) / f"{number}.dzp")
            for ep in ("cuda", *(() if obstacle("tensorrt") else ("tensorrt",))):
                rows += check(name, opened, parameters, ep)
                sys.stderr.write(f"gpu-check: {name} by {ep}: done\n")
    where = f"{card()}, ONNX Runtime {runtime().__version__}, Python {platform.python_version()}."
    write(folder, rows, where)
    return 0 if all(row.good for row in rows) else 1


def card() -> str:
    """The GPU's name as its driver or its board gives it."""
    for file in (*sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")), Path("/proc/device-tree/model")):
        if file.exists():
            text = file.read_text(encoding="utf-8", errors="replace").strip("\0\n")
            return text.splitlines()[0].removeprefix("Model:").strip()
    return "a GPU without a name"


if __name__ == "__main__":
    sys.exit(main())
