"""`make camera-soak`: cameras started, stopped and left running at exit, many times, through the real librealsense.

    python tests/camera_soak.py [--starts 300] [--exits 50]

- starts: a D435 with colour, depth and infrared and a D405 with colour and depth, side by side, started, fed and
  stopped N times in one process; nothing may crash, no thread or file may be left, and memory may not climb.
- exits: N processes that end with both cameras running, by return, exception, SIGTERM and a busy Python thread in
  turn; each must leave with its own code and without a signal.

Prints one JSON document. Exit code 1 when a bound is missed.
"""

import argparse
import gc
import json
import os
import subprocess
import sys
import time

import numpy as np

from dzedge.hardware.realsense import RealSense, StreamConfig
from dzedge.hardware.sim.software_camera import SoftwareCamera
from dzedge.kernels.mailbox import FrameRing

HEIGHT, WIDTH, FPS, SLOTS = 120, 160, 30, 8
BYTES = {"color": 3, "depth": 2, "infrared": 1}
RIGS = {"D435": ("depth", "infrared"), "D405": ("depth",)}
WAYS = ("leave", "error", "signal", "busy")
RUNNING = "running"
"""What a child says before it leaves."""
SLOPE_KB = 6.0
"""Most that memory may climb in one start and stop of both cameras [kB]. A leaked frame is 58; the allocator settles in
the first few hundred rounds (2.6 a start over 300, 0.05 over 1500)."""


class Config:
    width, height, fps, format = WIDTH, HEIGHT, FPS, "rgb8"

    def __init__(self, serial: str) -> None:
        self.serial = serial


def make_ring(kind: str) -> FrameRing:
    memory = np.zeros(FrameRing.bytes_for(SLOTS, HEIGHT, WIDTH, BYTES[kind]), np.uint8)
    return FrameRing(memory, SLOTS, HEIGHT, WIDTH, BYTES[kind])


class Rig:
    """One simulated camera, its driver and its rings."""

    def __init__(self, product: str) -> None:
        beside = RIGS[product]
        self.sources = {kind: make_ring(kind) for kind in ("color", *beside)}
        rings = {kind: ring for kind, ring in self.sources.items() if kind != "color"}
        self.provider = SoftwareCamera(
            self.sources["color"], beside=rings, fps=FPS, serial=product, product=product
        )  # fmt: skip
        streams = [StreamConfig(kind, WIDTH, HEIGHT, FPS) for kind in beside]
        self.camera = RealSense(self.provider, Config(product), beside=streams)
        self.targets = {kind: make_ring(kind) for kind in ("color", *beside)}
        self.number = 0

    def start(self) -> None:
        beside = {kind: ring for kind, ring in self.targets.items() if kind != "color"}
        self.camera.start(self.targets["color"], time.monotonic_ns(), beside)

    def feed(self) -> None:
        """One more frame of every stream."""
        self.number += 1
        for kind, ring in self.sources.items():
            shape = (HEIGHT, WIDTH, 3) if kind == "color" else (HEIGHT, WIDTH)
            ring.put(np.zeros(shape, np.uint16 if kind == "depth" else np.uint8), self.number, time.monotonic_ns(), 0)

    def fed(self) -> bool:
        """Whether three frames of every stream have come through."""
        now_ns = time.monotonic_ns()
        return all(self.camera.health(now_ns, kind).frames >= 3 for kind in self.targets)


def stream(rigs: list[Rig]) -> None:
    """Start them all, and feed them until every stream has delivered."""
    for rig in rigs:
        rig.start()
    give_up = time.monotonic() + 10
    while not all(rig.fed() for rig in rigs):
        if time.monotonic() > give_up:
            raise RuntimeError("no frames within 10 s")
        for rig in rigs:
            rig.feed()
        time.sleep(0.001)


def resources() -> tuple[int, int, float]:
    """Open files, threads, and resident memory [kB]."""
    gc.collect()
    with open("/proc/self/statm", encoding="ascii") as file:
        resident = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1024
    return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task")), resident


def starts(count: int) -> dict[str, object]:
    """Start, feed and stop; every tenth time close and open as well."""
    rigs = [Rig(product) for product in RIGS]
    samples = []
    for number in range(count):
        stream(rigs)
        for rig in rigs:
            if number % 10 == 9:
                rig.camera.close()
            else:
                rig.camera.stop()
        if number % 10 == 9:
            samples.append(resources())
    for rig in rigs:
        rig.camera.close()
    settled = samples[len(samples) // 3 :]
    slope = np.polyfit(10.0 * np.arange(len(settled)), [row[2] for row in settled], 1)[0] if len(settled) > 2 else 0.0
    files, threads = (samples[-1][i] - settled[0][i] for i in (0, 1))
    return {
        "starts": count, "kB_per_start": round(float(slope), 3), "rss_kB": [round(row[2]) for row in samples],
        "files_left": files, "threads_left": threads,
        "ok": float(slope) <= SLOPE_KB and files <= 0 and threads <= 0,
    }  # fmt: skip


def leave_running(way: str) -> None:
    """Body of a child: both cameras run, and the process ends."""
    import signal
    import threading

    rigs = [Rig(product) for product in RIGS]
    stream(rigs)
    sys.stdout.write(RUNNING)
    sys.stdout.flush()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    if way == "error":
        sys.excepthook = lambda *_: None
        raise RuntimeError
    if way == "signal":
        signal.raise_signal(signal.SIGTERM)
    if way == "busy":

        def spin() -> None:
            while True:
                sum(range(99))

        threading.Thread(target=spin, daemon=True).start()


def exits(count: int) -> dict[str, object]:
    """Processes that end with everything running. Codes other than their own are listed."""
    wrong = []
    for number in range(count):
        way = WAYS[number % len(WAYS)]
        done = subprocess.run([sys.executable, __file__, "--leave", way], timeout=60, capture_output=True, text=True)
        if done.returncode != (1 if way == "error" else 0) or done.stdout != RUNNING:
            wrong.append({"way": way, "code": done.returncode, "stderr": done.stderr[-300:]})
    return {"exits": count, "wrong": wrong, "ok": not wrong}


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--starts", type=int, default=300)
    parser.add_argument("--exits", type=int, default=50)
    parser.add_argument("--leave", choices=WAYS)
    arguments = parser.parse_args()
    if arguments.leave:
        leave_running(arguments.leave)
        return 0
    results = [starts(arguments.starts), exits(arguments.exits)]
    sys.stdout.write(json.dumps(results) + "\n")
    return 0 if all(result["ok"] for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
