"""The limiter, its interpreted twin and its reference: one class of tests for all three, then fuzz and agreement."""

import importlib.util
import os
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import ruckig
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.interpolate import CubicSpline

from dzedge.kernels import limiter, reference_control

SEQUENCES = int(os.environ.get("DZEDGE_FUZZ", "8000"))
"""Random sequences of the fuzz below; a release runs 1e6 of them."""
MOVING, CLAMPED, RECOVERING, INVALID = 1, 2, 4, 8
FREE = [-1e3, 1e3]
ARM = np.array([[2.5] * 6, [12.0] * 6, [120.0] * 6, [-2.0] * 6, [2.0] * 6])
ONE = ARM[:, :1].copy()
BAD = (float("nan"), float("inf"), float("-inf"))


def interpreted(module: ModuleType) -> ModuleType:
    """The same source, not compiled."""
    path = Path(str(module.__file__)).parent / f"{module.__name__.rsplit('.', 1)[-1]}.py"
    spec = importlib.util.spec_from_file_location(f"{module.__name__}__py", path)
    assert spec is not None and spec.loader is not None
    twin = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(twin)
    return twin


TWIN = interpreted(limiter)


@pytest.fixture(params=[limiter, TWIN, reference_control], ids=["compiled", "interpreted", "reference"])
def kernel(request: pytest.FixtureRequest) -> ModuleType:
    return request.param


def column(*values: float) -> np.ndarray:
    """One joint's state, target or limits."""
    return np.array([[float(value)] for value in values])


def play(kernel: ModuleType, state: np.ndarray, targets: np.ndarray, limits: np.ndarray, elapsed: np.ndarray) -> tuple:
    """States Shape (N, 3, J) and codes (N,) after each tick; targets (N, 2, J) by `step`, (N, 3, J) by `track`."""
    states, codes = [], []
    for target, tick in zip(targets, elapsed, strict=True):
        if len(target) == 3:
            codes.append(kernel.track(state, target, limits, tick))
        else:
            codes.append(kernel.step(state, target[0].copy(), target[1].copy(), limits, tick))
        states.append(state.copy())
    return np.array(states), np.array(codes)


def fixed(goal: float, ticks: int) -> np.ndarray:
    return np.tile(column(goal, 0.0), (ticks, 1, 1))


def shortest(state: np.ndarray, goal: float, limits: np.ndarray, control: str = "Position") -> float:
    """Duration of ruckig's time-optimal trajectory to rest: at `goal`, or (Velocity) anywhere."""
    request = ruckig.InputParameter(1)
    request.control_interface = getattr(ruckig.ControlInterface, control)
    request.current_position, request.current_velocity, request.current_acceleration = (list(row) for row in state)
    request.target_position, request.target_velocity, request.target_acceleration = [goal], [0.0], [0.0]
    request.max_velocity, request.max_acceleration, request.max_jerk = (list(row) for row in limits[:3])
    trajectory = ruckig.Trajectory(1)
    assert ruckig.Ruckig(1).calculate(request, trajectory) == ruckig.Result.Working
    return trajectory.duration


def ticks_of(rng: np.random.Generator, rate: float, total: float) -> np.ndarray:
    """Regular ticks, or irregular ones where rate is negative."""
    count = int(total * abs(rate)) + 3
    return np.full(count, 1 / rate) if rate > 0 else rng.uniform(0.2, 1.8, count * 2) / -rate


def random_limits(rng: np.random.Generator) -> np.ndarray:
    return column(10 ** rng.uniform(-1, 1), 10 ** rng.uniform(-0.5, 1.5), 10 ** rng.uniform(0, 3), *FREE)


def spline_targets(seed: int, elapsed: np.ndarray, noise: float) -> np.ndarray:
    """Position, velocity, acceleration of a cubic spline like those of a policy's chunks, Shape (N + 1, 3, 1)."""
    rng = np.random.default_rng(seed)
    at = np.arange(0, elapsed.sum() + 0.3, 0.1)
    knots = 0.6 * np.sin(1.5 * at + seed) + 0.3 * np.sin(3.1 * at) + noise * rng.standard_normal(len(at))
    curve, times = CubicSpline(at, knots, bc_type="natural"), np.concatenate([[0.0], np.cumsum(elapsed)])
    return np.stack([curve(times, order) for order in range(3)], axis=1)[:, :, None].copy()


