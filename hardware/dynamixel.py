"""Driver of arms with Dynamixel X servos: Koch, OMX, ViperX and WidowX, and their kin. Models may be mixed.

Unlike on a Feetech, writing a goal does not energise; but a servo that is switched on may count its position anew, by
whole turns, and one that shut itself down stays without torque until it is rebooted. Servos of multi-turn modes (4, 5)
say their position modulo whole turns after a power cycle: joints turn by less than one, so the driver finds out which.

While torque is on, the servos watch the host (`bus_watchdog`): where no request comes for `watchdog_ms` they stop and
hold, whatever has become of this process.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from dzedge import config
from dzedge.clock import NS, MonotonicClock
from dzedge.errors import BusError, DeviceError, SafetyError
from dzedge.hardware import calibration
from dzedge.hardware.arm import StopCategory
from dzedge.hardware.control_table import table
from dzedge.hardware.dynamixel_bus import DynamixelBus
from dzedge.hardware.dynamixel_member import POSITION, STATE_AT, STATE_BYTES, Allowed, Member
from dzedge.hardware.dynamixel_plan import DynamixelPlan, compile_plan
from dzedge.hardware.serial_port import SerialPort
from dzedge.hardware.transactions import Clock, Port, Reply
from dzedge.types import JointState

WATCHDOG_MS = 300
WATCHDOG_UNIT_MS = 20
WATCHDOG_MOST_MS = 127 * WATCHDOG_UNIT_MS
WIRE_SHARE = 0.8
"""Of a control period that a bus cycle may take."""
TURN = 4096
REST_RPM = 0.5
REST_NS = 3 * NS
"""A stop of category 1 waits this long for the arm to come to rest before torque goes off."""


class DynamixelArm:
    """An arm of the robot file on `port`, a device path, or an open Port (a bus in memory for lockstep).

    voltage: allowed [V], beside each servo's own limits; temperature: highest allowed [deg C]; arming_error: [rad],
    gripper [1], that torque may move a joint. state: read the whole state in a cycle (21 bytes a servo); False: only
    velocity and position; None: the state where there is time for it on the wire. fast: fast sync read, None: where the
    servos know it. watchdog_ms: without a request for so long the servos stop and hold, at most 2540; 0: never.
    Raises ConfigError for a calibration file or a model that does not fit, ValueError for another watchdog_ms.
    """

    def __init__(
        self,
        arm: config.Arm,
        port: str | Port,
        *,
        voltage: tuple[float, float] = (4.5, 16.0),
        temperature: float = 65.0,
        arming_error: float = 0.02,
        state: bool | None = None,
        fast: bool | None = None,
        watchdog_ms: int = WATCHDOG_MS,
        clock: Clock | None = None,
    ) -> None:
        if not 0 <= watchdog_ms <= WATCHDOG_MOST_MS:
            raise ValueError(f"watchdog_ms = {watchdog_ms}: [0, {WATCHDOG_MOST_MS}], 0 to leave the host unwatched")
        self.names = arm.names
        self.joints = calibration.read_joints(arm)
        self._tables = [table(joint.model) for joint in arm.joints]
        self._arm, self._where = arm, port
        self._voltage, self._temperature, self._arming_error = voltage, temperature, arming_error
        self._state, self._fast, self._watchdog_ms = state, fast, watchdog_ms
        self._clock: Clock = clock or MonotonicClock()
        self._bus: DynamixelBus | None = None
        self._goals = np.full(len(self.names), -1, np.int32)
        self._ids = [joint.id for joint in self.joints]
        self._velocities = [joint.velocity for joint in arm.joints]
        self._quick = bool(fast)

    # ---- port

    def open(self) -> None:
        """Open the port. PortError where it cannot be opened. An echo needs no care: a request is never a reply."""
        where = self._where
        port = SerialPort(where, self._arm.baud) if isinstance(where, str) else where
        tables = {member.id: member.table for member in self._members()}
        self._bus = DynamixelBus(port, clock=self._clock, tables=tables)

    def close(self) -> None:
        """Close the port; harmless when closed. Torque stays as it is, and an armed watchdog goes on watching."""
        if self._bus is not None:
            self._bus.port.close()
        self._bus = None

    @property
    def bus(self) -> DynamixelBus:
        """Transactions for tools; BusError before `open`."""
        if self._bus is None:
            raise BusError(f"the arm on {self._where} is not open: call open() first")
        return self._bus

    @property
    def fd(self) -> int:
        """Descriptor of the open port, for the cycle; -1 without one."""
        return -1 if self._bus is None else self._bus.port.fd

    @property
    def goal_ticks(self) -> NDArray[np.int32]:
        """Shape (J,), [ticks]: the goals that the servos hold since `activate`."""
        return self._goals.copy()

    def _members(self) -> Iterator[Member]:
        """Every servo, a joint's own before its shadow."""
        for joint, limits, found in zip(self.joints, self._arm.joints, self._tables, strict=True):
            yield Member(joint.id, joint, limits, found)
            if limits.shadow_id is not None:
                yield Member(limits.shadow_id, joint, limits, found, shadow=True)

    # ---- set-up

    def configure(self) -> None:
        """Check model, firmware, alerts and calibration of every servo; set operating mode, secondary id, return delay
        0, status level 2. Then find out about whole turns and fast sync read.

        EEPROM is written only where it differs, with torque off, and read back. Nothing moves. BusError names all that
        is wrong, not the first.
        """
        problems: list[str] = []
        for member in self._members():
            try:
                problems += member.configure(self.bus, self._watchdog_ms > 0)
            except BusError as error:
                problems.append(str(error))
        if not problems:
            problems = self._find_turns()
        if problems:
            raise BusError(f"the arm on {self.bus.port.path} cannot be used: " + "; ".join(problems))
        self._quick = self.bus.knows_fast(self._ids) if self._fast is None else self._fast

    def _find_turns(self) -> list[str]:
        """Shift the joints' ticks by whole turns to where servos of multi-turn modes count now."""
        shifted = []
        for joint in self.joints:
            turns = 0
            if self.bus.get(joint.id, "mode") != POSITION:
                middle = (joint.lower + joint.upper) / 2
                turns = round((self.bus.get(joint.id, "present_position") - middle) / TURN) * TURN
            shifted.append(
                replace(joint, zero=joint.zero + turns, lower=joint.lower + turns, upper=joint.upper + turns)
            )
        wide = [joint.name for joint in shifted if joint.upper - joint.lower >= TURN]
        self.joints = tuple(shifted)
        return [f"{name}: its limits are a whole turn apart or more; narrow lower and upper" for name in wide]

    # ---- measuring

    def _states(self) -> dict[int, Reply]:
        """The state of every joint's servo; BusError naming those that are silent."""
        replies: dict[int, Reply] = {}
        for _ in range(3):
            absent = [servo for servo in self._ids if servo not in replies]
            if absent:
                found = self.bus.sync_read(absent, STATE_AT, STATE_BYTES)
                replies |= {servo: reply for servo, reply in found.items() if len(reply.data) == STATE_BYTES}
        absent = [servo for servo in self._ids if servo not in replies]
        if absent:
            raise BusError(
                f"{self.bus.port.path}: no answer from servo {', '.join(map(str, absent))}; check cables and power"
            )
        return replies

    def read(self) -> JointState:
        """Measure all joints; BusError naming the servos that are silent."""
        now_ns = self._clock.now_ns()
        replies = self._states()
        ticks = self._present(replies, "present_position")
        speeds = [rpm * TURN / 60 for rpm in self._present(replies, "present_velocity")]
        positions = [joint.position(t) for joint, t in zip(self.joints, ticks, strict=True)]
        velocities = [speed / joint.scale for joint, speed in zip(self.joints, speeds, strict=True)]
        return JointState(np.array(positions), np.array(velocities), now_ns)

    def _present(self, replies: dict[int, Reply], name: str) -> list[float]:
        """A register out of the states, in its unit, joint by joint."""
        return [member.part(replies[member.id], name) for member in self._members() if not member.shadow]

    # ---- torque

    def activate(self) -> JointState:
        """Torque on where the arm stands, without a jump, then the watchdog. Returns that pose, as the goals hold it.

        SafetyError, torque as before: a joint outside its limits, an alert, voltage or temperature out of bounds.
        """
        replies = self._states()
        problems = []
        for member in self._members():
            allowed = Allowed(self._voltage, self._temperature, self._jump_ticks(member.joint))
            state = replies.get(member.id) or self.bus.read(member.id, STATE_AT, STATE_BYTES)
            problems += member.unfit(self.bus, state, allowed)
        if problems:
            raise SafetyError("the arm stays without torque: " + "; ".join(problems))
        for member in self._members():
            member.prepare(self.bus)
        present = [round(ticks) for ticks in self._present(replies, "present_position")]
        goals = [self._hold(joint, ticks) for joint, ticks in zip(self.joints, present, strict=True)]
        try:
            self._energise(goals, present)
            self._watch()
        except DeviceError:
            self._goals[:] = -1
            self._torque_off()
            raise
        self._goals[:] = goals
        positions = [joint.position(t) for joint, t in zip(self.joints, goals, strict=True)]
        return JointState(np.array(positions), np.zeros(len(positions)), self._clock.now_ns())

    def _hold(self, joint: calibration.JointCalibration, present: int) -> int:
        """The goal that moves nothing: where the joint is; or its old goal, if it is being held there already, for
        under load it sags a little, and would a little more at each new start."""
        if self.bus.get(joint.id, "torque_enable") == 1:
            goal = self.bus.get(joint.id, "goal_position")
            if abs(goal - present) <= self._jump_ticks(joint) and joint.lower <= goal <= joint.upper:
                return goal
        return present

    def _energise(self, goals: Sequence[int], present: Sequence[int]) -> None:
        """Goals, torque on, read back."""
        bus = self.bus
        by_joint = dict(zip(self._ids, goals, strict=True))
        for member in self._members():
            bus.set(member.id, "goal_position", by_joint[member.joint.id])
        for member in self._members():
            bus.set(member.id, "torque_enable", 1)
        for joint, goal, ticks in zip(self.joints, goals, present, strict=True):
            if bus.get(joint.id, "goal_position") != goal:
                raise BusError(f"servo {joint.id} ({joint.name}) did not keep its goal of {goal} ticks")
            moved = bus.get(joint.id, "present_position") - ticks
            if abs(moved) > self._jump_ticks(joint):
                raise BusError(
                    f"servo {joint.id} ({joint.name}) moved by {moved} ticks when torque came on, more than "
                    f"{self._jump_ticks(joint)}: support the arm, check its load"
                )

    def _watch(self) -> None:
        """Arm the bus watchdogs; each is read back."""
        if self._watchdog_ms:
            for member in self._members():
                self.bus.set(member.id, "bus_watchdog", math.ceil(self._watchdog_ms / WATCHDOG_UNIT_MS))

    def _jump_ticks(self, joint: calibration.JointCalibration) -> int:
        """How far a joint may move when torque comes on, and stand from its goal when it is held already."""
        return max(1, math.floor(self._arming_error * abs(joint.scale)))

    def deactivate(self, category: StopCategory) -> None:
        """Stop. The motion itself is ended by the control tick; here torque goes off or stays, and the watchdogs end.

        OFF: at once. STOP_THEN_OFF: once the joints rest, after 3 s at the latest. HOLD: torque stays on.
        Every servo is tried, whatever happens to the others; then BusError names those that failed.
        """
        if category == StopCategory.STOP_THEN_OFF:
            try:
                self._await_rest()
            except DeviceError:
                pass  # who cannot be asked whether it rests is told to let go all the same
        if category == StopCategory.HOLD:
            for member in self._members():
                self._unwatch(member)
            return
        self._goals[:] = -1
        failed = self._torque_off()
        if failed:
            raise BusError("torque may still be on, cut the power: " + "; ".join(failed))

    def _await_rest(self) -> None:
        end_ns = self._clock.now_ns() + REST_NS
        members = {member.id: member for member in self._members()}
        while self._clock.now_ns() < end_ns:
            replies = self.bus.sync_read(self._ids, STATE_AT, STATE_BYTES)
            whole = [reply for reply in replies.values() if len(reply.data) == STATE_BYTES]
            if all(abs(members[reply.servo].part(reply, "present_velocity")) <= REST_RPM for reply in whole):
                return

    def _torque_off(self) -> list[str]:
        """Torque off at once, then each servo is asked, and its watchdog ended; what went wrong, in words."""
        members = list(self._members())
        ids = [member.id for member in members]
        try:
            self.bus.sync_write(ids, members[0].table["torque_enable"].address, [b"\0"] * len(ids))
        except DeviceError:
            pass  # each is tried by itself below
        failed = []
        for member in members:
            try:
                self.bus.set(member.id, "torque_enable", 0)
            except DeviceError as error:
                failed.append(f"{member}: {error}")
            else:
                self._unwatch(member)
        return failed

    def _unwatch(self, member: Member) -> None:
        try:
            self.bus.set(member.id, "bus_watchdog", 0)
        except DeviceError:
            pass  # it has stopped or will, which `activate` clears

    # ---- the cycle

    def plan(self) -> DynamixelPlan:
        """Compile the cycle: deadline = wire time at this baud rate and an allowance. After `configure`, which learns
        of whole turns and of fast sync read."""

        def compiled(state: bool) -> DynamixelPlan:
            return compile_plan(
                self.joints, self._velocities, self._tables, self._arm.baud, state=state, fast=self._quick
            )

        plan = compiled(self._state is not False)
        late = plan.wire_ns * self._arm.rate_hz > WIRE_SHARE * NS
        return compiled(False) if self._state is None and late else plan

