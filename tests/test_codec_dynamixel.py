"""Dynamixel frames: the compiled kernel, its interpreted twin and the reference obey the same tests."""

from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dzedge.kernels import codec_dynamixel, codec_dynamixel_reference

IDS = st.integers(0, 252)
# bytes that make headers and stuffing likely
NASTY = st.lists(st.sampled_from([0xFF, 0xFF, 0xFD, 0x00, 0x55, 0x03]) | st.integers(0, 255), max_size=40).map(bytes)
HEAD = "ff ff fd 00 "


def interpreted() -> ModuleType:
    """The typed source, run by Python: bounds are checked there."""
    path = Path(__file__).parents[1] / "kernels" / "codec_dynamixel.py"
    loader = SourceFileLoader("codec_dynamixel__py", str(path))
    spec = spec_from_loader(loader.name, loader)
    assert spec is not None
    module = module_from_spec(spec)
    loader.exec_module(module)
    return module


@pytest.fixture(params=["kernel", "interpreted", "reference"], scope="module")
def dxl(request: pytest.FixtureRequest) -> ModuleType:
    known = {"kernel": codec_dynamixel, "interpreted": interpreted(), "reference": codec_dynamixel_reference}
    return known[request.param]


def array(data: bytes) -> np.ndarray:
    return np.frombuffer(data, np.uint8)


def built(encoder, *arguments) -> bytes:
    out = np.zeros(300, np.uint8)
    length = encoder(out, *(array(a) if isinstance(a, bytes) else a for a in arguments))
    assert length > 0
    return bytes(out[:length])


def unstuffed(dxl: ModuleType, frame: bytes) -> bytes:
    """ERR, and what follows, of a status."""
    out = np.zeros(60, np.uint8)
    count = dxl.unstuff(array(frame), 7, len(frame) - 2, out)
    assert out[0] == 0x55
    return bytes(out[1:count])


def frames(dxl: ModuleType, stream: bytes, longest: int = 1024, final: bool = True) -> tuple[list[bytes], list[int]]:
    """All frames of a stream, and what `found` holds at its end."""
    found = np.zeros(5, np.int32)
    at, result = 0, []
    data = array(stream)
    while dxl.scan(data, at, len(stream), longest, final, found):
        result.append(stream[found[0] : found[0] + found[1]])
        at = int(found[2])
    return result, found.tolist()


def reply(servo: int, data: bytes, error: int = 0) -> bytes:
    return built(codec_dynamixel_reference.status, servo, error, data)


