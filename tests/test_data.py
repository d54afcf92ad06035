"""Training data: resize, disturbance, and what a part holds."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dzedge.export import data
from dzedge.export.dataset import Dataset
from dzedge.hardware.sim import camera, marker
from dzedge.hardware.sim.kinematics import points
from dzedge.hardware.sim.scene import draw_layout
from dzedge.hardware.sim.task import HELD_OUT, HOVER, MOTIONS, VERBS, parse

EPISODES = 16


@pytest.fixture(scope="module")
def part(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    path = tmp_path_factory.mktemp("data") / "robot-000"
    name, steps, _ = data.make_part(path, EPISODES, 7, 0, False)
    assert name == path.name
    found = Dataset(path)
    assert len(found) == steps
    return found


@pytest.fixture(scope="module")
def hand(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    path = tmp_path_factory.mktemp("data") / "marker-000"
    data.make_part(path, 3, 7, 0, True)
    return Dataset(path)


def _each(part: Dataset, name: str) -> list[np.ndarray]:
    """A column cut into episodes."""
    return np.split(part.column(name), part.offsets[1:-1])


class TestShrink:
    def test_keeps_the_mean_and_constants(self) -> None:
        rng = np.random.default_rng(0)
        image = rng.integers(0, 256, (120, 160, 3), dtype=np.uint8)
        small = data.shrink(image)
        assert small.shape == (72, 96, 3)
        assert abs(small.mean() - image.mean()) < 0.6
        assert np.array_equal(data.shrink(np.full_like(image, 77)), np.full_like(small, 77))

    def test_is_the_exact_mean_over_each_pixels_area(self) -> None:
        def weights(source: int, target: int) -> np.ndarray:
            edges = np.arange(target + 1) * source / target
            cells = np.arange(source)
            low, high = np.maximum(edges[:-1, None], cells), np.minimum(edges[1:, None], cells + 1)
            return np.clip(high - low, 0.0, None) * target / source

        assert np.allclose(weights(160, 96)[0, :3], [0.6, 0.4, 0.0])
        image = np.random.default_rng(1).integers(0, 256, (120, 160, 3), dtype=np.uint8)
        exact = np.einsum("yv,vuc,xu->yxc", weights(120, 72), image.astype(float), weights(160, 96))
        assert np.abs(data.shrink(image) - exact).max() <= 0.5 + 1e-3


def test_columns_fit_together(part: Dataset) -> None:
    n = len(part)
    assert part.episodes == EPISODES
    assert part.fps == 10
    for name, width in (("observation.state", 6), ("action", 6), ("truth.arm", 10), ("truth.cubes", 24)):
        column = part.column(name)
        assert column.shape == (n, width)
        assert np.isfinite(column).all()
    cubes = part.column("truth.cubes").reshape(n, 6, 4)
    assert (cubes[..., 3].sum(axis=1) == 3).all()
    assert not part.column("embodiment").any()
    scenes = [rows.reshape(-1) for rows in _each(part, "scene")]
    assert all(len(set(rows)) == 1 for rows in scenes)
    first = [int(rows[0]) for rows in scenes]
    assert first == sorted(set(first))
    assert first[0] > data.FIRST_SCENE, "evaluation has the scenes below"
    frames = part.frames(data.CAMERA, 0)
    assert frames.shape == (part.offsets[1], 120, 160, 3)


def test_every_kind_occurs(part: Dataset) -> None:
    acts = [bool(rows[0]) for rows in _each(part, "acts")]
    kinds = {(act, bool(task)) for act, task in zip(acts, part.tasks, strict=True)}
    assert kinds == {(True, True), (True, False), (False, True)}, "labelled, play, video"


def test_videos_have_no_actions_and_play_no_words(part: Dataset) -> None:
    columns = zip(part.tasks, _each(part, "acts"), _each(part, "observation.state"), _each(part, "action"), strict=True)
    for words, acts, joints, commands in columns:
        assert len(set(acts.reshape(-1))) == 1
        task = parse(words)
        if acts.all():
            assert joints.any(), words
            assert commands.any(), words
            assert task is None or task.verb in VERBS
            assert (task is None) == (words == "")
        else:
            assert not joints.any(), words
            assert not commands.any(), words
            assert task is not None
            assert task.verb in MOTIONS


def test_held_out_pairs_are_never_shown(part: Dataset, hand: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = [parse(words) for words in (*part.tasks, *hand.tasks)]
    assert not {(task.verb, task.colour) for task in tasks if task} & HELD_OUT
    studio, asked = data.Studio(), set()

    def act(take: data.Take, task: data.Task | None, *rest: object) -> bool:
        assert task is not None
        asked.add((task.verb, task.colour))
        return False

    monkeypatch.setattr(studio, "_move_arm", act)
    for seed in range(150):
        for verb in VERBS:
            studio.play(data.LABELLED, verb, data.FIRST_SCENE + seed)
    assert not asked & HELD_OUT
    assert len(asked) == len(VERBS) * 6 - len(HELD_OUT), "and every other pair is"


def test_the_named_cube_is_there(part: Dataset) -> None:
    for words, cubes in zip(part.tasks, _each(part, "truth.cubes"), strict=True):
        if task := parse(words):
            assert cubes[0].reshape(6, 4)[task.cube, 3] == 1.0


def test_truth_is_where_the_joints_say(part: Dataset) -> None:
    acting = part.column("acts").reshape(-1)
    joints, arm = part.column("observation.state")[acting], part.column("truth.arm")[acting]
    said = np.array([points(row.astype(float)).reshape(-1) for row in joints])
    np.testing.assert_allclose(arm[:, :9], said, atol=1e-5)
    np.testing.assert_allclose(arm[:, 9], joints[:, 5])


def test_the_arm_goes_where_it_is_told(part: Dataset) -> None:
    columns = (_each(part, name) for name in ("acts", "observation.state", "action", "disturbed"))
    for words, acts, joints, commands, disturbed in zip(part.tasks, *columns, strict=True):
        labelled = bool(words) and acts.all()
        assert labelled or not disturbed.any(), "play and videos are never disturbed"
        if acts.all():
            calm = ~disturbed.reshape(-1)[:-1]
            assert np.abs(joints[1:] - commands[:-1])[calm, :5].max() < 0.2
            assert np.abs(np.diff(commands, axis=0))[calm].max() < 0.2, "labels do not jump"
    assert part.column("disturbed").sum() > 10


def test_labels_are_what_was_executed_where_nothing_disturbed(monkeypatch: pytest.MonkeyPatch) -> None:
    studio, told = data.Studio(), []
    execute = studio.execute

    def watched(before: np.ndarray, command: np.ndarray) -> None:
        told.append(command)
        execute(before, command)

    monkeypatch.setattr(studio, "execute", watched)
    seen = set()
    for seed in range(data.FIRST_SCENE, data.FIRST_SCENE + 12):
        told.clear()
        take = studio.play(data.LABELLED, "reach", seed)
        if take is None:
            continue
        label, disturbed = np.array(take.steps["action"])[: len(told)], np.array(take.steps["disturbed"])[: len(told)]
        same = (np.abs(label - np.array(told)) < 1e-6).all(axis=1)
        np.testing.assert_array_equal(same, ~disturbed.reshape(-1))
        seen.add(bool(disturbed.any()))
    assert seen == {True, False}


def test_frames_and_truth_are_of_one_moment(part: Dataset) -> None:
    """The gripper is orange where the truth of that very frame puts its tip."""
    episode = next(e for e, words in enumerate(part.tasks) if words.split(" ")[0] in MOTIONS)
    rows = slice(part.offsets[episode], part.offsets[episode + 1])
    eye, rotation = camera.placed(draw_layout(int(part.column("scene")[rows][0])).view)
    arm = part.column("truth.arm")[rows]
    seen = (arm[:, :3] + 0.15 * (arm[:, 3:6] - arm[:, :3]) - eye) @ rotation
    where = camera.FOCAL * seen[:, :2] / seen[:, 2:] + (camera.WIDTH / 2, camera.HEIGHT / 2)
    frames = part.frames(data.CAMERA, episode).astype(float)

    def orange(late: int) -> float:
        places = where[late:].astype(int)
        colours = np.array([frame[v, u] for frame, (u, v) in zip(frames, places, strict=False)])
        return float((colours @ (1.0, 0.45, 0.0) / np.linalg.norm(colours, axis=1) / np.hypot(1.0, 0.45)).mean())

    assert orange(0) > 0.97
    assert orange(0) > orange(5) + 0.02


class TestHand:
    def test_is_video_of_motions_alone(self, hand: Dataset) -> None:
        assert not hand.column("acts").any()
        assert not hand.column("observation.state").any()
        assert not hand.column("action").any()
        assert (hand.column("embodiment") == 1).all()
        assert {parse(words).verb for words in hand.tasks} <= set(MOTIONS)

    def test_moves_over_its_cube(self, hand: Dataset) -> None:
        for words, arm, cubes in zip(hand.tasks, _each(hand, "truth.arm"), _each(hand, "truth.cubes"), strict=True):
            cube = cubes[:, 4 * parse(words).cube :][:, :3]
            gap = arm[-30:, :3] - cube[-30:] - (0.0, 0.0, HOVER)
            assert np.linalg.norm(gap, axis=1).max() < 0.1
            assert np.ptp(arm[-30:, :3], axis=0).max() > 0.05
            np.testing.assert_allclose(np.linalg.norm(arm[:, :3] - arm[:, 3:6], axis=1), marker.HAND, atol=1e-5)
            assert np.abs(np.diff(cubes, axis=0)).max() < 1e-3, "a hand of light moves nothing"

    def test_scenes_are_its_own(self, part: Dataset, hand: Dataset) -> None:
        assert not set(part.column("scene").reshape(-1)) & set(hand.column("scene").reshape(-1))


@pytest.mark.parametrize(("kind", "verb", "share"), [("video", "circle", 0.35), ("labelled", "pass", 0.5)])
def test_both_ways_round(kind: str, verb: str, share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    studio, turns = data.Studio(), []
    move: Callable[..., bool] = lambda take, task, turn, *rest: bool(turns.append(turn))  # noqa: E731
    monkeypatch.setattr(studio, "_move_arm", move)
    for seed in range(400):
        studio.play(kind, verb, data.FIRST_SCENE + seed)
    assert len(turns) > 100
    assert abs(np.mean(np.array(turns) < 0) - share) < 0.12


def test_same_seed_same_part_next_seed_another(tmp_path: Path, part: Dataset) -> None:
    data.make_part(tmp_path / "a", 1, 7, 0, False)
    data.make_part(tmp_path / "b", 1, 8, 0, False)
    first, other = Dataset(tmp_path / "a"), Dataset(tmp_path / "b")
    n = len(first)
    for name in ("observation.state", "action", "truth.arm", "truth.cubes", "scene"):
        assert np.array_equal(first.column(name), part.column(name)[:n]), name
    assert np.abs(first.frames(data.CAMERA, 0).astype(int) - part.frames(data.CAMERA, 0)).mean() < 2.0, "one codec"
    assert first.column("scene")[0] != other.column("scene")[0]
    assert not np.array_equal(first.column("truth.cubes")[0], other.column("truth.cubes")[0])


def test_disturbance_rests_when_it_is_off_and_strikes_when_on() -> None:
    rng = np.random.default_rng(0)
    calm = data.Disturbance(rng, active=False)
    assert not any(calm.next().any() for _ in range(100))
    wild = data.Disturbance(rng, active=True)
    hits = sum(wild.next().any() for _ in range(400))
    assert 10 < hits < 200
