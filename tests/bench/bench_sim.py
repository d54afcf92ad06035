"""The simulator's cost in processor time, single thread, alternating slices of one run.

- sim.frame: a 160x120 RGB-D frame, against casting a ray through every pixel with `mj_multiRay` alone (no shading).
- sim.load: share of one core of a whole simulated second (100 Hz bus writes, physics, 15 frames); bar 0.4 core.
"""

import math
import time

import mujoco
import numpy as np

from dzedge.clock import NS
from dzedge.hardware.sim.camera import EYE, FOCAL, HEIGHT, WIDTH, Camera, pose
from dzedge.hardware.sim.expert import start_pose
from dzedge.hardware.sim.process import SimulatedRobot
from dzedge.hardware.sim.world import World

SCENES, FRAMES = 20, 10
FRAME_BAR, LOAD_BUDGET = 0.5, 0.4


def _frame() -> dict[str, object]:
    world = World(0)
    camera = Camera(world)
    v, u = np.mgrid[0:HEIGHT, 0:WIDTH] + 0.5
    pixels = np.stack([(u - WIDTH / 2) / FOCAL, (v - HEIGHT / 2) / FOCAL, np.ones_like(u)], axis=-1).reshape(-1, 3)
    rays = (pixels / np.linalg.norm(pixels, axis=1, keepdims=True) @ pose().T).reshape(-1)
    n = WIDTH * HEIGHT
    ids, distance, normal = np.empty(n, np.int32), np.empty(n), np.empty(3 * n)
    ours, rival = [], []
    for seed in range(SCENES):
        world.reset(seed, start_pose(np.random.default_rng(seed)))
        camera.render(0)  # the first frame of a scene paints its background
        begin = time.process_time()
        for number in range(FRAMES):
            camera.render(number)
        between = time.process_time()
        for _ in range(FRAMES):
            mujoco.mj_multiRay(
                world.model, world.data, EYE, rays, None, True, -1, ids, distance, normal, n, 4.0
            )
        ours.append((between - begin) / FRAMES)
        rival.append((time.process_time() - between) / FRAMES)
    value, other = 1e3 * float(np.median(ours)), 1e3 * float(np.median(rival))
    return {
        "id": "sim.frame", "value": value, "unit": "ms", "rival": other, "ratio": value / other, "bar": FRAME_BAR,
        "ok": value / other <= FRAME_BAR,
    }  # fmt: skip


def _load() -> dict[str, object]:
    scale = [2 * math.pi / 4096] * 5 + [1 / 1138]
    robot = SimulatedRobot(1, [2048] * 6, scale, now_ns=0)
    shares = []
    for second in range(5):
        begin = time.process_time()
        frame = 0
        for tick in range(100):
            now_ns = second * NS + tick * NS // 100
            goal = 2048 + round(300 * math.sin(now_ns / NS))
            for servo in robot.servos[:5]:
                servo.write(42, goal.to_bytes(2, "little"))
            robot.step_to(now_ns)
            if tick >= frame * 100 / 15:
                frame += 1
                robot.render(now_ns)
        shares.append(time.process_time() - begin)
    value = float(np.median(shares))
    return {
        "id": "sim.load", "value": value, "unit": "core", "rival": LOAD_BUDGET, "ratio": value / LOAD_BUDGET,
        "bar": 1.0, "ok": value <= LOAD_BUDGET,
    }  # fmt: skip


def run() -> list[dict[str, object]]:
    """Rows of the benchmark table."""
    return [_frame(), _load()]
