"""The safetensors file: what the library writes and reads, and nothing that is not exactly a file of ours."""

import json
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load, save

from dzedge import tensors
from dzedge.errors import BundleError

ARRAYS = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3), "b.c": np.array(2.5), "empty": np.zeros((0, 4), np.float32),
    "ids": np.array([1, -2], np.int64), "image": np.arange(5, dtype=np.uint8),
}  # fmt: skip
NOTES = {"who": "we", "what": "Größe"}


def file(header: Any, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(dtype: str = "F32", shape: object = (1,), offsets: object = (0, 4)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


class TestAgainstTheLibrary:
    def test_it_reads_what_we_write(self) -> None:
        found = load(tensors.write(ARRAYS, NOTES))
        assert set(found) == set(ARRAYS)
        for name, array in ARRAYS.items():
            np.testing.assert_array_equal(found[name], array)
            assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)

    def test_we_read_what_it_writes(self) -> None:
        found = tensors.read(save(ARRAYS, NOTES), "here")
        assert found.notes == NOTES
        for name, array in ARRAYS.items():
            np.testing.assert_array_equal(found.arrays[name], array)
            assert not found.arrays[name].flags.writeable


def test_equal_contents_give_equal_bytes() -> None:
    backwards = dict(reversed(ARRAYS.items()))
    assert tensors.write(ARRAYS, NOTES) == tensors.write(backwards, dict(reversed(NOTES.items())))
    assert tensors.write(ARRAYS, NOTES) != tensors.write({**ARRAYS, "a": ARRAYS["a"] + 1}, NOTES)


def test_other_dtypes_are_not_written() -> None:
    with pytest.raises(ValueError, match="array 'x' is float16: must be one of F32, F64, I64, U8"):
        tensors.write({"x": np.zeros(2, np.float16)}, {})


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "0 bytes"),
        (struct.pack("<Q", 2**60) + b"{}", "its header is 1152921504606846976 bytes"),
        (struct.pack("<Q", 3) + b"{}", "its header is 3 bytes long"),
        (file(b"{x}"), "Expecting property name"),
        (file(b"\xff\xfe"), "decode"),
        (file([]), "no table"),
        (file(b"[" * 100_000), "recursion"),
        (file({"__metadata__": {"a": 1}}), "must hold texts"),
        (file(b'{"a": {}, "a": {}}'), "stands there twice"),
        (file({"a": {"dtype": "F32"}}), "must have dtype, shape and data_offsets"),
        (file({"a": entry("F16")}, b"0000"), "'F16': must be one of"),
        (file({"a": entry(shape=[True])}, b"0000"), "shape"),
        (file({"a": entry(shape=[-1])}, b"0000"), "shape"),
        (file({"a": entry(shape=[2**62])}, b"0000"), "shape"),
        (file({"a": entry(shape=[2**40] * 9)}, b"0000"), "lies at 0 to 4"),
        (file({"a": entry(shape=[1] * 17)}, b"0000"), "shape"),
        (file({"a": entry(offsets=[0, 4, 8])}, b"0000"), "data_offsets"),
        (file({"a": entry(shape=[2])}, b"00000000"), "lies at 0 to 4"),
        (file({"a": entry()}, b"000"), "lies at 0 to 4"),
        (file({"a": entry(offsets=[4, 8])}, b"00000000"), "expected from 0 on"),
        (file({"a": entry(), "b": entry()}, b"0000"), "expected from 4 on"),
        (file({"a": entry()}, b"00000"), "1 bytes belong to no array"),
    ],
)
def test_refused(data: bytes, words: str) -> None:
    with pytest.raises(BundleError, match=f"^here: not a safetensors file of dzedge: .*{words}"):
        tensors.read(data, "here")


@given(st.integers(0, 1000), st.integers(0, 255))
def test_a_changed_byte_is_read_or_refused(place: int, value: int) -> None:
    data = bytearray(tensors.write(ARRAYS, NOTES))
    data[place % len(data)] = value
    try:
        found = tensors.read(bytes(data), "here")
    except BundleError:
        return
    assert sum(array.nbytes for array in found.arrays.values()) == sum(array.nbytes for array in ARRAYS.values())
