"""The microcontroller frame: round trips, damage, resynchronisation, and PyPI's `cobs` as an independent judge."""

import random
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dzedge.hardware import mcu_frame
from dzedge.hardware.mcu_frame import LONGEST, OVERHEAD, FrameReader, McuFrame

BYTES = st.integers(0, 255)
FRAMES = st.builds(McuFrame, BYTES, BYTES, st.binary(max_size=LONGEST - OVERHEAD))


def body(frame: McuFrame) -> bytes:
    """What is stuffed, put together apart from the code under test."""
    plain = bytes([frame.type, frame.seq, *frame.payload])
    return plain + zlib.crc32(plain).to_bytes(4, "little")


class TestFrame:
    def test_the_documented_example(self) -> None:
        wire = mcu_frame.encode(McuFrame(5, 0, b""))
        assert wire == bytes.fromhex("02 05 05 ba e6 ae 3c 00")
        assert mcu_frame.decode(wire[:-1]) == McuFrame(5, 0, b"")

    @given(FRAMES)
    @settings(max_examples=200)
    def test_round_trip_at_one_byte_of_cost(self, frame: McuFrame) -> None:
        wire = mcu_frame.encode(frame)
        assert wire.index(0) == len(wire) - 1 == OVERHEAD + len(frame.payload) + 1
        assert mcu_frame.decode(wire[:-1]) == frame

    @given(FRAMES)
    @settings(max_examples=200)
    def test_the_judge_encodes_the_same(self, frame: McuFrame) -> None:
        cobs = pytest.importorskip("cobs.cobs", reason="PyPI cobs is the judge (requirements-dev.txt)")
        wire = mcu_frame.encode(frame)
        assert wire == cobs.encode(body(frame)) + b"\0"
        assert cobs.decode(wire[:-1]) == body(frame)

    @given(st.binary(max_size=300))
    @settings(max_examples=500)
    def test_the_judge_decodes_the_same_of_anything(self, wire: bytes) -> None:
        cobs = pytest.importorskip("cobs.cobs", reason="PyPI cobs is the judge (requirements-dev.txt)")
        try:
            plain = cobs.decode(wire)
        except cobs.DecodeError:
            plain = b""
        whole = OVERHEAD <= len(plain) <= LONGEST and zlib.crc32(plain[:-4]) == int.from_bytes(plain[-4:], "little")
        assert (mcu_frame.decode(wire) is not None) == whole

    def test_every_flipped_bit_is_noticed(self) -> None:
        wire = mcu_frame.encode(McuFrame(4, 7, bytes(range(24))))[:-1]
        for bit in range(8 * len(wire)):
            damaged = bytearray(wire)
            damaged[bit // 8] ^= 1 << bit % 8
            assert mcu_frame.decode(bytes(damaged)) is None, bit
        assert mcu_frame.decode(wire) is not None

    def test_longest(self) -> None:
        frame = McuFrame(1, 255, bytes([255]) * (LONGEST - OVERHEAD))
        assert mcu_frame.decode(mcu_frame.encode(frame)[:-1]) == frame
        with pytest.raises(ValueError, match="248 bytes, allowed up to 247"):
            mcu_frame.encode(McuFrame(1, 255, bytes(LONGEST - OVERHEAD + 1)))


class TestReader:
    @given(st.lists(FRAMES, max_size=5), st.integers(1, 40))
    @settings(max_examples=100)
    def test_frames_in_any_pieces(self, frames: list[McuFrame], piece: int) -> None:
        stream = b"".join(b"\0" * i + mcu_frame.encode(frame) for i, frame in enumerate(frames))
        reader = FrameReader()
        found = [f for at in range(0, len(stream), piece) for f in reader.feed(stream[at : at + piece])]
        assert found == frames and reader.damaged == 0

    def test_damage_costs_no_more_than_its_own_frame(self) -> None:
        random.seed(5)
        frames = [McuFrame(4, seq, random.randbytes(seq % 60)) for seq in range(200)]
        reader = FrameReader()
        lost = 0
        for seq, frame in enumerate(frames):
            wire = bytearray(mcu_frame.encode(frame))
            if seq % 3 == 0:
                at = random.randrange(len(wire) - 1)
                wire[at] = random.choice([b for b in range(1, 256) if b != wire[at]])
            found = reader.feed(bytes(wire))
            assert found in ([frame], []) and (found or seq % 3 == 0)
            lost += not found
        assert lost == reader.damaged == 67

    def test_noise_fills_no_memory_and_hides_no_frame(self) -> None:
        reader = FrameReader()
        for _ in range(100):
            assert reader.feed(bytes([7]) * 1000) == []
            assert len(reader._pending) <= 2
        frame = McuFrame(2, 3, b"hold")
        assert reader.feed(b"\0" + mcu_frame.encode(frame)) == [frame]
        assert reader.damaged == 1

    def test_random_streams(self) -> None:
        random.seed(6)
        reader = FrameReader()
        good = McuFrame(0x85, 9, bytes(40))
        for _ in range(3000):
            assert reader.feed(random.randbytes(random.randrange(300))) == []
            assert reader.feed(b"\0" + mcu_frame.encode(good)) == [good]
