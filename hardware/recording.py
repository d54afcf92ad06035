"""Recording while filming: librealsense writes what a camera's sensors deliver into a .db3 file, in the background.

A provider of devices around another one: the RealSense driver opens, starts and pumps as ever. The file is
librealsense's own (SQLite, ROS 2 messages): every stream of the device that is open, here colour, with stamps, lens and
metadata. Its layout has changed between versions: a source to play from, not a format of ours.
"""

import os
from pathlib import Path

from dzedge.errors import CameraError, UsageError
from dzedge.hardware.camera import CameraInfo
from dzedge.hardware.librealsense import Device, Library, Sensor
from dzedge.hardware.realsense_devices import DeviceProvider
from dzedge.hardware.sim.software_camera import FedSensor

SUFFIX = ".db3"
"""The one that librealsense 2.58 and later write."""


class RecordedDevice(Device):
    """A device whose frames go into a file on their way. It ends when it is closed: only then the file is whole."""

    def __init__(self, lib: Library, device: Device, path: str, compressed: bool) -> None:
        handle = lib.call("rs2_create_record_device_ex", device.handle, os.fsencode(path), int(compressed))
        super().__init__(lib, handle)
        self.recorded = device

    def sensors(self) -> list[Sensor]:
        """Its sensors; those of a simulated camera are fed while they stream."""
        behind = self.recorded.sensors()
        with self.lib.held("sensor_list", self.lib.call("rs2_query_sensors", self.handle)) as handles:
            made = [self.lib.call("rs2_create_sensor", handles, i) for i in range(len(behind))]
        return [_RecordedSensor(self.lib, handle, sensor) for handle, sensor in zip(made, behind, strict=True)]

    def close(self) -> None:
        """Finish the file, then give the device back. Harmless when repeated."""
        super().close()
        self.recorded.close()


class _RecordedSensor(FedSensor):
    """The recorder's sensor before another, whose feeders it takes over where it is a simulated one."""

    def __init__(self, lib: Library, handle: int, behind: Sensor) -> None:
        super().__init__(lib, handle)
        self._behind = behind
        if isinstance(behind, FedSensor):
            self.feeders, behind.feeders = behind.feeders, []

    def close(self) -> None:
        """Stop, and give both handles back. Harmless when repeated."""
        try:
            super().close()
        finally:
            self._behind.close()


class Recorder:
    """Provides the devices of another provider, recorded; see `dzedge.hardware.realsense.DeviceProvider`.

    path: of the file, NAME.db3, which must not be there; compressed: each picture a PNG (a third smaller, four times
    the work). Raises UsageError.
    """

    def __init__(self, provider: DeviceProvider, path: Path, *, compressed: bool = True) -> None:
        if path.suffix != SUFFIX:
            raise UsageError(f"recording {path}: must end in {SUFFIX}")
        if path.exists():
            raise UsageError(f"recording {path}: is there already; choose another name, or remove it")
        if not path.absolute().parent.is_dir():
            raise UsageError(f"recording {path}: no folder {path.absolute().parent}; make it")
        self._provider, self._path, self._compressed = provider, path, compressed
        self._begun = False

    def attached(self) -> list[CameraInfo]:
        return self._provider.attached()

    def find(self, serial: str) -> Device:
        """The camera with `serial`, from now on recorded. Raises CameraError, also a second time: the file would be
        begun anew over what it holds."""
        if self._begun:
            raise CameraError(f"recording {self._path}: broken off, and kept; record on into another file")
        device = self._provider.find(serial)
        try:
            recorded = RecordedDevice(device.lib, device, str(self._path.absolute()), self._compressed)
        except CameraError:
            device.close()
            raise
        self._begun = True
        return recorded

    def reset(self, device: Device) -> None:
        """Only ends the recording: `find` would refuse to go on."""
        device.close()

    def close(self) -> None:
        self._provider.close()

