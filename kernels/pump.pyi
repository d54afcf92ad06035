from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from dzedge.kernels.mailbox import FrameRing

NAMES: tuple[str, ...]
FORMATS: dict[str, tuple[int, int]]

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
    def __init__(
        self, addresses: Mapping[str, int], queue: int, ring: FrameRing, pixels: str = "rgb8"
    ) -> None: ...
    def run(self) -> None: ...
    def poll(self, timeout_ms: int = 0) -> int: ...
    def stop(self) -> None: ...
    def snapshot(self) -> dict[str, int]: ...

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
    ) -> None: ...
    def run(self) -> None: ...
    def stop(self) -> None: ...
    def ready(self) -> None: ...
    def detach(self) -> None: ...
    def inject(self, image: NDArray[np.uint8], number: int, capture_ns: int) -> int: ...
    def snapshot(self) -> dict[str, int]: ...
