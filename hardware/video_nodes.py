"""The webcams on this machine: which device is which, and what it offers."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dzedge.errors import CameraError
from dzedge.hardware import videodev as v4l2
from dzedge.hardware.camera import CameraInfo, describe
from dzedge.hardware.librealsense import Mode
from dzedge.hardware.videodev import Kernel, LinuxKernel

SPEEDS = {"1.5": "1.0", "12": "1.1", "480": "2.0", "5000": "3.0", "10000": "3.1", "20000": "3.2"}
"""USB version by the link's speed [Mbit/s] as sysfs tells it."""
COMMON_SIZES = ((320, 240), (640, 480), (1280, 720), (1920, 1080))
COMMON_RATES = (5, 10, 15, 30, 60)
"""[Hz]. What is shown of a device that offers whole ranges."""
MOST = 64
"""Formats, sizes or rates asked for at most: no driver may keep us enumerating for ever."""


def explain(error: OSError, what: str) -> CameraError:
    """An error of the kernel in words. what: the device and what was asked of it."""
    causes = {
        errno.EACCES: "no permission; sudo usermod -aG video $USER, then log in again",
        errno.EPERM: "no permission; sudo usermod -aG video $USER, then log in again",
        errno.ENOENT: "not there; see `dzedge camera list`",
        errno.EBUSY: "in use by another program; `fuser -v` on it says which: end that",
        errno.ENOTTY: "not a camera; see `dzedge camera list`",
        errno.ENOSPC: "no bandwidth left on its USB bus; choose a lower mode, or another port",
    }
    if error.errno in v4l2.GONE:
        return CameraError(f"{what}: unplugged; plug it in again")
    return CameraError(f"{what}: {causes.get(error.errno or 0, f'{error.strerror}; replug it')}")


@dataclass(frozen=True, slots=True)
class VideoNode:
    """One device file that delivers pictures. card: its name; speed: USB version of its link, "" elsewhere."""

    path: str
    card: str
    bus: str
    serial: str
    firmware: str
    speed: str

    @property
    def info(self) -> CameraInfo:
        """Who it is, as every camera says it."""
        return CameraInfo(self.card, self.serial, self.firmware, self.speed, self.path)


class VideoNodes:
    """Finds webcams. kernel: who is asked; devices: folder of the device files; classes: what sysfs knows of them."""

    def __init__(
        self,
        kernel: Kernel | None = None,
        devices: Path = Path("/dev"),
        classes: Path = Path("/sys/class/video4linux"),
    ) -> None:
        self.kernel: Kernel = kernel or LinuxKernel()
        self._devices, self._classes = devices, classes

    def attached(self) -> list[VideoNode]:
        """Those that deliver pictures, in the order of their numbers; nodes that cannot be opened are left out."""
        found = []
        for path in sorted(self._devices.glob("video[0-9]*"), key=lambda path: int(path.name[5:] or 0)):
            try:
                found.append(self.identify(str(path)))
            except CameraError:
                continue
        return found

    def refused(self) -> list[str]:
        """Why device files that are there could not be opened; nodes without pictures are no trouble."""
        words = []
        for path in sorted(self._devices.glob("video[0-9]*")):
            try:
                self.kernel.close(self.kernel.open(str(path)))
            except OSError as error:
                words.append(str(explain(error, str(path))))
        return words

    def find(self, serial: str, path: str | None) -> VideoNode:
        """The device at `path`, else the one with `serial`. Raises CameraError that lists what is attached."""
        if path is not None:
            return self.identify(path)
        nodes = self.attached()
        for node in nodes:
            if node.serial == serial:
                return node
        found = describe([node.info for node in nodes])
        raise CameraError(f"camera {serial}: not attached; found: {found}; check cable and serial number")

    def identify(self, path: str) -> VideoNode:
        """Who a device file is. Raises CameraError: absent, no permission, or one that delivers no pictures."""
        capability = v4l2.Capability()
        with self.opened(path) as fd:
            ask(self.kernel, fd, path, v4l2.QUERYCAP, capability)
        caps = capability.device_caps if capability.capabilities & v4l2.HAS_DEVICE_CAPS else capability.capabilities
        missing = [
            word for bit, word in ((v4l2.CAN_CAPTURE, "pictures"), (v4l2.CAN_STREAM, "streaming")) if not caps & bit
        ]
        if missing:
            raise CameraError(
                f"{path}: offers no {' and no '.join(missing)} (a camera has nodes for other data, too); "
                "see `dzedge camera list`"
            )
        usb = self._usb(path)
        bus = capability.bus_info.decode("utf-8", "replace")
        return VideoNode(
            path, capability.card.decode("utf-8", "replace"), bus, usb.get("serial", ""), usb.get("bcdDevice", ""),
            SPEEDS.get(usb.get("speed", ""), usb.get("speed", "")),
        )  # fmt: skip

    def _usb(self, path: str) -> dict[str, str]:
        """What sysfs knows of the USB device behind a device file; nothing of one that is not on USB."""
        device = self._classes / Path(path).resolve().name / "device"
        if not device.exists():
            return {}
        folder = device.resolve().parent  # from the interface to the device
        told = {}
        for key in ("serial", "bcdDevice", "speed"):
            try:
                told[key] = (folder / key).read_text(encoding="utf-8", errors="replace").strip()
            except OSError:
                continue
        return told

    @contextmanager
    def opened(self, path: str) -> Iterator[int]:
        """A descriptor of a device file, closed at the end of the block. Raises CameraError."""
        try:
            fd = self.kernel.open(path)
        except OSError as error:
            raise explain(error, path) from error
        try:
            yield fd
        finally:
            self.kernel.close(fd)

    def modes(self, path: str) -> list[Mode]:
        """The modes offered whose pictures can be made RGB, sorted. Of a range the common values in it. Raises
        CameraError."""
        with self.opened(path) as fd:
            return offered_modes(self.kernel, fd, path)


