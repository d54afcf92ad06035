"""Words, tasks and their judge."""

import numpy as np
import pytest

from dzedge.hardware.sim import task
from dzedge.hardware.sim.scene import COLOURS
from dzedge.hardware.sim.task import HELD_OUT, HOVER, MOTIONS, PERIODS, VERBS, Judge, Task
from dzedge.hardware.sim.world import World

CUBE = np.array([0.22, 0.03, 0.02])


def _cubes(colour: str, place: np.ndarray = CUBE) -> np.ndarray:
    table = np.zeros((6, 4))
    table[COLOURS.index(colour)] = (*place, 1.0)
    return table


def _watch(judge: Judge, tips: np.ndarray, places: np.ndarray | None = None) -> bool:
    for i, tip in enumerate(tips):
        place = CUBE if places is None else places[i]
        judge.update(0.1 * i, tip, _cubes(judge.task.colour, place))
    return judge.success


def test_words() -> None:
    assert Task("reach", "red").instruction == "reach the red cube"
    assert Task("push left", "cyan").instruction == "push the cyan cube left"
    assert Task("pass", "red").instruction == "pass the red cube"
    assert Task("circle", "blue").instruction == "circle over the blue cube"


def test_every_instruction_parses_back_and_is_unique() -> None:
    assert len({t.instruction for t in task.TASKS}) == len(task.TASKS) == 60
    assert all(task.parse(t.instruction) == t for t in task.TASKS)
    assert task.parse("  Reach  the RED cube ") == Task("reach", "red")
    assert task.parse("make coffee") is None


def test_splits() -> None:
    assert len(HELD_OUT) == 9
    assert {t.split for t in task.TASKS} == {"seen", "semantic", "novel"}
    assert sum(t.split == "semantic" for t in task.TASKS) == 9
    assert all(Task("reach", colour).split == "seen" for colour in COLOURS)
    assert {Task(verb, "red").split for verb in MOTIONS} == {"novel"}
    for verb in VERBS:
        assert any(Task(verb, colour).split == "seen" for colour in COLOURS), "every verb has labelled pairs"
    for colour in COLOURS:
        assert any(Task(verb, colour).split == "seen" for verb in VERBS if verb != "reach"), colour


def test_default_task_is_about_a_present_cube_and_follows_the_seed() -> None:
    world = World(0)
    chosen = []
    for seed in range(12):
        world.reset(seed)
        first, again = task.sample_task(seed, world), task.sample_task(seed, world)
        assert first == again
        assert first is not None
        assert first.verb == "reach"
        assert world.cubes()[first.cube, 3] == 1.0
        chosen.append(first.colour)
    assert len(set(chosen)) > 2


def test_sampling_respects_the_split() -> None:
    world = World(0)
    for seed in range(20):
        world.reset(seed)
        for verb in VERBS:
            for split in ("seen", "semantic"):
                drawn = task.sample_task(seed, world, verb, split)
                assert drawn is None or drawn.split == split


def test_a_blocked_lane_is_not_free() -> None:
    cubes = _cubes("red", np.array([0.22, 0.0, 0.02]))
    assert task.lane_is_free(Task("push left", "red"), cubes)
    cubes[COLOURS.index("blue")] = (0.22, 0.12, 0.02, 1.0)
    assert not task.lane_is_free(Task("push left", "red"), cubes)
    assert task.lane_is_free(Task("reach", "red"), cubes)


def test_a_cube_is_passed_where_nothing_else_stands() -> None:
    asked, place = Task("pass", "red"), np.array([0.22, 0.0, 0.02])
    cubes = _cubes("red", place)
    assert task.lane_is_free(asked, cubes)
    cubes[COLOURS.index("blue")] = (*place + (0.0, 0.12, 0.0), 1.0)
    assert not task.lane_is_free(asked, cubes)
    cubes[COLOURS.index("blue"), 3] = 0.0
    assert task.lane_is_free(asked, cubes), "a cube that is not there is in nobody's way"
    cubes[COLOURS.index("blue")] = (*place + (0.0, 0.14, 0.0), 1.0)
    assert task.lane_is_free(asked, cubes)
    for out_of_reach in ((0.22, 0.18, 0.02), (0.22, -0.18, 0.02), (0.15, 0.0, 0.02)):
        assert not task.lane_is_free(asked, _cubes("red", np.array(out_of_reach)))


def test_reach_wants_the_tip_held_over_the_cube() -> None:
    goal = CUBE + (0.0, 0.0, HOVER)
    assert _watch(Judge(Task("reach", "red")), np.tile(goal + (0.02, 0.0, 0.0), (9, 1)))
    assert not _watch(Judge(Task("reach", "red")), np.tile(goal + (0.031, 0.0, 0.0), (20, 1)))
    passing = goal + np.linspace(-0.3, 0.3, 20)[:, None] * (1.0, 0.0, 0.0)
    assert not _watch(Judge(Task("reach", "red")), passing)


def test_hovering_is_not_pressing_and_pressing_is_not_reaching() -> None:
    hover, touch = CUBE + (0.0, 0.0, HOVER), CUBE + (0.0, 0.0, 0.022)
    assert not _watch(Judge(Task("press", "red")), np.tile(hover, (20, 1)))
    assert _watch(Judge(Task("press", "red")), np.tile(touch, (20, 1)))
    assert not _watch(Judge(Task("reach", "red")), np.tile(touch, (20, 1)))


