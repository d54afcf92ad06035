"""Limiter and gate for 7 joints: time a tick in C, duration of a step and time a tick against ruckig.

Time: `limiter.run` and `gate.run` are C loops over `step`/`track` and `check`, so a tick is called from C. Three kinds
of targets: a trajectory within the limits, one that breaks them (always behind, a search on every joint), a jump
every 0.2 s. The slowest kind counts. Every tick of it passes the gate, acceleration and jerk checks included.

Rival: ruckig's C++ `update`, of which the Python call is taken off by timing `reset` (the same binding, nothing
inside). Both get a new target with velocity every tick: with an old target ruckig only samples. CPU time of the
process, rounds interleaved, medians.

Duration: steps from rest over three decades of length, limits over two; ticks until exact rest at the target, over
ruckig's time-optimal duration. Part of a last tick counts as a tick, so moves shorter than 50 ticks are left out.
"""

import time
from collections.abc import Callable
from statistics import median

import numpy as np
import ruckig
from numpy.typing import NDArray
from scipy.interpolate import CubicSpline

from dzedge.kernels import gate, limiter

Array = NDArray[np.float64]
JOINTS, TICK, TICKS, ROUNDS = 7, 0.01, 2000, 25
LIMITS = np.array([[2.5] * JOINTS, [12.0] * JOINTS, [200.0] * JOINTS, [-2.5] * JOINTS, [2.5] * JOINTS])
BOUNDS = np.vstack([LIMITS, [0.15] * JOINTS])
RULES = gate.rules(0.82, 0.03, 0.03)
STEPS, SHORTEST = 400, 50


def spline(noise: float) -> Array:
    """A noisy cubic spline with knots every 0.1 s, as chunks make it. Shape (TICKS, 3, JOINTS)."""
    rng = np.random.default_rng(0)
    knots = np.arange(0, TICKS * TICK + 0.2, 0.1)
    path = 0.8 * np.sin(1.5 * knots[:, None] + np.arange(JOINTS)) + noise * rng.standard_normal((len(knots), JOINTS))
    curve = CubicSpline(knots, path, bc_type="natural")
    return np.stack([curve(np.arange(1, TICKS + 1) * TICK, order) for order in range(3)], axis=1).copy()


