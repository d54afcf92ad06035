"""The serial port on a real pty: locks, deadlines, unplugging, and errors that say what to do."""

import os
import pty
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dzedge.clock import NS, MonotonicClock
from dzedge.errors import PortError
from dzedge.hardware import serial_port
from dzedge.hardware.serial_port import SerialPort

CLOCK = MonotonicClock()


@pytest.fixture
def line() -> Iterator[tuple[str, int]]:
    """Path of a tty, and the other end of it."""
    master, slave = pty.openpty()
    path = os.ttyname(slave)
    os.close(slave)
    yield path, master
    try:
        os.close(master)
    except OSError:
        pass


class TestTransfer:
    def test_bytes_pass_unchanged_both_ways(self, line: tuple[str, int]) -> None:
        path, master = line
        every = bytes(range(256))
        with SerialPort(path) as port:
            port.write(every)
            assert os.read(master, 1000) == every
            os.write(master, every)
            assert port.read(CLOCK.now_ns() + NS) == every

    def test_nothing_comes(self, line: tuple[str, int]) -> None:
        with SerialPort(line[0]) as port:
            begin, cpu = CLOCK.now_ns(), time.process_time_ns()
            assert port.read(begin + NS // 20) == b""
            assert CLOCK.now_ns() - begin >= NS // 20
            assert time.process_time_ns() - cpu < NS // 40

    def test_drain(self, line: tuple[str, int]) -> None:
        with SerialPort(line[0]) as port:
            os.write(line[1], b"old reply")
            assert port.drain() == 9
            assert port.drain() == 0

    def test_reading_is_non_blocking_for_the_bus_cycle(self, line: tuple[str, int]) -> None:
        with SerialPort(line[0]) as port, pytest.raises(BlockingIOError):
            os.read(port.fd, 1)

    def test_a_stuck_line(self, line: tuple[str, int]) -> None:
        with SerialPort(line[0]) as port, pytest.raises(PortError, match=r"did not take .* bytes within 50 ms"):
            port.write(bytes(1 << 20), NS // 20)


class TestUnplugged:
    def test_every_call_says_so(self, line: tuple[str, int]) -> None:
        path, master = line
        port = SerialPort(path)
        os.close(master)
        for call in (lambda: port.read(0), lambda: port.write(b"x"), port.drain):
            with pytest.raises(PortError, match=f"{path} was unplugged"):
                call()
        port.close()
        port.close()
        assert port.fd == -1


class Later:
    """A clock that moves when slept on, and runs `arrive` once `ready_ns` of sleep are over."""

    def __init__(self, ready_ns: int, arrive: Callable[[], None]) -> None:
        self.sleeps: list[int] = []
        self._now_ns, self._ready_ns, self._arrive = 0, ready_ns, arrive

    def now_ns(self) -> int:
        return self._now_ns

    def sleep_until_ns(self, deadline_ns: int) -> None:
        self.sleeps.append(deadline_ns - self._now_ns)
        self._now_ns = deadline_ns
        if self._now_ns >= self._ready_ns:
            self._arrive()


class TestReopen:
    def test_ever_less_often_until_it_is_back(self, line: tuple[str, int], tmp_path: Path) -> None:
        link = tmp_path / "port"
        clock = Later(4 * NS, lambda: link.is_symlink() or link.symlink_to(line[0]))
        told: list[PortError] = []
        with serial_port.reopen(str(link), 1_000_000, 60 * NS, clock=clock, waiting=told.append) as port:
            port.write(b"x")
        assert [sleep // 1_000_000 for sleep in clock.sleeps] == [50, 100, 200, 400, 800, 1000, 1000, 1000]
        assert len(told) == 8 and "no serial port" in str(told[0])

    def test_in_the_end_it_says_why_not(self, tmp_path: Path) -> None:
        clock = Later(1 << 62, lambda: None)
        with pytest.raises(PortError, match="no serial port"):
            serial_port.reopen(str(tmp_path / "never"), 1_000_000, 3 * NS, clock=clock)
        assert sum(clock.sleeps) <= 3 * NS

    def test_at_once_where_it_is_there(self, line: tuple[str, int]) -> None:
        clock = Later(0, lambda: None)
        serial_port.reopen(line[0], 1_000_000, NS, clock=clock).close()
        assert clock.sleeps == []


class TestErrors:
    def test_missing_lists_what_exists(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(serial_port, "list_ports", lambda: ["/dev/serial/by-path/a", "/dev/ttyACM0"])
        with pytest.raises(PortError, match="no serial port /dev/ttyACM77; try /dev/serial/by-path/a, /dev/ttyACM0"):
            SerialPort("/dev/ttyACM77")

    def test_missing_and_none_at_all(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(serial_port, "list_ports", list)
        with pytest.raises(PortError, match="none exists: is the board plugged in"):
            SerialPort("/dev/ttyACM77")

    def test_not_a_serial_port(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        for path in (tmp_path / "file", tmp_path, Path("/dev/null")):
            with pytest.raises(PortError, match=f"{path} is not a serial port"):
                SerialPort(str(path))

    def test_permission(self) -> None:
        text = serial_port.explain("/dev/ttyACM0", "open", PermissionError(13, "Permission denied"))
        assert "dialout" in text and "/dev/ttyACM0" in text

    def test_termios_error_is_of_the_family(self) -> None:
        import termios

        text = serial_port.explain("/dev/x", "configure", termios.error(5, "Input/output error"))
        assert "unplugged" in text

    def test_a_baud_rate_no_tty_has(self, line: tuple[str, int]) -> None:
        with pytest.raises(PortError, match="cannot open serial port"):
            SerialPort(line[0], -5)


class TestLocks:
    def test_busy_names_the_holder(self, line: tuple[str, int]) -> None:
        with SerialPort(line[0]), pytest.raises(PortError, match=rf"in use by .*\({os.getpid()}\)"):
            SerialPort(line[0])

    def test_free_again_after_close(self, line: tuple[str, int]) -> None:
        SerialPort(line[0]).close()
        SerialPort(line[0]).close()

    def test_a_plain_open_of_another_user_fails(self, line: tuple[str, int]) -> None:
        path = line[0]
        os.chmod(path, 0o666)
        attempt = f"import os\nos.getuid() or os.setuid(65534)\nos.open({path!r}, os.O_RDWR | os.O_NOCTTY)"
        with SerialPort(path):
            held = subprocess.run([sys.executable, "-I", "-c", attempt], capture_output=True, text=True)
        free = subprocess.run([sys.executable, "-I", "-c", attempt], capture_output=True, text=True)
        assert "Device or resource busy" in held.stderr
        assert free.returncode == 0, free.stderr


def test_list_ports_prefers_stable_names(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"/dev/serial/by-path/*": ["/dev/serial/by-path/p"], "/dev/ttyUSB*": ["/dev/ttyUSB1", "/dev/ttyUSB0"]}
    monkeypatch.setattr("glob.glob", lambda pattern: found.get(pattern, []))
    assert serial_port.list_ports() == ["/dev/serial/by-path/p", "/dev/ttyUSB0", "/dev/ttyUSB1"]
