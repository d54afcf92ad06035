"""The scripted teachers do what their judge asks, also after being disturbed."""

import numpy as np
import pytest

from dzedge.hardware.sim import expert, task
from dzedge.hardware.sim.kinematics import points
from dzedge.hardware.sim.scene import LOWER, UPPER
from dzedge.hardware.sim.task import MOTIONS, VERBS, Judge
from dzedge.hardware.sim.world import HOME, World


@pytest.fixture(scope="module")
def world() -> World:
    return World(0)


def _lead(world: World, before: np.ndarray, command: np.ndarray) -> None:
    for tick in range(1, 11):
        world.set_goal(before + (command - before) * tick / 10)
        world.step(0.01)


def _attempt(world: World, verb: str, seed: int, disturb: float = 0.0, turn: int = 1) -> Judge | None:
    rng = np.random.default_rng(seed)
    command = expert.start_pose(rng) if seed % 2 else HOME.copy()
    world.reset(seed, command)
    chosen = task.sample_task(seed, world, verb)
    if chosen is None:
        return None
    teacher, judge = expert.Expert(chosen, command, turn), Judge(chosen)
    for step in range(120):
        if judge.update(world.time, world.tip(), world.cubes()):
            break
        target = teacher.next(command, world.cubes())
        if disturb and 4 <= step < 7:
            target[:5] += rng.normal(0.0, disturb, 5)
        assert np.abs(target - command).max() < 0.25
        _lead(world, command, target)
        command = target
    return judge


@pytest.mark.parametrize("verb", VERBS + MOTIONS)
def test_expert_succeeds(world: World, verb: str) -> None:
    """Both ways round, where there are two: at least four scenes each."""
    for turn in (1, -1) if verb in (*MOTIONS, "pass") else (1,):
        results = []
        for seed in range(40):
            if len(results) < 4 and (judge := _attempt(world, verb, seed, turn=turn)) is not None:
                results.append(judge.success)
        assert results == [True] * 4


@pytest.mark.parametrize("verb", [*MOTIONS, "pass"])
def test_the_other_way_round_is_another_path(verb: str) -> None:
    cubes, sides = np.zeros((6, 4)), {}
    cubes[0] = (0.22, 0.03, 0.02, 1.0)
    for turn in (1, -1):
        teacher, command, tips = expert.Expert(task.Task(verb, "red"), HOME, turn), HOME.copy(), []
        for _ in range(80):
            command = teacher.next(command, cubes)
            tips.append(points(command)[0])
        sides[turn] = np.array(tips)
    assert np.abs(sides[1] - sides[-1]).max() > 0.05
    if verb == "pass":
        beside = {turn: tips[np.abs(tips[:, 1] - 0.03) < 0.02, 0] - 0.22 for turn, tips in sides.items()}
        assert beside[1].max() > 0.06, "on the far side"
        assert beside[-1].min() < -0.06, "between cube and base"


def test_a_pass_keeps_off_the_cube(world: World) -> None:
    """Its judge allows 12 mm of shoving; its teacher should need none."""
    judges = [j for seed in range(12) if (j := _attempt(world, "pass", seed, turn=1 - 2 * (seed % 2))) is not None]
    assert len(judges) >= 3
    assert max(judge.measure() for judge in judges) < 0.004


def test_expert_recovers_from_a_disturbance(world: World) -> None:
    results = [_attempt(world, "reach", seed, disturb=0.05) for seed in range(5)]
    assert all(j is not None and j.success for j in results)


def test_reach_takes_its_time(world: World) -> None:
    times = [j.success_time for seed in range(5) if (j := _attempt(world, "reach", seed)) is not None]
    assert all(t is not None and 0.8 <= t < 3.0 for t in times)


def test_expert_says_when_it_is_idle(world: World) -> None:
    world.reset(2)
    chosen = task.sample_task(2, world)
    assert chosen is not None
    teacher, command = expert.Expert(chosen, HOME), HOME.copy()
    for _ in range(40):
        command = teacher.next(command, world.cubes())
    assert teacher.idle > 5


def test_play_is_smooth_and_inside_the_limits() -> None:
    rng = np.random.default_rng(1)
    command = expert.start_pose(rng)
    player = expert.Player(rng, command)
    commands = [command]
    for _ in range(200):
        commands.append(player.next(commands[-1]))
    table = np.array(commands)
    assert (table >= LOWER).all()
    assert (table <= UPPER).all()
    assert np.abs(np.diff(table, axis=0)).max() < 0.16
    assert np.abs(np.diff(table, n=2, axis=0)).max() < 0.075
    assert np.ptp(table[:, 0]) > 0.8


def test_follow_arrives_without_overshoot() -> None:
    goal = HOME + np.array([0.8, 0.1, -0.1, 0.0, 0.0, 0.3])
    before = command = HOME
    limits = expert.GAIN, expert.SPEED, expert.ACCELERATION
    for _ in range(50):
        before, command = command, expert.follow(command, before, goal, *limits)
        assert command[0] < goal[0] + 0.02
    assert np.allclose(command, goal, atol=0.01)


def test_start_poses_differ_by_generator_and_are_legal() -> None:
    poses = np.array([expert.start_pose(np.random.default_rng(seed)) for seed in range(20)])
    assert (poses >= LOWER).all()
    assert (poses <= UPPER).all()
    assert len(np.unique(poses[:, 0])) == 20
