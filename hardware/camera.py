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

    @property
    def stepped_down(self) -> bool:
        """Whether a camera made for USB 3 runs on a USB 2 link: fewer modes, lower rates."""
        return self.usb.startswith(("1", "2"))


@dataclass(frozen=True, slots=True)
class CameraHealth:
    """A camera at one moment. age_ns: since the capture of the newest frame, -1 before the first.

    frames: received in this session of the stream; dropped: numbers left out; repeated: the same number
    twice, not passed on; restarted: numbers or clock began anew; rejected: of a wrong shape; failed: calls
    that librealsense refused; implausible: stamped after their arrival or over 1 s before; clock_resets,
    clock_steps, domain_switches: see ClockMap; domain: 0 hardware, 1 system, 2 global; transport_ns: kernel
    to pump, 0 unknown; exposure_us, gain: -1 unknown; restarts, resets: rungs of the recovery ladder that
    were climbed; stream: which of the camera's.
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
    stream: str = "color"


def worst(healths: Sequence[CameraHealth]) -> CameraHealth:
    """Of several streams, the one that fares worst; none is worse than absent."""
    return max(healths, key=lambda health: (health.state is CameraState.ABSENT, health.state))


START_NS = 3 * NS
"""How long a started stream may take to its first frame."""
LOST_NS = NS
LATENCY_NS = 250_000_000
"""What capture to arrival may take before frames count as late; colour cameras were measured at 66 to 140
ms."""


@dataclass(frozen=True, slots=True)
class Patience:
    """When a stream counts as late, and when as lost. fps: of its mode; warmup: frames before it counts as live.

    Late is 1.75 frame periods without a frame: looked at eight times a period, a stall is told within two, and a frame
    that comes three quarters of a period late still passes.
    """

    fps: int
    warmup: int = 0

    @property
    def late_ns(self) -> int:
        return 7 * NS // (4 * self.fps)

    @property
    def look_ns(self) -> int:
        """How often to look, for a stall to be told within two frame periods."""
        return NS // (8 * self.fps)

    def judge(self, started_ns: int, frames: int, receive_ns: int, capture_ns: int, now_ns: int) -> CameraState:
        """The state of a stream started at `started_ns` whose newest of `frames` frames has these times."""
        if not frames:
            return CameraState.STARTING if now_ns - started_ns < START_NS else CameraState.LOST
        silence_ns = now_ns - receive_ns
        if silence_ns >= max(LOST_NS, 2 * self.late_ns):
            return CameraState.LOST
        if silence_ns >= self.late_ns or now_ns - capture_ns >= self.late_ns + LATENCY_NS:
            return CameraState.LATE
        return CameraState.WARMUP if frames < self.warmup else CameraState.LIVE


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
