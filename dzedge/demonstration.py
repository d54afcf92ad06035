"""What a scripted expert does in a simulated scene and what the camera sees of it: the truth to hold a dream against.

The expert's steps, commands and camera are those of the training data, in scenes that training has not seen.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dzedge.clock import NS
from dzedge.errors import UsageError
from dzedge.hardware.sim.camera import NOISE, Camera
from dzedge.hardware.sim.expert import STEP_S, Expert, start_pose
from dzedge.hardware.sim.scene import CUBES_PER_SCENE
from dzedge.hardware.sim.task import Task, sample_task
from dzedge.hardware.sim.world import World
from dzedge.types import Frame, JointState, Observation

STEP_NS = round(STEP_S * NS)
CONTROL_HZ = 100
LONGEST = 68
"""Steps of a demonstration: six seconds, and what a dream of 0.8 s at their end is held against."""
TAIL = 8
"""Steps that the camera goes on after the expert has nothing left to do."""
END_OF_EVALUATION = 500_000
"""Scenes from here on belong to tuning and training."""


@dataclass(frozen=True)
class Demonstration:
    """One task in one scene, a step every 0.1 s.

    frames: n of them, captured one step apart; joints, velocities, commands: Shape (n, J), [rad], [rad/s], [rad];
    commands[i] is the expert's target for one step after frame i; tips: Shape (n, 3), [m], where the gripper's tip was.
    """

    seed: int
    task: Task
    frames: tuple[Frame, ...]
    joints: NDArray[np.float64]
    velocities: NDArray[np.float64]
    commands: NDArray[np.float64]
    tips: NDArray[np.float64]

    def observation(self, step: int, history_ns: tuple[int, ...]) -> Observation:
        """What a policy would have been given at that step. history_ns: as `Policy.history_ns`; frames from before the
        beginning are left out."""
        wanted = (step - round(age_ns / STEP_NS) for age_ns in history_ns)
        frames = tuple(self.frames[i] for i in wanted if i >= 0)
        t_obs_ns = self.frames[step].capture_ns
        state = JointState(self.joints[step], self.velocities[step], t_obs_ns)
        return Observation(frames, state, t_obs_ns, self.task.instruction, 1)


class Theatre:
    """One world and camera in which expert after expert performs. cubes, noise: as in the robot file's [sim]."""

    def __init__(self, cubes: int = CUBES_PER_SCENE, noise: float = NOISE) -> None:
        self.world = World(0, cubes)
        self.camera = Camera(self.world, noise)
        self._now_ns = NS
        """Runs on from one demonstration to the next: no two frames are captured at the same time."""

    def perform(self, seed: int, verb: str, split: str) -> Demonstration | None:
        """The expert's way of doing a task of that verb and split, drawn by the scene's seed; None where the scene has
        no fitting cube. The same for the same arguments, but for the frames' capture times.

        Raises UsageError for a scene of tuning or training.
        """
        if not 0 <= seed < END_OF_EVALUATION:
            raise UsageError(f"scene {seed}: must be 0 to {END_OF_EVALUATION - 1}; those above are for training")
        rng = np.random.Generator(np.random.Philox(key=[seed, 0xDE30]))
        command, turn = start_pose(rng), 1 if rng.random() < 0.5 else -1
        self.world.reset(seed, command)
        task = sample_task(seed, self.world, verb, split)
        return None if task is None else self._film(seed, task, Expert(task, command, turn), command)

    def _film(self, seed: int, task: Task, expert: Expert, command: NDArray[np.float64]) -> Demonstration:
        world = self.world
        frames: list[Frame] = []
        rows: list[tuple[NDArray[np.float64], ...]] = []
        while len(frames) < LONGEST and expert.idle < TAIL:
            frames.append(self._frame(len(frames)))
            target = expert.next(command, world.cubes())
            rows.append((world.joints(), world.velocities(), target, world.tip()))
            self._lead(command, target)
            command = target
        self._now_ns += NS
        joints, velocities, commands, tips = (np.stack(column) for column in zip(*rows, strict=True))
        return Demonstration(seed, task, tuple(frames), joints, velocities, commands, tips)

    def _frame(self, number: int) -> Frame:
        self._now_ns += STEP_NS
        return Frame(self.camera.render(number)[0], number, self._now_ns, self._now_ns)

    def _lead(self, before: NDArray[np.float64], target: NDArray[np.float64]) -> None:
        """From one command to the next as the control loop leads the servos."""
        ticks = round(CONTROL_HZ * STEP_S)
        for tick in range(1, ticks + 1):
            self.world.set_goal(before + (target - before) * (tick / ticks))
            self.world.step(1.0 / CONTROL_HZ)
