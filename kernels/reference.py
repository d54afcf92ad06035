"""The numeric kernels again, in plain NumPy: written independently and for clarity, to be tested against.

Same names, same arguments, same meaning as in `image`, `chunk`, `limiter` and `gate`; slow, and never used on
a robot.
"""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


# ------------------------------------------------------------------------------------- image, smoothing, seam


def area_rows(image: Array, output: int) -> Array:
    """Mean over `output` equal spans of axis 0: differences of the running integral at fractional places."""
    integral = np.concatenate([np.zeros((1, *image.shape[1:])), np.cumsum(image, axis=0)])
    edges = np.arange(output + 1) * (len(image) / output)
    below = np.minimum(edges.astype(int), len(image) - 1)
    share = (edges - below).reshape(-1, *[1] * (image.ndim - 1))
    values = integral[below] + share * (integral[below + 1] - integral[below])
    return np.diff(values, axis=0) * (output / len(image))


BT601 = np.array([[298.0, 0.0, 409.0], [298.0, -100.0, -208.0], [298.0, 516.0, 0.0]]) / 256.0
"""From (Y - 16, U - 128, V - 128) to RGB, limited range, rounded to n/256 as librealsense has it."""


def yuyv_planes(image: NDArray[np.uint8]) -> Array:
    """Y - 16, U - 128, V - 128 of every pixel. Shape (height, width, 2), uint8 -> Shape (height, width, 3)."""
    height, width, _ = image.shape
    groups = image.reshape(height, width // 2, 4).astype(np.float64)
    luma = groups[:, :, [0, 2]].reshape(height, width)
    u, v = (np.repeat(groups[:, :, i], 2, axis=1) for i in (1, 3))
    return np.stack([luma - 16.0, u - 128.0, v - 128.0], axis=-1)


def yuyv_to_rgb(src: NDArray[np.uint8], dst: NDArray[np.uint8]) -> None:
    dst[:] = np.clip(np.floor(yuyv_planes(src) @ BT601.T + 0.5), 0, 255)


class ImagePlan:
    """Crop, area resize, normalise, in float64 and whole arrays."""

    def __init__(
        self,
        source_height: int,
        source_width: int,
        crop: tuple[int, int, int, int] | None = None,
        height: int = 72,
        width: int = 96,
        scale: Array | float = 2 / 255,
        bias: Array | float = -1.0,
        order: str = "RGB",
        source: str = "rgb",
    ) -> None:
        self.source = source
        self.crop = crop or (0, 0, source_height, source_width)
        self.size = height, width
        self.scale, self.bias, self.order = scale, bias, order

    def run(self, src: NDArray[np.uint8], dst: NDArray[np.float32]) -> None:
        top, left, rows, columns = self.crop
        whole = yuyv_planes(src) if self.source == "yuyv" else src.astype(np.float64)
        image = whole[top : top + rows, left : left + columns]
        image = area_rows(image, self.size[0]).swapaxes(0, 1)
        image = area_rows(image, self.size[1]).swapaxes(0, 1)
        if self.source == "yuyv":
            image = np.clip(image @ BT601.T, 0.0, 255.0)
        if self.order == "BGR":
            image = image[:, :, ::-1]
        dst[:] = (image * self.scale + self.bias).transpose(2, 0, 1)


def spline(knots: Array, moments: Array) -> int:
    """Moments of the natural cubic spline by one dense solve."""
    if moments.shape != knots.shape:
        return -1
    n = len(knots)
    system = np.eye(n)
    right = np.zeros_like(knots)
    for i in range(1, n - 1):
        system[i, i - 1 : i + 2] = 1, 4, 1
        right[i] = 6 * (knots[i - 1] - 2 * knots[i] + knots[i + 1])
    with np.errstate(invalid="ignore"):
        for j in range(knots.shape[1]):
            moments[:, j] = np.linalg.solve(system, right[:, j])
    return 0


def sample(knots: Array, moments: Array, step: float, tau: float, out: Array) -> int:
    """The first three rows of `motion` at one time."""
    if moments.shape != knots.shape or out.shape != (3, knots.shape[1]):
        return -1
    if not step > 0 or np.isnan(tau):
        out[:] = np.nan
    else:
        out[:] = motion(knots, moments, step, np.array([tau]))[:3, 0]
    return 0


def bound(knots: Array, moments: Array, lower: Array, upper: Array) -> int:
    """Shrink moments until both inner Bezier control points of every segment lie inside the bounds."""
    if moments.shape != knots.shape or lower.shape != knots.shape[1:] or upper.shape != knots.shape[1:]:
        return -1
    share = np.ones_like(knots)
    for i in range(len(knots) - 1):
        chord = knots[i + 1] - knots[i]
        for inner, pull in (
            (knots[i] + chord / 3, (1 / 9, 1 / 18)),
            (knots[i + 1] - chord / 3, (1 / 18, 1 / 9)),
        ):
            down = sum(w * np.maximum(m, 0) for w, m in zip(pull, moments[i : i + 2], strict=True))
            up = sum(w * np.maximum(-m, 0) for w, m in zip(pull, moments[i : i + 2], strict=True))
            for need, room in ((down, inner - lower), (up, upper - inner)):
                fit = np.where(need > room, np.maximum(room, 0) / np.where(need > 0, need, 1), 1)
                fit = np.where(need > 0, fit, 1)
                share[i : i + 2] = np.minimum(share[i : i + 2], fit)
    moments *= share
    return 0


def blend(start: Array, window: float, offset: Array) -> int:
    """The quintic that meets six end conditions, by solving for its coefficients."""
    if start.shape[0] < 3 or offset.shape != (start.shape[1], 6):
        return -1
    offset[:] = 0
    if not window > 0:
        return 0
    powers = np.arange(6)
    ends = np.zeros((6, 6))
    for row, (u, order) in enumerate([(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]):
        factor = np.array([np.prod(np.arange(k, k - order, -1)) if k >= order else 0 for k in powers])
        ends[row] = factor * np.where(powers >= order, float(u) ** np.maximum(powers - order, 0), 0)
    scaled = np.zeros((6, start.shape[1]))
    scaled[:3] = start[:3] * np.array([1, window, window**2])[:, None]
    offset[:] = (np.linalg.solve(ends, scaled) / window ** powers[:, None]).T
    return 0


def sample_offset(offset: Array, window: float, t: float, out: Array) -> int:
    """Add the polynomial and its derivatives, before the end of the window."""
    if offset.shape != (out.shape[1], 6) or out.shape[0] < 3:
        return -1
    if t >= abs(window):
        return 0
    t = window if np.isnan(window) else max(t, 0.0)
    for j, row in enumerate(offset):
        polynomial = np.polynomial.Polynomial(row)
        out[:3, j] += [polynomial(t), polynomial.deriv(1)(t), polynomial.deriv(2)(t)]
    return 0


def motion(knots: Array, moments: Array, step: float, times: Array) -> Array:
    """Position, velocity, acceleration and jerk of the trajectory. Shape (4, len(times), J)."""
    n = len(knots)
    out = np.zeros((4, len(times), knots.shape[1]))
    out[0] = np.where(times[:, None] < 0, knots[0], knots[-1])
    on = (times >= 0) & (times <= (n - 1) * step) & (n > 1)
    i = np.minimum(np.floor(times[on] / step + 1e-9), n - 2).astype(int)  # on a knot: what follows it
    t = (times[on] - i * step)[:, None]
    c2, c3 = moments[i] / step**2 / 2, (moments[i + 1] - moments[i]) / step**3 / 6
    c1 = (knots[i + 1] - knots[i]) / step - (2 * moments[i] + moments[i + 1]) / step / 6
    out[:, on] = knots[i] + t * (c1 + t * (c2 + t * c3)), c1 + t * (2 * c2 + t * 3 * c3), 2 * c2 + t * 6 * c3, 6 * c3
    return out


def kept(
    knots: Array,
    moments: Array,
    step: float,
    tau: float,
    commanded: Array,
    limits: Array,
    offset: Array,
    window: float,
) -> bool:
    """Whether trajectory + offset keep the limits of `seam`, looked at in 400 places."""
    times = np.linspace(0, window, 400)
    own = motion(knots, moments, step, tau + times)
    both = own.copy()
    for j, row in enumerate(offset):
        for order in range(4):
            both[order, :, j] += np.polynomial.Polynomial(row).deriv(order)(times)
    allowed = np.maximum(limits[:3], abs(own[1:]).max(axis=1))
    allowed[:2] = np.maximum(allowed[:2], abs(commanded[1:3]))
    return bool((abs(both[1:]).max(axis=1) <= allowed * (1 + 1e-9)).all())


def seam(
    knots: Array, moments: Array, step: float, tau: float, commanded: Array, limits: Array, offset: Array
) -> float:
    """The shortest of 200 windows, each one looked at."""
    if not (np.isfinite(knots).all() and np.isfinite(commanded).all() and np.isfinite(tau)):
        return float("nan")
    start = np.zeros((3, knots.shape[1]))
    sample(knots, moments, step, tau, start)
    start = commanded[:3] - start
    if not start.any():
        offset[:] = 0
        return 0.0
    longest = max((len(knots) - 1) * step - tau, step)
    for window in np.linspace(step, longest, 200 if longest > step else 1):
        blend(start, float(window), offset)
        if kept(knots, moments, step, tau, commanded, limits, offset, float(window)):
            return float(window)
    return -longest


class SmoothPlan:
    """Resample, fit a polynomial around every point, decimate, clip; then play it."""

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
    ) -> None:
        self.factor, self.decimate, self.rate = factor, decimate, rate
        self.dense = (length - 1) * factor + 1
        self.knots = length if decimate else self.dense
        self.points = (self.knots - 1) * rate + 1
        window = min(window, self.dense)
        self.window = window - 1 + window % 2
        self.order = min(order, self.window - 1)
        self.lower = np.full(joints, -np.inf) if lower is None else lower
        self.upper = np.full(joints, np.inf) if upper is None else upper

    def resample(self, chunk: Array, out: Array) -> None:
        moments = np.zeros_like(chunk)
        spline(chunk, moments)
        for k in range(self.dense):
            row = np.zeros((3, chunk.shape[1]))
            sample(chunk, moments, 1.0, k / self.factor, row)
            out[k] = row[0]

    def savgol(self, rows: Array, out: Array) -> None:
        places = np.linspace(-1, 1, self.window) if self.window > 1 else np.zeros(1)
        powers = np.vander(places, self.order + 1)
        fit = powers @ np.linalg.pinv(powers)
        for k in range(self.knots):
            centre = k * self.factor if self.decimate else k
            first = min(max(centre - self.window // 2, 0), self.dense - self.window)
            out[k] = fit[centre - first] @ rows[first : first + self.window]

    def smooth(self, chunk: Array, out: Array) -> None:
        dense = np.zeros((self.dense, chunk.shape[1]))
        self.resample(chunk, dense)
        self.savgol(dense, out)
        out[:] = np.clip(out, self.lower, self.upper)

    def rollout(self, chunk: Array, commanded: Array, step: float, window: float, out: Array) -> None:
        knots = np.zeros((self.knots, chunk.shape[1]))
        self.smooth(chunk, knots)
        moments, row = np.zeros_like(knots), np.zeros((3, chunk.shape[1]))
        offset = np.zeros((chunk.shape[1], 6))
        spline(knots, moments)
        sample(knots, moments, step, 0.0, row)
        blend(commanded - row, window, offset)
        for k in range(self.points):
            sample(knots, moments, step, min(k / self.rate, self.knots - 1) * step, row)
            sample_offset(offset, window, k * step / self.rate, row)
            out[k] = np.clip(row[0], self.lower, self.upper)
