"""The simulated robot as one object: physics, camera, servo registers and the judge, all moved by `now_ns`.

Lockstep calls it with the fake clock; the sim process calls it with the real one, its bus from a thread: only
`step_to` and the bus may be called from there, everything else belongs to the thread that renders.
"""

import threading
from collections.abc import Sequence
from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

from dzedge.clock import NS
from dzedge.hardware.sim import camera, task
from dzedge.hardware.sim.emulated_servo import SUPPLY_V
from dzedge.hardware.sim.emulator import make_bus, make_servos
from dzedge.hardware.sim.scene import CUBES_PER_SCENE, TIMESTEP
from dzedge.hardware.sim.world import World

STEP_NS = round(TIMESTEP * NS)
LONGEST_NS = 2 * NS
"""Time that is made up for at most: a simulator that was suspended goes on from where it was."""
SAG_V = 0.25
"""Drop of the supply when all torque of one servo is drawn [V]."""
LIMP = 0.3
"""A servo that may give less than this share of its torque drops its joint."""
ROOM_C, HEATING_C, HEATING_S = 28.0, 40.0, 300.0
"""Servo temperature: room, rise at full torque [degrees Celsius], time constant [s]."""


class SimulatedRobot:
    """An arm, its servo bus and its camera over one table.

    seed: of the scene; zero_ticks, scale: Shape (6,): position = (ticks - zero) * scale, in [rad], gripper
    0..1; ids: servo ids on the bus; noise: of the camera; now_ns: when time begins. protocol: "feetech" or
    "dynamixel"; models: of the servos, see `emulator.make_servos`. protect: servos watch load and heat and may switch
    themselves off (a Feetech then goes limp here, where a real one keeps its protective torque); line: more arguments
    of the bus.

    Attributes: world; servos; bus: bytes in, bytes out, stepping the physics to its own time; judge: of the
    task at hand, or None for words that no judge knows.
    """

    def __init__(
        self,
        seed: int,
        zero_ticks: Sequence[float],
        scale: Sequence[float],
        *,
        now_ns: int,
        ids: Sequence[int] = (1, 2, 3, 4, 5, 6),
        cubes: int = CUBES_PER_SCENE,
        noise: float = camera.NOISE,
        baud: int = 1_000_000,
        protocol: str = "feetech",
        models: Sequence[str] = (),
        protect: bool = False,
        **line: Any,
    ) -> None:
        self.world = World(seed, cubes)
        self.camera = camera.Camera(self.world, noise)
        self._cameras, self._noise = [self.camera], noise
        self.judge: task.Judge | None = None
        self._zero, self._scale = np.array(zero_ticks, float), np.array(scale, float)
        self._lock = threading.Lock()
        self._picture = mujoco.MjData(self.world.model)
        self._time_ns = now_ns
        self._heat = np.zeros(len(self._zero))
        ticks = np.rint(self.world.joints() / self._scale + self._zero)
        self.servos = make_servos(protocol, ids, [int(t) for t in ticks], seed, models, baud)
        self._protect = protect
        self._watched = self.servos if protocol == "dynamixel" else []
        self.bus = make_bus(protocol, self.servos, baud=baud, advance=self.step_to, seed=seed, **line)
        self._commanded: list[tuple[bool, int, int, int] | None] = [None] * len(self.servos)
        self._profiled: list[tuple[bool, int, int] | None] = [None] * len(self.servos)
        self._obey()

    # ---- time

    def step_to(self, now_ns: int) -> None:
        """Physics up to `now_ns` in whole steps of 2 ms, under what the servos were told before."""
        with self._lock:
            steps = (now_ns - self._time_ns) // STEP_NS
            if steps <= 0:
                return
            for servo in self._watched:
                servo.elapse(now_ns)
            self._give_way()
            self._obey()
            self._time_ns += steps * STEP_NS
            for _ in range(min(steps, LONGEST_NS // STEP_NS)):
                self.world.step()
            self._measure(steps * TIMESTEP)
            if self.judge is not None:
                self.judge.update(self._time_ns / NS, self.world.tip(), self.world.cubes())

    def _give_way(self) -> None:
        """Joints that somebody has pushed, see `EmulatedServo.push`."""
        for joint, servo in enumerate(self.servos):
            if servo.pushed is not None:
                place, servo.pushed = (servo.pushed - self._zero[joint]) * self._scale[joint], None
                self.world.put_joint(joint, place)

    def _obey(self) -> None:
        """Registers to physics, where one has changed."""
        for joint, servo in enumerate(self.servos):
            torque = servo.torque_enabled and (not self._protect or servo.torque_share >= LIMP)
            told = torque, servo.goal_ticks, servo.goal_speed, servo.acceleration
            if told == self._commanded[joint]:
                continue
            self._commanded[joint] = told
            torque, goal, speed, acceleration = told
            unit = abs(self._scale[joint])
            self.world.set_joint_goal(joint, (goal - self._zero[joint]) * self._scale[joint])
            if (torque, speed, acceleration) != self._profiled[joint]:  # seldom, where a goal is new each tick
                self._profiled[joint] = torque, speed, acceleration
                self.world.set_profile(joint, speed * unit, acceleration * unit)
                self.world.set_torque(joint, torque)

    def _measure(self, elapsed: float) -> None:
        """Physics to registers."""
        world = self.world
        ticks = world.joints() / self._scale + self._zero
        speeds = world.velocities() / self._scale
        load = world.load() * np.sign(self._scale)
        self._heat += (HEATING_C * load**2 - self._heat) * min(elapsed / HEATING_S, 1.0)
        voltage = SUPPLY_V - SAG_V * float(np.abs(load).sum())
        for joint, servo in enumerate(self.servos):
            volts = voltage + (servo.supply_v - SUPPLY_V)
            servo.set_present(ticks[joint], speeds[joint], load[joint], volts, ROOM_C + self._heat[joint])
            if self._protect:
                servo.protect(elapsed)

    # ---- camera

    def render(self, now_ns: int, mount: int = 0) -> tuple[NDArray[np.uint8], NDArray[np.uint16]]:
        """RGB and depth at `now_ns`, see `Camera.render`. mount: which camera, see `camera.MOUNTS`. Physics may step on
        in another thread meanwhile."""
        while len(self._cameras) <= mount:
            self._cameras.append(camera.Camera(self.world, self._noise, len(self._cameras)))
        self.step_to(now_ns)
        with self._lock:
            mujoco.mj_copyData(self._picture, self.world.model, self.world.data)
        return self._cameras[mount].render(now_ns * camera.RATE_HZ // NS, self._picture)

    # ---- tasks

    def rearrange(self, seed: int) -> None:
        """The next scene: other cubes, other light, the arm where it is."""
        with self._lock:
            self.world.rearrange(seed)
            self.judge = None

    def default_instruction(self, seed: int) -> str:
        """What is asked in this scene when nobody asks for another thing."""
        chosen = task.sample_task(seed, self.world)
        assert chosen is not None  # every scene has a cube to reach
        return chosen.instruction

    def assign(self, instruction: str) -> bool:
        """Judge these words from now on. Returns whether they can be judged."""
        known = task.parse(instruction)
        with self._lock:
            self.judge = task.Judge(known) if known is not None else None
        return known is not None
