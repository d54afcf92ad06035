"""The RealSense driver: streams of one camera on the sensor API, pumped into frame rings without the GIL.

Not the pipeline API: its start holds the GIL for 15 s when the camera is gone, and its syncer repeats the
last frame of a stalled stream as if it were new. Every call that can block is made by the thread that calls
`open`, `start`, `tend`, `stop` and `close`; a call that hangs is the business of a `dzedge.hardware.deadline`.
"""

import atexit
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from dzedge.errors import CameraError
from dzedge.hardware.camera import (
    CameraConfig,
    CameraHealth,
    CameraInfo,
    RecoveryLadder,
    Rung,
    worst,
)
from dzedge.hardware.librealsense import Device, Mode, Sensor
from dzedge.hardware.realsense_devices import DeviceProvider, LiveDevices, identify
from dzedge.hardware.realsense_streams import Module, Stream
from dzedge.kernels.mailbox import FrameRing
from dzedge.kernels.pump import FORMATS
from dzedge.types import Frame

__all__ = ["DeviceProvider", "LiveDevices", "RealSense", "StreamConfig", "identify"]

OPTIONS = {"auto_exposure_priority": 0.0, "global_time_enabled": 0.0}
"""Set where the camera has them: a constant frame rate in the dark, and stamps that do not follow the wall
clock."""
WARMUP = 5
"""Frames until auto-exposure has settled on a D400."""
BESIDE = {"depth": "z16", "infrared": "y8", "infrared2": "y8"}
"""Streams beside colour and their formats: depth, left and right infrared."""


@dataclass(frozen=True, slots=True)
class StreamConfig:
    """A stream beside colour. kind: "depth", "infrared" or "infrared2"; width, height: [pixels]; fps: [Hz]."""

    kind: str
    width: int
    height: int
    fps: int


_open: "set[RealSense]" = set()


@atexit.register
def _close_all() -> None:
    """A pump still waiting inside librealsense at exit aborts the interpreter."""
    for camera in list(_open):
        camera.close()