class TestLimiter:
    @pytest.mark.parametrize("rate", [50, 100, 200, 500, -100])
    def test_step_to_rest_is_time_optimal_without_overshoot(self, kernel, rate):
        rng = np.random.default_rng(abs(rate))
        for _ in range(3 if kernel is reference_control else 20):
            limits, start = random_limits(rng), rng.uniform(-2, 2)
            goal = start + 10 ** rng.uniform(-5, 0.2) * rng.choice([-1, 1])
            state = column(start, 0, 0)
            best = shortest(state, goal, limits)
            slow = kernel is reference_control
            elapsed = ticks_of(rng, rate, min(best, 30 / abs(rate)) if slow else best)
            states, codes = play(kernel, state, fixed(goal, len(elapsed)), limits, elapsed)
            beyond = (states[:, 0, 0] - goal) * np.sign(goal - start)
            assert beyond.max() <= 1e-9 * abs(goal - start)
            if elapsed.sum() < best:
                continue
            first = int(np.argmax(codes == 0))
            assert codes[first] == 0
            assert elapsed[:first].sum() <= best * (1 + 1e-9) + 1e-9
            assert (codes[first:] == 0).all()
            assert (states[first:, :, 0] == [goal, 0, 0]).all()

    def test_from_any_viable_state_as_fast_as_ruckig(self, kernel):
        rng = np.random.default_rng(11)
        for _ in range(4 if kernel is reference_control else 150):
            limits = random_limits(rng)
            fastest, most, jerk = limits[:3, 0]
            a = rng.uniform(-most, most)
            v = rng.uniform(-fastest, fastest)
            if abs(v + a * abs(a) / 2 / jerk) > fastest:
                continue
            state, goal = column(0, v, a), rng.normal()
            best = shortest(state, goal, limits)
            elapsed = np.full(40, best / 30)
            states, codes = play(kernel, state, fixed(goal, 40), limits, elapsed)
            assert (states[33:, :, 0] == [goal, 0, 0]).all()
            assert (codes[:29] == MOVING).all()

    def test_the_tick_rate_does_not_change_the_motion(self, kernel):
        ends = []
        for ticks in (1, 7, 20, 100):
            state = column(0.3, -0.5, 2.0)
            play(kernel, state, fixed(1.5, ticks), ONE, np.full(ticks, 0.4 / ticks))
            ends.append(state.copy())
        for end in ends[1:]:
            np.testing.assert_allclose(end, ends[0], rtol=0, atol=1e-9)

    @pytest.mark.parametrize("spread", [0.0, 0.1, 0.8])
    def test_a_trajectory_within_the_limits_is_tracked_exactly(self, kernel, spread):
        rng = np.random.default_rng(5)
        for seed in range(2 if kernel is reference_control else 8):
            elapsed = 0.01 * rng.uniform(1 - spread, 1 + spread, 150 if kernel is reference_control else 500)
            targets = spline_targets(seed, elapsed, 0.003)
            states, codes = play(kernel, targets[0].copy(), targets[1:], ONE, elapsed)
            assert (codes == 0).all()
            assert (states[:, :2] == targets[1:, :2]).all()
            np.testing.assert_allclose(states[:, 2], targets[1:, 2], rtol=0, atol=1e-6)

    def test_a_trajectory_at_its_limits_is_tracked_exactly(self, kernel):
        """ruckig's time-optimal motion: full jerk with switches inside ticks, full acceleration, full velocity."""
        limits = column(1.0, 5.0, 50.0, *FREE)
        request, trajectory = ruckig.InputParameter(1), ruckig.Trajectory(1)
        request.target_position = [0.8]
        request.max_velocity, request.max_acceleration, request.max_jerk = (list(row) for row in limits[:3])
        ruckig.Ruckig(1).calculate(request, trajectory)
        for spread in (0.0, 0.4):
            elapsed = 0.009 * np.random.default_rng(9).uniform(1 - spread, 1 + spread, 140)
            targets = np.array([trajectory.at_time(min(t, trajectory.duration)) for t in np.cumsum(elapsed)])
            states, codes = play(kernel, column(0, 0, 0), targets, limits, elapsed)
            assert (codes == 0).all()
            np.testing.assert_allclose(states, targets, rtol=0, atol=1e-8)
            assert (states[-1, 1:] == 0).all()

    @pytest.mark.parametrize("rate", [50, 100, 500, -100])
    def test_without_its_acceleration_a_smooth_target_is_met_without_lag(self, kernel, rate):
        elapsed = ticks_of(np.random.default_rng(2), rate, 1.0)
        times = np.concatenate([[0.0], np.cumsum(elapsed)])
        targets = np.stack([0.5 * np.sin(3.9 * times), 1.95 * np.cos(3.9 * times)], axis=1)[:, :, None].copy()
        states, codes = play(kernel, column(0, 1.95, 0), targets[1:], ONE, elapsed)
        assert (codes == 0).all()
        assert (states[:, :2] == targets[1:]).all()

    def test_a_moving_target_is_caught_up_with(self, kernel):
        elapsed = np.full(80, 0.01)
        targets = np.stack([0.3 + 0.5 * np.cumsum(elapsed), np.full(80, 0.5)], axis=1)[:, :, None].copy()
        states, codes = play(kernel, column(0, 0, 0), targets, ONE, elapsed)
        assert (codes[60:] == 0).all()
        assert (states[60:, :2] == targets[60:]).all()
        assert codes[0] == MOVING

    @pytest.mark.parametrize("rows", [2, 3])
    def test_limits_hold_for_any_target_and_any_elapsed_time(self, kernel, rows):
        rng = np.random.default_rng(rows)
        for _ in range(1 if kernel is reference_control else 12):
            elapsed = 10 ** rng.uniform(-5, 0, 40)
            targets = np.stack([rng.uniform(-3, 3, (40, 6)), rng.uniform(-4, 4, (40, 6)), rng.normal(0, 9, (40, 6))], 1)
            states, codes = play(kernel, np.zeros((3, 6)), targets[:, :rows].copy(), ARM, elapsed)
            keeps_limits(np.zeros((3, 6)), states, ARM, elapsed)
            assert not (codes & (RECOVERING | INVALID)).any()

    def test_targets_outside_are_clamped_and_never_overshot(self, kernel):
        state = column(1.9, 1.0, 0.0)
        limits = ONE.copy()
        limits[4] = 2.1
        states, codes = play(kernel, state, fixed(5.0, 60), limits, np.full(60, 0.01))
        assert (codes & CLAMPED).all()
        assert states[:, 0].max() == 2.1
        assert codes[-1] == CLAMPED
        assert (states[-1, :, 0] == [2.1, 0, 0]).all()
        assert kernel.step(column(0, 0, 0), np.array([-5.0]), np.zeros(1), limits, 0.01) == CLAMPED | MOVING

    def test_a_target_at_the_limit_is_not_clamped(self, kernel):
        for goal in (-2.0, 2.0):
            assert kernel.step(column(goal, 0, 0), np.array([goal]), np.zeros(1), ONE, 0.01) == 0

    @pytest.mark.parametrize("rate", [50, 100, 400])
    def test_a_target_that_runs_through_the_limit_is_left_in_time(self, kernel, rate):
        count = int(0.6 * rate)
        times = np.arange(1, count + 1) / rate
        targets = np.stack([1.0 + 2.0 * times, np.full(count, 2.0)], axis=1)[:, :, None].copy()
        limits = ONE.copy()
        states, codes = play(kernel, column(1.0, 2.0, 0.0), targets, limits, np.full(count, 1 / rate))
        assert codes[0] == 0
        assert states[:, 0].max() <= 2.0
        assert not (codes & RECOVERING).any()

    @pytest.mark.parametrize("sign", [1, -1])
    def test_too_fast_a_state_slows_down_as_fast_as_it_can(self, kernel, sign):
        limits = column(1.0, 10.0, 100.0, *FREE)
        state = column(0, sign * 1.5, 0)
        states, codes = play(kernel, state, fixed(sign * 5.0, 40), limits, np.full(40, 0.01))
        speed = np.abs(states[:, 1, 0])
        over = speed > 1.0 + 1e-9
        assert (codes[over] & RECOVERING).all()
        assert (np.diff(np.concatenate([[1.5], speed]))[over] < 0).all()
        # -jerk to -10 in 0.1 s takes 0.5: 1.0 is reached after exactly 0.1 s
        assert over[:9].all()
        assert not over[10:].any()
        assert codes[-1] == MOVING

    def test_too_great_an_acceleration_is_taken_back_at_full_jerk(self, kernel):
        limits = column(10.0, 2.0, 100.0, *FREE)
        state = column(0, 0, 5.0)
        states, codes = play(kernel, state, fixed(1.0, 4), limits, np.full(4, 0.01))
        np.testing.assert_allclose(states[:3, 2, 0], [4.0, 3.0, 2.0], atol=1e-9)
        assert (codes[:3] & RECOVERING).all()

    def test_outside_its_position_limits_a_joint_comes_back(self, kernel):
        state = column(2.5, 0.0, 0.0)
        states, codes = play(kernel, state, fixed(1.9, 120), ONE, np.full(120, 0.01))
        assert codes[0] == RECOVERING | MOVING
        assert (np.diff(states[:, 0, 0]) <= 0).all()
        assert (states[-1, :, 0] == [1.9, 0, 0]).all()
        assert codes[-1] == 0

    def test_joints_do_not_know_of_each_other(self, kernel):
        rng = np.random.default_rng(0)
        state, target = rng.normal(0, 0.3, (3, 6)), rng.normal(0, 1, (3, 6))
        together = state.copy()
        kernel.track(together, target, ARM, 0.01)
        for i in range(6):
            alone = state[:, i : i + 1].copy()
            kernel.track(alone, target[:, i : i + 1].copy(), ARM[:, i : i + 1].copy(), 0.01)
            assert (alone[:, 0] == together[:, i]).all()

    def test_another_target_gives_another_motion(self, kernel):
        one, other = column(0, 0, 0), column(0, 0, 0)
        kernel.step(one, np.array([0.5]), np.zeros(1), ONE, 0.01)
        kernel.step(other, np.array([-0.5]), np.zeros(1), ONE, 0.01)
        assert one[0, 0] > 0 > other[0, 0]

    @pytest.mark.parametrize("rate", [50, 500])
    def test_stop_takes_the_least_time(self, kernel, rate):
        rng = np.random.default_rng(rate)
        for _ in range(3 if kernel is reference_control else 20):
            limits = random_limits(rng)
            state = column(0.2, *rng.uniform(-1, 1, 2) * limits[:2, 0])
            best = shortest(state, 0.0, limits, "Velocity")
            before = int(best * rate * (1 - 1e-9))
            codes = [kernel.stop(state, limits, 1 / rate) for _ in range(min(before, 200))]
            assert (np.array(codes) & MOVING).all()
            if before <= 200:
                assert kernel.stop(state, limits, 1 / rate) == 0
                assert (state[1:] == 0).all()
                rest = state.copy()
                assert kernel.stop(state, limits, 1 / rate) == 0
                assert (state == rest).all()

    def test_stop_says_what_it_found(self, kernel):
        assert kernel.stop(column(0, 3.0, 0), ONE, 0.01) == MOVING | RECOVERING
        assert kernel.stop(column(0, 0, 13.0), ONE, 0.01) == MOVING | RECOVERING
        assert kernel.stop(column(0, 0, 0), ONE, 0.01) == 0

    @pytest.mark.parametrize("value", BAD)
    def test_not_a_number_anywhere_is_refused_and_changes_nothing(self, kernel, value):
        calm = np.zeros((3, 2)), np.full((3, 2), 0.1), ARM[:, :2].copy()
        for table, (rows, columns) in enumerate([(3, 2), (3, 2), (5, 2)]):
            for cell in np.ndindex(rows, columns):
                state, target, limits = (array.copy() for array in calm)
                (state, target, limits)[table][cell] = value
                before = state.copy()
                assert kernel.track(state, target, limits, 0.01) == INVALID
                if table != 1 or cell[0] < 2:
                    assert kernel.step(state, target[0].copy(), target[1].copy(), limits, 0.01) == INVALID
                if table != 1:
                    assert kernel.stop(state, limits, 0.01) == INVALID
                np.testing.assert_array_equal(state, before)

    @pytest.mark.parametrize("elapsed", [0.0, -0.01, *BAD])
    def test_time_that_does_not_pass_is_refused(self, kernel, elapsed):
        state, target = np.full((3, 2), 0.1), np.zeros((3, 2))
        assert kernel.track(state, target, ARM[:, :2].copy(), elapsed) == INVALID
        assert kernel.step(state, target[0], target[1], ARM[:, :2].copy(), elapsed) == INVALID
        assert kernel.stop(state, ARM[:, :2].copy(), elapsed) == INVALID
        assert (state == 0.1).all()

    @pytest.mark.parametrize(
        "cell, value", [((0, 0), 0.0), ((1, 0), -1.0), ((2, 0), 1e10), ((3, 0), 3.0), ((4, 0), 1e10)]
    )
    def test_limits_that_cannot_be_kept_are_refused(self, kernel, cell, value):
        limits = ONE.copy()
        limits[cell] = value
        assert kernel.step(column(0, 0, 0), np.zeros(1), np.zeros(1), limits, 0.01) == INVALID

    def test_shapes_must_agree(self, kernel):
        state, two = np.zeros((3, 1)), np.zeros(2)
        assert kernel.step(state, two, two, ONE.copy(), 0.01) == INVALID
        assert kernel.step(state, np.zeros(1), np.zeros(1), ARM[:4, :1].copy(), 0.01) == INVALID
        assert kernel.track(state, np.zeros((2, 1)), ONE.copy(), 0.01) == INVALID
        assert kernel.stop(np.zeros((2, 1)), ONE.copy(), 0.01) == INVALID

    def test_a_huge_target_is_only_a_target(self, kernel):
        state = column(0, 0, 0)
        assert kernel.step(state, np.array([1e300]), np.array([-1e300]), ONE.copy(), 0.01) == CLAMPED | MOVING
        assert 0 < state[0, 0] < 1e-3


