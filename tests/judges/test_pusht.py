"""gym-pusht, opt-in: the teacher solves it, its rehearsals are the real physics, standing still solves nothing."""

import warnings
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from dzedge.export.dataset import Dataset
from dzedge.export.yardstick_pusht import CAMERA, FIRST_SCENE, HALF, TASK, Stage, demonstrate
from dzedge.export.yardstick_teacher import GOAL, OUTLINE, Table, Way, misplacement, placed, touches

pytestmark = [
    pytest.mark.skipif(find_spec("gym_pusht") is None, reason="not installed: pip install gym-pusht==0.1.8"),
    # pygame, pymunk and gymnasium warn about each other and about setuptools.
    pytest.mark.filterwarnings("ignore"),
]
EPISODES = 20
BAR = 0.6


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield Stage()


class Puppet:
    """Plays what a function says."""

    def __init__(self, targets: Callable[[np.ndarray], np.ndarray]) -> None:
        self._targets, self.seen = targets, 0

    def begin(self) -> None:
        pass

    def see(self, image: np.ndarray) -> None:
        self.seen += 1

    def next(self, agent: np.ndarray) -> np.ndarray:
        return self._targets(agent)


def environments(seed: int):
    from gym_pusht.envs.pusht import PushTEnv

    pair = PushTEnv(obs_type="state"), PushTEnv(obs_type="state")
    pair[0].reset(seed=seed)
    pair[1].reset(seed=seed + 1)
    return pair


class TestTable:
    def test_a_rehearsed_push_is_the_played_one(self) -> None:
        played, rehearsal = environments(3)
        real, copy = Table(played), Table(rehearsal)
        copy.restore(real.state())
        start = real.state().block
        targets = np.linspace(real.state().agent, placed(OUTLINE[:, :2], start).mean(axis=0), 15)
        for target in targets:
            played.step(target)
            copy.step(target)
        assert np.abs(real.state().block - start)[:2].max() > 5.0
        np.testing.assert_allclose(copy.state().block, real.state().block, atol=0.05)
        np.testing.assert_allclose(copy.state().agent, real.state().agent, atol=1e-6)

    def test_restoring_gives_what_was_asked(self) -> None:
        played, rehearsal = environments(3)
        wanted = Table(played).state()
        assert np.abs(Table(rehearsal).state().block - wanted.block).max() > 1.0
        Table(rehearsal).restore(wanted)
        np.testing.assert_allclose(Table(rehearsal).state().block, wanted.block, atol=1e-9)

    def test_covered_where_nothing_is_misplaced(self) -> None:
        table = Table(environments(0)[1])
        state = table.state()
        table.restore(type(state)(state.agent, state.velocity, GOAL))
        assert misplacement(GOAL) == 0.0 and table.coverage() > 0.999
        table.restore(type(state)(state.agent, state.velocity, GOAL + (6.0, 0.0, 0.0)))
        assert misplacement(GOAL + (6.0, 0.0, 0.0)) == pytest.approx(6.0) and table.coverage() < 0.95


class TestWay:
    def test_goes_round_the_block(self) -> None:
        pose = np.array([256.0, 200.0, 0.0])
        start, end = np.array([256.0, 150.0]), np.array([256.0, 400.0])
        found = Way(pose).find(start, end)
        assert found is not None and len(found) > 2
        length = sum(np.hypot(*(b - a)) for a, b in pairwise(found))
        assert length > 1.05 * np.hypot(*(end - start))

    def test_touches_point_inwards(self) -> None:
        from shapely.geometry import Point, Polygon

        block = Polygon(OUTLINE)
        points, normals = touches()
        assert len(points) > 25
        assert all(block.contains(Point(p + 2.0 * n)) for p, n in zip(points, normals, strict=True))
        assert not any(block.contains(Point(p - 2.0 * n)) for p, n in zip(points, normals, strict=True))


class TestTeacher:
    def test_solves_most_runs(self, stage: Stage) -> None:
        assert sum(stage.episode(seed).success for seed in range(EPISODES)) >= BAR * EPISODES

    def test_one_seed_one_run(self, stage: Stage) -> None:
        first, again, other = stage.episode(7), stage.episode(7), stage.episode(8)
        assert first.actions.tobytes() == again.actions.tobytes()
        assert first.images.tobytes() == again.images.tobytes()
        assert first.actions.tobytes() != other.actions.tobytes()

    def test_actions_played_again_solve_it_again(self, stage: Stage) -> None:
        episode = stage.episode(9)
        assert episode.success
        assert stage.judge(Puppet(lambda agent: episode.actions.astype(float)), 9)[0]
        assert not stage.judge(Puppet(lambda agent: episode.actions.astype(float)), 10)[0]

    def test_standing_still_solves_nothing(self, stage: Stage) -> None:
        puppet = Puppet(lambda agent: agent[None])
        assert not any(stage.judge(puppet, seed)[0] for seed in range(3))
        assert puppet.seen == 3 * 300


def test_demonstrations_are_a_dataset(stage: Stage, tmp_path: Path) -> None:
    assert demonstrate(tmp_path / "pusht", 2, FIRST_SCENE) >= 2
    data, first = Dataset(tmp_path / "pusht"), stage.episode(FIRST_SCENE)
    assert (data.episodes, data.tasks, data.fps) == (2, [TASK, TASK], 10)
    count = len(first.actions)
    assert data.offsets[1] == count
    np.testing.assert_allclose((data.column("action")[:count] + 1.0) * HALF, first.actions, atol=1e-3)
    shown = data.frames(CAMERA, 0)
    assert shown.shape == first.images.shape
    assert np.abs(shown.astype(int) - first.images).mean() < 6.0
