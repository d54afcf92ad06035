"""Camera slot latency: from injection into librealsense to the slot committed, with a busy Python thread.

640x480 at 30 fps from another process. Both ways get their frames from the same feeder without the GIL, as
they would from a camera's own thread, in alternating slices of one run:

- slot: the product's driver; bar: p90 of 0.3 ms, absolute.
- slot_python: the same p90 against Python's binding, `sensor.start(frame_queue)` and a thread that waits for
  frames and copies them.
- stale: colour stalls while depth runs on; how many frame periods after the last frame the driver says so, looked at
  as often as capture does; bar: 2. The rival, librealsense's pipeline, never does: counted are its framesets with the
  old picture in two seconds.
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

from dzedge.hardware.camera import CameraState, Patience
from dzedge.hardware.librealsense import library
from dzedge.hardware.realsense import RealSense, StreamConfig
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


def fed(rings: dict[str, FrameRing], kinds: tuple[str, ...], number: int) -> None:
    """A frame of each of these streams."""
    for kind in kinds:
        shape, form = ((48, 64, 3), np.uint8) if kind == "color" else ((48, 64), np.uint16)
        rings[kind].put(np.zeros(shape, form), number, time.monotonic_ns(), 0)


def small(kind: str) -> FrameRing:
    pixel_bytes = 3 if kind == "color" else 2
    return FrameRing(np.zeros(FrameRing.bytes_for(8, 48, 64, pixel_bytes), np.uint8), 8, 48, 64, pixel_bytes)


def stale_driver() -> float:
    """Frame periods from the last frame of the stalled stream to the word that it is late."""
    sources, targets = ({kind: small(kind) for kind in ("color", "depth")} for _ in range(2))
    provider = SoftwareCamera(sources["color"], beside={"depth": sources["depth"]}, fps=FPS)
    camera = RealSense(
        provider, Config(width=64, height=48), beside=[StreamConfig("depth", 64, 48, FPS)], warmup=1
    )
    camera.start(targets["color"], time.monotonic_ns(), {"depth": targets["depth"]})
    begun, look_s = time.monotonic(), Patience(FPS).look_ns * 1e-9
    number = 0
    while True:
        now = time.monotonic()
        if now >= begun + number / FPS:
            number += 1
            fed(sources, ("color", "depth") if number <= 20 else ("depth",), number)
        health = camera.worst(time.monotonic_ns())
        if number > 20 and health.stream == "color" and health.state >= CameraState.LATE:
            told_ns = time.monotonic_ns()
            camera.close()
            return (told_ns - health.receive_ns) * 1e-9 * FPS
        time.sleep(look_s)


def stale_pipeline() -> int:
    """Framesets with the old picture in the two seconds after the stall."""
    import pyrealsense2 as rs

    device = rs.software_device()
    profiles = {}
    for name, kind, form, size in (("depth", rs.stream.depth, rs.format.z16, 2), ("color", rs.stream.color, None, 3)):
        sensor = device.add_sensor(name)
        stream = rs.video_stream()
        stream.type, stream.uid, stream.fmt = kind, size, form or rs.format.rgb8
        stream.width, stream.height, stream.fps, stream.bpp = 64, 48, FPS, size
        profiles[name] = sensor, sensor.add_video_stream(stream), size
    pipeline, config = rs.pipeline(), rs.config()
    pipeline.set_device(device)
    config.enable_stream(rs.stream.depth, 64, 48, rs.format.z16, FPS)
    config.enable_stream(rs.stream.color, 64, 48, rs.format.rgb8, FPS)
    pipeline.start(config)
    old = 0
    for number in range(1, 21 + 2 * FPS):
        for name, (sensor, profile, size) in profiles.items():
            if name == "color" and number > 20:
                continue
            frame = rs.software_video_frame()
            frame.pixels, frame.bpp, frame.stride = np.zeros((48, 64, size), np.uint8), size, 64 * size
            frame.timestamp, frame.domain = number * 1e3 / FPS, rs.timestamp_domain.hardware_clock
            frame.frame_number, frame.profile = number, profile.as_video_stream_profile()
            sensor.on_video_frame(frame)
        got, frames = pipeline.try_wait_for_frames(int(1000 / FPS))
        color = frames.get_color_frame() if got else None
        old += bool(number > 21 and color and color.get_frame_number() <= 20)
    pipeline.stop()
    return old


def stale() -> dict:
    """The row `stale`."""
    value, old = max(stale_driver() for _ in range(5)), stale_pipeline()
    return {
        "id": "stale", "value": value, "unit": "periods", "rival": f"pipeline: never; {old} framesets with it in 2 s",
        "ratio": value / 2.0, "bar": 1.0, "ok": value <= 2.0,
    }  # fmt: skip


def run() -> list[dict]:
    """The rows `slot`, `slot_python` and `stale`."""
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
        stale(),
    ]


def row(name: str, value: float, rival: str, ratio: float) -> dict:
    numbers = {"value": value, "ratio": ratio, "bar": 1.0}
    return {"id": name, "unit": "ms", "rival": rival, "ok": ratio <= 1.0, **numbers}
