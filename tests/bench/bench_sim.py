"""The simulator's cost in processor time, single thread, alternating slices of one run.

- sim.frame: a 160x120 RGB-D frame, against casting a ray through every pixel with `mj_multiRay` alone (no shading).
- sim.raycast: as sim.frame, but ours too casts everything anew, what never moves included; bar a third.
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
from dzedge.kernels.raycast import RayCaster

SCENES, FRAMES = 20, 10
FRAME_BAR, RAYCAST_BAR, LOAD_BUDGET = 0.5, 0.33, 0.4


def _frames() -> list[dict[str, object]]:
    world = World(0)
    camera = Camera(world)
    model, data = world.model, world.data
    caster = RayCaster(HEIGHT, WIDTH, FOCAL, model.geom_type, model.geom_size)
    caster.aim(EYE, pose())
    everything = np.arange(model.ngeom, dtype=np.int32)
    noise = np.zeros((HEIGHT * WIDTH, 3), np.float32)
    rgb, depth = np.empty((HEIGHT, WIDTH, 3), np.uint8), np.empty((HEIGHT, WIDTH), np.uint16)
    v, u = np.mgrid[0:HEIGHT, 0:WIDTH] + 0.5
    pixels = np.stack([(u - WIDTH / 2) / FOCAL, (v - HEIGHT / 2) / FOCAL, np.ones_like(u)], axis=-1).reshape(-1, 3)
    rays = (pixels / np.linalg.norm(pixels, axis=1, keepdims=True) @ pose().T).reshape(-1)
    n = WIDTH * HEIGHT
    ids, distance, normal = np.empty(n, np.int32), np.empty(n), np.empty(3 * n)
    ours, whole, rival = [], [], []
    for seed in range(SCENES):
        world.reset(seed, start_pose(np.random.default_rng(seed)))
        camera.render(0)  # the first frame of a scene paints its background
        layout = world.layout
        palette = (255.0 * np.concatenate([model.geom_rgba[:, :3], np.full((1, 3), 0.25)])).astype(np.float32)
        caster.relight(palette, layout.light, layout.ambient, layout.diffuse, (-0.16, 0.44, -0.42, 0.42))
        begin = time.process_time()
        for number in range(FRAMES):
            camera.render(number)
        between = time.process_time()
        for _ in range(FRAMES):
            mujoco.mj_multiRay(model, data, EYE, rays, None, True, -1, ids, distance, normal, n, 4.0)
        then = time.process_time()
        for _ in range(FRAMES):
            caster.cast(data.geom_xpos, data.geom_xmat, everything)
            caster.paint(noise, rgb, depth)
        ours.append((between - begin) / FRAMES)
        rival.append((then - between) / FRAMES)
        whole.append((time.process_time() - then) / FRAMES)
    other = 1e3 * float(np.median(rival))
    return [
        _row("sim.frame", 1e3 * float(np.median(ours)), other, FRAME_BAR),
        _row("sim.raycast", 1e3 * float(np.median(whole)), other, RAYCAST_BAR),
    ]


def _row(name: str, value: float, other: float, bar: float) -> dict[str, object]:
    return {
        "id": name, "value": value, "unit": "ms", "rival": other, "ratio": value / other, "bar": bar,
        "ok": value / other <= bar,
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
    return [*_frames(), _load()]
