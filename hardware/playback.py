"""A recording as a camera: librealsense plays a .db3 or .bag file as a device, and the RealSense driver reads it.

A frame counts as taken when the file gives it out: stamps keep their distances, but not the delay that they once had.
Played at the speed at which it was recorded, and begun anew at its end.
"""

import ctypes
import functools
import os
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from dzedge.errors import CameraError
from dzedge.hardware.camera import CameraConfig, CameraHealth, CameraInfo
from dzedge.hardware.librealsense import Device, Library, Mode, Sensor, library
from dzedge.hardware.realsense import RealSense
from dzedge.hardware.realsense_devices import identify
from dzedge.kernels.mailbox import FrameRing
from dzedge.types import Frame

SUFFIXES = (".db3", ".bag")
"""Of recordings: librealsense from 2.58 writes .db3, older ones wrote .bag; both are read."""
STOPPED = 3
"""RS2_PLAYBACK_STATUS_STOPPED."""
HARDWARE = 0
"""Stamps of a camera's own clock, which the pump maps to ours by their arrival."""


@functools.cache
def _always_hardware() -> Any:
    """A C function in place of rs2_get_frame_timestamp_domain: what was recorded as wall clock is long past, so every
    stamp is taken for one of a foreign clock. It needs the GIL for a moment; a file has time."""
    kind = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
    return kind(lambda frame, error: HARDWARE)


class ReplayLibrary(Library):
    """librealsense, the clock of every frame a foreign one."""

    @functools.cached_property
    def addresses(self) -> dict[str, int]:
        """See `Library.addresses`."""
        domain = ctypes.cast(_always_hardware(), ctypes.c_void_p).value or 0
        return super().addresses | {"rs2_get_frame_timestamp_domain": domain}


class ReplayedSensor(Sensor):
    """A recorded sensor: nothing about it can be set any more."""

    def supports(self, option: str) -> bool:
        return False


class ReplayedDevice(Device):
    """A recorded device."""

    def sensors(self) -> list[Sensor]:
        """Its sensors; the caller closes them."""
        with self.lib.held("sensor_list", self.lib.call("rs2_query_sensors", self.handle)) as handles:
            count = self.lib.call("rs2_get_sensors_count", handles)
            return [ReplayedSensor(self.lib, self.lib.call("rs2_create_sensor", handles, i)) for i in range(count)]


class Recordings:
    """Provides a recording to the RealSense driver; see `dzedge.hardware.realsense.DeviceProvider`.

    path: of the file. Raises CameraError: absent, or no recording.
    """

    def __init__(self, path: str) -> None:
        file = Path(path)
        if file.suffix not in SUFFIXES:
            raise CameraError(f"recording {path}: must end in {' or '.join(SUFFIXES)}")
        if not file.is_file():
            raise CameraError(f"recording {path}: not there; check camera.path, or record one: dzedge camera record")
        if file.suffix == ".db3":
            _check_database(file)
        self.path = str(file)
        self._lib = ReplayLibrary(library().path)
        self._context = self._lib.call("rs2_create_context", self._lib.version)
        self._release = self._lib.lease(self, "context", self._context)
        self._device: Device | None = None

    def attached(self) -> list[CameraInfo]:
        """The camera that was recorded."""
        device = self.find("")
        try:
            return [identify(device)]
        finally:
            self._forget()

    def find(self, serial: str) -> Device:
        """The recorded camera, from its beginning. serial: "": any. Raises CameraError."""
        self._forget()
        try:
            handle = self._lib.call("rs2_context_add_device", self._context, os.fsencode(self.path))
        except CameraError as error:
            raise CameraError(f"recording {self.path}: {error}; record it again") from error
        self._device = device = ReplayedDevice(self._lib, handle)
        found = device.info("serial")
        if serial and found != serial:
            self._forget()
            raise CameraError(f"camera {serial}: recording {self.path} is of {found}; correct camera.serial or path")
        return device

    @property
    def ended(self) -> bool:
        """Whether the file was played to its end. To be asked of a device that streams."""
        device = self._device
        return device is not None and (
            self._lib.call("rs2_playback_device_get_current_status", device.handle) == STOPPED
        )

    def duration_ns(self) -> int:
        """Length of the recording; needs a device that was found."""
        assert self._device is not None
        return int(self._lib.call("rs2_playback_get_duration", self._device.handle))

    def reset(self, device: Device) -> None:
        """A file cannot be reset: it is opened anew by `find`."""
        device.close()

    def _forget(self) -> None:
        device, self._device = self._device, None
        if device is not None:
            device.close()
            self._lib.call("rs2_context_remove_device", self._context, os.fsencode(self.path))

    def close(self) -> None:
        """Harmless when repeated."""
        self._forget()
        self._release()


