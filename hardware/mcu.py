"""An arm behind a microcontroller of one's own: Arduino, ESP32, Pico. Protocol: docs/mcu-protocol.md; the device's half
is hardware/sketches/dzedge_mcu.

Positions cross the wire in [rad], a gripper's as 0 closed to 1 open, so the calibration lives in the sketch. The
device keeps limits of its own and a watchdog that no request can leave out: without commands it holds, then switches
torque off. There is no compiled cycle: a Python tick of at most MAX_RATE_HZ calls `write`.
"""

import struct
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from dzedge.clock import NS, MonotonicClock
from dzedge.errors import BusError, ConfigError, DeviceError, SafetyError
from dzedge.hardware.arm import StopCategory
from dzedge.hardware.feetech_bus import Clock, Port
from dzedge.hardware.mcu_link import McuLink, McuState, Mode, Request
from dzedge.hardware.serial_port import SerialPort
from dzedge.types import JointState

MAX_RATE_HZ = 50
HOLD_MS, OFF_MS = 200, 10_000
HOLD_RANGE_MS = (20, 1000)
OFF_HIGHEST_MS = 60_000
REST_NS = 3 * NS
"""A stop of category 1 waits this long for the arm to come to rest before torque goes off."""
REST_VELOCITY = 0.03
"""[rad/s], gripper [1/s]: below it a joint rests; STS servos are asked the same, 20 ticks/s."""


class JointLimits(Protocol):
    """What the driver needs of the robot file's joint: limits in [rad] and [rad/s], gripper [1] and [1/s]."""

    @property
    def name(self) -> str: ...

    @property
    def lower(self) -> float: ...

    @property
    def upper(self) -> float: ...

    @property
    def velocity(self) -> float: ...


