"""The chunk kernel, its interpreted twin and its reference: one class of tests for all three."""

import importlib.util
import math
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from scipy.interpolate import CubicSpline
from scipy.signal import savgol_filter

from dzedge.kernels import chunk, reference

STEP = 0.1
LIMITS = np.array([[3.0] * 6, [20.0] * 6, [400.0] * 6])


def interpreted(module: ModuleType) -> ModuleType:
    """The same source, not compiled."""
    path = Path(str(module.__file__)).parent / f"{module.__name__.rsplit('.', 1)[-1]}.py"
    spec = importlib.util.spec_from_file_location(f"{module.__name__}__py", path)
    assert spec is not None and spec.loader is not None
    twin = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(twin)
    return twin


TWIN = interpreted(chunk)


@pytest.fixture(params=[chunk, TWIN, reference], ids=["compiled", "interpreted", "reference"])
def kernel(request: pytest.FixtureRequest) -> ModuleType:
    return request.param


def trajectory(kernel: ModuleType, seed: int, length: int = 16, joints: int = 6, reach: float = 0.02) -> tuple:
    """Smooth random knots and their moments."""
    rng = np.random.default_rng(seed)
    pace = np.cumsum(rng.normal(0, reach / 4, (length, joints)), axis=0)
    knots = np.ascontiguousarray(np.cumsum(np.clip(pace, -reach, reach), axis=0))
    moments = np.empty_like(knots)
    assert kernel.spline(knots, moments) == 0
    return knots, moments


def at(kernel: ModuleType, knots: np.ndarray, moments: np.ndarray, tau: float) -> np.ndarray:
    out = np.full((3, knots.shape[1]), 7.0)
    assert kernel.sample(knots, moments, STEP, tau, out) == 0
    return out


def arrival(kernel: ModuleType, seed: int, tau: float, length: int = 16) -> tuple:
    """A trajectory and a command that is off by what a new chunk usually is."""
    knots, moments = trajectory(kernel, seed, length)
    rng = np.random.default_rng(seed + 1000)
    command = at(kernel, knots, moments, tau)
    command += rng.normal(0, 1, (3, 6)) * np.array([[0.03], [0.1], [0.5]])
    return knots, moments, command