class TestEncoding:
    # the examples of ROBOTIS' e-manual, protocol2: requests and replies
    @pytest.mark.parametrize(
        ("name", "arguments", "expected"),
        [
            ("ping", (1,), "01 03 00 01 19 4e"),
            ("ping", (0xFE,), "fe 03 00 01 31 42"),
            ("status", (1, 0, b"\x06\x04\x26"), "01 07 00 55 00 06 04 26 65 5d"),
            ("status", (2, 0, b"\x06\x04\x26"), "02 07 00 55 00 06 04 26 6f 6d"),
            ("read", (1, 132, 4), "01 07 00 02 84 00 04 00 1d 15"),
            ("status", (1, 0, b"\xa6\0\0\0"), "01 08 00 55 00 a6 00 00 00 8c c0"),
            ("write", (1, 116, b"\0\x02\0\0"), "01 09 00 03 74 00 00 02 00 00 ca 89"),
            ("status", (1, 0, b""), "01 04 00 55 00 a1 0c"),
            ("reg_write", (1, 104, b"\xc8\0\0\0"), "01 09 00 04 68 00 c8 00 00 00 ae 8e"),
            ("frame", (1, 0x05, b""), "01 03 00 05 02 ce"),
            ("frame", (1, 0x06, b"\x01"), "01 04 00 06 01 a1 e6"),
            ("frame", (1, 0x08, b""), "01 03 00 08 2f 4e"),
            ("frame", (1, 0x10, b"\x01DXL\x22"), "01 08 00 10 01 44 58 4c 22 b1 dc"),
            ("sync_read", (132, 4, b"\x01\x02"), "fe 09 00 82 84 00 04 00 01 02 ce fa"),
            ("status", (2, 0, b"\x1f\x08\0\0"), "02 08 00 55 00 1f 08 00 00 ba be"),
            (
                "frame",
                (0xFE, 0x92, bytes.fromhex("01 90 00 02 00 02 92 00 01 00")),
                "fe 0d 00 92 01 90 00 02 00 02 92 00 01 00 1a 05",
            ),
            (
                "frame",
                (0xFE, 0x93, bytes.fromhex("01 20 00 02 00 a0 00 02 1f 00 01 00 50")),
                "fe 10 00 93 01 20 00 02 00 a0 00 02 1f 00 01 00 50 b7 68",
            ),
        ],
    )
    def test_golden_frames(self, dxl: ModuleType, name: str, arguments: tuple, expected: str) -> None:
        assert built(getattr(dxl, name), *arguments).hex(" ") == HEAD + expected

    def test_golden_sync_write(self, dxl: ModuleType) -> None:
        rows = np.array([[150, 0, 0, 0], [170, 0, 0, 0]], np.uint8)
        expected = "fe 11 00 83 74 00 04 00 01 96 00 00 00 02 aa 00 00 00 82 87"
        assert built(dxl.sync_write, 116, b"\x01\x02", rows).hex(" ") == HEAD + expected

    def test_check_value(self, dxl: ModuleType) -> None:
        assert dxl.crc(array(b"123456789"), 0, 9, 0) == 0xFEE8
        assert dxl.crc(array(b"456789"), 0, 6, dxl.crc(array(b"123"), 0, 3, 0)) == 0xFEE8

    def test_fast_sync_read_asks_as_sync_read_does(self, dxl: ModuleType) -> None:
        plain, fast = (built(getattr(dxl, name), 132, 4, b"\x01\x02") for name in ("sync_read", "fast_sync_read"))
        assert plain[:7] == fast[:7] and plain[8:14] == fast[8:14]
        assert fast[7] == 0x8A and plain[-2:] != fast[-2:]

    @pytest.mark.parametrize(
        ("payload", "stuffed"),
        [
            ("ff ff fd", "ff ff fd fd"),
            ("ff ff fd fd", "ff ff fd fd fd"),
            ("ff ff fd ff ff fd", "ff ff fd fd ff ff fd fd"),
            ("ff ff ff fd", "ff ff ff fd fd"),
            ("00 ff ff fd 01", "00 ff ff fd fd 01"),
            ("ff fd ff", "ff fd ff"),
        ],
    )
    def test_stuffing(self, dxl: ModuleType, payload: str, stuffed: str) -> None:
        data = bytes.fromhex(payload)
        frame = built(dxl.status, 1, 0, data)
        assert frame[9:-2].hex(" ") == stuffed
        assert int.from_bytes(frame[5:7], "little") == len(frame) - 7
        assert unstuffed(dxl, frame) == b"\0" + data

    def test_address_and_data_may_make_the_pattern_together(self, dxl: ModuleType) -> None:
        frame = built(dxl.write, 1, 0xFFFF, b"\xfd\x07")
        assert frame[8:-2] == b"\xff\xff\xfd\xfd\x07"

    @given(data=NASTY, servo=IDS, error=st.integers(0, 255))
    @settings(max_examples=200, deadline=None)
    def test_kernel_twin_and_reference_agree(self, data: bytes, servo: int, error: int) -> None:
        twin, rows = interpreted(), np.frombuffer(data + b"\0\0", np.uint8).reshape(-1, 1)
        wanted = reply(servo, data, error)
        ids = bytes(range(len(rows)))
        for dxl in (codec_dynamixel, twin):
            assert built(dxl.status, servo, error, data) == wanted
            for name in ("write", "reg_write"):
                expected = built(getattr(codec_dynamixel_reference, name), servo, error * 257, data)
                assert built(getattr(dxl, name), servo, error * 257, data) == expected
            for name in ("sync_read", "fast_sync_read"):
                expected = built(getattr(codec_dynamixel_reference, name), error, 9, data)
                assert built(getattr(dxl, name), error, 9, data) == expected
            expected = built(codec_dynamixel_reference.sync_write, error, ids, rows)
            assert built(dxl.sync_write, error, ids, rows) == expected
            assert unstuffed(dxl, wanted) == bytes([error]) + data

    @given(data=NASTY, missing=st.integers(1, 12))
    @settings(max_examples=60, deadline=None)
    def test_a_frame_that_does_not_fit_is_refused(self, data: bytes, missing: int) -> None:
        length = len(reply(1, data))
        for dxl in (codec_dynamixel, interpreted(), codec_dynamixel_reference):
            for room in (length - 1, max(length - missing, 0), 0):
                assert dxl.status(np.zeros(room, np.uint8), 1, 0, array(data)) == -1
            assert dxl.status(np.zeros(length, np.uint8), 1, 0, array(data)) == length

    @given(value=st.integers(-(2**31), 2**31 - 1))
    def test_words(self, value: int) -> None:
        for dxl in (codec_dynamixel, interpreted(), codec_dynamixel_reference):
            out = np.zeros(6, np.uint8)
            dxl.put_long(out, 1, value)
            assert bytes(out) == b"\0" + value.to_bytes(4, "little", signed=True) + b"\0"
            assert dxl.long_word(out, 1) == value
            half = value >> 16
            dxl.put_word(out, 1, half)
            assert (dxl.signed_word(out, 1), dxl.word(out, 1)) == (half, half & 0xFFFF)


