"""An arm without a compiled cycle behind the same control tick as all others, from Python, at most 50 times a second.

Sampling, limiter, gate and states stay those of `dzedge.kernels.tick`: the tick composes its cycle for servos that do
not exist, and here their frames become `write` and `read` of the arm, and its joints become their replies. Only the
measured joints are rounded on the way, to 1/4000 of their range; commands reach the arm as the gate has passed them.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from dzedge.clock import NS, MonotonicClock
from dzedge.errors import ConfigError, DeviceError, SafetyError
from dzedge.hardware import arm as arms
from dzedge.hardware.arm import CyclePlan, StopCategory
from dzedge.hardware.calibration import JointCalibration
from dzedge.hardware.control_table import PRESENT
from dzedge.hardware.feetech_plan import VARIANTS, compile_plan
from dzedge.hardware.mcu import MAX_RATE_HZ, JointLimits
from dzedge.kernels import codec
from dzedge.kernels.tick import State, Tick
from dzedge.types import JointState

TICKS = 4095
"""Of an imagined servo's range, which is a tenth wider on both sides than the joint's: it may be measured outside."""
BEYOND = 0.1
DATA = 4
"""Bytes that an imagined servo tells: position and speed, 2 each. Of voltage and the like nothing is made up."""
SPEED_HIGHEST = 32767
POSITION_BIT = 15


class Clock(Protocol):
    def now_ns(self) -> int: ...

    def sleep_until_ns(self, deadline_ns: int) -> None: ...


class WritableArm(arms.Arm, Protocol):
    """An Arm whose `plan` is None, with `write`: go to positions, Shape (J,), [rad], gripper [1]; the joints as
    measured then."""

    def write(self, positions: NDArray[np.float64]) -> JointState: ...


@runtime_checkable
class Narrowing(Protocol):
    """An arm that may be told less than the robot file allows: a calibrated one."""

    def narrow(self, limits: NDArray[np.float64]) -> NDArray[np.float64]: ...


def narrowed(arm: WritableArm, limits: NDArray[np.float64]) -> NDArray[np.float64]:
    """A copy of `limits`, Shape (5, J), with positions no wider than what the arm may be told."""
    if isinstance(arm, Narrowing):
        return arm.narrow(limits)
    return limits.copy()


class SlowCycle:
    """`arm` as an `dzedge.hardware.arm.Arm` that has a plan; `run` in place of `Tick.run`.

    joints: J of them, the robot file's. rate_hz: of the tick. trouble: why the last cycle failed, in words, "" if it
    did not. Raises ConfigError for a rate above MAX_RATE_HZ.
    """

    def __init__(
        self, arm: WritableArm, joints: Sequence[JointLimits], rate_hz: int, *, clock: Clock | None = None
    ) -> None:
        if not 0 < rate_hz <= MAX_RATE_HZ:
            raise ConfigError(
                f"arm.rate_hz = {rate_hz}: an arm without a compiled cycle is ticked from Python, at most "
                f"{MAX_RATE_HZ} times a second; set it to {MAX_RATE_HZ}"
            )
        self.arm, self.names, self.trouble = arm, arm.names, ""
        self.missed = 0
        self._clock: Clock = clock or MonotonicClock()
        self._period_ns, self._next_ns = NS // rate_hz, 0
        self._servos = [_servo(number, joint) for number, joint in enumerate(joints)]
        rows = ("velocity", "lower", "upper")
        self._velocities, *bounds = [[getattr(joint, row) for joint in joints] for row in rows]
        self._limits = np.array([self._velocities] * 3 + bounds)
        self._plan = self._compile()
        self._goals = np.full(len(self._servos), -1, np.int32)

    def _compile(self) -> CyclePlan:
        plan = compile_plan(self._servos, self._velocities, 1_000_000, state=False)
        out, ids = bytearray(259), bytes(servo.id for servo in self._servos)
        requests = [list(out[: codec.sync_read(out, PRESENT, DATA + extra, ids)]) for extra in range(VARIANTS)]
        # what a joint cannot do is for the gate: the ticks here are of no real encoder
        return replace(plan, requests=np.array(requests, np.uint8), data_length=DATA, travel=1e9)

    # ---- the arm's life, as it is

    @property
    def fd(self) -> int:
        return self.arm.fd

    @property
    def goal_ticks(self) -> NDArray[np.int32]:
        """Shape (J,), [ticks] of the imagined servos: where the arm is held since `activate`."""
        return self._goals.copy()

    def plan(self) -> CyclePlan:
        """The cycle of the imagined servos, whose ranges are no wider than what the arm may be told."""
        rows = zip(self._servos, *narrowed(self.arm, self._limits)[3:].tolist(), strict=True)
        self._servos = [
            replace(servo, lower=max(servo.lower, servo.ticks(low)), upper=min(servo.upper, servo.ticks(high)))
            for servo, low, high in rows
        ]
        self._plan = self._compile()
        return self._plan

    def open(self) -> None:
        self.arm.open()

    def configure(self) -> None:
        self.arm.configure()

    def activate(self) -> JointState:
        held = self.arm.activate()
        pairs = zip(self._servos, held.positions.tolist(), strict=True)
        self._goals[:] = [min(max(servo.ticks(value), servo.lower), servo.upper) for servo, value in pairs]
        return held

    def read(self) -> JointState:
        return self.arm.read()

    def deactivate(self, category: StopCategory) -> None:
        self._goals[:] = -1
        self.arm.deactivate(category)

    def close(self) -> None:
        self.arm.close()

    # ---- the cycle

    def run(self, tick: Tick, periods: int) -> int:
        """As `Tick.run`: `periods` ticks at absolute deadlines, fewer where the arm has come to rest for good; the
        state. A missed period is skipped and counted, never made up."""
        state = tick.state
        if self._next_ns == 0:
            self._next_ns = self._clock.now_ns() + self._period_ns
        for _ in range(periods):
            self._clock.sleep_until_ns(self._next_ns)
            state = self.step(tick, self._clock.now_ns())
            self._next_ns += self._period_ns
            behind_ns = self._clock.now_ns() - self._next_ns
            if behind_ns > 0:
                skipped = behind_ns // self._period_ns + 1
                self.missed += skipped
                self._next_ns += skipped * self._period_ns
            if state == State.STOPPING and tick.resting:
                break
        return state

    def step(self, tick: Tick, now_ns: int) -> int:
        """One tick at now_ns; the state. What the arm does not do or answer is silence on the bus to the tick: it
        holds, and after `safety.bus_fault_ms` it is a fault."""
        request = tick.request(now_ns)
        writes = len(request) > self._plan.requests.shape[1]
        try:
            state = self.arm.write(tick.command[0]) if writes else self.arm.read()
        except (DeviceError, SafetyError) as error:
            self.trouble = str(error)
            return tick.reply(b"", now_ns)
        self.trouble = ""
        # sync read: ... how many bytes, the ids, checksum
        return tick.reply(self._replies(state, request[-2 - len(self._servos)]), now_ns)

    def _replies(self, state: JointState, count: int) -> bytes:
        out, data = bytearray(259), bytearray(count)
        whole = b""
        rows = zip(self._servos, state.positions.tolist(), state.velocities.tolist(), strict=True)
        for servo, position, velocity in rows:
            speed = round(min(max(velocity * servo.scale, -SPEED_HIGHEST), SPEED_HIGHEST))
            codec.put_word(data, 0, min(max(servo.ticks(position), 0), TICKS))
            codec.put_word(data, 2, codec.encode_signed(speed, POSITION_BIT))
            whole += bytes(out[: codec.status(out, servo.id, 0, data)])
        return whole


def _servo(number: int, joint: JointLimits) -> JointCalibration:
    """An imagined servo for a joint; ids count from 1."""
    margin = BEYOND * (joint.upper - joint.lower)
    scale = TICKS / (joint.upper - joint.lower + 2 * margin)
    zero = -scale * (joint.lower - margin)
    servo = JointCalibration(joint.name, number + 1, zero, scale, 0, TICKS)
    return replace(servo, lower=servo.ticks(joint.lower), upper=servo.ticks(joint.upper))
