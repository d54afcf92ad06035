"""Training data: resize, disturbance, and what a shard holds."""

from pathlib import Path

import numpy as np
import pytest

from dzedge.export import data
from dzedge.hardware.sim.scene import COLOURS
from dzedge.hardware.sim.task import HELD_OUT, MOTIONS


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    path = tmp_path_factory.mktemp("data") / "shard.npz"
    name, steps, _ = data.make_shard(path, 10, 7, 0)
    assert name == path.name
    with np.load(path) as columns:
        loaded = dict(columns)
    assert loaded["offsets"][-1] == steps
    return loaded


def test_resize_keeps_the_mean_and_constants() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (120, 160, 3), dtype=np.uint8)
    small = data.shrink(image)
    assert small.shape == (72, 96, 3)
    assert abs(small.mean() - image.mean()) < 0.6
    assert np.array_equal(data.shrink(np.full_like(image, 77)), np.full_like(small, 77))


def test_area_weights_are_exact() -> None:
    weights = data.area_weights(160, 96)
    assert np.allclose(weights.sum(axis=1), 1.0)
    assert np.allclose(weights.sum(axis=0), 96 / 160)
    assert np.allclose(weights[0, :3], [0.6, 0.4, 0.0])


def test_columns_fit_together(shard: dict[str, np.ndarray]) -> None:
    n, episodes = shard["offsets"][-1], len(shard["offsets"]) - 1
    assert episodes == 10
    assert shard["images"].shape == (n, 72, 96, 3)
    assert shard["images"].dtype == np.uint8
    for key, width in (("joints", 6), ("commands", 6), ("executed", 6), ("points", 9)):
        assert shard[key].shape == (n, width)
        assert np.isfinite(shard[key]).all()
    assert shard["cubes"].shape == (n, 6, 4)
    assert (shard["cubes"][..., 3].sum(axis=1) == 3).all()
    for key in ("instruction", "verb", "colour", "kind", "has_action", "scene_seed"):
        assert len(shard[key]) == episodes


def test_video_has_no_actions_and_play_no_words(shard: dict[str, np.ndarray]) -> None:
    for e, kind in enumerate(shard["kind"]):
        rows = slice(shard["offsets"][e], shard["offsets"][e + 1])
        if kind == "video":
            assert shard["verb"][e] in MOTIONS
            assert not shard["has_action"][e]
            assert not shard["commands"][rows].any()
            assert not shard["joints"][rows].any()
            assert not shard["executed"][rows].any()
        else:
            assert shard["has_action"][e]
            assert shard["verb"][e] not in MOTIONS
            assert (shard["instruction"][e] == "") == (kind == "play")
        assert (shard["verb"][e], shard["colour"][e]) not in HELD_OUT
        if shard["colour"][e]:
            assert shard["cubes"][rows.start, COLOURS.index(shard["colour"][e]), 3] == 1.0


def test_labels_are_what_was_executed_where_nothing_disturbed(shard: dict[str, np.ndarray]) -> None:
    calm = ~shard["noised"]
    assert np.array_equal(shard["commands"][calm], shard["executed"][calm])
    for e, kind in enumerate(shard["kind"]):
        if kind == "labelled":
            rows = slice(shard["offsets"][e], shard["offsets"][e + 1])
            step = shard["commands"][rows][1:] - shard["executed"][rows][:-1]
            assert np.abs(step).max() < 0.2


def test_same_seed_same_shard_next_seed_another(tmp_path: Path, shard: dict[str, np.ndarray]) -> None:
    data.make_shard(tmp_path / "a.npz", 1, 7, 0)
    data.make_shard(tmp_path / "b.npz", 1, 8, 0)
    first, second = np.load(tmp_path / "a.npz"), np.load(tmp_path / "b.npz")
    with first, second:
        n = first["offsets"][-1]
        assert np.array_equal(first["images"], shard["images"][:n])
        assert np.array_equal(first["commands"], shard["commands"][:n])
        assert first["scene_seed"][0] != second["scene_seed"][0]
        assert not np.array_equal(first["images"][0], second["images"][0])


def test_disturbance_rests_when_it_is_off_and_strikes_when_on() -> None:
    rng = np.random.default_rng(0)
    calm = data.Disturbance(rng, active=False)
    assert not any(calm.next().any() for _ in range(100))
    wild = data.Disturbance(rng, active=True)
    hits = sum(wild.next().any() for _ in range(400))
    assert 10 < hits < 200
