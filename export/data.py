"""Training data from the simulator: `python -m dzedge.export.data --out data --seed 1`.

A shard is an uncompressed `.npz` of E episodes with N steps in all, one step every 0.1 s (10 Hz). Per step:

    images    (N, 72, 96, 3) uint8    RGB at time t, exact-area resize of the 160x120 frame (no crop)
    joints    (N, 6) float32          measured joint positions at t [rad], gripper 0..1
    commands  (N, 6) float32          the expert's target for t + 0.1 s, absolute [rad]: the label
    executed  (N, 6) float32          what the arm was told for t + 0.1 s (the label plus a disturbance)
    noised    (N,) bool               executed differs from commands: keep windows off such steps
    points    (N, 9) float32          tip xyz, wrist xyz, elbow xyz at t [m]
    gripper   (N,) float32            measured gripper at t
    cubes     (N, 6, 4) float32       x, y, z [m], present, in the order of scene.COLOURS (absent: zeros)

Per episode:

    offsets      (E + 1,) int64       episode e is the steps offsets[e] : offsets[e + 1]
    instruction  (E,) str             words; empty for play
    verb, colour (E,) str             scene/task names; empty for play
    kind         (E,) str             labelled | play | video
    has_action   (E,) bool            False for video: its joints, commands and executed are zeros
    scene_seed   (E,) int64           the world's seed; all above 1 000 000, evaluation uses seeds below

`executed[i - 1]` is what the arm was told for time t_i. Between two targets the command is interpolated
linearly at 100 Hz, as the control loop feeds the servos; the servos trail it by about 50 ms. Held-out
verb-colour pairs (task.HELD_OUT) never appear, the motions of task.MOTIONS only as video. An episode whose
expert failed is dropped.
"""

import argparse
import logging
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dzedge.hardware.sim.camera import HEIGHT, WIDTH, Camera
from dzedge.hardware.sim.expert import STEP_S, Expert, Player, start_pose
from dzedge.hardware.sim.scene import JOINTS
from dzedge.hardware.sim.task import MOTIONS, VERBS, Judge, sample_task
from dzedge.hardware.sim.world import World

log = logging.getLogger("dzedge.export.data")

Vector = NDArray[np.float64]

IMAGE_WIDTH, IMAGE_HEIGHT = 96, 72
CONTROL_HZ = 100
FIRST_SCENE = 1_000_000
LONGEST = {"labelled": 70, "play": 50, "video": 60}
LABELLED_MIX = {"reach": 0.46, "press": 0.18, "push left": 0.18, "push right": 0.18}
KINDS = {"labelled": 0.5, "play": 0.2, "video": 0.3}
NOISY_SHARE, EVENT_CHANCE, EVENT_SPEED = 0.6, 0.05, 0.35
"""Share of labelled episodes with disturbances; their chance a step; their joint speed [rad/s]."""


def area_weights(source: int, target: int) -> NDArray[np.float32]:
    """Share of each source pixel in each target pixel of an exact-area resize. Shape (target, source)."""
    edges = np.arange(target + 1) * (source / target)
    pixels = np.arange(source)
    overlap = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    weights: NDArray[np.float32] = (np.clip(overlap, 0.0, None) * (target / source)).astype(np.float32)
    return weights


_ROWS = area_weights(HEIGHT, IMAGE_HEIGHT)
_COLUMNS = area_weights(WIDTH, IMAGE_WIDTH)


