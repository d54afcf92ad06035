"""Chunk to trajectory: the frozen smoothing plan that the control tick plays.

Between chunk and trajectory lie, in this order: the command at `t_obs` as knot 0, cubic up-sampling by 2,
Savitzky-Golay (window 9, order 3, clipped to the chunk's length), a natural cubic spline, and a quintic seam from
the commanded position, velocity and acceleration of the instant the chunk arrives (`dzedge.kernels.chunk`).
"""

import numpy as np
from numpy.typing import NDArray

from dzedge.kernels.chunk import SmoothPlan

FACTOR, WINDOW, ORDER = 2, 9, 3
"""Up-sampling, Savitzky-Golay window and order."""


def smoothing(horizon: int, limits: NDArray[np.float64], smooth: bool = True) -> SmoothPlan:
    """The plan for chunks of `horizon` actions and their anchor, kept inside the joint limits.

    limits: Shape (5, J), rows velocity, acceleration, jerk, lower, upper; smooth: False leaves every action where the
    policy put it (only the spline between them remains).
    """
    return SmoothPlan(
        horizon + 1,
        limits.shape[1],
        factor=FACTOR if smooth else 1,
        window=WINDOW if smooth else 1,
        order=ORDER,
        decimate=False,
        lower=limits[3].copy(),
        upper=limits[4].copy(),
    )
