"""Action chunk to trajectory: resampling, Savitzky-Golay, natural cubic spline, quintic seam.

A chunk is a table of n knots `step` seconds apart, Shape (n, J), [rad]. Between them runs the natural cubic
spline given by the knots and their *moments* (second derivatives per step squared). A new chunk seldom starts
where the arm is, so `seam` adds a quintic per joint that carries the commanded position, velocity and
acceleration over into the trajectory: the seam matters far more than smoothing inside the chunk.

Not a number in, not a number out: a NaN spreads over its joint and never turns into a position or a bound;
the gate behind refuses it. Only + - * / sqrt fabs floor at run time, so that a replay is equal to the bit on
every machine. Nothing allocates but the constructor of `SmoothPlan`.

One long file: these parts call each other without the GIL, and a kernel that must also run interpreted cannot
cimport another.
"""

import cython
import numpy as np
from cython.cimports.libc.math import fabs, floor, sqrt

NAN = cython.declare(cython.double, float("nan"))
INFINITY = cython.declare(cython.double, float("inf"))
PIVOTS = cython.declare(cython.int, 20)  # 1 / (4 - c) is at its fixed point, 2 - sqrt(3), after 15
GROWTH = cython.declare(cython.double, 1.25)  # of the window from try to try
HALVINGS = cython.declare(cython.int, 10)  # then the window is known to 0.25 / 2**10 of itself
ROUNDING = cython.declare(cython.double, 1e-9)  # a command that sits on its limit does not break it


# ---------------------------------------------------------------------------------------------- spline


@cython.ccall
@cython.nogil
@cython.exceptval(check=False)
def spline(knots: cython.const[cython.double][:, ::1], moments: cython.double[:, ::1]) -> cython.int:
    """Moments of the natural cubic spline through the knots, zero at both ends.

    knots, moments: Shape (n, J), [rad] and [rad per step squared]. Returns 0, or -1 when shapes disagree.
    Solves M[i-1] + 4 M[i] + M[i+1] = 6 (y[i-1] - 2 y[i] + y[i+1]) by the Thomas algorithm.
    """
    count: cython.Py_ssize_t = knots.shape[0]
    joints: cython.Py_ssize_t = knots.shape[1]
    i: cython.Py_ssize_t
    j: cython.Py_ssize_t
    pivot: cython.double
    if moments.shape[0] != count or moments.shape[1] != joints or count < 1:
        return -1
    pivots = cython.declare(cython.double[20])
    pivots[0] = 0.0
    for i in range(1, PIVOTS):
        pivots[i] = 1.0 / (4.0 - pivots[i - 1])
    for j in range(joints):
        moments[0, j] = 0.0
        moments[count - 1, j] = 0.0
    for i in range(1, count - 1):
        pivot = pivots[i if i < PIVOTS else PIVOTS - 1]
        for j in range(joints):
            moments[i, j] = pivot * (
                6.0 * (knots[i - 1, j] - 2.0 * knots[i, j] + knots[i + 1, j]) - moments[i - 1, j]
            )
    for i in range(count - 2, 0, -1):
        pivot = pivots[i if i < PIVOTS else PIVOTS - 1]
        for j in range(joints):
            moments[i, j] -= pivot * moments[i + 1, j]
    return 0