def ask(kernel: Kernel, fd: int, path: str, request: int, argument: Any) -> None:
    """One request, its failure in words. Raises CameraError."""
    try:
        kernel.ioctl(fd, request, argument)
    except OSError as error:
        raise explain(error, f"{path}: {v4l2.NAMES[request]}") from error


def offered_modes(kernel: Kernel, fd: int, path: str) -> list[Mode]:
    """See `VideoNodes.modes`; fd: of the open device."""
    modes = set[Mode]()
    for entry in _enumerate(kernel, fd, path, v4l2.ENUM_FMT, lambda: v4l2.FormatDescription(type=v4l2.CAPTURE)):
        name = v4l2.FORMATS.get(entry.pixelformat)
        if name is not None:
            for width, height in _sizes(kernel, fd, path, entry.pixelformat):
                rates = _rates(kernel, fd, path, entry.pixelformat, width, height)
                modes.update(Mode(width, height, rate, name) for rate in rates)
    return sorted(modes)


def _enumerate(kernel: Kernel, fd: int, path: str, request: int, make: Any) -> Iterator[Any]:
    """Entries 0, 1, ... until the kernel says that there are no more."""
    for index in range(MOST):
        entry = make()
        entry.index = index
        try:
            kernel.ioctl(fd, request, entry)
        except OSError as error:
            if error.errno in (errno.EINVAL, errno.ENOTTY):  # the end, or nothing to enumerate
                return
            raise explain(error, f"{path}: {v4l2.NAMES[request]}") from error
        yield entry


def _sizes(kernel: Kernel, fd: int, path: str, pixels: int) -> Iterator[tuple[int, int]]:
    def make() -> v4l2.FrameSize:
        return v4l2.FrameSize(pixel_format=pixels)

    for entry in _enumerate(kernel, fd, path, v4l2.ENUM_FRAMESIZES, make):
        if entry.type == v4l2.DISCRETE:
            yield entry.sizes[0], entry.sizes[1]
            continue
        least_w, most_w, step_w, least_h, most_h, step_h = entry.sizes
        for width, height in COMMON_SIZES:
            inside = least_w <= width <= most_w and least_h <= height <= most_h
            if inside and (width - least_w) % max(step_w, 1) == 0 and (height - least_h) % max(step_h, 1) == 0:
                yield width, height
        return


def _rates(kernel: Kernel, fd: int, path: str, pixels: int, width: int, height: int) -> Iterator[int]:
    def make() -> v4l2.FrameInterval:
        return v4l2.FrameInterval(pixel_format=pixels, width=width, height=height)

    for entry in _enumerate(kernel, fd, path, v4l2.ENUM_FRAMEINTERVALS, make):
        shortest = entry.interval[0] / max(entry.interval[1], 1)
        if entry.type == v4l2.DISCRETE:
            yield round(1.0 / shortest) if shortest else 0
            continue
        longest = entry.interval[2] / max(entry.interval[3], 1)
        yield from (rate for rate in COMMON_RATES if shortest * rate <= 1.001 and longest * rate >= 0.999)
        return