@pytest.mark.parametrize(
    ("verb", "moved", "across", "expected"),
    [
        ("push left", 0.09, 0.0, True),
        ("push left", 0.04, 0.0, False),
        ("push left", 0.15, 0.0, False),
        ("push left", 0.09, 0.05, False),
        ("push left", -0.09, 0.0, False),
        ("push right", -0.09, 0.0, True),
    ],
)
def test_push_wants_the_right_way_and_distance(
    verb: str, moved: float, across: float, expected: bool
) -> None:
    share = np.clip(np.arange(30) / 2.0, 0.0, 1.0)[:, None]
    places = CUBE + share * (across, moved, 0.0)
    assert _watch(Judge(Task(verb, "red")), np.tile(CUBE, (30, 1)), places) is expected


def test_push_waits_for_rest() -> None:
    judge = Judge(Task("push left", "red"))
    places = CUBE + np.arange(13)[:, None] * (0.0, 0.01, 0.0)
    assert not _watch(judge, np.tile(CUBE, (13, 1)), places)


def _around(turn: float = 1.0, radius: float = task.PASS_RADIUS, height: float = 0.034) -> np.ndarray:
    """Down on the cube's right, half round it, on the far side or on the base's, to its left."""
    angle = np.linspace(0.0, np.pi, 20)
    parts = turn * radius * np.sin(angle), -radius * np.cos(angle), np.full(20, height) - CUBE[2]
    ring = CUBE + np.stack(parts, axis=1)
    above = ring[:1] + np.linspace(0.1, 0.0, 6)[:, None] * (0.0, 0.0, 1.0)
    return np.concatenate([above, ring])


class TestPass:
    ASKED = Task("pass", "red")

    @pytest.mark.parametrize("turn", [1.0, -1.0])
    def test_either_side_is_right(self, turn: float) -> None:
        assert _watch(Judge(self.ASKED), _around(turn))

    def test_the_wrong_way_is_wrong(self) -> None:
        back = _around()[::-1]
        assert not _watch(Judge(self.ASKED), back)
        there_and_back_and_there = np.concatenate([back, _around()[6:]])
        assert _watch(Judge(self.ASKED), there_and_back_and_there)

    @pytest.mark.parametrize("height", [0.05, 0.065, 0.10])
    def test_over_the_cube_is_not_past_it(self, height: float) -> None:
        across = np.linspace(-task.PASS_RADIUS, task.PASS_RADIUS, 20)[:, None] * (0.0, 1.0, 0.0)
        straight = CUBE + across + (0.0, 0.0, height - CUBE[2])
        low = _around()
        path = np.concatenate([low[:7], straight, low[-1:]])
        assert not _watch(Judge(self.ASKED), path)

    def test_a_jump_over_the_cube_is_none(self) -> None:
        path = _around()
        path[14:18, 2] = 0.12
        assert not _watch(Judge(self.ASKED), path)

    @pytest.mark.parametrize(("moved", "expected"), [(0.010, True), (0.014, False)])
    def test_the_cube_stays_where_it_is(self, moved: float, expected: bool) -> None:
        path = _around()
        places = CUBE + np.clip(np.arange(len(path)) - 12.0, 0.0, 1.0)[:, None] * (moved, 0.0, 0.0)
        assert _watch(Judge(self.ASKED), path, places) is expected

    def test_half_way_is_not_there(self) -> None:
        judge = Judge(self.ASKED)
        assert not _watch(judge, _around()[:16])
        assert not _watch(Judge(self.ASKED), _around()[16:]), "and does not begin half way"
        assert judge.measure() == pytest.approx(0.0)

    def test_far_around_is_not_past_it(self) -> None:
        assert not _watch(Judge(self.ASKED), _around(radius=0.14))


@pytest.mark.parametrize("verb", MOTIONS)
@pytest.mark.parametrize("rate", [0.8, 1.0, 1.2, -0.8, -1.0, -1.2])
def test_motions_are_told_apart_either_way_round(verb: str, rate: float) -> None:
    times = 0.1 * np.arange(60)
    centre = CUBE + (0.0, 0.0, HOVER)
    path = centre + task.motion(verb, 0.3 + rate * times / PERIODS[verb])
    for named in MOTIONS:
        assert _watch(Judge(Task(named, "red")), path) is (named == verb)


@pytest.mark.parametrize("verb", MOTIONS)
def test_standing_still_is_no_motion(verb: str) -> None:
    judge = Judge(Task(verb, "red"))
    assert not _watch(judge, np.tile(CUBE + (0.0, 0.0, HOVER), (60, 1)))
    assert judge.measure() == pytest.approx(1.0, abs=0.05)


def test_motion_over_another_place_fails() -> None:
    path = CUBE + (0.1, 0.0, HOVER) + task.motion("circle", 0.1 * np.arange(60) / PERIODS["circle"])
    assert not _watch(Judge(Task("circle", "red")), path)


def test_motionless_arm_fails_every_task() -> None:
    world = World(0)
    for seed in range(4):
        world.reset(seed)
        for verb in VERBS + MOTIONS:
            chosen = task.sample_task(seed, world, verb)
            if chosen is None:
                continue
            judge = Judge(chosen)
            for step in range(120):
                judge.update(0.1 * step, world.tip(), world.cubes())
            assert not judge.success


def test_judge_samples_at_ten_hertz_and_measures() -> None:
    judge = Judge(Task("reach", "red"))
    assert np.isnan(judge.measure())
    goal = CUBE + (0.0, 0.0, HOVER)
    for step in range(100):  # 0.1 s of looks every millisecond is one look
        judge.update(0.001 * step, goal, _cubes("red"))
    assert not judge.success
    assert judge.measure() == pytest.approx(0.0)
    for step in range(1, 12):
        judge.update(0.1 * step, goal, _cubes("red"))
    assert judge.success
    assert judge.success_time is not None
    judge.update(9.0, goal + 1.0, _cubes("red"))
    assert judge.success
