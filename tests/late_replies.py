"""Counts late replies that a servo bus takes for fresh, which must be none.

    python tests/late_replies.py [--cycle 1000000] [--tools 1000000] [--pty 10000] [--seed 0]

Servos whose present position is the number of the request that it answers. Each answers in order, but a link between
keeps replies back: for a moment, for several cycles, for the same number of cycles again and again, for a long stall;
and it loses some. A reply that comes after its cycle or its question is a late one; those are counted, and a value that
is believed must be of the present request. `--cycle`: the control tick's cycle in memory; `--tools`: single reads of
registers in memory; `--pty`: the cycle on a pseudo-terminal in real time. Both protocols; exit status 1 where one was
believed.
"""

import argparse
import heapq
import json
import os
import pty
import sys
import threading
import time
import tty
from dataclasses import dataclass, field
from random import Random

import numpy as np

from dzedge.clock import NS, MonotonicClock
from dzedge.errors import BusError
from dzedge.hardware import dynamixel_plan, feetech_plan
from dzedge.hardware.calibration import JointCalibration
from dzedge.hardware.control_table import table
from dzedge.hardware.dynamixel_bus import DynamixelBus
from dzedge.hardware.feetech_bus import FeetechBus
from dzedge.kernels import bus as kernel
from dzedge.kernels import codec, codec_dynamixel
from dzedge.kernels.bus import BusCycle, ServoCode

PROTOCOLS = ("feetech", "dynamixel")
IDS = (1, 2, 3, 4, 5, 6)
PERIOD_NS = 10_000_000
PTY_PERIOD_NS = 4_000_000
NUMBERS = 4000
"""Request numbers start anew here: positions must lie within a turn."""
PROMPT_NS = 300_000


@dataclass
class Count:
    """What was seen. late: replies that came after their cycle; believed: of them taken for fresh."""

    late: int = 0
    believed: int = 0
    fresh: int = 0
    kinds: dict[str, int] = field(default_factory=dict)


