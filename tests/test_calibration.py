"""Recordings that calibrate: every run's inputs, evenly over the sampler's times, and back from an archive."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from dzedge import config, engine
from dzedge.bundle import open_bundle
from dzedge.export import calibration, stub
from dzedge.suite import FIRST_TUNING_SCENE, Scene

SCENES = [Scene(FIRST_TUNING_SCENE, "reach the red cube")]


def feed(time: float, number: int) -> calibration.Feed:
    return {"t_video": np.array([time], np.float32), "latent": np.full((1, 2), number, np.float32)}


class TestBalanced:
    def test_every_time_counts_the_same(self) -> None:
        feeds = [feed(0.0, n) for n in range(40)] + [feed(0.5, n) for n in range(9)] + [feed(1.0, n) for n in range(90)]
        chosen = calibration.balanced(feeds, 60)
        assert Counter(calibration.time_of(one) for one in chosen) == {0.0: 9, 0.5: 9, 1.0: 9}
        assert Counter(calibration.time_of(one) for one in calibration.balanced(feeds, 12)) == {0.0: 4, 0.5: 4, 1.0: 4}

    def test_is_seeded(self) -> None:
        feeds = [feed(0.0, n) for n in range(40)]
        numbers = [[int(one["latent"][0, 0]) for one in calibration.balanced(feeds, 8, seed)] for seed in (1, 1, 2)]
        assert numbers[0] == numbers[1] != numbers[2]
        assert numbers[0] == sorted(set(numbers[0]))

    def test_without_times_or_feeds(self) -> None:
        bare = [{"image": np.zeros(3, np.float32)} for _ in range(5)]
        assert len(calibration.balanced(bare, 3)) == 3
        assert len(calibration.balanced(bare, 30)) == 5
        assert calibration.balanced([], 3) == []


def test_archive_gives_back_what_it_got(tmp_path: Path) -> None:
    feeds = {"video_step": [feed(0.5, n) for n in range(3)], "text": [{"words": np.array([[1, 2, 0]], np.int64)}]}
    archive = calibration.pack(feeds)
    path = tmp_path / "feeds.npz"
    path.write_bytes(archive)
    for found in (calibration.unpack(archive), calibration.unpack(path)):
        assert {name: len(rows) for name, rows in found.items()} == {"video_step": 3, "text": 1}
        for name, rows in feeds.items():
            for ours, theirs in zip(found[name], rows, strict=True):
                assert ours.keys() == theirs.keys()
                assert all(np.array_equal(ours[key], theirs[key]) for key in theirs)
                assert all(ours[key].dtype == theirs[key].dtype for key in theirs)


@pytest.fixture(scope="module")
def driven(tmp_path_factory: pytest.TempPathFactory) -> calibration.Feeds:
    folder = stub.write(tmp_path_factory.mktemp("bundle") / "stub.dzp")
    robot = config.load(config.default_path())
    return calibration.drive(robot, open_bundle(folder, allow_test_key=True), SCENES, 1.5)


@pytest.mark.slow
class TestDrive:
    def test_every_graph_is_heard(self, driven: calibration.Feeds) -> None:
        assert {"text", "frame_encoder", "prefill", "context", "video_step", "action_step"} <= set(driven)
        assert all(np.isfinite(array).all() for rows in driven.values() for one in rows for array in one.values())

    def test_feeds_are_copies_of_different_moments(self, driven: calibration.Feeds) -> None:
        states = np.stack([one["state"] for one in driven["action_step"]])
        assert len(states) > 3
        assert np.ptp(states, axis=0).max() > 0.0
        assert any(one["prefix_mask"].any() for one in driven["action_step"]), "actions are committed in closed loop"

    def test_the_engine_is_as_before(self, driven: calibration.Feeds) -> None:
        assert driven
        with calibration.recording() as seen:
            assert engine.Graph.bind.__name__ == "watched"
        assert engine.Graph.bind.__name__ == "bind"
        assert not seen
