"""The safetensors file, read strictly: named arrays and a few words, nothing that could run.

    8 bytes   n, length of the header, little endian
    n bytes   JSON {"NAME": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, "__metadata__": {"KEY": "TEXT"}}
    the rest  the arrays, one after the other, little endian, without a gap

As in https://github.com/huggingface/safetensors (format), of which only what dzedge writes itself is read. A runtime
that has to read two small files needs no library for it.
"""

import json
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dzedge.errors import BundleError

DTYPES: dict[str, type[np.generic]] = {"F32": np.float32, "F64": np.float64, "I64": np.int64, "U8": np.uint8}
NOTES = "__metadata__"
LONGEST = 16 << 20
"""Longest header that is read [bytes]."""

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Tensors:
    """arrays: by name, read-only views of the file's bytes; notes: what the file says in words."""

    arrays: Mapping[str, Array] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)


def read(data: bytes, source: str) -> Tensors:
    """What a file holds. source: names it. Raises BundleError for anything that is not exactly as written above."""
    try:
        return _read(data)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{source}: not a safetensors file of dzedge: {error}; export the bundle again") from error


def write(arrays: Mapping[str, Array], notes: Mapping[str, str]) -> bytes:
    """The file of these arrays and notes; equal contents give equal bytes. Raises ValueError for another dtype."""
    header: dict[str, Any] = {NOTES: dict(sorted(notes.items()))}
    parts: list[bytes] = []
    end = 0
    for name, array in sorted(arrays.items()):
        part = np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
        offsets = [end, end := end + len(part)]
        header[name] = {"dtype": _code(name, array), "shape": list(array.shape), "data_offsets": offsets}
        parts.append(part)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return b"".join([struct.pack("<Q", len(text)), text, *parts])


def _code(name: str, array: Array) -> str:
    for code, dtype in DTYPES.items():
        if array.dtype == dtype:
            return code
    raise ValueError(f"array {name!r} is {array.dtype}: must be one of {', '.join(DTYPES)}")


def _read(data: bytes) -> Tensors:
    if len(data) < 8:
        raise ValueError(f"{len(data)} bytes")
    (length,) = struct.unpack_from("<Q", data)
    if not 2 <= length <= min(LONGEST, len(data) - 8):
        raise ValueError(f"its header is {length} bytes long, the file {len(data)}")
    header = json.loads(data[8 : 8 + length].decode(), object_pairs_hook=_once)
    if not isinstance(header, dict):
        raise ValueError("its header is no table")
    notes = header.pop(NOTES, {})
    if not isinstance(notes, dict) or not all(isinstance(note, str) for note in notes.values()):
        raise ValueError(f"{NOTES} must hold texts")
    return Tensors(dict(_arrays(header, memoryview(data)[8 + length :])), notes)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands there twice")
    return found


def _arrays(header: dict[str, Any], data: memoryview) -> Iterator[tuple[str, Array]]:
    """Every array, in the order of its bytes, which leave no gap and end with the file."""
    end = 0
    for name, entry in sorted(header.items(), key=lambda item: _entry(*item)[2]):
        dtype, shape, first, last = _entry(name, entry)
        count = 1
        for extent in shape:
            count *= extent
        if first != end or last - first != count * dtype.itemsize or last > len(data):
            raise ValueError(f"{name!r} of shape {shape} lies at {first} to {last}, expected from {end} on")
        array = np.frombuffer(data[first:last], dtype).reshape(shape)
        array.setflags(write=False)
        yield name, array
        end = last
    if end != len(data):
        raise ValueError(f"{len(data) - end} bytes belong to no array")


def _entry(name: str, entry: Any) -> tuple[np.dtype[Any], tuple[int, ...], int, int]:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{name!r} must have dtype, shape and data_offsets")
    shape, offsets = entry["shape"], entry["data_offsets"]
    if entry["dtype"] not in DTYPES:
        raise ValueError(f"{name!r} is {entry['dtype']!r}: must be one of {', '.join(DTYPES)}")
    if not _counts(shape) or len(shape) > 16 or not _counts(offsets) or len(offsets) != 2:
        raise ValueError(f"{name!r}: shape {shape!r} or data_offsets {offsets!r}")
    return np.dtype(DTYPES[entry["dtype"]]).newbyteorder("<"), tuple(shape), offsets[0], offsets[1]


def _counts(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value <= 2**40 for value in values)
