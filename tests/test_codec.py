"""Servo frames: the compiled kernel, its interpreted twin and the reference obey the same tests."""

from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import scservo_sdk
from hypothesis import given, settings
from hypothesis import strategies as st

from dzedge.kernels import codec, codec_reference

IDS = st.integers(0, 253)
PAYLOAD = st.binary(min_size=0, max_size=40)


def interpreted() -> ModuleType:
    """The typed source, run by Python: bounds are checked there."""
    path = Path(__file__).parents[1] / "kernels" / "codec.py"
    loader = SourceFileLoader("codec__py", str(path))
    spec = spec_from_loader(loader.name, loader)
    assert spec is not None
    module = module_from_spec(spec)
    loader.exec_module(module)
    return module


@pytest.fixture(params=["kernel", "interpreted", "reference"], scope="module")
def sts(request: pytest.FixtureRequest) -> ModuleType:
    return {"kernel": codec, "interpreted": interpreted(), "reference": codec_reference}[request.param]


def array(data: bytes) -> np.ndarray:
    return np.frombuffer(data, np.uint8)


def built(encoder, *arguments) -> bytes:
    out = np.zeros(300, np.uint8)
    return bytes(out[: encoder(out, *arguments)])


def frames(sts: ModuleType, stream: bytes, longest: int = 259, final: bool = True) -> tuple[list[bytes], list[int]]:
    """All frames of a stream, and what `found` holds at its end."""
    found = np.zeros(5, np.int32)
    data, at, result = array(stream), 0, []
    while sts.scan(data, at, len(stream), longest, final, found):
        result.append(stream[found[0] : found[0] + found[1]])
        at = int(found[2])
    return result, found.tolist()


def reply(servo: int, data: bytes, error: int = 0) -> bytes:
    return built(codec_reference.status, servo, error, array(data))


class TestEncoding:
    # the examples of Feetech's protocol manual
    @pytest.mark.parametrize(
        ("name", "arguments", "expected"),
        [
            ("ping", (1,), "ff ff 01 02 01 fb"),
            ("read", (1, 0x38, 2), "ff ff 01 04 02 38 02 be"),
            ("write", (1, 0x2A, bytes.fromhex("00080000e803")), "ff ff 01 09 03 2a 00 08 00 00 e8 03 d5"),
            ("write", (0xFE, 5, b"\x01"), "ff ff fe 04 03 05 01 f4"),
            ("sync_read", (0x38, 8, b"\x01\x02"), "ff ff fe 06 82 38 08 01 02 36"),
            ("status", (1, 0, b""), "ff ff 01 02 00 fc"),
            ("status", (1, 0, b"\x18\x05"), "ff ff 01 04 00 18 05 dd"),
        ],
    )
    def test_golden_frames(self, sts: ModuleType, name: str, arguments: tuple, expected: str) -> None:
        typed = [array(a) if isinstance(a, bytes) else a for a in arguments]
        assert built(getattr(sts, name), *typed).hex(" ") == expected

    def test_golden_sync_write(self, sts: ModuleType) -> None:
        row = array(bytes.fromhex("00080000e803"))
        got = built(sts.sync_write, 0x2A, array(bytes([1, 2, 3, 4])), np.stack([row] * 4))
        rows = " ".join(f"0{i} 00 08 00 00 e8 03" for i in range(1, 5))
        assert got.hex(" ") == f"ff ff fe 20 83 2a 06 {rows} 58"

    def test_vendor_sdk_writes_the_same_bytes(self, sts: ModuleType) -> None:
        port = CapturingPort()
        group = scservo_sdk.GroupSyncWrite(port, scservo_sdk.PacketHandler(0), 42, 2)
        rows = [[0x34, 0x02], [0xFF, 0xFF], [0x00, 0x80]]
        for servo, row in enumerate(rows, 1):
            assert group.addParam(servo, row)
        group.txPacket()
        assert built(sts.sync_write, 42, array(bytes([1, 2, 3])), np.array(rows, np.uint8)) == port.sent

    @pytest.mark.parametrize("bit", [10, 11, 15])
    def test_sign_bits(self, sts: ModuleType, bit: int) -> None:
        for value in (0, 1, -1, 777, -777, 2**bit - 1, 1 - 2**bit):
            raw = sts.encode_signed(value, bit)
            assert raw >> bit == (value < 0)
            assert sts.decode_signed(raw, bit) == value
        assert sts.encode_signed(2**bit, bit) == sts.encode_signed(-(2**bit), bit) == -1

    def test_bits_above_the_sign_are_ignored(self, sts: ModuleType) -> None:
        assert sts.decode_signed(0b1000_0000_0000 | 5, 10) == 5
        assert sts.decode_signed(0b1100_0000_0000 | 5, 10) == -5

    @given(value=st.integers(0, 0xFFFF))
    def test_words(self, sts: ModuleType, value: int) -> None:
        out = np.zeros(4, np.uint8)
        sts.put_word(out, 1, value)
        assert out.tolist() == [0, value & 255, value >> 8, 0]
        assert sts.word(out, 1) == value

    @pytest.mark.parametrize("address", [0, 1, 5, 255])
    def test_every_address_in_a_used_buffer(self, sts: ModuleType, address: int) -> None:
        row, ids = array(b"\x07\x08"), array(b"\x01\x03")
        for name, arguments in [
            ("read", (2, address, 15)),
            ("write", (2, address, row)),
            ("sync_read", (address, 15, ids)),
            ("sync_write", (address, ids, np.stack([row, row]))),
        ]:
            used = np.full(64, 0xAB, np.uint8)
            length = getattr(sts, name)(used, *arguments)
            assert used[5] == address and used[length] == 0xAB
            assert used[2:length].sum() % 256 == 255
            found = np.zeros(5, np.int32)
            assert sts.scan(used, 0, length, 64, False, found) == 1 and found[1] == length
            assert sts.scan(used, length, length, 64, False, found) == 0

    def test_what_does_not_fit_is_refused(self, sts: ModuleType) -> None:
        small = np.zeros(8, np.uint8)
        assert sts.write(small, 1, 42, array(b"\x00\x08")) == -1
        assert sts.read(small, 1, 42, 2) == 8
        big = np.zeros(400, np.uint8)
        assert sts.status(big, 1, 0, array(bytes(253))) == 259
        assert sts.status(big, 1, 0, array(bytes(254))) == -1

    @given(servo=IDS, error=st.integers(0, 127), data=PAYLOAD)
    def test_round_trip(self, sts: ModuleType, servo: int, error: int, data: bytes) -> None:
        stream = built(sts.status, servo, error, array(data))
        found, state = frames(sts, stream)
        assert found == [stream]
        assert stream[2] == servo and stream[4] == error and stream[5:-1] == data
        assert state[2:] == [len(stream), 0, 0]


