"""Suites: which scenes, which tasks, and that evaluation never meets tuning or training."""

from collections import Counter

import pytest

from dzedge import suite
from dzedge.errors import UsageError
from dzedge.hardware.sim import task as tasks
from dzedge.hardware.sim.scene import COLOURS, draw_layout


def test_the_verbs_suite_asks_every_verb_about_a_cube_of_the_scene():
    chosen = suite.scenes("verbs", 5, [3])
    asked = [tasks.parse(scene.task) for scene in chosen]
    assert [task.verb for task in asked] == [verb for verb in (*tasks.VERBS, *tasks.MOTIONS) for _ in range(5)]
    for scene, task in zip(chosen, asked, strict=True):
        assert COLOURS.index(task.colour) in draw_layout(scene.seed).colours
        assert 3000 <= scene.seed < 4000


@pytest.fixture(scope="module")
def chosen():
    return suite.scenes("zeroshot", 22, [2, 499])


class TestZeroshot:
    def test_as_many_of_each_split_and_seed_as_asked(self, chosen):
        counts = Counter((tasks.parse(scene.task).split, scene.seed // 1000) for scene in chosen)
        assert counts == {(split, seed): 22 for split in suite.SPLITS for seed in (2, 499)}

    def test_spread_evenly_over_the_verbs_of_a_split(self, chosen):
        for split in suite.SPLITS:
            of_split = [tasks.parse(scene.task) for scene in chosen]
            counts = Counter(task.verb for task in of_split if task.split == split)
            assert set(counts) == set(suite.verbs_of(split))
            assert max(counts.values()) - min(counts.values()) <= 2  # one for each seed

    def test_cubes_are_there_and_no_scene_is_asked_twice_alike(self, chosen):
        for scene in chosen:
            assert COLOURS.index(tasks.parse(scene.task).colour) in draw_layout(scene.seed).colours
        assert len({(scene.seed, scene.task) for scene in chosen}) == len(chosen)

    def test_splits_ask_what_they_are_about(self):
        assert suite.verbs_of("novel") == tasks.MOTIONS
        assert suite.verbs_of("seen") == tasks.VERBS
        assert set(suite.verbs_of("semantic")) == {verb for verb, _ in tasks.HELD_OUT}

    def test_more_than_a_seed_holds_is_refused(self):
        with pytest.raises(UsageError, match=r"seed 0 has \d+ scenes for .*ask for fewer"):
            suite.scenes("verbs", 1000, [0])


def test_seeds_never_meet_each_other_or_tuning():
    numbers = [scene.seed for scene in suite.scenes("reach", 1000, range(suite.SEEDS))]
    assert len(set(numbers)) == len(numbers) and max(numbers) < suite.FIRST_TUNING_SCENE
    assert set(suite.RELEASE_SEEDS) < set(range(suite.SEEDS))


@pytest.mark.parametrize("seed", [500, 1000, -1])
def test_seeds_that_reach_into_tuning_and_training_are_refused(seed):
    with pytest.raises(UsageError, match=f"--seeds {seed}: must be 0 to 499; scenes 500000 to 999999 are for tuning"):
        suite.scenes("zeroshot", 3, [0, seed])


def test_an_unknown_suite_and_a_seed_twice_are_refused():
    with pytest.raises(UsageError, match="--suite libero: must be reach, verbs or zeroshot"):
        suite.scenes("libero", 5, [0])
    with pytest.raises(UsageError, match="given twice"):
        suite.scenes("reach", 5, [1, 1])


def test_a_cube_that_is_not_on_the_table_is_not_asked_for():
    present = [COLOURS[colour] for colour in draw_layout(4).colours]
    missing = next(colour for colour in COLOURS if colour not in present)
    suite.check_task(f"reach the {present[0]} cube", 4, 3)
    suite.check_task("make coffee", 4, 3)
    with pytest.raises(UsageError, match=f"seed 4 has no {missing} cube, only .*{present[0]}"):
        suite.check_task(f"reach the {missing} cube", 4, 3)
