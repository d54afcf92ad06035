from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

KINDS: dict[str, int]

class RayCaster:
    height: int
    width: int
    shapes: int
    focal: float
    far: float
    ids: NDArray[np.int32]
    distance: NDArray[np.float64]
    rays: NDArray[np.float64]
    def __init__(
        self,
        height: int,
        width: int,
        focal: float,
        kinds: NDArray[np.int32],
        sizes: NDArray[np.float64],
        far: float = 4.0,
    ) -> None: ...
    def aim(self, eye: NDArray[np.float64], rotation: NDArray[np.float64]) -> None: ...
    def background(
        self, places: NDArray[np.float64], turns: NDArray[np.float64], chosen: NDArray[np.int32]
    ) -> None: ...
    def cast(self, places: NDArray[np.float64], turns: NDArray[np.float64], chosen: NDArray[np.int32]) -> None: ...
    def relight(
        self,
        palette: NDArray[np.float32],
        light: NDArray[np.float64],
        ambient: float,
        diffuse: float,
        ground: Sequence[float],
    ) -> None: ...
    def paint(self, noise: NDArray[np.float32], rgb: NDArray[np.uint8], depth: NDArray[np.uint16]) -> None: ...