class Link:
    """Delays of replies, by the mood of the moment; each servo's replies stay in order."""

    def __init__(self, seed: int, period_ns: int) -> None:
        self.random = Random(seed)
        self._period_ns = period_ns
        self._free_ns: dict[int, int] = {}
        self._mood, self._left, self._steady_ns = "good", 0, 0

    def ready_ns(self, servo: int, now_ns: int) -> int:
        """When the reply to a request of now_ns comes; -1: never."""
        random, period = self.random, self._period_ns
        if self._left == 0:
            self._mood = random.choice(("good", "jitter", "jitter", "steady", "stall"))
            self._left = random.randrange(6, 600)
            self._steady_ns = random.randrange(1, 24) * period
        self._left -= 1
        delay_ns = PROMPT_NS
        if random.random() < 0.02:
            return -1
        if self._mood == "jitter":
            delay_ns = random.randrange(0, 5 * period)
        elif self._mood == "steady":
            delay_ns = self._steady_ns + random.randrange(-period // 10, period // 10)
        elif self._mood == "stall":
            delay_ns = self._left * period // 12
        ready_ns = max(now_ns + delay_ns, self._free_ns.get(servo, 0) + 1000)
        self._free_ns[servo] = ready_ns
        return ready_ns


def answer(protocol: str, request: bytes, number: int) -> list[tuple[int, bytes]]:
    """The replies, by servo, to a request that only reads; a fast one is servo 0's."""
    out = bytearray(1024)
    if protocol == "feetech":
        data = (number % NUMBERS).to_bytes(2, "little") + bytes(request[6] - 2)
        return [(servo, bytes(out[: codec.status(out, servo, 0, data)])) for servo in request[7:-1]]
    count, servos = request[10] | request[11] << 8, request[12:-2]
    data = bytearray(count)
    codec_dynamixel.put_long(data, count - 15, number % NUMBERS)
    if request[7] != codec_dynamixel.FAST_SYNC_READ:
        return [(servo, bytes(out[: codec_dynamixel.status(out, servo, 0, data)])) for servo in servos]
    frame = bytes.fromhex("ff ff fd 00 fe") + (len(servos) * (count + 4) + 1).to_bytes(2, "little") + b"\x55"
    for servo in servos:
        frame += bytes([0, servo]) + data
        frame += codec_dynamixel.crc(frame, 0, len(frame), 0).to_bytes(2, "little")
    return [(0, frame)]


def cycle(protocol: str) -> BusCycle:
    joints = [JointCalibration(f"j{i}", i, 0.0, 1.0, 0, 4095) for i in IDS]
    if protocol == "feetech":
        return feetech_plan.compile_plan(joints, [1.0] * 6, 1_000_000, state=True).build()
    tables = [table("xl330-m077")] * 6
    return dynamixel_plan.compile_plan(joints, [1.0] * 6, tables, 1_000_000, state=True, fast=True).build()


def judge(bus: BusCycle, number: int, count: Count) -> None:
    """Every servo that counts as heard in this cycle must have said its number."""
    for result, ticks in zip(bus.results, bus.ticks, strict=True):
        if result == ServoCode.SERVO_OK:
            count.fresh += 1
            count.believed += ticks != number % NUMBERS


def in_memory(protocol: str, trials: int, seed: int) -> Count:
    """The control tick's cycle on the fake clock."""
    bus, link, count = cycle(protocol), Link(seed, PERIOD_NS), Count()
    queue: list[tuple[int, int, int, bytes]] = []
    now_ns, number, order = 5 * NS, 0, 0
    while count.late < trials:
        number += 1
        now_ns += PERIOD_NS
        # what came since the last deadline was drained before the request
        while queue and queue[0][0] <= now_ns:
            heapq.heappop(queue)
            count.late += 1
        for servo, reply in answer(protocol, bus.request(now_ns), number):
            ready_ns = link.ready_ns(servo, now_ns)
            if ready_ns >= 0:
                order += 1
                heapq.heappush(queue, (ready_ns, order, number, reply))
        while queue and queue[0][0] <= now_ns + PERIOD_NS * 8 // 10:
            _, _, of, reply = heapq.heappop(queue)
            count.late += of != number
            bus.feed(reply)
        bus.finish()
        judge(bus, number, count)
    return count


class MemoryPort:
    """One servo on a port of the fake clock. Its answers hold the number of the question, and its address."""

    path, baud, fd = "memory", 1_000_000, -1

    def __init__(self, protocol: str, link: Link, late: Count) -> None:
        self.protocol, self.link, self.late = protocol, link, late
        self.time_ns, self.number = NS, 0
        self._queue: list[tuple[int, int, bytes]] = []

    def now_ns(self) -> int:
        return self.time_ns

    def write(self, data: bytes) -> None:
        self.number += 1
        ready_ns = self.link.ready_ns(1, self.time_ns)
        if ready_ns >= 0:
            self._queue.append((ready_ns, self.number, self._reply(data)))

    def _reply(self, request: bytes) -> bytes:
        out = bytearray(64)
        if self.protocol == "feetech":
            data = self._data(request[5], request[6])
            return bytes(out[: codec.status(out, 1, 0, data)])
        data = self._data(request[8] | request[9] << 8, request[10] | request[11] << 8)
        return bytes(out[: codec_dynamixel.status(out, 1, 0, data)])

    def _data(self, address: int, count: int) -> bytes:
        """The first byte tells the address, the second and third the question's number."""
        return (bytes([address % 256]) + (self.number % 65536).to_bytes(2, "little") + bytes(count))[:count]

    def read(self, deadline_ns: int) -> bytes:
        if self._queue and self._queue[0][0] <= deadline_ns:
            ready_ns, number, reply = self._queue.pop(0)
            self.time_ns = max(self.time_ns, ready_ns)
            self.late.late += number != self.number
            return reply
        self.time_ns = max(self.time_ns, deadline_ns)
        return b""

    def drain(self) -> int:
        before = len(self._queue)
        self._queue = [entry for entry in self._queue if entry[0] > self.time_ns]
        self.late.late += before - len(self._queue)
        return before - len(self._queue)

    def close(self) -> None:
        pass


def tools(protocol: str, trials: int, seed: int) -> Count:
    """Single reads, whose answers are late by more than they are waited for."""
    count = Count()
    port = MemoryPort(protocol, Link(seed, PERIOD_NS), count)
    bus = (FeetechBus if protocol == "feetech" else DynamixelBus)(port, clock=port)
    random = Random(seed)
    while count.late < trials:
        address, size = random.randrange(40, 60), random.choice((3, 3, 4, 4, 6))
        try:
            data = bus.read(1, address, size).data
        except BusError:
            continue
        count.fresh += 1
        count.believed += data[0] != address or int.from_bytes(data[1:3], "little") != port.number % 65536
    return count


class Partner:
    """Answers on the far end of a pseudo-terminal, late, from a thread of its own."""

    def __init__(self, protocol: str, seed: int, count: Count) -> None:
        self.protocol, self.count = protocol, count
        self.master, self.slave = pty.openpty()
        tty.setraw(self.slave)
        os.set_blocking(self.master, False)
        os.set_blocking(self.slave, False)
        self.number = 0
        self._link = Link(seed, PTY_PERIOD_NS)
        self._queue: list[tuple[int, int, int, bytes]] = []
        self._order = 0
        self._stopped = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stopped:
            now_ns = time.monotonic_ns()
            try:
                self._ask(os.read(self.master, 4096), now_ns)
            except BlockingIOError:
                time.sleep(2e-4)
            while self._queue and self._queue[0][0] <= now_ns:
                _, _, of, reply = heapq.heappop(self._queue)
                self.count.late += of != self.number
                os.write(self.master, reply)

    def _ask(self, request: bytes, now_ns: int) -> None:
        self.number += 1
        for servo, reply in answer(self.protocol, request, self.number):
            ready_ns = self._link.ready_ns(servo, now_ns)
            if ready_ns >= 0:
                self._order += 1
                heapq.heappush(self._queue, (ready_ns, self._order, self.number, reply))

    def stop(self) -> None:
        self._stopped = True
        self._thread.join(5)
        os.close(self.master)
        os.close(self.slave)


def on_pty(protocol: str, trials: int, seed: int) -> Count:
    """The control tick's cycle on a pseudo-terminal, in real time."""
    bus, count, clock = cycle(protocol), Count(), MonotonicClock()
    partner = Partner(protocol, seed, count)
    number = 0
    try:
        while count.late < trials:
            begin_ns = clock.now_ns()
            bus.cycle(partner.slave, begin_ns + PTY_PERIOD_NS)
            number += 1
            judge(bus, number, count)
            clock.sleep_until_ns(begin_ns + PTY_PERIOD_NS + PTY_PERIOD_NS // 4)
            if partner.number != number:  # it was not scheduled: its numbers lag behind ours
                number = wait_for(partner, number)
    finally:
        partner.stop()
    count.kinds["flushed_late"] = int(bus.counters[kernel.LATE])
    return count


def wait_for(partner: Partner, number: int) -> int:
    end_ns = time.monotonic_ns() + NS
    while partner.number != number and time.monotonic_ns() < end_ns:
        time.sleep(1e-3)
    return partner.number


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, most in (("cycle", 1_000_000), ("tools", 1_000_000), ("pty", 10_000)):
        parser.add_argument(f"--{name}", type=int, default=most, help="late replies, for each protocol")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rows = []
    for name, trial in (("cycle", in_memory), ("tools", tools), ("pty", on_pty)):
        for protocol in PROTOCOLS if getattr(options, name) else ():
            seen = trial(protocol, getattr(options, name), options.seed)
            rows.append({"what": name, "protocol": protocol, "late": seen.late, "believed": seen.believed,
                         "fresh": seen.fresh, **seen.kinds})  # fmt: skip
            sys.stdout.write(json.dumps(rows[-1]) + "\n")
            sys.stdout.flush()
    return int(any(row["believed"] for row in rows))


if __name__ == "__main__":
    np.seterr(all="raise")
    sys.exit(main())