class TestScan:
    @given(servos=st.lists(st.tuples(IDS, PAYLOAD), min_size=1, max_size=6), cut=st.integers(0, 300))
    def test_pieces_make_no_difference(self, sts: ModuleType, servos: list[tuple[int, bytes]], cut: int) -> None:
        whole = [reply(servo, data) for servo, data in servos]
        stream = b"".join(whole)
        found = np.zeros(5, np.int32)
        data, at, result = array(stream), 0, []
        for end in (min(cut, len(stream)), len(stream)):
            while sts.scan(data, at, end, 259, False, found):
                result.append(stream[found[0] : found[0] + found[1]])
                at = int(found[2])
            at = int(found[2])
        assert result == whole

    @given(noise=st.binary(max_size=12), data=PAYLOAD)
    def test_a_good_frame_behind_noise_is_found(self, sts: ModuleType, noise: bytes, data: bytes) -> None:
        good = reply(3, data)
        found, _ = frames(sts, noise.replace(b"\xff", b"\xfe") + good)
        assert found == [good]

    def test_one_damaged_frame_costs_only_itself(self, sts: ModuleType) -> None:
        bad = bytearray(reply(2, bytes(15)))
        bad[9] ^= 0x40
        good = [reply(1, bytes(15)), reply(3, bytes(15))]
        found, state = frames(sts, good[0] + bytes(bad) + good[1])
        assert found == good
        assert state[3:] == [len(bad), 1]

    def test_a_false_header_does_not_swallow_what_follows(self, sts: ModuleType) -> None:
        good = reply(3, b"\x01\x02")
        stream = b"\xff\xff\x05\x0a" + good
        assert frames(sts, stream, longest=21, final=False)[0] == []
        assert frames(sts, stream, longest=21, final=True)[0] == [good]
        assert frames(sts, b"\xff\xff\x05\xf0" + good, longest=21, final=False)[0] == [good]

    def test_header_bytes_run_together(self, sts: ModuleType) -> None:
        good = reply(1, b"\xff\xff")
        assert frames(sts, b"\xff\xff\xff" + good)[0] == [good]

    def test_a_payload_may_look_like_a_frame(self, sts: ModuleType) -> None:
        inner = reply(4, b"\x01\x02")
        outer = reply(1, inner)
        assert frames(sts, outer)[0] == [outer]

    def test_echo_is_recognised_by_its_exact_bytes(self, sts: ModuleType) -> None:
        sent = built(sts.sync_read, 56, 15, array(bytes([1, 2])))
        stream = sent + reply(1, bytes(15))
        data = array(stream)
        assert sts.echo_length(array(sent), len(sent), data, 0, len(stream)) == len(sent)
        assert sts.echo_length(array(sent), len(sent), data, 0, 4) == -1
        assert sts.echo_length(array(sent), len(sent), data, 2, len(stream)) == 0


class TestMutatedStreams:
    """Damage of every kind: no crash, no read outside the bytes, the same frames from every form."""

    @settings(max_examples=300)
    @given(data=st.data())
    def test_kernel_and_twin_agree_with_the_reference(self, data: st.DataObject) -> None:
        stream = bytearray()
        for _ in range(data.draw(st.integers(1, 4))):
            stream += reply(data.draw(IDS), data.draw(st.binary(max_size=20)))
        for _ in range(data.draw(st.integers(0, 6))):
            at = data.draw(st.integers(0, len(stream) - 1))
            kind = data.draw(st.sampled_from(["flip", "drop", "insert", "header"]))
            if kind == "flip":
                stream[at] ^= data.draw(st.integers(1, 255))
            elif kind == "drop" and len(stream) > 1:
                del stream[at]
            else:
                stream[at:at] = b"\xff\xff" if kind == "header" else b"\x05"
        longest, final = data.draw(st.sampled_from([8, 21, 259])), data.draw(st.booleans())
        expected = frames(codec_reference, bytes(stream), longest, final)
        assert frames(codec, bytes(stream), longest, final) == expected
        assert frames(TWIN, bytes(stream), longest, final) == expected

    def test_random_bytes(self) -> None:
        random = np.random.default_rng(7)
        for _ in range(2000):
            # few byte values, so that headers and short lengths are frequent
            stream = bytes(random.choice([0xFF, 0xFF, 1, 2, 4, 0xFC, 0], random.integers(0, 60)).astype(np.uint8))
            assert frames(codec, stream) == frames(codec_reference, stream)


TWIN = interpreted()


class CapturingPort:
    """What scservo_sdk needs of a port, to see what it would send."""

    is_using = False
    sent = b""

    def clearPort(self) -> None:
        pass

    def writePort(self, packet: list[int]) -> int:
        self.sent = bytes(packet)
        return len(packet)
