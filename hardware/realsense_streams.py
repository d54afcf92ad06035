"""The streams of an open RealSense, and the sensors that carry them."""

import threading

from dzedge.errors import CameraError
from dzedge.hardware.camera import CameraHealth, CameraState, Patience
from dzedge.hardware.librealsense import STREAMS, Mode, Sensor
from dzedge.hardware.librealsense_calls import Intrinsics
from dzedge.kernels.mailbox import FrameRing
from dzedge.kernels.pump import FramePump

QUEUE = 4
"""Frames of each stream that librealsense may hold for us; it drops the oldest. Its pool has 16: never hold many."""


class Stream:
    """One stream of the camera. ring, pump, started_ns are there while it is wanted, while it runs."""

    def __init__(self, kind: str, mode: Mode, warmup: int) -> None:
        self.kind, self.mode = kind, mode
        self.number = STREAMS[kind]
        self.patience = Patience(mode.fps, warmup)
        self.lens: Intrinsics | None = None
        self.ring: FrameRing | None = None
        self.pump: FramePump | None = None
        self.started_ns = 0

    def health(self, now_ns: int, restarts: int, resets: int) -> CameraHealth:
        """State and counts; touches no device."""
        if self.pump is None:
            return CameraHealth(
                CameraState.ABSENT, -1, 0, 0, 0, restarts=restarts, resets=resets, stream=self.kind
            )  # fmt: skip
        counts = self.pump.snapshot()
        state = self.patience.judge(
            self.started_ns, counts["frames"], counts["receive_ns"], counts["capture_ns"], now_ns
        )  # fmt: skip
        age_ns = now_ns - counts["capture_ns"] if counts["frames"] else -1
        return CameraHealth(state, age_ns, restarts=restarts, resets=resets, stream=self.kind, **counts)


class Module:
    """One sensor in use, and while it runs the queue and the thread that empties it."""

    def __init__(self, sensor: Sensor, streams: list[Stream]) -> None:
        self.sensor, self.streams = sensor, streams
        self._queue = 0
        self._thread: threading.Thread | None = None

    def reserve(self) -> None:
        """Open the sensor for its streams, all at once: opening one after the other is refused."""
        wanted: list[tuple[int, int | None, Mode]] = [
            (s.number[0], None if s.kind == "color" else s.number[1], s.mode) for s in self.streams
        ]
        for stream, lens in zip(self.streams, self.sensor.open_all(wanted), strict=True):
            stream.lens = lens

    def start(self, now_ns: int) -> None:
        """Frames into the rings, by a new queue: librealsense leaves the last frames of a stopped stream in the
        old one."""
        lib = self.sensor.lib
        queue = lib.call("rs2_create_frame_queue", QUEUE * len(self.streams))
        pump: FramePump | None = None
        alone = len(self.streams) == 1
        for stream in self.streams:
            assert stream.ring is not None
            kind, index = (0, 0) if alone else stream.number
            pump = FramePump(lib.addresses, queue, stream.ring, stream.mode.format, kind, index, pump)
            stream.pump, stream.started_ns = pump, now_ns
        assert pump is not None
        try:
            self.sensor.start(queue)
        except CameraError:
            lib.delete("frame_queue", queue)
            for stream in self.streams:
                stream.pump = None
            raise
        self._queue = queue
        self._thread = threading.Thread(target=pump.run, name="frame-pump", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Harmless when repeated."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        try:
            self.sensor.stop()
        finally:
            for stream in self.streams:
                if stream.pump is not None:
                    stream.pump.stop()
                stream.pump = None
            thread.join()
            self.sensor.lib.delete("frame_queue", self._queue)
