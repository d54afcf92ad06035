"""Stills: seeded, of arms and of hands, with labels that lie where the picture shows the things."""

from pathlib import Path

import numpy as np
import pytest
import torch

from dzedge.export import fit_tokenizer, stills
from dzedge.export.model.sizes import Sizes
from dzedge.export.stills import Stills
from dzedge.hardware.sim import marker, scene

TOY = Sizes()


@pytest.fixture(scope="module")
def many() -> Stills:
    return stills.generate(40, seed=6)


def test_same_seed_same_frames() -> None:
    one, again, other = (stills.generate(7, seed=seed) for seed in (4, 4, 5))
    assert one.frames.shape == (7, TOY.image_height, TOY.image_width, 3)
    assert one.labels.shape == (7, TOY.tokens, TOY.channels)
    assert one.views.shape == (7, 6)
    for name in Stills.__slots__:
        np.testing.assert_array_equal(getattr(one, name), getattr(again, name))
        assert (getattr(one, name) != getattr(other, name)).any()


def test_scenes(many: Stills) -> None:
    labels = many.labels
    assert len(many) == 40
    assert (labels[:, 1:, 3].sum(axis=1) == 3).all(), "three cubes a scene"
    assert (labels[:, 1:, 4:] == 0).all()
    assert (labels[:, 0, 2] > 0).mean() > 0.8, "tips over the table"
    assert ((labels[:, 0, 9] >= 0) & (labels[:, 0, 9] <= 1)).all()
    assert len(np.unique(labels[:, 0, 0])) == 40


def test_arms_and_hands(many: Stills) -> None:
    """The decoder draws the arm alone: which frames show it must be right."""
    ours = fit_tokenizer.shows_arm(torch.from_numpy(many.labels)).numpy()
    arm = many.labels[:, 0].astype(float)
    tip, wrist, elbow = arm[:, :3], arm[:, 3:6], arm[:, 6:9]
    hands = round(stills.MARKER_SHARE * 40)
    assert (~ours).sum() == hands
    np.testing.assert_allclose(np.linalg.norm(tip - wrist, axis=1)[~ours], marker.HAND, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(wrist - elbow, axis=1)[~ours], marker.FOREARM, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(tip - wrist, axis=1)[ours], scene.HAND, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(wrist - elbow, axis=1)[ours], scene.FOREARM, atol=1e-5)


def test_the_camera_stands_elsewhere_now_and_then(many: Stills) -> None:
    views = np.unique(many.views, axis=0)
    assert len(views) >= 40 // stills.FRAMES_PER_LIGHT
    assert (np.abs(views) <= np.repeat((scene.VIEW_SHIFT, scene.VIEW_TURN), 3)).all()


def test_labels_are_where_the_picture_shows_them(many: Stills) -> None:
    """A bright cube's pixels lie where its centre projects to, through the camera of its scene."""
    cubes = many.labels[:, 1:]
    where = fit_tokenizer.project(torch.from_numpy(cubes[..., :3].copy()), fit_tokenizer.cameras(many.views)).numpy()
    reds = [i for i in range(40) if cubes[i, 0, 3] and (np.abs(where[i, 0]) < 0.9).all()]
    near = 0
    for i in reds:
        u, v = (where[i, 0] + 1) / 2 * (TOY.image_width, TOY.image_height)
        red, green, blue = many.frames[i, int(v), int(u)].astype(int)
        near += red > 1.5 * max(green, blue)
    assert near >= 0.7 * len(reds) > 0, "some are hidden by the arm, most are not"


def test_joined(many: Stills) -> None:
    twice = Stills.joined([many, many])
    assert len(twice) == 80
    np.testing.assert_array_equal(twice.labels[40:], many.labels)


def test_tokens() -> None:
    arm, cubes = np.arange(20, dtype=np.float32).reshape(2, 10), np.arange(48, dtype=np.float32).reshape(2, 24)
    table = stills.tokens(arm, cubes)
    assert table.shape == (2, 7, 10)
    np.testing.assert_array_equal(table[:, 0], arm)
    np.testing.assert_array_equal(table[1, 2, :4], [28, 29, 30, 31])
    assert not table[:, 1:, 4:].any()


def test_kept_and_made_anew_where_another_number_is_wanted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[int, int]] = []
    generate = stills.generate
    monkeypatch.setattr(stills, "generate", lambda *a: made.append(a) or generate(*a))
    path = tmp_path / "deep" / "stills.npz"
    first = stills.load_or_generate(path, 5, 1)
    again = stills.load_or_generate(path, 5, 1)
    np.testing.assert_array_equal(first.frames, again.frames)
    assert len(stills.load_or_generate(path, 6, 1)) == 6
    assert made == [(5, 1), (6, 1)]