class McuArm:
    """An `dzedge.hardware.arm.Arm` on `port`, a device path or an open Port, without a compiled cycle.

    joints: J of them, in the device's order; hold_ms: without a command for so long the device holds, [20, 1000];
    off_ms: for so long, it switches torque off, (hold_ms, 60000]; arming_error: [rad] that enabling may move a joint;
    cycle_ns: how long `write` waits for its reply [ns].
    Raises ConfigError for a watchdog outside these.
    """

    def __init__(
        self,
        joints: Sequence[JointLimits],
        port: str | Port,
        *,
        baud: int = 115_200,
        hold_ms: int = HOLD_MS,
        off_ms: int = OFF_MS,
        arming_error: float = 0.02,
        cycle_ns: int = NS // MAX_RATE_HZ,
        clock: Clock | None = None,
    ) -> None:
        low, high = HOLD_RANGE_MS
        if not (low <= hold_ms <= high and hold_ms < off_ms <= OFF_HIGHEST_MS):
            raise ConfigError(
                f"watchdog: hold_ms = {hold_ms} must be in [{low}, {high}] and off_ms = {off_ms} in "
                f"[{hold_ms + 1}, {OFF_HIGHEST_MS}]; the device refuses to be enabled without it"
            )
        self.names = tuple(joint.name for joint in joints)
        self._joints, self._where, self._baud = tuple(joints), port, baud
        self._watchdog = struct.pack("<HH", hold_ms, off_ms)
        self._off_ms, self._arming_error, self._cycle_ns = off_ms, arming_error, cycle_ns
        # 32 bits, as positions cross the wire: a limit itself is then never outside itself
        self._bounds = np.array([(joint.lower, joint.upper) for joint in joints], np.float32)
        self._clock: Clock = clock or MonotonicClock()
        self._link: McuLink | None = None

    # ---- port

    def open(self) -> None:
        """Open the port; PortError where that fails. Opening restarts many Arduinos: `configure` waits for them."""
        where = self._where
        port = SerialPort(where, self._baud) if isinstance(where, str) else where
        self._link = McuLink(port, len(self._joints), clock=self._clock)

    def close(self) -> None:
        """Close the port; harmless when closed. The device's watchdog then holds the arm, and switches it off."""
        if self._link is not None:
            self._link.port.close()
        self._link = None

    @property
    def link(self) -> McuLink:
        """Exchanges for tools; BusError before `open`."""
        if self._link is None:
            raise BusError(f"the arm on {self._where} is not open: call open() first")
        return self._link

    @property
    def fd(self) -> int:
        """Descriptor of the open port; -1 without one."""
        return -1 if self._link is None else self._link.port.fd

    @property
    def goal_ticks(self) -> NDArray[np.int32]:
        """Shape (0,): there is no compiled cycle to seed."""
        return np.empty(0, np.int32)

    def plan(self) -> None:
        """None: the tick is a Python one, of at most MAX_RATE_HZ."""

    # ---- set-up and measuring

    def configure(self, boot_ns: int = 3 * NS) -> None:
        """Greet the device, for up to boot_ns [ns]: a restarted board sits in its boot loader for a second or two.

        Nothing moves. BusError names all that is wrong: other joints, narrower limits, latched faults.
        """
        device = self.link.hello(max(1, boot_ns // self.link.patience_ns))
        problems = []
        for joint, its, (lower, upper) in zip(self._joints, device, self._bounds.tolist(), strict=True):
            if lower < its.lower or upper > its.upper:
                problems.append(
                    f"{joint.name}: the device allows [{its.lower:g}, {its.upper:g}], the robot file "
                    f"[{lower:g}, {upper:g}]; narrow lower and upper"
                )
            if np.float32(joint.velocity) > its.velocity:
                problems.append(
                    f"{joint.name}: the device goes up to {its.velocity:g} per second, the robot file says "
                    f"{joint.velocity:g}; lower velocity"
                )
        problems += self.state().troubles
        if problems:
            raise BusError(f"the arm on {self.link.port.path} cannot be used: " + "; ".join(problems))

    def state(self) -> McuState:
        """All that the device says of itself. Does not feed its watchdog. BusError where it is silent."""
        return self.link.request(Request.READ)

    def read(self) -> JointState:
        """Measure all joints. Does not feed the watchdog: who only watches keeps no arm energised."""
        return _joint_state(self.state())

    # ---- torque

    def activate(self) -> JointState:
        """Torque on where the arm stands, without a jump, and the watchdog with it. Returns where it is held.

        SafetyError, torque as before: a joint outside its limits, a fault. An arm that is held already keeps its
        command: taken from the measurement, it would sag a little at each activation.
        """
        before = self.state()
        if before.mode == Mode.ACTIVE:  # of a host that died: not on to where that wanted to go
            before = self.link.request(Request.HOLD)
        problems = before.troubles + self._outside(before)
        if problems:
            raise SafetyError("the arm stays as it is: " + "; ".join(problems))
        try:
            self.link.request(Request.ENABLE, self._watchdog)
            after = self.state()
            self._judge_start(before, after)
        except DeviceError:
            self._try(Request.DISABLE)
            raise
        return JointState(np.array([row.command for row in after.joints]), np.zeros(len(self.names)), after.time_ns)

    def _outside(self, state: McuState) -> list[str]:
        """Joints that stand, or if held are held, outside their limits."""
        off = state.mode == Mode.OFF
        where = [row.position if off else row.command for row in state.joints]
        return [
            f"{name} stands at {value:.3f}, outside [{lower:g}, {upper:g}]: move it inside by hand"
            for name, value, (lower, upper) in zip(self.names, where, self._bounds.tolist(), strict=True)
            if not lower <= value <= upper
        ]

    def _judge_start(self, before: McuState, after: McuState) -> None:
        if after.mode != Mode.ACTIVE:
            raise BusError(f"{self.link.port.path}: enabled, but {after.mode.name} because {after.cause}")
        for name, was, row in zip(self.names, before.joints, after.joints, strict=True):
            if abs(row.position - was.position) > self._arming_error:
                raise BusError(
                    f"{name} moved by {row.position - was.position:.3f} when torque came on, more than "
                    f"{self._arming_error:g}: support the arm, check its load and the sketch's calibration"
                )

    def write(self, positions: NDArray[np.float64]) -> JointState:
        """One cycle: go to `positions`, Shape (J,), [rad], gripper [1]; returns the joints as measured on arrival.

        SafetyError, nothing sent: not finite, another shape, or outside the limits. BusError: no answer within one
        attempt (the next cycle is the repetition), or the device does not obey any more and says why.
        """
        if positions.shape != (len(self.names),):
            raise SafetyError(f"a command of shape {positions.shape}, needed ({len(self.names)},); nothing was sent")
        with np.errstate(over="ignore"):  # to infinity, which is refused
            wire = positions.astype("<f4")
        for name, value, (lower, upper) in zip(self.names, wire.tolist(), self._bounds.tolist(), strict=True):
            if not lower <= value <= upper:  # so is a NaN
                raise SafetyError(f"{name} = {value:g} is outside [{lower:g}, {upper:g}]; nothing was sent")
        return _joint_state(
            self.link.request(Request.CYCLE, wire.tobytes(), attempts=1, patience_ns=self._cycle_ns)
        )

    def clear(self) -> None:
        """Forget latched faults; what is still there latches again. BusError while the arm is active."""
        self.link.request(Request.CLEAR)

    def deactivate(self, category: StopCategory) -> None:
        """Stop. OFF: torque off at once. STOP_THEN_OFF: hold, off once the joints rest, after 3 s at the latest.
        HOLD: hold, until the device's watchdog switches off.

        Raises BusError where the device does not confirm it.
        """
        if category == StopCategory.HOLD:
            failed = self._try(Request.HOLD)
        else:
            if category == StopCategory.STOP_THEN_OFF:
                self._try(Request.HOLD)
                self._await_rest()
            failed = self._try(Request.DISABLE)
        if failed:
            raise BusError(
                f"torque may still be on; the device's watchdog ends it within {self._off_ms / 1000:g} s, else cut the "
                f"power: {failed}"
            )

    def _try(self, request: Request) -> str:
        """What went wrong, in words, or nothing: a stop goes on whatever happens."""
        try:
            self.link.request(request)
        except DeviceError as error:
            return str(error)
        return ""

    def _await_rest(self) -> None:
        end_ns = self._clock.now_ns() + REST_NS
        while self._clock.now_ns() < end_ns:
            try:
                state = self.state()
            except DeviceError:
                return
            if all(abs(row.velocity) <= REST_VELOCITY for row in state.joints):
                return


def _joint_state(state: McuState) -> JointState:
    rows = np.array([(row.position, row.velocity) for row in state.joints])
    return JointState(rows[:, 0].copy(), rows[:, 1].copy(), state.time_ns)
