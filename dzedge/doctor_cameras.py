"""Cameras: librealsense and its backend, each camera's link, rights, metadata and firmware, and those of the robot."""

import mmap
import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from dzedge.camera_config import Camera
from dzedge.check import Check, Status
from dzedge.config import RobotConfig
from dzedge.errors import CameraError
from dzedge.hardware import udev
from dzedge.hardware.camera import CameraInfo, describe
from dzedge.hardware.host import Host
from dzedge.hardware.librealsense import library
from dzedge.hardware.realsense import DeviceProvider, LiveDevices
from dzedge.hardware.usb import SUPER_SPEED, UsbDevice, devices

KERNEL_BACKEND, RSUSB = b"v4l_uvc_device", b"rs_uvc_device"
"""Class names in librealsense's library: of its kernel backend, and of the one in user space."""
MANY = 3
"""RealSense cameras on one USB bus that were seen to fail where two worked (librealsense#13792)."""
SDK = "pip install 'dzedge[realsense]', and libusb-1.0-0 and libudev1 of the system"
LOGIN = "then log out and in again"


def examine(
    host: Host,
    config: RobotConfig | None,
    live: Callable[[], DeviceProvider] = LiveDevices,
    sdk: Callable[[], str] = lambda: library().path,
) -> list[Check]:
    """All checks of cameras. live: who finds RealSense cameras; sdk: where librealsense's library is. Both raise
    CameraError where it is missing."""
    attached = devices(host)
    cameras = [device for device in attached if device.realsense]
    tables = config.cameras if config is not None else ()
    checks = [*_library(tables, sdk)]
    for camera in cameras:
        checks += [_link(camera), *_nodes(host, camera)]
    checks += [*_crowd(cameras), *_rules(host, cameras), *_rights(host, attached), *_alike(attached)]
    real = [table for table in tables if not table.simulated]
    if cameras or any(table.driver == "realsense" for table in real):
        checks += _live(live, real, cameras)
    return checks + [check for table in real if table.driver != "realsense" for check in _other(host, table)]


def _library(tables: tuple[Camera, ...], sdk: Callable[[], str]) -> Iterator[Check]:
    needed = not tables or any(table.driver != "v4l2" for table in tables)
    try:
        path = sdk()
    except CameraError as error:
        yield Check("librealsense", "fail" if needed else "ok", str(error), SDK if needed else "")
        return
    yield Check("librealsense", "ok", _version(path))
    kernel, user = _backends(Path(path))
    if user and not kernel:
        why = "it takes about ten times the processor, and an interrupted session leaves the camera wedged"
        advice = "for a robot take a build with the kernel backend, as pyrealsense2's wheel is"
        yield Check("librealsense backend", "warn", "RSUSB, in user space", advice, why)
    elif kernel:
        yield Check("librealsense backend", "ok", "the kernel's (V4L2)")
    else:
        yield Check("librealsense backend", "ok", "cannot be told from this build")


def _version(path: str) -> str:
    from importlib import metadata

    try:
        return metadata.version("pyrealsense2")
    except metadata.PackageNotFoundError:
        return f"own build, {path}"


def _backends(path: Path) -> tuple[bool, bool]:
    """Whether a library has the kernel backend, and the one in user space."""
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
        return text.find(KERNEL_BACKEND) >= 0, text.find(RSUSB) >= 0


def _name(camera: UsbDevice) -> str:
    return f"{camera.title} on USB {camera.name}"


def _link(camera: UsbDevice) -> Check:
    hubs = f" behind {', '.join(camera.hubs)}" if camera.hubs else ""
    found = f"{_name(camera)}: {camera.speed:g} Mbit/s{hubs}"
    if camera.speed >= SUPER_SPEED:
        return Check("USB link", "ok", found)
    advice = "push the plug in firmly, turn it over, take a short USB 3 cable and a USB 3 port"
    if camera.hubs:
        advice += ", without the hub"
    why = "below 5000 Mbit/s it has stepped down to USB 2: fewer modes, lower rates"
    return Check("USB link", "warn", found, advice, why)


