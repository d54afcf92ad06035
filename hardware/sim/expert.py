"""Scripted teachers: one joint command every 0.1 s, as a function of the command before, so that a disturbed
command is corrected instead of replayed.

An expert sees the cubes' true poses. It exists for training data and as the ceiling of the evaluation, never
on the policy's path.
"""

import math

import numpy as np
from numpy.typing import NDArray

from dzedge.hardware.sim.kinematics import points, solve
from dzedge.hardware.sim.scene import CUBE, LOWER, UPPER
from dzedge.hardware.sim.task import HOVER, MOTIONS, PASS_RADIUS, PERIODS, Task, motion, side

Vector = NDArray[np.float64]

STEP_S = 0.1
GAIN, SPEED, ACCELERATION = 2.8, 0.8, 3.2
"""Of a move between poses: share of the error per second [1/s], joint speed [rad/s], joint acceleration
[rad/s^2]."""
TRACK_SPEED = 1.5
"""Joint speed along a path [rad/s], at most."""
PUSH_BEHIND, PUSH_STROKE, PUSH_LOW, PUSH_RISE, PUSH_SPEED = 0.064, 0.128, 0.020, 0.020, 0.10
"""A push starts that far behind the cube's centre and strokes that far [m], rising all the while: its height
says how far the stroke has come, so that no memory is needed to end it."""
REST_HEIGHT = 0.12
"""Where the tip ends after a push or a pass [m]."""
PASS_HEIGHT, PASS_SPEED = 0.034, 0.16
"""Height of the tip beside a cube that it passes [m], and its speed there [m/s]."""


def follow(
    command: Vector, before: Vector, goal: Vector, gain: float, speed: float, acceleration: float
) -> Vector:
    """The next command of a straight joint-space move: all joints slow down together. Shapes (6,), [rad]."""
    velocity = (goal - command) * gain
    velocity *= min(1.0, speed / max(float(np.abs(velocity).max()), 1e-9))
    change = velocity - (command - before) / STEP_S
    change *= min(1.0, acceleration * STEP_S / max(float(np.abs(change).max()), 1e-9))
    return np.clip(command + (command - before) + change * STEP_S, LOWER, UPPER)


def track(command: Vector, place: Vector) -> Vector:
    """The next command with the tip at `place`, letting go of what the posture differs by. Shape (6,), [rad].

    Never faster than TRACK_SPEED: a disturbed tip may be where another posture is the natural one.
    """
    posture = command - solve(points(command)[0])
    change = solve(place) + 0.6 * posture - command
    change *= min(1.0, TRACK_SPEED * STEP_S / max(float(np.abs(change).max()), 1e-9))
    return np.clip(command + change, LOWER, UPPER)


