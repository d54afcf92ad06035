"""A 48x7 chunk smoothed (Savitzky-Golay 9/3), splined to ten times its rate (471 points) and blended in.

Ours is one call of `SmoothPlan.rollout`. The rivals do the same to 1e-11, with everything precomputed that they can:
scipy its grid, the NumPy one its filter, inverse and weights, the matrix one all that is linear, moments of the first
knot included; the basis of the seam is given to all of them, ours computes it. CPU time of the process, rounds
interleaved, medians.
"""

import time
from collections.abc import Callable
from statistics import median

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from scipy.interpolate import CubicSpline
from scipy.signal import savgol_coeffs, savgol_filter

from dzedge.kernels import chunk

Array = NDArray[np.float64]
LENGTH, JOINTS, RATE, WIDTH, ORDER = 48, 7, 10, 9, 3
STEP, WINDOW = 0.1, 0.5
POINTS = (LENGTH - 1) * RATE + 1
ROUNDS, CALLS = 60, 20
RNG = np.random.default_rng(7)
CHUNK = np.cumsum(RNG.normal(0, 0.05, (LENGTH, JOINTS)), axis=0)
COMMANDED = RNG.normal(0, 0.1, (3, JOINTS))


def seam_basis() -> Array:
    """Weights of the position, velocity and acceleration offset in each point of the window. Shape (50, 3)."""
    t = np.arange(round(WINDOW / STEP * RATE)) * STEP / RATE
    basis = np.empty((len(t), 3))
    for k, start in enumerate(np.eye(3)):
        offset = np.empty((1, 6))
        chunk.blend(np.ascontiguousarray(start[:, None]), WINDOW, offset)
        basis[:, k] = np.polynomial.polynomial.polyval(t, offset[0])
    return basis


BASIS = seam_basis()


def ours() -> Callable[[], Array]:
    plan = chunk.SmoothPlan(LENGTH, JOINTS, factor=1, window=WIDTH, order=ORDER, rate=RATE)
    out = np.empty((POINTS, JOINTS))

    def call() -> Array:
        plan.rollout(CHUNK, COMMANDED, STEP, WINDOW, out)
        return out

    return call


def scipys() -> Callable[[], Array]:
    knots, fine = np.arange(LENGTH), np.arange(POINTS) / RATE

    def call() -> Array:
        spline = CubicSpline(knots, savgol_filter(CHUNK, WIDTH, ORDER, axis=0), bc_type="natural")
        out = spline(fine)
        start = COMMANDED.copy()
        start[0] -= out[0]
        start[1] -= spline(0.0, 1) / STEP
        out[: len(BASIS)] += BASIS @ start
        return out

    return call


def vectorised() -> Callable[[], Array]:
    taps = savgol_coeffs(WIDTH, ORDER)[::-1].copy()
    half = WIDTH // 2
    edges = savgol_filter(np.eye(WIDTH), WIDTH, ORDER, axis=0)
    first, last = edges[:half].copy(), edges[-half:].copy()
    system = 4 * np.eye(LENGTH - 2) + np.eye(LENGTH - 2, k=1) + np.eye(LENGTH - 2, k=-1)
    inverse = 6 * np.linalg.inv(system)
    u = (np.arange(RATE) / RATE)[None, :, None]
    w = 1 - u
    cubic_w, cubic_u = (w**3 - w) / 6, (u**3 - u) / 6
    windows = sliding_window_view(CHUNK, WIDTH, axis=0)
    smooth, moments = np.empty((LENGTH, JOINTS)), np.zeros((LENGTH, JOINTS))
    out = np.empty((POINTS, JOINTS))
    grid = out[:-1].reshape(LENGTH - 1, RATE, JOINTS)
    part = np.empty_like(grid)
    y0, y1, m0, m1 = smooth[:-1, None], smooth[1:, None], moments[:-1, None], moments[1:, None]

    def call() -> Array:
        np.matmul(windows, taps, out=smooth[half:-half])
        np.matmul(first, CHUNK[:WIDTH], out=smooth[:half])
        np.matmul(last, CHUNK[-WIDTH:], out=smooth[-half:])
        np.matmul(inverse, smooth[:-2] - 2 * smooth[1:-1] + smooth[2:], out=moments[1:-1])
        np.multiply(y0, w, out=grid)
        for values, weight in ((y1, u), (m0, cubic_w), (m1, cubic_u)):
            np.multiply(values, weight, out=part)
            np.add(grid, part, out=grid)
        out[-1] = smooth[-1]
        start = COMMANDED.copy()
        start[0] -= smooth[0]
        start[1] -= (smooth[1] - smooth[0] - moments[1] / 6) / STEP
        out[: len(BASIS)] += BASIS @ start
        return out

    return call


def matrix() -> Callable[[], Array]:
    """Filter, spline and the motion at knot 0 are one linear map: a (471 + 3) x 48 product, cached."""
    whole = np.zeros((POINTS + 3, LENGTH))
    spline = CubicSpline(np.arange(LENGTH), savgol_filter(np.eye(LENGTH), WIDTH, ORDER, axis=0), bc_type="natural")
    whole[:POINTS] = spline(np.arange(POINTS) / RATE)
    whole[POINTS] = whole[0]
    whole[POINTS + 1] = spline(0.0, 1) / STEP
    both = np.empty((POINTS + 3, JOINTS))
    out, motion, head = both[:POINTS], both[POINTS:], both[: len(BASIS)]

    def call() -> Array:
        np.matmul(whole, CHUNK, out=both)
        np.add(head, BASIS @ (COMMANDED - motion), out=head)
        return out

    return call


def cpu_medians(calls: dict[str, Callable[[], Array]]) -> dict[str, float]:
    """Median CPU microseconds a call, one round of each after the other."""
    spent: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(ROUNDS):
        for name, call in calls.items():
            begin = time.process_time_ns()
            for _ in range(CALLS):
                call()
            spent[name].append((time.process_time_ns() - begin) / CALLS / 1e3)
    return {name: median(values[ROUNDS // 10 :]) for name, values in spent.items()}


def run() -> list[dict]:
    calls = {"ours": ours(), "scipy": scipys(), "numpy": vectorised(), "matmul": matrix()}
    want = calls["scipy"]().copy()
    for name, call in calls.items():
        if np.abs(call() - want).max() > 1e-11:
            raise AssertionError(f"{name} does not compute what scipy does")
    spent = cpu_medians(calls)
    results = []
    for name, bar in (("scipy", 0.025), ("numpy", 0.33), ("matmul", 0.67)):
        ratio = spent["ours"] / spent[name]
        results.append(
            {
                "id": f"smoothing_{name}",
                "value": spent["ours"],
                "unit": "us",
                "rival": spent[name],
                "ratio": ratio,
                "bar": bar,
                "ok": ratio <= bar,
            }
        )
    return results

