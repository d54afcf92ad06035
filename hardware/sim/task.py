"""What the arm can be asked to do, in words, and who judges whether it was done.

Labelled verbs come with actions in the training data. The motions (circle, wave, zigzag, eight, swing) are seen
there only as video without actions: a policy that follows them has imagined its way there. Nine of the 30
labelled verb-colour pairs are never shown at all; they are the semantic split. Motions go round either way, and a
cube is passed on either side: both are right, their mean is not. Tolerances are fixed before any training.
"""

import re
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from dzedge.hardware.sim.scene import COLOURS, CUBE
from dzedge.hardware.sim.world import World

Vector = NDArray[np.float64]

VERBS = ("reach", "press", "push left", "push right", "pass")
MOTIONS = ("circle", "wave", "zigzag", "eight", "swing")
HELD_OUT = frozenset(
    {
        ("press", "red"), ("press", "yellow"), ("press", "cyan"),
        ("push left", "blue"), ("push left", "magenta"), ("push right", "green"), ("push right", "magenta"),
        ("pass", "green"), ("pass", "cyan"),
    }
)  # fmt: skip
"""Verb-colour pairs without any training data: the semantic split."""

HOVER = CUBE / 2 + 0.04
"""Height of the reach target and of the motions over a cube's centre [m]."""
TIMEOUT_S = 12.0
REACH_TOLERANCE = 0.03
PRESS_RADIUS, PRESS_HEIGHT = 0.03, 0.02
PUSH_RANGE, PUSH_LATERAL = (0.05, 0.14), 0.04
PASS_RADIUS = 0.075
"""Distance at which a cube is passed by [m]."""
PASS_START, PASS_END, PASS_ASIDE, PASS_LOW = (0.04, 0.12), (0.045, 0.12), 0.05, 0.07
PASS_TOUCH, PASS_CLEAR = 0.012, 0.03
"""A pass begins and ends that far beside the cube, at most that far off its line, never higher, moves it no
further, and comes no nearer to its middle: nearer is over it [m]."""
HOLD_S = 0.8
MOTION_WINDOW_S, MOTION_BOUND = 3.6, 0.5
SAMPLE_S = 0.1

PERIODS = {"circle": 2.4, "wave": 2.0, "zigzag": 3.6, "eight": 3.2, "swing": 2.0}
"""Seconds one round of each motion takes."""
TURNING = ("circle", "eight")
"""Motions that backwards are another path; backwards is as good."""


@dataclass(frozen=True, slots=True)
class Task:
    """A verb and the colour of the cube it is about."""

    verb: str
    colour: str

    @property
    def instruction(self) -> str:
        """The words: `reach the red cube`, `push the red cube left`, `circle over the red cube`."""
        if self.verb in MOTIONS:
            return f"{self.verb} over the {self.colour} cube"
        action, _, side = self.verb.partition(" ")
        return f"{action} the {self.colour} cube {side}".rstrip()

    @property
    def split(self) -> str:
        """`seen`, `semantic` (pair without training data) or `novel` (verb never shown with actions)."""
        if self.verb in MOTIONS:
            return "novel"
        return "semantic" if (self.verb, self.colour) in HELD_OUT else "seen"

    @property
    def cube(self) -> int:
        """Row of its cube in a cube array."""
        return COLOURS.index(self.colour)


TASKS = tuple(Task(verb, colour) for verb in VERBS + MOTIONS for colour in COLOURS)
_BY_INSTRUCTION = {task.instruction: task for task in TASKS}


def parse(instruction: str) -> Task | None:
    """The task of these words, or None: free text may be given to a policy, but only a known task can be
    judged."""
    return _BY_INSTRUCTION.get(" ".join(re.findall(r"[^\W_]+", instruction.lower())))


def sample_task(seed: int, world: World, verb: str = "reach", split: str | None = None) -> Task | None:
    """A task of that verb about one of the present cubes, drawn by the seed; None where the scene has no
    fitting one.

    split: only tasks of that split; a push also needs a free lane.
    """
    rng = np.random.Generator(np.random.Philox(key=[seed, 0x7A5C]))
    tasks = [Task(verb, COLOURS[c]) for c in sorted(world.layout.colours)]
    cubes = world.cubes()
    tasks = [t for t in tasks if (split is None or t.split == split) and lane_is_free(t, cubes)]
    return tasks[int(rng.integers(len(tasks)))] if tasks else None


