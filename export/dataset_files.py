"""The growing files of a dataset that is being written: tables as parquet, cameras as mp4, split by size."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dzedge.export import dataset_format as fmt
from dzedge.export import dataset_stats
from dzedge.export.video import Encoder

GROUP_BYTES = 4 * 1024**2
"""Rows are gathered to row groups of about this size: with a group an episode, reading a column crawls."""


class Table:
    """A table in parquet files of at most `limit` [bytes]; what one `add` brings never straddles two files."""

    def __init__(self, root: Path, template: str, limit: float) -> None:
        self.number = 0
        self._root, self._template, self._limit = root, template, limit
        self._waiting: list[pa.Table] = []
        self._waiting_bytes = 0
        self._sink: Any = None
        self._writer: Any = None

    def turn(self, coming: int) -> int:
        """Starts the next file where `coming` [bytes, uncompressed] do not fit into this one; returns its number."""
        held = self._waiting_bytes + (self._sink.tell() if self._sink else 0)
        if held and held + coming > self._limit:
            self.close()
            self.number += 1
        return self.number

    def add(self, table: pa.Table) -> None:
        self._waiting.append(table)
        self._waiting_bytes += table.nbytes
        if self._waiting_bytes >= GROUP_BYTES:
            self._flush()

    def close(self) -> None:
        self._flush()
        self.release()

    def release(self) -> None:
        """Lets go of the file."""
        if self._sink:
            self._writer.close()
            self._sink.close()
            self._sink = self._writer = None

    def _flush(self) -> None:
        if not self._waiting:
            return
        table = pa.concat_tables(self._waiting).combine_chunks()
        if not self._sink:
            path = self._root / self._template.format(**fmt.place(self.number))
            path.parent.mkdir(parents=True, exist_ok=True)
            self._sink = path.open("wb")
            self._writer = pq.ParquetWriter(self._sink, table.schema, compression="snappy")
        self._writer.write_table(table)
        self._waiting, self._waiting_bytes = [], 0


class Film:
    """The videos of one camera, in files of about `limit` [bytes] at most."""

    def __init__(self, root: Path, key: str, fps: int, size: tuple[int, int], limit: float) -> None:
        self.number = 0
        self.levels = np.zeros((3, 256), np.int64)
        self.sampled = 0
        self._root, self._key, self._fps, self._size, self._limit = root, key, fps, size, limit
        self._encoder: Encoder | None = None

    def add(self, images: NDArray[np.uint8]) -> tuple[dict[str, Any], dataset_stats.Stats]:
        """One episode, shape (n, h, w, 3) -> (where it lies: cells of the episodes table, statistics)."""
        encoder = self._encoder
        if encoder and encoder.bytes * (1 + len(images) / encoder.frames) > self._limit:
            self.close()
            self.number += 1
        if self._encoder is None:
            path = self._root / fmt.VIDEO_PATH.format(video_key=self._key, **fmt.place(self.number))
            self._encoder = Encoder(path, self._fps, self._size)
        start = self._encoder.frames
        self._encoder.add(images)
        cells = {
            **fmt.place(self.number),
            "from_timestamp": start / self._fps,
            "to_timestamp": self._encoder.frames / self._fps,
        }
        levels, sampled = dataset_stats.histogram(images), min(len(images), dataset_stats.SAMPLED_FRAMES)
        self.levels += levels
        self.sampled += sampled
        where = {f"videos/{self._key}/{name}": cell for name, cell in cells.items()}
        return where, dataset_stats.of_pixels(levels, sampled)

    def close(self) -> None:
        if self._encoder:
            self._encoder.close()
            self._encoder = None
