"""The simulated camera as librealsense sees it: a software device, each of its streams fed from a frame ring.

It lives in the process that reads it, and only there: the simulator writes frames into shared memory, the
feeder injects them here, and the RealSense driver cannot tell the device from a camera on a cable.
"""

import math
import threading
from collections.abc import Mapping
from dataclasses import dataclass

from dzedge.errors import CameraError
from dzedge.hardware.camera import CameraInfo, describe
from dzedge.hardware.librealsense import FORMATS, INFO, STREAMS, Device, Library, Sensor, library
from dzedge.hardware.librealsense_calls import Intrinsics, VideoStream
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


@dataclass(frozen=True, slots=True)
class Product:
    """How a RealSense model differs. one_sensor: colour, depth and infrared come from the same sensor; baseline_mm:
    between its eyes; depth_units: metres of one count of depth."""

    one_sensor: bool
    baseline_mm: float
    depth_units: float


PRODUCTS = {
    "D435": Product(False, 50.0, 1e-3),
    "D455": Product(False, 95.0, 1e-3),
    "D405": Product(True, 18.0, 1e-4),
}
RAW = {1: "y8", 2: "z16"}
"""Format of depth and infrared by bytes a pixel."""
COLOURS = {2: "yuyv", 3: "rgb8"}


class FedSensor(Sensor):
    """A software sensor whose feeders run exactly while it streams: librealsense may not be fed during a
    stop."""

    def __init__(self, lib: Library, handle: int) -> None:
        super().__init__(lib, handle)
        self.feeders: list[Feeder] = []
        self._threads: list[threading.Thread] = []

    def start(self, queue: int) -> None:
        """Deliver frames into the rs2_frame_queue `queue`."""
        super().start(queue)
        for feeder in self.feeders:
            feeder.ready()
            self._threads.append(threading.Thread(target=feeder.run, name="camera-feeder", daemon=True))
            self._threads[-1].start()

    def stop(self) -> None:
        """No frame is delivered after it returns."""
        threads, self._threads = self._threads, []
        for feeder in self.feeders:
            feeder.stop()
        for thread in threads:
            thread.join()
        super().stop()

    def close(self) -> None:
        """Stop, and give the handle back. Harmless when repeated."""
        try:
            self.stop()
        finally:
            for feeder in self.feeders:
                feeder.detach()
            super().close()


class SoftwareDevice(Device):
    """A software device with the sensors of its product, each stream fed from a ring; a D405 has a depth stream
    whether fed or not.

    identity: what it says of itself; rings: of each stream by kind, see `librealsense.STREAMS`; lens: of all of them;
    domain, phase_ns: see `SoftwareCamera`.
    """

    def __init__(
        self,
        lib: Library,
        identity: dict[str, str],
        rings: dict[str, FrameRing],
        lens: Intrinsics,
        fps: int,
        domain: str,
        phase_ns: int,
    ) -> None:
        super().__init__(lib, lib.call("rs2_create_software_device"))
        for key, value in identity.items():
            lib.call("rs2_software_device_register_info", self.handle, INFO[key], value.encode())
        self._product = PRODUCTS[identity["name"].split()[-1]]
        self._lens, self._fps, self._clock = lens, fps, (DOMAINS[domain], phase_ns)
        self._modules: dict[str, FedSensor] = {}
        self.feeders: dict[str, Feeder] = {}
        for kind in ("depth", "infrared", "infrared2", "color"):
            if kind in rings:
                self._add(kind, rings[kind])
            elif kind == "depth" and self._product.one_sensor:
                self._stream(self._module(kind), kind, 2)
        self.feeder = self.feeders["color"]

    def _module(self, kind: str) -> FedSensor:
        """The sensor that carries streams of `kind`, made where it is not there yet."""
        where = "RGB Camera" if kind == "color" and not self._product.one_sensor else "Stereo Module"
        if where in self._modules:
            return self._modules[where]
        lib = self.lib
        handle = lib.call("rs2_software_device_add_sensor", self.handle, where.encode())
        sensor = self._modules[where] = FedSensor(lib, handle)
        if where == "Stereo Module":
            read_only = {"depth_units": self._product.depth_units, "stereo_baseline": self._product.baseline_mm}
            for name, value in read_only.items():
                lib.call("rs2_software_sensor_add_read_only_option", handle, lib.options[name], value)
        if where == "RGB Camera" or self._product.one_sensor:
            option = lib.options["auto_exposure_priority"]
            lib.call("rs2_software_sensor_add_option", handle, option, 0.0, 1.0, 1.0, 1.0, 1)
        return sensor

    def _stream(self, sensor: FedSensor, kind: str, pixel_bytes: int) -> int:
        """The rs2_stream_profile* of a new stream."""
        stream, index = STREAMS[kind]
        form = FORMATS[(COLOURS if kind == "color" else RAW)[pixel_bytes]]
        lens, uid = self._lens, 1 + list(STREAMS).index(kind)
        video = VideoStream(stream, index, uid, lens.width, lens.height, self._fps, pixel_bytes, form, lens)
        default = int(kind == "color")
        return int(self.lib.call("rs2_software_sensor_add_video_stream_ex", sensor.handle, video, default))

    def _add(self, kind: str, ring: FrameRing) -> None:
        sensor = self._module(kind)
        profile = self._stream(sensor, kind, ring.pixel_bytes)
        units = self._product.depth_units if kind == "depth" else 0.0
        feeder = Feeder(self.lib.addresses, sensor.handle, profile, ring, *self._clock, units)
        sensor.feeders.append(feeder)
        self.feeders[kind] = feeder

    def sensors(self) -> list[Sensor]:
        """Its sensors; closing them ends the device's use."""
        return list(self._modules.values())


