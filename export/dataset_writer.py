"""Writes a LeRobotDataset v3.0, an episode at a time, in bounded memory and on one core.

The dataset grows in `<root>.unfinished` and takes its name when it is whole. An interrupted one keeps the suffix,
lacks `meta/info.json`, and is refused by every reader.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import ArrayLike, NDArray

from dzedge.export import dataset_format as fmt
from dzedge.export import dataset_stats
from dzedge.export.dataset_columns import cast, checked, to_arrow, to_numpy
from dzedge.export.dataset_files import Film, Table
from dzedge.export.dataset_format import DatasetError

MEGABYTE = 1024**2
EPISODE_ROWS = 256


class Writer:
    """One dataset; a context manager: leaving it normally closes it, leaving it by an exception abandons it.

    `features`: lerobot's description of columns and cameras, `{"action": {"dtype": "float32", "shape": (6,), "names":
    [...]}, "observation.images.wrist": {"dtype": "video"}}`. A camera's shape is `image_size`, (height, width) [pixel].
    `timestamp frame_index episode_index index task_index` are added.
    """

    def __init__(
        self,
        root: Path | str,
        features: Mapping[str, Mapping[str, Any]],
        fps: int,
        robot_type: str | None,
        image_size: tuple[int, int],
        *,
        data_files_size_in_mb: float = fmt.DATA_FILES_SIZE_IN_MB,
        video_files_size_in_mb: float = fmt.VIDEO_FILES_SIZE_IN_MB,
    ) -> None:
        """Raises DatasetError where `root` exists or a feature, rate or size is none that the format holds."""
        self.root = Path(root)
        self._features = checked(features, fps, image_size) | fmt.INDEX_FEATURES
        self._columns = {key: feature for key, feature in self._features.items() if not feature.is_camera}
        self._fps, self._robot_type = fps, robot_type
        self._sizes_in_mb = data_files_size_in_mb, video_files_size_in_mb
        self._folder = self.root.with_name(self.root.name + fmt.UNFINISHED)
        for taken in (self.root, self._folder):
            if taken.exists():
                raise DatasetError(f"{taken}: exists already; remove it or write to another folder")
        (self._folder / "meta").mkdir(parents=True)
        limit = data_files_size_in_mb * MEGABYTE
        self._rows = Table(self._folder, fmt.DATA_PATH, limit)
        self._episodes = Table(self._folder, fmt.EPISODES_PATH, limit)
        film_limit = video_files_size_in_mb * MEGABYTE
        cameras = [key for key, feature in self._features.items() if feature.is_camera]
        self._films = {key: Film(self._folder, key, fps, image_size, film_limit) for key in cameras}
        self._tasks: dict[str, int] = {}
        self._cells: list[dict[str, Any]] = []
        self._count = 0
        self._length = 0
        self._whole = True
        self._open = True

    def __enter__(self) -> "Writer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abandon()

    def add(self, columns: Mapping[str, ArrayLike], images: Mapping[str, NDArray[np.uint8]], task: str) -> int:
        """One episode of n frames: every column, shape (n, ...), and every camera, shape (n, h, w, 3) uint8 RGB.

        A scalar's column is (n,) or (n, 1). Returns the episode's index. Raises DatasetError, and writes nothing,
        where a column or camera is missing, unknown, of another shape or type, or not finite.
        """
        if not self._open:
            raise DatasetError(f"{self.root}: is closed; write further episodes to another folder")
        if not isinstance(task, str):
            raise DatasetError(f"task {task!r}: a text is needed, an empty one where there is no instruction")
        given = self._accepted(columns, images)
        self._whole = False  # until all parts of this episode lie on disk
        length = len(next(iter((given | dict(images)).values())))
        task_index = self._tasks.setdefault(task, len(self._tasks))
        given |= {
            "timestamp": (np.arange(length) / self._fps).astype(np.float32),
            "frame_index": np.arange(length),
            "episode_index": np.full(length, self._count),
            "index": np.arange(self._length, self._length + length),
            "task_index": np.full(length, task_index),
        }
        table = pa.table({key: to_arrow(given[key], feature) for key, feature in self._columns.items()})
        cells = self._place(length, task, table)
        for key, values in given.items():
            if self._columns[key].dtype != "string":
                cells |= _flat(key, dataset_stats.of_rows(values))
        for key, film in self._films.items():
            where, stats = film.add(images[key])
            cells |= where | _flat(key, stats)
        self._cells.append(cells)
        if len(self._cells) >= EPISODE_ROWS:
            self._write_episodes()
        self._count += 1
        self._length += length
        self._whole = True
        return self._count - 1

    def close(self) -> None:
        """Writes what is pending and the meta tables, and gives the dataset its name. A second call does nothing.

        Raises DatasetError where no episode was added or one was torn by an error.
        """
        if not self._open:
            return
        if not self._count or not self._whole:
            self.abandon()
            why = "an episode was torn by an error" if self._count else "holds no episode"
            raise DatasetError(f"{self._folder}: {why}; remove it and write it again")
        self._whole = False  # until it has its name: an error on the way leaves nothing to try again with
        self._write_episodes()
        parts: list[Table | Film] = [self._rows, self._episodes, *self._films.values()]
        for part in parts:
            part.close()
        self._write_tasks()
        self._write_json(fmt.STATS_PATH, self._stats())
        # Last: a folder without it is no dataset.
        self._write_json(fmt.INFO_PATH, msgspec.to_builtins(self._info()))
        self._folder.rename(self.root)
        self._open = False

    def abandon(self) -> None:
        """Lets go of the files and leaves them unfinished, for nobody to read."""
        self._open = False
        self._rows.release()
        self._episodes.release()
        for film in self._films.values():
            film.close()

    def _accepted(
        self, columns: Mapping[str, ArrayLike], images: Mapping[str, NDArray[np.uint8]]
    ) -> dict[str, NDArray[Any]]:
        for kind, passed, wanted in (
            ("column", set(columns), set(self._columns) - set(fmt.INDEX_FEATURES)),
            ("camera", set(images), set(self._films)),
        ):
            if passed != wanted:
                raise DatasetError(f"{self.root}: {kind}s {sorted(passed)}, expected {sorted(wanted)}")
        given = {key: cast(key, np.asarray(values), self._columns[key]) for key, values in columns.items()}
        for key, film in images.items():
            shape = self._features[key].shape
            if film.dtype != np.uint8 or film.shape[1:] != shape:
                raise DatasetError(f"{key}: {film.dtype} {film.shape}, expected uint8 (n, *{shape})")
        lengths = {key: len(values) for key, values in [*given.items(), *images.items()]}
        if len(set(lengths.values())) != 1 or 0 in lengths.values():
            raise DatasetError(f"{self.root}: frames by feature: {lengths}; one number, at least 1, is needed")
        return given

    def _place(self, length: int, task: str, table: pa.Table) -> dict[str, Any]:
        """Puts the rows into a file; the episode's first cells say into which."""
        where = fmt.place(self._rows.turn(table.nbytes))
        self._rows.add(table)
        return {
            "episode_index": self._count,
            "tasks": [task],
            "length": length,
            **{f"data/{name}": cell for name, cell in where.items()},
            "dataset_from_index": self._length,
            "dataset_to_index": self._length + length,
        }

    def _write_episodes(self) -> None:
        if not self._cells:
            return
        table = pa.table({name: [cells[name] for cells in self._cells] for name in self._cells[0]})
        where = fmt.place(self._episodes.turn(table.nbytes))
        for name, cell in where.items():
            table = table.append_column(f"meta/episodes/{name}", pa.array([cell] * len(table), pa.int64()))
        self._episodes.add(table)
        self._cells = []

    def _write_tasks(self) -> None:
        # lerobot reads it with pandas, which finds the index of the table through this note.
        kinds = (("task_index", "task_index", "int64", "int64"), (None, fmt.TASK_COLUMN, "unicode", "object"))
        names = ("name", "field_name", "pandas_type", "numpy_type")
        columns = [dict(zip(names, kind, strict=True)) | {"metadata": None} for kind in kinds]
        note = {"index_columns": [fmt.TASK_COLUMN], "column_indexes": [], "columns": columns, "pandas_version": "2.2.0"}
        table = pa.table({"task_index": list(self._tasks.values()), fmt.TASK_COLUMN: list(self._tasks)})
        pq.write_table(table.replace_schema_metadata({"pandas": json.dumps(note)}), self._folder / fmt.TASKS_PATH)

    def _stats(self) -> dict[str, Any]:
        """Over all rows, column by column as they lie on disk: the whole table need not fit into memory."""
        files = [self._folder / fmt.DATA_PATH.format(**fmt.place(n)) for n in range(self._rows.number + 1)]
        stats = {}
        for key, feature in self._columns.items():
            if feature.dtype != "string":
                column = pa.concat_tables([pq.read_table(path, columns=[key]) for path in files]).column(key)
                stats[key] = dataset_stats.of_rows(to_numpy(column, feature))
        for key, film in self._films.items():
            stats[key] = dataset_stats.of_pixels(film.levels, film.sampled)
        return {key: {name: value.tolist() for name, value in of.items()} for key, of in stats.items()}

    def _info(self) -> fmt.Info:
        return fmt.Info(
            codebase_version=fmt.VERSION,
            robot_type=self._robot_type,
            total_episodes=self._count,
            total_frames=self._length,
            total_tasks=len(self._tasks),
            fps=self._fps,
            splits={"train": f"0:{self._count}"},
            video_path=fmt.VIDEO_PATH if self._films else None,
            features=self._features,
            data_files_size_in_mb=self._sizes_in_mb[0],
            video_files_size_in_mb=self._sizes_in_mb[1],
        )

    def _write_json(self, name: str, content: Any) -> None:
        (self._folder / name).write_text(json.dumps(content, indent=4, ensure_ascii=False), encoding="utf-8")


def _flat(key: str, stats: dataset_stats.Stats) -> dict[str, Any]:
    return {f"stats/{key}/{name}": value.tolist() for name, value in stats.items()}
