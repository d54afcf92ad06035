"""Demonstrations: the expert's commands and what the camera sees, repeatable, in scenes of the evaluation only."""

import numpy as np
import pytest

from dzedge.demonstration import END_OF_EVALUATION, LONGEST, STEP_NS, Demonstration, Theatre
from dzedge.errors import UsageError

SCENE = 4002
HISTORY = (2 * STEP_NS, 0)


@pytest.fixture(scope="module")
def theatre() -> Theatre:
    return Theatre()


@pytest.fixture(scope="module")
def shown(theatre: Theatre) -> Demonstration:
    found = theatre.perform(SCENE, "circle", "novel")
    assert found is not None
    return found


def test_the_same_scene_is_the_same_but_for_the_time(theatre, shown):
    again = theatre.perform(SCENE, "circle", "novel")
    np.testing.assert_array_equal(again.commands, shown.commands)
    np.testing.assert_array_equal(again.tips, shown.tips)
    for mine, theirs in zip(again.frames, shown.frames, strict=True):
        np.testing.assert_array_equal(mine.image, theirs.image)
    times = {frame.capture_ns for part in (shown, again) for frame in part.frames}
    assert len(times) == 2 * len(shown.frames)


def test_the_next_scene_and_another_verb_differ(theatre, shown):
    other = theatre.perform(SCENE + 1, "circle", "novel")
    assert not np.array_equal(other.frames[0].image, shown.frames[0].image)
    assert not np.array_equal(theatre.perform(SCENE, "wave", "novel").tips, shown.tips)


def test_motions_go_both_ways_round(theatre):
    turns = set()
    for scene in range(SCENE, SCENE + 8):
        shown = theatre.perform(scene, "circle", "novel")
        x, y = (shown.tips[-30:, :2] - shown.tips[-30:, :2].mean(axis=0)).T
        turns.add(np.sign((x[:-1] * y[1:] - x[1:] * y[:-1]).sum()))
    assert turns == {-1.0, 1.0}


def test_joints_follow_the_commands(shown):
    assert shown.commands.shape == shown.joints.shape == (LONGEST, 6)
    late = np.abs(shown.joints[1:] - shown.commands[:-1]).max()
    ahead = np.abs(shown.joints[:-1] - shown.commands[:-1]).max()
    assert late < 0.08 < ahead


def test_an_observation_is_what_the_robot_would_have_given(shown):
    observed = shown.observation(10, HISTORY)
    assert observed.frames == (shown.frames[8], shown.frames[10])
    assert observed.t_obs_ns == shown.frames[10].capture_ns == shown.frames[8].capture_ns + 2 * STEP_NS
    np.testing.assert_array_equal(observed.state.positions, shown.joints[10])
    assert observed.instruction == shown.task.instruction
    assert shown.observation(1, HISTORY).frames == (shown.frames[1],)


def test_a_scene_without_a_fitting_cube_shows_nothing(theatre):
    found = [theatre.perform(scene, "press", "semantic") for scene in range(SCENE, SCENE + 6)]
    assert None in found
    assert {shown.task.split for shown in found if shown is not None} == {"semantic"}


@pytest.mark.parametrize("scene", [-1, END_OF_EVALUATION])
def test_scenes_of_training_are_refused(theatre, scene):
    with pytest.raises(UsageError, match=rf"scene {scene}: must be 0 to 499999"):
        theatre.perform(scene, "circle", "novel")