@cython.ccall
@cython.nogil
@cython.exceptval(check=False)
def bound(
    knots: cython.const[cython.double][:, ::1],
    moments: cython.double[:, ::1],
    lower: cython.const[cython.double][::1],
    upper: cython.const[cython.double][::1],
) -> cython.int:
    """Shrink moments where the spline would leave [lower, upper] between two knots that are inside.

    A gripper commanded 0 0 0 1 1 1 overshoots both stops by 11 % as a free spline. Shrunk moments keep it in,
    at the price of a step in its velocity at those knots, which the limiter rounds off. Sufficient, by the
    convex hull of the Bezier form: both inner control points stay inside. Untouched joints stay bit-equal.
    knots, moments: Shape (n, J); lower, upper: Shape (J,), infinite for a joint without bounds. Returns 0, or
    -1 when shapes disagree.
    """
    count: cython.Py_ssize_t = knots.shape[0]
    joints: cython.Py_ssize_t = knots.shape[1]
    i: cython.Py_ssize_t
    j: cython.Py_ssize_t
    keep: cython.double
    left: cython.double
    if moments.shape[0] != count or moments.shape[1] != joints:
        return -1
    if lower.shape[0] != joints or upper.shape[0] != joints:
        return -1
    for j in range(joints):
        left = 1.0
        for i in range(count):
            keep = 1.0
            if i + 1 < count:
                keep = _share(
                    knots[i, j], knots[i + 1, j], moments[i, j], moments[i + 1, j], lower[j], upper[j]
                )
            moments[i, j] *= left if left < keep else keep
            left = keep
    return 0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _share(
    y0: cython.double,
    y1: cython.double,
    m0: cython.double,
    m1: cython.double,
    low: cython.double,
    high: cython.double,
) -> cython.double:
    """The share of both moments that one segment bears inside [low, high]."""
    first: cython.double = y0 + (y1 - y0) / 3.0
    second: cython.double = y1 - (y1 - y0) / 3.0
    share: cython.double = 1.0
    share = _fit(share, first - low, (m0 if m0 > 0.0 else 0.0) / 9.0 + (m1 if m1 > 0.0 else 0.0) / 18.0)
    share = _fit(share, second - low, (m0 if m0 > 0.0 else 0.0) / 18.0 + (m1 if m1 > 0.0 else 0.0) / 9.0)
    share = _fit(share, high - first, (-m0 if m0 < 0.0 else 0.0) / 9.0 + (-m1 if m1 < 0.0 else 0.0) / 18.0)
    return _fit(share, high - second, (-m0 if m0 < 0.0 else 0.0) / 18.0 + (-m1 if m1 < 0.0 else 0.0) / 9.0)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _fit(share: cython.double, room: cython.double, need: cython.double) -> cython.double:
    if need * share <= room or need <= 0.0:
        return share
    return room / need if room > 0.0 else 0.0


@cython.ccall
@cython.nogil
@cython.exceptval(check=False)
def sample(
    knots: cython.const[cython.double][:, ::1],
    moments: cython.const[cython.double][:, ::1],
    step: cython.double,
    tau: cython.double,
    out: cython.double[:, ::1],
) -> cython.int:
    """Position, velocity and acceleration `tau` seconds after knot 0.

    Before knot 0 and after the last knot the trajectory stands still at that knot: velocity and acceleration
    0. knots, moments: Shape (n, J), from `spline`; step, tau: [s]; out: Shape (3, J), [rad, rad/s, rad/s^2].
    Returns 0, or -1 when shapes disagree. A tau that is not a number, or a step that is not above 0, gives
    NaN.
    """
    count: cython.Py_ssize_t = knots.shape[0]
    joints: cython.Py_ssize_t = knots.shape[1]
    j: cython.Py_ssize_t
    row: cython.Py_ssize_t
    if moments.shape[0] != count or moments.shape[1] != joints or count < 1:
        return -1
    if out.shape[0] < 3 or out.shape[1] != joints:
        return -1
    motion = cython.declare(cython.double[4])
    row = _segment(count, step, tau)
    for j in range(joints):
        out[0, j] = _motion(knots, moments, step, tau, row, j, motion)
        out[1, j] = motion[0]
        out[2, j] = motion[1]
    return 0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _segment(count: cython.Py_ssize_t, step: cython.double, tau: cython.double) -> cython.Py_ssize_t:
    """The knot before tau: -1 before knot 0, count - 1 after the last, count for a time that is none."""
    end: cython.double = (count - 1) * step
    row: cython.Py_ssize_t
    if not (step > 0.0 and tau == tau):
        return count
    if tau < 0.0:
        return -1
    if tau > end or count == 1:
        return count - 1
    row = cython.cast(cython.Py_ssize_t, floor(tau / step))
    return row if row < count - 1 else count - 2


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _motion(
    knots: cython.const[cython.double][:, ::1],
    moments: cython.const[cython.double][:, ::1],
    step: cython.double,
    tau: cython.double,
    row: cython.Py_ssize_t,
    j: cython.Py_ssize_t,
    motion: cython.p_double,
) -> cython.double:
    """Position of joint j on segment `row`; velocity, acceleration and jerk go to `motion`."""
    last: cython.Py_ssize_t = knots.shape[0] - 1
    motion[0] = 0.0
    motion[1] = 0.0
    motion[2] = 0.0
    if row < 0:
        return knots[0, j]
    if row == last:
        return knots[last, j]
    if row > last:
        motion[0] = motion[1] = motion[2] = NAN
        return NAN
    u: cython.double = tau / step - row
    w: cython.double = 1.0 - u
    y0: cython.double = knots[row, j]
    y1: cython.double = knots[row + 1, j]
    m0: cython.double = moments[row, j]
    m1: cython.double = moments[row + 1, j]
    motion[0] = (y1 - y0 + ((1.0 - 3.0 * w * w) * m0 + (3.0 * u * u - 1.0) * m1) / 6.0) / step
    motion[1] = (w * m0 + u * m1) / (step * step)
    motion[2] = (m1 - m0) / (step * step * step)
    return w * y0 + u * y1 + ((w * w * w - w) * m0 + (u * u * u - u) * m1) / 6.0


