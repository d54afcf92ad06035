"""Training data from the simulator: `python -m dzedge.export.data --out data --seed 1`.

Writes LeRobotDataset v3 parts, `data/robot-000`, ... and `data/marker-000`, ..., 10 frames a second. Beside the
format's own columns a frame has:

    observation.images.front   (120, 160, 3) uint8, in the part's mp4: RGB at time t
    observation.state  (6,)    measured joint positions at t [rad], gripper 0..1
    action             (6,)    the expert's target for t + 0.1 s, absolute [rad]: the label
    acts               (1,)    False: a video without actions; its state and action are zeros
    disturbed          (1,)    the arm was told something else than the label: keep windows off such steps
    embodiment         (1,)    0 the arm, 1 a hand that reaches in (marker parts)
    scene              (1,)    the world's seed; all above 1 000 000, evaluation uses seeds below
    truth.arm          (10,)   tip xyz, wrist xyz, elbow xyz [m], gripper 0..1, at t: for the tokenizer alone
    truth.cubes        (24,)   x, y, z [m], present, in the order of scene.COLOURS (absent: zeros): likewise

An episode's task is its instruction; play has none. Between two targets the command is interpolated linearly at
100 Hz, as the control loop feeds the servos; the servos trail it by about 50 ms. Held-out verb-colour pairs
(task.HELD_OUT) never appear, the motions of task.MOTIONS only as video. An episode whose expert failed is dropped.
"""

import argparse
import logging
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

from dzedge.export.dataset import Writer
from dzedge.export.footage import Lens
from dzedge.export.model.sizes import Sizes
from dzedge.hardware.sim import camera
from dzedge.hardware.sim.expert import STEP_S, Expert, Player, start_pose
from dzedge.hardware.sim.kinematics import points
from dzedge.hardware.sim.marker import MarkerWorld
from dzedge.hardware.sim.scene import COLOURS, JOINTS
from dzedge.hardware.sim.task import MOTIONS, VERBS, Judge, Task, sample_task
from dzedge.hardware.sim.world import World

log = logging.getLogger("dzedge.export.data")

Vector = NDArray[np.float64]
Steps = dict[str, list[Any]]

CAMERA = "observation.images.front"
IMAGE_WIDTH, IMAGE_HEIGHT = 96, 72
"""What the model sees of a frame."""
FPS = round(1.0 / STEP_S)
CONTROL_HZ = 100
FIRST_SCENE = 1_000_000
LABELLED, PLAY, VIDEO, MARKER = "labelled", "play", "video", "marker"
LONGEST = {LABELLED: 70, PLAY: 50, VIDEO: 60, MARKER: 60}
LABELLED_MIX = {"reach": 0.36, "press": 0.16, "push left": 0.16, "push right": 0.16, "pass": 0.16}
KINDS = {LABELLED: 0.47, PLAY: 0.17, VIDEO: 0.36}
BACKWARDS = 0.35
"""Share of motions that go round the other way; cubes are passed on either side alike."""
NOISY_SHARE, EVENT_CHANCE, EVENT_SPEED = 0.6, 0.05, 0.35
"""Share of labelled episodes with disturbances; their chance a step; their joint speed [rad/s]."""


def features() -> dict[str, dict[str, Any]]:
    """The columns of a part, as LeRobot describes features."""

    def row(dtype: str, names: list[str]) -> dict[str, Any]:
        return {"dtype": dtype, "shape": [len(names)], "names": names}

    places = [f"{part}.{axis}" for part in ("tip", "wrist", "elbow") for axis in "xyz"]
    cubes = [f"{colour}.{what}" for colour in COLOURS for what in ("x", "y", "z", "present")]
    return {
        CAMERA: {"dtype": "video"},
        "observation.state": row("float32", list(JOINTS)), "action": row("float32", list(JOINTS)),
        "acts": row("bool", ["acts"]), "disturbed": row("bool", ["disturbed"]),
        "embodiment": row("int64", ["embodiment"]), "scene": row("int64", ["scene"]),
        "truth.arm": row("float32", [*places, "gripper"]), "truth.cubes": row("float32", cubes),
    }  # fmt: skip


_LENS = Lens(Sizes())


