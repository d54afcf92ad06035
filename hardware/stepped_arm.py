"""An arm with a compiled cycle, one call at a time: for tools, and for arms that share a slow tick with another device.

The cycle is the control tick's own, so that what it refuses there (outside the limits, too large a step, not finite) it
refuses here.
"""

from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from dzedge.clock import MonotonicClock
from dzedge.errors import BusError, DeviceError, PortError, SafetyError
from dzedge.hardware.arm import Arm, StopCategory
from dzedge.hardware.control_table import explain_error
from dzedge.kernels.bus import BusCode, BusCycle
from dzedge.types import JointState

REFUSALS = {
    BusCode.BUS_NOT_FINITE: "is no finite number",
    BusCode.BUS_RANGE: "is outside what the servos may be told",
    BusCode.BUS_MISMATCH: "has another shape, or does not survive its encoding",
    BusCode.BUS_STEP: "is too far from the last one",
    BusCode.BUS_UNSEEDED: "comes before the arm was activated",
    BusCode.BUS_TIME: "comes before the last one",
}
"""Why a command was not sent."""
PATIENCE_NS = 12_000_000
"""Of a 20 ms period: a tool is no real-time process, and its machine may be busy."""


class Clock(Protocol):
    def now_ns(self) -> int: ...


class SteppedArm:
    """`arm` as an `dzedge.hardware.slow_cycle.WritableArm`: with `write`, and no plan. DeviceError where it has no
    compiled cycle. explain: an ERR byte of its servos in words, "" for none."""

    def __init__(
        self, arm: Arm, *, clock: Clock | None = None, explain: Callable[[int], str] = explain_error
    ) -> None:
        self.arm, self.names = arm, arm.names
        self._clock: Clock = clock or MonotonicClock()
        self._explain = explain
        self._cycle: BusCycle | None = None

    @property
    def fd(self) -> int:
        return self.arm.fd

    @property
    def goal_ticks(self) -> NDArray[np.int32]:
        return self.arm.goal_ticks

    def plan(self) -> None:
        """None: `write` is its cycle."""

    def narrow(self, limits: NDArray[np.float64]) -> NDArray[np.float64]:
        """As `CyclePlan.narrow`."""
        plan = self.arm.plan()
        return limits.copy() if plan is None else plan.narrow(limits)

    def open(self) -> None:
        self.arm.open()

    def configure(self) -> None:
        self.arm.configure()

    def activate(self) -> JointState:
        plan = self.arm.plan()
        if plan is None:
            raise DeviceError(f"the arm {', '.join(self.names)} has no compiled cycle to step through")
        cycle = plan.build()
        state = self.arm.activate()
        cycle.seed(self.arm.goal_ticks, self._clock.now_ns())
        self._cycle = cycle
        return state

    def read(self) -> JointState:
        return self.arm.read()

    def deactivate(self, category: StopCategory) -> None:
        self._cycle = None
        self.arm.deactivate(category)

    def close(self) -> None:
        self._cycle = None
        self.arm.close()

    def write(self, positions: NDArray[np.float64]) -> JointState:
        """One cycle: go to `positions`, Shape (J,), [rad], gripper [1]; the joints as measured then.

        SafetyError, nothing sent: the cycle's encoder refuses it. BusError: servos that were silent, answered what
        cannot be, or have an alert. PortError: unplugged.
        """
        cycle = self._cycle
        if cycle is None:
            raise SafetyError("the arm is not activated; nothing was sent")
        now_ns = self._clock.now_ns()
        refused = cycle.compose(np.ascontiguousarray(positions, np.float64), now_ns)
        if refused:
            why = REFUSALS.get(BusCode(refused), "was refused")
            shown = ", ".join(f"{name} {value:.3f}" for name, value in zip(self.names, positions.tolist(), strict=True))
            raise SafetyError(f"the command {shown} {why}; nothing was sent")
        code = cycle.cycle(self.fd, now_ns + max(cycle.budget_ns, PATIENCE_NS))
        if code in (BusCode.BUS_UNPLUGGED, BusCode.BUS_WRITE_FAILED):
            raise PortError("the serial port is gone: was the adapter unplugged? Plug it in and begin again")
        if code:
            silent = [name for name, result in zip(self.names, cycle.results, strict=True) if result]
            raise BusError(f"no answer in time from {', '.join(silent)}")
        rows = zip(self.names, cycle.errors, strict=True)
        unwell = [f"{name} reports {words}" for name, error in rows if (words := self._explain(error))]
        if unwell:
            raise BusError("; ".join(unwell))
        return JointState(np.array(cycle.positions), np.array(cycle.velocities), cycle.sampled_ns)