# ------------------------------------------------------------------------------------------------ seam


@cython.ccall
@cython.nogil
@cython.exceptval(check=False)
def blend(
    start: cython.const[cython.double][:, ::1], window: cython.double, offset: cython.double[:, ::1]
) -> cython.int:
    """The quintic from `start` at time 0 to rest at zero at time `window`, per joint.

    start: Shape (3, J), [rad, rad/s, rad/s^2]; window: [s]; offset: Shape (J, 6), [rad/s^k] for t^k, all zero
    for a window that is not above 0. Returns 0, or -1 when shapes disagree.
    """
    joints: cython.Py_ssize_t = start.shape[1]
    j: cython.Py_ssize_t
    k: cython.Py_ssize_t
    if start.shape[0] < 3 or offset.shape[0] != joints or offset.shape[1] != 6:
        return -1
    for j in range(joints):
        if window > 0.0:
            offset[j, 0] = start[0, j]
            offset[j, 1] = start[1, j]
            offset[j, 2] = 0.5 * start[2, j]
            _close(offset, window, j)
        else:
            for k in range(6):
                offset[j, k] = 0.0
    return 0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _close(offset: cython.double[:, ::1], window: cython.double, j: cython.Py_ssize_t) -> cython.void:
    """Coefficients 3 to 5 from 0 to 2, so that all three vanish at the end of the window."""
    rate: cython.double = 1.0 / window
    p: cython.double = offset[j, 0] * rate * rate * rate
    v: cython.double = offset[j, 1] * rate * rate
    a: cython.double = offset[j, 2] * rate
    offset[j, 3] = -10.0 * p - 6.0 * v - 3.0 * a
    offset[j, 4] = (15.0 * p + 8.0 * v + 3.0 * a) * rate
    offset[j, 5] = (-6.0 * p - 3.0 * v - a) * rate * rate


@cython.ccall
@cython.nogil
@cython.exceptval(check=False)
def sample_offset(
    offset: cython.const[cython.double][:, ::1],
    window: cython.double,
    t: cython.double,
    out: cython.double[:, ::1],
) -> cython.int:
    """Add the offset `t` seconds after the arrival to a sample of the trajectory.

    offset: Shape (J, 6), window: [s], of either sign, both from `seam`; out: Shape (3, J), from `sample`.
    From `|window|` on nothing is added. Returns 0, or -1 when shapes disagree. A NaN of t or window spreads.
    """
    joints: cython.Py_ssize_t = offset.shape[0]
    j: cython.Py_ssize_t
    if offset.shape[1] != 6 or out.shape[0] < 3 or out.shape[1] != joints:
        return -1
    if t >= fabs(window):
        return 0
    if t < 0.0:
        t = 0.0
    if window != window:
        t = window
    for j in range(joints):
        out[0, j] += _position(offset, j, t)
        out[1, j] += offset[j, 1] + t * (
            2.0 * offset[j, 2] + t * (3.0 * offset[j, 3] + t * (4.0 * offset[j, 4] + t * 5.0 * offset[j, 5]))
        )
        out[2, j] += 2.0 * offset[j, 2] + t * (
            6.0 * offset[j, 3] + t * (12.0 * offset[j, 4] + t * 20.0 * offset[j, 5])
        )
    return 0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _position(
    offset: cython.const[cython.double][:, ::1], j: cython.Py_ssize_t, t: cython.double
) -> cython.double:
    return offset[j, 0] + t * (
        offset[j, 1] + t * (offset[j, 2] + t * (offset[j, 3] + t * (offset[j, 4] + t * offset[j, 5])))
    )


