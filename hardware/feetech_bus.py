"""Transactions on a Feetech STS bus: ping, scan, read, write, sync; how they go is in `transactions`."""

from collections.abc import Iterable, Sequence

import numpy as np

from dzedge.errors import BusError
from dzedge.hardware.control_table import STS3215, Register, explain_error
from dzedge.hardware.transactions import ALLOWANCE_NS, ATTEMPTS, RETURN_DELAY_NS, Clock, Port, Reply, Transactions
from dzedge.kernels import codec

__all__ = ["ALLOWANCE_NS", "ATTEMPTS", "RETURN_DELAY_NS", "Clock", "FeetechBus", "Port", "Reply"]
LONGEST = 259


class FeetechFrames:
    """Frames of `kernels.codec`."""

    overhead = codec.OVERHEAD

    def __init__(self) -> None:
        self._out = bytearray(LONGEST)
        self._found = np.zeros(5, np.int32)

    def replies(self, heard: bytearray, final: bool) -> list[Reply]:
        """Take the whole frames out of what was heard."""
        found, at = [], 0
        while codec.scan(heard, at, len(heard), LONGEST, final, self._found):
            start, length, at = (int(value) for value in self._found[:3])
            found.append(Reply(heard[start + 2], heard[start + 4], bytes(heard[start + 5 : start + length - 1])))
        del heard[: int(self._found[2])]
        return found

    def read(self, servo: int, address: int, count: int) -> bytes:
        return self.made(codec.read(self._out, servo, address, count))

    def refused(self, reply: Reply) -> bool:
        """A Feetech has no way to say no."""
        return False

    # ---- the other instructions

    def ping(self, servo: int) -> bytes:
        return self.made(codec.ping(self._out, servo))

    def write(self, servo: int, address: int, data: bytes) -> bytes:
        return self.made(codec.write(self._out, servo, address, data))

    def sync_read(self, ids: bytes, address: int, count: int) -> bytes:
        return self.made(codec.sync_read(self._out, address, count, ids))

    def sync_write(self, ids: bytes, address: int, rows: Sequence[bytes]) -> bytes:
        data = np.frombuffer(b"".join(rows), np.uint8).reshape(len(ids), -1)
        return self.made(codec.sync_write(self._out, address, ids, data))

    def made(self, length: int) -> bytes:
        """What an encoder left; BusError where it did not fit."""
        if length < 0:
            raise BusError(f"an instruction of more than {LONGEST - 4} bytes; ask for less")
        return bytes(self._out[:length])


class FeetechBus(Transactions):
    """Transactions on an open port. echo: the adapter returns what is sent (see `detect_echo`)."""

    def __init__(self, port: Port, *, clock: Clock | None = None, allowance_ns: int = ALLOWANCE_NS) -> None:
        self.frames = FeetechFrames()
        super().__init__(port, self.frames, clock, allowance_ns)

    # ---- single servos

    def ping(self, servo: int) -> Reply | None:
        """The servo's answer, or None."""
        return self.ask(self.frames.ping(servo), {servo: 0}).get(servo)

    def scan(self, ids: Iterable[int] = range(254)) -> dict[int, int]:
        """Model number by id of all servos that answer."""
        found = {}
        for servo in ids:
            if self.ping(servo) is not None:
                found[servo] = self.get(servo, "model")
        return found

    def write(self, servo: int, address: int, data: bytes) -> Reply:
        """Write from `address` on; BusError where the servo does not acknowledge, unless it says that it never does."""
        for attempt in range(ATTEMPTS):
            replies = self.ask(self.frames.write(servo, address, data), {servo: 0})
            if servo in replies:
                return replies[servo]
            if attempt == 0 and self._keeps_silence(servo):
                return Reply(servo, 0, b"")
        raise BusError(self._silent(servo))

    def _keeps_silence(self, servo: int) -> bool:
        """Whether it says that it answers reads alone: what was written must be read back."""
        level = self.ask(self.frames.read(servo, STS3215["status_level"].address, 1), {servo: 1}).get(servo)
        return level is not None and level.data == b"\0"

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
        settled = [servo for servo in ids if self.settle(servo)]
        if not settled:
            return {}
        return self.ask(self.frames.sync_read(bytes(settled), address, count), dict.fromkeys(settled, count))

    def sync_write(self, ids: Sequence[int], address: int, rows: Sequence[bytes]) -> None:
        """rows[i], all of one length, from `address` on in ids[i]. Nobody acknowledges."""
        self.send(self.frames.sync_write(bytes(ids), address, rows))

    def detect_echo(self, servo: int) -> bool:
        """Whether the adapter returns what is sent. A read tells: its reply has another length than
        itself."""
        frame = self.frames.read(servo, STS3215["id"].address, 1)
        self.send(frame)
        deadline_ns = self.deadline(len(frame), 7, 1)
        heard = b""
        while len(heard) < len(frame) and (data := self.port.read(deadline_ns)):
            heard += data
        self.port.drain()
        self._owed[servo] = {1}
        self.echo = heard[: len(frame)] == frame
        return self.echo


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
