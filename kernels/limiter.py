"""Jerk-limited online limiter: one tick of motion towards a target, each joint for itself.

The state is position, velocity, acceleration; the control is piecewise constant jerk over the time that really
passed. Two least-time motions do everything, both in closed form:

    halt        bring velocity and acceleration to zero. Where it ends is the *halting point*.
    go          bring the velocity to its limit, towards the target.

Under `halt` the halting point stands still; under `go` it moves towards the target and never back (with more
jerk it can only end farther on). So the least-time way to a target is: go until the halting point is the target,
then halt. Only the instant of that switch is searched for, inside one phase of one tick. A later tick starts on
the same trajectory and finds the same switch, so nothing depends on the tick rate and the end is exact rest.

A moving target is approached in its own frame, where the velocity bounds are asymmetric. While the target is a
trajectory within the limits, the tick meets its position and velocity exactly instead of lagging behind. Position
limits bound every motion through the halting point: no state is entered from which halting would leave them.

Only + - * / sqrt fabs, bounded work, nothing allocated, equal to the bit on every machine.
"""

from enum import IntFlag

import cython
from cython.cimports.libc.math import fabs, sqrt

MOVING = cython.declare(cython.int, 1)
CLAMPED = cython.declare(cython.int, 2)
RECOVERING = cython.declare(cython.int, 4)
INVALID = cython.declare(cython.int, 8)

Code = IntFlag(
    "Code", {"MOVING": MOVING, "CLAMPED": CLAMPED, "RECOVERING": RECOVERING, "INVALID": INVALID}
)
"""What `step` and `stop` return, or'ed over the joints; 0: reached exactly.

MOVING: on the way, not at the target of this tick. CLAMPED: a target position was outside [lower, upper].
RECOVERING: a joint was outside its limits, or could not stay inside them. INVALID: nothing was done.
"""

LARGEST = cython.declare(cython.double, 1e9)  # of any state or limit: squares and cubes keep their precision
ANY = cython.declare(cython.double, 1.7976931348623157e308)  # the greatest double: NaN and infinity are not below
SMALLEST = cython.declare(cython.double, 1e-6)  # of a velocity, acceleration or jerk limit
LONGEST = cython.declare(cython.double, 60.0)  # [s] of motion that one tick can make up for
GRAIN = cython.declare(cython.double, 1e-14)  # [rad] positions closer than this are the same, times 1 + |position|
SLACK = cython.declare(cython.double, 1e-10)  # relative: a state that sits on its limit does not break it
ROUNDS = cython.declare(cython.int, 60)  # of the search for the switch; 5 to 9 are usual
HALVINGS = cython.declare(cython.int, 24)  # of the search for how much of a wish keeps the position limits


# ------------------------------------------------------------------------------------------ least-time motions


@cython.cfunc
@cython.inline
@cython.nogil
@cython.exceptval(check=False)
def _profile(
    v: cython.double, a: cython.double, goal: cython.double, most: cython.double, jerk: cython.double
) -> tuple[cython.double, cython.double, cython.double, cython.double, cython.double, cython.double]:
    """Least-time change of velocity from (v, a) to (goal, 0) with |acceleration| <= most.

    Returns the jerk and the length of the first ramp, the acceleration and the length of the plateau, the jerk
    and the length of the last ramp. From |a| > most the first ramp returns to the plateau.
    """
    sign: cython.double = 1.0
    length: cython.double = 0.0
    if goal - v - 0.5 * a * fabs(a) / jerk < 0.0:
        sign = -1.0
    square: cython.double = jerk * sign * (goal - v) + 0.5 * a * a
    peak: cython.double = 0.0
    if square > 0.0:
        peak = sqrt(square)
    first: cython.double = sign * jerk
    if peak > most:
        peak = most
        if sign * a > most:
            first = -first
        length = sign * (goal - v) - 0.5 * (most * most + sign * (most * most - a * a) * (first / jerk)) / jerk
        length = length / most
        if length < 0.0:
            length = 0.0
    peak = sign * peak
    return first, fabs(peak - a) / jerk, peak, length, -sign * jerk, fabs(peak) / jerk


@cython.cfunc
@cython.inline
@cython.nogil
@cython.exceptval(check=False)
def _along(
    x: cython.double, v: cython.double, a: cython.double, jerk: cython.double, t: cython.double
) -> tuple[cython.double, cython.double, cython.double]:
    """Motion with constant jerk for t seconds."""
    return (
        x + t * (v + t * (0.5 * a + t * jerk * (1.0 / 6.0))),
        v + t * (a + 0.5 * t * jerk),
        a + t * jerk,
    )


