"""Questions and answers on a servo bus, for set-up and tools; the control tick has its own cycle (`kernels.bus`).

Results are per servo, with the ERR byte. **A late reply is never taken for the answer to a later question**, though no
frame of either protocol says which question it answers:

- input is drained before anything is sent; before a question whose answer would look like the last one did, and after
  a miss, until the line was silent for the time of one reply (a duplicate looks like an answer, too);
- what a servo may still owe is remembered. Before it is asked anything else it is asked for a number of bytes that no
  answer owed has (`settle`): a servo answers in order, so once it has given that, nothing older can come. A refusal,
  which has no length of its own, settles nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from dzedge.clock import NS, MonotonicClock
from dzedge.errors import BusError

RETURN_DELAY_NS = 510_000
"""Factory return delay of a servo, its highest, of either protocol."""
ALLOWANCE_NS = 30_000_000
"""For USB adapters (an FTDI's latency timer alone takes 16 ms) and a loaded machine."""
ATTEMPTS = 3
"""Reads, and writes of a value, may be repeated; both are idempotent."""
PROBES = 40
"""Lengths, from 1 on, that a servo may be asked for from its address 0, where its EEPROM is in both protocols."""
LATEST_NS = NS
"""Once all of them are owed: silence of this long means that nothing will come any more."""
NOISE_NS = 50_000_000
"""A line that is not silent for so long is not waited for."""


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
    """One servo's answer. error: its ERR byte, see `control_table.explain_error` and `explain_dynamixel_error`."""

    servo: int
    error: int
    data: bytes


class Frames(Protocol):
    """A protocol's frames. overhead: [bytes] of a reply beside its data."""

    overhead: int

    def replies(self, heard: bytearray, final: bool) -> list[Reply]:
        """Take the whole replies out of what was heard. final: nothing more will come."""

    def read(self, servo: int, address: int, count: int) -> bytes:
        """The frame that asks a servo for bytes."""

    def refused(self, reply: Reply) -> bool:
        """Whether the servo says no, and therefore sends no data."""


class Transactions:
    """On an open port. late: replies that were not taken because they may answer an earlier question."""

    def __init__(self, port: Port, frames: Frames, clock: Clock | None, allowance_ns: int) -> None:
        self.port = port
        self.echo = False
        self.late = 0
        self._frames = frames
        self._clock = clock or MonotonicClock()
        self._allowance_ns = allowance_ns
        self._owed: dict[int, set[int]] = {}
        self._last: Reply | None = None

    # ---- one exchange

    def ask(self, frame: bytes, wanted: Mapping[int, int]) -> dict[int, Reply]:
        """Send a frame; wanted: bytes of data that are expected from each servo. Silent servos are absent."""
        settled = {servo: count for servo, count in wanted.items() if self.settle(servo)}
        return self._exchange(frame, settled) if len(settled) == len(wanted) else {}

    def settle(self, servo: int) -> bool:
        """Whether nothing that this servo may still send can be taken for an answer; asks it, where it owes one."""
        owed = self._owed.get(servo)
        if not owed:
            return True
        count = next((count for count in range(1, PROBES + 1) if count not in owed), 0)
        if count:
            return servo in self._exchange(self._frames.read(servo, 0, count), {servo: count}, probe=True)
        self._silence(LATEST_NS, 2 * LATEST_NS)
        del self._owed[servo]
        return True

    def _exchange(self, frame: bytes, wanted: Mapping[int, int], probe: bool = False) -> dict[int, Reply]:
        sizes = [count + self._frames.overhead for count in wanted.values()]
        if self._resembles(wanted) or any(self._owed.values()):
            self._silence(self._wire_ns(max(sizes, default=0)), NOISE_NS)
        self.send(frame)
        deadline_ns = self.deadline(len(frame), sum(sizes), len(wanted))
        replies: dict[int, Reply] = {}
        for servo, count in wanted.items():
            self._owed.setdefault(servo, set()).add(count)
        for reply in self.listen(deadline_ns, len(frame) if self.echo else 0):
            if self._answers(reply, wanted, replies) and not (probe and self._frames.refused(reply)):
                replies[reply.servo] = reply
                del self._owed[reply.servo]  # it answers in order: nothing older can come
                self._last = reply
                if len(replies) == len(wanted):
                    break
            else:
                self.late += 1
        return replies

    def _resembles(self, wanted: Mapping[int, int]) -> bool:
        """Whether a second copy of the last reply would look like an answer; a refusal looks like one to anything."""
        last = self._last
        if last is None or last.servo not in wanted:
            return False
        return len(last.data) == wanted[last.servo] or self._frames.refused(last)

    def _answers(self, reply: Reply, wanted: Mapping[int, int], replies: Mapping[int, Reply]) -> bool:
        if reply.servo not in wanted or reply.servo in replies:
            return False
        return len(reply.data) == wanted[reply.servo] or self._frames.refused(reply)

    # ---- its parts

    def send(self, frame: bytes) -> None:
        """Send into an empty line."""
        self.port.drain()
        self.port.write(frame)

    def deadline(self, sent: int, expected: int, servos: int) -> int:
        """When `expected` bytes of so many servos must be there, after `sent` bytes."""
        return self._clock.now_ns() + self._wire_ns(sent + expected) + servos * RETURN_DELAY_NS + self._allowance_ns

    def listen(self, deadline_ns: int, echo: int = 0) -> "Listener":
        """Replies as they come, until the deadline; the first `echo` bytes are the adapter's."""
        return Listener(self.port, self._frames, deadline_ns, echo)

    def _wire_ns(self, count: int) -> int:
        return count * 10 * NS // self.port.baud

    def _silence(self, quiet_ns: int, most_ns: int) -> None:
        """Throw input away until nothing came for quiet_ns, or most_ns are over."""
        end_ns = self._clock.now_ns() + most_ns
        while self._clock.now_ns() < end_ns:
            if not self.port.read(self._clock.now_ns() + quiet_ns):
                return

    # ---- single servos

    def read(self, servo: int, address: int, count: int) -> Reply:
        """`count` bytes from `address`; BusError where the servo does not answer."""
        for _ in range(ATTEMPTS):
            replies = self.ask(self._frames.read(servo, address, count), {servo: count})
            if servo in replies:
                return replies[servo]
        raise BusError(self._silent(servo))

    def _silent(self, servo: int) -> str:
        return (
            f"{self.port.path}: servo {servo} does not answer at {self.port.baud} baud: check its cable, "
            "power and id (a new servo has id 1)"
        )


class Listener:
    """Iterates over the replies that come before a deadline."""

    def __init__(self, port: Port, frames: Frames, deadline_ns: int, echo: int) -> None:
        self._port, self._frames, self._deadline_ns, self._echo = port, frames, deadline_ns, echo
        self._heard = bytearray()
        self._ready: list[Reply] = []
        self._over = False

    def __iter__(self) -> "Listener":
        return self

    def __next__(self) -> Reply:
        while not self._ready and not self._over:
            data = self._port.read(self._deadline_ns)
            self._over = not data
            skipped = min(self._echo, len(data))
            self._echo -= skipped
            self._heard += data[skipped:]
            self._ready = self._frames.replies(self._heard, self._over)
        if not self._ready:
            raise StopIteration
        return self._ready.pop(0)
