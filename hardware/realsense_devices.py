"""Where RealSense devices come from."""

from typing import Protocol

from dzedge.errors import CameraError
from dzedge.hardware.camera import CameraInfo, describe
from dzedge.hardware.librealsense import Device, Library, library


class DeviceProvider(Protocol):
    """Where devices come from: the bus (LiveDevices), or one that a program feeds (SoftwareCamera)."""

    def attached(self) -> list[CameraInfo]: ...
    def find(self, serial: str) -> Device: ...
    def reset(self, device: Device) -> None: ...
    def close(self) -> None: ...


def identify(device: Device) -> CameraInfo:
    """Who a device says it is."""
    name, serial, firmware, usb, port = (
        device.info(key) for key in ("name", "serial", "firmware", "usb", "port")
    )
    return CameraInfo(name, serial, firmware, usb, port)


class LiveDevices:
    """The cameras on this machine. Raises CameraError when librealsense is missing."""

    def __init__(self, lib: Library | None = None) -> None:
        self._lib = lib or library()
        self._context = self._lib.call("rs2_create_context", self._lib.version)
        self._release = self._lib.lease(self, "context", self._context)

    def _devices(self) -> list[Device]:
        call = self._lib.call
        with self._lib.held("device_list", call("rs2_query_devices", self._context)) as handles:
            count = call("rs2_get_device_count", handles)
            return [Device(self._lib, call("rs2_create_device", handles, i)) for i in range(count)]

    def attached(self) -> list[CameraInfo]:
        """The cameras found now."""
        return [identify(device) for device in self._devices()]

    def find(self, serial: str) -> Device:
        """The camera with `serial`. Raises CameraError that lists what is attached."""
        devices = self._devices()
        for device in devices:
            if device.info("serial") == serial:
                return device
        found = describe([identify(device) for device in devices])
        raise CameraError(
            f"camera {serial}: not attached; found: {found}; check cable, power and the serial number"
        )

    def reset(self, device: Device) -> None:
        """Make it leave the bus and come back."""
        device.hardware_reset()
        device.close()

    def close(self) -> None:
        """Harmless when repeated."""
        self._release()
