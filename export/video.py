"""The mp4 files of a dataset: one H.264 stream each, frame i shown at i/fps.

Everything here runs on one thread: data are generated and read beside other work, a process a core.
"""

from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import av
import av.error
import numpy as np
from av.video.frame import PictureType
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from dzedge.export.dataset_format import DatasetError

CODEC = "libx264"
# No B frames: the order of decoding is the order of time, no edit list shifts the first frame, and encoding is 1.4
# times as fast for a quarter more bytes.
OPTIONS = {"crf": "14", "preset": "veryfast", "bf": "0"}
PIXELS = "yuv420p"
SEEK_S = 2.0
"""A gap longer than this is jumped over, a shorter one decoded through."""


class Encoder:
    """Writes one file. Every `add` starts with a key frame, so that a reader finds each episode's start at once."""

    def __init__(self, path: Path, fps: int, size: tuple[int, int]) -> None:
        """`size` is (height, width) [pixel], both even."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self.frames = 0
        self.bytes = 0
        self._step = Fraction(1, fps)
        self._convert = VideoReformatter()
        self._container = av.open(str(path), "w", format="mp4")
        stream = cast(av.VideoStream, self._container.add_stream(CODEC, rate=fps, options=OPTIONS))
        stream.height, stream.width = size
        stream.pix_fmt = PIXELS
        stream.codec_context.thread_count = 1
        self._stream = stream

    def add(self, images: NDArray[np.uint8]) -> None:
        """`images`: shape (n, height, width, 3), RGB."""
        for number, image in enumerate(images):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            frame = self._convert.reformat(frame, format=PIXELS)
            frame.pts, frame.time_base = self.frames, self._step
            frame.pict_type = PictureType.NONE if number else PictureType.I
            self._write(frame)
            self.frames += 1

    def close(self) -> None:
        """Writes what the encoder still holds, then the table of frames: before this the file cannot be read."""
        self._write(None)
        self._container.close()

    def _write(self, frame: av.VideoFrame | None) -> None:
        for packet in self._stream.encode(frame):
            self.bytes += packet.size
            self._container.mux(packet)


class Decoder:
    """Reads runs of frames from one file, fastest forwards; any codec that PyAV knows."""

    def __init__(self, path: Path, fps: float) -> None:
        """Raises DatasetError where `path` is no readable video."""
        self.path = path
        self._fps = fps
        self._now_s = 0.0
        self._convert = VideoReformatter()
        try:
            self._container = av.open(str(path))
            self._stream = self._container.streams.video[0]
        except (av.error.FFmpegError, OSError, IndexError) as error:
            raise DatasetError(f"{path}: no readable video ({error}); it is cut off, copy it again") from error
        self._stream.codec_context.thread_count = 1
        self._decoded = self._container.decode(self._stream)

    def read(self, start_s: float, count: int) -> NDArray[np.uint8]:
        """`count` frames from `start_s` [s] of the file on. Shape (count, height, width, 3), RGB.

        Raises DatasetError where one is missing or cannot be decoded.
        """
        self._approach(start_s)
        images = np.empty((count, self._stream.height, self._stream.width, 3), np.uint8)
        found = 0
        while found < count:
            frame = self._next(start_s, found, count)
            index = round((float(frame.time) - start_s) * self._fps)
            if index < 0:
                continue
            if index != found:
                raise DatasetError(
                    f"{self.path}: frame {index} after {start_s:.4f} s where frame {found} is due at {self._fps:g} Hz; "
                    "encode it at a constant rate"
                )
            images[found] = self._pixels(frame)
            found += 1
        self._now_s = start_s + count / self._fps
        return images

    def close(self) -> None:
        self._container.close()

    def _approach(self, start_s: float) -> None:
        """Goes to the key frame before `start_s` unless the next frames to come are about it."""
        if -0.5 / self._fps < start_s - self._now_s < SEEK_S:
            return
        if self._stream.time_base is None:
            raise DatasetError(f"{self.path}: stream without a time base; encode it again")
        self._container.seek(int(start_s / self._stream.time_base), stream=self._stream)
        self._decoded = self._container.decode(self._stream)

    def _next(self, start_s: float, found: int, count: int) -> av.VideoFrame:
        try:
            frame = next(self._decoded)
        except (StopIteration, av.error.FFmpegError) as error:
            raise DatasetError(
                f"{self.path}: {found} of {count} frames from {start_s:.4f} s on, then {error or 'the end'}; "
                "it is cut off or belongs to another dataset, copy it again"
            ) from error
        if frame.time is None:
            raise DatasetError(f"{self.path}: frame without a time stamp; encode it again")
        return frame

    def _pixels(self, frame: av.VideoFrame) -> NDArray[np.uint8]:
        plane = self._convert.reformat(frame, format="rgb24").planes[0]
        rows = np.frombuffer(cast(Any, plane), np.uint8).reshape(frame.height, plane.line_size)
        return rows[:, : 3 * frame.width].reshape(frame.height, frame.width, 3)
