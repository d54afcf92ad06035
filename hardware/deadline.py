"""A bound on calls that may never return: librealsense hangs in stop, start or reset of a wedged camera.

No other thread can end such a call; the process must go, and whoever watches it starts it anew. So the last rung of a
camera's recovery is an exit with a deadline, whatever the call was.
"""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from dzedge.clock import NS
from dzedge.errors import CameraError

LIMIT_NS = 4 * NS
"""Longer than a healthy camera takes to stop, start or reset (1 to 3 s), shorter than the supervisor's patience with a
silent process."""
LOOK_NS = NS // 10


class Clock(Protocol):
    """See `dzedge.clock`."""

    def now_ns(self) -> int: ...
    def sleep_until_ns(self, deadline_ns: int) -> None: ...


def leave(words: str) -> None:
    """End the process at once, without its exit handlers, which would hang as well. Code 3: a device."""
    os._exit(CameraError.exit_code)


class Deadline:
    """Watches one thread's calls. clock: what tells the time; leave: what to do when a call is overdue, told in words,
    by default `os._exit(3)`; limit_ns: how long a call may take."""

    def __init__(self, clock: Clock, leave: Callable[[str], None] = leave, limit_ns: int = LIMIT_NS) -> None:
        self._clock, self._leave, self._limit_ns = clock, leave, limit_ns
        self._call: tuple[str, int] | None = None
        self._ended = False

    @contextmanager
    def watch(self, call: str) -> Iterator[None]:
        """The block must end in time. A watch inside another one is part of it."""
        if self._call is not None:
            yield
            return
        self._call = call, self._clock.now_ns() + self._limit_ns
        try:
            yield
        finally:
            self._call = None

    def check(self) -> bool:
        """Leave when the present call is overdue; returns whether it was."""
        call = self._call
        if call is None or self._clock.now_ns() < call[1]:
            return False
        self._leave(f"{call[0]} has not returned for {self._limit_ns / NS:.0f} s; leaving, to be started anew")
        return True

    def guard(self) -> None:
        """Check ten times a second from a thread of its own, until the process ends or `end`."""
        threading.Thread(target=self._run, name="deadline", daemon=True).start()

    def _run(self) -> None:
        while not self._ended and not self.check():
            self._clock.sleep_until_ns(self._clock.now_ns() + LOOK_NS)

    def end(self) -> None:
        """Watch no more."""
        self._ended = True
