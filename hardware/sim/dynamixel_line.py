"""A Dynamixel servo bus in memory: Protocol 2.0 on the wire of `servo_bus.ServoBus`."""

from collections.abc import Iterator, Sequence
from typing import Any

from dzedge.hardware.sim import dynamixel_wire as wire
from dzedge.hardware.sim.dynamixel_servo import FACTORY_RESET, PING, READ, REBOOT, DynamixelServo
from dzedge.hardware.sim.emulated_servo import EmulatedServo
from dzedge.hardware.sim.servo_bus import Replies, ServoBus

SYNC_READ, SYNC_WRITE, FAST_SYNC_READ = 0x82, 0x83, 0x8A
BULK_READ, BULK_WRITE, FAST_BULK_READ = 0x92, 0x93, 0x9A
BROADCAST = 0xFE
PING_SLOT_NS = 3_000_000
"""A broadcast ping is answered by id i after i of these: the vendor's SDK waits 3 ms for each of 252 ids."""
WATCHED_S = 0.005
"""Between two looks at the bus watchdogs while any is armed [s]."""
NOT_BROADCAST = (READ, FACTORY_RESET)


class DynamixelLine(ServoBus):
    """Servos on one half-duplex line, Dynamixel Protocol 2.0. Arguments as of ServoBus.

    fast: whether the servos know fast sync and bulk read (older firmware does not and stays silent). stuff_fast: stuff
    their joint reply as any other; the vendor's SDK does not expect it, and what firmware does is not documented.
    """

    protocol = "dynamixel"

    def __init__(
        self, servos: Sequence[EmulatedServo], *, fast: bool = True, stuff_fast: bool = False, **more: Any
    ) -> None:
        super().__init__(servos, **more)
        self.fast = fast
        self.stuff_fast = stuff_fast

    @property
    def idle_s(self) -> float:
        return WATCHED_S if any(servo.get("bus_watchdog") > 0 for servo in self.servos) else super().idle_s

    # ---- frames

    def _requests(self) -> Iterator[tuple[int, bytes, int]]:
        done = [0]
        yield from wire.requests(self._pending, done)
        del self._pending[: done[0]]

    def _frame(self, servo_id: int, error: int, data: bytes) -> bytes:
        return wire.status(servo_id, error, data)

    def _readdressed(self, frame: bytes, servo_id: int) -> bytes:
        return wire.sealed(frame[:4] + bytes((servo_id + 100 & 0x7F,)) + frame[5:-2])

    # ---- instructions

    def _answer(self, servo_id: int, instruction: int, parameters: bytes, end_ns: int, replies: Replies) -> int:
        listeners = self._listeners(end_ns)
        shadows: dict[int, list[EmulatedServo]] = {}
        for several in listeners.values():
            for servo in several:
                assert isinstance(servo, DynamixelServo)
                if servo.shadow_id is not None:
                    shadows.setdefault(servo.shadow_id, []).append(servo)
        hearers = _Hearers(listeners, shadows, end_ns)
        if instruction in (SYNC_WRITE, BULK_WRITE):
            for wanted, words in (_sync_rows if instruction == SYNC_WRITE else _bulk_rows)(parameters):
                for servo in hearers.of(wanted):
                    servo.write(words[0] | words[1] << 8, words[2:])
        elif instruction in (SYNC_READ, BULK_READ):
            for wanted, words in _reads(instruction == SYNC_READ, parameters):
                asked = hearers.owners(wanted)
                if not asked and self.chained:
                    break
                end_ns = self._say(self._executed(asked, READ, words), end_ns, replies)
        elif instruction in (FAST_SYNC_READ, FAST_BULK_READ):
            if self.fast:
                end_ns = self._joint_reply(hearers, instruction == FAST_SYNC_READ, parameters, end_ns, replies)
        elif servo_id == BROADCAST:
            end_ns = self._to_all(hearers, instruction, parameters, end_ns, replies)
        else:
            said = self._executed(hearers.owners(servo_id), instruction, parameters)
            self._executed(hearers.shadows.get(servo_id, ()), instruction, parameters)
            end_ns = self._say(said, end_ns, replies)
            if instruction == REBOOT:
                self._boot(hearers.of(servo_id), end_ns)
        return end_ns

    def _to_all(
        self, hearers: "_Hearers", instruction: int, parameters: bytes, end_ns: int, replies: Replies
    ) -> int:
        """A broadcast: only a ping is answered, each servo in its own slot of time."""
        start_ns = end_ns
        for wanted in sorted(hearers.listeners):
            asked = hearers.owners(wanted)
            if instruction == PING:
                slot_ns = max(end_ns, start_ns + wanted * PING_SLOT_NS)
                end_ns = self._say(self._executed(asked, PING, b""), slot_ns, replies)
            elif instruction not in NOT_BROADCAST:
                self._executed(asked, instruction, parameters)
        if instruction == REBOOT:
            self._boot([servo for several in hearers.listeners.values() for servo in several], end_ns)
        return end_ns

    def _joint_reply(
        self, hearers: "_Hearers", sync: bool, parameters: bytes, end_ns: int, replies: Replies
    ) -> int:
        """One frame that the servos write in turn: ERR, id, data and the CRC so far of each. It ends where a servo is
        missing."""
        rows = _reads(sync, parameters)
        size = 1 + sum(4 + (words[2] | words[3] << 8) for _, words in rows)
        frame = wire.HEADER + bytes((BROADCAST,)) + size.to_bytes(2, "little") + bytes((wire.STATUS,))
        spoken: list[EmulatedServo] = []
        for wanted, words in rows:
            said = self._executed(hearers.owners(wanted), READ, words)
            if len(said) != 1:
                break
            servo, servo_id, error, data = said[0]
            spoken.append(servo)
            frame = wire.sealed(frame + bytes((error, servo_id)) + data)
        if not spoken:
            return end_ns
        if self.stuff_fast:
            body = wire.stuff(frame[7:-2])
            frame = wire.sealed(frame[:5] + (len(body) + 2).to_bytes(2, "little") + body)
        worst = next((servo for servo in spoken if servo.fault != "ok"), spoken[0])
        ready_ns = end_ns + spoken[0].return_delay_ns + len(frame) * self.byte_ns
        if worst.fault == "ok" == self.line_fault and not self._last_ns:
            replies.append((ready_ns, frame))
            return ready_ns
        return self._say_badly(worst, frame, end_ns, ready_ns, replies)