class SoftwareCamera:
    """Provides one simulated camera to the RealSense driver; see `dzedge.hardware.realsense.DeviceProvider`.

    ring: frames that the simulator publishes, RGB, or YUYV in a ring of 2 bytes a pixel; beside: rings of further
    streams of the same size by kind, "depth" (2 bytes a pixel), "infrared", "infrared2" (1 byte); fps: what the modes
    say; serial: its name on the bus; focal: [pixels], default for a field of view of 55 degrees; domain: the clock of
    its stamps, "system", "global" or "hardware"; phase_ns: what the hardware clock read at CLOCK_MONOTONIC 0; usb,
    product: identity, D435, D455 or D405.
    """

    def __init__(
        self,
        ring: FrameRing,
        *,
        beside: Mapping[str, FrameRing] | None = None,
        fps: int = 15,
        serial: str = "sim",
        focal: float | None = None,
        domain: str = "system",
        phase_ns: int = 0,
        usb: str = "3.2",
        product: str = "D435",
    ) -> None:
        self._lib = library()
        self._ring, self._domain, self._phase_ns, self._fps = ring, domain, phase_ns, fps
        self._rings = {"color": ring, **(beside or {})}
        if product not in PRODUCTS:
            raise CameraError(f"simulated camera {product}: unknown; choose {', '.join(PRODUCTS)}")
        self._identity = IDENTITY | {"name": f"Simulated {product}", "serial": serial, "usb": usb}
        focal = ring.width / (2 * math.tan(FIELD_OF_VIEW / 2)) if focal is None else focal
        centre = (ring.width - 1) / 2, (ring.height - 1) / 2
        self._lens = Intrinsics(ring.width, ring.height, *centre, focal, focal, 0)
        self._plugged = True
        self.device: SoftwareDevice | None = None

    def open(self) -> SoftwareDevice:
        """A fresh software device."""
        self.device = SoftwareDevice(
            self._lib, self._identity, self._rings, self._lens, self._fps, self._domain, self._phase_ns
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
        for feeder in self.device.feeders.values() if self.device is not None else ():
            feeder.stop()

    def reset(self, device: Device) -> None:
        """A software device cannot be reset (librealsense says "not implemented"): it is made anew by
        `find`."""
        device.close()

    def close(self) -> None:
        """Forget the device; whoever opened it closes it."""
        self.device = None
