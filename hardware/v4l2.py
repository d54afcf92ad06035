"""The webcam driver: any Video4Linux2 camera as a `dzedge.hardware.camera.Camera`, for who has no RealSense.

Colour from YUYV, Motion-JPEG or grey pictures, buffers shared with the kernel. The GIL is held while a picture is
converted (Motion-JPEG of 640x480 about 3 ms): a stand-in, not the equal of the RealSense pump.
"""

import atexit
import threading
from collections.abc import Callable
from dataclasses import asdict

from dzedge.clock import MonotonicClock, wall_offset_ns
from dzedge.errors import CameraError
from dzedge.hardware import videodev as v4l2
from dzedge.hardware.camera import CameraConfig, CameraHealth, CameraInfo, CameraState, Patience, RecoveryLadder, Rung
from dzedge.hardware.librealsense import Mode
from dzedge.hardware.v4l2_stream import StampMap, V4l2Stream
from dzedge.hardware.video_nodes import VideoNode, VideoNodes, ask, explain, offered_modes
from dzedge.kernels.mailbox import FrameRing
from dzedge.types import Frame

WARMUP = 10
"""Pictures until a webcam's exposure has settled, more or less."""

_open: "set[V4l2]" = set()


@atexit.register
def _close_all() -> None:
    """Threads are gone before the interpreter is."""
    for camera in list(_open):
        camera.close()