class TestSpline:
    @pytest.mark.parametrize("length", [2, 3, 4, 8, 24, 48, 200])
    def test_moments_and_samples_are_those_of_scipy(self, kernel: ModuleType, length: int) -> None:
        knots, moments = trajectory(kernel, length, length)
        oracle = CubicSpline(np.arange(length) * STEP, knots, bc_type="natural")
        for tau in np.random.default_rng(length).uniform(0, (length - 1) * STEP, 20):
            want = [oracle(tau), oracle(tau, 1), oracle(tau, 2)]
            assert np.allclose(at(kernel, knots, moments, tau), want, rtol=1e-10, atol=1e-11)

    def test_the_last_segment_reaches_the_last_knot(self, kernel: ModuleType) -> None:
        knots, moments = trajectory(kernel, 3)
        assert np.allclose(at(kernel, knots, moments, 15 * STEP)[0], knots[-1], rtol=0, atol=1e-15)

    @pytest.mark.parametrize(("tau", "knot"), [(-1e-9, 0), (-5.0, 0), (1.6, -1), (9.0, -1), (math.inf, -1)])
    def test_stands_still_outside(self, kernel: ModuleType, tau: float, knot: int) -> None:
        knots, moments = trajectory(kernel, 4)
        out = at(kernel, knots, moments, tau)
        assert (out[0] == knots[knot]).all() and not out[1:].any()

    @pytest.mark.parametrize("tau", [-0.05, 0.0, 0.05, 1.0])
    def test_a_single_knot_is_a_pose(self, kernel: ModuleType, tau: float) -> None:
        knots, moments = trajectory(kernel, 5, length=1)
        out = at(kernel, knots, moments, tau)
        assert (out[0] == knots[0]).all() and not out[1:].any()

    def test_nan_spreads_over_its_joint_only(self, kernel: ModuleType) -> None:
        knots, _ = trajectory(kernel, 6)
        knots[7, 2] = math.nan
        moments = np.empty_like(knots)
        kernel.spline(knots, moments)
        out = at(kernel, knots, moments, 0.25)
        assert np.isnan(out[:, 2]).all() and np.isfinite(np.delete(out, 2, axis=1)).all()

    def test_no_time_is_no_position(self, kernel: ModuleType) -> None:
        knots, moments = trajectory(kernel, 7)
        assert np.isnan(at(kernel, knots, moments, math.nan)).all()
        out = np.zeros((3, 6))
        kernel.sample(knots, moments, 0.0, 0.1, out)
        assert np.isnan(out).all()

    def test_shapes_that_disagree_are_a_code_and_write_nothing(self, kernel: ModuleType) -> None:
        knots, moments = trajectory(kernel, 8)
        out = np.full((3, 5), 7.0)
        assert kernel.spline(knots, np.zeros((15, 6))) == -1
        assert kernel.sample(knots, moments, STEP, 0.1, out) == -1
        assert kernel.sample(knots, moments[:-1].copy(), STEP, 0.1, np.zeros((3, 6))) == -1
        assert kernel.bound(knots, moments, np.zeros(5), np.ones(6)) == -1
        assert kernel.bound(knots, moments, np.zeros(6), np.ones(5)) == -1
        assert kernel.bound(knots, moments[:-1].copy(), np.zeros(6), np.ones(6)) == -1
        assert kernel.blend(np.zeros((3, 6)), 1.0, np.zeros((5, 6))) == -1
        assert kernel.sample_offset(np.zeros((5, 6)), 1.0, 0.0, np.zeros((3, 6))) == -1
        assert (out == 7.0).all()


class TestBound:
    """A gripper must not leave its stops because of a spline."""

    def overshoot(self, kernel: ModuleType, gripper: list[float], bounded: bool) -> float:
        knots = np.repeat(np.array(gripper, float)[:, None], 2, axis=1)
        moments = np.empty_like(knots)
        kernel.spline(knots, moments)
        if bounded:
            inf = math.inf
            assert kernel.bound(knots, moments, np.array([-inf, 0.0]), np.array([inf, 1.0])) == 0
        taus = np.linspace(0, (len(gripper) - 1) * STEP, 1001)
        values = np.array([at(kernel, knots, moments, tau)[0, 1] for tau in taus])
        return max(-values.min(), values.max() - 1)

    @pytest.mark.parametrize("gripper", [[0, 0, 0, 1, 1, 1], [1, 1, 0, 0, 0.02, 1], [0, 1, 0, 1], [0.05, 0, 1]])
    def test_stays_between_the_stops(self, kernel: ModuleType, gripper: list[float]) -> None:
        assert self.overshoot(kernel, gripper, bounded=False) > 0.01
        assert self.overshoot(kernel, gripper, bounded=True) <= 1e-15

    def test_leaves_alone_what_is_inside(self, kernel: ModuleType) -> None:
        knots, moments = trajectory(kernel, 9)
        before = moments.copy()
        kernel.bound(knots, moments, np.full(6, -9.0), np.full(6, 9.0))
        assert (moments == before).all()

    def test_random_knots_inside_stay_inside(self, kernel: ModuleType) -> None:
        rng = np.random.default_rng(10)
        knots = np.clip(rng.normal(0.5, 0.5, (30, 6)), 0, 1)
        moments = np.empty_like(knots)
        kernel.spline(knots, moments)
        kernel.bound(knots, moments, np.zeros(6), np.ones(6))
        values = np.array([at(kernel, knots, moments, tau)[0] for tau in np.linspace(0, 2.9, 500)])
        assert values.min() >= -1e-15 and values.max() <= 1 + 1e-15

    def test_nan_stays(self, kernel: ModuleType) -> None:
        knots = np.array([[0.0], [math.nan], [1.0], [1.0]])
        moments = np.full_like(knots, math.nan)
        kernel.bound(knots, moments, np.zeros(1), np.ones(1))
        assert np.isnan(at(kernel, knots, moments, 0.05)).all()


