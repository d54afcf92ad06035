"""A webcam that is none: Video4Linux2 as the driver knows it, for tests and for machines without a camera.

It keeps the rules of videobuf2 that a driver can break (which buffer may be queued, when streaming may start) and
answers as the kernel's documentation says. It proves that the driver follows that text; not that the text is true of
a given camera, nor anything about USB, timing or DMA.
"""

import errno
import select
import threading
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from dzedge.hardware import videodev as v4l2
from dzedge.hardware.librealsense import Mode

FD = 1000
"""Descriptors count up from here: no real one is this high in a test."""
PADDING = 32
"""Bytes at the end of each YUYV or grey row that are not part of the picture."""
BYTES = {"yuyv": 2, "mjpeg": 0, "grey": 1}


class Memory(bytearray):
    """A buffer's memory as mmap gives it. mapped: how often it is."""

    mapped = 0

    def close(self) -> None:
        self.mapped -= 1


@dataclass(slots=True)
class VideoDevice:
    """One webcam. modes: what it offers; caps: bits of VIDIOC_QUERYCAP; refuse: request -> errno to fail with;
    clock: flags of its stamps."""

    modes: list[Mode]
    card: str = "Pretended Webcam"
    caps: int = v4l2.CAN_CAPTURE | v4l2.CAN_STREAM
    refuse: dict[int, int] = field(default_factory=dict)
    clock: int = v4l2.TIMESTAMP_MONOTONIC
    plugged: bool = True
    pixels: v4l2.PixelFormat = field(default_factory=v4l2.PixelFormat)
    memory: list[Memory] = field(default_factory=list)
    queued: deque[int] = field(default_factory=deque)
    done: deque[v4l2.Buffer] = field(default_factory=deque)
    streaming: bool = False
    broken: int = 0
    controls: dict[int, int] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)


def fail(code: int) -> OSError:
    """As a system call fails."""
    return OSError(code, errno.errorcode[code])


