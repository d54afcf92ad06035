"""Still scenes for the tokenizer: arm and cubes anywhere they can be, one frame each, with where they are.

Frames of one episode look alike; unrelated stills teach a tokenizer more per second of training.
"""

from collections.abc import Callable
from pathlib import Path

import mujoco
import numpy as np
from numpy.typing import NDArray

from dzedge.export.data import IMAGE_HEIGHT, IMAGE_WIDTH, shrink
from dzedge.export.model.sizes import TOKEN_NAMES
from dzedge.hardware.sim import camera, kinematics, scene
from dzedge.hardware.sim.world import World

FloatArray = NDArray[np.float64]

FRAMES_PER_LIGHT = 4
"""Frames between two draws of light and colours: repainting the background costs as much as a frame."""


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


def labels(world: World) -> NDArray[np.float32]:
    """What a frame's tokens should say, in metres. Shape (K, C): arm (tip, wrist, elbow, gripper), then cubes."""
    table = np.zeros((len(TOKEN_NAMES), 10), dtype=np.float32)
    table[0, :9] = world.points().reshape(-1)
    table[0, 9] = world.joints()[-1]
    table[1:, :4] = world.cubes()
    return table


def generate(
    count: int, seed: int, progress: Callable[[int], None] = lambda done: None
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Seeded stills. Returns frames, Shape (N, 72, 96, 3), uint8, and labels, Shape (N, K, C), [m]."""
    rng = np.random.Generator(np.random.Philox(key=[seed, 0x571115]))
    world = World(seed)
    eye = camera.Camera(world)
    frames = np.empty((count, IMAGE_HEIGHT, IMAGE_WIDTH, 3), dtype=np.uint8)
    table = np.empty((count, len(TOKEN_NAMES), 10), dtype=np.float32)
    for index in range(count):
        pose = _pose(rng)
        if index % FRAMES_PER_LIGHT == 0:
            world.reset(int(rng.integers(1 << 31)), pose)
        else:
            world.data.qpos[: len(scene.JOINTS)] = pose
        _scatter(world, rng)
        mujoco.mj_forward(world.model, world.data)
        frames[index] = shrink(eye.render(int(rng.integers(1 << 20)))[0])
        table[index] = labels(world)
        progress(index + 1)
    return frames, table


def load_or_generate(path: Path, count: int, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Stills from a file that an earlier run left, else generated and kept there."""
    if path.exists():
        with np.load(path) as kept:
            if len(kept["frames"]) >= count:
                return kept["frames"][:count], kept["labels"][:count]
    frames, table = generate(count, seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, frames=frames, labels=table)
    return frames, table