def keeps_limits(start: np.ndarray, states: np.ndarray, limits: np.ndarray, elapsed: np.ndarray) -> None:
    """Velocity, acceleration, jerk to 1e-9 of themselves; positions exactly. The start is within the limits."""
    assert np.isfinite(states).all()
    before = np.concatenate([start[None], states[:-1]])
    assert (np.abs(states[:, 1]) <= limits[0] * (1 + 1e-9)).all()
    assert (np.abs(states[:, 2]) <= limits[1] * (1 + 1e-9)).all()
    # an acceleration is a double: its last bit over a short tick is jerk
    grain = 4 * np.spacing(limits[1]) / elapsed[:, None]
    assert (np.abs(states[:, 2] - before[:, 2]) / elapsed[:, None] <= limits[2] * (1 + 1e-9) + grain).all()
    assert (limits[3] <= states[:, 0]).all() and (states[:, 0] <= limits[4]).all()


def random_sequence(seed: int, joints: int = 64, ticks: int = 40) -> tuple:
    """Limits over decades, ticks of every sort, targets that jump, run away, pass the limits or stay near."""
    rng = np.random.default_rng(seed)
    limits = 10 ** rng.uniform([[-2], [-1.5], [-1], [-3], [-3]], [[1.5], [2.5], [4], [1], [1]], (5, joints))
    limits[3] *= -1
    kinds = (
        10 ** rng.uniform(-5, 0, ticks), np.full(ticks, 10 ** rng.uniform(-3, -1)), rng.uniform(1e-3, 3e-2, ticks),
        rng.choice([0.01, 0.01, 0.01, 0.02, 0.1, 1e-4], ticks),
    )  # fmt: skip
    elapsed = kinds[rng.integers(4)]
    state = np.stack([rng.uniform(limits[3], limits[4]), np.zeros(joints), np.zeros(joints)])
    hold = int(rng.integers(1, 12))
    jumps = rng.uniform(1.2 * limits[3], 1.2 * limits[4], (ticks, joints))
    speeds = rng.uniform(-1.3, 1.3, (ticks, joints)) * limits[0] * rng.choice([0, 1], (ticks, joints))
    bends = rng.uniform(-1, 1, (ticks, joints)) * limits[1] * rng.choice([0, 1], (ticks, joints))
    held = np.arange(ticks) // hold * hold
    near = rng.random(joints) < 0.4
    walk = state[0] + np.cumsum(rng.normal(0, 0.5, (ticks, joints)) * limits[0] * elapsed[:, None], axis=0)
    targets = np.stack([np.where(near, walk, jumps[held]), speeds[held], bends[held]], axis=1)
    return state, targets[:, : rng.integers(2, 4)].copy(), limits, elapsed