class PretendedKernel:
    """The kernel with these webcams, by path; see `dzedge.hardware.videodev.Kernel`."""

    def __init__(self, devices: dict[str, VideoDevice]) -> None:
        self.devices = devices
        self.handles: dict[int, VideoDevice] = {}
        self._changed = threading.Condition()
        self._next = FD

    def open(self, path: str) -> int:
        device = self.devices.get(path)
        if device is None or not device.plugged:
            raise fail(errno.ENOENT)
        if 0 in device.refuse:
            raise fail(device.refuse[0])
        self._next += 1
        self.handles[self._next] = device
        return self._next

    def close(self, fd: int) -> None:
        del self.handles[fd]

    def map(self, fd: int, length: int, offset: int) -> Any:
        device = self._device(fd)
        memory: Memory = _nth(device.memory, offset)
        if length != len(memory):
            raise fail(errno.EINVAL)
        memory.mapped += 1
        return memory

    def wait(self, fd: int, timeout_ms: int) -> int:
        with self._changed:
            device = self.handles[fd]

            def events() -> int:
                error = device.broken or not device.plugged or not device.streaming
                return (select.POLLERR if error else 0) | (select.POLLIN if device.done else 0)

            return int(self._changed.wait_for(events, timeout_ms / 1000))

    def ioctl(self, fd: int, request: int, argument: Any) -> None:
        device = self._device(fd)
        name = v4l2.NAMES[request]
        device.asked.append(name)
        if request in device.refuse:
            raise fail(device.refuse[request])
        with self._changed:
            getattr(self, f"_{name.lower()}")(device, argument)
            self._changed.notify_all()

    def _device(self, fd: int) -> VideoDevice:
        device = self.handles.get(fd)
        if device is None:
            raise fail(errno.EBADF)
        if not device.plugged:
            raise fail(errno.ENODEV)
        return device

    def deliver(
        self, path: str, data: bytes, sequence: int, stamp_ns: int, flags: int = 0, bytesused: int | None = None
    ) -> bool:
        """The camera has taken a picture: into the oldest queued buffer, else it is lost (False)."""
        device = self.devices[path]
        with self._changed:
            if not device.streaming or not device.queued:
                return False
            index = device.queued.popleft()
            device.memory[index][: len(data)] = data
            buffer = v4l2.Buffer(
                index=index, bytesused=len(data) if bytesused is None else bytesused, flags=flags | device.clock,
                seconds=stamp_ns // 10**9, microseconds=stamp_ns % 10**9 // 1000, sequence=sequence,
            )  # fmt: skip
            device.done.append(buffer)
            self._changed.notify_all()
            return True

    def unplug(self, path: str) -> None:
        """The cable is out: every call on it fails from now on, and whoever waits is woken."""
        device = self.devices[path]
        with self._changed:
            device.plugged, device.streaming = False, False
            device.queued.clear()
            device.done.clear()
            self._changed.notify_all()

    def replug(self, path: str) -> None:
        """In again, as new; old descriptors stay dead."""
        old = self.devices[path]
        self.devices[path] = VideoDevice(old.modes, old.card, old.caps, old.refuse, old.clock)

    def _querycap(self, device: VideoDevice, cap: v4l2.Capability) -> None:
        cap.card, cap.driver, cap.bus_info = device.card.encode(), b"pretended", b"usb-0000:00:14.0-1"
        cap.capabilities = v4l2.CAN_CAPTURE | v4l2.CAN_STREAM | v4l2.HAS_DEVICE_CAPS
        cap.device_caps = device.caps

    def _enum_fmt(self, device: VideoDevice, entry: v4l2.FormatDescription) -> None:
        names = list(dict.fromkeys(mode.format for mode in device.modes))
        entry.pixelformat = v4l2.FOURCC[_nth(names, entry.index)]

    def _enum_framesizes(self, device: VideoDevice, entry: v4l2.FrameSize) -> None:
        name = v4l2.FORMATS[entry.pixel_format]
        sizes = list(dict.fromkeys((m.width, m.height) for m in device.modes if m.format == name))
        entry.type, (entry.sizes[0], entry.sizes[1]) = v4l2.DISCRETE, _nth(sizes, entry.index)

    def _enum_frameintervals(self, device: VideoDevice, entry: v4l2.FrameInterval) -> None:
        wanted = entry.width, entry.height, v4l2.FORMATS[entry.pixel_format]
        rates = [m.fps for m in device.modes if (m.width, m.height, m.format) == wanted]
        entry.type, (entry.interval[0], entry.interval[1]) = v4l2.DISCRETE, (1, _nth(rates, entry.index))

    def _s_fmt(self, device: VideoDevice, wanted: v4l2.Format) -> None:
        """The nearest of what it offers, as drivers do."""
        if device.memory:
            raise fail(errno.EBUSY)
        pix, name = wanted.pix, v4l2.FORMATS.get(wanted.pix.pixelformat)
        mode = min(
            device.modes, key=lambda m: (m.format != name, abs(m.width - pix.width) + abs(m.height - pix.height))
        )
        pix.width, pix.height, pix.pixelformat = mode.width, mode.height, v4l2.FOURCC[mode.format]
        pix.bytesperline = BYTES[mode.format] * mode.width + PADDING * (mode.format != "mjpeg")
        pix.sizeimage = max(pix.bytesperline, 2 * mode.width) * mode.height + 1024
        device.pixels = v4l2.PixelFormat.from_buffer_copy(pix)

    def _s_parm(self, device: VideoDevice, asked: v4l2.StreamParameters) -> None:
        pix, capture = device.pixels, asked.capture
        here = pix.width, pix.height, v4l2.FORMATS[pix.pixelformat]
        rates = [m.fps for m in device.modes if (m.width, m.height, m.format) == here]
        rate = capture.denominator / max(capture.numerator, 1)
        capture.capability = v4l2.CAN_TIME_PER_FRAME
        capture.numerator, capture.denominator = 1, min(rates, key=lambda fps: abs(fps - rate))

    def _s_ctrl(self, device: VideoDevice, control: v4l2.Control) -> None:
        if control.id not in device.controls:
            raise fail(errno.EINVAL)
        device.controls[control.id] = control.value

    def _reqbufs(self, device: VideoDevice, request: v4l2.RequestBuffers) -> None:
        if device.streaming or (device.memory and request.count):
            raise fail(errno.EBUSY)
        device.memory = [Memory(device.pixels.sizeimage) for _ in range(request.count)]
        device.queued.clear()
        device.done.clear()

    def _querybuf(self, device: VideoDevice, buffer: v4l2.Buffer) -> None:
        buffer.length, buffer.offset = len(_nth(device.memory, buffer.index)), buffer.index

    def _qbuf(self, device: VideoDevice, buffer: v4l2.Buffer) -> None:
        busy = {*device.queued, *(done.index for done in device.done)}
        if buffer.index in busy or (buffer.type, buffer.memory) != (v4l2.CAPTURE, v4l2.MEMORY_MMAP):
            raise fail(errno.EINVAL)
        _nth(device.memory, buffer.index)
        device.queued.append(buffer.index)

    def _dqbuf(self, device: VideoDevice, buffer: v4l2.Buffer) -> None:
        if not device.streaming:
            raise fail(errno.EINVAL)
        if device.broken:
            device.broken -= 1
            raise fail(errno.EIO)
        if not device.done:
            raise fail(errno.EAGAIN)
        done = device.done.popleft()
        for key in ("index", "bytesused", "flags", "seconds", "microseconds", "sequence"):
            setattr(buffer, key, getattr(done, key))

    def _streamon(self, device: VideoDevice, kind: Any) -> None:
        if not device.memory or kind.value != v4l2.CAPTURE:
            raise fail(errno.EINVAL)
        device.streaming = True

    def _streamoff(self, device: VideoDevice, kind: Any) -> None:
        device.streaming = False
        device.queued.clear()
        device.done.clear()


def _nth(values: Any, index: int) -> Any:
    """As enumerations end: EINVAL past the last."""
    if index >= len(values):
        raise fail(errno.EINVAL)
    return values[index]