@cython.ccall
@cython.nogil
@cython.exceptval(check=False)
def seam(
    knots: cython.const[cython.double][:, ::1],
    moments: cython.const[cython.double][:, ::1],
    step: cython.double,
    tau: cython.double,
    commanded: cython.const[cython.double][:, ::1],
    limits: cython.const[cython.double][:, ::1],
    offset: cython.double[:, ::1],
) -> cython.double:
    """The shortest window of a quintic offset that leads from the commanded motion into the trajectory.

    The window is common to all joints, at least one step, at most what is left of the trajectory (or one
    step, where less is left). Inside it the velocity, acceleration and jerk of trajectory + offset keep the
    limits; a bound that the trajectory or the command breaks by itself counts as raised to that value, for no
    seam can mend that and the limiter behind will. The peaks are exact (roots of the derivatives), not
    sampled.

    knots, moments: Shape (n, J), from `spline`; step: [s]; tau: time of arrival after knot 0, [s]; commanded:
    Shape (3, J), position, velocity, acceleration at the arrival; limits: Shape (3 or more, J), rows
    velocity, acceleration, jerk; offset: Shape (J, 6), written, for `sample_offset`.

    Returns the window [s]; 0 where nothing is to be blended; minus the longest window where none keeps the
    limits (the offset is that of the longest); NaN where shapes disagree or something is not finite.
    """
    count: cython.Py_ssize_t = knots.shape[0]
    joints: cython.Py_ssize_t = knots.shape[1]
    row: cython.Py_ssize_t = _segment(count, step, tau)
    longest: cython.double = (count - 1) * step - tau
    window: cython.double = step
    settled: cython.Py_ssize_t = 0
    rounds: cython.Py_ssize_t = 0
    j: cython.Py_ssize_t = 0
    if moments.shape[0] != count or moments.shape[1] != joints or offset.shape[0] != joints or joints < 1:
        return NAN
    if commanded.shape[0] < 3 or commanded.shape[1] != joints or offset.shape[1] != 6 or count < 1:
        return NAN
    if limits.shape[0] < 3 or limits.shape[1] != joints or row == count or fabs(tau) == INFINITY:
        return NAN
    if not _start(knots, moments, step, tau, row, commanded, limits, offset):
        return NAN
    if _idle(offset):
        return 0.0
    if longest < step:
        longest = step
    # Round the joints until none asks for more than the last one was granted.
    while settled < joints:
        if _kept(knots, moments, step, tau, commanded, limits, offset, window, j):
            settled += 1
            j = j + 1 if j + 1 < joints else 0
        elif window >= longest:
            break
        else:
            rounds += 1
            if rounds > 4 * joints:
                window = longest
            else:
                window = _lengthen(knots, moments, step, tau, commanded, limits, offset, window, longest, j)
            settled = 0
    for j in range(joints):
        _close(offset, window, j)
    return window if settled == joints else -window


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _start(
    knots: cython.const[cython.double][:, ::1],
    moments: cython.const[cython.double][:, ::1],
    step: cython.double,
    tau: cython.double,
    row: cython.Py_ssize_t,
    commanded: cython.const[cython.double][:, ::1],
    limits: cython.const[cython.double][:, ::1],
    offset: cython.double[:, ::1],
) -> cython.bint:
    """Coefficients 0 to 2 of the offset; False where anything that the search will read is not finite."""
    i: cython.Py_ssize_t
    j: cython.Py_ssize_t
    doubt: cython.double = 0.0
    motion = cython.declare(cython.double[4])
    for j in range(knots.shape[1]):
        offset[j, 0] = commanded[0, j] - _motion(knots, moments, step, tau, row, j, motion)
        offset[j, 1] = commanded[1, j] - motion[0]
        offset[j, 2] = 0.5 * (commanded[2, j] - motion[1])
        offset[j, 3] = offset[j, 4] = offset[j, 5] = 0.0
        for i in range(3):
            doubt += (offset[j, i] - offset[j, i]) + (0.0 if limits[i, j] == limits[i, j] else NAN)
        for i in range(knots.shape[0]):
            doubt += (knots[i, j] - knots[i, j]) + (moments[i, j] - moments[i, j])
    return doubt == 0.0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _idle(offset: cython.double[:, ::1]) -> cython.bint:
    j: cython.Py_ssize_t
    size: cython.double = 0.0
    for j in range(offset.shape[0]):
        size += fabs(offset[j, 0]) + fabs(offset[j, 1]) + fabs(offset[j, 2])
    return size == 0.0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _lengthen(
    knots: cython.const[cython.double][:, ::1],
    moments: cython.const[cython.double][:, ::1],
    step: cython.double,
    tau: cython.double,
    commanded: cython.const[cython.double][:, ::1],
    limits: cython.const[cython.double][:, ::1],
    offset: cython.double[:, ::1],
    window: cython.double,
    longest: cython.double,
    j: cython.Py_ssize_t,
) -> cython.double:
    """The next window above one that joint j does not keep that it does: geometric steps, then bisection."""
    broken: cython.double = window
    middle: cython.double
    kept: cython.bint = False
    while not kept and window < longest:
        broken = window
        window = window * GROWTH if window * GROWTH < longest else longest
        kept = _kept(knots, moments, step, tau, commanded, limits, offset, window, j)
    if not kept:
        return longest
    for _ in range(HALVINGS):
        middle = 0.5 * (broken + window)
        if _kept(knots, moments, step, tau, commanded, limits, offset, middle, j):
            window = middle
        else:
            broken = middle
    return window


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _kept(
    knots: cython.const[cython.double][:, ::1],
    moments: cython.const[cython.double][:, ::1],
    step: cython.double,
    tau: cython.double,
    commanded: cython.const[cython.double][:, ::1],
    limits: cython.const[cython.double][:, ::1],
    offset: cython.double[:, ::1],
    window: cython.double,
    j: cython.Py_ssize_t,
) -> cython.bint:
    """Whether joint j keeps its limits with this window."""
    last: cython.Py_ssize_t = knots.shape[0] - 1
    row: cython.Py_ssize_t = _segment(last + 1, step, tau)
    k: cython.Py_ssize_t
    begin: cython.double = 0.0
    end: cython.double = 0.0
    allowed: cython.double
    motion = cython.declare(cython.double[4])
    own = cython.declare(cython.double[3])
    both = cython.declare(cython.double[3])
    for k in range(3):  # what stays below the limits need not be known
        own[k] = both[k] = limits[k, j]
    _close(offset, window, j)
    while end < window:
        end = window if row >= last else (row + 1) * step - tau
        if end > window:
            end = window
        if end - begin > ROUNDING * step:  # a knot met to the last bit is no piece
            _motion(knots, moments, step, tau + begin, row, j, motion)
            _peaks(motion, offset, j, False, begin, end, own)
            _peaks(motion, offset, j, True, begin, end, both)
            begin = end
        row += 1
    for k in range(3):
        allowed = own[k]
        if k < 2 and fabs(commanded[k + 1, j]) > allowed:
            allowed = fabs(commanded[k + 1, j])
        if not both[k] <= allowed * (1.0 + ROUNDING):
            return False
    return True


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _peaks(
    motion: cython.p_double,
    offset: cython.double[:, ::1],
    j: cython.Py_ssize_t,
    seamed: cython.bint,
    begin: cython.double,
    end: cython.double,
    peaks: cython.p_double,
) -> cython.void:
    """Raise `peaks` to the largest |velocity|, |acceleration|, |jerk| of a piece beginning with `motion`."""
    k: cython.int
    v = cython.declare(cython.double[5])  # of the velocity, in powers of the time since the arrival
    cut = cython.declare(cython.double[4])
    v[0] = motion[0] + begin * (0.5 * motion[2] * begin - motion[1])
    v[1] = motion[1] - motion[2] * begin
    v[2] = 0.5 * motion[2]
    v[3] = v[4] = 0.0
    if seamed:
        for k in range(5):
            v[k] += (k + 1) * offset[j, k + 1]
    _split(v, begin, end, cut)
    for k in range(4):
        _raise(peaks, 0, _velocity(v, cut[k]))
        _raise(peaks, 1, _acceleration(v, cut[k]))
    for k in range(3):
        if _acceleration(v, cut[k]) * _acceleration(v, cut[k + 1]) < 0.0:
            _turn(v, cut[k], cut[k + 1], peaks)
    _raise(peaks, 2, 2.0 * v[2] + begin * (6.0 * v[3] + begin * 12.0 * v[4]))
    _raise(peaks, 2, 2.0 * v[2] + end * (6.0 * v[3] + end * 12.0 * v[4]))
    if begin * fabs(v[4]) * 4.0 < -v[3] * (1.0 if v[4] > 0.0 else -1.0) < end * fabs(v[4]) * 4.0:
        _raise(peaks, 2, 2.0 * v[2] - 0.75 * v[3] * v[3] / v[4])


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _split(v: cython.p_double, begin: cython.double, end: cython.double, cut: cython.p_double) -> cython.void:
    """begin, roots of the jerk (or begin again), end: between two cuts the acceleration is monotone."""
    root: cython.double
    swap: cython.double
    square: cython.double = v[3] * v[3] * 36.0 - 96.0 * v[4] * v[2]
    cut[0] = cut[1] = cut[2] = begin
    cut[3] = end
    if square <= 0.0:
        return
    root = -0.5 * (6.0 * v[3] + (sqrt(square) if v[3] >= 0.0 else -sqrt(square)))
    if v[4] != 0.0 and begin * 12.0 * fabs(v[4]) < (root if v[4] > 0.0 else -root) < end * 12.0 * fabs(v[4]):
        cut[1] = root / (12.0 * v[4])
    if root != 0.0 and begin * fabs(root) < 2.0 * (v[2] if root > 0.0 else -v[2]) < end * fabs(root):
        cut[2] = 2.0 * v[2] / root
    if cut[1] > cut[2]:
        swap = cut[1]
        cut[1] = cut[2]
        cut[2] = swap


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _turn(v: cython.p_double, low: cython.double, high: cython.double, peaks: cython.p_double) -> cython.void:
    """Raise the velocity's peak to its extremum between low and high, where the acceleration changes sign.

    Nothing to do where it cannot reach the peak. It is flat there: 14 halvings of a 0.1 s piece leave less
    than 1e-9 of the jerk's bound.
    """
    middle: cython.double = low
    slope: cython.double = _acceleration(v, low)
    rising: cython.bint = slope < 0.0
    if fabs(_velocity(v, low)) + fabs(slope) * (high - low) <= peaks[0]:
        return
    for _ in range(14):
        middle = 0.5 * (low + high)
        if (_acceleration(v, middle) < 0.0) == rising:
            low = middle
        else:
            high = middle
    _raise(peaks, 0, _velocity(v, middle))


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _velocity(v: cython.p_double, t: cython.double) -> cython.double:
    return v[0] + t * (v[1] + t * (v[2] + t * (v[3] + t * v[4])))


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _acceleration(v: cython.p_double, t: cython.double) -> cython.double:
    return v[1] + t * (2.0 * v[2] + t * (3.0 * v[3] + t * 4.0 * v[4]))


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _raise(peaks: cython.p_double, k: cython.int, value: cython.double) -> cython.void:
    value = fabs(value)
    if value > peaks[k]:
        peaks[k] = value


