"""Transactions on a Feetech STS bus: ping, scan, read, write, sync. For set-up and tools; the control tick
has its own cycle (`dzedge.kernels.bus`).

Every transaction drains the input, sends, and collects replies of the expected id and length until a
deadline: wire time, return delays and an allowance for the adapter. Results are per servo, with the ERR byte.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from dzedge.clock import NS, MonotonicClock
from dzedge.errors import BusError
from dzedge.hardware.control_table import STS3215, Register, explain_error
from dzedge.kernels import codec

RETURN_DELAY_NS = 510_000
"""Factory return delay of a servo, its highest."""
ALLOWANCE_NS = 30_000_000
"""For USB adapters (an FTDI's latency timer alone takes 16 ms) and a loaded machine."""
ATTEMPTS = 3
"""Reads, and writes of a value, may be repeated; both are idempotent."""
LONGEST = 259


class Port(Protocol):
    """Bytes out and in: a SerialPort, or a bus in memory."""

    path: str
    baud: int
    fd: int

    def write(self, data: bytes) -> None: ...

    def read(self, deadline_ns: int) -> bytes: ...

    def drain(self) -> int: ...

    def close(self) -> None: ...


class Clock(Protocol):
    def now_ns(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Reply:
    """One servo's answer. error: its ERR byte, see `control_table.explain_error`."""

    servo: int
    error: int
    data: bytes


class FeetechBus:
    """Transactions on an open port. echo: the adapter returns what is sent (see `detect_echo`)."""

    def __init__(self, port: Port, *, clock: Clock | None = None, allowance_ns: int = ALLOWANCE_NS) -> None:
        self.port = port
        self.echo = False
        self._clock = clock or MonotonicClock()
        self._allowance_ns = allowance_ns
        self._out = bytearray(LONGEST)
        self._found = np.zeros(5, np.int32)

    # ---- single servos

    def ping(self, servo: int) -> Reply | None:
        """The servo's answer, or None."""
        return self._ask(codec.ping(self._out, servo), [servo], 0).get(servo)

    def scan(self, ids: Iterable[int] = range(254)) -> dict[int, int]:
        """Model number by id of all servos that answer."""
        found = {}
        for servo in ids:
            if self.ping(servo) is not None:
                found[servo] = self.get(servo, "model")
        return found

    def read(self, servo: int, address: int, count: int) -> Reply:
        """`count` bytes from `address`; BusError where the servo does not answer."""
        for _ in range(ATTEMPTS):
            replies = self._ask(codec.read(self._out, servo, address, count), [servo], count)
            if servo in replies:
                return replies[servo]
        raise BusError(self._silent(servo))

    def write(self, servo: int, address: int, data: bytes) -> Reply:
        """Write from `address` on; BusError where the servo does not acknowledge."""
        for _ in range(ATTEMPTS):
            replies = self._ask(codec.write(self._out, servo, address, data), [servo], 0)
            if servo in replies:
                return replies[servo]
        raise BusError(self._silent(servo))

    def get(self, servo: int, name: str) -> int:
        """A register by name, signed where it has a sign bit."""
        register = STS3215[name]
        return decode(register, self.read(servo, register.address, register.size).data)

    def set(self, servo: int, name: str, value: int) -> None:
        """Write a register by name and read it back; BusError where it did not take the value."""
        register = STS3215[name]
        self.write(servo, register.address, encode(register, value))
        now = self.get(servo, name)
        if now != value:
            raise BusError(
                f"{self.port.path}: servo {servo} keeps {name} = {now} instead of {value}; "
                "EEPROM needs lock = 0, and another master may write to it"
            )

    def set_eeprom(self, servo: int, name: str, value: int) -> bool:
        """Set an EEPROM register where it differs, for it wears; returns whether it was written."""
        if self.get(servo, name) == value:
            return False
        self.set(servo, "lock", 0)
        try:
            self.set(servo, name, value)
        finally:
            self.set(servo, "lock", 1)
        return True

    # ---- all at once

    def sync_read(self, ids: Sequence[int], address: int, count: int) -> dict[int, Reply]:
        """Answers by id; a servo that is silent is absent."""
        return self._ask(codec.sync_read(self._out, address, count, bytes(ids)), ids, count)

    def sync_write(self, ids: Sequence[int], address: int, rows: Sequence[bytes]) -> None:
        """rows[i], all of one length, from `address` on in ids[i]. Nobody acknowledges."""
        data = np.frombuffer(b"".join(rows), np.uint8).reshape(len(ids), -1)
        self._send(codec.sync_write(self._out, address, bytes(ids), data))

    def detect_echo(self, servo: int) -> bool:
        """Whether the adapter returns what is sent. A read tells: its reply has another length than
        itself."""
        length = self._send(codec.read(self._out, servo, STS3215["id"].address, 1))
        deadline_ns = self._deadline(length, 7, 1)
        heard = b""
        while len(heard) < length and (data := self.port.read(deadline_ns)):
            heard += data
        self.port.drain()
        self.echo = heard[:length] == bytes(self._out[:length])
        return self.echo

    # ---- the exchange itself

    def _send(self, length: int) -> int:
        if length < 0:
            raise BusError(f"{self.port.path}: an instruction of more than {LONGEST - 4} bytes; ask for less")
        self.port.drain()
        self.port.write(bytes(self._out[:length]))
        return length

    def _deadline(self, sent: int, expected: int, servos: int) -> int:
        wire_ns = (sent + expected) * 10 * NS // self.port.baud
        return self._clock.now_ns() + wire_ns + servos * RETURN_DELAY_NS + self._allowance_ns

    def _ask(self, length: int, ids: Sequence[int], count: int) -> dict[int, Reply]:
        """Send the frame in `_out`; collect a reply with `count` bytes from each of `ids`."""
        self._send(length)
        size = count + codec.OVERHEAD
        deadline_ns = self._deadline(length, size * len(ids), len(ids))
        replies: dict[int, Reply] = {}
        heard = bytearray()
        echo = length if self.echo else 0
        while len(replies) < len(ids):
            data = self.port.read(deadline_ns)
            heard += data
            at = echo
            while codec.scan(heard, at, len(heard), size, not data, self._found):
                start, found, at = (int(v) for v in self._found[:3])
                servo = heard[start + 2]
                if found == size and servo in ids:
                    body = bytes(heard[start + 5 : start + found - 1])
                    replies.setdefault(servo, Reply(servo, heard[start + 4], body))
            if not data:
                break
        return replies

    def _silent(self, servo: int) -> str:
        return (
            f"{self.port.path}: servo {servo} does not answer at {self.port.baud} baud: check its cable, "
            "power and id (a new servo has id 1)"
        )


def decode(register: Register, data: bytes) -> int:
    """A register's value from its bytes."""
    raw = int.from_bytes(data, "little")
    return raw if register.sign_bit is None else codec.decode_signed(raw, register.sign_bit)


def encode(register: Register, value: int) -> bytes:
    """A register's bytes from its value; BusError where it does not fit."""
    raw = value if register.sign_bit is None else codec.encode_signed(value, register.sign_bit)
    if not 0 <= raw < 1 << 8 * register.size:
        raise BusError(f"{register.name} = {value} does not fit in its {register.size} bytes")
    return raw.to_bytes(register.size, "little")


def describe(reply: Reply) -> str:
    """A servo's complaint in words, e.g. for a log; empty where it has none."""
    return f"servo {reply.servo}: {explain_error(reply.error)}" if reply.error else ""


