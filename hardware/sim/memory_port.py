"""The emulated servo bus as a port in memory: the arm driver in lockstep, without a pty and without
waiting."""

import heapq
from typing import Protocol

from dzedge.hardware.sim.servo_bus import ServoBus


class Clock(Protocol):
    """A clock that can be waited on; a fake one moves instead."""

    def now_ns(self) -> int: ...

    def sleep_until_ns(self, deadline_ns: int) -> None: ...


class MemoryPort:
    """What `serial_port.SerialPort` is to a device: bytes go to `bus` at the time of `clock`, and come back
    when they would have crossed the wire."""

    fd = -1

    def __init__(self, bus: ServoBus, clock: Clock, path: str = "sim") -> None:
        self.path = path
        self.bus = bus
        self.baud = bus.baud
        self._clock = clock
        self._queue: list[tuple[int, int, bytes]] = []
        self._count = 0

    def write(self, data: bytes) -> None:
        for ready_ns, reply in self.bus.feed(data, self._clock.now_ns()):
            self._count += 1
            heapq.heappush(self._queue, (ready_ns, self._count, reply))

    def read(self, deadline_ns: int) -> bytes:
        """The next reply, or nothing at deadline_ns; the clock moves to either."""
        if self._queue and self._queue[0][0] <= deadline_ns:
            ready_ns, _, reply = heapq.heappop(self._queue)
            self._clock.sleep_until_ns(ready_ns)
            return reply
        self._clock.sleep_until_ns(deadline_ns)
        return b""

    def drain(self) -> int:
        """Throw away what has arrived by now."""
        now_ns = self._clock.now_ns()
        count = 0
        while self._queue and self._queue[0][0] <= now_ns:
            count += len(heapq.heappop(self._queue)[2])
        return count

    def close(self) -> None:
        """Nothing to close."""
