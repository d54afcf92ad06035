import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

def spline(knots: Array, moments: Array) -> int: ...
def bound(knots: Array, moments: Array, lower: Array, upper: Array) -> int: ...
def sample(knots: Array, moments: Array, step: float, tau: float, out: Array) -> int: ...
def blend(start: Array, window: float, offset: Array) -> int: ...
def seam(
    knots: Array, moments: Array, step: float, tau: float, commanded: Array, limits: Array, offset: Array
) -> float: ...
def sample_offset(offset: Array, window: float, t: float, out: Array) -> int: ...

class SmoothPlan:
    length: int
    joints: int
    factor: int
    window: int
    order: int
    rate: int
    decimate: bool
    dense: int
    knots: int
    points: int
    def __init__(
        self,
        length: int,
        joints: int,
        factor: int = 2,
        window: int = 9,
        order: int = 3,
        decimate: bool = True,
        rate: int = 1,
        lower: Array | None = None,
        upper: Array | None = None,
    ) -> None: ...
    def resample(self, chunk: Array, out: Array) -> None: ...
    def savgol(self, rows: Array, out: Array) -> None: ...
    def smooth(self, chunk: Array, out: Array) -> None: ...
    def rollout(self, chunk: Array, commanded: Array, step: float, window: float, out: Array) -> None: ...
