"""Limiter and gate again, in plain NumPy: written independently and for clarity, to be tested against.

Same names, same arguments, same meaning as in `limiter` and `gate`; slow, and never used on a robot. The limiter
plans the whole motion by bisection and cuts off one tick; the gate keeps its whole history and judges from that.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

# ------------------------------------------------------------------------------------------------ limiter

MOVING, CLAMPED, RECOVERING, INVALID = 1, 2, 4, 8
GRAIN, SLACK = 1e-14, 1e-10
Ramps = list[tuple[float, float]]
Motion = tuple[float, float, float]


def change(v: float, a: float, goal: float, most: float, jerk: float) -> Ramps:
    """(jerk, seconds) of the least-time change of velocity to (goal, 0), by bisection on the peak acceleration."""

    def gained(peak: float) -> float:
        return (0.5 * (a + peak) * abs(peak - a) + 0.5 * peak * abs(peak)) / jerk

    low, high, plateau = -most, most, 0.0
    if gained(most) <= goal - v:
        peak, plateau = most, (goal - v - gained(most)) / most
    elif gained(-most) >= goal - v:
        peak, plateau = -most, (gained(-most) - goal + v) / most
    else:
        for _ in range(55):
            peak = 0.5 * (low + high)
            low, high = (peak, high) if gained(peak) < goal - v else (low, peak)
    return [(jerk * np.sign(peak - a), abs(peak - a) / jerk), (0.0, plateau), (-jerk * np.sign(peak), abs(peak) / jerk)]


def move(x: float, v: float, a: float, ramps: Ramps, t: float) -> Motion:
    for j, length in ramps:
        dt = min(length, t)
        x, v, a = x + v * dt + a * dt**2 / 2 + j * dt**3 / 6, v + a * dt + j * dt**2 / 2, a + j * dt
        t -= dt
    return x + v * t, v, a


def duration(ramps: Ramps) -> float:
    return float(sum(length for _, length in ramps))


def halting(x: float, v: float, a: float, most: float, jerk: float) -> float:
    ramps = change(v, a, 0.0, most, jerk)
    return move(x, v, a, ramps, duration(ramps))[0]


def holds(x: float, v: float, a: float, limits: Array) -> bool:
    """Whether every turning point of the halt, its start and its end lie within the position limits."""
    _, most, jerk, lower, upper = limits
    places = [x]
    for j, length in change(v, a, 0.0, most, jerk):
        turns = [root.real for root in np.roots([j / 2, a, v]) if np.isreal(root) and 0 < root.real < length]
        places.extend(move(x, v, a, [(j, t)], t)[0] for t in turns)
        x, v, a = move(x, v, a, [(j, length)], length)
        places.append(x)
    return bool(lower <= min(places) and max(places) <= upper)


def approach(x: float, v: float, a: float, speeds: tuple[float, float], limits: Array, tick: float) -> Motion:
    """The least-time motion to rest at 0, cut off after one tick: all of it is planned, by bisection on the switch."""
    _, most, jerk, _, _ = limits
    rest = halting(x, v, a, most, jerk)
    side = 1.0 if rest < 0 else -1.0
    goal = speeds[1] if rest < 0 else speeds[0]
    go = change(v, a, goal, most, jerk)
    short = -side * halting(*move(x, v, a, go, duration(go)), most, jerk)
    go.append((0.0, short / abs(goal) if short > 0 and goal != 0 else 0.0))
    low, high = 0.0, duration(go)
    for _ in range(60):
        middle = 0.5 * (low + high)
        beyond = side * halting(*move(x, v, a, go, middle), most, jerk) > 0
        low, high = (low, middle) if beyond else (middle, high)
    if tick <= low:
        return move(x, v, a, go, tick)
    x, v, a = move(x, v, a, go, low)
    brake = change(v, a, 0.0, most, jerk)
    x, v, a = move(x, v, a, brake, tick - low)
    if duration(brake) <= (tick - low) * (1 + SLACK):
        return (0.0 if goal != 0 and abs(x) < 1e-11 else x), 0.0, 0.0
    return x, v, a


def end_acceleration(a: float, m: float, n: float, bend: float, limits: Array, tick: float, allowed: float) -> float:
    """See `limiter._end`; NaN: out of reach. Rows of the systems: mean jerk, and its first two moments."""
    _, most, jerk, _, _ = limits
    mean = (bend - a) / tick
    y = np.linspace(1, 0, 4)
    ramps = np.linalg.solve([-np.diff(y), -np.diff(y**2), -np.diff(y**3)], [mean, m, n])
    steep = np.abs(ramps).max()
    high = np.abs([a + ramps[0] * tick / 3, bend - ramps[2] * tick / 3, bend]).max()
    near = float(np.clip(np.clip(bend, a - jerk * tick, a + jerk * tick), -most, most))
    if steep <= allowed and high <= most * (1 + SLACK):
        return near
    u = (n - m) / (m - mean) if m != mean else 0.0
    if 0 < u < 1 and abs(bend) <= most * (1 + SLACK):
        first, second = np.linalg.solve([[1 - u, u], [1 - u**2, u**2]], [mean, m])
        if max(abs(first), abs(second)) <= allowed and abs(a + first * tick * (1 - u)) <= most * (1 + SLACK):
            return near
    roots = [r.real for r in np.roots([2 * m, -2 * n, 0, n - m]) if abs(r.imag) < 1e-6 and -1e-9 < r.real < 1 + 1e-9]
    u = min(roots, key=lambda r: abs(r - 0.5)) if roots else 0.0
    weights = np.array([1 - 2 * u**2, 1 - 2 * u**3])
    least = float(weights @ [m, n] / (weights @ weights))
    gentle = a + least * tick * (1 - 2 * u)
    calm = max(abs(a + least * tick * (1 - u)), abs(gentle))
    if abs(least) > allowed or calm > most * (1 + SLACK):
        return np.nan
    share = 1.0 if steep <= jerk else max((jerk - abs(least)) / (steep - abs(least)), 0.0)
    share = share if high <= most else min(share, max(most - calm, 0.0) / max(high - calm, 1e-300))
    return float(np.clip(gentle + share * (bend - gentle), -most, most))


def meet(state: Motion, goal: Motion, known: bool, limits: Array, tick: float, grain: float) -> float:
    """The acceleration after a tick that ends at the goal's position and velocity; NaN: out of reach."""
    (x, v, a), (target, speed, bend) = state, goal
    limit = limits[0] * (1 + SLACK)
    m = 2 * (speed - v - a * tick) / tick**2
    n = 6 * (target - x - v * tick - a * tick**2 / 2) / tick**3
    allowed = limits[2] * (1 + SLACK) + grain / tick**3
    if max(abs(m), abs(n)) > allowed or abs(target - x) > limit * tick + grain:
        return np.nan
    end = end_acceleration(a, m, n, bend if known else a + (2 * m - n) * tick, limits, tick, allowed)
    viable = abs(speed + end * abs(end) / (2 * limits[2])) <= limit
    return end if viable and holds(target, speed, end, limits) else np.nan