@cython.cfunc
@cython.inline
@cython.nogil
@cython.exceptval(check=False)
def _halting_point(
    x: cython.double, v: cython.double, a: cython.double, most: cython.double, jerk: cython.double
) -> cython.double:
    """Where the least-time halt from (x, v, a) ends."""
    first, t1, peak, t2, _, t3 = _profile(v, a, 0.0, most, jerk)
    x, v, _ = _along(x, v, a, first, t1)
    # the last ramp, seen backwards from rest, covers -peak t3^2 / 6
    return x + t2 * (v + 0.5 * t2 * peak) - peak * t3 * t3 * (1.0 / 6.0)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _halt(
    x: cython.double, v: cython.double, a: cython.double, most: cython.double, jerk: cython.double,
    tick: cython.double,
) -> tuple[cython.double, cython.double, cython.double]:
    """Follow the least-time halt for one tick; velocity and acceleration are exactly 0 once it is over."""
    first, t1, peak, t2, last, t3 = _profile(v, a, 0.0, most, jerk)
    if tick < t1:
        return _along(x, v, a, first, tick)
    x, v, _ = _along(x, v, a, first, t1)
    if tick < t1 + t2:
        return _along(x, v, peak, 0.0, tick - t1)
    x = x + t2 * (v + 0.5 * t2 * peak)
    v = v + t2 * peak
    if tick * (1.0 + SLACK) < t1 + t2 + t3:
        return _along(x, v, peak, last, tick - t1 - t2)
    return x - peak * t3 * t3 * (1.0 / 6.0), 0.0, 0.0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _switch(
    x: cython.double, v: cython.double, a: cython.double, ramp: cython.double, length: cython.double,
    sign: cython.double, most: cython.double, jerk: cython.double, grain: cython.double,
) -> cython.double:
    """How long to keep the jerk `ramp`, at most `length`, so that halting then ends at 0, not beyond.

    The halting point, times sign, is <= 0 at the start, > 0 after `length`, and never moves back in between.
    Regula falsi with the Illinois weights, and a bisection after every round that has not halved the bracket.
    """
    low: cython.double = 0.0
    high: cython.double = length
    before: cython.double = sign * _halting_point(x, v, a, most, jerk)
    moved: tuple[cython.double, cython.double, cython.double] = _along(x, v, a, ramp, length)
    after: cython.double = sign * _halting_point(moved[0], moved[1], moved[2], most, jerk)
    weight_low: cython.double = before
    weight_high: cython.double = after
    side: cython.int = 0
    goal: cython.double = length
    middle: cython.double
    found: cython.double
    for _ in range(ROUNDS):
        if before >= -grain:
            break
        middle = low + (high - low) * (weight_low / (weight_low - weight_high))
        if high - low > goal or not low < middle < high:
            middle = 0.5 * (low + high)
            if not low < middle < high:
                break
        goal = 0.5 * (high - low)
        moved = _along(x, v, a, ramp, middle)
        found = sign * _halting_point(moved[0], moved[1], moved[2], most, jerk)
        if found > 0.0:
            high = middle
            weight_high = found
            if side == 1:
                weight_low = 0.5 * weight_low
            side = 1
        else:
            low = middle
            before = found
            weight_low = found
            if side == -1:
                weight_high = 0.5 * weight_high
            side = -1
    return low


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _approach(
    x: cython.double, v: cython.double, a: cython.double, slowest: cython.double, fastest: cython.double,
    most: cython.double, jerk: cython.double, tick: cython.double, grain: cython.double,
) -> tuple[cython.double, cython.double, cython.double]:
    """One tick of the least-time motion to rest at 0, with velocity in [slowest, fastest], slowest <= 0 <= fastest."""
    left: cython.double = tick
    rest: cython.double = _halting_point(x, v, a, most, jerk)
    if fabs(rest) > grain:
        sign: cython.double = 1.0
        goal: cython.double = fastest
        if rest > 0.0:
            sign = -1.0
            goal = slowest
        first, t1, peak, t2, last, t3 = _profile(v, a, goal, most, jerk)
        phase: cython.int
        ramp: cython.double
        length: cython.double
        for phase in range(4):
            if phase == 0:
                ramp, length = first, t1
            elif phase == 1:
                ramp, length, a = 0.0, t2, peak
            elif phase == 2:
                ramp, length, a = last, t3, peak
            else:
                ramp, length, v, a = 0.0, left, goal, 0.0
            if length > left:
                length = left
            moved: tuple[cython.double, cython.double, cython.double] = _along(x, v, a, ramp, length)
            if sign * _halting_point(moved[0], moved[1], moved[2], most, jerk) > 0.0:
                length = _switch(x, v, a, ramp, length, sign, most, jerk, 0.5 * grain)
                x, v, a = _along(x, v, a, ramp, length)
                left = left - length
                break
            x, v, a = moved
            left = left - length
            if left <= 0.0:
                return x, v, a
    x, v, a = _halt(x, v, a, most, jerk, left)
    if v == 0.0 and a == 0.0 and fabs(x) <= grain:
        x = 0.0
    return x, v, a


