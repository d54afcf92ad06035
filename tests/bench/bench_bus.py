"""The servo bus: CPU of a cycle against two other clients, and its duration against the wire.

- bus_cpu_scservo, bus_cpu_rustypot: CPU per cycle (rusage of this process) of 6 servos, sync write of goal
  positions and sync read of present positions, over a pty whose other end, a process of its own, answers as
  soon as it has read the request. All three clients send the same goals and must return the same positions;
  slices alternate, the lower quartile of each counts. Each client is used from Python, ours too.
- bus_wire, bus_wire_short: median duration of a cycle over its time on the wire at 1 Mbps, against the paced
  emulator in a process of its own: write 6 and read 15 bytes; write 2 and read 2. The emulator's transcript
  and every duration must show that no reply byte came before its wire time, or the figure is not ok.

Partner, emulator and, on the wire, we run with real-time priority where it is allowed, as the robot does.
"""

import json
import os
import resource
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import count

import numpy as np
import rustypot
import scservo_sdk

from dzedge.clock import MonotonicClock
from dzedge.hardware.arm import CyclePlan
from dzedge.hardware.calibration import JointCalibration
from dzedge.hardware.feetech_plan import compile_plan
from dzedge.hardware.serial_port import SerialPort

IDS = [1, 2, 3, 4, 5, 6]
TICKS_PER_RAD = 4096 / (2 * np.pi)
CLOCK = MonotonicClock()
SLICES, CYCLES = 80, 100
PACED_CYCLES, PACED_PERIOD_NS = 800, 5_000_000

REALTIME = """
import os
try:
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(20))
except OSError:
    pass
"""

PARTNER = REALTIME + """
import select, sys, tty
import numpy as np
from dzedge.kernels import codec

def reply(servo, count):
    out = bytearray(64)
    return bytes(out[: codec.status(out, servo, 0, (2000 + servo).to_bytes(count, "little"))])

def request(count):
    out = bytearray(64)
    return bytes(out[: codec.sync_read(out, 56, count, bytes(range(1, 7)))])

# 2 bytes; more where our cycle asks again after it lost a reply
answers = {request(n): b"".join(reply(servo, n) for servo in range(1, 7)) for n in range(2, 10)}
length = len(request(2))
lines = [os.openpty() for _ in range(3)]
for _, slave in lines:
    tty.setraw(slave)
print(*(os.ttyname(slave) for _, slave in lines), flush=True)
masters = [master for master, _ in lines] + [0]
read, write, ready = os.read, os.write, select.select
while True:
    for fd in ready(masters, (), ())[0]:
        if fd == 0:
            sys.exit()
        answer = answers.get(read(fd, 4096)[-length:])
        if answer:
            write(fd, answer)
"""

EMULATOR = REALTIME + """
import json, sys
from dzedge.hardware.sim.pty_server import PtyServer, TO_HOST, early_replies
from dzedge.hardware.sim.servo import Servo
from dzedge.hardware.sim.servo_bus import ServoBus
servos = [Servo(i, 2000 + i) for i in range(1, 7)]
for servo in servos:
    servo.set("return_delay", 0)
server = PtyServer(ServoBus(servos), keep=1_000_000)
print(server.path, flush=True)
server.start()
sys.stdin.readline()
transcript = list(server.transcript)
server.stop()
replies = sum(direction == TO_HOST for _, direction, _ in transcript)
print(json.dumps({"replies": replies, "early": early_replies(transcript, server.bus.byte_ns)}))
"""