class V4l2:
    """A webcam; see `dzedge.hardware.camera.Camera`.

    config: serial, width, height, fps, format ("yuyv", "mjpeg", "grey"); path: of the device file, None: found by the
    serial; nodes: who finds it; warmup: pictures before it counts as live.
    """

    def __init__(
        self,
        config: CameraConfig,
        path: str | None = None,
        *,
        nodes: VideoNodes | None = None,
        clock: MonotonicClock | None = None,
        wall_offset: Callable[[], int] = wall_offset_ns,
        warmup: int = WARMUP,
    ) -> None:
        if config.format not in v4l2.FOURCC:
            raise CameraError(
                f"camera {path or config.serial}: no RGB from format {config.format}; choose "
                f"{', '.join(v4l2.FOURCC)}"
            )
        self._nodes, self._clock = nodes or VideoNodes(), clock or MonotonicClock()
        self._config, self._path, self._wall_offset = config, path, wall_offset
        self._mode = Mode(config.width, config.height, config.fps, config.format)
        self._patience = Patience(config.fps, warmup)
        self._info = CameraInfo("", config.serial, "", "", path or "")
        self._fd = -1
        self._pixels = v4l2.PixelFormat()
        self._stream: V4l2Stream | None = None
        self._thread: threading.Thread | None = None
        self._started_ns = 0
        self._ring: FrameRing | None = None
        self._wanted = False
        self._ladder = RecoveryLadder()
        self._restarts = self._resets = 0
        self.trouble = ""

    @property
    def info(self) -> CameraInfo:
        """Who the camera is, as far as known."""
        return self._info

    def open(self) -> CameraInfo:
        """Find the device and set its mode.

        Raises CameraError: absent, no permission, in use, no camera, or a mode that it lacks, with those it offers.
        """
        self._leave()
        node = self._nodes.find(self._config.serial, self._path)
        try:
            self._fd = self._nodes.kernel.open(node.path)
        except OSError as error:
            raise explain(error, node.path) from error
        _open.add(self)
        try:
            self._set_format(node)
            self._set_rate(node)
            self._keep_rate()
        except CameraError:
            self._leave()
            raise
        self._info = node.info
        return self._info

    def _ask(self, node: VideoNode, request: int, argument: object) -> None:
        ask(self._nodes.kernel, self._fd, node.path, request, argument)

    def _set_format(self, node: VideoNode) -> None:
        """A driver changes what it lacks to something near it instead of refusing."""
        mode = self._mode
        wanted = v4l2.Format(type=v4l2.CAPTURE)
        pixels = wanted.pix
        pixels.width, pixels.height, pixels.field = mode.width, mode.height, v4l2.FIELD_NONE
        pixels.pixelformat = v4l2.FOURCC[mode.format]
        self._ask(node, v4l2.S_FMT, wanted)
        got = wanted.pix
        if (got.width, got.height, got.pixelformat) != (mode.width, mode.height, v4l2.FOURCC[mode.format]):
            name = v4l2.FORMATS.get(got.pixelformat, f"format {got.pixelformat:#x}")
            raise self._lacks(node, f"it would give {got.width}x{got.height} {name}")
        self._pixels = got

    def _set_rate(self, node: VideoNode) -> None:
        """Ask for the rate and hear what it will be; a camera with one rate only says nothing."""
        asked = v4l2.StreamParameters(type=v4l2.CAPTURE)
        asked.capture.numerator, asked.capture.denominator = 1, self._mode.fps
        try:
            self._nodes.kernel.ioctl(self._fd, v4l2.S_PARM, asked)
        except OSError as error:
            if error.errno in v4l2.GONE:
                raise explain(error, node.path) from error
            return
        got = asked.capture
        if got.capability & v4l2.CAN_TIME_PER_FRAME and got.numerator:
            rate = got.denominator / got.numerator
            if abs(rate - self._mode.fps) > 0.02 * self._mode.fps:
                raise self._lacks(node, f"it would give {rate:.3g} fps")

    def _lacks(self, node: VideoNode, instead: str) -> CameraError:
        modes = offered_modes(self._nodes.kernel, self._fd, node.path)
        names = ", ".join(str(mode) for mode in modes) or "none that can be made RGB"
        return CameraError(f"{node.path}: no mode {self._mode}, {instead}; offered: {names}; choose one")

    def _keep_rate(self) -> None:
        """No longer exposures in the dark than the rate allows, where the camera lets itself be told."""
        try:
            self._nodes.kernel.ioctl(self._fd, v4l2.S_CTRL, v4l2.Control(v4l2.EXPOSURE_PRIORITY, 0))
        except OSError:
            return

    def start(self, ring: FrameRing, now_ns: int) -> None:
        """Make frames arrive in `ring`, of which this is the only writer. Opens the camera where needed.

        Raises CameraError; ValueError when the ring has another shape than the mode.
        """
        if (ring.height, ring.width) != (self._mode.height, self._mode.width):
            raise ValueError(f"frame ring of {ring.width}x{ring.height}, camera mode {self._mode}")
        self._halt()
        self._ring, self._wanted = ring, True
        if self._fd < 0:
            self.open()
        stamps = StampMap(self._wall_offset)
        try:
            self._stream = V4l2Stream(self._nodes.kernel, self._fd, self._pixels, ring, self._clock, stamps)
        except OSError as error:
            raise explain(error, self._info.port) from error
        self._started_ns = now_ns
        self._thread = threading.Thread(target=self._stream.run, name="webcam", daemon=True)
        self._thread.start()

    def latest(self, after: int = 0) -> tuple[int, Frame] | None:
        """(count, frame): the newest frame when more than `after` have been published to the ring, else None."""
        record = self._ring.newest(after) if self._ring is not None else None
        if record is None:
            return None
        count, image, number, capture_ns, receive_ns = record
        return count, Frame(image, number, capture_ns, receive_ns)

    def health(self, now_ns: int) -> CameraHealth:
        """State and counts at `now_ns`; touches no device. domain: 3, the kernel's own clock, beside the others."""
        rungs = {"restarts": self._restarts, "resets": self._resets}
        stream = self._stream
        if stream is None:
            return CameraHealth(CameraState.ABSENT, -1, 0, 0, 0, stream="color", **rungs)
        counts, stamps = asdict(stream.counts), stream.stamps
        age_ns = now_ns - counts["capture_ns"] if counts["frames"] else -1
        clocks = {"clock_resets": stamps.resets, "clock_steps": stamps.steps, "implausible": stamps.implausible}
        state = self._judge(stream, now_ns)
        return CameraHealth(state, age_ns, domain=max(stamps.domain, 0), stream="color", **counts, **clocks, **rungs)

    def _judge(self, stream: V4l2Stream, now_ns: int) -> CameraState:
        counts = stream.counts
        if stream.gone:
            return CameraState.ABSENT
        return self._patience.judge(self._started_ns, counts.frames, counts.receive_ns, counts.capture_ns, now_ns)

    def tend(self, now_ns: int) -> CameraHealth:
        """`health`, and one rung of the recovery ladder where the stream is lost; to be called every quarter of a frame
        period.

        A webcam knows no reset: that rung closes it and looks for it again. Raises CameraError at the ladder's end;
        the process should then exit and be started anew.
        """
        health = self.health(now_ns)
        rung = self._ladder.decide(health.state, now_ns) if self._wanted else Rung.WAIT
        if rung is Rung.WAIT:
            return health
        if self._stream is not None and self._stream.trouble:
            self.trouble = self._stream.trouble
        if rung is Rung.GIVE_UP:
            raise CameraError(
                f"camera {self._info.port or self._config.serial}: lost; {self._restarts} restarts and {self._resets} "
                f"new openings did not help ({self.trouble or 'no pictures'}); replug it"
            )
        try:
            self._climb(rung, now_ns)
        except CameraError as error:
            self.trouble = str(error)
        return self.health(now_ns)

    def _climb(self, rung: Rung, now_ns: int) -> None:
        self._leave()
        if rung is Rung.RESET:
            self._resets += 1
            return
        self._restarts += rung is Rung.RESTART
        if self._ring is not None:
            self.start(self._ring, now_ns)

    def stop(self) -> None:
        """Stop the stream; harmless when repeated."""
        self._wanted = False
        self._halt()

    def _halt(self) -> None:
        stream, thread = self._stream, self._thread
        self._stream = self._thread = None
        if stream is not None and thread is not None:
            stream.stop()
            thread.join()
            stream.close()

    def close(self) -> None:
        """Stop, and give the device back; harmless when repeated."""
        self._wanted = False
        self._leave()

    def _leave(self) -> None:
        self._halt()
        fd, self._fd = self._fd, -1
        if fd >= 0:
            self._nodes.kernel.close(fd)
        _open.discard(self)