# --------------------------------------------------------------------------------------------- smoothing


def projection(window: int, order: int) -> np.ndarray:
    """Least-squares fit of a polynomial to `window` equidistant points, as a matrix from values to fitted
    values.

    Row i holds the Savitzky-Golay coefficients for point i of the window; the middle row filters the
    interior, the others the edges. Shape (window, window), float64. Built from orthonormal polynomials with +
    - * / sqrt alone, because LAPACK differs in the last bit from machine to machine. Source: Savitzky and
    Golay 1964; scipy.signal.savgol_filter(mode="interp") does the same at the edges.
    """
    points = [2.0 * i / max(window - 1, 1) - 1.0 for i in range(window)]
    basis: list = []
    for _ in range(order + 1):
        column = (
            [x * y for x, y in zip(points, basis[len(basis) - 1], strict=True)] if basis else [1.0] * window
        )
        for other in [*basis, *basis]:  # twice: once leaves 1e-10 at high orders
            along = sum(x * y for x, y in zip(column, other, strict=True))
            column = [x - along * y for x, y in zip(column, other, strict=True)]
        length = sqrt(sum(x * x for x in column))
        basis.append([x / length for x in column])
    return np.array([[sum(q[i] * q[k] for q in basis) for k in range(window)] for i in range(window)])