def shrink(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Exact-area resize of a frame. image: Shape (120, 160, 3). Returns Shape (72, 96, 3), rounded to
    nearest."""
    rows = (_ROWS @ image.reshape(HEIGHT, -1).astype(np.float32)).reshape(IMAGE_HEIGHT, WIDTH, 3)
    return (_COLUMNS @ rows + 0.5).astype(np.uint8)


class Disturbance:
    """Now and then pushes the command away for a few steps; the labels then show the way back."""

    def __init__(self, rng: np.random.Generator, active: bool) -> None:
        self._rng, self._active, self._left = rng, active, 0
        self._velocity = np.zeros(len(JOINTS))

    def next(self) -> Vector:
        """What to add to this step's command. Shape (6,), [rad]."""
        if self._left == 0 and self._active and self._rng.random() < EVENT_CHANCE:
            self._left = int(self._rng.integers(2, 6))
            self._velocity[:5] = self._rng.normal(0.0, EVENT_SPEED, 5)
        if self._left == 0:
            return np.zeros(len(JOINTS))
        self._left -= 1
        return self._velocity * STEP_S


class Recorder:
    """Columns of one shard."""

    def __init__(self) -> None:
        self.steps: dict[str, list[Any]] = {}
        self.episodes: dict[str, list[object]] = {}
        self.offsets = [0]

    def add(self, steps: dict[str, list[Any]], **episode: object) -> None:
        for key, values in steps.items():
            self.steps.setdefault(key, []).append(np.stack(values))
        for key, value in episode.items():
            self.episodes.setdefault(key, []).append(value)
        self.offsets.append(self.offsets[-1] + len(steps["joints"]))

    def save(self, path: Path) -> None:
        columns: dict[str, Any] = {key: np.concatenate(values) for key, values in self.steps.items()}
        columns |= {key: np.array(values) for key, values in self.episodes.items()}
        columns["offsets"] = np.array(self.offsets, dtype=np.int64)
        partial = path.with_suffix(".partial.npz")
        np.savez(partial, allow_pickle=False, **columns)
        partial.replace(path)


class Studio:
    """One world and camera that play episode after episode."""

    def __init__(self) -> None:
        self.world = World(0)
        self.camera = Camera(self.world)
        self._number = 0

    def observe(self, steps: dict[str, list[Any]]) -> None:
        world = self.world
        rgb, _ = self.camera.render(self._number)
        self._number += 1
        joints = world.joints()
        steps["images"].append(shrink(rgb))
        steps["joints"].append(joints.astype(np.float32))
        steps["points"].append(world.points().reshape(-1).astype(np.float32))
        steps["gripper"].append(joints[-1].astype(np.float32))
        steps["cubes"].append(world.cubes().astype(np.float32))

    def execute(self, before: Vector, command: Vector) -> None:
        """Lead the servos from one command to the next as the control loop does."""
        ticks = round(CONTROL_HZ * STEP_S)
        for tick in range(1, ticks + 1):
            self.world.set_goal(before + (command - before) * (tick / ticks))
            self.world.step(1.0 / CONTROL_HZ)

    def play(self, kind: str, verb: str, seed: int, recorder: Recorder) -> bool:
        """One episode into the recorder; False, and nothing recorded, where the scene does not fit or it
        failed."""
        rng = np.random.Generator(np.random.Philox(key=[seed, 0xDA7A]))
        world = self.world
        command = start_pose(rng)
        world.reset(seed, command)
        split = {"labelled": "seen", "video": "novel"}.get(kind)
        task = None if kind == "play" else sample_task(seed, world, verb, split)
        if task is None and kind != "play":
            return False
        expert, player = Expert(task, command) if task else None, Player(rng, command)
        judge = Judge(task) if task else None
        disturbance = Disturbance(rng, kind == "labelled" and rng.random() < NOISY_SHARE)
        tail = 12 if rng.random() < 0.25 else 5
        names = ("images", "joints", "commands", "executed", "noised", "points", "gripper", "cubes")
        steps: dict[str, list[Any]] = {name: [] for name in names}
        for _ in range(LONGEST[kind]):
            self.observe(steps)
            if judge:
                judge.update(world.time, world.tip(), world.cubes())
            target = expert.next(command, world.cubes()) if expert else player.next(command)
            noise = disturbance.next()
            executed = target + noise
            steps["commands"].append(target.astype(np.float32))
            steps["executed"].append(executed.astype(np.float32))
            steps["noised"].append(noise.any())
            if expert and kind == "labelled" and expert.idle >= tail:
                break
            self.execute(command, executed)
            command = executed
        if kind == "labelled" and judge and not judge.success and len(steps["joints"]) > 9:
            return False
        if kind == "video":
            for name in ("joints", "commands", "executed"):
                steps[name] = [np.zeros_like(value) for value in steps[name]]
        recorder.add(
            steps, instruction=task.instruction if task else "", verb=task.verb if task else "",
            colour=task.colour if task else "", kind=kind, has_action=kind != "video", scene_seed=seed,
        )  # fmt: skip
        return True


def make_shard(path: Path, episodes: int, seed: int, shard: int) -> tuple[str, int, int]:
    """One shard with the fixed mix of kinds and verbs. Returns its name, its steps, and how many episodes
    failed."""
    studio, recorder = Studio(), Recorder()
    rng = np.random.Generator(np.random.Philox(key=[seed, shard]))
    scene = FIRST_SCENE * seed + 100_000 * shard
    dropped = 0
    while len(recorder.offsets) <= episodes:
        scene += 1
        kind = str(rng.choice(list(KINDS), p=list(KINDS.values())))
        if kind == "labelled":
            verb = str(rng.choice(VERBS, p=[LABELLED_MIX[v] for v in VERBS]))
        else:
            verb = str(rng.choice(MOTIONS))
        tries = 0
        while not studio.play(kind, verb, scene, recorder):
            scene, tries = scene + 1, tries + 1
        dropped += tries
    recorder.save(path)
    return path.name, recorder.offsets[-1], dropped


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("data"))
    parser.add_argument("--episodes", type=int, default=2000)
    parser.add_argument("--per-shard", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1, help="1 or more; scenes start at seed million")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--prefix", default="shard")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    options.out.mkdir(parents=True, exist_ok=True)
    count = -(-options.episodes // options.per_shard)
    with ProcessPoolExecutor(options.workers) as pool:
        jobs = [
            pool.submit(make_shard, options.out / f"{options.prefix}{i:03d}.npz",
                        min(options.per_shard, options.episodes - i * options.per_shard), options.seed, i)
            for i in range(count)
        ]  # fmt: skip
        for done, job in enumerate(jobs, 1):
            name, steps, dropped = job.result()
            log.info("%s: %d steps, %d scenes passed over (%d of %d)", name, steps, dropped, done, count)


if __name__ == "__main__":
    main()
