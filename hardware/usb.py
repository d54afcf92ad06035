"""USB devices as sysfs lists them: adapters of serial arms, cameras, and what is between them and the machine."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dzedge.hardware.host import Host

REALSENSE = "8086"
"""Vendor of RealSense cameras, those of the firm's later name included."""
SUPER_SPEED = 5000
"""[Mbit/s]: USB 3."""


@dataclass(frozen=True, slots=True)
class Adapter:
    """A kind of USB serial adapter. product: USB product id, "" for all of the vendor's; driver: kernel module."""

    title: str
    vendor: str
    product: str
    driver: str


ADAPTERS = (
    Adapter("U2D2", "0403", "6014", "ftdi_sio"),
    Adapter("FTDI adapter", "0403", "", "ftdi_sio"),
    Adapter("OpenRB-150", "2f5d", "", "cdc_acm"),
    Adapter("CH343 board", "1a86", "55d3", "cdc_acm"),
    Adapter("CH340 board", "1a86", "7523", "ch341"),
    Adapter("CH340 board", "1a86", "7522", "ch341"),
    Adapter("CH341 board", "1a86", "5523", "ch341"),
    Adapter("CP210x adapter", "10c4", "ea60", "cp210x"),
    Adapter("Raspberry Pi Pico", "2e8a", "", "cdc_acm"),
    Adapter("Arduino", "2341", "", "cdc_acm"),
)
"""The first that fits counts. Ids: ROBOTIS' and WCH's own udev rules and drivers; Linux drivers/usb/serial/ch341.c."""


@dataclass(frozen=True, slots=True)
class UsbDevice:
    """One device. name: its place, such as 1-2.3; vendor, product: hexadecimal ids; serial: "" where it has none;
    speed: of its link [Mbit/s]; ttys, videos: names in /dev; drivers: of its interfaces; hubs: on the way to it, from
    the machine outwards, as "name title"."""

    name: str
    vendor: str
    product: str
    serial: str
    title: str
    speed: float
    ttys: tuple[str, ...]
    videos: tuple[str, ...]
    drivers: tuple[str, ...]
    hubs: tuple[str, ...]

    @property
    def adapter(self) -> Adapter | None:
        """Which kind of serial adapter it is; one unknown here but with a tty counts by its own name."""
        for kind in ADAPTERS:
            if kind.vendor == self.vendor and kind.product in ("", self.product):
                return kind
        return Adapter(self.title, self.vendor, self.product, "") if self.ttys else None

    @property
    def realsense(self) -> bool:
        return self.vendor == REALSENSE and ("realsense" in self.title.lower() or len(self.videos) > 2)

    @property
    def ids(self) -> str:
        return f"{self.vendor}:{self.product}"

    @property
    def bus(self) -> str:
        """Of its root hub."""
        return self.name.partition("-")[0]


def devices(host: Host) -> list[UsbDevice]:
    """All but hubs, sorted by place."""
    return [device for device in _all(host) if device is not None]


def _all(host: Host) -> Iterator[UsbDevice | None]:
    folder = "/sys/bus/usb/devices"
    for path in host.names(f"{folder}/[0-9]*-*"):
        name = Path(path).name
        if ":" in name or not host.exists(f"{path}/idVendor") or host.read(f"{path}/bDeviceClass") == "09":
            continue
        yield UsbDevice(
            name,
            host.read(f"{path}/idVendor").lower(),
            host.read(f"{path}/idProduct").lower(),
            host.read(f"{path}/serial"),
            _title(host, path),
            float(host.read(f"{path}/speed") or 0),
            _found(host, path, "ttyUSB*", "tty/tty*"),
            _found(host, path, "video4linux/video*"),
            tuple(Path(host.resolve(link)).name for link in host.names(f"{path}/{name}:*/driver")),
            tuple(f"{hub} {_title(host, f'{folder}/{hub}')}" for hub in _hubs(name)),
        )


def _found(host: Host, path: str, *patterns: str) -> tuple[str, ...]:
    """Names of what the kernel made of a device's interfaces, in the order of their numbers."""
    names = {Path(found).name for pattern in patterns for found in host.names(f"{path}/{Path(path).name}:*/{pattern}")}
    return tuple(sorted(names, key=lambda name: (len(name), name)))


def _hubs(name: str) -> Iterator[str]:
    bus, _, ports = name.partition("-")
    steps = ports.split(".")
    yield from (f"{bus}-{'.'.join(steps[:i])}" for i in range(1, len(steps)))


def _title(host: Host, path: str) -> str:
    """What it calls itself."""
    words = [host.read(f"{path}/{key}") for key in ("manufacturer", "product")]
    ids = (host.read(f"{path}/{key}") for key in ("idVendor", "idProduct"))
    return " ".join(word for word in words if word) or ":".join(ids)