class RealSense:
    """A RealSense's colour stream, and others beside it; see `dzedge.hardware.camera.Camera`.

    provider: where the device comes from; config: serial, width, height, fps, format ("rgb8", "bgr8",
    "yuyv"); beside: further streams; options: camera options by name, refused where the camera lacks them; warmup:
    frames before it counts as live; allow_usb2: accept a USB 2 link.
    """

    def __init__(
        self,
        provider: DeviceProvider,
        config: CameraConfig,
        *,
        beside: Sequence[StreamConfig] = (),
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
        self._allow_usb2 = allow_usb2
        modes = [("color", Mode(config.width, config.height, config.fps, config.format))]
        for extra in beside:
            if extra.kind not in BESIDE or extra.kind in [kind for kind, _ in modes]:
                raise CameraError(
                    f"camera {config.serial}: stream {extra.kind}: choose each of {', '.join(BESIDE)} once"
                )
            modes.append((extra.kind, Mode(extra.width, extra.height, extra.fps, BESIDE[extra.kind])))
        self._streams = {kind: Stream(kind, mode, warmup) for kind, mode in modes}
        self._device: Device | None = None
        self._modules: list[Module] = []
        self._wanted = False
        self._ladder = RecoveryLadder()
        self._restarts = self._resets = 0
        self._info = CameraInfo("", config.serial, "", "", "")
        self.trouble = ""

    @property
    def info(self) -> CameraInfo:
        """Who the camera is, as far as known."""
        return self._info

    def lens(self, kind: str) -> tuple[float, float, float, float] | None:
        """fx, fy, ppx, ppy [pixels] of a stream, None before it is opened."""
        lens = self._streams[kind].lens
        return None if lens is None else (lens.fx, lens.fy, lens.ppx, lens.ppy)

    def depth_units(self) -> float:
        """Metres of one count of depth. Raises CameraError when no open stream has depth."""
        for module in self._modules:
            if module.sensor.supports("depth_units"):
                return module.sensor.option("depth_units")
        raise CameraError(f"camera {self._config.serial}: no depth stream is open; ask for one beside colour")

    def open(self) -> CameraInfo:
        """Find the device, check its link, reserve the modes, set the options.

        Raises CameraError: not attached, on USB 2, mode not offered, option refused, or in use by another
        program.
        """
        self._leave()
        _open.add(self)
        self._device = self._provider.find(self._config.serial)
        try:
            info = identify(self._device)
            if info.stepped_down and not self._allow_usb2:
                raise CameraError(
                    f"camera {info.serial}: on a USB {info.usb} link, needed 3; turn the plug, change cable "
                    "or port, or allow USB 2 for it"
                )
            self._choose(self._device.sensors(), info)
            self._set_options()
            for module in self._modules:
                module.reserve()
        except CameraError:
            self._leave()
            raise
        self._info = CameraInfo(info.name, info.serial, info.firmware, info.usb, info.port, self.lens("color"))
        return self._info

    def _choose(self, sensors: list[Sensor], info: CameraInfo) -> None:
        """The sensor that offers each stream's mode; by what it offers, for a D405 has no sensor of its own for
        colour."""
        left = dict(self._streams)
        offered: dict[str, list[Mode]] = {kind: [] for kind in left}
        for sensor in sensors:
            taken = []
            for kind, stream in list(left.items()):
                modes = sensor.modes(stream.number[0], None if kind == "color" else stream.number[1])
                offered[kind] += modes
                if stream.mode in modes:
                    taken.append(left.pop(kind))
            if taken:
                self._modules.append(Module(sensor, taken))
            else:
                sensor.close()
        for kind, stream in left.items():
            names = ", ".join(map(str, offered[kind])) or "none"
            word = "colour" if kind == "color" else kind
            link = f" on this USB {info.usb} link" if info.stepped_down else ""
            raise CameraError(
                f"camera {self._config.serial}: no {word} mode {stream.mode}{link}; offered: {names}; choose one"
            )

    def _set_options(self) -> None:
        """Ours where a sensor has them; those asked for on the sensor that carries colour."""
        for module in self._modules:
            for option, value in OPTIONS.items():
                if module.sensor.supports(option):
                    module.sensor.set_option(option, value)
            if self._streams["color"] in module.streams:
                for option, value in self._options.items():
                    module.sensor.set_option(option, value)

    def start(self, ring: FrameRing, now_ns: int, beside: Mapping[str, FrameRing] | None = None) -> None:
        """Make frames arrive in `ring`, and those of the other streams in `beside`, by kind; this is the only writer
        of each. Opens the camera where needed. Raises CameraError; ValueError when a ring is missing, or has another
        shape than the mode.
        """
        rings = {"color": ring, **(beside or {})}
        if set(rings) != set(self._streams):
            raise ValueError(f"frame rings for {sorted(rings)}, streams {sorted(self._streams)}")
        for kind, stream in self._streams.items():
            if (rings[kind].height, rings[kind].width) != (stream.mode.height, stream.mode.width):
                raise ValueError(
                    f"frame ring of {rings[kind].width}x{rings[kind].height}, camera mode {stream.mode}"
                )
        self._halt()
        for kind, stream in self._streams.items():
            stream.ring = rings[kind]
        self._wanted = True
        self._start(now_ns)

    def _start(self, now_ns: int) -> None:
        if not self._modules:
            self.open()
        try:
            for module in self._modules:
                module.start(now_ns)
        except CameraError:
            self._leave()
            raise

    def latest(self, after: int = 0, kind: str = "color") -> tuple[int, Frame] | None:
        """(count, frame): the newest frame when more than `after` have been published to the ring, else
        None. A depth or infrared frame's image has the shape that its FrameRing says."""
        ring = self._streams[kind].ring
        record = ring.frame() if ring is not None and ring.count > after else None
        if record is None:
            return None
        count, image, number, capture_ns, receive_ns, exposure_us, gain, _ = record
        return count, Frame(image, number, capture_ns, receive_ns, exposure_us, gain)

    def health(self, now_ns: int, kind: str = "color") -> CameraHealth:
        """State and counts of a stream at `now_ns`; touches no device."""
        return self._streams[kind].health(now_ns, self._restarts, self._resets)

    def worst(self, now_ns: int) -> CameraHealth:
        """The health of the stream that fares worst."""
        return worst([self.health(now_ns, kind) for kind in self._streams])

    def trace(self, kind: str = "color") -> list[tuple[int, int, int, int]]:
        """(number, capture_ns, receive_ns, commit_ns) of this session's last 1024 frames, oldest first."""
        pump = self._streams[kind].pump
        return pump.trace() if pump is not None else []

    def tend(self, now_ns: int) -> CameraHealth:
        """`worst`, and one rung of the recovery ladder where a stream is lost; to be called every
        `Patience.look_ns`.

        May block for as long as librealsense takes to stop and start a stream. Raises CameraError at the
        ladder's end; the process should then exit and be started anew.
        """
        health = self.worst(now_ns)
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
        return self.worst(now_ns)

    def _climb(self, rung: Rung, now_ns: int) -> None:
        if rung is Rung.RESET:
            self._resets += 1
            device, self._device = self._device, None
            try:
                self._leave()
            finally:  # a camera whose streams cannot be stopped needs the reset most
                self._provider.reset(device if device is not None else self._provider.find(self._config.serial))
            return
        if rung is Rung.RESTART:
            self._restarts += 1
            self._leave()
        self._start(now_ns)

    def stop(self) -> None:
        """Stop the streams and the pumps; harmless when repeated."""
        self._wanted = False
        self._halt()

    def _halt(self) -> None:
        with ExitStack() as stack:  # every one, whichever fails: its pump waits inside librealsense
            for module in self._modules:
                stack.callback(module.stop)

    def close(self) -> None:
        """Stop, and give the device back; harmless when repeated. The provider stays open."""
        self._wanted = False
        self._leave()

    def _leave(self) -> None:
        modules, device = self._modules, self._device
        self._modules, self._device = [], None
        with ExitStack() as stack:  # every one, whichever fails: a pump left behind aborts the interpreter at exit
            stack.callback(_open.discard, self)
            if device is not None:
                stack.callback(device.close)
            for module in modules:
                stack.callback(module.sensor.close)
                stack.callback(module.stop)
