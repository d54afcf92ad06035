"""What a LeRobotDataset v3.0 looks like on disk: names of files, columns and statistics.

    meta/info.json                                  features, fps, templates of the paths below
    meta/stats.json                                 statistics of every feature
    meta/tasks.parquet                              task text -> task_index
    meta/episodes/chunk-000/file-000.parquet        an episode a row: where its rows and frames lie
    data/chunk-000/file-000.parquet                 a frame a row, many episodes a file
    videos/<camera>/chunk-000/file-000.mp4          many episodes, end to end

Source: lerobot 0.4.4, lerobot/datasets/utils.py and lerobot_dataset.py (CODEBASE_VERSION "v3.0").
"""

from typing import Any

import msgspec

from dzedge.errors import DzedgeError

VERSION = "v3.0"
CHUNKS_SIZE = 1000
DATA_FILES_SIZE_IN_MB = 100
VIDEO_FILES_SIZE_IN_MB = 200
INFO_PATH = "meta/info.json"
STATS_PATH = "meta/stats.json"
TASKS_PATH = "meta/tasks.parquet"
EPISODES_PATH = "meta/episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
UNFINISHED = ".unfinished"
"""Suffix of the folder of a dataset that is being written."""
TASK_COLUMN = "__index_level_0__"
"""The name that pandas gives to an index without a name: lerobot reads the task texts from there."""


class DatasetError(DzedgeError):
    """A training dataset that is damaged, foreign, half-written, or an episode that does not fit into it."""


class Feature(msgspec.Struct, frozen=True):
    """One column or camera. `shape` is that of one frame, (1,) for a scalar; a camera is (height, width, 3)."""

    dtype: str
    shape: tuple[int, ...] = ()
    names: Any = None
    info: dict[str, Any] | msgspec.UnsetType = msgspec.UNSET

    @property
    def is_camera(self) -> bool:
        return self.dtype in ("video", "image")

    @property
    def row(self) -> tuple[int, ...]:
        """Shape of one row in memory: a feature of shape (1,) is a scalar."""
        return () if self.shape == (1,) else self.shape


class Info(msgspec.Struct, frozen=True, kw_only=True):
    """`meta/info.json`; keys that are not listed here are allowed and ignored."""

    codebase_version: str
    robot_type: str | None = None
    total_episodes: int
    total_frames: int
    total_tasks: int
    chunks_size: int = CHUNKS_SIZE
    data_files_size_in_mb: float = DATA_FILES_SIZE_IN_MB
    video_files_size_in_mb: float = VIDEO_FILES_SIZE_IN_MB
    fps: int | float
    splits: dict[str, Any] = {}
    data_path: str = DATA_PATH
    video_path: str | None = VIDEO_PATH
    features: dict[str, Feature]


INDEX_FEATURES = {
    "timestamp": Feature("float32", (1,)),
    "frame_index": Feature("int64", (1,)),
    "episode_index": Feature("int64", (1,)),
    "index": Feature("int64", (1,)),
    "task_index": Feature("int64", (1,)),
}
"""Columns of every dataset; the writer fills them in. `timestamp` [s] counts from the start of the episode."""


def place(number: int) -> dict[str, int]:
    """Chunk and file index of the n-th file of a kind."""
    return {"chunk_index": number // CHUNKS_SIZE, "file_index": number % CHUNKS_SIZE}