class TestScan:
    def test_frames_amid_noise(self, dxl: ModuleType) -> None:
        a, b = reply(1, b"\x01\x02"), reply(7, b"\xff\xff\xfd\x00\x01")
        stream = b"\xff\xff\x00" + a + b"\xff\xff\xfd" + b + b"\x55"
        got, found = frames(dxl, stream)
        assert got == [a, b]
        assert found[3] == 7 and found[4] == 0

    def test_a_damaged_frame_is_skipped_and_counted(self, dxl: ModuleType) -> None:
        a, b = bytearray(reply(1, b"\x01\x02")), reply(2, b"\x03\x04")
        a[9] ^= 4
        got, found = frames(dxl, bytes(a) + b)
        assert got == [b]
        assert found[4] == 1 and found[3] == len(a)

    def test_an_unfinished_frame_waits_until_the_end(self, dxl: ModuleType) -> None:
        a = reply(1, b"\x01\x02")
        for cut in range(1, len(a)):
            got, found = frames(dxl, a[:cut], final=False)
            assert got == [] and found[2] == 0 and found[3] == 0
        got, found = frames(dxl, a[:-1], final=True)
        assert got == [] and found[2] == len(a) - 1

    @pytest.mark.parametrize("bad", [{3: 0xFD}, {4: 0xFD}, {4: 0xFF}, {5: 2}, {6: 5}])
    def test_what_is_no_header_cannot_swallow(self, dxl: ModuleType, bad: dict[int, int]) -> None:
        head = bytearray(reply(1, b"\x01\x02"))
        for at, value in bad.items():
            head[at] = value
        good = reply(2, b"\x03")
        got, _ = frames(dxl, bytes(head) + good, longest=64, final=False)
        assert got == [good]

    @given(stream=st.lists(NASTY | st.tuples(IDS, NASTY).map(lambda t: reply(*t)), max_size=6).map(b"".join))
    @settings(max_examples=200, deadline=None)
    def test_all_three_find_the_same(self, stream: bytes) -> None:
        for final in (False, True):
            expected = frames(codec_dynamixel_reference, stream, 40, final)
            assert frames(codec_dynamixel, stream, 40, final) == expected
            assert frames(interpreted(), stream, 40, final) == expected


def fast_reply(states: list[tuple[int, int, bytes]]) -> bytes:
    """As servos build it together: id, ERR, data of each; LEN of the whole frame."""
    count = sum(len(data) + 4 for _, _, data in states)
    made = bytes.fromhex("ff ff fd 00 fe") + (count + 1).to_bytes(2, "little") + b"\x55"
    for servo, error, data in states:
        made += bytes([error, servo]) + data
        made += codec_dynamixel_reference.crc(made, 0, len(made), 0).to_bytes(2, "little")
    return made


class TestFastReply:
    STATES = ((1, 0, b"\xa6\0\0\0"), (2, 0x80, b"\x1f\x08\0\0"), (9, 0, b"\xff\xff\xfd\x01"))

    def test_is_a_frame_with_a_crc_for_each_servo(self, dxl: ModuleType) -> None:
        made = fast_reply(list(self.STATES))
        assert frames(dxl, made) == ([made], [0, len(made), len(made), 0, 0])
        assert dxl.fast_slots(array(made), 0, len(made), 4) == 3

    def test_servos_before_the_gap_are_whole(self, dxl: ModuleType) -> None:
        made = fast_reply(list(self.STATES))
        whole = [dxl.fast_slots(array(made), 0, end, 4) for end in range(len(made) + 1)]
        assert whole == [0] * 16 + [1] * 8 + [2] * 8 + [3]

    def test_damage_ends_the_trust(self, dxl: ModuleType) -> None:
        for at in range(16, 24):
            made = bytearray(fast_reply(list(self.STATES)))
            made[at] ^= 0x10
            assert dxl.fast_slots(array(bytes(made)), 0, len(made), 4) == 1
        assert dxl.fast_slots(array(fast_reply(list(self.STATES))), 0, 32, 5) == 0
