from enum import IntFlag

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

class Code(IntFlag):
    MOVING = 1
    CLAMPED = 2
    RECOVERING = 4
    INVALID = 8

def step(state: Array, target: Array, target_velocity: Array, limits: Array, elapsed: float) -> int: ...
def track(state: Array, target: Array, limits: Array, elapsed: float) -> int: ...
def stop(state: Array, limits: Array, elapsed: float) -> int: ...
def run(
    state: Array, targets: Array, limits: Array, elapsed: Array, out: Array, codes: NDArray[np.intc]
) -> int: ...
