import numpy as np
from numpy.typing import NDArray

class ImagePlan:
    source_height: int
    source_width: int
    height: int
    width: int
    crop: tuple[int, int, int, int]
    order: str
    source: str
    def __init__(
        self,
        source_height: int,
        source_width: int,
        crop: tuple[int, int, int, int] | None = None,
        height: int = 72,
        width: int = 96,
        scale: NDArray[np.float64] | float = ...,
        bias: NDArray[np.float64] | float = -1.0,
        order: str = "RGB",
        source: str = "rgb",
    ) -> None: ...
    def run(self, src: NDArray[np.uint8], dst: NDArray[np.float32]) -> None: ...
