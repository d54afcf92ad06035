"""The RealSense driver: one colour stream on the sensor API, pumped into a frame ring without the GIL.

Not the pipeline API: its start holds the GIL for 15 s when the camera is gone, and its syncer repeats the
last frame of a stalled stream as if it were new. Every call that can block is made by the thread that calls
`open`, `start`, `tend`, `stop` and `close`; a call that hangs is the business of the supervisor's watchdog.
"""

import atexit
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from dzedge.clock import NS
from dzedge.errors import CameraError
from dzedge.hardware.camera import (
    CameraConfig,
    CameraHealth,
    CameraInfo,
    CameraState,
    RecoveryLadder,
    Rung,
    describe,
)
from dzedge.hardware.librealsense import Device, Library, Mode, Sensor, library
from dzedge.kernels.mailbox import FrameRing
from dzedge.kernels.pump import FORMATS, FramePump
from dzedge.types import Frame

QUEUE = 4
"""Frames librealsense may hold for us; it drops the oldest. Its pool has 16: never hold many."""
OPTIONS = {"auto_exposure_priority": 0.0, "global_time_enabled": 0.0}
"""Set where the camera has them: a constant frame rate in the dark, and stamps that do not follow the wall
clock."""
START_NS = 3 * NS
"""How long a started stream may take to its first frame."""
LOST_NS = NS
LATENCY_NS = 250_000_000
"""What capture to arrival may take before frames count as late; colour cameras were measured at 66 to 140
ms."""
WARMUP = 5
"""Frames until auto-exposure has settled on a D400."""


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


@dataclass(slots=True)
class _Session:
    """What exists only while the stream runs."""

    queue: int
    pump: FramePump
    thread: threading.Thread
    started_ns: int


_open: "set[RealSense]" = set()


@atexit.register
def _close_all() -> None:
    """A pump still waiting inside librealsense at exit aborts the interpreter."""
    for camera in list(_open):
        camera.close()


