"""Camera slot latency: from injection into librealsense to the slot committed, with a busy Python thread.

640x480 at 30 fps from another process. Both ways get their frames from the same feeder without the GIL, as
they would from a camera's own thread, in alternating slices of one run:

- slot: the product's driver; bar: p90 of 0.3 ms, absolute.
- slot_python: the same p90 against Python's binding, `sensor.start(frame_queue)` and a thread that waits for
  frames and copies them.
"""

import contextlib
import ctypes
import math
import mmap
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from dzedge.hardware.librealsense import library
from dzedge.hardware.realsense import RealSense
from dzedge.hardware.sim.software_camera import SoftwareCamera
from dzedge.kernels.mailbox import FrameRing
from dzedge.kernels.pump import Feeder

WIDTH, HEIGHT, FPS, SLOTS = 640, 480, 30, 4
SLICES, SLICE_S = 5, 3.0
BUDGET_MS = 0.3

WRITER = """
import mmap, sys, time
import numpy as np
from dzedge.kernels.mailbox import FrameRing
fd, slots, height, width, fps = map(int, sys.argv[1:])
ring = FrameRing(np.frombuffer(mmap.mmap(fd, 0), np.uint8), slots, height, width)
image = np.zeros((height, width, 3), np.uint8)
number, due = 0, time.monotonic()
while True:
    number, due = number + 1, due + 1 / fps
    time.sleep(max(0, due - time.monotonic()))
    now = time.monotonic_ns()
    ring.put(image, number, now, now)
"""


@dataclass(frozen=True)
class Config:
    serial: str = "sim"
    width: int = WIDTH
    height: int = HEIGHT
    fps: int = FPS
    format: str = "rgb8"


@contextlib.contextmanager
def frames() -> Iterator[FrameRing]:
    """A ring that another process fills."""
    size = FrameRing.bytes_for(SLOTS, HEIGHT, WIDTH)
    fd = os.memfd_create("frames")
    os.ftruncate(fd, size)
    ring = FrameRing(np.frombuffer(mmap.mmap(fd, size), np.uint8), SLOTS, HEIGHT, WIDTH)
    arguments = [sys.executable, "-c", WRITER, *map(str, (fd, SLOTS, HEIGHT, WIDTH, FPS))]
    writer = subprocess.Popen(arguments, pass_fds=[fd])
    try:
        yield ring
    finally:
        writer.kill()
        writer.wait()
        os.close(fd)


@contextlib.contextmanager
def busy_python() -> Iterator[None]:
    """A thread of pure Python that never waits."""
    done = threading.Event()

    def spin() -> None:
        while not done.is_set():
            sum(range(1000))

    thread = threading.Thread(target=spin)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def latencies(injected: list[tuple[int, int]], committed: dict[int, int]) -> list[float]:
    """From injection to commit [ms]; infinite for a frame that was lost on the way, not only cut off at the
    end."""
    last = max(committed)
    return [(committed.get(number, math.inf) - sent) * 1e-6 for number, sent in injected if number <= last]


def driver_slice(source: FrameRing) -> list[float]:
    """The product's driver for one slice."""
    ring = FrameRing(np.zeros(FrameRing.bytes_for(SLOTS, HEIGHT, WIDTH), np.uint8), SLOTS, HEIGHT, WIDTH)
    provider = SoftwareCamera(source, fps=FPS)
    camera = RealSense(provider, Config())
    camera.start(ring, time.monotonic_ns())
    time.sleep(SLICE_S)
    committed = {row[0]: row[3] for row in camera.trace()}
    assert provider.device is not None
    injected = provider.device.feeder.trace()
    camera.close()
    provider.close()
    return latencies(injected, committed)


def python_slice(source: FrameRing) -> list[float]:
    """Python's binding for one slice; only the feeder is ours."""
    import pyrealsense2 as rs

    device = rs.software_device()
    sensor = device.add_sensor("RGB Camera")
    stream = rs.video_stream()
    stream.type, stream.index, stream.uid, stream.fmt = rs.stream.color, 0, 1, rs.format.rgb8
    stream.width, stream.height, stream.fps, stream.bpp = WIDTH, HEIGHT, FPS, 3
    profile = sensor.add_video_stream(stream)
    # The handle is the third word of the C++ object, which is the first word after the Python object's head.
    handle = ctypes.c_size_t.from_address(ctypes.c_size_t.from_address(id(sensor) + 16).value + 16).value
    lib = library()
    with lib.held("stream_profiles_list", lib.call("rs2_get_stream_profiles", handle)) as profiles:
        feeder = Feeder(lib.addresses, handle, lib.call("rs2_get_stream_profile", profiles, 0), source)
    queue, slot = rs.frame_queue(4), np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    sensor.open(profile)
    sensor.start(queue)
    committed: dict[int, int] = {}
    done = threading.Event()

    def take() -> None:
        while not done.is_set():
            got, frame = queue.try_wait_for_frame(50)
            if got:
                slot[:] = np.asanyarray(frame.get_data())
                committed[frame.get_frame_number()] = time.monotonic_ns()

    threads = [threading.Thread(target=take), threading.Thread(target=feeder.run)]
    for thread in threads:
        thread.start()
    time.sleep(SLICE_S)
    feeder.stop()
    done.set()
    for thread in threads:
        thread.join()
    sensor.stop()
    sensor.close()
    return latencies(feeder.trace(), committed)


def run() -> list[dict]:
    """The rows `slot` and `slot_python`."""
    ours: list[float] = []
    rival: list[float] = []
    with frames() as source, busy_python():
        for _ in range(SLICES):
            ours += driver_slice(source)
            rival += python_slice(source)
    value, other = float(np.percentile(ours, 90)), float(np.percentile(rival, 90))
    return [
        row("slot", value, "budget 0.3 ms", value / BUDGET_MS),
        row("slot_python", value, f"pyrealsense2 frame_queue {other:.3f} ms", value / other),
    ]


def row(name: str, value: float, rival: str, ratio: float) -> dict:
    numbers = {"value": value, "ratio": ratio, "bar": 1.0}
    return {"id": name, "unit": "ms", "rival": rival, "ok": ratio <= 1.0, **numbers}
