"""A webcam's stream: buffers shared with the kernel, the thread that empties them, and when a picture was taken."""

import errno
import select
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dzedge.clock import NS, MonotonicClock, wall_offset_ns
from dzedge.hardware import videodev as v4l2
from dzedge.hardware.pixels import CONVERTERS
from dzedge.hardware.video_nodes import explain
from dzedge.hardware.videodev import Kernel
from dzedge.kernels.mailbox import FrameRing
from dzedge.kernels.pump import ClockMap

BUFFERS = 4
"""One is decoded, one filled, two wait: the rest is lost by the driver, which shows as a gap in the numbers."""
WAIT_MS = 50
"""After so long `run` looks whether it is to stop."""
OLD_NS = NS
"""No healthy camera's picture is older than this on arrival."""
PAUSE_NS = 10_000_000
HARDWARE, SYSTEM, GLOBAL, MONOTONIC = range(4)
"""Domains of a stamp, the first three as librealsense numbers them; MONOTONIC: the kernel's own clock, and ours."""


class StampMap:
    """The kernel's stamp of a buffer as our time.

    Which clock it is is judged at the first picture of a stream. MONOTONIC: flagged so, and within a second of the
    arrival: taken as it is, but never later than the arrival (vivid stamps the end of a picture that it delivers at
    once). SYSTEM: what some drivers (uvcvideo with clock=CLOCK_REALTIME) stamp although they
    flag it MONOTONIC. HARDWARE: any other, mapped by the least delayed arrival, so that the smallest delay of the
    way stays in the age (see `dzedge.kernels.pump.ClockMap`).
    """

    def __init__(self, offset_ns: Callable[[], int] = wall_offset_ns) -> None:
        self._offset_ns = offset_ns
        self._map = ClockMap()
        self.domain = -1
        self.implausible = 0

    @property
    def resets(self) -> int:
        return self._map.resets

    @property
    def steps(self) -> int:
        return self._map.steps

    def map(self, stamp_ns: int, flags: int, receive_ns: int) -> int:
        """When a picture was taken, at the latest at its arrival. stamp_ns, flags: of its buffer."""
        if self.domain < 0:
            self.domain = self._judge(stamp_ns, flags, receive_ns)
        capture_ns = stamp_ns
        if self.domain != MONOTONIC:
            capture_ns = self._map.map(stamp_ns, self.domain, receive_ns, self._offset_ns())
        if not 0 <= receive_ns - capture_ns <= OLD_NS:
            self.implausible += 1
        return min(capture_ns, receive_ns)

    def _judge(self, stamp_ns: int, flags: int, receive_ns: int) -> int:
        if flags & v4l2.TIMESTAMP_MASK == v4l2.TIMESTAMP_MONOTONIC and abs(receive_ns - stamp_ns) <= OLD_NS:
            return MONOTONIC
        if abs(receive_ns + self._offset_ns() - stamp_ns) <= OLD_NS:
            return SYSTEM
        return HARDWARE


@dataclass(slots=True)
class Counts:
    """As in `dzedge.hardware.camera.CameraHealth`."""

    frames: int = 0
    dropped: int = 0
    repeated: int = 0
    restarted: int = 0
    rejected: int = 0
    failed: int = 0
    number: int = 0
    capture_ns: int = 0
    receive_ns: int = 0


