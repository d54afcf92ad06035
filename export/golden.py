"""Writes a bundle's golden vectors: one recorded decision, torch's answer to it, and what each precision gives here."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from dzedge import golden
from dzedge.bundle import Bundle
from dzedge.engine import Machine
from dzedge.errors import BundleError
from dzedge.export.decisions import Decision
from dzedge.export.parity import ParityError
from dzedge.golden import Answer, Asked
from dzedge.types import ActionChunk

TOLERANCES: Mapping[str, float] = {"fp32": 2e-4, "fp16": 0.01, "w8": 0.01, "w4": 0.01}
"""Largest difference that is no fault, [rad], by precision. float32: ONNX Runtime's order of sums against torch's."""
ROUNDED = 0.02
"""The same where activations are rounded too: two right computations of one bundle's int8 (VNNI or AVX2, and the same
files in float) were up to 0.009 rad apart over 24 decisions, the same files on one and two threads 0.0016."""


def machines(isa: str) -> list[Machine]:
    """One thread of this processor, as each of the kinds whose arithmetic is right on it. isa: of it."""
    kinds = (isa, "avx2") if isa == "vnni" else (isa,)
    return [Machine("cpu", kind, 1) for kind in kinds]


def pick(decisions: list[Decision]) -> int:
    """The number of a decision that uses all there is: fresh, with an earlier frame, with committed actions."""

    def richness(number: int) -> tuple[bool, int, int]:
        decision = decisions[number]
        return decision.fresh, len(decision.observation.frames), min(1, len(decision.prefix.positions))

    return max(range(len(decisions)), key=richness)


def write(folder: Path, bundle: Bundle, decision: Decision, torchs: ActionChunk, seed: int = 0) -> Path:
    """Writes golden.safetensors into a bundle's folder (pack it again afterwards). Returns its path.

    bundle: opened, with the files of every precision; decision: a fresh one; torchs: torch's answer to it by the
    default sampler, with the noise of `seed` and of its own chunk_id. Raises ParityError where the float32 files do not
    give it.
    """
    section = bundle.manifest.dzedge
    asked = Asked(decision.observation, decision.prefix, section.samplers[0], seed, torchs.chunk_id)
    answers = {golden.PLAIN: Answer(torchs.positions, torchs.imagined, TOLERANCES[golden.PLAIN])}
    for precision in sorted({v.precision for graph in section.graphs.values() for v in graph.variants}):
        for machine in machines(Machine.detect().isa):
            try:
                key = golden.key_of(bundle, machine, precision)
            except BundleError:  # made for other processors or providers
                continue
            if key not in answers:
                chunk = golden.decide(bundle, asked, machine, precision)
                answers[key] = Answer(chunk.positions, chunk.imagined, TOLERANCES.get(precision, ROUNDED))
    plain = golden.decide(bundle, asked, machines(Machine.detect().isa)[0], golden.PLAIN)
    off = float(np.abs(plain.positions - torchs.positions).max())
    if not off <= TOLERANCES[golden.PLAIN]:
        raise ParityError(
            f"golden vector: the float32 files are {off:.3g} rad off torch, allowed 0..{TOLERANCES[golden.PLAIN]:g}: "
            "do not ship this export"
        )
    path = folder / golden.FILE
    path.write_bytes(golden.encoded(asked, answers))
    return path
