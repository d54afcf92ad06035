"""Pseudo-labels on a few episodes of the simulator: right where the arm is seen, and nothing else is touched."""

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

from dzedge.export import data, inverse, stills
from dzedge.export.dataset import Dataset
from dzedge.export.episodes import LABELLED, PLAY, VIDEO, Episodes
from dzedge.export.model.latent import to_latent
from dzedge.export.model.sizes import Sizes
from dzedge.export.model.text import colour_of, words_of
from dzedge.hardware.sim.kinematics import points

SIZES = Sizes()


def _episodes(root: Path) -> tuple[Episodes, np.ndarray]:
    """A dataset with true latents, as a perfect tokenizer would give them; and where the tip really is, (N, 3), [m]."""
    source = Dataset(root)
    lengths, tasks = np.diff(source.offsets), source.tasks
    acts = source.column("acts").reshape(-1)[source.offsets[:-1]]
    kind = np.where(~acts, VIDEO, np.where([not task for task in tasks], PLAY, LABELLED))
    arm = source.column("truth.arm")
    found = Episodes(
        latents=to_latent(stills.tokens(arm, source.column("truth.cubes"))),
        joints=source.column("observation.state"), commands=source.column("action"),
        disturbed=source.column("disturbed").reshape(-1),
        start=np.repeat(source.offsets[:-1], lengths), end=np.repeat(source.offsets[1:], lengths),
        kind=np.repeat(kind, lengths),
        words=np.repeat(np.array([words_of(task, SIZES.words) for task in tasks]), lengths, axis=0),
        colour=np.repeat(np.array([colour_of(task) for task in tasks]), lengths),
        body=source.column("embodiment").reshape(-1),
    )  # fmt: skip
    return found, arm[:, :3]


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> tuple[Episodes, np.ndarray]:
    """Thirty episodes of the arm and one of the hand."""
    folder = tmp_path_factory.mktemp("data")
    data.make_part(folder / "robot-000", 30, 5, 0, False)
    data.make_part(folder / "marker-000", 1, 5, 0, True)
    (arm, tips), (hand, fingers) = _episodes(folder / "robot-000"), _episodes(folder / "marker-000")
    return Episodes.joined([arm, hand]), np.concatenate([tips, fingers])


@pytest.fixture(scope="module")
def labelled(real: tuple[Episodes, np.ndarray]) -> tuple[Episodes, list[str]]:
    said: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inverse, "ITERATIONS", 500)
        return inverse.labelled(real[0], 0, said.append), said


def test_recovers_joints_of_videos(
    real: tuple[Episodes, np.ndarray], labelled: tuple[Episodes, list[str]]
) -> None:
    """No video has a label; but forward kinematics of what was guessed must put the tip where it is seen."""
    (was, tips), (found, _) = real, labelled
    video = (was.kind == VIDEO) & (was.body == 0)
    assert video.sum() > 200
    guessed = np.array([points(joints.astype(float))[0] for joints in found.joints[video]])
    true = tips[video]
    share = ((guessed - true) ** 2).sum() / ((true - true.mean(0)) ** 2).sum()
    assert 1.0 - share > 0.8
    assert np.median(np.linalg.norm(guessed - true, axis=1)) < 0.02


def test_commands_lead_where_the_arm_went(
    real: tuple[Episodes, np.ndarray], labelled: tuple[Episodes, list[str]]
) -> None:
    """A command is for 0.1 s ahead: it must be nearer to the next tip than the present one is."""
    (was, tips), (found, _) = real, labelled
    steps = np.flatnonzero((was.kind == VIDEO) & (was.body == 0))
    steps = steps[steps + 1 < was.end[steps]]
    ahead = np.array([points(command.astype(float))[0] for command in found.commands[steps]])
    now = np.array([points(joints.astype(float))[0] for joints in found.joints[steps]])
    moved, meant = tips[steps + 1] - tips[steps], ahead - now
    assert (moved * meant).sum() / np.sqrt((moved**2).sum() * (meant**2).sum()) > 0.6


def test_says_how_well_it_does(labelled: tuple[Episodes, list[str]]) -> None:
    words = labelled[1][0].split()
    assert 0.5 < float(words[words.index("joints") + 2].rstrip(",")) < 1.0, "the hand's roll is not in sight"
    assert 0.2 < float(words[words.index("commands") + 2]) < 1.0


def test_leaves_alone_what_has_labels_or_another_body(
    real: tuple[Episodes, np.ndarray], labelled: tuple[Episodes, list[str]]
) -> None:
    (was, _), (found, _) = real, labelled
    filled = (was.kind == VIDEO) & (was.body == 0)
    for field in fields(Episodes):
        np.testing.assert_array_equal(getattr(found, field.name)[~filled], getattr(was, field.name)[~filled])
        if field.name not in ("joints", "commands", "kind"):
            np.testing.assert_array_equal(getattr(found, field.name), getattr(was, field.name))
    assert (found.kind[filled] == LABELLED).all()
    assert (found.kind[was.body == 1] == VIDEO).all(), "a hand has no joints of ours"
    assert not found.joints[was.body == 1].any()
    assert found.joints.dtype == found.commands.dtype == np.float32
    assert (was.kind[filled] == VIDEO).all(), "its argument is not changed"


def test_same_seed_same_labels_next_seed_others(
    real: tuple[Episodes, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inverse, "ITERATIONS", 5)
    one, again, other = (inverse.labelled(real[0], seed, lambda line: None) for seed in (3, 3, 4))
    np.testing.assert_array_equal(one.commands, again.commands)
    assert not np.array_equal(one.commands, other.commands)


def test_views_stay_in_their_episode(real: tuple[Episodes, np.ndarray]) -> None:
    was = real[0]
    number = was.start.astype(np.float32)
    marked = replace(was, latents=np.broadcast_to(number[:, None, None], was.latents.shape).copy())
    np.testing.assert_array_equal(inverse.views(marked), np.broadcast_to(number[:, None], (len(number), 50)))
    seen = inverse.views(was).reshape(len(number), 5, 10)
    np.testing.assert_array_equal(seen[:, 2], was.latents[:, 0])
    np.testing.assert_array_equal(seen[7, 0], was.latents[5, 0])


def test_calm_is_far_from_disturbances(real: tuple[Episodes, np.ndarray]) -> None:
    was = replace(real[0], disturbed=np.zeros(len(real[0].start), bool))
    acting = was.kind != VIDEO
    np.testing.assert_array_equal(inverse.calm(was), acting)
    step = int(np.flatnonzero(acting)[10])
    was.disturbed[step] = True
    np.testing.assert_array_equal(np.flatnonzero(acting & ~inverse.calm(was)), np.arange(step - 2, step + 3))
