"""The Dynamixel bus: CPU of a cycle against two other clients.

- bus_cpu_dxl_sdk, bus_cpu_dxl_rustypot: CPU per cycle (rusage of this process) of 6 XL330, sync write of goal positions
  and sync read of present positions, over a pty whose other end, a process of its own, answers as soon as it has read
  the request. All three clients send the same goals and must return the same positions; slices alternate, the lower
  quartile of each counts. Each client is used from Python, ours too, and ours reads the velocity as well.
- bus_cpu_dxl_fast: ours and the vendor's by fast sync read.
"""

import importlib.util
import statistics
import sys
from collections.abc import Callable
from itertools import count
from pathlib import Path
from types import ModuleType

import dynamixel_sdk
import numpy as np
import rustypot

from dzedge.clock import MonotonicClock
from dzedge.hardware.calibration import JointCalibration
from dzedge.hardware.control_table import table
from dzedge.hardware.dynamixel_plan import compile_plan
from dzedge.hardware.serial_port import SerialPort

IDS = [1, 2, 3, 4, 5, 6]
GOAL, PRESENT, SIZE = 116, 132, 4
TICKS_PER_RAD = 4096 / (2 * np.pi)
CLOCK = MonotonicClock()
SLICES = 60
CLIENTS = ("ours", "sdk", "rustypot", "ours_fast", "sdk_fast")

PARTNER = """
import os, select, sys, tty
from dzedge.kernels import codec_dynamixel as codec

def status(servo, count):
    out = bytearray(64)
    data = (bytes(20) + (2000 + servo).to_bytes(4, "little"))[-count:]
    return bytes(out[: codec.status(out, servo, 0, data)])

def together(count):
    frame = bytes.fromhex("fffffd00fe") + (6 * (count + 4) + 1).to_bytes(2, "little") + bytes([0x55])
    for servo in range(1, 7):
        frame += bytes([0, servo]) + (bytes(20) + (2000 + servo).to_bytes(4, "little"))[-count:]
        frame += codec.crc(frame, 0, len(frame), 0).to_bytes(2, "little")
    return frame

def request(encoder, count):
    out = bytearray(64)
    return bytes(out[: encoder(out, 136 - count, count, bytes(range(1, 7)))])

counts = (4, 8, 10, 12, 13, 14, 16, 20)
answers = {request(codec.sync_read, n): b"".join(status(servo, n) for servo in range(1, 7)) for n in counts}
answers |= {request(codec.fast_sync_read, n): together(n) for n in counts}
length = len(request(codec.sync_read, 4))
lines = [os.openpty() for _ in range(5)]
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


def shared() -> ModuleType:
    """bench_bus.py: processes, slices and rows are the same there."""
    name = "bench_bus_shared"
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name("bench_bus.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


SHARED = shared()


def ours(path: str, fast: bool) -> Callable[[], list[int]]:
    port = SerialPort(path)
    joints = [JointCalibration(f"j{i}", i, 2048.0, TICKS_PER_RAD, 0, 4095) for i in IDS]
    tables = [table("xl330-m288")] * 6
    compiled = compile_plan(joints, [2.5] * 6, tables, 1_000_000, state=False, fast=fast, allowance_ns=20_000_000)
    cycle = compiled.build()
    cycle.seed(np.array(SHARED.goals(0), np.int32), CLOCK.now_ns())
    command, ticks = np.zeros(6), np.asarray(cycle.ticks)
    numbers = count()

    def run() -> list[int]:
        now_ns = CLOCK.now_ns()
        command.fill((SHARED.goals(next(numbers))[0] - 2048) / TICKS_PER_RAD)
        if cycle.compose(command, now_ns) or cycle.cycle(port.fd, now_ns + compiled.budget_ns):
            raise RuntimeError(f"our cycle failed: {list(cycle.results)}, {list(cycle.counters)}")
        return ticks.tolist()

    return run


def vendor(path: str, fast: bool) -> Callable[[], list[int]]:
    port = dynamixel_sdk.PortHandler(path)
    port.openPort()
    port.setBaudRate(1_000_000)
    sdk = dynamixel_sdk.PacketHandler(2.0)
    write = dynamixel_sdk.GroupSyncWrite(port, sdk, GOAL, SIZE)
    read = dynamixel_sdk.GroupSyncRead(port, sdk, PRESENT, SIZE)
    for servo in IDS:
        read.addParam(servo)
        write.addParam(servo, [0] * SIZE)
    exchange = read.fastSyncRead if fast else read.txRxPacket
    numbers = count()

    def run() -> list[int]:
        for servo, goal in zip(IDS, SHARED.goals(next(numbers)), strict=True):
            write.changeParam(servo, list(goal.to_bytes(SIZE, "little")))
        if write.txPacket() or exchange():
            port.ser.reset_input_buffer()
            raise RuntimeError("dynamixel_sdk's cycle failed")
        return [read.getData(servo, PRESENT, SIZE) for servo in IDS]

    return run


def rusty(path: str) -> Callable[[], list[int]]:
    client = rustypot.Xl330PyController(path, 1_000_000, 0.1)
    numbers = count()

    def run() -> list[int]:
        client.sync_write_raw_goal_position(IDS, SHARED.goals(next(numbers)))
        return list(client.sync_read_raw_present_position(IDS))

    return run


def run() -> list[dict]:
    with SHARED.process(SHARED.REALTIME + PARTNER) as partner:
        paths = SHARED.first_line(partner).split()
        made = (
            lambda path: ours(path, False), lambda path: vendor(path, False), rusty,
            lambda path: ours(path, True), lambda path: vendor(path, True),
        )  # fmt: skip
        cycles = {name: client(path) for name, client, path in zip(CLIENTS, made, paths, strict=True)}
        taken: dict[str, list[float]] = {name: [] for name in cycles}
        for cycle in cycles.values():
            SHARED.slice_us(cycle)  # warm
        for _ in range(SLICES):
            for name, cycle in cycles.items():
                taken[name].append(SHARED.slice_us(cycle))
    quiet = {name: statistics.quantiles(slices, n=4)[0] for name, slices in taken.items()}
    return [
        SHARED.row("bus_cpu_dxl_sdk", quiet["ours"], "us", quiet["sdk"], 0.10),
        SHARED.row("bus_cpu_dxl_rustypot", quiet["ours"], "us", quiet["rustypot"], 0.50),
        SHARED.row("bus_cpu_dxl_fast", quiet["ours_fast"], "us", quiet["sdk_fast"], 0.10),
    ]
