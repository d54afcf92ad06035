"""Physics of the simulated table: servos that obey goal, speed and acceleration registers, and cubes that
are pushed.

Everything follows from the seed: two worlds of one seed that are told the same agree bit for bit.
"""

import math
from dataclasses import replace

import mujoco
import numpy as np
from numpy.typing import NDArray

from dzedge.hardware.sim import kinematics
from dzedge.hardware.sim.scene import (
    COLOURS,
    CUBE,
    CUBES_PER_SCENE,
    GEAR_DAMPING,
    GEAR_FRICTION,
    JOINTS,
    LOWER,
    RGB,
    SERVO_DAMPING,
    STALL_TORQUE,
    STIFFNESS,
    TIMESTEP,
    UPPER,
    Layout,
    draw_layout,
    mjcf,
)

Vector = NDArray[np.float64]

FREE_SPEED = 4.7
"""Speed of an unlimited servo [rad/s]: the STS3215's 45 rpm at its rated 7.4 V."""
HOME = kinematics.solve(np.array([0.19, 0.0, 0.17]))
"""Rest pose. Shape (6,), [rad]: hand in front of the base, 0.17 m above the table, gripper closed."""


class World:
    """A table, cubes and an arm with six servos.

    seed: which cubes lie where, how the light falls and where the camera stands, see `scene.draw_layout`; cubes: how
    many, 1 to 6; more: further bodies, as MJCF.
    """

    layout: Layout

    def __init__(self, seed: int = 0, cubes: int = CUBES_PER_SCENE, more: str = "") -> None:
        self.model = mujoco.MjModel.from_xml_string(mjcf(cubes, more))
        self.data = mujoco.MjData(self.model)
        self._cubes = cubes
        self._cube_geoms = np.array([self.model.geom(f"cube{i}").id for i in range(cubes)])
        self._cube_start = int(self.model.joint("cube0").qposadr[0])
        n = len(JOINTS)
        self._goal, self._reference, self._reference_velocity = np.zeros(n), np.zeros(n), np.zeros(n)
        self._speed, self._acceleration = np.zeros(n), np.zeros(n)
        self._unlimited = True
        self._torque = np.ones(n, dtype=bool)
        self.reset(seed)

    def reset(self, seed: int, joints: Vector | None = None) -> None:
        """A fresh scene of that seed, the arm at rest. joints: Shape (6,), [rad]; None: HOME."""
        start = HOME if joints is None else joints
        mujoco.mj_resetData(self.model, self.data)
        self.data.qpos[: len(JOINTS)] = start
        self._lay(draw_layout(seed, self._cubes))
        self._goal[:] = start
        self._reference[:] = start
        self._reference_velocity[:] = 0.0
        for joint in range(len(JOINTS)):
            self.set_profile(joint, 0.0, 0.0)
            self.set_torque(joint, True)
        self.data.ctrl[:] = start
        mujoco.mj_forward(self.model, self.data)

    def rearrange(self, seed: int) -> None:
        """New cubes and light while arm, servos, camera and time stay as they are: the next task on the same
        table."""
        self._lay(replace(draw_layout(seed, self._cubes, self.tip()), view=self.layout.view))
        mujoco.mj_forward(self.model, self.data)

    def _lay(self, layout: Layout) -> None:
        self.layout = layout
        for i, (x, y, yaw) in enumerate(layout.places):
            pose = (x, y, CUBE / 2, math.cos(yaw / 2), 0.0, 0.0, math.sin(yaw / 2))
            self.data.qpos[self._cube_start + 7 * i : self._cube_start + 7 * (i + 1)] = pose
            self.model.geom_rgba[self._cube_geoms[i], :3] = RGB[layout.colours[i]]
        self.data.qvel[len(JOINTS) :] = 0.0

    # ---- what the servos are told

    def set_goal(self, goal: Vector) -> None:
        """Goal positions of all servos. goal: Shape (6,), [rad], gripper 0..1; clipped to the joint
        limits."""
        np.clip(goal, LOWER, UPPER, out=self._goal)

    def set_joint_goal(self, joint: int, goal: float) -> None:
        """Goal position of one servo [rad]; clipped to its limits, as the servo itself does."""
        self._goal[joint] = min(max(goal, LOWER[joint]), UPPER[joint])

    def put_joint(self, joint: int, place: float) -> None:
        """A joint is somewhere else at once and at rest [rad], inside its limits: a hand has moved it."""
        self.data.qpos[joint] = min(max(place, LOWER[joint]), UPPER[joint])
        self.data.qvel[joint] = 0.0

    def set_profile(self, joint: int, speed: float, acceleration: float) -> None:
        """Goal speed [rad/s] and acceleration [rad/s^2] of one servo; 0 means as fast as it can."""
        self._speed[joint] = min(speed, FREE_SPEED) if speed > 0.0 else FREE_SPEED
        self._acceleration[joint] = acceleration if acceleration > 0.0 else math.inf
        self._unlimited = bool(np.isinf(self._acceleration).all())

    def set_torque(self, joint: int, on: bool) -> None:
        """Torque of one servo. Switched on, its ramp starts where the joint is, so nothing jumps."""
        if on and not self._torque[joint]:
            self._reference[joint] = self.data.qpos[joint]
            self._reference_velocity[joint] = 0.0
        self._torque[joint] = on
        self.model.actuator_gainprm[joint, 0] = STIFFNESS if on else 0.0
        self.model.actuator_biasprm[joint, 1:3] = (-STIFFNESS, -SERVO_DAMPING) if on else (0.0, -GEAR_DAMPING)
        self.model.dof_frictionloss[joint] = 0.0 if on else GEAR_FRICTION

    # ---- time

    def step(self, dt: float = TIMESTEP) -> None:
        """Advance by `dt` seconds, rounded to whole physics steps."""
        for _ in range(round(dt / TIMESTEP)):
            self._ramp()
            self.data.ctrl[:] = self._reference
            mujoco.mj_step(self.model, self.data)

    def _ramp(self) -> None:
        """Move the servos' inner set-points towards their goals under the speed and acceleration
        registers."""
        error = self._goal - self._reference
        if self._unlimited:
            bound = self._speed * TIMESTEP
            self._reference += np.minimum(np.maximum(error, -bound), bound)
            return
        acceleration = np.minimum(self._acceleration, 1e6)
        distance = np.abs(error)
        braking = np.sqrt(2.0 * acceleration * distance)
        bound = np.minimum(np.minimum(self._speed, braking), distance / TIMESTEP)
        change = acceleration * TIMESTEP
        wanted = np.copysign(bound, error)
        self._reference_velocity += np.clip(wanted - self._reference_velocity, -change, change)
        self._reference += self._reference_velocity * TIMESTEP

    @property
    def time(self) -> float:
        """Seconds since the reset."""
        return float(self.data.time)

    # ---- what can be measured

    def joints(self) -> Vector:
        """Joint positions. Shape (6,), [rad], gripper 0..1; a copy."""
        return np.array(self.data.qpos[: len(JOINTS)])

    def velocities(self) -> Vector:
        """Joint velocities. Shape (6,), [rad/s]; a copy."""
        return np.array(self.data.qvel[: len(JOINTS)])

    def load(self) -> Vector:
        """Share of the stall torque that each servo gives now. Shape (6,), -1..1."""
        return np.array(self.data.actuator_force[: len(JOINTS)] / STALL_TORQUE)

    def torque(self, joint: int) -> bool:
        """Whether that servo drives its joint."""
        return bool(self._torque[joint])

    def points(self) -> Vector:
        """Tip, wrist and elbow as the joints are now. Shape (3, 3), [m]."""
        return kinematics.points(self.data.qpos)

    def tip(self) -> Vector:
        """The gripper's tip. Shape (3,), [m]."""
        return np.array(self.points()[0])

    def cubes(self) -> Vector:
        """All colours' cubes: x, y, z [m] and 1, or zeros for a colour that is not in the scene. Shape (6,
        4)."""
        table = np.zeros((len(COLOURS), 4))
        poses = self.data.qpos[self._cube_start :].reshape(self._cubes, 7)
        for colour, pose in zip(self.layout.colours, poses, strict=True):
            table[colour, :3] = pose[:3]
            table[colour, 3] = 1.0
        return table

    def fingerprint(self) -> bytes:
        """The whole physical state, for comparing two runs bit by bit."""
        return b"".join(x.tobytes() for x in (self.data.qpos, self.data.qvel, self._reference))