def mixture(one: Motion, other: Motion, share: float) -> Motion:
    x, v, a = (p + share * (q - p) for p, q in zip(one, other, strict=True))
    return x, v, a


def one_joint(state: Motion, goal: Motion, known: bool, limits: Array, tick: float) -> tuple[Motion, int]:
    (x, v, a), (target, speed, bend) = state, goal
    fastest, most, jerk, lower, upper = limits
    code = 0
    if not lower <= target <= upper:
        code, target, speed, bend = CLAMPED, float(np.clip(target, lower, upper)), 0.0, 0.0
    speed = float(np.clip(speed, -fastest, fastest))
    grain = GRAIN * (1 + abs(target) + abs(x))
    wider = limits + np.array([0, 0, 0, -1, 1]) * 100 * grain
    peak = max(abs(v), abs(v + a * abs(a) / (2 * jerk)))
    inside = peak <= fastest * (1 + SLACK) and abs(a) <= most * (1 + SLACK) and holds(x, v, a, wider)
    if not inside:
        code, speed, bend = code | RECOVERING, 0.0, 0.0
    if abs(v) > fastest * (1 + SLACK):
        brake = change(v, a, 0.0, most, jerk)
        return move(x, v, a, brake, tick), code | MOVING
    if speed != 0 or (known and bend != 0):
        end = meet(state, (target, speed, bend), known, limits, tick, grain)
        if end == end:
            return (target, speed, end), code
    e, w, b = approach(
        x - target + speed * tick, v - speed, a, (-fastest - speed, fastest - speed), limits, tick
    )
    wish = (target + e, speed + w, b)
    code |= MOVING if e != 0 or w != 0 or b != 0 else 0
    if speed != 0 and not holds(*wish, limits):
        code |= MOVING
        halt = move(x, v, a, change(v, a, 0.0, most, jerk), tick)
        low, high = 0.0, 1.0
        for _ in range(24):
            share = 0.5 * (low + high)
            low, high = (share, high) if holds(*mixture(halt, wish, share), limits) else (low, share)
        wish = mixture(halt, wish, low)
    if inside and lower <= x <= upper:
        wish = (float(np.clip(wish[0], lower, upper)), wish[1], wish[2])
    return wish, code


