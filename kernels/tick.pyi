from collections.abc import Sequence
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from dzedge.kernels.board import Board
from dzedge.kernels.bus import BusCycle
from dzedge.kernels.chunk import SmoothPlan
from dzedge.kernels.mailbox import ChunkBox, StateRing, TrajectoryBox
from dzedge.kernels.marks import Marks

class State(IntEnum):
    BOOT = 0
    VERIFY = 1
    READY = 2
    ARMED = 3
    RUN = 4
    HOLD = 5
    FAULT = 6
    ESTOP = 7
    STOPPING = 8

class Request(IntEnum):
    REQUEST_HOLD = 0
    REQUEST_RUN = 1

class Cause(IntEnum):
    CAUSE_NONE = 0
    CAUSE_EXHAUSTED = 1
    CAUSE_REQUEST = 2
    CAUSE_TASK = 3
    CAUSE_OVERRUN = 4
    CAUSE_GATE = 5
    CAUSE_ENCODE = 6
    CAUSE_BUS_SILENT = 7
    CAUSE_UNPLUGGED = 8
    CAUSE_LIMITER = 9
    CAUSE_SERVO = 10

class Refusal(IntEnum):
    REFUSED_EPOCH = 0
    REFUSED_ORDER = 1
    REFUSED_FUTURE = 2
    REFUSED_STALE = 3
    REFUSED_STEP = 4
    REFUSED_NOT_FINITE = 5
    REFUSED_RANGE = 6
    REFUSALS = 7

class Tick:
    joints: int
    horizon: int
    state: int
    cause: int
    code: int
    ticks: int
    missed: int
    chunks_taken: int
    limited: int
    stops: int
    blended: bool
    def __init__(
        self,
        bus: BusCycle,
        chunks: ChunkBox,
        states: StateRing,
        trajectory: TrajectoryBox,
        board: Board,
        marks: Marks,
        plan: SmoothPlan,
        limits: NDArray[np.float64],
        gate_bounds: NDArray[np.float64],
        gate_rules: NDArray[np.float64],
        verdicts: Sequence[int],
        dt_ns: int,
        period_ns: int,
        bus_fault_ns: int,
        blended: bool = True,
    ) -> None: ...
    def arm(self, goal: NDArray[np.float64], now_ns: int) -> None: ...
    def hold(self, goal: NDArray[np.float64], now_ns: int) -> None: ...
    def fault(self) -> None: ...
    def run(self, fd: int, ticks: int) -> int: ...
    def request(self, now_ns: int) -> bytes: ...
    def reply(self, data: bytes, now_ns: int) -> int: ...
    @property
    def resting(self) -> bool: ...
    @property
    def command(self) -> NDArray[np.float64]: ...
    @property
    def refused_chunks(self) -> NDArray[np.int64]: ...
    @property
    def refused_commands(self) -> NDArray[np.int64]: ...
    @property
    def offence(self) -> tuple[int, float, float]: ...
