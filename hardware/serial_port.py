"""A serial port: raw 8N1, exclusive, non-blocking, and one family of errors.

pyserial opens and configures it; afterwards everything goes through the file descriptor, which is several
times cheaper a call and is what the bus cycle needs.
"""

import errno
import fcntl
import glob
import os
import select
import termios
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import serial

from dzedge.clock import NS, MonotonicClock
from dzedge.errors import PortError

PATTERNS = ("/dev/serial/by-path/*", "/dev/serial/by-id/*", "/dev/ttyACM*", "/dev/ttyUSB*")
"""Where serial ports are found. By-path names survive replugging, also of boards without a serial number."""
FIRST_PAUSE_NS, LONGEST_PAUSE_NS = NS // 20, NS
"""Between two attempts to open a port again."""


class Clock(Protocol):
    """A clock that can be waited on; a fake one moves instead."""

    def now_ns(self) -> int: ...

    def sleep_until_ns(self, deadline_ns: int) -> None: ...


def list_ports() -> list[str]:
    """Serial ports of this machine, the stable names first."""
    return [path for pattern in PATTERNS for path in sorted(glob.glob(pattern))]


def holders(path: str, processes: Path = Path("/proc")) -> list[str]:
    """Processes that have `path` open, as "name (pid)"; only those that this user may look into."""
    real = os.path.realpath(path)
    found = []
    for link in glob.glob(f"{processes}/[0-9]*/fd/*"):
        try:
            if os.readlink(link) == real:
                process = Path(link).parents[1]
                found.append(f"{(process / 'comm').read_text().strip()} ({process.name})")
        except OSError:
            continue  # it ended meanwhile, or belongs to somebody else
    return sorted(set(found))


