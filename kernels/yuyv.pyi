import numpy as np
from numpy.typing import NDArray

def yuyv_to_rgb(src: NDArray[np.uint8], dst: NDArray[np.uint8]) -> None: ...