class V4l2Stream:
    """Buffers of an open device, mapped and queued; `run` is the body of a thread that fills `ring`, its only writer.

    fd: of the device, its format set; pixels: that format. Raises OSError where the device refuses buffers.
    """

    def __init__(
        self,
        kernel: Kernel,
        fd: int,
        pixels: v4l2.PixelFormat,
        ring: FrameRing,
        clock: MonotonicClock,
        stamps: StampMap,
    ) -> None:
        self._kernel, self._fd, self._ring, self._clock = kernel, fd, ring, clock
        self._pixels = pixels
        self._convert = CONVERTERS[v4l2.FORMATS[pixels.pixelformat]]
        self.stamps, self.counts = stamps, Counts()
        self.trouble = ""
        self.gone = False
        self._stopping = False
        self._last = -1, -1
        self._maps: list[Any] = []
        try:
            self._map_buffers()
            self._ioctl(v4l2.STREAMON, v4l2.c_int(v4l2.CAPTURE))
        except OSError:
            self.close()
            raise

    def _ioctl(self, request: int, argument: Any) -> None:
        self._kernel.ioctl(self._fd, request, argument)

    def _map_buffers(self) -> None:
        request = v4l2.RequestBuffers(count=BUFFERS, type=v4l2.CAPTURE, memory=v4l2.MEMORY_MMAP)
        self._ioctl(v4l2.REQBUFS, request)
        if request.count < 2:
            raise OSError(errno.ENOMEM, f"{request.count} buffers, needed 2")
        for index in range(request.count):
            buffer = v4l2.Buffer(index=index, type=v4l2.CAPTURE, memory=v4l2.MEMORY_MMAP)
            self._ioctl(v4l2.QUERYBUF, buffer)
            self._maps.append(self._kernel.map(self._fd, buffer.length, buffer.offset))
        for index in range(request.count):
            self._ioctl(v4l2.QBUF, v4l2.Buffer(index=index, type=v4l2.CAPTURE, memory=v4l2.MEMORY_MMAP))

    def run(self) -> None:
        """Until `stop`, or until the device is gone."""
        while not self._stopping and not self.gone:
            try:
                self.turn(WAIT_MS)
            except OSError as error:
                self._failed(error)

    def turn(self, timeout_ms: int) -> bool:
        """Wait for pictures and pass the newest on; whether there was one. Raises OSError."""
        events = self._kernel.wait(self._fd, timeout_ms)
        if not events:
            return False
        receive_ns = self._clock.now_ns()
        newest = self._dequeue()
        if newest is None:
            if events & ~select.POLLIN:  # the queue is in error, and says so at once for ever
                self._clock.sleep_until_ns(receive_ns + PAUSE_NS)
            return False
        try:
            return self._pass_on(newest, receive_ns)
        finally:
            self._ioctl(v4l2.QBUF, newest)

    def _dequeue(self) -> v4l2.Buffer | None:
        """The newest filled buffer; older ones go back to the driver unread."""
        newest = None
        while True:
            buffer = v4l2.Buffer(type=v4l2.CAPTURE, memory=v4l2.MEMORY_MMAP)
            try:
                self._ioctl(v4l2.DQBUF, buffer)
            except OSError as error:
                if error.errno == errno.EAGAIN:
                    return newest
                if newest is not None:
                    self._ioctl(v4l2.QBUF, newest)
                raise
            if newest is not None:
                self._ioctl(v4l2.QBUF, newest)
            newest = buffer

    def _pass_on(self, buffer: v4l2.Buffer, receive_ns: int) -> bool:
        """Decode a buffer into the ring; damaged and repeated ones are counted instead."""
        counts, pixels = self.counts, self._pixels
        stamp_ns = buffer.seconds * NS + buffer.microseconds * 1000
        if (buffer.sequence, stamp_ns) == self._last:
            counts.repeated += 1
            return False
        # A driver that does not count says 0 for ever.
        number = counts.number + 1 if buffer.sequence == self._last[0] else buffer.sequence
        self._last = buffer.sequence, stamp_ns
        if buffer.flags & v4l2.FLAG_ERROR:
            counts.rejected += 1
            return False
        try:
            data = memoryview(self._maps[buffer.index])[: buffer.bytesused]
            image = self._convert(data, pixels.width, pixels.height, pixels.bytesperline)
        except ValueError as error:
            counts.rejected += 1
            self.trouble = str(error)
            return False
        capture_ns = self.stamps.map(stamp_ns, buffer.flags, receive_ns)
        if counts.frames and number > counts.number + 1:
            counts.dropped += number - counts.number - 1
        elif counts.frames and number < counts.number:
            counts.restarted += 1
        self._ring.put(image, number, capture_ns, receive_ns)
        counts.number, counts.capture_ns, counts.receive_ns = number, capture_ns, receive_ns
        counts.frames += 1
        return True

    def _failed(self, error: OSError) -> None:
        self.trouble = str(explain(error, "stream"))
        self.counts.failed += 1
        self.gone = error.errno in v4l2.GONE
        if not self.gone:
            self._clock.sleep_until_ns(self._clock.now_ns() + PAUSE_NS)

    def stop(self) -> None:
        """Make `run` return within 50 ms."""
        self._stopping = True

    def close(self) -> None:
        """Stop streaming and give the buffers back, after `run` has returned; harmless when repeated, or when the
        device is gone."""
        maps, self._maps = self._maps, []
        for request, argument in (
            (v4l2.STREAMOFF, v4l2.c_int(v4l2.CAPTURE)),
            (v4l2.REQBUFS, v4l2.RequestBuffers(count=0, type=v4l2.CAPTURE, memory=v4l2.MEMORY_MMAP)),
        ):
            if request == v4l2.REQBUFS:
                for memory in maps:
                    memory.close()
            try:
                self._ioctl(request, argument)
            except OSError:
                continue
