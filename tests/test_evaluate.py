"""Evaluation: which scenes, which tasks, which interval."""

import pytest

from dzedge import evaluate
from dzedge.errors import UsageError
from dzedge.hardware.sim import task as tasks
from dzedge.hardware.sim.scene import COLOURS, draw_layout


def test_the_verbs_suite_asks_every_verb_about_a_cube_of_the_scene():
    chosen = evaluate.scenes("verbs", 5, [3])
    asked = [tasks.parse(scene.task) for scene in chosen]
    assert [task.verb for task in asked] == [verb for verb in (*tasks.VERBS, *tasks.MOTIONS) for _ in range(5)]
    for scene, task in zip(chosen, asked, strict=True):
        assert COLOURS.index(task.colour) in draw_layout(scene.seed).colours
        assert 3000 <= scene.seed < 4000


def test_an_unknown_suite_is_refused():
    with pytest.raises(UsageError, match="--suite libero: must be reach or verbs"):
        evaluate.scenes("libero", 5, [0])
