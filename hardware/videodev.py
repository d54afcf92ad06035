"""Video4Linux2 as the kernel defines it: its structures, its request numbers, and the five calls that take them.

Source: linux/videodev2.h of Linux 6.1 and its documentation, userspace-api/media/v4l. Layouts are those of 64-bit
machines; tests/test_videodev.py compares each with what a C compiler makes of the header. What is not needed to
stream from a camera is left out.
"""

import ctypes
import errno
import fcntl
import mmap
import os
import select
from ctypes import c_char, c_int, c_int32, c_long, c_uint8, c_uint32, c_ulong, c_void_p
from typing import Any, Protocol

CAPTURE = 1
"""V4L2_BUF_TYPE_VIDEO_CAPTURE: the one type of buffer used here."""
MEMORY_MMAP = 1
CAN_CAPTURE = 0x1
CAN_STREAM = 0x04000000
HAS_DEVICE_CAPS = 0x80000000
CAN_TIME_PER_FRAME = 0x1000
FIELD_NONE = 1
DISCRETE = 1
"""Type of a frame size or interval that is one value, not a range."""

FLAG_ERROR = 0x40
TIMESTAMP_MASK = 0xE000
TIMESTAMP_MONOTONIC = 0x2000
EXPOSURE_PRIORITY = 0x009A0903
"""V4L2_CID_EXPOSURE_AUTO_PRIORITY: 1 lets the camera lower its rate in the dark."""


def fourcc(name: str) -> int:
    """The kernel's number of a pixel format of four letters."""
    return int.from_bytes(name.encode("ascii"), "little")


FOURCC = {"yuyv": fourcc("YUYV"), "mjpeg": fourcc("MJPG"), "grey": fourcc("GREY")}
FORMATS = {number: name for name, number in FOURCC.items()}


class Capability(ctypes.Structure):
    """struct v4l2_capability."""

    _fields_ = (
        ("driver", c_char * 16), ("card", c_char * 32), ("bus_info", c_char * 32), ("version", c_uint32),
        ("capabilities", c_uint32), ("device_caps", c_uint32), ("reserved", c_uint32 * 3),
    )  # fmt: skip


class FormatDescription(ctypes.Structure):
    """struct v4l2_fmtdesc."""

    _fields_ = (
        ("index", c_uint32), ("type", c_uint32), ("flags", c_uint32), ("description", c_char * 32),
        ("pixelformat", c_uint32), ("mbus_code", c_uint32), ("reserved", c_uint32 * 3),
    )  # fmt: skip


class FrameSize(ctypes.Structure):
    """struct v4l2_frmsizeenum; sizes: width, height of a discrete one; lowest, highest and step of each, of a range."""

    _fields_ = (
        ("index", c_uint32), ("pixel_format", c_uint32), ("type", c_uint32), ("sizes", c_uint32 * 6),
        ("reserved", c_uint32 * 2),
    )  # fmt: skip


class FrameInterval(ctypes.Structure):
    """struct v4l2_frmivalenum; interval: numerator and denominator [s]; for a range of the shortest first, then of the
    longest and of the step."""

    _fields_ = (
        ("index", c_uint32), ("pixel_format", c_uint32), ("width", c_uint32), ("height", c_uint32), ("type", c_uint32),
        ("interval", c_uint32 * 6), ("reserved", c_uint32 * 2),
    )  # fmt: skip


class PixelFormat(ctypes.Structure):
    """struct v4l2_pix_format."""

    _fields_ = (
        ("width", c_uint32), ("height", c_uint32), ("pixelformat", c_uint32), ("field", c_uint32),
        ("bytesperline", c_uint32), ("sizeimage", c_uint32), ("colorspace", c_uint32), ("priv", c_uint32),
        ("flags", c_uint32), ("ycbcr_enc", c_uint32), ("quantization", c_uint32), ("xfer_func", c_uint32),
    )  # fmt: skip


class _FormatUnion(ctypes.Union):
    # The pointer stands for those of struct v4l2_window: it aligns the union.
    _fields_ = (("pix", PixelFormat), ("window", c_void_p), ("raw", c_uint8 * 200))


class Format(ctypes.Structure):
    """struct v4l2_format."""

    _anonymous_ = ("fmt",)
    _fields_ = (("type", c_uint32), ("fmt", _FormatUnion))


