"""The gate, its interpreted twin and its reference: one class of tests for all three, then damage and agreement.

The bugs that others shipped and that are asked for here: a clamp that turns NaN into a limit or lets it through
(`max(min(x, hi), lo)`, `fmin`/`fmax`), a cast that turns NaN into raw count 0, a build with -ffast-math that cannot
see NaN at all, and a burst that makes up for missed periods.
"""

import importlib.util
import math
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dzedge.kernels import gate, limiter, reference_control

J = 6
TICK = 0.01
VMAX = 2.0
BAD = (float("nan"), float("inf"), float("-inf"), 1e300, -1e300)
BOUNDS = np.array([[VMAX] * J, [0.0] * J, [0.0] * J, [-1.5] * J, [1.5] * J, [0.15] * J])
FRESH = np.array([0.1, 0.0, 0.01])
RULES = gate.rules(observation_age=0.82, command_age=0.03, measured_age=0.03)
REST = np.zeros(J)
Code = gate.Code


def interpreted(module: ModuleType) -> ModuleType:
    """The same source, not compiled."""
    path = Path(str(module.__file__)).parent / f"{module.__name__.rsplit('.', 1)[-1]}.py"
    spec = importlib.util.spec_from_file_location(f"{module.__name__}__py", path)
    assert spec is not None and spec.loader is not None
    twin = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(twin)
    return twin


TWIN = interpreted(gate)


@pytest.fixture(params=[gate, TWIN, reference_control], ids=["compiled", "interpreted", "reference"])
def kernel(request: pytest.FixtureRequest) -> ModuleType:
    return request.param


class Arm:
    """A gate with its tables, armed at rest at zero; the measured joints are where the commands are."""

    def __init__(self, kernel: ModuleType, bounds: np.ndarray = BOUNDS, rules: np.ndarray = RULES) -> None:
        self.kernel, self.bounds, self.rules = kernel, bounds, rules
        self.memory = kernel.memory(bounds.shape[1])
        assert kernel.arm(self.memory, np.zeros(bounds.shape[1])) == Code.ACCEPTED

    def send(self, command, measured=None, ages=FRESH, elapsed=TICK):
        command = np.array(command, dtype=float)
        measured = command.copy() if measured is None else np.array(measured, dtype=float)
        return self.kernel.check(command, measured, ages, elapsed, self.bounds, self.rules, self.memory)

    @property
    def joint(self):
        return self.kernel.offender(self.memory)


def only(joint: int, value: float) -> np.ndarray:
    row = np.zeros(J)
    row[joint] = value
    return row


def bounded(**rows: float) -> np.ndarray:
    bounds = BOUNDS.copy()
    for name, value in rows.items():
        bounds[("velocity", "acceleration", "jerk", "lower", "upper", "following").index(name)] = value
    return bounds


def changed(table: np.ndarray, cell, value: float) -> np.ndarray:
    table = table.copy()
    table[cell] = value
    return table


