from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

class BusCode(IntEnum):
    BUS_OK = 0
    BUS_INCOMPLETE = 1
    BUS_UNPLUGGED = 2
    BUS_WRITE_FAILED = 3
    BUS_NOT_FINITE = 16
    BUS_RANGE = 17
    BUS_MISMATCH = 18
    BUS_STEP = 19
    BUS_UNSEEDED = 20
    BUS_TIME = 21

class ServoCode(IntEnum):
    SERVO_OK = 0
    SERVO_NO_REPLY = 1
    SERVO_IMPLAUSIBLE = 2

CYCLES: int
CHECKSUM: int
RESYNC: int
STRAY: int
LATE: int
TIMEOUTS: int
IMPLAUSIBLE: int
REFUSED: int
ALERTS: int
UNSENT: int
COUNTERS: int

class BusCycle:
    @property
    def joints(self) -> int: ...
    @property
    def budget_ns(self) -> int: ...
    @property
    def sent_ns(self) -> int: ...
    @property
    def sampled_ns(self) -> int: ...
    @property
    def composed(self) -> int: ...
    @property
    def missing(self) -> int: ...
    @property
    def goals(self) -> list[int]: ...
    # memoryviews: np.asarray makes a view of the results, which the next cycle overwrites
    @property
    def positions(self) -> memoryview[float]: ...
    @property
    def velocities(self) -> memoryview[float]: ...
    @property
    def loads(self) -> memoryview[float]: ...
    @property
    def voltages(self) -> memoryview[float]: ...
    @property
    def temperatures(self) -> memoryview[float]: ...
    @property
    def currents(self) -> memoryview[float]: ...
    @property
    def ticks(self) -> memoryview[int]: ...
    @property
    def results(self) -> memoryview[int]: ...
    @property
    def errors(self) -> memoryview[int]: ...
    @property
    def heard_ns(self) -> memoryview[int]: ...
    @property
    def counters(self) -> memoryview[int]: ...
    def __init__(
        self,
        *,
        ids: NDArray[np.uint8],
        goal_frame: NDArray[np.uint8],
        offsets: NDArray[np.int32],
        requests: NDArray[np.uint8],
        data_length: int,
        zero: NDArray[np.float64],
        scale: NDArray[np.float64],
        lower: NDArray[np.int32],
        upper: NDArray[np.int32],
        speed: NDArray[np.float64],
        travel: float,
        budget_ns: int,
        sample_delay_ns: int,
        elapsed_max_ns: int,
        echo: bool = False,
        quiet_ns: int = 0,
    ) -> None: ...
    def seed(self, ticks: NDArray[np.int32], now_ns: int) -> None: ...
    def unseed(self) -> None: ...
    def compose(self, command: NDArray[np.float64], now_ns: int) -> int: ...
    def discard(self) -> None: ...
    def cycle(self, fd: int, deadline_ns: int) -> int: ...
    def request(self, now_ns: int) -> bytes: ...
    def feed(self, data: bytes) -> int: ...
    def finish(self) -> int: ...