def _nodes(host: Host, camera: UsbDevice) -> Iterator[Check]:
    """The kernel's video devices of a camera, and those that carry each frame's metadata."""
    if not camera.videos:
        module = host.module("uvcvideo")
        why = "librealsense's kernel backend reads the camera through them"
        found = f"{_name(camera)} has none; uvcvideo {module}"
        fix = ("sudo modprobe uvcvideo",) if module in ("there", "unknown") else ()
        advice = "load uvcvideo" if fix else "see `dmesg`: another driver or program has detached it; replug the camera"
        yield Check("video devices", "fail", found, advice, why, fix)
        return
    metadata = [video for video in camera.videos if _is_metadata(host, video)]
    version = host.read("/sys/module/uvcvideo/version") or "of unknown version"
    patched = ", patched by RealSense" if "realsense" in version else ""
    found = f"{_name(camera)}: {len(metadata)} of {len(camera.videos)} video devices; uvcvideo {version}{patched}"
    if metadata:
        yield Check("camera metadata", "ok", found, "")
        return
    why = "without metadata frames may lack hardware time (domain: system), and their age is known less exactly"
    advice = "apply librealsense's kernel patch (Jetson: scripts/patch-realsense-ubuntu-L4T.sh), or take a newer kernel"
    yield Check("camera metadata", "warn", found, advice, why)


def _is_metadata(host: Host, video: str) -> bool:
    """What udev asked the device; where it was not asked, uvcvideo's order: data first, its metadata next."""
    folder = f"/sys/class/video4linux/{video}"
    told = host.properties(host.read(f"{folder}/dev"))
    if "ID_V4L_CAPABILITIES" in told:
        return ":capture:" not in told["ID_V4L_CAPABILITIES"]
    index = host.read(f"{folder}/index")
    return index.isdigit() and int(index) % 2 == 1


def _crowd(cameras: list[UsbDevice]) -> Iterator[Check]:
    for bus, count in Counter(camera.bus for camera in cameras).items():
        if count >= MANY:
            why = "they share its bandwidth: starting the last one may fail, or all drop frames"
            advice = "spread them over the machine's USB controllers (`lsusb -t`), or lower size and rate"
            yield Check("USB bandwidth", "warn", f"{count} RealSense cameras on USB bus {bus}", advice, why)


def _rules(host: Host, cameras: list[UsbDevice]) -> Iterator[Check]:
    missing = [camera for camera in cameras if not udev.covers(host, camera)]
    if missing:
        found = f"none for {', '.join(f'{_name(camera)} ({camera.ids})' for camera in missing)}"
        why = "without them only root and whoever sits at the machine may open the camera"
        advice = f"write {udev.PLACE}, or install librealsense's own"
        yield Check("udev rules, cameras", "warn", found, advice, why, udev.INSTALL)
    elif not cameras and not udev.cover_cameras(host):
        advice = f"recommended before one is plugged in: write {udev.PLACE}, as `dzedge doctor --fix` prints it"
        found = "none for a RealSense; none is attached now"
        yield Check("udev rules, cameras", "ok", found, advice, fix=udev.INSTALL)
    elif cameras:
        yield Check("udev rules, cameras", "ok", f"there for {', '.join(sorted({camera.ids for camera in cameras}))}")


def _rights(host: Host, attached: list[UsbDevice]) -> Iterator[Check]:
    shut = [
        f"/dev/{video}"
        for device in attached
        for video in device.videos
        if host.exists(f"/dev/{video}") and not host.access(host.path(f"/dev/{video}"), os.R_OK | os.W_OK)
    ]
    if shut:
        name = host.user().name
        fix = (f"sudo usermod -aG video {name}  # {LOGIN}", *udev.INSTALL)
        advice = f"sudo usermod -aG video $USER, {LOGIN}; or install the udev rules"
        found = f"no permission for {', '.join(shut)}"
        yield Check("camera rights", "fail", found, advice, "they cannot be opened", fix)


