"""Recorded scenes as observations: times, history, commitments as the runtime's contract has them."""

from pathlib import Path

import numpy as np
import pytest

from dzedge.errors import UsageError
from dzedge.export.dataset import Writer
from dzedge.export.decisions import LATER, NEWCOMERS, recorded
from dzedge.export.source import Source

CAMERA = "observation.images.front"
NAMES = ("shoulder", "elbow", "gripper")
SOURCE = Source(robot="toy", joints=NAMES, camera=CAMERA, fps=20.0, vocabulary={"go": 1})
"""An action every second step, a frame every fourth."""


def record(root: Path, length: int) -> Path:
    row = {"dtype": "float32", "shape": [3], "names": list(NAMES)}
    with Writer(root, {"observation.state": row, "action": row, CAMERA: {"dtype": "video"}}, 20, "toy", (32, 48)) as to:
        for task in ("go", ""):
            steps = np.arange(length, dtype=np.float32)[:, None] * np.float32([0.01, 0.02, 0.0])
            frames = np.repeat(np.arange(length, dtype=np.uint8)[:, None, None, None] * 5, 32, 1)
            frames = np.broadcast_to(frames, (length, 32, 1, 1)).repeat(48, 2).repeat(3, 3)
            to.add({"observation.state": steps, "action": steps + np.float32(0.01)}, {CAMERA: frames}, task)
    return root


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return record(tmp_path_factory.mktemp("data") / "a", 40)


class TestRecorded:
    def test_pairs(self, root: Path) -> None:
        found = recorded(root, SOURCE, 2 * NEWCOMERS, SOURCE_HISTORY, 3, seed=0)
        assert len(found) == 4 * NEWCOMERS
        assert [decision.fresh for decision in found] == [True, False] * 2 * NEWCOMERS
        for first, second in zip(found[::2], found[1::2], strict=True):
            gap = second.observation.t_obs_ns - first.observation.t_obs_ns
            assert gap == LATER * SOURCE.dt_ns
            assert first.observation.instruction == second.observation.instruction == "go"

    def test_frames_joints_and_commitments_belong_together(self, root: Path) -> None:
        for decision in recorded(root, SOURCE, NEWCOMERS, SOURCE_HISTORY, 3, seed=0):
            seen = decision.observation
            step = round(float(seen.state.positions[0]) / 0.01)
            shown = [round(float(frame.image.mean()) / 5) for frame in seen.frames]
            assert shown == ([step - 4, step] if step >= 4 else [step]), "0.2 s ago, and now"
            assert [frame.capture_ns - seen.t_obs_ns for frame in seen.frames][-1] == 0
            # Commands aim one step ahead, a chunk's first target two.
            wanted = [(step + 2 * (i + 1) - 1) * 0.01 + 0.01 for i in range(len(decision.prefix.positions))]
            np.testing.assert_allclose(decision.prefix.positions[:, 0], wanted, atol=1e-6)
            assert len(decision.prefix.positions) <= 3

    def test_some_begin_without_an_earlier_frame_and_some_without_commitments(self, root: Path) -> None:
        found = recorded(root, SOURCE, 2 * NEWCOMERS, SOURCE_HISTORY, 3, seed=0)
        assert sum(len(decision.observation.frames) == 1 for decision in found) == 2
        assert {len(decision.prefix.positions) for decision in found} == {0, 1, 2, 3}

    def test_seeded(self, root: Path) -> None:
        def times(seed: int) -> list[int]:
            return [d.observation.t_obs_ns for d in recorded(root, SOURCE, 6, SOURCE_HISTORY, 3, seed)]

        assert times(1) == times(1) != times(2)

    def test_too_short(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="no episode with a task, actions and 9 frames; record longer ones"):
            recorded(record(tmp_path / "a", 6), SOURCE, 2, SOURCE_HISTORY, 3, seed=0)


SOURCE_HISTORY = (200_000_000, 0)