class TestSmoothPlan:
    @pytest.mark.parametrize("length", [1, 2, 3, 8, 24, 48])
    @pytest.mark.parametrize("factor", [1, 2, 3])
    @pytest.mark.parametrize(("window", "order"), [(9, 3), (21, 3), (8, 2), (3, 1), (1, 0), (11, 5)])
    @pytest.mark.parametrize("decimate", [False, True])
    def test_is_scipys(
        self, kernel: ModuleType, length: int, factor: int, window: int, order: int, decimate: bool
    ) -> None:
        rows = np.random.default_rng(length).uniform(-1, 1, size=(length, 7))
        plan = kernel.SmoothPlan(length, 7, factor, window, order, decimate)
        want = rows
        if length > 1:
            oracle = CubicSpline(np.arange(length), rows, bc_type="natural")
            want = oracle(np.arange(plan.dense) / factor)
        dense = np.empty((plan.dense, 7))
        plan.resample(rows, dense)
        assert np.abs(dense - want).max() <= 1e-12
        clipped = min(window, plan.dense)
        clipped -= 1 - clipped % 2
        want = savgol_filter(want, clipped, min(order, clipped - 1), axis=0, mode="interp")
        want = want[::factor] if decimate else want
        out = np.empty((plan.knots, 7))
        plan.savgol(dense, out)
        assert np.abs(out - want).max() <= 1e-12
        plan.smooth(rows, out)
        assert np.abs(out - want).max() <= 1e-12

    def test_a_polynomial_of_the_order_passes_unchanged(self, kernel: ModuleType) -> None:
        t = np.linspace(-1, 1, 40)[:, None]
        rows = np.ascontiguousarray(1 + 2 * t - 3 * t**2 + t**3)
        out = np.empty_like(rows)
        kernel.SmoothPlan(40, 1, factor=1, window=15, order=3).smooth(rows, out)
        assert np.abs(out - rows).max() < 1e-13

    def test_nan_stays_in_its_joint(self, kernel: ModuleType) -> None:
        rows = np.random.default_rng(1).normal(size=(24, 3))
        rows[5, 1] = math.nan
        out = np.empty((24, 3))
        kernel.SmoothPlan(24, 3, lower=np.full(3, -9.0), upper=np.full(3, 9.0)).smooth(rows, out)
        assert np.isnan(out[:, 1]).all() and np.isfinite(out[:, [0, 2]]).all()

    def test_a_gripper_is_clipped_to_its_stops(self, kernel: ModuleType) -> None:
        rows = np.zeros((24, 2))
        rows[12:] = 1
        out = np.empty((24, 2))
        lower, upper = np.array([-math.inf, 0.0]), np.array([math.inf, 1.0])
        kernel.SmoothPlan(24, 2, lower=lower, upper=upper).smooth(rows, out)
        assert out[:, 0].min() < -0.01 and out[:, 0].max() > 1.01
        assert out[:, 1].min() == 0 and out[:, 1].max() == 1

    @pytest.mark.parametrize(
        ("length", "decimate", "rate", "window"),
        [
            (8, True, 10, 0.35),
            (8, False, 4, 0.2),
            (1, True, 3, 0.1),
            (2, True, 5, 9.0),
            (48, True, 10, 0.0),
        ],
    )
    def test_rollout_is_smooth_then_spline_then_seam(
        self, kernel: ModuleType, length: int, decimate: bool, rate: int, window: float
    ) -> None:
        rng = np.random.default_rng(length)
        rows, command = rng.normal(size=(length, 6)), rng.normal(size=(3, 6))
        upper = np.array([math.inf] * 5 + [0.5])
        plan = kernel.SmoothPlan(length, 6, 2, 9, 3, decimate, rate, upper=upper)
        out, knots = np.empty((plan.points, 6)), np.empty((plan.knots, 6))
        plan.rollout(rows, command, STEP, window, out)
        plan.smooth(rows, knots)
        moments, offset = np.empty_like(knots), np.empty((6, 6))
        kernel.spline(knots, moments)
        kernel.blend(command - at(kernel, knots, moments, 0.0), window, offset)
        for k in range(plan.points):
            want = at(kernel, knots, moments, min(k / rate, plan.knots - 1) * STEP)
            kernel.sample_offset(offset, window, k * STEP / rate, want)
            assert np.allclose(out[k], np.minimum(want[0], upper), rtol=0, atol=1e-12)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"length": 0}, "length is 0, must be at least 1"),
            ({"joints": 0}, "joints is 0"),
            ({"factor": 0}, "factor is 0"),
            ({"window": 0}, "window is 0"),
            ({"order": -1}, "order is -1"),
            ({"rate": 0}, "rate is 0"),
            ({"lower": np.zeros(2)}, r"lower is packed float64 \(2,\)"),
            ({"lower": np.ones(3), "upper": np.zeros(3)}, "must not be above upper"),
            ({"lower": np.full(3, math.nan)}, "must not be above upper"),
        ],
    )
    def test_refuses_a_size(self, change: dict, message: str) -> None:
        for module in (chunk, TWIN):
            with pytest.raises(ValueError, match=message):
                module.SmoothPlan(**{"length": 8, "joints": 3, **change})

    def test_refuses_an_array(self) -> None:
        good, out = np.zeros((8, 3)), np.zeros((8, 3))
        for module in (chunk, TWIN):
            plan = module.SmoothPlan(8, 3)
            for bad in (np.zeros((7, 3)), good.astype(np.float32), np.zeros((3, 8)).T, np.zeros((8, 6))[:, ::2]):
                with pytest.raises(ValueError, match=r"chunk is .*, must be packed float64 \(8, 3\)"):
                    plan.smooth(bad, out)
            with pytest.raises(ValueError, match="out is"):
                plan.smooth(good, np.zeros((9, 3)))
            with pytest.raises(ValueError, match="rows is"):
                plan.savgol(good, out)
            with pytest.raises(ValueError, match="out is"):
                plan.resample(good, out)
            with pytest.raises(ValueError, match="commanded is"):
                plan.rollout(good, np.zeros((2, 3)), STEP, 0.1, out)

    def test_a_frozen_chunk_will_do(self) -> None:
        rows = np.ones((8, 3))
        rows.flags.writeable = False
        out = np.zeros((8, 3))
        chunk.SmoothPlan(8, 3).smooth(rows, out)
        assert np.allclose(out, 1)


