"""The servo bus on a machine that is busy with other things: control periods that fail, ours against dynamixel_sdk.

- bus_hogs: share of 100 Hz periods in which no cycle is completed, for an error or because one before took so long,
  while two processes a core burn CPU. 6 Dynamixel servos, sync write of goal positions and fast sync read of present
  positions, over a pty whose other end, the paced emulator, is a process of its own with real-time priority where it is
  allowed, as hardware is. Both clients have ordinary priority and the patience that the SDK has by itself; slices
  alternate.

A client that waits busily uses up its share of the processor while it waits; one that sleeps has it when it is woken.
"""

import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count

import dynamixel_sdk
import numpy as np

from dzedge.clock import NS, MonotonicClock
from dzedge.hardware.calibration import JointCalibration
from dzedge.hardware.control_table import table
from dzedge.hardware.dynamixel_plan import compile_plan
from dzedge.hardware.serial_port import SerialPort

IDS = [1, 2, 3, 4, 5, 6]
TICKS_PER_RAD = 4096 / (2 * np.pi)
CLOCK = MonotonicClock()
PERIOD_NS = NS // 100
SLICES, PERIODS = 3, 200
PATIENCE_NS = 34_000_000
"""What dynamixel_sdk adds to the wire time."""
BAR = 0.20

EMULATOR = """
import os, sys
from dzedge.hardware.sim.emulator import make_bus, make_servos
from dzedge.hardware.sim.pty_server import PtyServer
try:
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(20))
except OSError:
    pass
servos = make_servos("dynamixel", range(1, 7), [2000 + i for i in range(1, 7)])
for servo in servos:
    servo.set("return_delay", 0)
with PtyServer(make_bus("dynamixel", servos)) as server:
    print(server.path, flush=True)
    sys.stdin.readline()
"""
HOG = "while True: pass"


@contextmanager
def child(code: str) -> Iterator[subprocess.Popen[str]]:
    """A Python process that is ended on leaving."""
    made = subprocess.Popen(
        [sys.executable, "-I", "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        yield made
    finally:
        made.kill()
        made.wait(10)
        for stream in (made.stdin, made.stdout):
            assert stream is not None
            stream.close()


@contextmanager
def hogs(number: int) -> Iterator[None]:
    """So many processes that burn CPU."""
    made = [subprocess.Popen([sys.executable, "-I", "-c", HOG]) for _ in range(number)]
    try:
        yield
    finally:
        for hog in made:
            hog.kill()
            hog.wait(10)


@contextmanager
def ours(path: str) -> Iterator[Callable[[], bool]]:
    """Our cycle, used from Python; returns whether it came through."""
    joints = [JointCalibration(f"j{i}", i, 2048.0, TICKS_PER_RAD, 0, 4095) for i in IDS]
    tables = [table("xl330-m288")] * len(IDS)
    plan = compile_plan(joints, [2.5] * 6, tables, 1_000_000, state=False, fast=True, allowance_ns=PATIENCE_NS)
    cycle = plan.build()
    command, numbers = np.zeros(6), count()
    with SerialPort(path) as port:
        cycle.seed(np.full(6, goal(0), np.int32), CLOCK.now_ns())

        def run() -> bool:
            command.fill((goal(next(numbers)) - 2048) / TICKS_PER_RAD)
            now_ns = CLOCK.now_ns()
            refused = cycle.compose(command, now_ns)
            return not refused and not cycle.cycle(port.fd, now_ns + plan.budget_ns)

        yield run


@contextmanager
def sdk(path: str) -> Iterator[Callable[[], bool]]:
    """The vendor's."""
    port, packet = dynamixel_sdk.PortHandler(path), dynamixel_sdk.PacketHandler(2.0)
    port.openPort()
    port.setBaudRate(1_000_000)
    write = dynamixel_sdk.GroupSyncWrite(port, packet, 116, 4)
    read = dynamixel_sdk.GroupSyncRead(port, packet, 132, 4)
    for servo in IDS:
        write.addParam(servo, [0] * 4)
        read.addParam(servo)
    numbers = count()

    def run() -> bool:
        data = list(goal(next(numbers)).to_bytes(4, "little"))
        for servo in IDS:
            write.changeParam(servo, data)
        return not write.txPacket() and not read.fastSyncRead()

    try:
        yield run
    finally:
        port.closePort()


def goal(number: int) -> int:
    """Where all servos are sent in a cycle."""
    return 2048 + round(50 * math.sin(number / 50))


def failures(run: Callable[[], bool]) -> tuple[int, int]:
    """Of PERIODS: those without a completed cycle, and errors among them."""
    start_ns = CLOCK.now_ns()
    good = errors = 0
    while (period := (CLOCK.now_ns() - start_ns) // PERIOD_NS) < PERIODS:
        if run():
            good += 1
        else:
            errors += 1
        CLOCK.sleep_until_ns(start_ns + (period + 1) * PERIOD_NS)
    return PERIODS - good, errors


def run() -> list[dict]:
    failed, errors = {"ours": 0, "sdk": 0}, {"ours": 0, "sdk": 0}
    with child(EMULATOR) as emulator:
        assert emulator.stdout is not None
        path = emulator.stdout.readline().strip()
        with hogs(2 * len(os.sched_getaffinity(0))):
            for _ in range(SLICES):
                for name, client in (("ours", ours), ("sdk", sdk)):
                    with client(path) as cycle:
                        missed, wrong = failures(cycle)
                    failed[name] += missed
                    errors[name] += wrong
    sys.stderr.write(f"hogs: of {SLICES * PERIODS} periods failed: {failed}, with an error: {errors}\n")
    value, rival = (failed[name] / (SLICES * PERIODS) for name in ("ours", "sdk"))
    ratio = value / rival if rival else float(value > 0)
    return [
        {
            "id": "bus_hogs", "value": value, "unit": "failed", "rival": rival, "ratio": round(ratio, 4), "bar": BAR,
            "ok": ratio <= BAR,
        }
    ]  # fmt: skip