def phases(factor: int) -> np.ndarray:
    """Weights of y[i], y[i+1], M[i], M[i+1] for the spline at i + k/factor. Shape (factor, 4)."""
    rows = [(1.0 - k / factor, k / factor) for k in range(factor)]
    return np.array([(w, u, (w * w * w - w) / 6.0, (u * u * u - u) / 6.0) for w, u in rows])


def frozen(values: np.ndarray) -> np.ndarray:
    values = np.ascontiguousarray(values)
    values.flags.writeable = False
    return values


def whole(name: str, value: int, least: int) -> int:
    if value < least:
        raise ValueError(f"{name} is {value}, must be at least {least}")
    return value


def shaped(name: str, array: np.ndarray, shape: tuple) -> None:
    """Raise ValueError unless the array is float64, packed, and of this shape."""
    if array.shape != shape or array.dtype != np.float64 or not array.flags.c_contiguous:
        layout = "packed" if array.flags.c_contiguous else "strided"
        raise ValueError(f"{name} is {layout} {array.dtype} {array.shape}, must be packed float64 {shape}")


@cython.cclass
class SmoothPlan:
    """Smoothing and rollout of chunks of one shape: coefficients computed once, buffers owned.

    length, joints: of the chunk, Shape (H, J). factor: up-sampling by the natural cubic spline before the
    filter. window, order: of the Savitzky-Golay filter on the up-sampled points; the window is clipped to
    their number and kept odd, the order to below the window. decimate: take every factor-th point back
    (DreamZero's), else keep all. rate: points per knot of `rollout`. lower, upper: Shape (J,), bounds that
    the result may not leave because of smoothing, e.g. 0 and 1 for a gripper, default none: smoothed values
    are clipped to them.

    Resulting rows: `dense` of `resample`, `knots` of `smooth`, `points` of `rollout`. H = 1 passes through.
    One plan serves one thread at a time. Raises ValueError for a size below its least.
    """

    def __init__(
        self,
        length: int,
        joints: int,
        factor: int = 2,
        window: int = 9,
        order: int = 3,
        decimate: bool = True,
        rate: int = 1,
        lower: np.ndarray | None = None,
        upper: np.ndarray | None = None,
    ) -> None:
        self.length = whole("length", length, 1)
        self.joints = whole("joints", joints, 1)
        self.factor = whole("factor", factor, 1)
        self.rate = whole("rate", rate, 1)
        self.decimate = decimate
        self.dense = (self.length - 1) * self.factor + 1
        self.knots = self.length if decimate else self.dense
        self.points = (self.knots - 1) * self.rate + 1
        window = min(whole("window", window, 1), self.dense)
        self.window = window if window % 2 else window - 1
        self.order = min(whole("order", order, 0), self.window - 1)
        self._projection = frozen(projection(self.window, self.order))
        self._phases = frozen(phases(self.factor))
        self._rollout_phases = frozen(phases(self.rate))
        self._bounded = lower is not None or upper is not None
        low = np.full(joints, -INFINITY) if lower is None else np.array(lower, np.float64)
        high = np.full(joints, INFINITY) if upper is None else np.array(upper, np.float64)
        shaped("lower", low, (joints,))
        shaped("upper", high, (joints,))
        if not (low <= high).all():
            raise ValueError(f"lower is {low}, must not be above upper, {high}")
        self._lower = frozen(low)
        self._upper = frozen(high)
        self._moments = np.zeros((self.length, joints))
        self._dense_rows = np.zeros((self.dense, joints))
        self._knot_rows = np.zeros((self.knots, joints))
        self._knot_moments = np.zeros((self.knots, joints))
        self._start = np.zeros((3, joints))
        self._offset = np.zeros((joints, 6))

    def resample(self, chunk: np.ndarray, out: np.ndarray) -> None:
        """Natural cubic spline at `factor` times the rate. chunk: Shape (H, J); out: Shape (dense, J),
        written.

        Raises ValueError when a shape or type disagrees.
        """
        shaped("chunk", chunk, (self.length, self.joints))
        shaped("out", out, (self.dense, self.joints))
        self.resample_to(chunk, out)

    def savgol(self, rows: np.ndarray, out: np.ndarray) -> None:
        """Savitzky-Golay. rows: Shape (dense, J); out: Shape (knots, J), written; decimated where the plan
        says so.

        Raises ValueError when a shape or type disagrees.
        """
        shaped("rows", rows, (self.dense, self.joints))
        shaped("out", out, (self.knots, self.joints))
        self.savgol_to(rows, out)

    def smooth(self, chunk: np.ndarray, out: np.ndarray) -> None:
        """Resample, filter, decimate, clip. chunk: Shape (H, J); out: Shape (knots, J), written, both [rad].

        Raises ValueError when a shape or type disagrees.
        """
        shaped("chunk", chunk, (self.length, self.joints))
        shaped("out", out, (self.knots, self.joints))
        self.smooth_to(chunk, out)

    def rollout(
        self, chunk: np.ndarray, commanded: np.ndarray, step: float, window: float, out: np.ndarray
    ) -> None:
        """Smooth the chunk and play it at `rate` points a knot, blended in from the commanded motion.

        chunk: Shape (H, J); commanded: Shape (3, J), position, velocity, acceleration at knot 0; step:
        between smoothed knots, [s]; window: of the seam, [s], not above 0 for none; out: Shape (points, J),
        written, [rad]. Raises ValueError when a shape or type disagrees.
        """
        shaped("chunk", chunk, (self.length, self.joints))
        shaped("commanded", commanded, (3, self.joints))
        shaped("out", out, (self.points, self.joints))
        self.rollout_to(chunk, commanded, step, window, out)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def resample_to(
        self, chunk: cython.const[cython.double][:, ::1], out: cython.double[:, ::1]
    ) -> cython.void:
        spline(chunk, self._moments)
        _expand(chunk, self._moments, self._phases, out)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def savgol_to(self, rows: cython.const[cython.double][:, ::1], out: cython.double[:, ::1]) -> cython.void:
        _filter(rows, self._projection, self.factor if self.decimate else 1, out)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def smooth_to(
        self, chunk: cython.const[cython.double][:, ::1], out: cython.double[:, ::1]
    ) -> cython.void:
        if self.factor == 1:
            self.savgol_to(chunk, out)
        else:
            self.resample_to(chunk, self._dense_rows)
            self.savgol_to(self._dense_rows, out)
        if self._bounded:
            _clip(out, self._lower, self._upper)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def rollout_to(
        self,
        chunk: cython.const[cython.double][:, ::1],
        commanded: cython.const[cython.double][:, ::1],
        step: cython.double,
        window: cython.double,
        out: cython.double[:, ::1],
    ) -> cython.void:
        i: cython.Py_ssize_t
        j: cython.Py_ssize_t
        tick: cython.double = step / self.rate
        self.smooth_to(chunk, self._knot_rows)
        spline(self._knot_rows, self._knot_moments)
        _expand(self._knot_rows, self._knot_moments, self._rollout_phases, out)
        sample(self._knot_rows, self._knot_moments, step, 0.0, self._start)
        for i in range(3):
            for j in range(self.joints):
                self._start[i, j] = commanded[i, j] - self._start[i, j]
        blend(self._start, window, self._offset)
        i = 0
        while i < self.points and i * tick < window:
            for j in range(self.joints):
                out[i, j] += _position(self._offset, j, i * tick)
            i += 1
        if self._bounded:
            _clip(out, self._lower, self._upper)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _expand(
    knots: cython.const[cython.double][:, ::1],
    moments: cython.const[cython.double][:, ::1],
    weights: cython.const[cython.double][:, ::1],
    out: cython.double[:, ::1],
) -> cython.void:
    """The spline at every phase of every segment, and the last knot."""
    last: cython.Py_ssize_t = knots.shape[0] - 1
    joints: cython.Py_ssize_t = knots.shape[1]
    factor: cython.Py_ssize_t = weights.shape[0]
    i: cython.Py_ssize_t
    j: cython.Py_ssize_t
    k: cython.Py_ssize_t
    a: cython.double
    b: cython.double
    c: cython.double
    d: cython.double
    for i in range(last):
        for k in range(factor):
            a = weights[k, 0]
            b = weights[k, 1]
            c = weights[k, 2]
            d = weights[k, 3]
            for j in range(joints):
                out[i * factor + k, j] = (
                    a * knots[i, j] + b * knots[i + 1, j] + c * moments[i, j] + d * moments[i + 1, j]
                )
    for j in range(joints):
        out[last * factor, j] = knots[last, j]


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _filter(
    rows: cython.const[cython.double][:, ::1],
    fit: cython.const[cython.double][:, ::1],
    stride: cython.Py_ssize_t,
    out: cython.double[:, ::1],
) -> cython.void:
    """Every stride-th row of the polynomial fitted to the window around it, or to the first or last one."""
    count: cython.Py_ssize_t = rows.shape[0]
    window: cython.Py_ssize_t = fit.shape[0]
    half: cython.Py_ssize_t = window // 2
    first: cython.Py_ssize_t
    at: cython.Py_ssize_t
    i: cython.Py_ssize_t
    j: cython.Py_ssize_t
    k: cython.Py_ssize_t
    weight: cython.double
    for i in range(out.shape[0]):
        first = i * stride - half
        first = 0 if first < 0 else (count - window if first > count - window else first)
        at = i * stride - first
        for j in range(out.shape[1]):
            out[i, j] = 0.0
        for k in range(window):
            weight = fit[at, k]
            for j in range(out.shape[1]):
                out[i, j] += weight * rows[first + k, j]


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _clip(
    rows: cython.double[:, ::1],
    lower: cython.const[cython.double][::1],
    upper: cython.const[cython.double][::1],
) -> cython.void:
    """Clip to the bounds; a NaN stays one."""
    i: cython.Py_ssize_t
    j: cython.Py_ssize_t
    for i in range(rows.shape[0]):
        for j in range(rows.shape[1]):
            if rows[i, j] < lower[j]:
                rows[i, j] = lower[j]
            elif rows[i, j] > upper[j]:
                rows[i, j] = upper[j]