def test_fuzz() -> None:
    """From rest within the position limits, nothing ever leaves the limits."""
    for seed in range(max(SEQUENCES // 64, 1)):
        state, targets, limits, elapsed = random_sequence(seed)
        start, states, codes = state.copy(), np.empty((40, 3, 64)), np.empty(40, np.intc)
        assert limiter.run(state, targets, limits, elapsed, states, codes) & ~(MOVING | CLAMPED) == 0
        keeps_limits(start, states, limits, elapsed)


@settings(deadline=None, max_examples=300)
@given(
    st.tuples(st.floats(-2.2, 2.2), st.floats(-3, 3), st.floats(-14, 14)),
    st.tuples(st.floats(allow_nan=False, allow_infinity=False), st.floats(-5, 5), st.floats(-20, 20)),
    st.floats(1e-5, 1.0),
)
def test_from_any_state_no_violation_grows(state, target, elapsed):
    limits = ONE.copy()
    after = column(*state)
    assert limiter.track(after, column(*target), limits, elapsed) & INVALID == 0
    assert np.isfinite(after).all()
    assert abs(after[2, 0]) <= max(12.0, abs(state[2])) * (1 + 1e-9)
    assert abs(after[2, 0] - state[2]) <= (120.0 * (1 + 1e-9)) * elapsed + 1e-14
    # what the acceleration at the start makes inevitable, and no more
    inevitable = max(2.5, abs(state[1]), abs(state[1]) + state[2] ** 2 / 240.0)
    assert abs(after[1, 0]) <= inevitable * (1 + 1e-9)


def random_case(rng: np.random.Generator) -> tuple:
    """One joint anywhere, in or out of its limits, with a target that is near, far, moving or at rest."""
    limits = column(10 ** rng.uniform(-1, 1), 10 ** rng.uniform(-0.5, 1.5), 10 ** rng.uniform(0, 3), -2, 2)
    scale = rng.choice([0, 0.1, 1, 1.5], 2) * limits[:2, 0]
    x, v, a = rng.uniform(-2, 2), *rng.uniform(-1, 1, 2) * scale
    tick = 10 ** rng.uniform(-3, -0.3)
    jerk = rng.uniform(-1, 1) * limits[2, 0]
    ahead = (x + v * tick + a * tick**2 / 2 + jerk * tick**3 / 6, v + a * tick + jerk * tick**2 / 2, a + jerk * tick)
    anywhere = (rng.uniform(-2.1, 2.1), rng.uniform(-1, 1) * scale[0], rng.uniform(-1, 1) * scale[1])
    if rng.random() < 0.3 and a != 0:
        # a limit about where the motion turns around
        turn = x + 0.5 * v * abs(v / a) * rng.uniform(0.5, 2)
        limits[3:, 0] = (-2, max(turn, x)) if v > 0 else (min(turn, x), 2)
    return column(x, v, a), column(*(ahead if rng.random() < 0.3 else anywhere)), limits, tick


def all_three(module: ModuleType, state: np.ndarray, target: np.ndarray, limits: np.ndarray, tick: float) -> list:
    results = []
    for act in (
        lambda s: module.track(s, target, limits, tick),
        lambda s: module.step(s, target[0].copy(), target[1].copy(), limits, tick),
        lambda s: module.stop(s, limits, tick),
    ):
        own = state.copy()
        results.append((act(own), own))
    return results


def test_agrees_with_the_reference() -> None:
    rng = np.random.default_rng(7)
    for _ in range(250):
        case = random_case(rng)
        scale = np.array([[1.0], case[2][0], case[2][1]])
        for (code, state), (other, expected) in zip(
            all_three(limiter, *case), all_three(reference_control, *case), strict=True
        ):
            assert code == other
            np.testing.assert_allclose(state / scale, expected / scale, rtol=0, atol=1e-7)


def test_compiled_and_interpreted_agree_to_the_bit() -> None:
    rng = np.random.default_rng(8)
    for _ in range(2000):
        case = random_case(rng)
        for (code, state), (other, expected) in zip(all_three(limiter, *case), all_three(TWIN, *case), strict=True):
            assert code == other
            assert (state == expected).all()


def test_run_is_step_and_track_in_a_row() -> None:
    for seed in range(6):
        state, targets, limits, elapsed = random_sequence(seed, joints=5)
        expected, codes = play(limiter, state.copy(), targets, limits, elapsed)
        states, seen = np.empty_like(expected), np.empty(40, np.intc)
        assert limiter.run(state, targets, limits, elapsed, states, seen) == np.bitwise_or.reduce(codes)
        assert (states == expected).all() and (seen == codes).all()
    assert limiter.run(state, targets, limits, elapsed, states, seen[1:].copy()) == INVALID
    assert limiter.run(state, targets[:, :1].copy(), limits, elapsed, states, seen) == INVALID


def test_codes_have_names() -> None:
    assert limiter.Code.MOVING | limiter.Code.CLAMPED | limiter.Code.RECOVERING | limiter.Code.INVALID == 15
    assert [limiter.Code.MOVING, limiter.Code.INVALID] == [MOVING, INVALID]