def _alike(attached: list[UsbDevice]) -> Iterator[Check]:
    """Webcams that a serial number cannot tell apart."""
    webcams = [device for device in attached if device.videos and not device.realsense]
    twice = Counter((d.vendor, d.product, d.serial) for d in webcams)
    alike = [d for d in webcams if twice[d.vendor, d.product, d.serial] > 1]
    if alike:
        words = f"the same serial number {alike[0].serial}" if alike[0].serial else "no serial number"
        found = f"{', '.join(f'/dev/{d.videos[0]}' for d in alike)}: {len(alike)} cameras with {words}"
        why = "/dev/v4l/by-id has one name for both, and numbers change from boot to boot"
        advice = 'name each by path = "/dev/v4l/by-path/..." in the robot file, and keep it in its socket'
        yield Check("camera names", "warn", found, advice, why)


def _live(live: Callable[[], DeviceProvider], tables: list[Camera], cameras: list[UsbDevice]) -> list[Check]:
    """What librealsense itself sees: firmware, and the cameras of the robot file."""
    wanted = [table for table in tables if table.driver == "realsense"]
    try:
        provider = live()
    except CameraError as error:
        return [Check(f"camera {table.name}", "fail", f"not looked for: {error}", SDK) for table in wanted]
    try:
        found = provider.attached()
        checks = [_firmware(info, _recommended(provider, info)) for info in found]
        if len(found) < len(cameras):
            seen = f"{len(found)} of {len(cameras)} RealSense cameras on USB"
            advice = "end the program that has them, see `camera rights`, or unplug the camera and plug it in"
            checks.append(Check("librealsense finds", "warn", seen, advice, "one that it does not see cannot be used"))
        return checks + [_wanted(table, found) for table in wanted]
    except CameraError as error:
        return [Check("librealsense finds", "fail", str(error), "end what uses the cameras, or replug them")]
    finally:
        provider.close()


def _recommended(provider: DeviceProvider, info: CameraInfo) -> str:
    device = provider.find(info.serial)
    try:
        return device.info("recommended")
    finally:
        device.close()


def _firmware(info: CameraInfo, recommended: str) -> Check:
    found = f"{info.name} {info.serial}: {info.firmware or 'unknown'}"
    if not recommended or not info.firmware or _numbers(info.firmware) >= _numbers(recommended):
        return Check("camera firmware", "ok", found)
    why = f"this librealsense is made for {recommended} and newer"
    advice = f"rs-fw-update -s {info.serial} -f IMAGE.bin, with the vendor's image {recommended}"
    return Check("camera firmware", "warn", found, advice, why)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) if part.isdigit() else 0 for part in version.split("."))


def _wanted(table: Camera, attached: list[CameraInfo]) -> Check:
    name = f"camera {table.name}"
    info = next((info for info in attached if info.serial == table.serial), None)
    if info is None:
        advice = "plug it into a USB 3 port, and check the serial in the robot file"
        return Check(name, "fail", f"{table.serial} absent; found: {describe(attached)}", advice, "the policy needs it")
    found = f"{table.serial}, USB {info.usb or 'unknown'}"
    if info.stepped_down:
        advice = "use a USB 3 port and cable, turn the plug over; or write allow_usb2 = true for this camera"
        why = "it has stepped down: fewer modes, lower rates" + ("" if table.allow_usb2 else ", and dzedge refuses it")
        return Check(name, "warn" if table.allow_usb2 else "fail", found, advice, why)
    return Check(name, "ok", found)


def _other(host: Host, table: Camera) -> Iterator[Check]:
    """A webcam or a recording of the robot file."""
    name = f"camera {table.name}"
    status: Status
    if table.path is not None:
        there = host.exists(table.path)
        status, found = ("ok", table.path) if there else ("fail", f"{table.path} absent")
        advice = "" if there else "check the path in the robot file; `dzedge camera list` shows what is attached"
        yield Check(name, status, found, advice, "the policy needs it")
        return
    serials = {device.serial: device.videos for device in devices(host) if device.videos}
    if table.serial in serials:
        yield Check(name, "ok", f"{table.serial}: /dev/{serials[table.serial][0]}")
        return
    found = f"{table.serial} absent; found: {', '.join(filter(None, serials)) or 'none with a serial number'}"
    advice = "check cable and serial; `dzedge camera list` shows what is attached"
    yield Check(name, "fail", found, advice, "the policy needs it")