class TestGate:
    def test_a_calm_command_is_accepted_and_remembered(self, kernel):
        arm = Arm(kernel)
        assert arm.send(REST) == Code.ACCEPTED
        assert arm.joint == -1
        for k in range(1, 60):
            assert arm.send(np.full(J, 0.5 * VMAX * TICK * k)) == Code.ACCEPTED

    def test_unarmed_it_refuses(self, kernel):
        memory = kernel.memory(J)
        assert kernel.check(REST, REST, FRESH, TICK, BOUNDS, RULES, memory) == Code.MEMORY

    @pytest.mark.parametrize("value", BAD)
    def test_arming_at_no_pose_is_refused(self, kernel, value):
        memory = kernel.memory(J)
        assert kernel.arm(memory, only(2, value)) == Code.FINITE
        assert kernel.offender(memory) == 2
        assert kernel.check(REST, REST, FRESH, TICK, BOUNDS, RULES, memory) == Code.MEMORY

    @pytest.mark.parametrize("value", BAD)
    @pytest.mark.parametrize("joint", range(J))
    def test_no_bad_number_passes_in_command_or_measurement(self, kernel, joint, value):
        arm = Arm(kernel)
        assert arm.send(only(joint, value), REST) == Code.FINITE
        assert arm.joint == joint
        assert arm.send(REST, only(joint, value)) == Code.FINITE
        assert arm.joint == joint
        assert arm.send(REST) == Code.ACCEPTED

    @pytest.mark.parametrize("value", BAD)
    def test_no_bad_number_passes_in_the_tables(self, kernel, value):
        for cell in np.ndindex(BOUNDS.shape):
            assert Arm(kernel, bounds=changed(BOUNDS, cell, value)).send(REST) == Code.FINITE
        for cell in range(len(RULES)):
            assert Arm(kernel, rules=changed(RULES, cell, value)).send(REST) == Code.FINITE

    @pytest.mark.parametrize("value", BAD)
    def test_no_bad_time_passes(self, kernel, value):
        arm = Arm(kernel)
        assert arm.send(REST, elapsed=value) == Code.ELAPSED
        for k, code in enumerate((Code.OBSERVATION_AGE, Code.COMMAND_AGE, Code.MEASURED_AGE)):
            assert arm.send(REST, ages=changed(FRESH, k, value)) == code
            assert arm.joint == -1

    @pytest.mark.parametrize("elapsed", [0.0, -0.01])
    def test_time_must_pass(self, kernel, elapsed):
        assert Arm(kernel).send(REST, elapsed=elapsed) == Code.ELAPSED

    @pytest.mark.parametrize("k, code", [(0, Code.OBSERVATION_AGE), (1, Code.COMMAND_AGE), (2, Code.MEASURED_AGE)])
    def test_ages_are_exact_at_the_bound(self, kernel, k, code):
        bound = RULES[k]
        for age, verdict in [
            (0.0, Code.ACCEPTED), (math.nextafter(bound, 0), Code.ACCEPTED), (bound, Code.ACCEPTED),
            (math.nextafter(bound, 9), code), (2 * bound, code), (-1e-9, code),
        ]:  # fmt: skip
            assert Arm(kernel).send(REST, ages=changed(FRESH, k, age)) == verdict

    @pytest.mark.parametrize("joint", [0, J - 1])
    @pytest.mark.parametrize("bound", [-0.01, 0.01])
    def test_positions_are_exact_at_the_bound(self, kernel, joint, bound):
        bounds = changed(BOUNDS, (3 if bound < 0 else 4, joint), bound)
        for value, verdict in [
            (0.0, Code.ACCEPTED), (math.nextafter(bound, 0), Code.ACCEPTED), (bound, Code.ACCEPTED),
            (math.nextafter(bound, 9 * bound), Code.POSITION), (1.5 * bound, Code.POSITION),
        ]:  # fmt: skip
            arm = Arm(kernel, bounds)
            assert arm.send(only(joint, value)) == verdict
            assert arm.joint == (joint if verdict else -1)

    @pytest.mark.parametrize("joint", [0, J - 1])
    @pytest.mark.parametrize("elapsed", [0.002, 0.01, 0.2])
    def test_velocity_counts_the_time_that_passed(self, kernel, joint, elapsed):
        bound = 1.05 * VMAX * elapsed
        for value, verdict in [
            (bound, Code.ACCEPTED), (-bound, Code.ACCEPTED), (math.nextafter(bound, 0), Code.ACCEPTED),
            (math.nextafter(bound, 9), Code.VELOCITY), (-1.01 * bound, Code.VELOCITY),
        ]:  # fmt: skip
            arm = Arm(kernel)
            assert arm.send(only(joint, value), elapsed=elapsed) == verdict
            assert arm.joint == (joint if verdict else -1)

    def test_a_refused_command_leaves_no_trace(self, kernel):
        arm, twin = Arm(kernel), Arm(kernel)
        rng = np.random.default_rng(0)
        pose = REST
        for _ in range(50):
            assert arm.send(pose + 1.0) != Code.ACCEPTED
            assert arm.send(pose, ages=FRESH + 1) != Code.ACCEPTED
            pose = pose + rng.uniform(-1.2, 1.2, J) * VMAX * TICK
            assert arm.send(pose) == twin.send(pose)
            pose = pose if arm.joint == -1 else pose * 0

    def test_a_jump_after_a_stall_is_a_jump(self, kernel):
        """Half a second without a command allows 1.05 m of travel by its mean velocity, but not at once."""
        arm = Arm(kernel)
        assert arm.send(only(1, 1.0), elapsed=0.5) == Code.WINDOW
        assert arm.joint == 1
        assert arm.send(only(1, 1.05 * VMAX * 0.25), elapsed=0.5) == Code.ACCEPTED

    def test_full_speed_is_allowed_for_ever_at_any_tick(self, kernel):
        for tick in (0.002, 0.01, 0.033):
            arm, pose, way = Arm(kernel), 0.0, 1
            for _ in range(200):
                way = way if abs(pose + way * VMAX * tick) <= 1.5 else -way
                pose += way * VMAX * tick
                assert arm.send(np.full(J, pose), elapsed=tick) == Code.ACCEPTED

    def test_a_window_forgets(self, kernel):
        arm = Arm(kernel)
        assert arm.send(only(0, 0.5), elapsed=0.3) == Code.ACCEPTED
        assert arm.send(only(0, 0.5), elapsed=0.3) == Code.ACCEPTED
        assert arm.send(only(0, 1.0), elapsed=0.3) == Code.ACCEPTED

    def test_bursts_are_counted(self, kernel):
        rules = gate.rules(0.82, 0.03, 0.03, burst=30)
        arm = Arm(kernel, rules=rules)
        verdicts = [arm.send(REST, elapsed=0.005) for _ in range(31)]
        assert verdicts == [Code.ACCEPTED] * 30 + [Code.BURST]
        assert arm.joint == -1
        assert arm.send(REST, elapsed=0.2) == Code.ACCEPTED

    def test_more_commands_than_can_be_remembered_are_a_burst(self, kernel):
        arm = Arm(kernel)
        verdicts = [arm.send(REST, elapsed=0.0005) for _ in range(260)]
        assert verdicts[:256] == [Code.ACCEPTED] * 256
        assert verdicts[256] == Code.BURST

    def test_following_may_be_bad_for_a_tenth_of_a_second(self, kernel):
        arm = Arm(kernel)
        verdicts = [arm.send(REST, only(3, 0.16)) for _ in range(13)]
        assert verdicts[:10] == [Code.ACCEPTED] * 10
        assert verdicts[12] == Code.FOLLOWING
        assert arm.joint == 3
        assert arm.send(REST, REST) == Code.ACCEPTED
        assert arm.send(REST, only(3, 0.16)) == Code.ACCEPTED

    def test_following_counts_the_time_since_the_last_accepted(self, kernel):
        arm = Arm(kernel)
        assert arm.send(REST, only(3, -0.16)) == Code.ACCEPTED
        assert arm.send(REST, only(3, -0.16), elapsed=0.11) == Code.FOLLOWING
        assert arm.send(REST, only(3, 0.15), elapsed=0.12) == Code.ACCEPTED

    @pytest.mark.parametrize("speed, behind", [(1.0, 0.3), (2.0, 0.45), (-0.4, 0.21)])
    def test_following_allows_more_in_motion(self, kernel, speed, behind):
        for off, verdicts in [(behind - 1e-6, {Code.ACCEPTED}), (behind + 1e-6, {Code.ACCEPTED, Code.FOLLOWING})]:
            arm = Arm(kernel)
            seen = set()
            for k in range(1, 30):
                seen.add(arm.send(only(5, speed * TICK * k), only(5, speed * TICK * k - math.copysign(off, speed))))
                if arm.joint >= 0:
                    break
            assert seen == verdicts

    def test_following_is_exact_at_its_time(self, kernel):
        rules = gate.rules(0.82, 0.03, 0.03, following_time=0.125)
        for last, verdict in [(0.0625, Code.ACCEPTED), (0.0626, Code.FOLLOWING)]:
            arm = Arm(kernel, rules=rules)
            assert arm.send(REST, only(4, 0.2)) == Code.ACCEPTED
            assert arm.send(REST, only(4, 0.2), elapsed=0.0625) == Code.ACCEPTED
            assert arm.send(REST, only(4, 0.2), elapsed=last) == verdict

    def test_it_starts_where_the_arm_is(self, kernel):
        pose = np.array([0.1, -0.2, 0.3, -0.4, 0.5, 1.0])
        arm = Arm(kernel)
        assert kernel.arm(arm.memory, pose) == Code.ACCEPTED
        assert arm.send(pose + 1.04 * VMAX * TICK) == Code.ACCEPTED
        assert kernel.arm(arm.memory, pose) == Code.ACCEPTED
        assert arm.send(pose + only(4, 1.06 * VMAX * TICK)) == Code.VELOCITY
        assert arm.joint == 4

    def test_the_oldest_command_counts_for_its_share_of_the_window(self, kernel):
        """0.5 came in 1 s, 0.15 s of which are in the window: 0.075 of the 0.105 that a slower limit then allows."""
        for more, verdict in [(0.0299, Code.ACCEPTED), (0.0301, Code.WINDOW)]:
            arm = Arm(kernel)
            assert arm.send(only(2, 0.5), elapsed=1.0) == Code.ACCEPTED
            arm.bounds = bounded(velocity=0.4)
            assert arm.send(only(2, 0.5 + more), elapsed=0.1) == verdict

    @pytest.mark.parametrize("row, code", [("acceleration", Code.ACCELERATION), ("jerk", Code.JERK)])
    def test_acceleration_and_jerk_where_bounded(self, kernel, row, code):
        limits = np.array([[VMAX], [10.0], [100.0], [-1.5], [1.5]])
        state, arm = np.zeros((3, 1)), Arm(kernel, BOUNDS[:, :1].copy())
        arm.bounds = changed(changed(arm.bounds, (1, 0), 10.0), (2, 0), 100.0)
        tight = Arm(kernel, changed(arm.bounds, (("acceleration", "jerk").index(row) + 1, 0), 5.0))
        verdicts = []
        rng = np.random.default_rng(3)
        for _ in range(60):
            elapsed = rng.uniform(0.004, 0.016)
            limiter.step(state, np.ones(1), np.zeros(1), limits, elapsed)
            assert arm.send(state[0], elapsed=elapsed) == Code.ACCEPTED
            verdicts.append(tight.send(state[0], elapsed=elapsed))
        assert next(v for v in verdicts if v) == code
        assert tight.joint == 0 or verdicts[-1] == Code.ACCEPTED

    def test_the_first_refusal_wins(self, kernel):
        far, old = np.full(J, 9.0), np.array([9.0, 9.0, 9.0])
        rules = RULES.copy()
        arm = Arm(kernel, rules=rules)
        nan = changed(far, 4, math.nan)
        assert arm.send(nan, REST, old, -1.0) == Code.FINITE
        assert arm.send(far, REST, old, -1.0) == Code.ELAPSED
        for k, code in enumerate((Code.OBSERVATION_AGE, Code.COMMAND_AGE, Code.MEASURED_AGE)):
            assert arm.send(far, REST, old) == code
            rules[k] = 10.0
        assert arm.send(far, REST, old) == Code.POSITION
        assert arm.send(far / 9, REST, old) == Code.VELOCITY
        assert arm.joint == 0

    def test_shapes_must_agree(self, kernel):
        arm = Arm(kernel)
        assert arm.send(np.zeros(J - 1), REST) == Code.MEMORY
        assert arm.send(REST, np.zeros(J + 1)) == Code.MEMORY