def side(verb: str) -> float:
    """+1 for a push to the left (+y), -1 to the right, 0 for everything else."""
    return {"push left": 1.0, "push right": -1.0}.get(verb, 0.0)


def lane_is_free(task: Task, cubes: Vector) -> bool:
    """Whether a pushed or passed cube has room: no other cube in the way, and no place out of the arm's or camera's
    reach."""
    x, y = cubes[task.cube, :2]
    if task.verb == "pass":
        gap = cubes[:, :2] - (x, y)
        near = (gap[:, 0] ** 2 + gap[:, 1] ** 2 < (PASS_RADIUS + 0.055) ** 2) & (cubes[:, 3] > 0.0)
        return bool(near.sum() == 1 and abs(y) < 0.17 and x > 0.16)
    s = side(task.verb)
    if s == 0.0:
        return True
    for i, (u, v, _, present) in enumerate(cubes):
        if i != task.cube and present and abs(u - x) < 0.075 and -0.125 < s * (v - y) < 0.165:
            return False
    return bool(abs(y + 0.09 * s) < 0.22 and abs(y - 0.062 * s) < 0.24)


def motion(verb: str, phase: Vector) -> Vector:
    """Path of a motion about its centre. phase: Shape (n,), in rounds. Returns Shape (n, 3), [m]."""
    turn = 2.0 * np.pi * phase
    flat = np.zeros_like(turn)
    if verb == "circle":
        parts = 0.050 * np.cos(turn), 0.050 * np.sin(turn), flat
    elif verb == "wave":
        parts = flat, 0.060 * np.sin(turn), 0.025 * np.cos(2.0 * turn)
    elif verb == "zigzag":
        parts = 0.050 * _triangle(phase), 0.035 * _triangle(3.0 * phase), flat
    elif verb == "swing":
        parts = 0.055 * np.sin(turn), flat, -0.022 * np.cos(2.0 * turn)
    else:
        parts = 0.032 * np.sin(2.0 * turn), 0.055 * np.sin(turn), flat
    return np.stack(parts, axis=-1)


def _triangle(phase: Vector) -> Vector:
    """Triangle wave between -1 and 1, starting at 0 upwards."""
    return 4.0 * np.abs((phase + 0.75) % 1.0 - 0.5) - 1.0


def motion_error(verb: str, path: Vector) -> float:
    """How far a path is from a motion: RMS distance over the motion's own RMS, at the best phase, rate and direction.

    path: Shape (n, 3), [m], relative to the motion's centre, sampled every 0.1 s. Standing on the centre
    gives 1.
    """
    ideal, size = _ideals(verb, len(path))
    square = ((ideal - path) ** 2).sum(axis=-1).mean(axis=-1)
    return float(np.sqrt((square / size).min()))


@lru_cache(maxsize=64)
def _ideals(verb: str, count: int) -> tuple[Vector, Vector]:
    """A motion at each phase, rate and direction, Shape (phases, rates, count, 3), and its mean square: a judge asks
    for the same ones twice a second."""
    times = SAMPLE_S * np.arange(count)
    rates = np.linspace(0.7, 1.3, 13) / PERIODS[verb]
    if verb in TURNING:
        rates = np.concatenate([rates, -rates])
    phases = np.arange(48) / 48.0
    ideal = motion(verb, phases[:, None, None] + rates[None, :, None] * times)
    return ideal, (ideal**2).sum(axis=-1).mean(axis=-1)


