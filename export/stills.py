"""Still scenes for the tokenizer: arm or hand, and cubes, anywhere they can be, one frame each, with where they are.

Frames of one episode look alike; unrelated stills teach a tokenizer more per second of training.
"""

from dataclasses import dataclass
from pathlib import Path

import mujoco
import numpy as np
from numpy.typing import NDArray

from dzedge.export.data import FIRST_SCENE, IMAGE_HEIGHT, IMAGE_WIDTH, shrink
from dzedge.export.model.sizes import TOKEN_NAMES
from dzedge.hardware.sim import camera, kinematics, scene
from dzedge.hardware.sim.marker import MarkerWorld
from dzedge.hardware.sim.world import World

FloatArray = NDArray[np.float64]

FRAMES_PER_LIGHT = 4
"""Frames between two draws of light, colours and camera: repainting the background costs more than a frame."""
MARKER_SHARE = 0.15
"""Of the stills that show the hand."""


@dataclass(frozen=True, slots=True)
class Stills:
    """frames: Shape (N, 72, 96, 3), uint8; labels: Shape (N, K, C), [m]; views: Shape (N, 6), where the camera stood,
    as `scene.Layout.view`."""

    frames: NDArray[np.uint8]
    labels: NDArray[np.float32]
    views: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.frames)

    @classmethod
    def joined(cls, parts: "list[Stills]") -> "Stills":
        """All of them, one after the other."""
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in cls.__slots__))


def _pose(rng: np.random.Generator) -> FloatArray:
    """Joints: mostly what inverse kinematics gives for a place over the table, with every joint loosened."""
    radius, angle = rng.uniform(0.13, 0.36), rng.uniform(-1.1, 1.1)
    height = rng.uniform(0.01, 0.24) if rng.random() < 0.4 else rng.uniform(0.01, 0.10)
    joints = kinematics.solve(np.array([radius * np.cos(angle), radius * np.sin(angle), height]))
    spread = 0.15 if rng.random() < 0.7 else 0.02
    joints = joints + rng.normal(0.0, 1.0, joints.shape) * np.array([spread, spread, spread, spread, 0.1, 0.0])
    joints[-1] = rng.random() if rng.random() < 0.5 else 0.0
    return np.clip(joints, scene.LOWER, scene.UPPER)


def _scatter(world: World, rng: np.random.Generator) -> None:
    """Cubes where pushing may have left them: wider than a fresh layout, now and then under the hand."""
    start = int(world.model.joint("cube0").qposadr[0])
    poses = world.data.qpos[start:].reshape(scene.CUBES_PER_SCENE, 7)
    for cube in range(scene.CUBES_PER_SCENE):
        if rng.random() < 0.35:
            continue
        radius, angle = rng.uniform(0.12, 0.38), rng.uniform(-1.1, 1.1)
        if rng.random() < 0.25:
            tip = world.points()[0]
            x, y = tip[0] + rng.normal(0.0, 0.04), tip[1] + rng.normal(0.0, 0.04)
        else:
            x, y = radius * np.cos(angle), radius * np.sin(angle)
        others = np.delete(poses[:, :2], cube, axis=0)
        if (((others - (x, y)) ** 2).sum(axis=1) < (1.15 * scene.CUBE) ** 2).any():
            continue
        yaw = rng.uniform(-np.pi, np.pi)
        poses[cube] = (x, y, scene.CUBE / 2, np.cos(yaw / 2), 0.0, 0.0, np.sin(yaw / 2))


def tokens(arm: NDArray[np.float32], cubes: NDArray[np.float32]) -> NDArray[np.float32]:
    """What frames' tokens should say, in metres. arm: Shape (N, 10), tip, wrist, elbow and gripper; cubes: Shape
    (N, 24), x, y, z and presence of each colour. Returns Shape (N, K, C)."""
    table = np.zeros((len(arm), len(TOKEN_NAMES), 10), dtype=np.float32)
    table[:, 0] = arm
    table[:, 1:, :4] = cubes.reshape(len(cubes), -1, 4)
    return table


def _shoot(world: World, frames: NDArray[np.uint8], rng: np.random.Generator) -> tuple[FloatArray, FloatArray]:
    """Fill `frames` with stills of one world. Returns labels (N, K, C) and views (N, 6)."""
    eye = camera.Camera(world)
    table, views = np.empty((len(frames), len(TOKEN_NAMES), 10)), np.empty((len(frames), 6))
    for index in range(len(frames)):
        pose = _pose(rng)
        if index % FRAMES_PER_LIGHT == 0:
            world.reset(int(rng.integers(FIRST_SCENE, 1 << 31)), pose)
        else:
            world.data.qpos[: len(scene.JOINTS)] = pose
        if isinstance(world, MarkerWorld):
            world.set_tip(kinematics.points(pose)[0])
        _scatter(world, rng)
        mujoco.mj_forward(world.model, world.data)
        frames[index] = shrink(eye.render(int(rng.integers(1 << 20)))[0])
        arm = np.append(world.points().reshape(-1), world.joints()[-1])
        table[index] = tokens(arm[None].astype(np.float32), world.cubes().reshape(1, -1).astype(np.float32))[0]
        views[index] = world.layout.view
    return table, views


def generate(count: int, seed: int) -> Stills:
    """Seeded stills: arms, then hands."""
    rng = np.random.Generator(np.random.Philox(key=[seed, 0x571115]))
    frames = np.empty((count, IMAGE_HEIGHT, IMAGE_WIDTH, 3), dtype=np.uint8)
    hands = round(MARKER_SHARE * count)
    parts = [(World(seed), frames[hands:]), (MarkerWorld(seed), frames[:hands])]
    shot = [_shoot(world, part, rng) for world, part in reversed(parts)]
    labels, views = (np.concatenate([pair[i] for pair in shot]) for i in (0, 1))
    return Stills(frames, labels.astype(np.float32), views)


def load_or_generate(path: Path, count: int, seed: int) -> Stills:
    """Stills from a file that an earlier run left, else generated and kept there."""
    if not path.exists():
        made = generate(count, seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, frames=made.frames, labels=made.labels, views=made.views)
    with np.load(path) as kept:
        stills = Stills(kept["frames"], kept["labels"], kept["views"])
    return stills if len(stills) == count else _regenerated(path, count, seed)


def _regenerated(path: Path, count: int, seed: int) -> Stills:
    path.unlink()
    return load_or_generate(path, count, seed)