@pytest.mark.parametrize("module", [gate, TWIN], ids=["compiled", "interpreted"])
def test_a_damaged_memory_accepts_nothing_new(module) -> None:
    """Whatever one cell of it is changed to, a command far off is refused."""
    size = module.memory_size(2)
    bounds = BOUNDS[:, :2].copy()
    clean = module.memory(2)
    module.arm(clean, np.zeros(2))
    for _ in range(20):
        assert module.check(np.zeros(2), np.zeros(2), FRESH, TICK, bounds, RULES, clean) == Code.ACCEPTED
    for cell in range(size):
        for value in (*BAD, -7.0, 0.5, 256.0, 257.0):
            memory = clean.copy()
            memory[cell] = value
            far = np.array([1.0, -1.0])
            before = memory.copy()
            verdict = module.check(far, far, FRESH, TICK, bounds, RULES, memory)
            assert verdict != Code.ACCEPTED
            assert (memory[8:14] == before[8:14]).all() or not np.isfinite(memory[8:14]).all()
            assert -1 <= module.offender(memory) < 2 or 0 < value < 300
    for cell, value in [(4, 256.0), (5, 257.0), (4, -1.0), (5, -1.0), (0, 0.0), (6, -1.0), (7, -1.0)]:
        memory = clean.copy()
        memory[cell] = value
        assert module.check(np.zeros(2), np.zeros(2), FRESH, TICK, bounds, RULES, memory) == Code.MEMORY
        assert module.offender(memory) == -1


