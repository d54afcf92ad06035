"""Driver of arms with Feetech STS3215 servos: SO-100, SO-101 and their kin.

Energising is the dangerous moment. On these servos writing a goal switches torque on by itself, a goal
outside the limits drives the joint to the edge, and after a restart the old goal is still in the register.
So: measure, refuse what is out of bounds, goal := where the joint is, and only then torque.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dzedge import config
from dzedge.clock import NS, MonotonicClock
from dzedge.errors import BusError, DeviceError, SafetyError
from dzedge.hardware import calibration
from dzedge.hardware.arm import CyclePlan, StopCategory
from dzedge.hardware.control_table import (
    PRESENT,
    STATE_BYTES,
    STS3215,
    explain_error,
    firmware,
    table,
)
from dzedge.hardware.feetech_bus import Clock, FeetechBus, Port, Reply, decode
from dzedge.hardware.feetech_plan import GOAL, compile_plan, goal_row
from dzedge.hardware.serial_port import SerialPort
from dzedge.types import JointState

ACCELERATION = 254
"""Register value, [100 ticks/s^2]: the servo's own ramp stays out of the way; some units do not move without
it."""
REST_TICKS_S = 20
REST_NS = 3 * NS
"""A stop of category 1 waits this long for the arm to come to rest before torque goes off."""


class FeetechArm:
    """An arm of the robot file on `port`, a device path, or an open Port (a bus in memory for lockstep).

    voltage: allowed [V]; temperature: highest allowed [deg C]; arming_error: [rad], gripper [1], that torque may
    move a joint. state: read the whole state in a cycle (15
    bytes a servo) and write position, time and speed; False: positions only, a shorter cycle.
    Raises ConfigError for a calibration file that does not fit.
    """

    def __init__(
        self,
        arm: config.Arm,
        port: str | Port,
        *,
        voltage: tuple[float, float] = (6.0, 8.4),
        temperature: float = 65.0,
        arming_error: float = 0.02,
        state: bool = True,
        clock: Clock | None = None,
    ) -> None:
        self.names = arm.names
        self.joints = calibration.read_joints(arm)
        self._arm, self._where = arm, port
        self._voltage, self._temperature, self._arming_error, self._state = voltage, temperature, arming_error, state
        self._clock: Clock = clock or MonotonicClock()
        self._bus: FeetechBus | None = None
        self._goals = np.full(len(self.names), -1, np.int32)
        self._ids = [joint.id for joint in self.joints]
        self._velocities = [joint.velocity for joint in arm.joints]

    # ---- port

    def open(self) -> None:
        """Open the port and find out whether the adapter echoes. PortError where it cannot be opened."""
        where = self._where
        port = SerialPort(where, self._arm.baud) if isinstance(where, str) else where
        self._bus = FeetechBus(port, clock=self._clock)
        self._bus.detect_echo(self._ids[0])

    def close(self) -> None:
        """Close the port; harmless when closed. Torque stays as it is."""
        if self._bus is not None:
            self._bus.port.close()
        self._bus = None

    @property
    def bus(self) -> FeetechBus:
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

    # ---- set-up

    def configure(self) -> None:
        """Check model, firmware, mode, phase and calibration of every servo; return delay 0, status level 1.

        EEPROM is written only where it differs. Nothing moves. BusError names all that is wrong, not the
        first.
        """
        problems: list[str] = []
        versions: dict[str, list[int]] = {}
        for joint, known in zip(self.joints, self._arm.joints, strict=True):
            try:
                problems += self._check_servo(joint, table(known.model).number, versions)
            except BusError as error:
                problems.append(str(error))
        if len(versions) > 1:
            found = "; ".join(f"{version} in {ids}" for version, ids in versions.items())
            problems.append(f"unequal firmware does not mix: {found}; update with Feetech's tool")
        if problems:
            raise BusError(f"the arm on {self.bus.port.path} cannot be used: " + "; ".join(problems))

    def _check_servo(
        self, joint: calibration.JointCalibration, model: int, versions: dict[str, list[int]]
    ) -> list[str]:
        bus, servo = self.bus, joint.id
        eeprom = bus.read(servo, 0, 40).data

        def value(name: str) -> int:
            register = STS3215[name]
            return decode(register, eeprom[register.address : register.address + register.size])

        versions.setdefault(firmware(value("firmware_major"), value("firmware_minor")), []).append(servo)
        wanted = {"model": model, "mode": 0}
        if joint.offset is not None and joint.range_ticks is not None:
            low, high = joint.range_ticks
            wanted |= {"offset": joint.offset, "min_position": low, "max_position": high}
        problems = [
            f"servo {servo} ({joint.name}): {name} is {value(name)}, must be {must}"
            for name, must in wanted.items()
            if value(name) != must
        ]
        if any(value(name) != wanted.get(name, value(name)) for name in ("offset", "min_position", "max_position")):
            problems.append(f"servo {servo} ({joint.name}) {calibration.FOREIGN}")
        if value("phase") & 16:
            problems.append(f"servo {servo} ({joint.name}): phase {value('phase')} counts turns; clear bit 4")
        if joint.range_ticks is None and not (
            value("min_position") <= joint.lower and joint.upper <= value("max_position")
        ):
            problems.append(
                f"servo {servo} ({joint.name}): allows [{value('min_position')}, {value('max_position')}] "
                f"ticks, the robot file [{joint.lower}, {joint.upper}]; narrow lower and upper, or calibrate"
            )
        if not problems:
            bus.set_eeprom(servo, "return_delay", 0)
            bus.set_eeprom(servo, "status_level", 1)
        return problems

    # ---- measuring

    def _states(self) -> dict[int, Reply]:
        """The state of every servo; BusError naming those that are silent."""
        replies: dict[int, Reply] = {}
        for _ in range(3):
            absent = [servo for servo in self._ids if servo not in replies]
            if absent:
                replies |= self.bus.sync_read(absent, PRESENT, STATE_BYTES)
        absent = [servo for servo in self._ids if servo not in replies]
        if absent:
            raise BusError(
                f"{self.bus.port.path}: no answer from servo {', '.join(map(str, absent))}; "
                "check cables and power"
            )
        return replies

    def read(self) -> JointState:
        """Measure all joints; BusError naming the servos that are silent."""
        now_ns = self._clock.now_ns()
        return self._joint_state(self._states(), now_ns)

    def _joint_state(self, replies: dict[int, Reply], now_ns: int) -> JointState:
        ticks = [_present(replies[servo], "present_position") for servo in self._ids]
        speeds = [_present(replies[servo], "present_speed") for servo in self._ids]
        positions = [joint.position(t) for joint, t in zip(self.joints, ticks, strict=True)]
        velocities = [speed / joint.scale for joint, speed in zip(self.joints, speeds, strict=True)]
        return JointState(np.array(positions), np.array(velocities), now_ns)

    # ---- torque

    def activate(self) -> JointState:
        """Torque on where the arm stands, without a jump. Returns that pose, exactly as the goals hold it.

        SafetyError, torque as before: a joint outside its limits, an alert, voltage or temperature out of
        bounds.
        """
        replies = self._states()
        problems = [p for joint in self.joints for p in self._unfit(joint, replies[joint.id])]
        if problems:
            raise SafetyError("the arm stays without torque: " + "; ".join(problems))
        bus = self.bus
        for joint, limits in zip(self.joints, self._arm.joints, strict=True):
            bus.set(joint.id, "torque_limit", round(limits.max_torque * 1000))
            bus.set(joint.id, "acceleration", ACCELERATION)
        present = [_present(replies[servo], "present_position") for servo in self._ids]
        goals = [self._hold(servo, ticks) for servo, ticks in zip(self._ids, present, strict=True)]
        try:
            self._energise(goals, present)
        except DeviceError:
            self._goals[:] = -1
            self._torque_off()
            raise
        self._goals[:] = goals
        positions = [joint.position(t) for joint, t in zip(self.joints, goals, strict=True)]
        return JointState(np.array(positions), np.zeros(len(positions)), self._clock.now_ns())

    def _hold(self, servo: int, present: int) -> int:
        """The goal that moves nothing: where the joint is; or its old goal, if it is being held there
        already, for under load it sags a little, and would a little more at each new start."""
        if self.bus.get(servo, "torque_enable") == 1:
            goal = self.bus.get(servo, "goal_position")
            joint = self.joints[self._ids.index(servo)]
            if abs(goal - present) <= self._jump_ticks(joint) and joint.lower <= goal <= joint.upper:
                return goal
        return present

    def _energise(self, goals: Sequence[int], present: Sequence[int]) -> None:
        """Goals, torque on, read back."""
        bus = self.bus
        for joint, velocity, ticks in zip(self.joints, self._velocities, goals, strict=True):
            bus.write(joint.id, GOAL, goal_row(joint, velocity, ticks))
            bus.set(joint.id, "torque_enable", 1)
            if bus.get(joint.id, "goal_position") != ticks:
                raise BusError(f"servo {joint.id} ({joint.name}) did not take its goal of {ticks} ticks")
        for joint, ticks in zip(self.joints, present, strict=True):
            moved = bus.get(joint.id, "present_position") - ticks
            if abs(moved) > self._jump_ticks(joint):
                raise BusError(
                    f"servo {joint.id} ({joint.name}) moved by {moved} ticks when torque came on, more than "
                    f"{self._jump_ticks(joint)}: support the arm, check its load"
                )

    def _jump_ticks(self, joint: calibration.JointCalibration) -> int:
        """How far a joint may move when torque comes on, and stand from its goal when it is held already."""
        return max(1, math.floor(self._arming_error * abs(joint.scale)))

    def _unfit(self, joint: calibration.JointCalibration, reply: Reply) -> list[str]:
        who = f"servo {joint.id} ({joint.name})"
        ticks = _present(reply, "present_position")
        volts = _present(reply, "present_voltage") * 0.1
        heat = _present(reply, "present_temperature")
        problems = []
        if not joint.lower <= ticks <= joint.upper:
            problems.append(
                f"{who} stands at {joint.position(ticks):.3f} ({ticks} ticks), outside "
                f"[{joint.lower}, {joint.upper}] ticks: move it inside by hand"
            )
        if not self._voltage[0] - 1e-9 <= volts <= self._voltage[1] + 1e-9:
            low, high = self._voltage
            problems.append(f"{who} has {volts:.1f} V, allowed {low:.1f} to {high:.1f} V: check the supply")
        if heat > self._temperature:
            problems.append(f"{who} has {heat} °C, allowed up to {self._temperature:.0f}: let it cool")
        if reply.error:
            problems.append(f"{who} reports: {explain_error(reply.error)}")
        return problems

    def deactivate(self, category: StopCategory) -> None:
        """Stop. The motion itself is ended by the control tick; here torque goes off or stays.

        OFF: at once. STOP_THEN_OFF: once the joints rest, after 3 s at the latest. HOLD: torque stays on.
        Every servo is tried, whatever happens to the others; then BusError names those that failed.
        """
        if category == StopCategory.HOLD:
            return
        if category == StopCategory.STOP_THEN_OFF:
            try:
                self._await_rest()
            except DeviceError:
                pass  # who cannot be asked whether it rests is told to let go all the same
        self._goals[:] = -1
        failed = self._torque_off()
        if failed:
            raise BusError("torque may still be on, cut the power: " + "; ".join(failed))

    def _await_rest(self) -> None:
        end_ns = self._clock.now_ns() + REST_NS
        while self._clock.now_ns() < end_ns:
            replies = self.bus.sync_read(self._ids, PRESENT, STATE_BYTES)
            if all(abs(_present(reply, "present_speed")) <= REST_TICKS_S for reply in replies.values()):
                return

    def _torque_off(self) -> list[str]:
        """Torque off at once, then each servo is asked; what went wrong, in words."""
        try:
            self.bus.sync_write(self._ids, STS3215["torque_enable"].address, [b"\0"] * len(self._ids))
        except DeviceError:
            pass  # each is tried by itself below
        failed = []
        for joint in self.joints:
            try:
                self.bus.set(joint.id, "torque_enable", 0)
            except DeviceError as error:
                failed.append(f"servo {joint.id} ({joint.name}): {error}")
        return failed

    # ---- the cycle

    def plan(self) -> CyclePlan:
        """Compile the cycle: deadline = wire time at this baud rate and an allowance. Needs an open port only
        to know whether the adapter echoes."""
        echo = self._bus is not None and self._bus.echo
        return compile_plan(self.joints, self._velocities, self._arm.baud, state=self._state, echo=echo)


def _present(reply: Reply, name: str) -> int:
    """A register out of a state reply, in its own counts."""
    register = STS3215[name]
    at = register.address - PRESENT
    return decode(register, reply.data[at : at + register.size])

