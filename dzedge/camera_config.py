"""The camera tables of the robot file: which driver, which device, which mode."""

from typing import Annotated, Literal, get_args

import msgspec
from msgspec import Meta

from dzedge.section import SIM, Name, Section, Text

SIM_CAMERA = (160, 120)
"""Width and height of the simulated camera [pixels]."""

CameraDriver = Literal["realsense", "v4l2", "playback", "sim"]
CameraFormat = Literal["rgb8", "bgr8", "yuyv", "mjpeg", "grey"]
DRIVERS: tuple[str, ...] = get_args(CameraDriver)
FORMATS: dict[str, tuple[str, ...]] = {
    "realsense": ("rgb8", "bgr8", "yuyv"),
    "playback": ("rgb8", "bgr8", "yuyv"),
    "v4l2": ("yuyv", "mjpeg", "grey"),
    "sim": ("rgb8",),
}
"""What a driver can turn into RGB."""
NEEDED = {
    "realsense": "serial of the camera (dzedge camera list)",
    "v4l2": "path of the device, /dev/v4l/by-id/..., or its serial (dzedge camera list)",
    "playback": "path of a recording, NAME.db3 or NAME.bag",
}
"""By which key a driver finds its camera."""

Pixels = Annotated[int, Meta(ge=0, le=4096, description="[pixels]")]


class Camera(Section, frozen=True):
    """[[cameras]], the policy's first.

    driver: "realsense"; "v4l2", a webcam; "playback", a recording of a RealSense, over and over; "sim", or
    "realsense" with serial = "sim": the simulated camera, through the RealSense driver. serial: of the device;
    path: of the device (v4l2) or of the recording (playback); crop: [left, top, width, height]; allow_usb2: take a
    RealSense that runs on a USB 2 link.
    """

    name: Name
    driver: CameraDriver
    width: Annotated[int, Meta(ge=32, le=1920, description="[pixels]")]
    height: Annotated[int, Meta(ge=32, le=1080, description="[pixels]")]
    fps: Annotated[int, Meta(ge=1, le=90, description="[Hz]")]
    format: CameraFormat
    serial: Annotated[str, Meta(max_length=200)] = ""
    path: Text | None = None
    crop: tuple[Pixels, Pixels, Pixels, Pixels] | None = None
    allow_usb2: bool = False

    def __post_init__(self) -> None:
        if self.driver == SIM:
            msgspec.structs.force_setattr(self, "serial", SIM)
        self._check_device()
        if self.format not in FORMATS[self.driver]:
            names = ", ".join(FORMATS[self.driver])
            raise ValueError(f'format = "{self.format}": driver = "{self.driver}" takes {names}; choose one')
        if self.simulated and (self.width, self.height) != SIM_CAMERA:
            wanted = f"{SIM_CAMERA[0]}x{SIM_CAMERA[1]}"
            raise ValueError(f"the simulated camera is {wanted}, not {self.width}x{self.height}; write {wanted}")
        if self.crop is None:
            return
        left, top, width, height = self.crop
        if min(width, height) < 1 or left + width > self.width or top + height > self.height:
            raise ValueError(f"crop = {list(self.crop)} must lie inside the {self.width}x{self.height} image")

    def _check_device(self) -> None:
        driver = self.driver
        by_path = self.path is not None
        if driver in ("realsense", SIM) and by_path:
            raise ValueError(f'path = "{self.path}": driver = "{driver}" has none; leave it out')
        if self.allow_usb2 and driver != "realsense":
            raise ValueError(f'allow_usb2 = true: driver = "{driver}" asks for no USB 3; leave it out')
        if driver == "v4l2" and by_path == bool(self.serial):
            raise ValueError(f'driver = "{driver}" needs either path or serial: {NEEDED[driver]}')
        if (driver == "realsense" and not self.serial) or (driver == "playback" and not by_path):
            raise ValueError(f'driver = "{driver}" needs the {NEEDED[driver]}')
        if driver == "v4l2" and self.serial == SIM:
            raise ValueError(f'serial = "{SIM}" with driver = "{driver}": write driver = "{SIM}"')

    @property
    def simulated(self) -> bool:
        return self.driver == SIM or (self.driver == "realsense" and self.serial == SIM)