class Expert:
    """The teacher of one task. command: Shape (6,), [rad], the arm's start; turn: +1 or -1, which way round a motion
    goes, and on which side a cube is passed: far from the base, or between cube and base."""

    def __init__(self, task: Task, command: Vector, turn: int = 1) -> None:
        self.task = task
        self.turn = turn
        self.idle = 0
        """Steps since there was nothing left to do."""
        self._before = command.copy()
        self._stage = 0
        self._start: Vector | None = None
        self._phase, self._rate = 0.0, 0.0

    def next(self, command: Vector, cubes: Vector) -> Vector:
        """The command to be reached 0.1 s from now.

        command: Shape (6,), [rad], what the arm was really told last; cubes: Shape (6, 4) as `World.cubes`.
        """
        cube = cubes[self.task.cube, :3]
        if self._start is None:
            self._start = cube.copy()
        if self.task.verb in MOTIONS:
            target = self._move_over(command, cube)
        elif self.task.verb == "pass":
            target = self._pass_by(command, self._start)
        elif side(self.task.verb) != 0.0:
            target = self._push(command, self._start)
        else:
            target = self._go_to(command, cube)
        still = np.abs(target - command).max() < 0.012 and self._finished(command)
        self.idle = self.idle + 1 if still else 0
        self._before = command.copy()
        return target

    def _finished(self, command: Vector) -> bool:
        return (side(self.task.verb) == 0.0 and self.task.verb != "pass") or self._stage == 3

    def _follow(self, command: Vector, place: Vector) -> Vector:
        momentum = command - self._before  # a disturbance gives more than the expert would want to keep
        momentum = momentum * min(1.0, SPEED * STEP_S / max(float(np.abs(momentum).max()), 1e-9))
        return follow(command, command - momentum, solve(place), GAIN, SPEED, ACCELERATION)

    def _go_to(self, command: Vector, cube: Vector) -> Vector:
        """Reach and press: come in from above, lower the nearer."""
        tip = points(command)[0]
        far = math.hypot(tip[0] - cube[0], tip[1] - cube[1])
        if self.task.verb == "reach":
            height = HOVER + min(0.04, 0.4 * max(0.0, far - 0.04))
        else:
            height = CUBE / 2 + 0.002 + min(0.06, 1.5 * max(0.0, far - 0.012))
        return self._follow(command, cube + (0.0, 0.0, height))

    def _push(self, command: Vector, start: Vector) -> Vector:
        """Beside the cube, down, along, up. start: Shape (3,), [m], the cube's place before the push."""
        s = side(self.task.verb)
        tip = points(command)[0]
        behind = np.array([start[0], start[1] - s * PUSH_BEHIND, 0.085])
        if self._stage == 0 and np.abs(tip - behind).max() < 0.02:
            self._stage = 1
        low = np.array([behind[0], behind[1], PUSH_LOW])
        if self._stage == 1 and tip[2] < PUSH_LOW + 0.008:
            self._stage = 2
        if self._stage == 2 and s * (tip[1] - behind[1]) > PUSH_STROKE - 0.004:
            self._stage = 3
        if self._stage == 0:
            far = math.hypot(tip[0] - behind[0], tip[1] - behind[1])
            return self._follow(command, behind + (0.0, 0.0, min(0.04, 0.4 * max(0.0, far - 0.05))))
        if self._stage == 1:
            return self._follow(command, low)
        if self._stage == 2:
            gone = min(s * (tip[1] - behind[1]) + PUSH_SPEED * STEP_S, PUSH_STROKE)
            height = PUSH_LOW + PUSH_RISE * gone / PUSH_STROKE
            x = tip[0] + 0.5 * (behind[0] - tip[0])
            return track(command, np.array([x, behind[1] + s * gone, height]))
        return self._follow(command, np.array([behind[0], behind[1] + s * (PUSH_STROKE - 0.01), REST_HEIGHT]))

    def _pass_by(self, command: Vector, start: Vector) -> Vector:
        """Down on the cube's right, round it on the side of `turn`, up on its left. start: Shape (3,), [m]."""
        tip = points(command)[0]
        right = np.array([start[0], start[1] - PASS_RADIUS, 0.085])
        if self._stage == 0 and np.abs(tip - right).max() < 0.02:
            self._stage = 1
        if self._stage == 1 and tip[2] < PASS_HEIGHT + 0.008:
            self._stage = 2
        angle = math.atan2(tip[0] - start[0], start[1] - tip[1]) * self.turn  # 0 on the right, pi on the left
        if self._stage == 2 and (angle > math.pi - 0.12 or angle < -2.0):
            self._stage = 3
        if self._stage == 0:
            far = math.hypot(tip[0] - right[0], tip[1] - right[1])
            return self._follow(command, right + (0.0, 0.0, min(0.04, 0.4 * max(0.0, far - 0.05))))
        if self._stage == 1:
            return self._follow(command, np.array([right[0], right[1], PASS_HEIGHT]))
        if self._stage == 2:
            gone = min(max(angle, 0.0) + PASS_SPEED * STEP_S / PASS_RADIUS, math.pi)
            x = start[0] + self.turn * PASS_RADIUS * math.sin(gone)
            return track(command, np.array([x, start[1] - PASS_RADIUS * math.cos(gone), PASS_HEIGHT]))
        return self._follow(command, np.array([start[0], start[1] + PASS_RADIUS, REST_HEIGHT]))

    def _move_over(self, command: Vector, cube: Vector) -> Vector:
        """A motion: to its starting point, then round and round, gathering speed over half a second."""
        centre = cube + (0.0, 0.0, HOVER)
        place = centre + motion(self.task.verb, np.array([self._phase]))[0]
        if self._stage == 0:
            if np.abs(points(command)[0] - place).max() > 0.02:
                return self._follow(command, place)
            self._stage = 1
        self._rate = min(1.0, self._rate + 0.25)
        self._phase += self.turn * self._rate * STEP_S / PERIODS[self.task.verb]
        return track(command, centre + motion(self.task.verb, np.array([self._phase]))[0])


class Player:
    """Aimless, smooth play over the whole workspace: ways between random places with random postures and
    speeds."""

    def __init__(self, rng: np.random.Generator, command: Vector) -> None:
        self._rng = rng
        self._before = command.copy()
        self._draw()

    def _draw(self) -> None:
        rng = self._rng
        height = (0.028, 0.09) if rng.random() < 0.6 else (0.09, 0.19)
        self._goal = random_pose(rng, (0.14, 0.32), 0.95, height)
        self._goal[3:] += rng.normal(0.0, (0.12, 0.25, 0.0))
        self._goal[5] = rng.uniform(0.0, 0.8) if rng.random() < 0.4 else 0.0
        self._goal = np.clip(self._goal, LOWER, UPPER)
        self._speed = rng.uniform(0.4, 1.5)
        self._left = int(rng.integers(5, 18))

    def next(self, command: Vector) -> Vector:
        """The command to be reached 0.1 s from now. command: Shape (6,), [rad], the one before."""
        self._left -= 1
        if self._left <= 0 or np.abs(self._goal - command)[:4].max() < 0.05:
            self._draw()
        target = follow(command, self._before, self._goal, 4.0, self._speed, 7.0)
        self._before = command.copy()
        return target


def random_pose(
    rng: np.random.Generator, radius: tuple[float, float], angle: float, height: tuple[float, float]
) -> Vector:
    """A pose with the tip anywhere in that ring sector and height range. Shape (6,), [rad]."""
    r, a = rng.uniform(*radius), rng.uniform(-angle, angle)
    return solve(np.array([r * math.cos(a), r * math.sin(a), rng.uniform(*height)]))


def start_pose(rng: np.random.Generator) -> Vector:
    """Where an episode begins: mostly about home, else anywhere over the table, as after another task."""
    if rng.random() < 0.5:
        pose = random_pose(rng, (0.15, 0.24), 0.5, (0.13, 0.19))
    else:
        pose = random_pose(rng, (0.15, 0.31), 0.85, (0.065, 0.16))
    pose[:5] += rng.normal(0.0, 0.03, 5)
    return np.clip(pose, LOWER, UPPER)