def jumps() -> Array:
    rng = np.random.default_rng(1)
    targets = np.zeros((TICKS, 3, JOINTS))
    targets[:, 0] = np.repeat(rng.uniform(-2, 2, (TICKS // 20, JOINTS)), 20, axis=0)
    return targets


def ours(targets: Array) -> tuple[Callable[[], None], Callable[[], None]]:
    """The limiter alone, and limiter and gate, over all targets from rest."""
    elapsed, codes = np.full(TICKS, TICK), np.empty(TICKS, np.intc)
    out, verdicts = np.empty((TICKS, 3, JOINTS)), np.empty(TICKS, np.intc)
    memory, ages = gate.memory(JOINTS), np.tile([0.1, 0.0, 0.01], (TICKS, 1))
    state = np.zeros((3, JOINTS))

    def limit() -> None:
        state[:] = 0.0
        state[0] = targets[0, 0]
        if limiter.run(state, targets, LIMITS, elapsed, out, codes) & limiter.Code.INVALID:
            raise AssertionError("the limiter refused its input")

    limit()
    commands = out[:, 0].copy()

    def both() -> None:
        limit()
        gate.arm(memory, targets[0, 0].copy())
        if gate.run(commands, commands, ages, elapsed, BOUNDS, RULES, memory, verdicts) != 0:
            raise AssertionError(f"the gate refused what the limiter made: {set(verdicts.tolist())}")

    return limit, both


def rivals(targets: Array) -> tuple[Callable[[], None], Callable[[], None]]:
    """ruckig's update with a new target every tick, and the bare cost of calling into its binding as often."""
    otg = ruckig.Ruckig(JOINTS, TICK)
    request, reply = ruckig.InputParameter(JOINTS), ruckig.OutputParameter(JOINTS)
    request.max_velocity, request.max_acceleration, request.max_jerk = (list(row) for row in LIMITS[:3])
    request.synchronization = ruckig.Synchronization.No  # as ours: each joint for itself
    rows = [(list(row[0]), list(np.clip(row[1], -2.4, 2.4))) for row in targets]
    inputs = []
    for position, velocity in rows:
        request.target_position, request.target_velocity = position, velocity
        otg.update(request, reply)
        reply.pass_to_input(request)
        following = ruckig.InputParameter(JOINTS)
        for name in ("max_velocity", "max_acceleration", "max_jerk", "current_position", "current_velocity",
                     "current_acceleration", "target_position", "target_velocity", "synchronization"):  # fmt: skip
            setattr(following, name, getattr(request, name))
        inputs.append(following)

    def update() -> None:
        for request in inputs:
            otg.update(request, reply)

    def nothing() -> None:
        for _ in inputs:
            otg.reset()

    return update, nothing


def cpu_medians(calls: dict[str, Callable[[], None]]) -> dict[str, float]:
    """Median CPU microseconds a tick, one round of each after the other."""
    spent: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(ROUNDS):
        for name, call in calls.items():
            begin = time.process_time_ns()
            call()
            spent[name].append((time.process_time_ns() - begin) / TICKS / 1e3)
    return {name: median(values) for name, values in spent.items()}


def worst_step() -> float:
    """Highest ratio of our duration to ruckig's over random steps from rest."""
    rng = np.random.default_rng(2)
    worst = 0.0
    for _ in range(STEPS):
        limits = 10 ** rng.uniform([[-0.5], [0], [1], [3], [3]], [[1], [1.5], [3], [3], [3]])
        limits[3] *= -1
        goal, tick = 10 ** rng.uniform(-2, 1), float(rng.choice([0.002, 0.005, 0.01, 0.02]))
        request, trajectory = ruckig.InputParameter(1), ruckig.Trajectory(1)
        request.target_position = [goal]
        request.max_velocity, request.max_acceleration, request.max_jerk = (list(row) for row in limits[:3])
        ruckig.Ruckig(1).calculate(request, trajectory)
        ticks = int(trajectory.duration / tick * 1.3) + 3
        if trajectory.duration < SHORTEST * tick:
            continue
        targets, out, codes = np.zeros((ticks, 2, 1)), np.empty((ticks, 3, 1)), np.empty(ticks, np.intc)
        targets[:, 0] = goal
        limiter.run(np.zeros((3, 1)), targets, limits, np.full(ticks, tick), out, codes)
        arrived = int(np.argmax(codes == 0)) + 1 if (codes == 0).any() else 10 * ticks
        worst = max(worst, arrived * tick / trajectory.duration)
    return worst


def row(name: str, value: float, unit: str, rival: float | str, ratio: float, bar: float) -> dict:
    return {"id": name, "value": value, "unit": unit, "rival": rival, "ratio": ratio, "bar": bar, "ok": ratio <= bar}


def run() -> list[dict]:
    kinds = {"tracked": spline(0.002), "broken": spline(0.02), "jumps": jumps()}
    calls: dict[str, Callable[[], None]] = {}
    for kind, targets in kinds.items():
        calls[f"{kind} limiter"], calls[f"{kind} both"] = ours(targets)
        calls[f"{kind} ruckig"], calls[f"{kind} call"] = rivals(targets)
    spent = cpu_medians(calls)
    both = max(spent[f"{kind} both"] for kind in kinds)
    speed = {kind: (spent[f"{kind} limiter"], spent[f"{kind} ruckig"] - spent[f"{kind} call"]) for kind in kinds}
    mine, theirs = max(speed.values(), key=lambda pair: pair[0] / pair[1])
    step = worst_step()
    return [
        row("limiter", both, "us", "3 us budget", both / 3.0, 1.0),
        row("limiter_step", step, "x ruckig's duration", 1.0, step, 1.2),
        row("limiter_ruckig", mine, "us", theirs, mine / theirs, 1.0),
    ]
