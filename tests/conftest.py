"""What tests of the training side share: made-up episodes, and folders of datasets made of them."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest


@pytest.fixture(scope="session", autouse=True)
def own_state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nothing that a test keeps on this machine outlives the tests, or comes from before them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        patch.delenv("STATE_DIRECTORY", raising=False)
        yield

LENGTH = 24
"""Steps of a made-up episode."""


@pytest.fixture(scope="session")
def made_episodes() -> Callable[..., Any]:
    """`made_episodes(sizes, count=12, length=24)`: in turn labelled, play, the arm's video, the hand's video.

    The arm's token drifts and joints and commands drift with it, so that there is something to learn. The last cube's
    last channel holds the episode's number: what is of another episode shows.
    """
    from dzedge.export import episodes
    from dzedge.export.model.text import words_of

    def make(sizes: Any, count: int = 12, length: int = LENGTH) -> Any:
        rng = np.random.default_rng(0)
        n, number = count * length, np.repeat(np.arange(count), length)
        time = np.tile(np.arange(length), count)
        drift = rng.normal(size=(count, 1, sizes.channels))[number] * time[:, None, None] * 0.05
        latents = np.zeros((n, sizes.tokens, sizes.channels), np.float32)
        latents[:, :1] = drift
        latents[:, -1, -1] = number
        table = np.array([episodes.LABELLED, episodes.PLAY, episodes.VIDEO, episodes.VIDEO])
        kind = table[number % 4]
        acts = (kind != episodes.VIDEO)[:, None]
        joints = (drift[:, 0, : sizes.joints] * 0.3 * acts).astype(np.float32)
        step = rng.normal(size=(count, 1, sizes.channels))[number][:, 0, : sizes.joints] * 0.1
        asked = np.array([words_of("reach the red cube", sizes.words), words_of("", sizes.words)])
        return episodes.Episodes(
            latents=latents, joints=joints, commands=(joints + step * acts).astype(np.float32),
            disturbed=np.zeros(n, bool), start=(number * length).astype(np.int64),
            end=((number + 1) * length).astype(np.int64), kind=kind,
            words=asked[(kind == episodes.PLAY).astype(int)], colour=np.where(kind == episodes.PLAY, -1, 0),
            body=(number % 4 == 3).astype(np.int64),
        )  # fmt: skip

    return make


@pytest.fixture(scope="session")
def made_folder() -> Callable[..., Path]:
    """`made_folder(path)`: two datasets of the arm and one of the hand, of noise, as `dzedge train` reads them."""
    from dzedge.export import data
    from dzedge.export.dataset import Writer

    def write(root: Path, seed: int, kinds: list[tuple[str, bool]], hand: bool) -> None:
        rng = np.random.default_rng(seed)
        with Writer(root, data.features(), data.FPS, "so101-sim", (120, 160)) as writer:
            for task, acts in kinds:
                joints = np.cumsum(rng.normal(0.0, 0.05, (LENGTH, 6)), axis=0) * acts
                columns = {
                    "observation.state": joints.astype(np.float32),
                    "action": (joints + rng.normal(0.0, 0.1, joints.shape) * acts).astype(np.float32),
                    "acts": np.full((LENGTH, 1), acts), "disturbed": np.zeros((LENGTH, 1), bool),
                    "embodiment": np.full((LENGTH, 1), int(hand)), "scene": np.full((LENGTH, 1), 1_000_000 + seed),
                    "truth.arm": np.zeros((LENGTH, 10), np.float32), "truth.cubes": np.zeros((LENGTH, 24), np.float32),
                }  # fmt: skip
                images = rng.integers(0, 256, (LENGTH, 1, 1, 3)).repeat(120, 1).repeat(160, 2).astype(np.uint8)
                writer.add(columns, {data.CAMERA: images}, task)

    def make(folder: Path) -> Path:
        kinds = [("reach the red cube", True), ("", True), ("circle over the blue cube", False)]
        write(folder / "robot-000", 1, kinds * 2, hand=False)
        write(folder / "robot-001", 2, kinds, hand=False)
        write(folder / "marker-000", 3, kinds[2:], hand=True)
        return folder

    return make
