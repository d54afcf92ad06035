"""What a camera is to the rest of dzedge: one stream of numbered frames, its age always visible."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import Protocol

from dzedge.clock import NS
from dzedge.kernels.mailbox import FrameRing
from dzedge.types import Frame


class CameraState(IntEnum):
    """ABSENT: not open, or gone; STARTING: no frame yet; WARMUP: exposure settles; LIVE: frames as they
    should be; LATE: the newest frame is older than it should be; LOST: so old that the stream counts as
    dead."""

    ABSENT = 0
    STARTING = 1
    WARMUP = 2
    LIVE = 3
    LATE = 4
    LOST = 5


@dataclass(frozen=True, slots=True)
class CameraInfo:
    """Who the camera is. usb: link speed as it reports it, "" where it is not on USB; intrinsics: fx, fy,
    ppx, ppy [pixels], None before it is opened."""

    name: str
    serial: str
    firmware: str
    usb: str
    port: str
    intrinsics: tuple[float, float, float, float] | None = None


@dataclass(frozen=True, slots=True)
class CameraHealth:
    """A camera at one moment. age_ns: since the capture of the newest frame, -1 before the first.

    frames: received in this session of the stream; dropped: numbers left out; repeated: the same number
    twice, not passed on; restarted: numbers or clock began anew; rejected: of a wrong shape; failed: calls
    that librealsense refused; implausible: stamped after their arrival or over 1 s before; clock_resets,
    clock_steps, domain_switches: see ClockMap; domain: 0 hardware, 1 system, 2 global; transport_ns: kernel
    to pump, 0 unknown; exposure_us, gain: -1 unknown; restarts, resets: rungs of the recovery ladder that
    were climbed.
    """

    state: CameraState
    age_ns: int
    number: int
    capture_ns: int
    receive_ns: int
    frames: int = 0
    dropped: int = 0
    repeated: int = 0
    restarted: int = 0
    rejected: int = 0
    failed: int = 0
    implausible: int = 0
    clock_resets: int = 0
    clock_steps: int = 0
    domain_switches: int = 0
    domain: int = 0
    transport_ns: int = 0
    exposure_us: int = -1
    gain: int = -1
    restarts: int = 0
    resets: int = 0


class CameraConfig(Protocol):
    """What a driver needs to know; a robot file's camera table is one."""

    @property
    def serial(self) -> str: ...
    @property
    def width(self) -> int: ...
    @property
    def height(self) -> int: ...
    @property
    def fps(self) -> int: ...
    @property
    def format(self) -> str: ...


class Camera(Protocol):
    """One colour stream. Newest frame only: a slow reader skips frames and never delays them.

    `open` finds the device, `start` makes frames arrive in the ring, `stop` and `close` undo both and may be
    repeated. Errors are CameraError.
    """

    @property
    def info(self) -> CameraInfo: ...
    def open(self) -> CameraInfo: ...
    def start(self, ring: FrameRing, now_ns: int) -> None: ...
    def latest(self, after: int = 0) -> tuple[int, Frame] | None: ...
    def health(self, now_ns: int) -> CameraHealth: ...
    def tend(self, now_ns: int) -> CameraHealth: ...
    def stop(self) -> None: ...
    def close(self) -> None: ...


def describe(attached: Sequence[CameraInfo]) -> str:
    """The cameras found, for an error message."""
    names = [f"{info.name} {info.serial}" + (f" (USB {info.usb})" if info.usb else "") for info in attached]
    return ", ".join(names) or "none"


class Rung(Enum):
    """What to do about a stream: nothing, restart it, reset the camera, see if it is back, or give up."""

    WAIT = 0
    RESTART = 1
    RESET = 2
    REOPEN = 3
    GIVE_UP = 4


class RecoveryLadder:
    """Two restarts of the stream, one hardware reset, then the end; ten live seconds lead back to the ground.

    A D405 that delivers nothing after its start needs the first, wedged firmware the second; LeRobot and
    realsense-ros take the same steps. A camera that is absent after the reset is looked for twice a second.
    """

    STEPS = (Rung.RESTART, Rung.RESTART, Rung.RESET, Rung.GIVE_UP)
    CALM_NS = 10 * NS
    RETURN_NS = 15 * NS
    LOOK_NS = NS // 2

    def __init__(self) -> None:
        self._step = 0
        self._live_since_ns: int | None = None
        self._return_by_ns: int | None = None
        self._look_ns = 0

    def decide(self, state: CameraState, now_ns: int) -> Rung:
        """The rung to take at `now_ns`."""
        if state not in (CameraState.LOST, CameraState.ABSENT):
            self._return_by_ns = None
            self._calm_down(state, now_ns)
            return Rung.WAIT
        self._live_since_ns = None
        if self._return_by_ns is not None:
            return self._await_return(now_ns)
        rung = self.STEPS[self._step]
        self._step = min(self._step + 1, len(self.STEPS) - 1)
        if rung is Rung.RESET:
            self._return_by_ns = now_ns + self.RETURN_NS
            self._look_ns = now_ns + self.LOOK_NS
        return rung

    def _calm_down(self, state: CameraState, now_ns: int) -> None:
        if state is not CameraState.LIVE:
            self._live_since_ns = None
        elif self._live_since_ns is None:
            self._live_since_ns = now_ns
        elif now_ns - self._live_since_ns >= self.CALM_NS:
            self._step = 0

    def _await_return(self, now_ns: int) -> Rung:
        if self._return_by_ns is not None and now_ns >= self._return_by_ns:
            return Rung.GIVE_UP
        if now_ns < self._look_ns:
            return Rung.WAIT
        self._look_ns = now_ns + self.LOOK_NS
        return Rung.REOPEN
