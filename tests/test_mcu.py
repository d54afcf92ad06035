"""The driver of microcontroller arms against the reference sketch's own C++ core on a pty, and against a device in
memory that answers late, twice, or with what it said 256 requests ago."""

import os
import shutil
import struct
import subprocess
import tty
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from dzedge.clock import NS, FakeClock, MonotonicClock
from dzedge.errors import BusError, ConfigError, PortError, SafetyError
from dzedge.hardware import mcu_frame
from dzedge.hardware.arm import StopCategory
from dzedge.hardware.mcu import McuArm
from dzedge.hardware.mcu_frame import FrameReader, McuFrame
from dzedge.hardware.mcu_link import REFUSED, McuLink, Mode, Request, explain_faults
from dzedge.hardware.serial_port import SerialPort

ROOT = Path(__file__).resolve().parents[1]
SKETCH = ROOT / "hardware" / "sketches" / "dzedge_mcu"
STRICT = ["g++", "-std=c++11", "-Wall", "-Wextra", "-Werror"]
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler (g++) to build the core with")
BAUD = 9600
"""A pty does not care, and the driver then waits half a second for a reply: a loaded machine is no miss."""
HOLD_MS, OFF_MS = 200, 2000


@dataclass(frozen=True)
class Limits:
    name: str
    lower: float
    upper: float
    velocity: float


JOINTS = (Limits("pan", -1.5, 1.5, 2.0), Limits("lift", -0.9, 0.9, 1.0), Limits("gripper", 0.0, 1.0, 4.0))
START = [0.25, -0.5, 0.5]