class _Hearers:
    """Who hears an instruction: servos by their id, and those that obey a second one in silence."""

    def __init__(
        self, listeners: dict[int, list[EmulatedServo]], shadows: dict[int, list[EmulatedServo]], now_ns: int
    ) -> None:
        self.listeners, self.shadows = listeners, shadows
        self._now_ns = now_ns

    def owners(self, servo_id: int) -> list[EmulatedServo]:
        """Servos of that id; hearing it feeds their watchdog."""
        return self._fed(self.listeners.get(servo_id, []))

    def of(self, servo_id: int) -> list[EmulatedServo]:
        """Servos of that id and its shadows."""
        return self.owners(servo_id) + self._fed(self.shadows.get(servo_id, []))

    def _fed(self, servos: list[EmulatedServo]) -> list[EmulatedServo]:
        for servo in servos:
            assert isinstance(servo, DynamixelServo)
            servo.feed(self._now_ns)
        return servos


def _sync_rows(parameters: bytes) -> list[tuple[int, bytes]]:
    """(id, address and data) of each servo of a sync write."""
    head, width = parameters[:2], int.from_bytes(parameters[2:4], "little")
    return [
        (parameters[at], head + parameters[at + 1 : at + 1 + width])
        for at in range(4, len(parameters) - width, width + 1)
    ]


def _bulk_rows(parameters: bytes) -> list[tuple[int, bytes]]:
    """(id, address and data) of each servo of a bulk write."""
    rows = []
    at = 0
    while at + 5 <= len(parameters):
        end = at + 5 + int.from_bytes(parameters[at + 3 : at + 5], "little")
        rows.append((parameters[at], parameters[at + 1 : at + 3] + parameters[at + 5 : end]))
        at = end
    return rows


def _reads(sync: bool, parameters: bytes) -> list[tuple[int, bytes]]:
    """(id, address and count) of each servo of a sync or bulk read."""
    if sync:
        return [(servo_id, parameters[:4]) for servo_id in parameters[4:]]
    return [(parameters[at], parameters[at + 1 : at + 5]) for at in range(0, len(parameters) - 4, 5)]