@contextmanager
def process(code: str) -> Iterator[subprocess.Popen[str]]:
    """A Python process that ends when its standard input does."""
    child = subprocess.Popen(
        [sys.executable, "-I", "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        yield child
    finally:
        assert child.stdin is not None
        child.stdin.close()
        child.wait(10)


@contextmanager
def realtime() -> Iterator[None]:
    """SCHED_FIFO for this process where allowed, as the control loop has it."""
    before = os.sched_getscheduler(0), os.sched_getparam(0)
    with suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(10))
    try:
        yield
    finally:
        os.sched_setscheduler(0, *before)


def first_line(child: subprocess.Popen[str]) -> str:
    assert child.stdout is not None
    return child.stdout.readline().strip()


def plan(state: bool) -> CyclePlan:
    joints = [JointCalibration(f"j{i}", i, 2048.0, TICKS_PER_RAD, 0, 4095) for i in IDS]
    return compile_plan(joints, [2.5] * 6, 1_000_000, state=state, allowance_ns=20_000_000)


def goals(number: int) -> list[int]:
    """Where all servos are sent in a cycle: a slow triangle, within every client's reach."""
    return [2000 + abs(number % 200 - 100)] * 6


def ours(path: str) -> Callable[[], list[int]]:
    port = SerialPort(path)
    compiled = plan(state=False)
    cycle = compiled.build()
    cycle.seed(np.array(goals(0), np.int32), CLOCK.now_ns())
    command, ticks = np.zeros(6), np.asarray(cycle.ticks)
    numbers = count()

    def run() -> list[int]:
        now_ns = CLOCK.now_ns()
        command.fill((goals(next(numbers))[0] - 2048) / TICKS_PER_RAD)
        if cycle.compose(command, now_ns) or cycle.cycle(port.fd, now_ns + compiled.budget_ns):
            raise RuntimeError(f"our cycle failed: {list(cycle.results)}, {list(cycle.counters)}")
        return ticks.tolist()

    return run


def vendor(path: str) -> Callable[[], list[int]]:
    port = scservo_sdk.PortHandler(path)
    port.openPort()
    port.setBaudRate(1_000_000)
    sdk = scservo_sdk.PacketHandler(0)
    write = scservo_sdk.GroupSyncWrite(port, sdk, 42, 2)
    read = scservo_sdk.GroupSyncRead(port, sdk, 56, 2)
    for servo in IDS:
        read.addParam(servo)
        write.addParam(servo, [0, 0])
    numbers = count()

    def run() -> list[int]:
        for servo, goal in zip(IDS, goals(next(numbers)), strict=True):
            write.changeParam(servo, [goal & 0xFF, goal >> 8])
        if write.txPacket() or read.txRxPacket():
            port.ser.reset_input_buffer()
            raise RuntimeError("scservo_sdk's cycle failed")
        return [read.getData(servo, 56, 2) for servo in IDS]

    return run


def rusty(path: str) -> Callable[[], list[int]]:
    client = rustypot.Sts3215PyController(path, 1_000_000, 0.1)
    numbers = count()

    def run() -> list[int]:
        client.sync_write_raw_goal_position(IDS, goals(next(numbers)))
        return list(client.sync_read_raw_present_position(IDS))

    return run


def slice_us(run: Callable[[], list[int]]) -> float:
    """`cpu_us` of a slice in which every cycle came through: the machine may suspend the partner for so long
    that a client gives up, which says nothing about its CPU."""
    for _ in range(9):
        try:
            return cpu_us(run)
        except RuntimeError as error:
            sys.stderr.write(f"bus: slice thrown away: {error}\n")
    return cpu_us(run)


def cpu_us(run: Callable[[], list[int]]) -> float:
    """CPU time of one cycle, user and system [us], mean of a slice."""
    before = resource.getrusage(resource.RUSAGE_SELF)
    for _ in range(CYCLES):
        if run() != [2000 + servo for servo in IDS]:
            raise RuntimeError("a client returned positions that nobody sent")
    after = resource.getrusage(resource.RUSAGE_SELF)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return used / CYCLES * 1e6


def cpu() -> list[dict]:
    with process(PARTNER) as partner:
        paths = first_line(partner).split()
        clients = dict(zip(("ours", "scservo", "rustypot"), (ours, vendor, rusty), strict=True))
        cycles = {name: client(path) for (name, client), path in zip(clients.items(), paths, strict=True)}
        taken: dict[str, list[float]] = {name: [] for name in cycles}
        for cycle in cycles.values():
            slice_us(cycle)  # warm
        for _ in range(SLICES):
            for name, cycle in cycles.items():
                taken[name].append(slice_us(cycle))
    # the lower quartile of each: a loaded machine costs all of them, and most those that wait busily
    quiet = {name: statistics.quantiles(slices, n=4)[0] for name, slices in taken.items()}
    return [
        row(f"bus_cpu_{name}", quiet["ours"], "us", quiet[name], bar)
        for name, bar in (("scservo", 0.10), ("rustypot", 0.50))
    ]


def wire(name: str, state: bool, bar: float) -> dict:
    compiled = plan(state)
    cycle = compiled.build()
    durations: list[int] = []
    failed = 0
    with process(EMULATOR) as emulator, realtime():
        port = SerialPort(first_line(emulator))
        start_ns = CLOCK.now_ns()
        cycle.seed(np.array(goals(0), np.int32), start_ns)
        command = np.zeros(6)
        for number in range(PACED_CYCLES):
            CLOCK.sleep_until_ns(start_ns + number * PACED_PERIOD_NS)
            command[:] = (goals(number)[0] - 2048) / TICKS_PER_RAD
            now_ns = CLOCK.now_ns()
            refused = cycle.compose(command, now_ns)
            code = cycle.cycle(port.fd, now_ns + compiled.budget_ns)
            durations.append(CLOCK.now_ns() - now_ns)
            failed += bool(refused or code)
        port.close()
        assert emulator.stdin is not None
        emulator.stdin.write("\n")
        emulator.stdin.flush()
        proof = json.loads(first_line(emulator))
    result = row(name, statistics.median(durations) / 1e6, "ms", compiled.wire_ns / 1e6, bar)
    honest = proof["early"] == 0 and proof["replies"] >= 6 * (PACED_CYCLES - failed)
    honest = honest and min(durations) >= compiled.wire_ns and failed <= PACED_CYCLES // 100
    return result | {"ok": result["ok"] and honest, "early": proof["early"], "failed": failed}


def row(name: str, value: float, unit: str, rival: float, bar: float) -> dict:
    ratio = value / rival
    return {
        "id": name,
        "value": round(value, 4),
        "unit": unit,
        "rival": round(rival, 4),
        "ratio": round(ratio, 4),
        "bar": bar,
        "ok": ratio <= bar,
    }


def run() -> list[dict]:
    return [*cpu(), wire("bus_wire", True, 1.15), wire("bus_wire_short", False, 1.30)]

