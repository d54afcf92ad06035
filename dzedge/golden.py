"""Golden vectors: one recorded observation in the bundle, and the chunk that it must give, for each precision.

`golden.safetensors` holds what was seen (`frame.0`, `frame.1`, ..., newest last), `joints`, committed actions, and for
each key an answer: "positions.KEY", "imagined.KEY". A key names the arithmetic: `fp32` is torch's own answer; others,
such as `int8 vnni|neon|gpu`, are what those files gave on the machine that exported them.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dzedge import tensors
from dzedge.bundle import Bundle
from dzedge.engine import Machine, variants
from dzedge.errors import BundleError
from dzedge.policies import FAMILIES
from dzedge.policies.statistics import Floats
from dzedge.types import ActionChunk, ActionPrefix, Frame, JointState, Observation

FILE = "golden.safetensors"
PLAIN = "fp32"
NOTE = "golden"
"""The note that holds everything that is no array."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What is decided on. sampler: as in the manifest; seed, chunk_id: of the noise."""

    observation: Observation
    prefix: ActionPrefix
    sampler: str
    seed: int
    chunk_id: int


@dataclass(frozen=True, slots=True)
class Answer:
    """positions: Shape (H, J), [rad]; imagined: Shape (F, K, C); tolerance: largest difference of a joint at any step
    that is no fault [rad], of a gripper as part of its way."""

    positions: Floats
    imagined: NDArray[np.float32]
    tolerance: float


@dataclass(frozen=True, slots=True)
class Finding:
    """What a machine made of it. key: of the answer that it was held against; measured: whether that answer is of the
    very files that ran (else it is float32's); difference: the largest; first: step, joint and difference of the first
    that is too large, in the order of time."""

    key: str
    measured: bool
    tolerance: float
    difference: float
    first: tuple[int, str, float] | None

    @property
    def ok(self) -> bool:
        return self.first is None

    def __str__(self) -> str:
        against = self.key if self.measured else f"{PLAIN}, as there is no vector for {self.key}"
        if self.first is None:
            return f"golden vector ({against}): within {self.difference:.2g} rad, allowed 0..{self.tolerance:g}"
        step, joint, off = self.first
        return (
            f"golden vector ({against}): joint {joint} at step {step} is {off:.3g} rad off, allowed "
            f"0..{self.tolerance:g}; do not run this bundle here"
        )


class Golden:
    """The vectors of a bundle. Raises BundleError where it has none, or damaged ones."""

    def __init__(self, bundle: Bundle) -> None:
        if FILE not in {entry.path for entry in bundle.manifest.dzedge.files}:
            raise BundleError(f"{bundle.name}: no {FILE}; export the bundle with one")
        self._bundle = bundle
        found = tensors.read(bundle.read(FILE), f"{bundle.name}/{FILE}")
        try:
            self.asked, self.answers = decoded(found)
        except (KeyError, TypeError, ValueError) as error:
            raise BundleError(f"{bundle.name}/{FILE}: not a golden vector: {error!r}; export again") from error

    def check(self, machine: Machine, precision: str = "auto", tolerance: float | None = None) -> Finding:
        """Decide here, and compare. precision: as in the robot file; tolerance: instead of the vector's own, [rad].

        Raises BundleError, PolicyError where the bundle cannot run here.
        """
        key = key_of(self._bundle, machine, precision)
        answer = self.answers.get(key)
        measured = answer is not None
        # Files that were never measured may round otherwise, as much as others of their kind do against float32.
        allowed = tolerance if tolerance is not None else self._tolerance(key)
        expected = answer or self.answers[PLAIN]
        chunk = decide(self._bundle, self.asked, machine, precision)
        off = np.abs(chunk.positions - expected.positions)
        return Finding(key, measured, allowed, float(off.max()), self._first(off, allowed))

    def _tolerance(self, key: str) -> float:
        if key in self.answers:
            return self.answers[key].tolerance
        plain = self.answers[PLAIN]
        return max(
            [2.0 * float(np.abs(other.positions - plain.positions).max()) for other in self.answers.values()]
            + [100.0 * plain.tolerance]
        )

    def _first(self, off: Floats, allowed: float) -> tuple[int, str, float] | None:
        for step, joint in np.argwhere(~(off <= allowed)):
            return int(step), self._bundle.manifest.dzedge.joints[joint], float(off[step, joint])
        return None


def key_of(bundle: Bundle, machine: Machine, precision: str = "auto") -> str:
    """Names the arithmetic that a bundle runs with on a machine. Raises BundleError."""
    chosen = variants(bundle, precision, machine).values()
    kinds = sorted({f"{variant.precision} {variant.isa}" for variant in chosen if variant.precision != PLAIN})
    return ", ".join(kinds) or PLAIN


def decide(bundle: Bundle, asked: Asked, machine: Machine, precision: str = "auto") -> ActionChunk:
    """What the bundle's policy decides, from a fresh start. Raises BundleError, PolicyError."""
    height, width = asked.observation.frames[-1].image.shape[:2]
    policy = FAMILIES[bundle.manifest.dzedge.family](
        bundle, machine, (height, width), precision=precision, sampler=asked.sampler, seed=asked.seed
    )
    policy.reset(asked.observation.instruction)
    return policy.infer(asked.observation, asked.prefix, asked.chunk_id)


def encoded(asked: Asked, answers: Mapping[str, Answer]) -> bytes:
    """The file of a question and its answers."""
    seen = asked.observation
    arrays: dict[str, NDArray[Any]] = {f"frame.{i}": frame.image for i, frame in enumerate(seen.frames)}
    arrays |= {"joints": seen.state.positions, "prefix": asked.prefix.positions}
    for key, answer in answers.items():
        arrays |= {f"positions.{key}": answer.positions, f"imagined.{key}": answer.imagined}
    note = {
        "instruction": seen.instruction, "t_obs_ns": seen.t_obs_ns,
        "capture_ns": [frame.capture_ns for frame in seen.frames],
        "sampler": asked.sampler, "seed": asked.seed, "chunk_id": asked.chunk_id,
        "tolerance": {key: answer.tolerance for key, answer in answers.items()},
    }  # fmt: skip
    return tensors.write(arrays, {NOTE: json.dumps(note, sort_keys=True)})


def decoded(found: tensors.Tensors) -> tuple[Asked, dict[str, Answer]]:
    """The question and its answers. Raises KeyError, TypeError or ValueError where something is missing or wrong."""
    note, arrays = json.loads(found.notes[NOTE]), found.arrays
    frames = tuple(Frame(arrays[f"frame.{i}"].copy(), i, ns, ns) for i, ns in enumerate(note["capture_ns"]))
    joints, t_obs_ns = arrays["joints"], int(note["t_obs_ns"])
    state = JointState(joints, np.zeros_like(joints), t_obs_ns)
    seen = Observation(frames, state, t_obs_ns, str(note["instruction"]), 0)
    asked = Asked(seen, ActionPrefix(arrays["prefix"]), note["sampler"], int(note["seed"]), int(note["chunk_id"]))
    answers = {
        key: Answer(arrays[f"positions.{key}"], arrays[f"imagined.{key}"], float(tolerance))
        for key, tolerance in note["tolerance"].items()
    }
    if answers[PLAIN].positions.shape[1] != len(joints) or not frames:
        raise ValueError("joints, frames and positions do not fit each other")
    return asked, answers