class CaptureParameters(ctypes.Structure):
    """struct v4l2_captureparm; time per frame [s]."""

    _fields_ = (
        ("capability", c_uint32), ("capturemode", c_uint32), ("numerator", c_uint32), ("denominator", c_uint32),
        ("extendedmode", c_uint32), ("readbuffers", c_uint32), ("reserved", c_uint32 * 4),
    )  # fmt: skip


class _ParameterUnion(ctypes.Union):
    _fields_ = (("capture", CaptureParameters), ("raw", c_uint8 * 200))


class StreamParameters(ctypes.Structure):
    """struct v4l2_streamparm."""

    _anonymous_ = ("parm",)
    _fields_ = (("type", c_uint32), ("parm", _ParameterUnion))


class RequestBuffers(ctypes.Structure):
    """struct v4l2_requestbuffers."""

    _fields_ = (
        ("count", c_uint32), ("type", c_uint32), ("memory", c_uint32), ("capabilities", c_uint32), ("flags", c_uint8),
        ("reserved", c_uint8 * 3),
    )  # fmt: skip


class _Memory(ctypes.Union):
    _fields_ = (("offset", c_uint32), ("userptr", c_ulong), ("planes", c_void_p), ("fd", c_int32))


class Buffer(ctypes.Structure):
    """struct v4l2_buffer; seconds, microseconds: its struct timeval; timecode: not used."""

    _anonymous_ = ("m",)
    _fields_ = (
        ("index", c_uint32), ("type", c_uint32), ("bytesused", c_uint32), ("flags", c_uint32), ("field", c_uint32),
        ("seconds", c_long), ("microseconds", c_long), ("timecode", c_uint32 * 4), ("sequence", c_uint32),
        ("memory", c_uint32), ("m", _Memory), ("length", c_uint32), ("reserved2", c_uint32), ("request_fd", c_int32),
    )  # fmt: skip


class Control(ctypes.Structure):
    """struct v4l2_control."""

    _fields_ = (("id", c_uint32), ("value", c_int32))


def _request(direction: int, number: int, argument: Any) -> int:
    """_IOC of asm-generic/ioctl.h. direction: 1 to the kernel, 2 from it, 3 both."""
    return direction << 30 | ctypes.sizeof(argument) << 16 | ord("V") << 8 | number


QUERYCAP = _request(2, 0, Capability)
ENUM_FMT = _request(3, 2, FormatDescription)
G_FMT = _request(3, 4, Format)
S_FMT = _request(3, 5, Format)
REQBUFS = _request(3, 8, RequestBuffers)
QUERYBUF = _request(3, 9, Buffer)
QBUF = _request(3, 15, Buffer)
DQBUF = _request(3, 17, Buffer)
STREAMON = _request(1, 18, c_int)
STREAMOFF = _request(1, 19, c_int)
G_PARM = _request(3, 21, StreamParameters)
S_PARM = _request(3, 22, StreamParameters)
S_CTRL = _request(3, 28, Control)
ENUM_FRAMESIZES = _request(3, 74, FrameSize)
ENUM_FRAMEINTERVALS = _request(3, 75, FrameInterval)
NAMES: dict[int, str] = {
    value: name for name, value in list(globals().items()) if isinstance(value, int) and value >> 8 & 0xFF == ord("V")
}


class Kernel(Protocol):
    """What a driver asks of the kernel. Every call raises OSError, as the system call would."""

    def open(self, path: str) -> int: ...
    def ioctl(self, fd: int, request: int, argument: Any) -> None: ...
    def map(self, fd: int, length: int, offset: int) -> Any: ...
    def wait(self, fd: int, timeout_ms: int) -> int: ...
    def close(self, fd: int) -> None: ...


class LinuxKernel:
    """The kernel of this machine. Each call gives the GIL away."""

    def open(self, path: str) -> int:
        """A descriptor on which DQBUF never blocks."""
        return os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)

    def ioctl(self, fd: int, request: int, argument: Any) -> None:
        """argument: the structure of `request`, changed in place."""
        fcntl.ioctl(fd, request, argument, True)

    def map(self, fd: int, length: int, offset: int) -> mmap.mmap:
        """The memory of a buffer; the caller closes it."""
        return mmap.mmap(fd, length, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE, offset=offset)

    def wait(self, fd: int, timeout_ms: int) -> int:
        """The events of poll(2) within `timeout_ms`; 0: none."""
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        return sum(events for _, events in poll.poll(timeout_ms))

    def close(self, fd: int) -> None:
        os.close(fd)


GONE = (errno.ENODEV, errno.ENXIO, errno.EBADF)
"""What every call says once a device has been unplugged."""