@pytest.mark.parametrize("module", [gate, TWIN], ids=["compiled", "interpreted"])
def test_offence_tells_value_and_bound(module) -> None:
    def tells(arm: Arm, code: int, *expected: float) -> None:
        assert (code, *module.offence(arm.memory)) == pytest.approx(expected, rel=1e-12)

    arm = Arm(module)
    tells(arm, arm.send(only(4, 0.05)), Code.VELOCITY, 4, 5.0, 1.05 * VMAX)
    tells(arm, arm.send(only(4, -0.05), elapsed=0.02), Code.VELOCITY, 4, 2.5, 1.05 * VMAX)
    tells(arm, arm.send(only(4, 1.6)), Code.POSITION, 4, 1.6, 1.5)
    tells(arm, arm.send(only(4, -1.6)), Code.POSITION, 4, -1.6, -1.5)
    tells(arm, arm.send(REST, ages=FRESH + 1), Code.OBSERVATION_AGE, -1, 1.1, 0.82)
    tells(arm, arm.send(REST, elapsed=-1.0), Code.ELAPSED, -1, -1.0, 0.0)
    tells(arm, arm.send(only(1, 1.0), elapsed=0.5), Code.WINDOW, 1, 1.0, 1.05 * VMAX * 0.25 * (1 + 1e-9))
    tells(arm, arm.send(only(1, 1e300), REST), Code.FINITE, 1, 1e300, 1e9)
    assert arm.send(REST, only(3, -0.3)) == Code.ACCEPTED
    tells(arm, arm.send(only(3, 0.1), only(3, -0.3), elapsed=0.2), Code.FOLLOWING, 3, 0.4, 0.15 + 0.15 * 0.5)
    arm.bounds = bounded(acceleration=5.0)
    tells(arm, arm.send(only(2, 0.01), elapsed=0.05), Code.ACCELERATION, 2, 0.2 / 0.03, 5.25)
    arm.bounds = bounded(jerk=50.0)
    tells(arm, arm.send(only(2, 0.01), elapsed=0.05), Code.JERK, 2, 3 * (0.2 / 0.03) / 0.07, 52.5)
    arm.rules = gate.rules(0.82, 0.03, 0.03, burst=1)
    tells(arm, arm.send(REST), Code.BURST, -1, 2, 1)
    assert module.offender(np.zeros(3)) == -1