class Device:
    """The compiled core as a process on a pty. torque: what it has been told, in order."""

    def __init__(self, program: Path) -> None:
        self.master, self.slave = os.openpty()
        tty.setraw(self.slave)
        self.path = os.ttyname(self.slave)
        self.torque: list[bool] = []
        self._process = subprocess.Popen(
            [program, str(self.master)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=[self.master],
            text=True,
        )

    def say(self, verb: str) -> None:
        """A verb of tests/mcu_host.cpp; returns once it is done."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(verb + "\n")
        self._process.stdin.flush()
        while (line := self._process.stdout.readline().strip()) != "ok":
            assert line.startswith("torque "), f"the core ended: {line!r}"
            self.torque.append(line == "torque 1")

    def close(self) -> None:
        if self._process.stdin is not None and not self._process.stdin.closed:
            self._process.stdin.close()
            os.close(self.master)
            os.close(self.slave)
        assert self._process.wait(10) == 0
        if self._process.stdout is not None:
            self._process.stdout.close()


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("mcu") / "mcu_host"
    sources = [SKETCH / "mcu_core.cpp", ROOT / "tests" / "mcu_host.cpp"]
    subprocess.run([*STRICT, "-O1", "-fsanitize=undefined", "-fno-sanitize-recover", f"-I{SKETCH}", *sources,
                    "-o", out], check=True)  # fmt: skip
    return out


@pytest.fixture
def device(program: Path) -> Iterator[Device]:
    made = Device(program)
    yield made
    made.close()


@pytest.fixture
def arm(device: Device) -> Iterator[McuArm]:
    made = McuArm(JOINTS, device.path, baud=BAUD, hold_ms=HOLD_MS, off_ms=OFF_MS, cycle_ns=10 * NS)
    made.open()
    yield made
    made.close()


def positions(*values: float) -> np.ndarray:
    return np.array(values, np.float64)


@needs_compiler
class TestCoreOnAPty:
    def test_life(self, arm: McuArm, device: Device) -> None:
        arm.configure()
        assert arm.state().mode == Mode.OFF and arm.plan() is None and arm.fd >= 0
        held = arm.activate()
        assert held.positions == pytest.approx(START)
        assert arm.write(positions(0.3, -0.5, 1.0)).positions == pytest.approx(START, abs=1e-3)
        device.say("advance 100000")
        # at their velocities: the first has arrived, the gripper is on its way
        assert arm.read().positions == pytest.approx([0.3, -0.5, 0.9], abs=1e-3)
        arm.deactivate(StopCategory.OFF)
        assert arm.state().mode == Mode.OFF
        device.say("advance 1")
        assert device.torque == [True, False]

    def test_the_watchdog_holds_then_switches_off(self, arm: McuArm, device: Device) -> None:
        arm.configure()
        arm.activate()
        arm.write(positions(1.5, -0.5, 0.5))
        for _ in range(5):
            device.say("advance 100000")
            arm.write(positions(1.5, -0.5, 0.5))
        assert arm.state().mode == Mode.ACTIVE, "commands feed it"
        for _ in range(3):
            device.say("advance 100000")
            state = arm.state()
        assert (state.mode, state.cause) == (Mode.HOLDING, "its watchdog had no command in time"), "reads do not"
        device.say("advance 1000000")
        stopped = arm.state()
        assert stopped.mode == Mode.HOLDING
        assert stopped.joints[0].position == state.joints[0].position < 1.5, "it holds where it was"
        with pytest.raises(BusError, match="refused CYCLE: not in its present mode; activate the arm"):
            arm.write(positions(1.5, -0.5, 0.5))
        device.say("advance 1000000")
        assert arm.state().mode == Mode.OFF
        assert device.torque == [True, False]

    def test_activation_of_a_held_arm_keeps_its_command(self, arm: McuArm, device: Device) -> None:
        arm.configure()
        arm.activate()
        arm.write(positions(1.0, -0.5, 0.5))
        device.say("advance 100000")
        arm.deactivate(StopCategory.HOLD)
        device.say("advance 1000000")
        assert arm.activate().positions[0] == pytest.approx(0.45, abs=1e-3)
        device.say("advance 100000")
        assert arm.state().joints[0].command == pytest.approx(0.45, abs=1e-3), "not on to the old goal"
        assert device.torque == [True]

    def test_activation_stops_what_a_dead_host_had_begun(self, arm: McuArm, device: Device) -> None:
        arm.configure()
        arm.activate()
        arm.write(positions(1.0, -0.5, 0.5))
        device.say("advance 50000")
        where = arm.activate().positions[0]
        device.say("advance 100000")
        assert arm.read().positions[0] == pytest.approx(where, abs=1e-3)

    def test_nothing_energises_without_a_watchdog(self, arm: McuArm, device: Device) -> None:
        for hold, off in ((0, 0), (0, 1000), (19, 1000), (200, 200), (200, 0), (1001, 2000), (200, 60001)):
            with pytest.raises(BusError, match="a value is outside"):
                arm.link.request(Request.ENABLE, struct.pack("<HH", hold, off))
        with pytest.raises(BusError, match="another length"):
            arm.link.request(Request.ENABLE)
        device.say("advance 1")
        assert device.torque == []
        with pytest.raises(ConfigError, match=r"off_ms = 150 in \[201, 60000\]"):
            McuArm(JOINTS, device.path, hold_ms=200, off_ms=150)

    def test_values_that_the_device_refuses(self, arm: McuArm, device: Device) -> None:
        arm.configure()
        arm.activate()
        for bad in (np.nan, np.inf, -np.inf, 1.001, -1.001):
            with pytest.raises(BusError, match="refused CYCLE because of joint 1"):
                arm.link.request(Request.CYCLE, np.array([0, bad, 0], "<f4").tobytes())
        device.say("advance 100000")
        assert arm.read().positions == pytest.approx(START)

    def test_faults(self, arm: McuArm, device: Device) -> None:
        arm.configure()
        arm.activate()
        device.say("joint 1 12")
        device.say("joint 1 0")
        state = arm.state()
        assert (state.mode, state.cause) == (Mode.FAULT, "a fault"), "latched though gone"
        assert state.troubles == ["joint 1: overheated, overloaded"]
        with pytest.raises(BusError, match="a fault is latched"):
            arm.write(positions(*START))
        with pytest.raises(SafetyError, match="joint 1: overheated, overloaded"):
            arm.activate()
        arm.clear()
        assert arm.state().mode == Mode.HOLDING
        arm.activate()
        device.say("fault 1")
        arm.deactivate(StopCategory.OFF)
        arm.clear()
        with pytest.raises(BusError, match="the board: undervoltage"):
            arm.configure()
        assert explain_faults(129) == "undervoltage, unknown fault 7"

    def test_a_sensor_without_a_number(self, arm: McuArm, device: Device) -> None:
        arm.configure()
        device.say("place 2 nan")
        with pytest.raises(BusError, match="no number at joint 2"):
            arm.activate()
        device.say("advance 1")
        assert device.torque == []

    def test_an_arm_outside_its_limits_stays_without_torque(self, arm: McuArm, device: Device) -> None:
        arm.configure()
        device.say("place 1 0.95")
        with pytest.raises(SafetyError, match=r"lift stands at 0.950, outside \[-0.9, 0.9\]"):
            arm.activate()
        device.say("advance 1")
        assert device.torque == []

    def test_a_robot_file_that_does_not_fit(self, device: Device) -> None:
        wide = (JOINTS[0], replace(JOINTS[1], upper=1.2), replace(JOINTS[2], velocity=5.0))
        arm = McuArm(wide, device.path, baud=BAUD)
        arm.open()
        with pytest.raises(BusError, match=r"lift: the device allows \[-1, 1\].*gripper: the device goes up to 4"):
            arm.configure()
        arm.close()
        arm = McuArm(JOINTS[:2], device.path, baud=BAUD)
        arm.open()
        with pytest.raises(BusError, match="the device has 3 joints, the robot file 2"):
            arm.configure()
        arm.close()

    def test_lost_late_and_doubled_replies(self, arm: McuArm, device: Device) -> None:
        arm.configure()
        device.say("mute 1")
        assert arm.state().mode == Mode.OFF and arm.link.missed == 1
        device.say("repeat 3")
        for place in (0.1, 0.2, 0.3):
            device.say(f"place 0 {place}")
            assert arm.read().positions[0] == pytest.approx(place)
        device.say("late 1")
        device.say("place 0 0.4")
        assert arm.read().positions[0] == pytest.approx(0.4)
        assert (arm.link.missed, arm.link.strays) == (2, 1)
        device.say("mute 3")
        with pytest.raises(BusError, match="no answer to READ in 3 attempts"):
            arm.read()

    def test_garbage_does_not_disturb_it(self, arm: McuArm, device: Device) -> None:
        arm.configure()
        rng = np.random.default_rng(1)
        good = mcu_frame.encode(McuFrame(Request.ENABLE, 1, struct.pack("<HH", 200, 2000)))
        for _ in range(300):
            damaged = bytearray(good)
            damaged[rng.integers(len(good) - 1)] ^= 1 << int(rng.integers(8))
            arm.link.port.write(bytes(damaged) + rng.bytes(int(rng.integers(400))) + b"\0", NS * 10)
        arm.link.port.write(b"\0" * 50)
        state = arm.state()
        assert state.mode == Mode.OFF and state.dropped >= 300
        device.say("advance 1")
        assert device.torque == []

    def test_the_judge_talks_to_it(self, device: Device) -> None:
        cobs = pytest.importorskip("cobs.cobs", reason="PyPI cobs is the judge (requirements-dev.txt)")
        with SerialPort(device.path, BAUD) as port:
            for seq in (0, 1, 255):
                plain = bytes([1, seq, 1])
                port.write(cobs.encode(plain + zlib.crc32(plain).to_bytes(4, "little")) + b"\0")
                heard = b""
                while not heard.endswith(b"\0"):
                    heard += port.read(MonotonicClock().now_ns() + 10 * NS)
                reply = cobs.decode(heard[:-1])
                assert zlib.crc32(reply[:-4]) == int.from_bytes(reply[-4:], "little")
                assert reply[:4] == bytes([0x81, seq, 1, 3])
                limits = np.frombuffer(reply[4:-4], "<f4").reshape(3, 3)
                assert limits.tolist() == [[-1.5, 1.5, 2.0], [-1.0, 1.0, 2.0], [0.0, 1.0, 4.0]]

    def test_unplugged(self, arm: McuArm, device: Device) -> None:
        arm.configure()
        arm.activate()
        device.close()
        with pytest.raises(PortError, match="unplugged"):
            arm.write(positions(*START))
        with pytest.raises(BusError, match="watchdog ends it within 2 s"):
            arm.deactivate(StopCategory.STOP_THEN_OFF)

    def test_stop_then_off(self, arm: McuArm, device: Device) -> None:
        arm.configure()
        arm.activate()
        arm.write(positions(1.0, -0.5, 0.5))
        arm.deactivate(StopCategory.STOP_THEN_OFF)
        assert arm.state().mode == Mode.OFF
        with pytest.raises(BusError, match="refused HOLD"):
            arm.deactivate(StopCategory.HOLD)


@needs_compiler
class TestSketch:
    ARDUINO = """
        #pragma once
        #include <stddef.h>
        #include <stdint.h>
        enum { A0 = 14, A1, A2 };
        int analogRead(uint8_t pin);
        unsigned long micros();
        struct Port { void begin(unsigned long); int available(); int read(); size_t write(const uint8_t*, size_t); };
        extern Port Serial;
    """
    SERVO = "#include <Arduino.h>\nstruct Servo { uint8_t attach(int); void detach(); void writeMicroseconds(int); };"

    def test_the_sketch_fits_the_core_and_arduinos_interface(self, tmp_path: Path) -> None:
        (tmp_path / "Arduino.h").write_text(self.ARDUINO)
        (tmp_path / "Servo.h").write_text(self.SERVO)
        command = [*STRICT, "-fsyntax-only", f"-I{tmp_path}", "-include", "Arduino.h", "-x", "c++"]
        subprocess.run([*command, SKETCH / "dzedge_mcu.ino"], check=True)

    def test_the_core_needs_no_board_no_exceptions_no_heap(self, tmp_path: Path) -> None:
        built = tmp_path / "core.o"
        flags = ["-Wconversion", "-Os", "-fno-exceptions", "-fno-rtti", "-c", SKETCH / "mcu_core.cpp", "-o", built]
        subprocess.run([*STRICT, *flags], check=True)
        names = subprocess.run(["nm", "-u", built], check=True, capture_output=True, text=True).stdout
        assert not {"malloc", "_Znwm", "free", "_ZdlPv"} & set(names.split())
        assert "Arduino" not in (SKETCH / "mcu_core.cpp").read_text() + (SKETCH / "mcu_core.h").read_text()


class MemoryDevice:
    """A device in memory on the fake clock. Each request moves its one joint to a new place, so that an old reply is
    known by its value. delay_ns(request's number): when the reply comes, None: never."""

    path, baud, fd = "memory", 1_000_000, -1

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        self.count = 0
        self.delay_ns = lambda number: 0
        self.after = lambda number, reply: [reply]
        self.history: list[McuFrame] = []
        self._reader, self._queue = FrameReader(), list[tuple[int, bytes]]()

    def write(self, data: bytes) -> None:
        for request in self._reader.feed(data):
            self.count += 1
            head = struct.pack("<BBBBQH", Mode.OFF, 0, 0, 1, self.clock.now_ns() // 1000 + self.count, 0)
            payload = head + struct.pack("<fffB", self.count, 0, 0, 0)
            reply = McuFrame(request.type | 0x80, request.seq, payload)
            self.history.append(reply)
            delay = self.delay_ns(self.count)
            if delay is not None:
                wire = b"".join(mcu_frame.encode(frame) for frame in self.after(self.count, reply))
                self._queue.append((self.clock.now_ns() + delay, wire))
                self._queue.sort()

    def read(self, deadline_ns: int) -> bytes:
        if self._queue and self._queue[0][0] <= deadline_ns:
            ready_ns, data = self._queue.pop(0)
            self.clock.sleep_until_ns(ready_ns)
            return data
        self.clock.sleep_until_ns(deadline_ns)
        return b""

    def drain(self) -> int:
        before = len(self._queue)
        self._queue = [item for item in self._queue if item[0] > self.clock.now_ns()]
        return before - len(self._queue)

    def close(self) -> None:
        """Nothing to close."""


class TestFreshness:
    def link(self) -> tuple[MemoryDevice, McuLink]:
        clock = FakeClock()
        device = MemoryDevice(clock)
        return device, McuLink(device, 1, clock=clock)

    def test_late_replies_are_never_taken_for_fresh(self) -> None:
        device, link = self.link()
        rng = np.random.default_rng(2)
        delays = rng.choice([0.2, 0.95, 1.05, 1.5, 3.0], 10_000) * link.patience_ns
        device.delay_ns = lambda number: int(delays[number % len(delays)])
        answered = 0
        for _ in range(10_000):
            try:
                state = link.request(Request.READ, attempts=1)
            except BusError:
                continue
            answered += 1
            assert state.joints[0].position == device.count
        assert answered + link.missed == 10_000
        assert 3500 < answered < 4500 and link.strays > 1000, "both kinds were tried"

    def test_doubled_replies(self) -> None:
        device, link = self.link()
        device.after = lambda number, reply: [reply, reply]
        for _ in range(600):
            assert link.request(Request.READ, attempts=1).joints[0].position == device.count

    def test_a_sequence_number_that_comes_round_is_not_enough(self) -> None:
        device, link = self.link()
        device.after = lambda number, reply: [device.history[-257], reply] if number > 256 else [reply]
        for _ in range(600):
            assert link.request(Request.READ, attempts=1).joints[0].position == device.count
        assert link.stale == 600 - 256

    def test_a_device_that_has_restarted_says_so(self) -> None:
        device, link = self.link()
        link.request(Request.READ)
        device.after = lambda number, reply: [replace(reply, payload=reply.payload[:4] + bytes(8) + reply.payload[12:])]
        with pytest.raises(BusError, match="its clock went back: it was restarted"):
            link.request(Request.READ)

    def test_an_adapter_that_echoes(self) -> None:
        device, link = self.link()
        device.after = lambda number, reply: [McuFrame(reply.type & 0x7F, reply.seq, b""), reply]
        assert link.request(Request.READ, attempts=1).joints[0].position == 1
        assert link.strays == 1

    def test_foreign_frames(self) -> None:
        device, link = self.link()
        device.after = lambda number, reply: [
            replace(reply, type=Request.CYCLE | 0x80),
            replace(reply, seq=reply.seq ^ 1),
            replace(reply, payload=reply.payload + b"\0"),
            McuFrame(REFUSED, reply.seq, bytes((Request.CYCLE, 3, 0))),
            reply,
        ]
        assert link.request(Request.READ, attempts=1).joints[0].position == 1
        assert link.strays == 4

    def test_commands_outside_the_limits_are_not_sent(self) -> None:
        device, _ = self.link()
        arm = McuArm([Limits("pan", -1.5, 1.5, 2.0)], device, clock=device.clock)
        with pytest.raises(BusError, match="not open"):
            arm.read()
        arm.open()
        for bad in (positions(np.nan), positions(np.inf), positions(1e300), positions(1.51), positions(0, 0)):
            with pytest.raises(SafetyError, match="nothing was sent"):
                arm.write(bad)
        assert device.count == 0
        arm.write(positions(1.5))
        assert device.count == 1

    def test_a_cycle_waits_no_longer_than_its_period(self) -> None:
        device, _ = self.link()
        arm = McuArm([Limits("pan", -1.5, 1.5, 2.0)], device, clock=device.clock)
        arm.open()
        device.delay_ns = lambda number: None
        before_ns = device.clock.now_ns()
        with pytest.raises(BusError, match="no answer to CYCLE in 1 attempts"):
            arm.write(positions(0))
        assert device.clock.now_ns() - before_ns == NS // 50 and device.count == 1