class SerialPort:
    """An open serial port.

    path: e.g. /dev/serial/by-path/...; baud [bit/s]. Raw 8N1, non-blocking, locked against others by flock
    and TIOCEXCL; low latency is set where the driver knows it. fd: for the bus cycle.
    Raises PortError with the port's name and what to do: missing, no permission, busy, not a serial port.
    """

    def __init__(self, path: str, baud: int = 1_000_000) -> None:
        self.path = path
        self.baud = baud
        self._clock = MonotonicClock()
        with self._errors("open"):
            self._serial = serial.Serial(path, baud, timeout=0, exclusive=True)
        self.fd: int = self._serial.fileno()
        with self._errors("configure"):
            self._configure()

    def _configure(self) -> None:
        os.set_blocking(self.fd, False)
        # flock binds only those who ask for it, and the vendors' SDKs do not
        fcntl.ioctl(self.fd, termios.TIOCEXCL)
        attributes = termios.tcgetattr(self.fd)
        # VMIN 1: an empty read is then EAGAIN, and 0 bytes mean the end of the file
        attributes[6][termios.VMIN], attributes[6][termios.VTIME] = 1, 0
        termios.tcsetattr(self.fd, termios.TCSANOW, attributes)
        try:
            self._serial.set_low_latency_mode(True)
        except (OSError, ValueError, NotImplementedError):
            pass  # CDC ACM boards and ptys have no latency timer
        termios.tcflush(self.fd, termios.TCIFLUSH)

    @contextmanager
    def _errors(self, doing: str) -> Iterator[None]:
        """One error family: pyserial lets termios.error through, which is not even an OSError."""
        try:
            yield
        except PortError:
            raise
        except (OSError, termios.error, ValueError) as error:
            raise PortError(explain(self.path, doing, error)) from error

    def write(self, data: bytes, timeout_ns: int = NS // 10) -> None:
        """Send all of `data`; PortError where the port does not take it in time or is gone."""
        deadline_ns = self._clock.now_ns() + timeout_ns
        with self._errors("write to"):
            while data:
                try:
                    data = data[os.write(self.fd, data) :]
                except BlockingIOError:
                    if not self._wait(select.POLLOUT, deadline_ns):
                        raise PortError(
                            f"{self.path} did not take {len(data)} bytes within {timeout_ns / 1e6:.0f} ms: "
                            "is the adapter stuck? Unplug it and plug it in again"
                        ) from None

    def read(self, deadline_ns: int, count: int = 4096) -> bytes:
        """What comes first: any bytes, at most `count`, or nothing at deadline_ns (CLOCK_MONOTONIC).

        Raises PortError where the port is unplugged.
        """
        with self._errors("read from"):
            if not self._wait(select.POLLIN, deadline_ns):
                return b""
            try:
                data = os.read(self.fd, count)
            except BlockingIOError:
                return b""
            if not data:
                raise OSError(errno.EIO, "end of file")
            return data

    def _wait(self, event: int, deadline_ns: int) -> bool:
        """Poll until `event` or the deadline; EIO where the port hung up and has nothing left."""
        poll = select.poll()
        poll.register(self.fd, event)
        remaining_ms = max(deadline_ns - self._clock.now_ns(), 0) / 1e6
        for _, seen in poll.poll(remaining_ms):
            if seen & event:
                return True
            raise OSError(errno.EIO, "hung up")
        return False

    def drain(self) -> int:
        """Throw away what has arrived; returns how many bytes. A request is sent into an empty line."""
        count = 0
        while data := self.read(0):
            count += len(data)
        return count

    def close(self) -> None:
        """Unlock and close; harmless when closed or unplugged."""
        if not self._serial.is_open:
            return
        try:
            fcntl.ioctl(self.fd, termios.TIOCNXCL)
        except OSError:
            pass  # unplugged: nothing to unlock
        try:
            self._serial.close()
        except (OSError, termios.error):
            pass  # unplugged
        self.fd = -1

    def __enter__(self) -> "SerialPort":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def reopen(
    path: str,
    baud: int,
    timeout_ns: int,
    *,
    clock: Clock | None = None,
    waiting: Callable[[PortError], None] = lambda error: None,
) -> SerialPort:
    """Open a port that was unplugged once it is there again, trying ever less often (50 ms to 1 s).

    It is the port that comes back, not the arm: what it was doing it does not do again by itself, and whoever
    energised it must do that anew. waiting: told why each attempt failed. Raises the last PortError after timeout_ns.
    """
    clock = clock or MonotonicClock()
    end_ns = clock.now_ns() + timeout_ns
    pause_ns = FIRST_PAUSE_NS
    while True:
        try:
            return SerialPort(path, baud)
        except PortError as error:
            if clock.now_ns() + pause_ns > end_ns:
                raise
            waiting(error)
        clock.sleep_until_ns(clock.now_ns() + pause_ns)
        pause_ns = min(2 * pause_ns, LONGEST_PAUSE_NS)


def _errno(error: BaseException | None) -> int | None:
    """The errno behind an error: pyserial hides it in the context, termios.error in its arguments."""
    while error is not None:
        if isinstance(error, OSError) and error.errno is not None:
            return error.errno
        if isinstance(error, termios.error):
            return int(error.args[0])
        error = error.__context__
    return None


def explain(path: str, doing: str, error: Exception) -> str:
    """What went wrong with a port, in words, with what to do."""
    number = _errno(error)
    text = str(error)
    if number == errno.ENOENT:
        found = list_ports()
        there = "try " + ", ".join(found) if found else "none exists: is the board plugged in"
        return f"no serial port {path}; {there}? Names in /dev/serial/by-path survive replugging"
    if number in (errno.EACCES, errno.EPERM):
        return f"no permission for serial port {path}: `sudo usermod -aG dialout $USER`, then log in again"
    if number in (errno.EBUSY, errno.EAGAIN) or "exclusively lock" in text:
        who = ", ".join(holders(path)) or "a process of another user; `sudo fuser -v` names it"
        return f"serial port {path} is in use by {who}: stop it first (ModemManager or brltty, too)"
    if number in (errno.ENOTTY, errno.EISDIR) or (number == errno.EINVAL and doing != "read from"):
        return f"{path} is not a serial port: give a tty such as /dev/ttyACM0"
    if number in (errno.EIO, errno.ENXIO, errno.ENODEV, errno.EBADF) and doing != "open":
        return f"serial port {path} was unplugged (while trying to {doing} it)"
    return f"cannot {doing} serial port {path}: {text}"
