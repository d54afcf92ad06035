"""Columns of a dataset: from a caller's description and arrays to those of the format, and back."""

from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dzedge.export.dataset_format import INDEX_FEATURES, DatasetError, Feature


def to_numpy(column: pa.ChunkedArray, feature: Feature) -> NDArray[Any]:
    """A column of n rows as an array of shape (n, *feature.row), texts as objects. Raises ValueError."""
    array = pa.concat_arrays([_storage(chunk) for chunk in column.chunks]) if column.num_chunks else pa.array([])
    rows = len(array)
    while isinstance(array, pa.ListArray | pa.LargeListArray | pa.FixedSizeListArray):
        if array.null_count:
            raise ValueError(f"{array.null_count} empty cells")
        array = array.flatten()
    if array.null_count:
        raise ValueError(f"{array.null_count} empty cells")
    values = array.to_numpy(zero_copy_only=False)
    if feature.dtype != "string":
        values = values.astype(feature.dtype, copy=False)
    return values.reshape(rows, *feature.row)


def _storage(array: pa.Array) -> pa.Array:
    """lerobot's matrices are an extension type where the library that defines it is loaded, else plain lists."""
    return array.storage if isinstance(array, pa.ExtensionArray) else array


def to_arrow(values: NDArray[Any], feature: Feature) -> pa.Array:
    """Shape (n, *feature.row) -> n cells, nested lists of fixed size."""
    flat = pa.array(values.reshape(-1), pa.string() if feature.dtype == "string" else None)
    for size in reversed(feature.row):
        flat = pa.FixedSizeListArray.from_arrays(flat, size)
    return flat


def cast(key: str, values: NDArray[Any], feature: Feature) -> NDArray[Any]:
    """`values` in the feature's type and shape (n, *feature.row). Raises DatasetError where they do not fit it."""
    if feature.dtype == "string":
        values = values.astype(object)
        if not all(isinstance(value, str) for value in values.flat):
            raise DatasetError(f"{key}: holds something else than texts; convert it first")
    elif not np.can_cast(values.dtype, feature.dtype, "same_kind"):
        raise DatasetError(f"{key}: {values.dtype} does not fit into {feature.dtype}; convert it first")
    if feature.shape == (1,) and values.shape[1:] == (1,):
        values = values[:, 0]
    if values.ndim == 0 or values.shape[1:] != feature.row:
        raise DatasetError(f"{key}: shape {values.shape}, expected (n, *{feature.row})")
    if feature.dtype == "string":
        return values
    values = values.astype(feature.dtype)
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        row = int(np.flatnonzero(~np.isfinite(values.reshape(len(values), -1)).all(axis=1))[0])
        raise DatasetError(f"{key}: row {row} is not finite; leave out that episode")
    return values


def checked(
    features: Mapping[str, Mapping[str, Any]], fps: int, image_size: tuple[int, int]
) -> dict[str, Feature]:
    """A caller's features, cameras completed. Raises DatasetError for what the format does not hold."""
    if isinstance(fps, bool) or not isinstance(fps, int) or not 1 <= fps <= 1000:
        raise DatasetError(f"fps {fps!r}: an integer in 1..1000 is needed")
    if any(side < 2 or side % 2 for side in image_size):
        raise DatasetError(f"image_size {image_size}: height and width must be even and at least 2 (4:2:0 video)")
    found = {}
    for key, spec in features.items():
        try:
            feature = msgspec.convert(spec, Feature)
            kind = "S" if feature.dtype in ("video", "string") else np.dtype(feature.dtype).kind
        except (msgspec.ValidationError, TypeError) as error:
            raise DatasetError(f"feature {key!r}: {error}; give dtype, shape, names") from error
        if key in INDEX_FEATURES or "/" in key or kind not in "Sfiub" or feature.dtype == "float16":
            raise DatasetError(f"feature {key!r}, {feature.dtype}: a reserved name, a / in it, or no such type")
        if feature.dtype == "video":
            feature = Feature("video", (*image_size, 3), ["height", "width", "channels"], _video_info(fps, image_size))
        elif not feature.shape or min(feature.shape) < 1 or (feature.dtype == "string" and feature.shape != (1,)):
            raise DatasetError(f"feature {key!r}: shape {feature.shape}; (1,) is a scalar, every side at least 1")
        found[key] = feature
    return found


def _video_info(fps: int, image_size: tuple[int, int]) -> dict[str, Any]:
    return {
        "video.height": image_size[0],
        "video.width": image_size[1],
        "video.codec": "h264",
        "video.pix_fmt": "yuv420p",
        "video.is_depth_map": False,
        "video.fps": fps,
        "video.channels": 3,
        "has_audio": False,
    }