def test_acceleration_and_jerk_agree_with_reference_and_twin() -> None:
    """Random motion with bounds about as great as what happens, so that every verdict does."""
    rng = np.random.default_rng(4)
    bounds = np.array([[5.0, 5.0], [60.0, 0.0], [0.0, 6e3], [-1.5, -1.5], [1.5, 1.5], [0.15, 0.15]])
    seen = []
    for _ in range(60):
        arms = [Arm(module, bounds) for module in (gate, TWIN, reference_control)]
        pose = np.zeros(2)
        for _ in range(25):
            elapsed, command = rng.uniform(0.005, 0.03), pose + rng.normal(0, 0.004, 2)
            verdicts = [arm.send(command, elapsed=elapsed) for arm in arms]
            assert verdicts[0] == verdicts[1] == verdicts[2]
            assert arms[0].joint == arms[1].joint == arms[2].joint
            pose = pose if verdicts[0] else command
            seen.append(verdicts[0])
    assert {Code.ACCEPTED, Code.ACCELERATION, Code.JERK} <= set(seen)


def test_rules_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="read-only"):
        RULES[0] = 9.0


def test_codes_are_in_the_order_of_the_checks() -> None:
    assert [code.name for code in Code][:3] == ["ACCEPTED", "FINITE", "MEMORY"]
    assert [int(code) for code in Code] == list(range(14))


