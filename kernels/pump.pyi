from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from dzedge.kernels.mailbox import FrameRing

NAMES: tuple[str, ...]
FORMATS: dict[str, tuple[int, int]]
RAW: dict[str, tuple[int, int]]

class ClockMap:
    domain: int
    offset_ns: int
    resets: int
    steps: int
    switches: int
    def __init__(self) -> None: ...
    def forget(self) -> None: ...
    def map(self, stamp_ns: int, domain: int, receive_ns: int, realtime_ns: int) -> int: ...

class FramePump:
    ring: FrameRing
    clock: ClockMap
    error: str
    stream: int
    index: int
    beside: FramePump | None
    def __init__(
        self,
        addresses: Mapping[str, int],
        queue: int,
        ring: FrameRing,
        pixels: str = "rgb8",
        stream: int = 0,
        index: int = 0,
        beside: FramePump | None = None,
    ) -> None: ...
    def run(self) -> None: ...
    def poll(self, timeout_ms: int = 0) -> int: ...
    def stop(self) -> None: ...
    def snapshot(self) -> dict[str, int]: ...
    def trace(self) -> list[tuple[int, int, int, int]]: ...

class Feeder:
    ring: FrameRing
    domain: int
    phase_ns: int
    def __init__(
        self,
        addresses: Mapping[str, int],
        sensor: int,
        profile: int,
        ring: FrameRing,
        domain: int = 1,
        phase_ns: int = 0,
        depth_units: float = 0.0,
    ) -> None: ...
    def run(self) -> None: ...
    def stop(self) -> None: ...
    def ready(self) -> None: ...
    def detach(self) -> None: ...
    def inject(
        self, image: NDArray[Any], number: int, capture_ns: int, exposure_us: int = -1, gain: int = -1
    ) -> int: ...
    def snapshot(self) -> dict[str, int]: ...
    def trace(self) -> list[tuple[int, int]]: ...
