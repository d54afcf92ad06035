"""The simulated camera as librealsense sees it: a software device, fed from a frame ring.

It lives in the process that reads it, and only there: the simulator writes frames into shared memory, the
feeder injects them here, and the RealSense driver cannot tell the device from a camera on a cable.
"""

import math
import threading

from dzedge.errors import CameraError
from dzedge.hardware.camera import CameraInfo, describe
from dzedge.hardware.librealsense import (
    COLOR,
    DEPTH,
    FORMATS,
    INFO,
    Device,
    Intrinsics,
    Library,
    Sensor,
    VideoStream,
    library,
)
from dzedge.kernels.mailbox import FrameRing
from dzedge.kernels.pump import Feeder

DOMAINS = {"hardware": 0, "system": 1, "global": 2}
FIELD_OF_VIEW = math.radians(55.0)
"""Horizontal, where no focal length is given: near a D435's colour camera."""
IDENTITY = {
    "name": "Simulated D435",
    "firmware": "5.17.0.10",
    "port": "memory",
    "usb": "3.2",
    "product_line": "D400",
}


class FedSensor(Sensor):
    """A software sensor whose feeder runs exactly while it streams: librealsense may not be fed during a
    stop."""

    def __init__(self, lib: Library, handle: int, feeder: Feeder) -> None:
        super().__init__(lib, handle)
        self.feeder = feeder
        self._thread: threading.Thread | None = None

    def start(self, queue: int) -> None:
        """Deliver frames into the rs2_frame_queue `queue`."""
        super().start(queue)
        self.feeder.ready()
        self._thread = threading.Thread(target=self.feeder.run, name="camera-feeder", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """No frame is delivered after it returns."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self.feeder.stop()
            thread.join()
        super().stop()

    def close(self) -> None:
        """Stop, and give the handle back. Harmless when repeated."""
        try:
            self.stop()
        finally:
            self.feeder.detach()
            super().close()


class SoftwareDevice(Device):
    """A software device with one colour sensor at `stream`, fed from `ring`."""

    def __init__(
        self,
        lib: Library,
        identity: dict[str, str],
        stream: VideoStream,
        ring: FrameRing,
        domain: str,
        phase_ns: int,
    ) -> None:
        super().__init__(lib, lib.call("rs2_create_software_device"))
        for key, value in identity.items():
            lib.call("rs2_software_device_register_info", self.handle, INFO[key], value.encode())
        stereo = identity["name"].endswith("D405")
        name = b"Stereo Module" if stereo else b"RGB Camera"
        handle = lib.call("rs2_software_device_add_sensor", self.handle, name)
        if stereo:
            depth = VideoStream(
                DEPTH, 0, 1, stream.width, stream.height, stream.fps, 2, FORMATS["z16"], stream.intrinsics
            )
            lib.call("rs2_software_sensor_add_video_stream_ex", handle, depth, 0)
        profile = lib.call("rs2_software_sensor_add_video_stream_ex", handle, stream, 1)
        option = lib.options["auto_exposure_priority"]
        lib.call("rs2_software_sensor_add_option", handle, option, 0.0, 1.0, 1.0, 1.0, 1)
        self.feeder = Feeder(lib.addresses, handle, profile, ring, DOMAINS[domain], phase_ns)
        self._sensor = FedSensor(lib, handle, self.feeder)

    def sensors(self) -> list[Sensor]:
        """Its one sensor; closing it ends the device's use."""
        return [self._sensor]


class SoftwareCamera:
    """Provides one simulated camera to the RealSense driver; see `dzedge.hardware.realsense.DeviceProvider`.

    ring: frames (height, width, 3) RGB that the simulator publishes; fps: what the mode says; serial: its
    name on the bus; focal: [pixels], default for a field of view of 55 degrees; domain: the clock of its
    stamps, "system", "global" or "hardware"; phase_ns: what the hardware clock read at CLOCK_MONOTONIC 0;
    usb, product: identity.
    """

    def __init__(
        self,
        ring: FrameRing,
        *,
        fps: int = 15,
        serial: str = "sim",
        focal: float | None = None,
        domain: str = "system",
        phase_ns: int = 0,
        usb: str = "3.2",
        product: str = "D435",
    ) -> None:
        self._lib = library()
        self._ring, self._domain, self._phase_ns = ring, domain, phase_ns
        self._identity = IDENTITY | {"name": f"Simulated {product}", "serial": serial, "usb": usb}
        focal = ring.width / (2 * math.tan(FIELD_OF_VIEW / 2)) if focal is None else focal
        centre = (ring.width - 1) / 2, (ring.height - 1) / 2
        lens = Intrinsics(ring.width, ring.height, *centre, focal, focal, 0)
        self._stream = VideoStream(COLOR, 0, 2, ring.width, ring.height, fps, 3, FORMATS["rgb8"], lens)
        self._plugged = True
        self.device: SoftwareDevice | None = None

    def open(self) -> SoftwareDevice:
        """A fresh software device."""
        self.device = SoftwareDevice(
            self._lib, self._identity, self._stream, self._ring, self._domain, self._phase_ns
        )
        return self.device

    def attached(self) -> list[CameraInfo]:
        """The one camera, or none after `unplug`."""
        who = self._identity
        info = CameraInfo(who["name"], who["serial"], who["firmware"], who["usb"], who["port"])
        return [info] if self._plugged else []

    def find(self, serial: str) -> Device:
        """The camera, where it bears `serial`. Raises CameraError that lists what is there."""
        if not self._plugged or serial != self._identity["serial"]:
            raise CameraError(
                f"camera {serial}: not attached; found: {describe(self.attached())}; "
                "check cable, power and the serial number"
            )
        return self.open()

    def unplug(self, plugged: bool = False) -> None:
        """Take the camera off the bus: its feeder stops for good. `plugged`: put a new one there."""
        self._plugged = plugged
        if self.device is not None:
            self.device.feeder.stop()

    def reset(self, device: Device) -> None:
        """A software device cannot be reset (librealsense says "not implemented"): it is made anew by
        `find`."""
        device.close()

    def close(self) -> None:
        """Forget the device; whoever opened it closes it."""
        self.device = None