def _check_database(file: Path) -> None:
    """Raises CameraError for a .db3 without pictures: librealsense 2.59 would read such a one for ever."""
    query = "SELECT count(*) FROM messages m JOIN topics t ON m.topic_id = t.id WHERE t.name LIKE '%/image/data%'"
    try:
        with closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True)) as database:
            (pictures,) = database.execute(query).fetchone()
    except sqlite3.Error as error:
        raise CameraError(f"recording {file}: damaged, or not librealsense's ({error}); record it again") from error
    if pictures == 0:
        raise CameraError(f"recording {file}: holds no pictures: it was broken off; record it again")


class Playback:
    """A recording's colour stream, over and over; see `dzedge.hardware.camera.Camera`.

    path: of the recording; config: its mode; serial: "", or of the camera that must have been recorded; options: as of
    RealSense.
    """

    def __init__(self, path: str, config: CameraConfig, *, warmup: int = 0) -> None:
        self.recordings = Recordings(path)
        self._camera = RealSense(self.recordings, config, warmup=warmup, allow_usb2=True)
        self._ring: FrameRing | None = None
        self.rounds = 0

    @property
    def info(self) -> CameraInfo:
        """The recorded camera, as far as known."""
        return self._camera.info

    def open(self) -> CameraInfo:
        """Open the file. Raises CameraError: damaged, of another camera, or of another mode, with what it holds."""
        return self._camera.open()

    def start(self, ring: FrameRing, now_ns: int) -> None:
        """Play from the beginning. Raises CameraError; ValueError when the ring has another shape."""
        self._ring = ring
        self._camera.start(ring, now_ns)

    def latest(self, after: int = 0) -> tuple[int, Frame] | None:
        """See `dzedge.hardware.realsense.RealSense.latest`."""
        return self._camera.latest(after)

    def health(self, now_ns: int) -> CameraHealth:
        """State and counts of the present round."""
        return replace(self._camera.health(now_ns), transport_ns=0)  # what was recorded of it is long past

    def tend(self, now_ns: int) -> CameraHealth:
        """`health`; at its end the recording begins anew. Raises CameraError."""
        if self._ring is not None and self._camera.health(now_ns).frames and self.recordings.ended:
            self.rounds += 1
            self._camera.close()
            self._camera.start(self._ring, now_ns)
        return replace(self._camera.tend(now_ns), transport_ns=0)

    def stop(self) -> None:
        """Harmless when repeated."""
        self._ring = None
        self._camera.stop()

    def close(self) -> None:
        """Give the file back; harmless when repeated."""
        self._ring = None
        self._camera.close()
        self.recordings.close()


def recorded_modes(path: str) -> tuple[CameraInfo, list[Mode], int]:
    """Who was recorded, its colour modes, and the recording's length [ns]. Raises CameraError."""
    recordings = Recordings(path)
    try:
        device = recordings.find("")
        modes: list[Mode] = []
        for sensor in device.sensors():
            modes += sensor.modes()
            sensor.close()
        return identify(device), modes, recordings.duration_ns()
    finally:
        recordings.close()

