"""Training data as LeRobotDataset v3.0: `Writer` makes one, `Dataset` opens any.

    with Writer("data/play", features, fps=10, robot_type="so101", image_size=(120, 160)) as writer:
        writer.add({"action": actions}, {"observation.images.wrist": images}, "reach the red cube")

    data = Dataset("data/play")
    for images, task in zip(data.video("observation.images.wrist"), data.tasks): ...
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from dzedge.export import dataset_format as fmt
from dzedge.export.dataset_columns import to_numpy
from dzedge.export.dataset_format import DatasetError
from dzedge.export.dataset_writer import Writer
from dzedge.export.video import Decoder

__all__ = ["Dataset", "DatasetError", "Writer"]

CONVERT = "python -m lerobot.datasets.v30.convert_dataset_v21_to_v30 --repo-id=... --root=..."


class Dataset:
    """A dataset of E episodes with N frames in all; opening it reads the meta tables and checks that all files fit.

    Attributes:
        fps: frames a second [Hz]
        features: every column and camera by name
        cameras: the names of the cameras
        robot_type: of the arm that it was recorded with
        episodes: E
        offsets: shape (E + 1,); episode e has rows offsets[e]..offsets[e + 1]
        tasks: the instruction of each episode; that of its first frame where it changes on the way
    """

    def __init__(self, root: Path | str) -> None:
        """Raises DatasetError, naming the file and what to do, where `root` is not a whole dataset of this version."""
        self.root = Path(root)
        info = _read_info(self.root)
        self.fps, self.features, self.robot_type = info.fps, info.features, info.robot_type
        self.cameras = [key for key, feature in self.features.items() if feature.is_camera]
        self._info = info
        self._table = self._read_episodes()
        self.episodes = self._table.num_rows
        self.offsets = np.concatenate([[0], np.cumsum(self._cells("length"))])
        self._files = self._locate("data", info.data_path)
        self._check_rows()
        videos = [key for key in self.cameras if self.features[key].dtype == "video"]
        self._videos = {key: self._locate(f"videos/{key}", info.video_path or "", video_key=key) for key in videos}
        self.tasks = self._read_tasks()

    def __len__(self) -> int:
        return int(self.offsets[-1])

    def column(self, name: str) -> NDArray[Any]:
        """Rows of all episodes in order: shape (N, ...), (N,) where a frame has one value; texts as objects.

        Raises DatasetError for a name that is no column and for cells that do not have the feature's shape.
        """
        if name not in self.features or self.features[name].is_camera:
            known = sorted(set(self.features) - set(self.cameras))
            raise DatasetError(f"{self.root}: no column {name!r}; there are {known}")
        return np.concatenate([self._cells_of(path, name) for path in dict.fromkeys(self._files)])

    def frames(self, camera: str, episode: int) -> NDArray[np.uint8]:
        """The n frames of one episode, shape (n, height, width, 3), RGB. Raises DatasetError as `video` does."""
        [images] = self.video(camera, [episode])
        return images

    def video(self, camera: str, episodes: Iterable[int] | None = None) -> Iterator[NDArray[np.uint8]]:
        """The frames of each episode in turn, each (n, height, width, 3), RGB; each file is decoded once, in order.

        Raises DatasetError for an unknown camera or episode, and for frames that are missing or unreadable.
        """
        if camera not in self.cameras:
            raise DatasetError(f"{self.root}: no camera {camera!r}; there are {self.cameras}")
        chosen = range(self.episodes) if episodes is None else episodes
        return self._stills(camera, chosen) if self.features[camera].dtype == "image" else self._film(camera, chosen)

    def _film(self, camera: str, episodes: Iterable[int]) -> Iterator[NDArray[np.uint8]]:
        starts = self._cells(f"videos/{camera}/from_timestamp")
        decoder: Decoder | None = None
        try:
            for episode in episodes:
                start, end = self._rows(episode)
                path = self._videos[camera][episode]
                if decoder is None or decoder.path != path:
                    if decoder:
                        decoder.close()
                    decoder = Decoder(path, self.fps)
                yield decoder.read(float(starts[episode]), end - start)
        finally:
            if decoder:
                decoder.close()

    def _stills(self, camera: str, episodes: Iterable[int]) -> Iterator[NDArray[np.uint8]]:
        """A camera whose pictures lie in the data files, one PNG a frame."""
        held: Path | None = None
        for episode in episodes:
            start, end = self._rows(episode)
            path = self._files[episode]
            if path != held:
                held, cells = path, _read_table(path, [camera]).column(camera)
            first = start - self.offsets[self._files.index(path)]
            try:
                pictures = [Image.open(BytesIO(cell["bytes"])) for cell in cells.slice(first, end - start).to_pylist()]
                yield np.stack([np.asarray(picture.convert("RGB")) for picture in pictures])
            except (TypeError, KeyError, ValueError, OSError, UnidentifiedImageError) as error:
                raise DatasetError(f"{path}: {camera} of episode {episode}: no readable picture ({error})") from error

    def _rows(self, episode: int) -> tuple[int, int]:
        if not 0 <= episode < self.episodes:
            raise DatasetError(f"{self.root}: no episode {episode}; there are 0..{self.episodes - 1}")
        return int(self.offsets[episode]), int(self.offsets[episode + 1])

    def _read_episodes(self) -> pa.Table:
        paths = sorted((self.root / "meta" / "episodes").glob("*/*.parquet"))
        if not paths:
            raise DatasetError(f"{self.root}/meta/episodes: holds no table; copy the dataset again")
        tables = []
        for path in paths:
            with _open_table(path) as file:
                names = file.schema_arrow.names
            tables.append(_read_table(path, [name for name in names if not name.startswith("stats/")]))
        table = pa.concat_tables(tables, promote_options="default").sort_by("episode_index")
        if table.column("episode_index").to_pylist() != list(range(self._info.total_episodes)):
            raise DatasetError(
                f"{self.root}/meta/episodes: {table.num_rows} episodes, expected 0..{self._info.total_episodes - 1} as "
                "info.json says; copy the dataset again"
            )
        return table

    def _cells(self, name: str) -> NDArray[Any]:
        """A column of the episodes table, shape (E,)."""
        if name not in self._table.column_names or self._table.column(name).null_count:
            raise DatasetError(f"{self.root}/meta/episodes: no or incomplete column {name!r}; it is damaged or foreign")
        return self._table.column(name).to_numpy()

    def _locate(self, prefix: str, template: str, **names: str) -> list[Path]:
        """The file of each episode. Raises DatasetError where one is missing or lies outside of the dataset."""
        chunks, files = self._cells(f"{prefix}/chunk_index"), self._cells(f"{prefix}/file_index")
        found: dict[tuple[int, int], Path] = {}
        for chunk, file in zip(chunks.tolist(), files.tolist(), strict=True):
            if (chunk, file) in found:
                continue
            try:
                path = self.root / template.format(chunk_index=chunk, file_index=file, **names)
            except (LookupError, ValueError, AttributeError) as error:
                raise DatasetError(f"{self.root / fmt.INFO_PATH}: path template {template!r}: {error}") from error
            if not path.resolve().is_relative_to(self.root.resolve()):
                raise DatasetError(f"{self.root / fmt.INFO_PATH}: {path} lies outside of the dataset; do not trust it")
            if not path.is_file():
                raise DatasetError(f"{path}: missing; copy the dataset again")
            found[chunk, file] = path
        return [found[key] for key in zip(chunks.tolist(), files.tolist(), strict=True)]

    def _check_rows(self) -> None:
        """Rows lie in the files as the episodes table says; else every column would be shifted against the videos."""
        lengths = np.diff(self.offsets)
        due: Counter[Path] = Counter()
        for path, length in zip(self._files, lengths.tolist(), strict=True):
            due[path] += length
        for path, rows in due.items():
            with _open_table(path) as file:
                if file.metadata.num_rows != rows:
                    raise DatasetError(
                        f"{path}: {file.metadata.num_rows} rows, the episodes table says {rows}; copy the dataset again"
                    )
        if len(self) != self._info.total_frames or lengths.min(initial=1) < 1:
            raise DatasetError(
                f"{self.root / fmt.INFO_PATH}: total_frames {self._info.total_frames}, the episodes have {len(self)}"
            )
        if not np.array_equal(self.column("episode_index"), np.repeat(np.arange(self.episodes), lengths)):
            raise DatasetError(f"{self.root}/data: rows are not in the order of the episodes; copy the dataset again")

    def _read_tasks(self) -> list[str]:
        path = self.root / fmt.TASKS_PATH
        if not path.is_file():
            raise DatasetError(f"{path}: missing; copy the dataset again")
        table = _read_table(path)
        texts = [name for name in table.column_names if name != "task_index"]
        if len(texts) != 1 or "task_index" not in table.column_names:
            raise DatasetError(f"{path}: columns {table.column_names}, expected task_index and the text; it is foreign")
        text = dict(zip(table.column("task_index").to_pylist(), table.column(texts[0]).to_pylist(), strict=True))
        first = self.column("task_index")[self.offsets[:-1]]
        try:
            return [text[int(index)] for index in first]
        except KeyError as error:
            raise DatasetError(f"{path}: no task_index {error}, which the data use; copy the dataset again") from error

    def _cells_of(self, path: Path, name: str) -> NDArray[Any]:
        feature = self.features[name]
        try:
            return to_numpy(_read_table(path, [name]).column(name), feature)
        except (ValueError, TypeError) as error:
            raise DatasetError(
                f"{path}: column {name!r} is no {feature.dtype} {feature.shape}: {error}; it is damaged or foreign"
            ) from error


def _read_info(root: Path) -> fmt.Info:
    path = root / fmt.INFO_PATH
    unfinished = root.with_name(root.name + fmt.UNFINISHED)
    if not path.is_file():
        if unfinished.exists() or root.name.endswith(fmt.UNFINISHED):
            raise DatasetError(f"{root}: was not written to its end; remove what is there and write it again")
        raise DatasetError(f"{path}: missing; {root} is no LeRobotDataset, or only a part of one")
    try:
        found = msgspec.json.decode(path.read_bytes())
        version = str(found["codebase_version"])
        if version.startswith(("v1.", "v2.")):
            raise DatasetError(f"{root}: is {version}, {fmt.VERSION} is needed; convert it: {CONVERT}")
        if not version.startswith("v3."):
            raise DatasetError(f"{root}: is {version}, {fmt.VERSION} is needed")
        return msgspec.convert(found, fmt.Info)
    except (msgspec.MsgspecError, KeyError, TypeError) as error:
        raise DatasetError(f"{path}: {error}; it is damaged or foreign, copy it again") from error


def _open_table(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise DatasetError(f"{path}: no readable parquet file ({error}); it is cut off, copy it again") from error


def _read_table(path: Path, names: list[str] | None = None) -> pa.Table:
    with _open_table(path) as file:
        for name in set(names or []) - set(file.schema_arrow.names):
            raise DatasetError(f"{path}: no column {name!r}; it belongs to another dataset")
        try:
            return file.read(names)
        except (pa.ArrowException, OSError) as error:
            raise DatasetError(f"{path}: no readable parquet file ({error}); it is damaged, copy it again") from error