def valid(state: Array, limits: Array, elapsed: float, *targets: Array) -> bool:
    shapes = state.shape[0] == 3 and limits.shape == (5, state.shape[1])
    shapes = shapes and all(target.shape[-1] == state.shape[1] for target in targets)
    if not shapes or not all(np.isfinite(table).all() for table in (state, limits, *targets)):
        return False
    return bool(
        0 < elapsed < 1e9 and np.abs(state).max() <= 1e9 and np.abs(limits).max() <= 1e9
        and limits[:3].min() >= 1e-6 and (limits[3] <= limits[4]).all()
    )


def step(state: Array, target: Array, target_velocity: Array, limits: Array, elapsed: float) -> int:
    if not valid(state, limits, elapsed, target, target_velocity):
        return INVALID
    goals = np.stack([target, target_velocity, np.zeros(len(target))])
    return _each(state, goals, False, limits, elapsed)


def track(state: Array, target: Array, limits: Array, elapsed: float) -> int:
    if target.shape[0] != 3 or not valid(state, limits, elapsed, target):
        return INVALID
    return _each(state, target, True, limits, elapsed)


def _each(state: Array, goals: Array, known: bool, limits: Array, elapsed: float) -> int:
    codes = 0
    for i in range(state.shape[1]):
        (x, v, a), goal = state[:, i], goals[:, i]
        state[:, i], code = one_joint((x, v, a), (goal[0], goal[1], goal[2]), known, limits[:, i], min(elapsed, 60.0))
        codes |= code
    return codes


def stop(state: Array, limits: Array, elapsed: float) -> int:
    if not valid(state, limits, elapsed):
        return INVALID
    codes = 0
    for i, (fastest, most, jerk, _, _) in enumerate(limits.T):
        x, v, a = state[:, i]
        codes |= RECOVERING if abs(v) > fastest * (1 + SLACK) or abs(a) > most * (1 + SLACK) else 0
        brake = change(v, a, 0.0, most, jerk)
        state[:, i] = move(x, v, a, brake, min(elapsed, 60.0))
        if duration(brake) <= elapsed * (1 + SLACK):
            state[1:, i] = 0.0
        else:
            codes |= MOVING
    return codes


# --------------------------------------------------------------------------------------------------- gate


@dataclass
class History:
    """What the gate remembers: accepted positions with the time each took, newest last."""

    positions: list[Array] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    bad: list[float] = field(default_factory=list)  # how long each joint has been following badly; < 0: it is not
    joint: int = -1


def memory(joints: int) -> History:
    return History()


