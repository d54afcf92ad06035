"""The udev rules that dzedge wants, and whether a machine has such."""

import re

from dzedge.hardware.host import Host
from dzedge.hardware.usb import ADAPTERS, REALSENSE, UsbDevice

PLACE = "/etc/udev/rules.d/60-dzedge.rules"
"""Before 73-seat-late.rules, which acts on the tag uaccess."""

PORTS = """\
# Serial adapters of robot arms: for group dialout, never probed by ModemManager.
# Both tags: with its strict policy ModemManager before 1.12 does not obey the one of the device.
"""
LATENCY = """\
# FTDI chips keep a short answer back for 16 ms unless told otherwise.
ACTION!="remove", SUBSYSTEM=="usb-serial", DRIVER=="ftdi_sio", ATTR{latency_timer}="1"
"""
CAMERAS = """\
# RealSense cameras: for group video, and for whoever sits at the machine.
SUBSYSTEM=="usb", ENV{DEVTYPE}=="usb_device", ATTR{idVendor}=="8086", ATTR{product}=="*RealSense*", \\
  GROUP="video", MODE="0660", TAG+="uaccess"
SUBSYSTEM=="video4linux", ATTRS{idVendor}=="8086", GROUP="video", MODE="0660", TAG+="uaccess"
"""


def _port_rules() -> str:
    whole = {kind.vendor for kind in ADAPTERS if not kind.product}
    lines = []
    for kind in ADAPTERS:
        if kind.product and kind.vendor in whole:
            continue
        product = f', ATTRS{{idProduct}}=="{kind.product}"' if kind.product else ""
        lines.append(
            f'SUBSYSTEM=="tty", ATTRS{{idVendor}}=="{kind.vendor}"{product}, GROUP="dialout", MODE="0660", \\\n'
            '  ENV{ID_MM_DEVICE_IGNORE}="1", ENV{ID_MM_PORT_IGNORE}="1"\n'
        )
    return "".join(lines)


TEXT = PORTS + _port_rules() + LATENCY + CAMERAS
"""Of the file PLACE."""
INSTALL = (
    f"sudo tee {PLACE} >/dev/null <<'EOF'\n{TEXT}EOF",
    "sudo udevadm control --reload-rules",
    "sudo udevadm trigger",
)
"""Commands that install them."""
ANY = "any"
"""Product of a vendor all of whose products are ours: a rule for some of them is none for that."""
D435I = "0b3a"
FOREIGN = ("-mm-", "brltty")
"""In the names of rules that name our devices for purposes of their own."""


def covers(host: Host, device: UsbDevice) -> bool:
    """Whether some rule names the device by vendor, and by product where it names products."""
    return _named(host, device.vendor, device.product)


def cover_adapters(host: Host) -> bool:
    """Whether rules name every serial adapter that we know, whatever is plugged in."""
    return all(_named(host, kind.vendor, kind.product or ANY) for kind in ADAPTERS)


def cover_cameras(host: Host) -> bool:
    """Whether rules name a RealSense, whatever is plugged in."""
    return _named(host, REALSENSE, D435I)


def _named(host: Host, wanted: str, model: str) -> bool:
    for file, text in host.rules().items():
        if any(word in file for word in FOREIGN):
            continue
        for line in text.splitlines():
            vendor = re.search(r'idVendor\}\s*==\s*"([0-9a-fA-F*|]+)"', line)
            if vendor is None or wanted not in vendor[1].lower().split("|"):
                continue
            product = re.search(r'idProduct\}\s*==\s*"([^"]+)"', line)
            if product is None or _fits(product[1].lower(), model):
                return True
    return False


def ignored_by_modem_manager(host: Host, device: UsbDevice, port_only: bool = False) -> bool:
    """Whether udev has told ModemManager to leave the device's ports alone: in force, not merely written down."""
    tags = {"ID_MM_PORT_IGNORE"} if port_only else {"ID_MM_PORT_IGNORE", "ID_MM_DEVICE_IGNORE"}
    return all(
        any(host.properties(host.read(f"/sys/class/tty/{tty}/dev")).get(tag) == "1" for tag in tags)
        for tty in device.ttys
    )


def _fits(pattern: str, product: str) -> bool:
    words = (re.escape(part).replace(r"\*", ".*").replace(r"\?", ".") for part in pattern.split("|"))
    return any(re.fullmatch(word, product) for word in words)
