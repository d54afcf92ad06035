"""Exchanges with a microcontroller: one request, one reply with its sequence number, and what the replies say.

A reply counts only if type, sequence number and length are those of the request, its CRC is right, and the device's
clock has gone on since the last one. The sequence number alone would return after 256 requests; the clock never does.
"""

import struct
from dataclasses import dataclass
from enum import IntEnum
from math import isfinite

from dzedge.clock import NS, MonotonicClock
from dzedge.errors import BusError
from dzedge.hardware import mcu_frame
from dzedge.hardware.feetech_bus import ALLOWANCE_NS, Clock, Port
from dzedge.hardware.mcu_frame import REPLY, FrameReader, McuFrame

VERSION = 1
"""Of the protocol."""
ATTEMPTS = 3
"""Of a request that may be repeated; a command in a control cycle is not: the next cycle is its repetition."""
REFUSED = 0xFF
NO_JOINT = 255


class Request(IntEnum):
    """Types of requests. A reply has 0x80 added."""

    HELLO = 1
    ENABLE = 2
    DISABLE = 3
    CYCLE = 4
    READ = 5
    HOLD = 6
    CLEAR = 7


class Mode(IntEnum):
    """What the device does. Only ACTIVE moves; HOLDING and FAULT hold, until the watchdog switches off."""

    OFF = 0
    ACTIVE = 1
    HOLDING = 2
    FAULT = 3


CAUSES = ("it was started", "it was asked to", "its watchdog had no command in time", "a fault")
REASONS = {
    1: "it does not know such a request; is its sketch of this version?",
    2: "the request has another length than it expects; does it have as many joints as the robot file?",
    3: "a value is outside what the device allows; compare its limits with the robot file's",
    4: "not in its present mode; activate the arm",
    5: "a fault is latched; remove its cause, then clear it",
    6: f"it speaks another version of the protocol, this is {VERSION}; install the sketch that came along",
}
FAULTS = ("undervoltage", "overvoltage", "overheated", "overloaded", "sensor failed", "internal fault")


def explain_faults(bits: int) -> str:
    """Fault bits of a board or a joint in words; "" for 0."""
    known = [name for bit, name in enumerate(FAULTS) if bits >> bit & 1]
    return ", ".join([*known, *(f"unknown fault {bit}" for bit in range(len(FAULTS), 8) if bits >> bit & 1)])


@dataclass(frozen=True, slots=True)
class DeviceJoint:
    """What the device lets a joint do: [rad] and [rad/s]; a gripper [1], [1/s]."""

    lower: float
    upper: float
    velocity: float


@dataclass(frozen=True, slots=True)
class JointReport:
    """position, command: [rad]; velocity: [rad/s]; faults: bits, see `explain_faults`."""

    position: float
    velocity: float
    command: float
    faults: int


@dataclass(frozen=True, slots=True)
class McuState:
    """A device's state. device_us: its clock [us] at the measurement; dropped: damaged frames it has had;
    time_ns: CLOCK_MONOTONIC, the middle of the exchange."""

    mode: Mode
    cause: str
    faults: int
    device_us: int
    dropped: int
    joints: tuple[JointReport, ...]
    time_ns: int

    @property
    def troubles(self) -> list[str]:
        """Every latched fault in words, of the board and of the joints by number; empty where all is well."""
        who = [("the board", self.faults), *((f"joint {j}", joint.faults) for j, joint in enumerate(self.joints))]
        return [f"{name}: {explain_faults(bits)}" for name, bits in who if bits]


_HEAD = struct.Struct("<BBBBQH")
_JOINT = struct.Struct("<fffB")


