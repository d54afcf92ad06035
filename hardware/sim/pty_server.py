"""The emulated servo bus on a pseudo-terminal, paced to the baud rate by sleeping, with a transcript.

No byte of a reply is written before it would have crossed a wire: deadlines are absolute, counted from when
the request was read, and waits use a timer slack of 1 ns instead of Linux's 50 us.
"""

import ctypes
import errno
import fcntl
import heapq
import os
import select
import sys
import termios
import threading
import tty
from collections import defaultdict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from dzedge.clock import NS, MonotonicClock
from dzedge.hardware.sim.faults import PORT_VERBS
from dzedge.hardware.sim.servo_bus import LINE, LONGEST, ServoBus
from dzedge.kernels import codec

PR_SET_TIMERSLACK = 29
TO_SERVOS, TO_HOST = "request", "reply"
TCGETS2, TCSETS2, CBAUD, BOTHER = 0x802C542A, 0x402C542B, 0x100F, 0x1000
"""Linux's ioctls and flags of struct termios2 (asm-generic), whose bytes 40 to 43 are the output rate."""
Seen = TypeVar("Seen")


def tighten_timer() -> None:
    """Timer slack of the calling thread to 1 ns (prctl(2)); without effect where the kernel refuses."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_TIMERSLACK, 1, 0, 0, 0)


class PtyServer:
    """Serves a ServoBus on a pty until `stop`.

    path: what to open as the serial port; another after `replug`. link: a symbolic link to make for it, replaced if it
    exists, gone while unplugged. The bus runs at the rate that the host has set on the port, at the bus's own before.
    transcript: the last `keep` records (time_ns, TO_SERVOS | TO_HOST, bytes), 0: none.
    `start`/`stop` run it in a thread; a process of its own calls `serve` and never start.
    """

    def __init__(
        self, bus: ServoBus, *, link: Path | None = None, keep: int = 0, instant: bool = False
    ) -> None:
        self.bus = bus
        self.transcript: deque[tuple[int, str, bytes]] = deque(maxlen=keep)
        self._clock = MonotonicClock()
        self._instant = instant
        self._thread: threading.Thread | None = None
        self._queue: list[tuple[int, int, bytes]] = []
        self._count = 0
        self._lock = threading.Lock()
        self._wake_read, self._wake_write = os.pipe()
        self._over = False
        self._plugs: list[tuple[int, str]] = []
        self._rate = bytearray(44)
        self.link = link
        self._open()

    def _open(self) -> None:
        self._master, self._slave = os.openpty()  # the slave stays open: a host that closes hangs nothing up
        tty.setraw(self._slave, termios.TCSANOW)
        _set_rate(self._slave, self.bus.baud)
        os.set_blocking(self._master, False)
        self.path = os.ttyname(self._slave)
        if self.link is not None:
            self.link.unlink(missing_ok=True)
            self.link.symlink_to(self.path)

    # ---- thread

    def start(self) -> "PtyServer":
        """Serve in a thread of this process."""
        self._thread = threading.Thread(target=self.serve, name="servo-bus", daemon=True)
        self._thread.start()
        return self

    def stop(self) -> None:
        """End `serve`, hang up and close the pty; safe to call twice."""
        if self._wake_read < 0:
            return
        self._over = True
        self._wake()
        if self._thread is not None:
            self._thread.join()
        self._close()
        os.close(self._wake_read)
        os.close(self._wake_write)
        self._wake_read = self._wake_write = -1

    def _close(self) -> None:
        if self._master < 0:
            return
        if self.link is not None:
            self.link.unlink(missing_ok=True)
        os.close(self._slave)
        os.close(self._master)
        self._master = self._slave = -1

    def _wake(self) -> None:
        os.write(self._wake_write, b"x")

    def __enter__(self) -> "PtyServer":
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    # ---- faults

    def set_fault(self, component: str, verb: str) -> None:
        """As `ServoBus.set_fault`, while serving."""
        self.inject(component, verb)

    def inject(
        self, component: str, verb: str, *, at_s: float = 0.0, for_s: float | None = None, rate: float | None = None
    ) -> None:
        """A fault from at_s on, counted from now, for for_s. Also `unplug` and `replug` of the line."""
        for_ns = None if for_s is None else round(for_s * NS)
        with self._lock:
            now_ns = self._clock.now_ns()
            at_ns = now_ns + round(at_s * NS)
            if component == LINE and verb in PORT_VERBS:
                again = [(at_ns + for_ns, "replug")] if verb == "unplug" and for_ns is not None else []
                self._plugs = sorted([*self._plugs, (at_ns, verb), *again])
            else:
                self.bus.inject(component, verb, at_ns, for_ns=for_ns, rate=rate)
                self.bus.feed(b"", now_ns)
        self._wake()

    def look(self, look: Callable[[ServoBus], Seen]) -> Seen:
        """`look(bus)` with time up to now, while nothing else touches it."""
        with self._lock:
            self.bus.feed(b"", self._clock.now_ns())
            return look(self.bus)

    def _replug(self) -> None:
        """Hang up, or come back under another number behind the same link, where it is time to."""
        with self._lock:
            while self._plugs and self._plugs[0][0] <= self._clock.now_ns():
                _, verb = self._plugs.pop(0)
                if verb == "unplug":
                    self._close()
                    self._queue.clear()
                elif self._master < 0:
                    self._open()

    # ---- the loop

    def serve(self) -> None:
        """Answer until `stop`."""
        tighten_timer()
        while not self._over:
            now_ns = self._clock.now_ns()
            while self._queue and (self._instant or self._queue[0][0] <= now_ns):
                self._write(heapq.heappop(self._queue)[2])
                now_ns = self._clock.now_ns()
            if self._plugs:
                self._replug()
            wait = (self._queue[0][0] - now_ns) / NS if self._queue else self.bus.idle_s
            if self._plugs:
                wait = min(wait, (self._plugs[0][0] - now_ns) / NS)
            listened = [self._wake_read] if self._master < 0 else [self._master, self._wake_read]
            readable, _, _ = select.select(listened, [], [], max(wait, 0.0))
            if self._wake_read in readable:
                os.read(self._wake_read, 4096)
            self._read(self._master in readable)

    def _read(self, readable: bool) -> None:
        data = os.read(self._master, 4096) if readable else b""
        if not data and self._queue:
            return
        if not data and self._slave >= 0:
            # on a pty, though not on the tty of a device, a killed host leaves it behind
            fcntl.ioctl(self._slave, termios.TIOCNXCL)
        with self._lock:
            now_ns = self._clock.now_ns()
            if data:
                self.transcript.append((now_ns, TO_SERVOS, data))
                self.bus.baud = self._host_baud()
            for ready_ns, reply in self.bus.feed(data, now_ns):
                self._count += 1
                heapq.heappush(self._queue, (ready_ns, self._count, reply))

    def _host_baud(self) -> int:
        """The rate that the host has set on its end [bit/s]."""
        fcntl.ioctl(self._slave, TCGETS2, self._rate)
        return int.from_bytes(self._rate[40:44], sys.byteorder) or self.bus.baud

    def _write(self, reply: bytes) -> None:
        # noted before it is written: a host may have read it by the time that write(2) returns
        self.transcript.append((self._clock.now_ns(), TO_HOST, reply))
        try:
            os.write(self._master, reply)
        except OSError as error:
            if error.errno != errno.EAGAIN:  # nobody reads: a wire would lose the bytes, too
                raise


def _set_rate(fd: int, baud: int) -> None:
    """Set any rate [bit/s] on a tty: termios2 with BOTHER, see ioctl_tty(2)."""
    settings = bytearray(44)
    fcntl.ioctl(fd, TCGETS2, settings)
    flags = int.from_bytes(settings[8:12], sys.byteorder) & ~CBAUD | BOTHER
    settings[8:12] = flags.to_bytes(4, sys.byteorder)
    settings[36:44] = baud.to_bytes(4, sys.byteorder) * 2
    fcntl.ioctl(fd, TCSETS2, settings)


@dataclass
class _Request:
    """A request of a transcript: when it was read, and how many bytes have crossed the wire since then."""

    time_ns: int
    crossed: int


def early_replies(transcript: Iterable[tuple[int, str, bytes]], byte_ns: int) -> int:
    """Replies of a transcript that came before their wire time, recomputed from times and lengths alone.

    A request's bytes begin to cross the wire when it was read, at the earliest; then, one by one, those of its
    replies. A reply belongs to the oldest request to its servo that is still open.
    """
    early = 0
    pending = bytearray()
    waiting: dict[int, deque[_Request]] = defaultdict(deque)
    found = np.zeros(5, np.int32)
    for time_ns, direction, data in transcript:
        if direction == TO_SERVOS:
            before = len(pending)
            pending += data
            done = 0
            while codec.scan(pending, done, len(pending), LONGEST, False, found):
                at, _, done = (int(value) for value in found[:3])
                request = _Request(time_ns, done - before)
                many = pending[at + 4] == codec.SYNC_READ
                for servo in pending[at + 7 : done - 1] if many else pending[at + 2 : at + 3]:
                    waiting[servo].append(request)
            del pending[: int(found[2])]
        elif waiting[data[2]]:
            request = waiting[data[2]].popleft()
            request.crossed += len(data)
            early += time_ns < request.time_ns + request.crossed * byte_ns
    return early
