"""Time. Nothing else in dzedge reads a clock: everything takes `now_ns` from here."""

import time
from datetime import datetime, timezone

NS = 1_000_000_000
"""Nanoseconds in a second."""


class MonotonicClock:
    """CLOCK_MONOTONIC, in nanoseconds; the same zero for every process of the machine."""

    def now_ns(self) -> int:
        return time.clock_gettime_ns(time.CLOCK_MONOTONIC)

    def sleep_until_ns(self, deadline_ns: int) -> None:
        """Sleep to an absolute deadline; returns at once when it is past."""
        remaining = deadline_ns - self.now_ns()
        if remaining > 0:
            time.sleep(remaining / NS)


def wall_offset_ns() -> int:
    """CLOCK_REALTIME - CLOCK_MONOTONIC [ns]: what turns a wall-clock stamp into one of ours."""
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    wall = time.clock_gettime_ns(time.CLOCK_REALTIME)
    return wall - (before + time.clock_gettime_ns(time.CLOCK_MONOTONIC)) // 2


class FakeClock:
    """A clock that moves only when told to, for lockstep runs and tests."""

    def __init__(self, start_ns: int = NS) -> None:
        self._now_ns = start_ns

    def now_ns(self) -> int:
        return self._now_ns

    def sleep_until_ns(self, deadline_ns: int) -> None:
        self._now_ns = max(self._now_ns, deadline_ns)

    def advance_to_ns(self, now_ns: int) -> None:
        """Move forward to `now_ns`; a step back is an error of the caller."""
        if now_ns < self._now_ns:
            raise ValueError(f"clock cannot go back from {self._now_ns} ns to {now_ns} ns")
        self._now_ns = now_ns


def wall_stamp() -> str:
    """Wall-clock time for file names, e.g. `20261122T103000Z`."""
    return datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%SZ")