# ------------------------------------------------------------------------------------------------ one joint


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _holds(
    x: cython.double, v: cython.double, a: cython.double, most: cython.double, jerk: cython.double,
    lower: cython.double, upper: cython.double,
) -> cython.bint:
    """Whether halting from (x, v, a) stays within [lower, upper] all the way."""
    rest: cython.double = _halting_point(x, v, a, most, jerk)
    t: cython.double
    if not (lower <= x <= upper and lower <= rest <= upper):
        return False
    if v * a < 0.0 and a * a > 2.0 * jerk * fabs(v):
        # the halt turns around: its extreme is where the velocity crosses zero, still on the first ramp
        t = 2.0 * fabs(v) / (fabs(a) + sqrt(a * a - 2.0 * jerk * fabs(v)))
        x = x + t * (v + t * (0.5 * a - t * jerk * (a / fabs(a)) * (1.0 / 6.0)))
        return lower <= x <= upper
    return True


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _least_jerk(m: cython.double, n: cython.double) -> tuple[cython.double, cython.double]:
    """The motion of least jerk that meets both velocity and position: j, then -j for the share u of the tick.

    m and n are the constant jerks that would meet the velocity, and the position: j (1 - 2 u^2) = m and
    j (1 - 2 u^3) = n, so 2 m u^3 - 2 n u^2 + n - m = 0, which changes sign exactly once on [0, 1].
    """
    low: cython.double = 0.0
    high: cython.double = 1.0
    u: cython.double = 0.5
    f: cython.double
    slope: cython.double
    for _ in range(ROUNDS):
        f = 2.0 * u * u * (m * u - n) + (n - m)
        if (f > 0.0) == (n > m):
            low = u
        else:
            high = u
        slope = u * (6.0 * m * u - 4.0 * n)
        f = u - f / slope if slope != 0.0 else low
        if not low < f < high:
            f = 0.5 * (low + high)
        if fabs(f - u) <= 1e-15:
            break
        u = f
    f = 1.0 - 2.0 * u * u
    slope = 1.0 - 2.0 * u * u * u
    return m / f if fabs(f) > fabs(slope) else n / slope, u


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _end(
    a: cython.double, m: cython.double, n: cython.double, bend: cython.double, most: cython.double,
    jerk: cython.double, tick: cython.double, allowed: cython.double,
) -> tuple[cython.double, cython.bint]:
    """The acceleration after a tick that meets velocity and position, as near to `bend` as the limits allow.

    m and n as in `_least_jerk`. Tried in turn: three equal ramps; two ramps with the switch where a trajectory of
    piecewise constant jerk has it; the motion of least jerk, mixed with the first as far as the limits allow.
    False when even the least jerk is too much.
    """
    mean: cython.double = (bend - a) / tick
    j1: cython.double = 4.5 * (n - m) + mean
    j2: cython.double = 13.5 * m - 9.0 * n - 3.5 * mean
    j3: cython.double = 4.5 * n - 9.0 * m + 5.5 * mean
    steep: cython.double = max(fabs(j1), fabs(j2), fabs(j3))
    high: cython.double = max(
        fabs(a + j1 * tick * (1.0 / 3.0)), fabs(bend - j3 * tick * (1.0 / 3.0)), fabs(bend)
    )
    near: cython.double = min(max(bend, a - jerk * tick, -most), a + jerk * tick, most)
    if steep <= allowed and high <= most * (1.0 + SLACK):
        return near, True
    u: cython.double = (n - m) / (m - mean) if m != mean else 0.0
    if 0.0 < u < 1.0 and fabs(bend) <= most * (1.0 + SLACK):
        j2 = (m - mean) / (u * (u - 1.0))
        j1 = mean - j2 * u
        knee: cython.double = fabs(a + j1 * tick * (1.0 - u))
        if fabs(j1) <= allowed and fabs(j1 + j2) <= allowed and knee <= most * (1.0 + SLACK):
            return near, True
    least, u = _least_jerk(m, n)
    if not fabs(least) <= allowed:
        return a, False
    least = min(max(least, -jerk), jerk)
    gentle: cython.double = a + least * tick * (1.0 - 2.0 * u)
    calm: cython.double = max(fabs(a + least * tick * (1.0 - u)), fabs(gentle))
    if calm > most * (1.0 + SLACK):
        return a, False
    share: cython.double = 1.0
    if steep > jerk:
        share = (jerk - fabs(least)) / (steep - fabs(least))
    if high > most:
        share = min(share, (most - calm) / (high - calm) if high > calm else 0.0)
    return min(max(gentle + max(share, 0.0) * (bend - gentle), -most), most), True


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _meet(
    x: cython.double, v: cython.double, a: cython.double, target: cython.double, speed: cython.double,
    bend: cython.double, known: cython.bint, fastest: cython.double, most: cython.double, jerk: cython.double,
    lower: cython.double, upper: cython.double, tick: cython.double, grain: cython.double,
) -> tuple[cython.bint, cython.double]:
    """Whether to be at `target` with velocity `speed` after this tick, and with which acceleration.

    `bend` is the target's acceleration; where it is not known, that of the cubic through both ends. False when the
    limits do not allow it, or when halting from there would pass them.
    """
    m: cython.double = 2.0 * (speed - v - a * tick) / (tick * tick)
    n: cython.double = 6.0 * (target - x - tick * (v + 0.5 * a * tick)) / (tick * tick * tick)
    # positions are multiples of a grain, which looks like jerk when the tick is short
    allowed: cython.double = jerk * (1.0 + SLACK) + grain / (tick * tick * tick)
    limit: cython.double = fastest * (1.0 + SLACK)
    if not (fabs(m) <= allowed and fabs(n) <= allowed and fabs(target - x) <= limit * tick + grain):
        return False, 0.0
    end, met = _end(a, m, n, bend if known else a + (2.0 * m - n) * tick, most, jerk, tick, allowed)
    if (
        met
        and fabs(speed + 0.5 * end * fabs(end) / jerk) <= limit
        and _holds(target, speed, end, most, jerk, lower, upper)
    ):
        return True, end
    return False, 0.0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _joint(
    x: cython.double, v: cython.double, a: cython.double, target: cython.double, speed: cython.double,
    bend: cython.double, known: cython.bint, fastest: cython.double, most: cython.double, jerk: cython.double,
    lower: cython.double, upper: cython.double, tick: cython.double,
) -> tuple[cython.double, cython.double, cython.double, cython.int]:
    """One tick of one joint: the new position, velocity, acceleration and its code."""
    code: cython.int = 0
    if target < lower or target > upper:
        code = CLAMPED
        target = lower if target < lower else upper
        speed = bend = 0.0
    speed = min(max(speed, -fastest), fastest)
    grain: cython.double = GRAIN * (1.0 + fabs(target) + fabs(x))
    slack: cython.double = 100.0 * grain
    limit: cython.double = fastest * (1.0 + SLACK)
    inside: cython.bint = fabs(v) <= limit and fabs(a) <= most * (1.0 + SLACK)
    inside = inside and fabs(v + 0.5 * a * fabs(a) / jerk) <= limit
    inside = inside and _holds(x, v, a, most, jerk, lower - slack, upper + slack)
    if not inside:
        code = code | RECOVERING
        speed = bend = 0.0
    if fabs(v) > limit:
        x, v, a = _halt(x, v, a, most, jerk, tick)
        return x, v, a, code | MOVING

    # a target at rest is approached, so as to stay there
    if speed != 0.0 or (known and bend != 0.0):
        met, end = _meet(
            x, v, a, target, speed, bend, known, fastest, most, jerk, lower, upper, tick, grain
        )
        if met:
            return target, speed, end, code
    state: tuple[cython.double, cython.double, cython.double] = (x, v, a)
    x, v, a = _approach(
        x - target + speed * tick, v - speed, a, -fastest - speed, fastest - speed, most, jerk, tick, grain
    )
    if x == 0.0 and v == 0.0 and a == 0.0:
        x, v = target, speed
    else:
        x, v = target + x, speed + v
        code = code | MOVING
    if speed != 0.0 and not _holds(x, v, a, most, jerk, lower, upper):
        x, v, a = _nearest(state, (x, v, a), most, jerk, lower, upper, tick)
        code = code | MOVING
    if inside and lower <= state[0] <= upper:
        x = min(max(x, lower), upper)
    return x, v, a, code


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _nearest(
    state: tuple[cython.double, cython.double, cython.double],
    wish: tuple[cython.double, cython.double, cython.double],
    most: cython.double, jerk: cython.double, lower: cython.double, upper: cython.double, tick: cython.double,
) -> tuple[cython.double, cython.double, cython.double]:
    """The state after this tick, between halting and the wish, nearest to the wish that keeps [lower, upper].

    Both motions keep the limits of velocity, acceleration and jerk, so every mixture of them does.
    """
    halt: tuple[cython.double, cython.double, cython.double] = _halt(
        state[0], state[1], state[2], most, jerk, tick
    )
    low: cython.double = 0.0
    high: cython.double = 1.0
    share: cython.double
    for _ in range(HALVINGS):
        share = 0.5 * (low + high)
        if _holds(
            halt[0] + share * (wish[0] - halt[0]), halt[1] + share * (wish[1] - halt[1]),
            halt[2] + share * (wish[2] - halt[2]), most, jerk, lower, upper,
        ):
            low = share
        else:
            high = share
    return (
        halt[0] + low * (wish[0] - halt[0]),
        halt[1] + low * (wish[1] - halt[1]),
        halt[2] + low * (wish[2] - halt[2]),
    )


