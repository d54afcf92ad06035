"""Where a policy's training data come from: what its bundle has to say again to the robot that runs it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dzedge.errors import UsageError
from dzedge.export import checkpoint
from dzedge.export.data import CAMERA
from dzedge.export.dataset import Dataset
from dzedge.export.model.sizes import Sizes
from dzedge.export.model.text import VOCABULARY, spelled, vocabulary_of
from dzedge.export.recipe import DataRecipe
from dzedge.hardware.sim.scene import JOINTS

FPS = (5, 60)
"""Frames a second that training reads."""
FULL_TURN = 2.0 * np.pi
"""A joint beyond this is not in radians."""
STATE, ACTION = "observation.state", "action"


@dataclass(frozen=True, slots=True)
class Source:
    """robot: its type; joints: names in order, a gripper last; camera: whose frames; units: of the joints, "rad" or
    "deg"; fps: of the dataset [Hz]; dt_ns: between actions; frame_dt_ns: between imagined frames, and back to the
    history frame; vocabulary: word -> id."""

    robot: str = "so101-sim"
    joints: tuple[str, ...] = JOINTS
    camera: str = CAMERA
    units: str = "rad"
    fps: float = 10.0
    dt_ns: int = 100_000_000
    frame_dt_ns: int = 200_000_000
    vocabulary: Mapping[str, int] = field(default_factory=lambda: dict(VOCABULARY))

    @property
    def action_steps(self) -> int:
        """Dataset steps between actions."""
        return round(self.dt_ns * self.fps / 1e9)

    @property
    def frame_steps(self) -> int:
        """Dataset steps between imagined frames."""
        return round(self.frame_dt_ns * self.fps / 1e9)

    def sized(self, sizes: Sizes) -> Sizes:
        """The sizes, with those that these data decide; structured ones are the simulator's, whatever comes."""
        if sizes.structured:
            return sizes
        return replace(sizes, joints=len(self.joints), vocabulary=len(self.vocabulary) + 1)

    def radians(self, rows: NDArray[np.float32], where: str) -> NDArray[np.float32]:
        """Joints as the runtime has them: radians, a gripper 0 to 1. Shape (N, J) -> (N, J).

        Raises UsageError for values beyond a full turn: they are in another unit.
        """
        scale = np.ones(len(self.joints), np.float32)
        if self.units == "deg":
            scale[:] = np.pi / 180.0
            if self.joints[-1] == "gripper":
                scale[-1] = 0.01
        scaled = rows if self.units == "rad" else rows * scale
        if np.abs(scaled).max(initial=0.0) > FULL_TURN:
            worst = int(np.abs(scaled).max(axis=0).argmax())
            span = f"{scaled[:, worst].min():.1f}..{scaled[:, worst].max():.1f}"
            raise UsageError(
                f"{where}: joint {self.joints[worst]} spans {span}, allowed -6.28..6.28 rad; record in degrees "
                '(LeRobot: use_degrees) and set units = "deg" in [data]'
            )
        return scaled

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "joints": list(self.joints), "vocabulary": dict(self.vocabulary)}

    @classmethod
    def from_json(cls, data: dict[str, Any] | None) -> "Source":
        """None: a checkpoint from before this was kept; its data were the simulator's."""
        return cls() if data is None else cls(**{**data, "joints": tuple(data["joints"])})

    @classmethod
    def load(cls, path: Path) -> "Source":
        """Of a policy's checkpoint. Raises UsageError."""
        return cls.from_json(checkpoint.load(path).get("source"))

    @classmethod
    def of(cls, paths: list[Path], recipe: DataRecipe, sizes: Sizes) -> "Source":
        """Of these datasets, which must agree. Raises UsageError naming the one that cannot be used, and why."""
        found = [(path, Dataset(path)) for path in dict.fromkeys(paths)]
        path, first = found[0]
        joints, camera = joints_of(first), camera_of(first, recipe.camera)
        for other, data in found[1:]:
            if (data.fps, joints_of(data)) != (first.fps, joints) or camera not in data.cameras:
                raise UsageError(
                    f"{other}: {data.fps} Hz, joints {', '.join(joints_of(data))}, cameras {', '.join(data.cameras)}: "
                    f"must be as {path}: {first.fps} Hz, {', '.join(joints)}, {camera}; train them apart"
                )
        tasks = sorted({task for _, data in found for task in data.tasks})
        longest = max((len(spelled(task)) for task in tasks), default=0)
        if longest > sizes.words:
            raise UsageError(f"{path}: a task of {longest} words, allowed 0..{sizes.words}: set words in [sizes]")
        if sizes.structured and len(joints) != sizes.joints:
            raise UsageError(f"{path}: {len(joints)} joints in {STATE}, the model has {sizes.joints}")
        return cls(
            robot=first.robot_type or "unknown", joints=joints, camera=camera, units=recipe.units, fps=float(first.fps),
            dt_ns=period("dt", recipe.dt, first.fps, path),
            frame_dt_ns=period("frame_dt", recipe.frame_dt, first.fps, path),
            vocabulary=dict(VOCABULARY) if sizes.structured else vocabulary_of(tasks),
        )  # fmt: skip


def camera_of(data: Dataset, wanted: str) -> str:
    """The camera to learn from: the one that is wanted, else the only one. Raises UsageError."""
    if wanted and wanted not in data.cameras:
        raise UsageError(f"{data.root}: no camera {wanted!r}; [data] camera must be one of {', '.join(data.cameras)}")
    if not wanted and len(data.cameras) != 1:
        known = ", ".join(data.cameras) or "none"
        raise UsageError(f"{data.root}: {len(data.cameras)} cameras ({known}); set camera in [data] to one of them")
    return wanted or data.cameras[0]


def joints_of(data: Dataset) -> tuple[str, ...]:
    """Names in the order of `observation.state`, as robot files have them: LeRobot's "elbow_flex.pos" is elbow_flex.

    Raises UsageError where state and action are not of the same joints.
    """
    for column in (STATE, ACTION):
        if column not in data.features:
            raise UsageError(f"{data.root}: no column {column!r}; training needs joints and commands")
    state, action = data.features[STATE], data.features[ACTION]
    if state.shape != action.shape or len(state.shape) != 1:
        raise UsageError(f"{data.root}: {STATE} {state.shape} and {ACTION} {action.shape} must be alike, Shape (J,)")
    names = state.names
    if isinstance(names, Mapping):  # {"motors": [...]}, as older recordings have it
        names = next(iter(names.values()), None)
    if not isinstance(names, list | tuple) or len(names) != state.shape[0]:
        return tuple(f"joint_{index}" for index in range(1, state.shape[0] + 1))
    return tuple(str(name).removesuffix(".pos") for name in names)


def period(name: str, seconds: float, fps: float, path: Path) -> int:
    """A recipe's time in nanoseconds, a whole number of the dataset's steps. Raises UsageError."""
    if not FPS[0] <= fps <= FPS[1]:
        raise UsageError(f"{path}: {fps} frames a second, allowed {FPS[0]}..{FPS[1]}; record or resample it so")
    steps = round(seconds * fps)
    if steps < 1 or abs(seconds * fps - steps) > 0.02:
        near = sorted({max(1, int(seconds * fps)) / fps, (int(seconds * fps) + 1) / fps})
        choices = " or ".join(f"{value:.4f}" for value in near)
        raise UsageError(f"{path}: [data] {name} = {seconds} s is no whole number of steps at {fps} Hz; set {choices}")
    return round(steps / fps * 1e9)
