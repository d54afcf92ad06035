"""Transactions on a Dynamixel Protocol 2.0 bus: ping, read, write, sync, bulk, reboot; `transactions` says how.

Models may be mixed: `sync_get` and `sync_set` by name work where all of them have the register at the same address, and
name what differs where they do not.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from dzedge.errors import BusError
from dzedge.hardware.control_table import (
    DYNAMIXEL_ALERT,
    ControlTable,
    Register,
    by_number,
    explain_dynamixel_error,
    table,
)
from dzedge.hardware.transactions import ALLOWANCE_NS, ATTEMPTS, Clock, Port, Reply, Transactions
from dzedge.kernels import codec_dynamixel as codec

LONGEST = 1024
"""Bytes of a frame at most, as the vendor's SDK has it."""
PING_DATA = 3
"""Model number and firmware version."""
PING_SLOT_NS = 3_000_000
"""A broadcast ping is answered one after another by 253 ids, each in its time."""
MODEL_AT, HARDWARE_ERROR_AT = 0, 70
CLEAR_TURNS = b"\x01\x44\x58\x4c\x22"
RESET_ALL_BUT_ID, RESET_ALL_BUT_ID_AND_BAUD = 1, 2
GENERIC = "xl430-w250"
"""Whose table stands for a model that is not known: all that is done with it is common to X servos."""


class DynamixelFrames:
    """Frames of `kernels.codec_dynamixel`."""

    overhead = codec.STATUS_OVERHEAD

    def __init__(self) -> None:
        self._out = bytearray(LONGEST)
        self._body = bytearray(LONGEST)
        self._found = np.zeros(5, np.int32)
        self.fast: list[int] = []
        """Ids of a fast read that is being answered."""

    def replies(self, heard: bytearray, final: bool) -> list[Reply]:
        """Take the whole replies out of what was heard; instructions, as of another master, are none."""
        found, at = [], 0
        while codec.scan(heard, at, len(heard), LONGEST, final, self._found):
            start, length, at = (int(value) for value in self._found[:3])
            if heard[start + 7] != codec.STATUS:
                continue
            if heard[start + 4] == codec.BROADCAST:
                found += self._together(bytes(heard[start : start + length]))
                continue
            count = codec.unstuff(heard, start + 7, start + length - 2, self._body)
            found.append(Reply(heard[start + 4], self._body[1], bytes(self._body[2:count])))
        del heard[: int(self._found[2])]
        return found

    def _together(self, frame: bytes) -> list[Reply]:
        """The parts of a fast reply, stuffed or not; none where it is not of the ids that were asked."""
        ids = self.fast
        count = codec.unstuff(frame, 7, len(frame) - 2, self._body)
        for slots in (frame[codec.FAST_HEAD :], bytes(self._body[1:count]) + frame[-2:]):
            size, rest = divmod(len(slots), max(len(ids), 1))
            parts = [slots[at : at + size] for at in range(0, len(slots), max(size, 1))]
            if rest == 0 and size > codec.SLOT_OVERHEAD and [part[1] for part in parts] == ids:
                return [Reply(part[1], part[0], part[2:-2]) for part in parts]
        return []

    def refused(self, reply: Reply) -> bool:
        return bool(reply.error & ~DYNAMIXEL_ALERT) and not reply.data

    # ---- instructions

    def made(self, length: int) -> bytes:
        """What an encoder left; BusError where it did not fit."""
        if length < 0:
            raise BusError(f"an instruction of more than {LONGEST} bytes; ask for less")
        return bytes(self._out[:length])

    def instruction(self, servo: int, code: int, parameters: bytes = b"") -> bytes:
        return self.made(codec.frame(self._out, servo, code, parameters))

    def read(self, servo: int, address: int, count: int) -> bytes:
        return self.made(codec.read(self._out, servo, address, count))

    def write(self, servo: int, address: int, data: bytes, *, registered: bool = False) -> bytes:
        return self.made((codec.reg_write if registered else codec.write)(self._out, servo, address, data))

    def sync_read(self, ids: bytes, address: int, count: int, *, fast: bool = False) -> bytes:
        return self.made((codec.fast_sync_read if fast else codec.sync_read)(self._out, address, count, ids))

    def sync_write(self, ids: bytes, address: int, rows: Sequence[bytes]) -> bytes:
        data = np.frombuffer(b"".join(rows), np.uint8).reshape(len(ids), -1)
        return self.made(codec.sync_write(self._out, address, ids, data))