def near(bound: float) -> st.SearchStrategy[float]:
    """Values dense at a bound, sparse elsewhere."""
    exact = [bound, math.nextafter(bound, 9), math.nextafter(bound, -9), -bound, 0.0]
    return st.sampled_from(exact) | st.floats(-1.5 * bound, 1.5 * bound) | st.sampled_from(BAD)


@settings(deadline=None, max_examples=120)
@given(st.data())
def test_agrees_with_reference_and_twin(data):
    """Sequences dense at the bounds: three implementations, one verdict, one joint."""
    bounds = np.array([[2.0, 1.0], [0.0, 300.0], [0.0, 0.0], [-0.05, -1.5], [0.05, 1.5], [0.15, 0.02]])
    rules = gate.rules(0.82, 0.03, 0.03, burst=12)
    arms = [Arm(module, bounds, rules) for module in (gate, TWIN, reference_control)]
    pose = np.zeros(2)
    for _ in range(data.draw(st.integers(1, 15))):
        elapsed = data.draw(st.sampled_from([0.002, 0.01, 0.02, 0.1, 0.3, 0.0]))
        move = [data.draw(near(1.05 * bounds[0, i] * elapsed)) for i in range(2)]
        command = pose + move
        off = [data.draw(near(bounds[5, i])) for i in range(2)]
        measured = np.where(np.isfinite(command), command, 0.0) + off
        ages = np.array([data.draw(st.sampled_from([0.0, 0.01, 0.03, 0.031])) for _ in range(3)])
        verdicts = [arm.send(command, measured, ages, elapsed) for arm in arms]
        assert verdicts[0] == verdicts[1] == verdicts[2]
        assert arms[0].joint == arms[1].joint == arms[2].joint
        if verdicts[0] == Code.ACCEPTED:
            assert np.isfinite(command).all()
            pose = command


@pytest.mark.parametrize("seed", range(4))
def test_no_accepted_sequence_is_faster_than_allowed(seed):
    """Over any span between accepted commands, travel <= 1.05 vmax x real time; refusals in between change nothing."""
    rng = np.random.default_rng(seed)
    arm, pose, since = Arm(gate), np.zeros(J), 0.0
    times, poses, now = [0.0], [pose], 0.0
    for _ in range(3000):
        tick = float(rng.choice([0.002, 0.01, 0.01, 0.03, 0.4]))
        now, since = now + tick, since + tick
        reach = 1.05 * VMAX * min(since, rng.choice([0.05, 0.25, 9.0])) * rng.choice([0.5, 1.0, 1.0, 1.2])
        command = np.clip(pose + rng.choice([-1, 1], J) * reach, -1.5, 1.5)
        if rng.random() < 0.2:
            command[rng.integers(J)] = rng.choice([0.0, 1.5, math.nan, command[0]])
        if arm.send(command, elapsed=since) == Code.ACCEPTED:
            pose, since = command, 0.0
            times.append(now)
            poses.append(pose)
    at, path = np.array(times), np.array(poses)
    assert len(at) > 100
    travel = np.abs(np.diff(path, axis=0))
    assert (travel <= 1.05 * VMAX * np.diff(at)[:, None] * (1 + 1e-9)).all()
    # a jump counts whole in the 250 ms that end with it
    assert (travel <= 1.05 * VMAX * 0.25 * (1 + 1e-9)).all()


@pytest.mark.parametrize("module", [gate, TWIN], ids=["compiled", "interpreted"])
def test_run_is_check_in_a_row(module):
    rng = np.random.default_rng(1)
    commands = np.cumsum(rng.normal(0, 0.015, (80, J)), axis=0)
    elapsed, ages = rng.uniform(0.005, 0.02, 80), np.tile(FRESH, (80, 1))
    arm, since, expected = Arm(gate), 0.0, []
    for command, tick in zip(commands, elapsed, strict=True):
        since += tick
        expected.append(arm.send(command, elapsed=since))
        since = since if expected[-1] else 0.0
    memory, codes = module.memory(J), np.empty(80, np.intc)
    module.arm(memory, REST)
    assert module.run(commands, commands, ages, elapsed, BOUNDS, RULES, memory, codes) == np.count_nonzero(expected)
    assert codes.tolist() == expected
    assert len(set(expected)) > 1
    assert module.run(commands, commands, ages, elapsed[1:].copy(), BOUNDS, RULES, memory, codes) == -1