# ---------------------------------------------------------------------------------------------- all joints


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _valid(
    state: cython.double[:, ::1], limits: cython.const[cython.double][:, ::1], elapsed: cython.double
) -> cython.bint:
    """Shapes that agree, numbers that are numbers, limits that can be kept."""
    joints: cython.Py_ssize_t = state.shape[1]
    i: cython.Py_ssize_t
    j: cython.Py_ssize_t
    if state.shape[0] != 3 or limits.shape[0] != 5 or limits.shape[1] != joints:
        return False
    if not 0.0 < elapsed < LARGEST:
        return False
    for j in range(joints):
        for i in range(3):
            if not fabs(state[i, j]) <= LARGEST or not SMALLEST <= limits[i, j] <= LARGEST:
                return False
        if not (fabs(limits[3, j]) <= LARGEST and fabs(limits[4, j]) <= LARGEST and limits[3, j] <= limits[4, j]):
            return False
    return True


@cython.ccall
@cython.nogil
@cython.exceptval(check=False)
def step(
    state: cython.double[:, ::1], target: cython.const[cython.double][::1],
    target_velocity: cython.const[cython.double][::1], limits: cython.const[cython.double][:, ::1],
    elapsed: cython.double,
) -> cython.int:
    """Move `state` by one tick towards a target that is at `target` with `target_velocity` when the tick ends.

    state: Shape (3, J), rows position [rad], velocity [rad/s], acceleration [rad/s^2]; changed in place.
    target: Shape (J,), [rad]. target_velocity: Shape (J,), [rad/s]; 0 where the target is to be stopped at.
    limits: Shape (5, J), rows velocity, acceleration, jerk (1e-6 to 1e9), lower, upper (within 1e9).
    elapsed: [s] since the last step, > 0; more than 60 s count as 60.

    Returns bits of `Code`. From within the limits velocity, acceleration and jerk stay within them for any target
    and any elapsed time, and no position limit is passed. With INVALID the state is untouched. Where the target's
    acceleration is known, use `track`: this has to guess it, and loses a trajectory near its limits more easily.
    """
    i: cython.Py_ssize_t
    code: cython.int = 0
    bits: cython.int
    joints: cython.Py_ssize_t = state.shape[1]
    if target.shape[0] != joints or target_velocity.shape[0] != joints or not _valid(state, limits, elapsed):
        return INVALID
    for i in range(joints):
        if not (fabs(target[i]) <= ANY and fabs(target_velocity[i]) <= ANY):
            return INVALID
    for i in range(joints):
        state[0, i], state[1, i], state[2, i], bits = _joint(
            state[0, i], state[1, i], state[2, i], target[i], target_velocity[i], 0.0, False, limits[0, i],
            limits[1, i], limits[2, i], limits[3, i], limits[4, i], min(elapsed, LONGEST),
        )
        code = code | bits
    return code