class DynamixelBus(Transactions):
    """Transactions on an open port. tables: the control table of each servo that is known, by id; ping and scan add."""

    def __init__(
        self,
        port: Port,
        *,
        clock: Clock | None = None,
        allowance_ns: int = ALLOWANCE_NS,
        tables: Mapping[int, ControlTable] | None = None,
    ) -> None:
        self.frames = DynamixelFrames()
        super().__init__(port, self.frames, clock, allowance_ns)
        self.tables: dict[int, ControlTable] = dict(tables or {})

    # ---- who is there

    def ping(self, servo: int) -> Reply | None:
        """The servo's answer, its model number and firmware, or None."""
        reply = self.ask(self.frames.instruction(servo, codec.PING), {servo: PING_DATA}).get(servo)
        return None if reply is None else self._known(reply)

    def _known(self, reply: Reply) -> Reply:
        found = by_number("dynamixel2", int.from_bytes(reply.data[:2], "little"))
        if found is not None:
            self.tables.setdefault(reply.servo, found)
        return reply

    def broadcast_ping(self, highest: int = 252) -> dict[int, Reply]:
        """All that answer within 3 ms for each id up to `highest`, by id. Two of one id are as none: they collide."""
        frame = self.frames.instruction(codec.BROADCAST, codec.PING)
        self.send(frame)
        slots_ns = (highest + 1) * PING_SLOT_NS
        replies = {}
        for reply in self.listen(self.deadline(len(frame), 0, 0) + slots_ns, len(frame) if self.echo else 0):
            if len(reply.data) == PING_DATA:
                replies[reply.servo] = self._known(reply)
        return replies

    def scan(self, ids: Iterable[int] = range(253)) -> dict[int, int]:
        """Model number by id of all servos that answer."""
        replies = (self.ping(servo) for servo in ids)
        return {reply.servo: int.from_bytes(reply.data[:2], "little") for reply in replies if reply is not None}

    # ---- one servo

    def write(self, servo: int, address: int, data: bytes) -> Reply:
        """Write from `address` on; BusError where the servo does not acknowledge."""
        return self._told(servo, self.frames.write(servo, address, data))

    def reg_write(self, servo: int, address: int, data: bytes) -> Reply:
        """As `write`, done when `action` comes. BusError where the servo does not acknowledge."""
        return self._told(servo, self.frames.write(servo, address, data, registered=True))

    def action(self, servo: int = codec.BROADCAST) -> None:
        """Do what reg_write left; all at once with BROADCAST, which nobody acknowledges."""
        self._command(servo, codec.ACTION)

    def reboot(self, servo: int) -> None:
        """Restart: the only way out of a shutdown. Torque is off then: support the arm."""
        self._command(servo, codec.REBOOT)

    def clear(self, servo: int) -> None:
        """Forget the turns: the present position begins within one turn again. BusError while it moves."""
        self._command(servo, codec.CLEAR, CLEAR_TURNS)

    def factory_reset(self, servo: int, what: int = RESET_ALL_BUT_ID_AND_BAUD) -> None:
        """Registers as shipped, but for the id and, by default, the rate."""
        self._command(servo, codec.FACTORY_RESET, bytes([what]))

    def _command(self, servo: int, code: int, parameters: bytes = b"") -> None:
        frame = self.frames.instruction(servo, code, parameters)
        if servo == codec.BROADCAST:
            self.send(frame)
            return
        reply = self._told(servo, frame)
        if self.frames.refused(reply):
            raise BusError(f"{self.port.path}: {self.describe(reply)}")

    def _told(self, servo: int, frame: bytes) -> Reply:
        """The acknowledgement of a frame that may be sent twice."""
        for _ in range(ATTEMPTS):
            replies = self.ask(frame, {servo: 0})
            if servo in replies:
                return replies[servo]
        raise BusError(self._silent(servo))

    # ---- by name

    def table(self, servo: int) -> ControlTable:
        """The servo's control table; asks who it is where that is not known yet. BusError where it is silent."""
        if servo not in self.tables:
            number = int.from_bytes(self.read(servo, MODEL_AT, 2).data, "little")
            self.tables[servo] = by_number("dynamixel2", number) or table(GENERIC)
        return self.tables[servo]

    def get(self, servo: int, name: str) -> int:
        """A register by name, in its counts."""
        register = self.table(servo)[name]
        reply = self.read(servo, register.address, register.size)
        if self.frames.refused(reply):
            raise BusError(f"{self.port.path}: {self.describe(reply)}")
        return register.decode(reply.data)

    def set(self, servo: int, name: str, value: int) -> None:
        """Write a register by name and read it back; BusError where it did not take the value."""
        register = self.table(servo)[name]
        reply = self.write(servo, register.address, register.encode(value))
        now = self.get(servo, name)
        if now != value:
            why = self.describe(reply) or "another master may write to it"
            raise BusError(f"{self.port.path}: servo {servo} keeps {name} = {now} instead of {value}; {why}")

    def set_eeprom(self, servo: int, name: str, value: int) -> bool:
        """Set an EEPROM register where it differs, for it wears; returns whether it was written. Torque goes off."""
        if self.get(servo, name) == value:
            return False
        if self.get(servo, "torque_enable") != 0:
            self.set(servo, "torque_enable", 0)
        self.set(servo, name, value)
        return True

    def describe(self, reply: Reply) -> str:
        """A servo's complaint in words; reads its hardware error where it gives an alert. Empty where it has none."""
        hardware = None
        if reply.error & DYNAMIXEL_ALERT:
            try:
                hardware = self.read(reply.servo, HARDWARE_ERROR_AT, 1).data[0]
            except (BusError, IndexError):
                pass  # the alert itself is said all the same
        text = explain_dynamixel_error(reply.error, hardware)
        return f"servo {reply.servo}: {text}" if text else ""

    # ---- several at once; a servo that is silent is absent

    def sync_read(self, ids: Sequence[int], address: int, count: int) -> dict[int, Reply]:
        """`count` bytes from `address` of each, by id."""
        settled = [servo for servo in ids if self.settle(servo)]
        if not settled:
            return {}
        return self.ask(self.frames.sync_read(bytes(settled), address, count), dict.fromkeys(settled, count))

    def fast_sync_read(self, ids: Sequence[int], address: int, count: int) -> dict[int, Reply]:
        """As `sync_read` in one reply of all; nothing at all where one is silent or the firmware does not know it."""
        if not all([self.settle(servo) for servo in ids]):
            return {}
        self.frames.fast = list(ids)
        return self.ask(self.frames.sync_read(bytes(ids), address, count, fast=True), dict.fromkeys(ids, count))

    def knows_fast(self, ids: Sequence[int]) -> bool:
        """Whether all of these servos understand a fast sync read, which newer firmware does."""
        return set(self.fast_sync_read(ids, MODEL_AT, PING_DATA)) == set(ids)

    def bulk_read(self, parts: Mapping[int, tuple[int, int]]) -> dict[int, Reply]:
        """parts: address and count of bytes by id."""
        settled = {servo: part for servo, part in parts.items() if self.settle(servo)}
        if not settled:
            return {}
        rows = [bytes([servo]) + _words(address, count) for servo, (address, count) in settled.items()]
        frame = self.frames.instruction(codec.BROADCAST, codec.BULK_READ, b"".join(rows))
        return self.ask(frame, {servo: count for servo, (_, count) in settled.items()})

    def sync_write(self, ids: Sequence[int], address: int, rows: Sequence[bytes]) -> None:
        """rows[i], all of one length, from `address` on in ids[i]. Nobody acknowledges."""
        self.send(self.frames.sync_write(bytes(ids), address, rows))

    def bulk_write(self, parts: Mapping[int, tuple[int, bytes]]) -> None:
        """parts: address and bytes by id. Nobody acknowledges."""
        rows = [bytes([servo]) + _words(address, len(data)) + data for servo, (address, data) in parts.items()]
        self.send(self.frames.instruction(codec.BROADCAST, codec.BULK_WRITE, b"".join(rows)))

    def sync_get(self, ids: Sequence[int], name: str) -> dict[int, int]:
        """A register by name, in its counts. BusError where the models differ in it, or refuse."""
        register = self._common(ids, name)
        replies = self.sync_read(ids, register.address, register.size)
        return {servo: self.table(servo)[name].decode(reply.data) for servo, reply in replies.items() if reply.data}

    def sync_set(self, values: Mapping[int, int], name: str) -> None:
        """Write a register by name, values by id. BusError where the models differ in it."""
        register = self._common(list(values), name)
        self.sync_write(list(values), register.address, [self.table(s)[name].encode(v) for s, v in values.items()])

    def _common(self, ids: Sequence[int], name: str) -> Register:
        """A register that stands at the same place in all of these servos."""
        first = self.table(ids[0])
        for servo in ids:
            other = self.table(servo)
            if name not in other or (other[name].address, other[name].size) != (first[name].address, first[name].size):
                raise BusError(
                    f"{self.port.path}: servo {servo} ({other.model}) has no {name} where servo {ids[0]} "
                    f"({first.model}) has it: address {first[name].address}, {first[name].size} bytes; "
                    "ask equal models, or use a bulk read"
                )
        return first[name]


def _words(*values: int) -> bytes:
    return b"".join(value.to_bytes(2, "little") for value in values)