def shrink(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A frame as the model sees it. Shape (120, 160, 3) -> Shape (72, 96, 3), see `Lens.shrink`."""
    return _LENS.shrink(image[None])[0]


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


@dataclass(frozen=True)
class Take:
    """One recorded episode. steps: column -> one row a step; images: one frame a step."""

    task: str
    steps: Steps
    images: list[NDArray[np.uint8]] = field(default_factory=list)

    def write(self, writer: Writer) -> int:
        """Into a part. Returns how many steps."""
        columns = {name: np.stack(rows) for name, rows in self.steps.items()}
        writer.add(columns, {CAMERA: np.stack(self.images)}, self.task)
        return len(self.images)


class Studio:
    """One world and camera that play episode after episode."""

    def __init__(self, world: World | None = None) -> None:
        self.world = world or World(0)
        self.camera = camera.Camera(self.world)
        self._number = 0

    def observe(self, take: Take) -> None:
        """The present moment into a take: picture and truth."""
        world = self.world
        take.images.append(self.camera.render(self._number)[0])
        self._number += 1
        joints = world.joints()
        truth = np.append(world.points().reshape(-1), joints[-1])
        _append(take.steps, **{"truth.arm": truth.astype(np.float32)})
        _append(take.steps, **{"truth.cubes": world.cubes().reshape(-1).astype(np.float32)})
        _append(take.steps, **{"observation.state": joints.astype(np.float32)})

    def execute(self, before: Vector, command: Vector) -> None:
        """Lead the servos from one command to the next as the control loop does."""
        ticks = round(CONTROL_HZ * STEP_S)
        for tick in range(1, ticks + 1):
            self.world.set_goal(before + (command - before) * (tick / ticks))
            self.world.step(1.0 / CONTROL_HZ)

    def play(self, kind: str, verb: str, seed: int) -> Take | None:
        """One episode; None where the scene does not fit or the expert failed."""
        rng = np.random.Generator(np.random.Philox(key=[seed, 0xDA7A]))
        world = self.world
        command = start_pose(rng)
        world.reset(seed, command)
        split = {LABELLED: "seen", VIDEO: "novel", MARKER: "novel"}.get(kind)
        task = None if kind == PLAY else sample_task(seed, world, verb, split)
        if task is None and kind != PLAY:
            return None
        take = Take(task.instruction if task else "", {})
        turn = -1 if rng.random() < (0.5 if verb == "pass" else BACKWARDS) else 1
        if kind == MARKER and task is not None:
            self._wave_hand(take, Expert(task, command, turn), command)
        else:
            done = self._move_arm(take, task, turn, command, rng)
            if not done:
                return None
        acts = kind in (LABELLED, PLAY)
        for _ in take.images:
            _append(take.steps, acts=[acts], embodiment=[int(kind == MARKER)], scene=[seed])
        if not acts:
            for name in ("observation.state", "action"):
                take.steps[name] = [np.zeros_like(row) for row in take.steps[name]]
        return take

    def _move_arm(self, take: Take, task: Task | None, turn: int, command: Vector, rng: np.random.Generator) -> bool:
        """The arm by its expert, or aimlessly where there is no task. Returns whether the take is any good."""
        world = self.world
        labelled = task is not None and task.verb in VERBS
        expert, player = Expert(task, command, turn) if task else None, Player(rng, command)
        judge = Judge(task) if task else None
        disturbance = Disturbance(rng, labelled and rng.random() < NOISY_SHARE)
        tail = 12 if rng.random() < 0.25 else 5
        for _ in range(LONGEST[LABELLED if labelled else VIDEO if task else PLAY]):
            self.observe(take)
            if judge:
                judge.update(world.time, world.tip(), world.cubes())
            target = expert.next(command, world.cubes()) if expert else player.next(command)
            noise = disturbance.next()
            _append(take.steps, action=target.astype(np.float32), disturbed=[bool(noise.any())])
            if expert and labelled and expert.idle >= tail:
                break
            self.execute(command, target + noise)
            command = target + noise
        return not (labelled and judge and not judge.success and len(take.images) > 9)

    def _wave_hand(self, take: Take, expert: Expert, command: Vector) -> None:
        """The hand where the arm's tip would be."""
        world = self.world
        assert isinstance(world, MarkerWorld)
        for _ in range(LONGEST[MARKER]):
            world.set_tip(points(command)[0])
            mujoco.mj_forward(world.model, world.data)
            self.observe(take)
            command = expert.next(command, world.cubes())
            _append(take.steps, action=command.astype(np.float32), disturbed=[False])


def _append(steps: Steps, **values: Any) -> None:
    for name, value in values.items():
        steps.setdefault(name, []).append(value)


def make_part(root: Path, episodes: int, seed: int, part: int, marker: bool) -> tuple[str, int, int]:
    """One part with the fixed mix of kinds and verbs. Returns its name, its steps, and how many scenes were passed
    over."""
    studio = Studio(MarkerWorld() if marker else None)
    rng = np.random.Generator(np.random.Philox(key=[seed, part + 1000 * marker]))
    scene = FIRST_SCENE * seed + 10_000 * part + 500_000 * marker
    steps = dropped = 0
    with Writer(root, features(), FPS, "so101-sim", (camera.HEIGHT, camera.WIDTH)) as writer:
        for _ in range(episodes):
            scene += 1
            kind = MARKER if marker else str(rng.choice(list(KINDS), p=list(KINDS.values())))
            if kind == LABELLED:
                verb = str(rng.choice(VERBS, p=[LABELLED_MIX[v] for v in VERBS]))
            else:
                verb = str(rng.choice(MOTIONS))
            while (take := studio.play(kind, verb, scene)) is None:
                scene, dropped = scene + 1, dropped + 1
            steps += take.write(writer)
    return root.name, steps, dropped


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("data"))
    parser.add_argument("--episodes", type=int, default=2800, help="of the arm")
    parser.add_argument("--marker", type=int, default=400, help="episodes of the hand")
    parser.add_argument("--per-part", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1, help="1 or more; scenes start at seed million")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    options.out.mkdir(parents=True, exist_ok=True)
    wanted = [(name, count, i) for name, count in (("robot", options.episodes), ("marker", options.marker))
              for i in range(-(-count // options.per_part))]  # fmt: skip
    with ProcessPoolExecutor(options.workers) as pool:
        jobs = [
            pool.submit(make_part, options.out / f"{name}-{i:03d}", min(options.per_part, count - i * options.per_part),
                        options.seed, i, name == "marker")
            for name, count, i in wanted
        ]  # fmt: skip
        for done, job in enumerate(jobs, 1):
            name, steps, dropped = job.result()
            log.info("%s: %d steps, %d scenes passed over (%d of %d)", name, steps, dropped, done, len(jobs))


if __name__ == "__main__":
    main()
