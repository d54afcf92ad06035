"""What an arm is to the rest of dzedge, and the plan that a control tick executes for it."""

from dataclasses import dataclass, fields
from enum import IntEnum
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from dzedge.kernels.bus import BusCycle
from dzedge.types import JointState


class StopCategory(IntEnum):
    """Stops as IEC 60204-1 counts them. A software stop is no safety function: keep an emergency switch."""

    OFF = 0
    """Torque off at once: the arm drops."""
    STOP_THEN_OFF = 1
    """Come to rest, then torque off."""
    HOLD = 2
    """Come to rest and hold."""


@dataclass(frozen=True, slots=True)
class CyclePlan:
    """One bus cycle, compiled: frame templates, offsets, expected ids and lengths, deadlines. Arrays are
    `BusCycle`'s, where their shapes and units stand; wire_ns: time on the wire of a whole cycle without
    loss."""

    ids: NDArray[np.uint8]
    goal_frame: NDArray[np.uint8]
    offsets: NDArray[np.int32]
    requests: NDArray[np.uint8]
    data_length: int
    zero: NDArray[np.float64]
    scale: NDArray[np.float64]
    lower: NDArray[np.int32]
    upper: NDArray[np.int32]
    speed: NDArray[np.float64]
    travel: float
    budget_ns: int
    sample_delay_ns: int
    elapsed_max_ns: int
    echo: bool
    quiet_ns: int
    wire_ns: int

    def build(self) -> BusCycle:
        """The executable cycle; it only reads until it is seeded with the goals that the servos hold."""
        names = [field.name for field in fields(self) if field.name != "wire_ns"]
        return BusCycle(**{name: getattr(self, name) for name in names})

    def narrow(self, limits: NDArray[np.float64]) -> NDArray[np.float64]:
        """A copy of `limits`, Shape (5, J), rows velocity, acceleration, jerk, lower, upper, whose positions are no
        wider than the cycle's: a calibrated range may be narrower than the robot file's."""
        ends = np.sort((np.stack([self.lower, self.upper]) - self.zero) / self.scale, axis=0)
        result = limits.copy()
        # the ticks are rounded limits themselves: what lies within half a tick is the same
        half = 0.5 / np.abs(self.scale)
        result[3] = np.where(ends[0] > limits[3] + half, ends[0], limits[3])
        result[4] = np.where(ends[1] < limits[4] - half, ends[1], limits[4])
        return result


class Arm(Protocol):
    """A robot arm with J joints. Life: open, configure, activate, ... deactivate, close.

    names: of the joints, from the base outwards, a gripper last. Positions: Shape (J,), [rad], gripper 0
    closed to 1 open. All methods raise errors of the DeviceError branch that name port, servo, value and what
    to do.
    """

    names: tuple[str, ...]

    @property
    def fd(self) -> int:
        """Descriptor of the open port, for the cycle; -1 without one."""

    @property
    def goal_ticks(self) -> NDArray[np.int32]:
        """Shape (J,), [ticks]: the goals that the servos hold since activate, to seed the cycle with."""

    def open(self) -> None:
        """Open the port. Nothing moves, nothing is written."""

    def configure(self) -> None:
        """Check every servo; write settings that differ. Nothing moves."""

    def activate(self) -> JointState:
        """Torque on, without a jump; returns where the arm is held. SafetyError: refused, torque stays
        off."""

    def plan(self) -> CyclePlan | None:
        """The compiled cycle, or None where only `read` and a slow tick exist."""

    def read(self) -> JointState:
        """Measure all joints."""

    def deactivate(self, category: StopCategory) -> None:
        """Stop. Every servo is tried, whatever happens to the others; then BusError names those that
        failed."""

    def close(self) -> None:
        """Close the port; harmless when closed. Torque stays as it is."""
