import numpy as np
from numpy.typing import NDArray

from dzedge.kernels.bus import BusCycle

class DynamixelCycle(BusCycle):
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
        lengths: NDArray[np.int32],
        places: NDArray[np.int32],
        fast: int,
        speed_unit: NDArray[np.float64],
        current_unit: NDArray[np.float64],
        load_unit: NDArray[np.float64],
        ticks_low: int,
        ticks_high: int,
    ) -> None: ...