def rules(
    observation_age: float, command_age: float, measured_age: float, following_time: float = 0.1,
    following_gain: float = 0.15, window: float = 0.25, margin: float = 1.05, burst: int = 0,
) -> Array:
    return np.array(
        [observation_age, command_age, measured_age, following_time, following_gain, window, margin, burst]
    )


def arm(memory: History, position: Array) -> int:
    memory.positions.clear()
    memory.times.clear()
    memory.joint = -1
    if not (np.abs(position) <= 1e9).all():
        memory.joint = int(np.argmin(np.abs(position) <= 1e9))
        return 1
    memory.positions.append(position.copy())
    memory.bad = [-1.0] * len(position)
    return 0


def offender(memory: History) -> int:
    return memory.joint


def check(
    command: Array, measured: Array, ages: Array, elapsed: float, bounds: Array, rules: Array, memory: History
) -> int:
    """First failing check: its code is its place in `gate.Code`."""
    memory.joint = -1
    if not memory.positions or command.shape != memory.positions[0].shape or measured.shape != command.shape:
        return 2
    tables = np.vstack([command, measured, bounds])
    if not (np.abs(tables) <= 1e9).all():
        memory.joint = int(np.argmin((np.abs(tables) <= 1e9).all(axis=0)))
        return 1
    if not ((rules >= 0) & (rules <= 1e9)).all():
        return 1
    if not 0 < elapsed <= 1e9:
        return 3
    for code, age, oldest in zip((4, 5, 6), ages, rules, strict=False):
        if not 0 <= age <= oldest:
            return code
    velocity, acceleration, jerk, lower, upper, following = bounds
    following_time, gain, window, margin, burst = rules[3:]
    moved = np.abs(command - memory.positions[-1])
    far = np.abs(command - measured) > following + gain * (moved / elapsed)
    bad = [(b + elapsed if b >= 0 else 0.0) if f else -1.0 for b, f in zip(memory.bad, far, strict=True)]
    times = [*memory.times, elapsed]
    path = [*memory.positions, command]
    travel, count = _travel(path, times, window)
    a, j = _differences(path, times)
    checks = [
        (7, (command < lower) | (command > upper)),
        (8, np.array(bad) > following_time),
        (9, moved > margin * velocity * elapsed),
        (11, np.array((burst > 0 and count > burst) or count > 256)),
        (10, travel > margin * velocity * window * (1 + 1e-9)),
        (12, (acceleration != 0) & (np.abs(a) > margin * acceleration)),
        (13, (jerk != 0) & (np.abs(j) > margin * jerk)),
    ]
    # acceleration and jerk are checked joint by joint
    for code, wrong in checks[:5]:
        if wrong.any():
            memory.joint = int(np.argmax(wrong)) if wrong.ndim else -1
            return code
    for i in range(len(command)):
        for code, wrong in checks[5:]:
            if wrong[i]:
                memory.joint = i
                return code
    memory.positions.append(command.copy())
    memory.times.append(elapsed)
    memory.bad = bad
    return 0


def _travel(path: list[Array], times: list[float], window: float) -> tuple[Array, int]:
    """Distance within the window that ends now, and the commands in it; the newest counts whole."""
    travel, left = np.abs(path[-1] - path[-2]), window - times[-1]
    for count in range(1, len(times) + 1):
        if left <= 0 or count == len(times):
            return travel, count
        share = min(1.0, left / times[-1 - count])
        travel = travel + share * np.abs(path[-1 - count] - path[-2 - count])
        left -= times[-1 - count]
    return travel, 1


def _differences(path: list[Array], times: list[float]) -> tuple[Array, Array]:
    """Acceleration and jerk from divided differences of the last four positions; before the first it was at rest."""
    times = [times[0]] * 3 + times
    path = [path[0]] * 3 + path
    at = np.cumsum([0.0, *times[-3:]])
    rows = np.array(path[-4:])
    first = np.diff(rows, axis=0) / np.diff(at)[:, None]
    second = np.diff(first, axis=0) / (at[2:] - at[:-2])[:, None]
    third = (second[1] - second[0]) / (at[3] - at[0])
    return 2 * second[1], 6 * third