@cython.ccall
@cython.nogil
@cython.exceptval(check=False)
def track(
    state: cython.double[:, ::1], target: cython.const[cython.double][:, ::1],
    limits: cython.const[cython.double][:, ::1], elapsed: cython.double,
) -> cython.int:
    """`step` towards a trajectory: target, Shape (3, J), has the rows of the state, for the end of the tick.

    A trajectory of piecewise constant jerk (a cubic spline) within the limits is followed exactly, whatever the
    ticks, as long as its knots are no closer than they.
    """
    i: cython.Py_ssize_t
    row: cython.Py_ssize_t
    code: cython.int = 0
    bits: cython.int
    joints: cython.Py_ssize_t = state.shape[1]
    if target.shape[0] != 3 or target.shape[1] != joints or not _valid(state, limits, elapsed):
        return INVALID
    for row in range(3):
        for i in range(joints):
            if not fabs(target[row, i]) <= ANY:
                return INVALID
    for i in range(joints):
        state[0, i], state[1, i], state[2, i], bits = _joint(
            state[0, i], state[1, i], state[2, i], target[0, i], target[1, i], target[2, i], True, limits[0, i],
            limits[1, i], limits[2, i], limits[3, i], limits[4, i], min(elapsed, LONGEST),
        )
        code = code | bits
    return code