class TestSeam:
    """Continuity, landing, limits, shortness, and the handoffs that others got wrong."""

    def seam(
        self,
        kernel: ModuleType,
        knots: np.ndarray,
        moments: np.ndarray,
        tau: float,
        command: np.ndarray,
        limits: np.ndarray = LIMITS,
    ) -> tuple[float, np.ndarray]:
        offset = np.full((knots.shape[1], 6), 7.0)
        return kernel.seam(knots, moments, STEP, tau, command, limits, offset), offset

    @pytest.mark.parametrize("seed", range(8))
    @pytest.mark.parametrize("tau", [0.0, 0.137, 0.5])
    def test_junction_landing_limits_and_shortness(self, kernel: ModuleType, seed: int, tau: float) -> None:
        knots, moments, command = arrival(kernel, seed, tau)
        window, offset = self.seam(kernel, knots, moments, tau, command)
        assert STEP <= window <= 1.5 - tau
        out = at(kernel, knots, moments, tau)
        kernel.sample_offset(offset, window, 0.0, out)
        assert np.abs(out - command).max() < 1e-9
        out = np.zeros((3, 6))
        kernel.sample_offset(offset, window, window * (1 - 1e-12), out)
        assert np.abs(out).max() < 1e-9
        out[:] = 5.0
        kernel.sample_offset(offset, window, window, out)
        assert (out == 5.0).all()
        assert reference.kept(knots, moments, STEP, tau, command, LIMITS, offset, window)
        shorter = window * 0.999 if kernel is not reference else window - 1.5 / 199
        if shorter > STEP:
            reference.blend(command - at(kernel, knots, moments, tau), shorter, offset)
            assert not reference.kept(knots, moments, STEP, tau, command, LIMITS, offset, shorter)

    @pytest.mark.parametrize(
        ("gap", "limits"),
        [
            (0.5, (1.0, 1e9, 1e9)),
            (0.5, (1e9, 5.0, 1e9)),
            (0.5, (1e9, 1e9, 50.0)),
            (-0.3, (1.0, 9.0, 150.0)),
        ],
    )
    def test_from_rest_to_rest_the_window_has_a_closed_form(
        self, kernel: ModuleType, gap: float, limits: tuple[float, float, float]
    ) -> None:
        knots, moments = np.zeros((40, 6)), np.zeros((40, 6))
        command = np.zeros((3, 6))
        command[0, 4] = gap
        window, _ = self.seam(kernel, knots, moments, 0.0, command, np.repeat(np.array(limits)[:, None], 6, axis=1))
        velocity, acceleration, jerk = limits
        size = abs(gap)
        want = max(
            15 / 8 * size / velocity, math.sqrt(10 / math.sqrt(3) * size / acceleration), (60 * size / jerk) ** (1 / 3)
        )
        assert want <= window * (1 + 1e-8) <= want * 1.001 + (3.9 / 199 if kernel is reference else 0)

    @pytest.mark.parametrize("seed", range(4))
    def test_as_short_as_the_reference(self, seed: int) -> None:
        knots, moments, command = arrival(chunk, seed, 0.2)
        found, _ = self.seam(chunk, knots, moments, 0.2, command)
        searched, _ = self.seam(reference, knots, moments, 0.2, command)
        assert abs(found - searched) <= 1.3 / 199 + 1e-3

    def test_nothing_to_blend_is_no_window(self, kernel: ModuleType) -> None:
        knots, moments = trajectory(kernel, 3)
        window, offset = self.seam(kernel, knots, moments, 0.23, at(kernel, knots, moments, 0.23))
        assert window == 0 and not offset.any()

    def test_a_hair_is_blended_over_one_step(self, kernel: ModuleType) -> None:
        knots, moments = trajectory(kernel, 3)
        command = at(kernel, knots, moments, 0.23)
        command[0, 1] += 1e-6
        window, _ = self.seam(kernel, knots, moments, 0.23, command)
        assert window == STEP

    def test_too_far_takes_all_that_is_left_and_says_so(self, kernel: ModuleType) -> None:
        knots, moments = trajectory(kernel, 3, length=8)
        command = at(kernel, knots, moments, 0.3)
        command[0, 1] += 2.0
        window, offset = self.seam(kernel, knots, moments, 0.3, command)
        assert window == pytest.approx(-0.4)
        out = at(kernel, knots, moments, 0.3)
        kernel.sample_offset(offset, window, 0.0, out)
        assert np.abs(out - command).max() < 1e-9

    @pytest.mark.parametrize(("length", "tau"), [(8, 0.7), (8, 0.75), (8, 30.0), (1, -0.05), (1, 0.0), (1, 0.4)])
    def test_late_beyond_the_end_still_leads_to_the_last_knot(
        self, kernel: ModuleType, length: int, tau: float
    ) -> None:
        knots, moments, command = arrival(kernel, 11, tau, length)
        window, offset = self.seam(kernel, knots, moments, tau, command)
        assert abs(window) == pytest.approx(STEP)
        out = at(kernel, knots, moments, tau)
        kernel.sample_offset(offset, window, 0.0, out)
        assert np.abs(out - command).max() < 1e-9

    def test_arrival_before_the_first_knot(self, kernel: ModuleType) -> None:
        knots, moments, command = arrival(kernel, 12, -0.06)
        window, offset = self.seam(kernel, knots, moments, -0.06, command)
        assert window > 0 and reference.kept(knots, moments, STEP, -0.06, command, LIMITS, offset, window)

    def test_a_limit_broken_by_the_chunk_itself_is_not_the_seams_fault(self, kernel: ModuleType) -> None:
        knots, moments, command = arrival(kernel, 13, 0.2)
        tight = LIMITS.copy()
        tight[2] = 1e-3  # far below the jerk of the chunk alone
        window, offset = self.seam(kernel, knots, moments, 0.2, command, tight)
        assert window != 0 and np.isfinite(offset).all()
        assert (window > 0) == reference.kept(knots, moments, STEP, 0.2, command, tight, offset, abs(window))

    def test_a_command_on_its_limit_is_not_an_excess(self, kernel: ModuleType) -> None:
        knots, moments = np.zeros((16, 6)), np.zeros((16, 6))
        command = np.zeros((3, 6))
        command[1, 0] = LIMITS[0, 0] * (1 + 1e-12)
        window, _ = self.seam(kernel, knots, moments, 0.0, command)
        assert 0 < window < 1.5

    @pytest.mark.parametrize("where", ["knots", "command", "tau", "limits", "infinite"])
    def test_not_a_number_is_not_a_window(self, where: str) -> None:
        for module in (chunk, TWIN):
            knots, moments, command = arrival(module, 14, 0.2)
            limits, tau = LIMITS.copy(), 0.2
            if where == "knots":
                knots[9, 3] = math.nan
                module.spline(knots, moments)
            elif where == "command":
                command[2, 5] = math.nan
            elif where == "tau":
                tau = math.nan
            elif where == "limits":
                limits[1, 1] = math.nan
            else:
                command[0, 0] = math.inf
            with np.errstate(invalid="ignore"):
                window, offset = self.seam(module, knots, moments, tau, command, limits)
                out = np.zeros((3, 6))
                module.sample_offset(offset, window, 0.0, out)
            assert math.isnan(window) and np.isnan(out).all()

    def test_shapes_that_disagree_are_not_a_window(self) -> None:
        knots, moments, command = arrival(chunk, 15, 0.2)
        for module in (chunk, TWIN):
            offset = np.zeros((6, 6))
            assert math.isnan(module.seam(knots, moments[1:].copy(), STEP, 0.2, command, LIMITS, offset))
            assert math.isnan(module.seam(knots, moments, STEP, 0.2, command[:2].copy(), LIMITS, offset))
            assert math.isnan(module.seam(knots, moments, STEP, 0.2, command, LIMITS[:2].copy(), offset))
            assert math.isnan(module.seam(knots, moments, STEP, 0.2, command, LIMITS, offset[:5].copy()))
            assert math.isnan(module.seam(knots, moments, 0.0, 0.2, command, LIMITS, offset))


class TestTwin:
    """Compiled and interpreted agree to the last bit: the build neither contracts nor reorders."""

    def test_seam_and_rollout_are_equal_to_the_bit(self) -> None:
        for seed in range(6):
            knots, moments, command = arrival(chunk, seed, 0.31)
            offsets = [np.zeros((6, 6)), np.zeros((6, 6))]
            windows = [
                m.seam(knots, moments, STEP, 0.31, command, LIMITS, o)
                for m, o in zip((chunk, TWIN), offsets, strict=True)
            ]
            assert windows[0] == windows[1] and (offsets[0] == offsets[1]).all()
            outs = []
            for module in (chunk, TWIN):
                plan = module.SmoothPlan(16, 6, rate=5)
                outs.append(np.empty((plan.points, 6)))
                plan.rollout(knots, command, STEP, windows[0], outs[-1])
            assert (outs[0] == outs[1]).all()
        other = np.empty_like(outs[0])
        chunk.SmoothPlan(16, 6, rate=5).rollout(knots + 1e-15, command, STEP, windows[0], other)
        assert (other != outs[0]).any()
