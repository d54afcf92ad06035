"""A gripper of the Robotiq 2F class (2F-85, 2F-140, Hand-E) on RS-485: Modbus RTU through minimalmodbus.

Registers and example frames: Robotiq, 2F-85 & 2F-140 Instruction Manual, sections 4.2 to 4.4 and 4.7. Three registers
are written from 0x03E8 on and three read from 0x07D0 on, two bytes in each, the first in its upper half. The meaning of
the fault numbers is from the robotiq-rs driver. Not tried on a gripper: that reads may take in reserved registers, and
what a gripper does after a second of silence (fault 9).
Modbus RTU numbers no replies: see `ModbusGripper` for what keeps an old one from being taken for a new one.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, TypeVar

from dzedge.clock import NS, MonotonicClock
from dzedge.errors import BusError, DeviceError, SafetyError
from dzedge.hardware.arm import StopCategory
from dzedge.hardware.serial_port import SerialPort

if TYPE_CHECKING:
    import minimalmodbus

COMMAND, STATUS = 0x03E8, 0x07D0
LENGTHS = (3, 4, 5, 6, 7, 8)
"""Registers of one status read and of the next, in turn: from the fourth on they are reserved, and only make replies
differ."""
ACTIVATE, GO = 0x0100, 0x0800
"""rACT and rGTO in the first command register."""
TIMEOUT_NS = NS // 10
ACTIVATION_NS = 10 * NS
ATTEMPTS = 3
LONGEST = 5 + 2 * max(LENGTHS)
"""Bytes of the longest reply."""
FAULTS = {
    5: "the action waits for the activation to end",
    7: "it must be activated before it moves",
    8: "too hot: let it cool",
    9: "nobody talked to it for a second",
    10: "too little voltage: check the supply",
    11: "automatic release in progress",
    12: "internal fault",
    13: "activation failed: is something between the fingers?",
    14: "overcurrent",
    15: "automatic release done: activate it again",
}
"""gFLT. Up to 7 it waits for something, up to 9 it heals by itself, from 10 on it needs a new activation."""
NEEDS_ACTIVATION = 10

T = TypeVar("T")


class Grasp(IntEnum):
    """gOBJ: how the last motion ended."""

    MOVING = 0
    STOPPED_OPENING = 1
    """Something stopped it on the way open."""
    STOPPED_CLOSING = 2
    """Something stopped it on the way closed: most likely it holds it."""
    ARRIVED = 3


@dataclass(frozen=True, slots=True)
class GripperState:
    """position, goal: [0, 1], 0 closed, 1 open; current: [A], approximate; activated: ready to move; going: follows
    its goal; fault: gFLT; time_ns: CLOCK_MONOTONIC, the middle of the exchange."""

    position: float
    goal: float
    current: float
    activated: bool
    going: bool
    grasp: Grasp
    fault: int
    time_ns: int

    @property
    def trouble(self) -> str:
        """The fault in words; "" without one."""
        return FAULTS.get(self.fault, f"unknown fault {self.fault}") if self.fault else ""


def to_byte(value: float) -> int:
    """A fraction to a register byte. SafetyError outside [0, 1], or where it is no number."""
    if not 0.0 <= value <= 1.0:
        raise SafetyError(f"gripper: {value} is outside [0, 1]; nothing was sent")
    return int(255 * value + 0.5)


def parse(registers: list[int], time_ns: int) -> GripperState:
    """The state in three registers from STATUS on, [0, 65535] each."""
    status, fault, echo = registers[0] >> 8, registers[1] >> 8 & 15, registers[1] & 255
    position, current = registers[2] >> 8, registers[2] & 255
    return GripperState(
        position=1 - position / 255,
        goal=1 - echo / 255,
        current=current * 0.01,
        activated=status & 1 == 1 and status >> 4 & 3 == 3,
        going=status >> 3 & 1 == 1,
        grasp=Grasp(status >> 6),
        fault=fault,
        time_ns=time_ns,
    )


class _Line:
    """Our serial port as minimalmodbus wants a pyserial one: exclusive, one error family, no busy-waiting."""

    is_open = True

    def __init__(self, port: SerialPort, clock: MonotonicClock) -> None:
        self.port, self.baudrate, self.timeout = port.path, port.baud, TIMEOUT_NS / NS
        self._port, self._clock = port, clock

    def open(self) -> None:
        """Is open."""

    def close(self) -> None:
        """Closed by the gripper."""

    def flush(self) -> None:
        """Nothing waits: `SerialPort.write` has handed all bytes over."""

    def reset_input_buffer(self) -> None:
        self._port.drain()

    def reset_output_buffer(self) -> None:
        """A request is never taken back."""

    def write(self, data: bytes) -> int:
        self._port.write(data)
        return len(data)

    def read(self, size: int) -> bytes:
        """`size` bytes, or what came of them in time."""
        deadline_ns = self._clock.now_ns() + TIMEOUT_NS
        heard = b""
        while len(heard) < size and (data := self._port.read(deadline_ns, size - len(heard))):
            heard += data
        return heard


class ModbusGripper:
    """A gripper on serial port `where`. slave: its address, [1, 247]; function: what reads its status, 3 (holding
    registers, all manuals) or 4 (input registers, newer ones).

    An old reply is not taken for a new one: after a miss the line must be silent for as long as a reply takes before
    the next request; six consecutive reads differ in length, so that a reply would have to be late by all of them; and
    a command counts as taken only when the gripper's echo of the goal says so, not when a write is acknowledged.
    All errors are of the DeviceError branch.
    """

    def __init__(self, where: str, *, slave: int = 9, baud: int = 115_200, function: int = 3) -> None:
        self.where, self.slave, self.baud, self.function = where, slave, baud, function
        self.missed = 0
        self._clock = MonotonicClock()
        self._port: SerialPort | None = None
        self._client: minimalmodbus.Instrument | None = None
        self._reads = 0
        self._goal = 0

    # ---- port

    def open(self) -> None:
        """Open the port; nothing moves. PortError where that fails, DeviceError without minimalmodbus."""
        try:
            import minimalmodbus
        except ImportError as error:
            raise DeviceError("Modbus grippers need minimalmodbus: pip install 'dzedge[modbus]'") from error
        self._port = SerialPort(self.where, self.baud)
        self._client = minimalmodbus.Instrument(_Line(self._port, self._clock), self.slave)

    def close(self) -> None:
        """Close the port; harmless when closed. The gripper stays as it is."""
        if self._port is not None:
            self._port.close()
        self._port = self._client = None

    # ---- exchanges

    def read(self, *, attempts: int = ATTEMPTS) -> GripperState:
        """Measure. BusError where it does not answer."""
        return self._repeat(self._status, "a read of its status", attempts)

    def _status(self) -> GripperState:
        self._reads += 1
        count = LENGTHS[self._reads % len(LENGTHS)]
        sent_ns = self._clock.now_ns()
        registers = self._instrument().read_registers(STATUS, count, self.function)
        return parse(registers, (sent_ns + self._clock.now_ns()) // 2)

    def _command(self, action: int, goal: int, speed: int, force: int) -> GripperState:
        """Write the command registers; the state, once its echo shows that they were taken."""
        self._instrument().write_registers(COMMAND, [action, goal, speed << 8 | force])
        state = self._status()
        # a reset clears the echo, and without activation it is not told
        if state.activated and action & GO and round(255 * (1 - state.goal)) != goal:
            raise BusError(f"its echo of the goal is {state.goal:.3f}, not {1 - goal / 255:.3f}")
        return state

    def _repeat(self, ask: Callable[[], T], what: str, attempts: int = ATTEMPTS) -> T:
        """So many attempts at most, an empty and silent line after each that failed."""
        self._instrument()
        problem: Exception | None = None
        for _ in range(attempts):
            try:
                return ask()
            except (OSError, ValueError, BusError) as error:  # minimalmodbus' own are OSErrors
                problem = error
                self.missed += 1
                self._silence()
        raise BusError(
            f"{self.where}: gripper {self.slave} did not answer {what} in {attempts} attempts at {self.baud} baud: "
            f"{problem}; check cable (A and B exchanged?), power and address"
        ) from problem

    def _silence(self) -> None:
        """Flush until nothing has come for as long as the longest reply takes: what was late has come by then."""
        assert self._port is not None
        quiet_ns = LONGEST * 11 * NS // self.baud + NS // 100
        end_ns = self._clock.now_ns() + TIMEOUT_NS
        while self._port.read(self._clock.now_ns() + quiet_ns) and self._clock.now_ns() < end_ns:
            pass

    def _instrument(self) -> "minimalmodbus.Instrument":
        if self._client is None:
            raise BusError(f"the gripper on {self.where} is not open: call open() first")
        return self._client

    # ---- life

    def activate(self) -> GripperState:
        """Ready to move, held where it is.

        A gripper that is not activated, or whose fault asks for it, **closes and opens by itself** meanwhile, for it
        measures its stroke; one that is ready does not move. BusError where it is not ready after 10 s.
        """
        state = self.read()
        if not state.activated or state.fault >= NEEDS_ACTIVATION:
            self._repeat(lambda: self._command(0, 0, 0, 0), "its reset")
            self._repeat(lambda: self._command(ACTIVATE, 0, 0, 0), "its activation")
            state = self._await_activation()
        self._goal = round(255 * (1 - state.position))
        return self.write(1 - self._goal / 255)

    def _await_activation(self) -> GripperState:
        end_ns = self._clock.now_ns() + ACTIVATION_NS
        while not (state := self.read()).activated:
            if self._clock.now_ns() > end_ns:
                why = state.trouble or "no reason given"
                raise BusError(f"{self.where}: gripper {self.slave} is not ready after {ACTIVATION_NS // NS} s: {why}")
            self._clock.sleep_until_ns(self._clock.now_ns() + NS // 20)
        return state

    def write(
        self, position: float, *, speed: float = 1.0, force: float = 0.5, attempts: int = ATTEMPTS
    ) -> GripperState:
        """Go to `position`, [0, 1], 0 closed, 1 open; speed and force: fractions of the gripper's range, [0, 1].
        Returns the state with the goal echoed.

        SafetyError, nothing sent: outside [0, 1] or no number. BusError: silent, not activated, or a fault.
        """
        goal = 255 - to_byte(position)
        rates = to_byte(speed), to_byte(force)
        state = self._repeat(lambda: self._command(ACTIVATE | GO, goal, *rates), "a command", attempts)
        if not state.activated or state.fault >= NEEDS_ACTIVATION:
            why = state.trouble or "it is not activated"
            raise BusError(f"{self.where}: gripper {self.slave} does not obey: {why}; activate it")
        self._goal = goal
        return state

    def deactivate(self, category: StopCategory) -> None:
        """HOLD: stop where it is, motor on. STOP_THEN_OFF, OFF: reset too, the motor lets go; the next activation
        moves the fingers. BusError where it does not answer."""
        if category != StopCategory.OFF:
            self._repeat(lambda: self._command(ACTIVATE, self._goal, 0, 0), "a stop")
        if category != StopCategory.HOLD:
            self._repeat(lambda: self._command(0, 0, 0, 0), "its reset")
