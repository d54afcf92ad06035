"""The deadline on calls that hang, on a clock that only the test moves; once for real."""

import subprocess
import sys

import pytest

from dzedge.clock import NS, FakeClock
from dzedge.hardware.deadline import LIMIT_NS, Deadline


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def words() -> list[str]:
    return []


@pytest.fixture
def deadline(clock: FakeClock, words: list[str]) -> Deadline:
    return Deadline(clock, words.append)


def later(clock: FakeClock, ns: int) -> None:
    clock.advance_to_ns(clock.now_ns() + ns)


class TestDeadline:
    def test_a_call_that_hangs_ends_the_process(self, deadline: Deadline, clock: FakeClock, words: list[str]) -> None:
        with deadline.watch("camera wrist: stop"):
            later(clock, LIMIT_NS - 1)
            assert not deadline.check()
            later(clock, 1)
            assert deadline.check()
        assert words == ["camera wrist: stop has not returned for 4 s; leaving, to be started anew"]

    def test_a_call_that_returns_does_not(self, deadline: Deadline, clock: FakeClock, words: list[str]) -> None:
        for _ in range(3):
            with deadline.watch("start"):
                later(clock, LIMIT_NS - 1)
            later(clock, 10 * LIMIT_NS)
            assert not deadline.check()
        assert words == []

    def test_a_call_within_another_has_no_time_of_its_own(
        self, deadline: Deadline, clock: FakeClock, words: list[str]
    ) -> None:
        with deadline.watch("recovery"):
            later(clock, LIMIT_NS // 2)
            with deadline.watch("open"):
                later(clock, LIMIT_NS // 2)
                assert deadline.check()
        assert words[0].startswith("recovery has not returned")

    def test_a_call_that_fails_is_over(self, deadline: Deadline, clock: FakeClock) -> None:
        with pytest.raises(OSError), deadline.watch("open"):
            raise OSError
        later(clock, 2 * LIMIT_NS)
        assert not deadline.check()


HANG = """
import sys, threading, time
from dzedge.clock import MonotonicClock
from dzedge.hardware.deadline import Deadline
deadline = Deadline(MonotonicClock(), limit_ns=200_000_000)
deadline.guard()
with deadline.watch("start"):
    if sys.argv[1] == "hang":
        threading.Event().wait(20)
deadline.end()
"""


@pytest.mark.parametrize(("way", "code"), [("hang", 3), ("return", 0)])
def test_a_process_that_hangs_leaves_with_the_code_of_a_device(way: str, code: int) -> None:
    assert subprocess.run([sys.executable, "-c", HANG, way], timeout=15).returncode == code


def test_the_limit_is_shorter_than_the_supervisors_patience() -> None:
    from dzedge.supervisor import SILENT_NS

    assert NS < LIMIT_NS < SILENT_NS["capture"]