class RealSense:
    """A RealSense colour stream; see `dzedge.hardware.camera.Camera`.

    provider: where the device comes from; config: serial, width, height, fps, format ("rgb8", "bgr8",
    "yuyv"); options: camera options by name, refused where the camera lacks them; warmup: frames before it
    counts as live; allow_usb2: accept a USB 2 link.
    """

    def __init__(
        self,
        provider: DeviceProvider,
        config: CameraConfig,
        *,
        options: Mapping[str, float] | None = None,
        warmup: int = WARMUP,
        allow_usb2: bool = False,
    ) -> None:
        if config.format not in FORMATS:
            raise CameraError(
                f"camera {config.serial}: no RGB from format {config.format}; choose {', '.join(FORMATS)}"
            )
        self._provider, self._config = provider, config
        self._options = dict(options or {})
        self._warmup, self._allow_usb2 = warmup, allow_usb2
        self._late_ns = 3 * NS // config.fps
        self._lost_ns = max(LOST_NS, 2 * self._late_ns)
        self._mode = Mode(config.width, config.height, config.fps, config.format)
        self._device: Device | None = None
        self._sensor: Sensor | None = None
        self._session: _Session | None = None
        self._ring: FrameRing | None = None
        self._wanted = False
        self._ladder = RecoveryLadder()
        self._restarts = self._resets = 0
        self._info = CameraInfo("", config.serial, "", "", "")
        self.trouble = ""

    @property
    def info(self) -> CameraInfo:
        """Who the camera is, as far as known."""
        return self._info

    def open(self) -> CameraInfo:
        """Find the device, check its link, reserve the mode, set the options.

        Raises CameraError: not attached, on USB 2, mode not offered, option refused, or in use by another
        program.
        """
        self._leave()
        _open.add(self)
        self._device = self._provider.find(self._config.serial)
        try:
            info = identify(self._device)
            if info.usb.startswith("2") and not self._allow_usb2:
                raise CameraError(
                    f"camera {info.serial}: on a USB {info.usb} link, needed 3; turn the plug, change cable "
                    "or port, or allow USB 2 for it"
                )
            self._sensor = self._choose(self._device.sensors())
            for option, value in OPTIONS.items():
                if self._sensor.supports(option):
                    self._sensor.set_option(option, value)
            for option, value in self._options.items():
                self._sensor.set_option(option, value)
            lens = self._sensor.open(self._mode)
        except CameraError:
            self._leave()
            raise
        self._info = CameraInfo(
            info.name, info.serial, info.firmware, info.usb, info.port, (lens.fx, lens.fy, lens.ppx, lens.ppy)
        )
        return self._info

    def _choose(self, sensors: list[Sensor]) -> Sensor:
        """The sensor that offers the mode; by what it offers, for a D405 has no sensor of its own for
        colour."""
        chosen: Sensor | None = None
        offered: list[Mode] = []
        for sensor in sensors:
            modes = sensor.modes()
            offered += modes
            if chosen is None and self._mode in modes:
                chosen = sensor
            else:
                sensor.close()
        if chosen is None:
            names = ", ".join(str(mode) for mode in offered) or "none"
            raise CameraError(
                f"camera {self._config.serial}: no colour mode {self._mode}; offered: {names}; choose one"
            )
        return chosen

    def start(self, ring: FrameRing, now_ns: int) -> None:
        """Make frames arrive in `ring`, of which this is the only writer. Opens the camera where needed.

        Every start has a queue of its own: librealsense leaves the last frames of a stopped stream in the
        old one. Raises CameraError; ValueError when the ring has another shape than the mode.
        """
        if (ring.height, ring.width) != (self._mode.height, self._mode.width):
            raise ValueError(f"frame ring of {ring.width}x{ring.height}, camera mode {self._mode}")
        self._halt()
        self._ring, self._wanted = ring, True
        if self._sensor is None:
            self.open()
        assert self._sensor is not None
        lib = self._sensor.lib
        queue = lib.call("rs2_create_frame_queue", QUEUE)
        pump = FramePump(lib.addresses, queue, ring, self._mode.format)
        try:
            self._sensor.start(queue)
        except CameraError:
            lib.delete("frame_queue", queue)
            raise
        thread = threading.Thread(target=pump.run, name="frame-pump", daemon=True)
        self._session = _Session(queue, pump, thread, now_ns)
        thread.start()

    def latest(self, after: int = 0) -> tuple[int, Frame] | None:
        """(count, frame): the newest frame when more than `after` have been published to the ring, else
        None."""
        record = self._ring.newest(after) if self._ring is not None else None
        if record is None:
            return None
        count, image, number, capture_ns, receive_ns = record
        return count, Frame(image, number, capture_ns, receive_ns)

    def health(self, now_ns: int) -> CameraHealth:
        """State and counts at `now_ns`; touches no device."""
        session = self._session
        if session is None:
            return CameraHealth(CameraState.ABSENT, -1, 0, 0, 0, restarts=self._restarts, resets=self._resets)
        counts = session.pump.snapshot()
        age_ns = now_ns - counts["capture_ns"] if counts["frames"] else -1
        return CameraHealth(
            self._judge(session, counts, now_ns),
            age_ns,
            restarts=self._restarts,
            resets=self._resets,
            **counts,
        )

    def trace(self) -> list[tuple[int, int, int, int]]:
        """(number, capture_ns, receive_ns, commit_ns) of this session's last 1024 frames, oldest first."""
        return self._session.pump.trace() if self._session is not None else []

    def _judge(self, session: _Session, counts: Mapping[str, int], now_ns: int) -> CameraState:
        if not counts["frames"]:
            return CameraState.STARTING if now_ns - session.started_ns < START_NS else CameraState.LOST
        silence_ns = now_ns - counts["receive_ns"]
        if silence_ns >= self._lost_ns:
            return CameraState.LOST
        if silence_ns >= self._late_ns or now_ns - counts["capture_ns"] >= self._late_ns + LATENCY_NS:
            return CameraState.LATE
        return CameraState.WARMUP if counts["frames"] < self._warmup else CameraState.LIVE

    def tend(self, now_ns: int) -> CameraHealth:
        """`health`, and one rung of the recovery ladder where the stream is lost; to be called every 100 ms
        or so.

        May block for as long as librealsense takes to stop and start a stream. Raises CameraError at the
        ladder's end; the process should then exit and be started anew.
        """
        health = self.health(now_ns)
        rung = self._ladder.decide(health.state, now_ns) if self._wanted else Rung.WAIT
        if rung is Rung.WAIT:
            return health
        if rung is Rung.GIVE_UP:
            raise CameraError(
                f"camera {self._config.serial}: lost; {self._restarts} restarts and {self._resets} resets "
                f"did not help ({self.trouble or 'no frames'}); replug it"
            )
        try:
            self._climb(rung, now_ns)
        except CameraError as error:
            self.trouble = str(error)
        return self.health(now_ns)

    def _climb(self, rung: Rung, now_ns: int) -> None:
        if rung is Rung.RESET:
            self._resets += 1
            device, self._device = self._device, None
            self._leave()
            self._provider.reset(device if device is not None else self._provider.find(self._config.serial))
            return
        if rung is Rung.RESTART:
            self._restarts += 1
            self._leave()
        if self._ring is not None:
            self.start(self._ring, now_ns)

    def stop(self) -> None:
        """Stop the stream and the pump; harmless when repeated."""
        self._wanted = False
        self._halt()

    def _halt(self) -> None:
        session, self._session = self._session, None
        if session is None or self._sensor is None:
            return
        try:
            self._sensor.stop()
        finally:
            session.pump.stop()
            session.thread.join()
            self._sensor.lib.delete("frame_queue", session.queue)

    def close(self) -> None:
        """Stop, and give the device back; harmless when repeated. The provider stays open."""
        self._wanted = False
        self._leave()

    def _leave(self) -> None:
        sensor, device = self._sensor, self._device
        try:
            self._halt()
            if sensor is not None:
                sensor.close()
        finally:
            self._sensor = self._device = None
            if device is not None:
                device.close()
            _open.discard(self)