@cython.ccall
@cython.nogil
@cython.exceptval(check=False)
def stop(
    state: cython.double[:, ::1], limits: cython.const[cython.double][:, ::1], elapsed: cython.double
) -> cython.int:
    """Brake `state` to rest in the least time that acceleration and jerk limits allow; arguments as in `step`.

    Returns 0 once every joint is at rest, else bits of `Code`; RECOVERING: a velocity or an acceleration was outside.
    """
    i: cython.Py_ssize_t
    code: cython.int = 0
    if not _valid(state, limits, elapsed):
        return INVALID
    for i in range(state.shape[1]):
        if fabs(state[1, i]) > limits[0, i] * (1.0 + SLACK) or fabs(state[2, i]) > limits[1, i] * (1.0 + SLACK):
            code = code | RECOVERING
        state[0, i], state[1, i], state[2, i] = _halt(
            state[0, i], state[1, i], state[2, i], limits[1, i], limits[2, i], min(elapsed, LONGEST)
        )
        if state[1, i] != 0.0 or state[2, i] != 0.0:
            code = code | MOVING
    return code


@cython.ccall
@cython.nogil
@cython.exceptval(check=False)
def run(
    state: cython.double[:, ::1], targets: cython.const[cython.double][:, :, ::1],
    limits: cython.const[cython.double][:, ::1], elapsed: cython.const[cython.double][::1],
    out: cython.double[:, :, ::1], codes: cython.int[::1],
) -> cython.int:
    """A whole sequence of targets, for replays.

    targets: Shape (N, 2, J), position and velocity, as `step` takes them, or (N, 3, J), as `track` does.
    elapsed: Shape (N,), [s]; out: Shape (N, 3, J), the state after each tick; codes: Shape (N,), the code of each.
    Returns all codes or'ed; INVALID alone when shapes disagree.
    """
    k: cython.Py_ssize_t
    i: cython.Py_ssize_t
    j: cython.Py_ssize_t
    ticks: cython.Py_ssize_t = elapsed.shape[0]
    joints: cython.Py_ssize_t = state.shape[1]
    seen: cython.int = 0
    if (
        state.shape[0] != 3 or targets.shape[0] != ticks or not 2 <= targets.shape[1] <= 3
        or targets.shape[2] != joints or codes.shape[0] != ticks
        or out.shape[0] != ticks or out.shape[1] != 3 or out.shape[2] != joints
    ):
        return INVALID
    for k in range(ticks):
        if targets.shape[1] == 3:
            codes[k] = track(state, targets[k], limits, elapsed[k])
        else:
            codes[k] = step(state, targets[k, 0], targets[k, 1], limits, elapsed[k])
        seen = seen | codes[k]
        for i in range(3):
            for j in range(joints):
                out[k, i, j] = state[i, j]
    return seen
