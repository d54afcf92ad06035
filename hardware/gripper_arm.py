"""An arm whose last joint is a Modbus gripper on an adapter of its own."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dzedge.errors import DeviceError
from dzedge.hardware.arm import StopCategory
from dzedge.hardware.modbus_gripper import ModbusGripper
from dzedge.hardware.slow_cycle import WritableArm, narrowed
from dzedge.types import JointState

EVERY = 5
"""A gripper is talked to in every fifth cycle, or when it has a new goal: an exchange takes 5 ms and more."""
NEW_GOAL = 1 / 255
"""The least difference that a gripper's register knows."""


class GripperArm:
    """`arm` with a last joint more, as an `dzedge.hardware.slow_cycle.WritableArm`. names: of all joints.

    Its velocity is not measured and reported as 0. Both are always told to stop, whatever one of them says.
    """

    def __init__(self, arm: WritableArm, gripper: ModbusGripper, names: Sequence[str]) -> None:
        self.arm, self.gripper, self.names = arm, gripper, tuple(names)
        self._position = self._goal = 0.0
        self._cycles = 0
        self._silent = False

    @property
    def fd(self) -> int:
        return self.arm.fd

    @property
    def goal_ticks(self) -> NDArray[np.int32]:
        return np.empty(0, np.int32)

    def plan(self) -> None:
        """None: a slow tick writes."""

    def narrow(self, limits: NDArray[np.float64]) -> NDArray[np.float64]:
        """As `CyclePlan.narrow`; a gripper has its own."""
        return np.concatenate([narrowed(self.arm, limits[:, :-1]), limits[:, -1:]], axis=1)

    def open(self) -> None:
        self.arm.open()
        try:
            self.gripper.open()
        except BaseException:
            self.arm.close()
            raise

    def configure(self) -> None:
        self.arm.configure()
        self.gripper.read()

    def activate(self) -> JointState:
        """The gripper first: one that was not ready closes and opens by itself, the arm still being limp."""
        state = self.gripper.activate()
        self._position = self._goal = state.position
        return self._with_gripper(self.arm.activate())

    def read(self) -> JointState:
        state = self.arm.read()
        self._position = self.gripper.read().position
        return self._with_gripper(state)

    def write(self, positions: NDArray[np.float64]) -> JointState:
        """One cycle; errors as both have them. A gripper is asked once, for the next cycle is the repetition: three
        attempts would keep the arm waiting for 0.4 s. One that did not answer is asked in every cycle until it does."""
        state = self.arm.write(positions[:-1])
        goal = float(positions[-1])
        self._cycles += 1
        new = abs(goal - self._goal) >= NEW_GOAL
        if new or self._silent or self._cycles % EVERY == 0:
            self._silent = True
            answer = self.gripper.write(goal, attempts=1) if new else self.gripper.read(attempts=1)
            self._position, self._silent = answer.position, False
            self._goal = goal if new else self._goal
        return self._with_gripper(state)

    def _with_gripper(self, state: JointState) -> JointState:
        positions, velocities = np.append(state.positions, self._position), np.append(state.velocities, 0.0)
        return JointState(positions, velocities, state.time_ns)

    def deactivate(self, category: StopCategory) -> None:
        failed = []
        for part in (self.arm, self.gripper):
            try:
                part.deactivate(category)
            except DeviceError as error:
                failed.append(error)
        if failed:
            raise type(failed[0])("; ".join(map(str, failed)))

    def close(self) -> None:
        self.arm.close()
        self.gripper.close()