class Judge:
    """Watches one task. `update` wants the truth, not what a policy believes.

    Reach: tip within 0.03 m (3-D) of 0.04 m above the cube's top for 0.8 s on end. Press: tip
    within 0.03 m sideways of the top's centre and less than 0.02 m above it, mean over 0.8 s. Push: cube
    displaced 0.05 to 0.14 m to that side, less than 0.04 m across, and at rest. Pass: from low on the cube's right to
    low on its left, never over it, and it has not moved. Motion: the last 3.6 s of the path over the cube match the
    named motion better than any other, with an error below half of standing still.
    """

    def __init__(self, task: Task) -> None:
        self.task = task
        self.success = False
        self.success_time: float | None = None
        self._times: list[float] = []
        self._tips: list[Vector] = []
        self._cubes: list[Vector] = []
        self._place: Vector | None = None

    def update(self, time: float, tip: Vector, cubes: Vector) -> bool:
        """Look once; anything closer than 0.1 s to the look before is skipped. Returns whether the task is
        done.

        time: [s]; tip: Shape (3,), [m]; cubes: Shape (6, 4) as `World.cubes`.
        """
        if self._times and time < self._times[-1] + SAMPLE_S - 1e-6:
            return self.success
        cube = np.array(cubes[self.task.cube, :3])
        if self._place is None:
            self._place = cube
        self._times.append(time)
        self._tips.append(np.array(tip))
        self._cubes.append(cube)
        if not self.success and self._now():
            self.success, self.success_time = True, time
        return self.success

    def _now(self) -> bool:
        count = round(HOLD_S / SAMPLE_S)
        if len(self._times) <= count:
            return False
        if self.task.verb in MOTIONS:
            return len(self._times) % 5 == 0 and self._moves_as_told()
        gap = np.array(self._tips[-count:]) - np.array(self._cubes[-count:])
        if self.task.verb == "reach":
            distance = np.sqrt((gap - (0.0, 0.0, HOVER)) ** 2 @ np.ones(3))
            return bool(distance.max() < REACH_TOLERANCE)
        if self.task.verb == "press":
            sideways = np.sqrt(gap[:, 0] ** 2 + gap[:, 1] ** 2).mean()
            return bool(sideways < PRESS_RADIUS and (gap[:, 2] - CUBE / 2).mean() < PRESS_HEIGHT)
        if self.task.verb == "pass":
            return self._passed()
        return self._pushed()

    def _pushed(self) -> bool:
        assert self._place is not None
        moved = self._cubes[-1] - self._place
        far = PUSH_RANGE[0] < side(self.task.verb) * moved[1] < PUSH_RANGE[1]
        still = np.abs(self._cubes[-1] - self._cubes[-5]).max() < 0.003
        return bool(far and still and abs(moved[0]) < PUSH_LATERAL)

    def _passed(self) -> bool:
        assert self._place is not None
        if np.abs(np.array(self._cubes)[:, :2] - self._place[:2]).max() > PASS_TOUCH:
            return False
        gap = np.array(self._tips) - self._place
        low = np.array(self._tips)[:, 2] < PASS_LOW
        beside = low & (np.abs(gap[:, 0]) < PASS_ASIDE)
        if not (beside[-1] and PASS_END[0] < gap[-1, 1] < PASS_END[1]):
            return False
        begun = np.flatnonzero(beside & (gap[:, 1] < -PASS_START[0]) & (gap[:, 1] > -PASS_START[1]))
        around = low & (np.hypot(gap[:, 0], gap[:, 1]) > PASS_CLEAR)
        return len(begun) > 0 and bool(around[begun[-1] :].all())

    def _moves_as_told(self) -> bool:
        count = round(MOTION_WINDOW_S / SAMPLE_S)
        if len(self._tips) < count:
            return False
        path = np.array(self._tips[-count:]) - np.array(self._cubes[-count:]) - (0.0, 0.0, HOVER)
        errors = {verb: motion_error(verb, path) for verb in MOTIONS}
        best = min(errors, key=lambda verb: errors[verb])
        return best == self.task.verb and errors[best] < MOTION_BOUND

    def measure(self) -> float:
        """One number to report: metres from the goal (reach, press), metres moved (push, pass), error (motion)."""
        if not self._times or self._place is None:
            return float("nan")
        gap = self._tips[-1] - self._cubes[-1]
        if self.task.verb in ("reach", "press"):
            height = HOVER if self.task.verb == "reach" else CUBE / 2
            return float(np.sqrt(((gap - (0.0, 0.0, height)) ** 2).sum()))
        if self.task.verb in MOTIONS:
            count = min(len(self._tips), round(MOTION_WINDOW_S / SAMPLE_S))
            path = np.array(self._tips[-count:]) - np.array(self._cubes[-count:]) - (0.0, 0.0, HOVER)
            return motion_error(self.task.verb, path)
        if self.task.verb == "pass":
            return float(np.abs(self._cubes[-1] - self._place)[:2].max())
        return float(side(self.task.verb) * (self._cubes[-1] - self._place)[1])