class McuLink:
    """Requests to the device on an open port. joints: J, how many it must have.

    missed: requests without a valid reply; strays: whole frames that answered something else; stale: replies whose
    device clock had not gone on; damaged frames are counted by `reader`. patience_ns: how long an attempt waits [ns].
    """

    def __init__(
        self, port: Port, joints: int, *, clock: Clock | None = None, allowance_ns: int = ALLOWANCE_NS
    ) -> None:
        self.port, self.joints = port, joints
        self.reader = FrameReader()
        self.missed = self.strays = self.stale = 0
        self._clock: Clock = clock or MonotonicClock()
        # the longest request, the longest reply, and what an adapter and a loaded machine take
        self.patience_ns = 2 * (mcu_frame.LONGEST + 2) * 10 * NS // port.baud + allowance_ns
        self._seq = 0
        self._device_us = -1

    def hello(self, attempts: int = ATTEMPTS) -> tuple[DeviceJoint, ...]:
        """What the device says of its joints; BusError where it does not answer or is another device."""
        payload = self._ask(Request.HELLO, bytes((VERSION,)), None, attempts)[0]
        if len(payload) < 2 or payload[0] != VERSION or len(payload) != 2 + 12 * payload[1]:
            raise BusError(f"{self.port.path}: greets with {payload.hex(' ')}, not as version {VERSION} does")
        if payload[1] != self.joints:
            raise BusError(
                f"{self.port.path}: the device has {payload[1]} joints, the robot file {self.joints}; make them equal"
            )
        return tuple(DeviceJoint(*row) for row in struct.iter_unpack("<fff", payload[2:]))

    def request(
        self, type_: Request, payload: bytes = b"", *, attempts: int = ATTEMPTS, patience_ns: int | None = None
    ) -> McuState:
        """Any request but HELLO: the device's state after it. patience_ns: of an attempt [ns], None: the link's.

        Raises BusError: refused, or silent at every attempt.
        """
        size = _HEAD.size + _JOINT.size * self.joints
        return _state(*self._ask(type_, payload, size, attempts, patience_ns))

    def _ask(
        self, type_: Request, payload: bytes, size: int | None, attempts: int, patience_ns: int | None = None
    ) -> tuple[bytes, int]:
        stale = self.stale
        for _ in range(attempts):
            reply = self._exchange(type_, payload, size, self.patience_ns if patience_ns is None else patience_ns)
            if reply is not None:
                return reply
            self.missed += 1
        restarted = "; its clock went back: it was restarted, close and open it" if self.stale > stale else ""
        raise BusError(
            f"{self.port.path}: no answer to {type_.name} in {attempts} attempts at {self.port.baud} baud: check "
            f"cable, power and sketch{restarted}"
        )

    def _exchange(
        self, type_: Request, payload: bytes, size: int | None, patience_ns: int
    ) -> tuple[bytes, int] | None:
        """One request and its reply with the middle of both times; None where none came in time."""
        self.port.drain()
        self.reader.clear()
        self._seq = (self._seq + 1) % 256
        sent_ns = self._clock.now_ns()
        self.port.write(mcu_frame.encode(McuFrame(type_, self._seq, payload)))
        deadline_ns = sent_ns + patience_ns
        while data := self.port.read(deadline_ns):
            for frame in self.reader.feed(data):
                answer = self._accept(frame, type_, size)
                if answer is not None:
                    return answer, (sent_ns + self._clock.now_ns()) // 2
            if self._clock.now_ns() >= deadline_ns:
                break  # it chatters without end, but does not answer
        return None

    def _accept(self, frame: McuFrame, type_: Request, size: int | None) -> bytes | None:
        """The payload if this is the reply to this request. BusError where the device refuses it."""
        if frame.seq != self._seq or frame.type not in (type_ | REPLY, REFUSED):
            self.strays += 1
            return None
        if frame.type == REFUSED:
            if len(frame.payload) == 3 and frame.payload[0] == type_:
                raise BusError(f"{self.port.path}: {_refusal(type_, frame.payload)}")
            self.strays += 1
            return None
        if size is not None:
            if len(frame.payload) != size:
                self.strays += 1
                return None
            device_us = int.from_bytes(frame.payload[4:12], "little")
            if device_us <= self._device_us:
                self.stale += 1
                return None
            self._device_us = device_us
        return frame.payload


def _refusal(type_: Request, payload: bytes) -> str:
    """A refusal in words. payload: the request's type, reason, joint."""
    joint = "" if payload[2] == NO_JOINT else f" because of joint {payload[2]}"
    return f"the device refused {type_.name}{joint}: {REASONS.get(payload[1], f'unknown reason {payload[1]}')}"


def _state(payload: bytes, time_ns: int) -> McuState:
    """Raises BusError for a state that makes no sense, though its CRC is right."""
    mode, cause, faults, joints, device_us, dropped = _HEAD.unpack_from(payload)
    rows = tuple(JointReport(*row) for row in _JOINT.iter_unpack(payload[_HEAD.size :]))
    if mode not in set(Mode) or cause >= len(CAUSES) or joints != len(rows):
        raise BusError(
            f"the device reports mode {mode}, cause {cause}, {joints} joints: install the sketch of this version"
        )
    failed = [j for j, row in enumerate(rows) if not isfinite(row.position + row.velocity + row.command)]
    if failed:
        joint = ", ".join(map(str, failed))
        raise BusError(f"the device measures no number at joint {joint}: check its sensor's wires")
    return McuState(Mode(mode), CAUSES[cause], faults, device_us, dropped, rows, time_ns)
