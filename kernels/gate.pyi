from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

class Code(IntEnum):
    ACCEPTED = 0
    FINITE = 1
    MEMORY = 2
    ELAPSED = 3
    OBSERVATION_AGE = 4
    COMMAND_AGE = 5
    MEASURED_AGE = 6
    POSITION = 7
    FOLLOWING = 8
    VELOCITY = 9
    WINDOW = 10
    BURST = 11
    ACCELERATION = 12
    JERK = 13

def memory_size(joints: int) -> int: ...
def memory(joints: int) -> Array: ...
def rules(
    observation_age: float,
    command_age: float,
    measured_age: float,
    following_time: float = 0.1,
    following_gain: float = 0.15,
    window: float = 0.25,
    margin: float = 1.05,
    burst: int = 0,
) -> Array: ...
def arm(memory: Array, position: Array) -> int: ...
def check(
    command: Array, measured: Array, ages: Array, elapsed: float, bounds: Array, rules: Array, memory: Array
) -> int: ...
def offender(memory: Array) -> int: ...
def offence(memory: Array) -> tuple[int, float, float]: ...
def run(
    commands: Array,
    measured: Array,
    ages: Array,
    elapsed: Array,
    bounds: Array,
    rules: Array,
    memory: Array,
    codes: NDArray[np.intc],
) -> int: ...
