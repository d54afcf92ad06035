"""Our Dynamixel frames beside the vendor's: dynamixel_sdk writes the same bytes, and reads ours.

But for its stuffing: version 4.1.0 for Python drops what it has stuffed of an instruction, and takes too much out of a
reply with two patterns. ROBOTIS's e-manual and its own C++ library have it as we do.
"""

from random import Random

import dynamixel_sdk
import pytest

from dzedge.hardware.dynamixel_bus import CLEAR_TURNS, DynamixelBus, DynamixelFrames
from dzedge.kernels import codec_dynamixel as codec


class CapturingPort:
    """A port of the SDK and of ours: keeps what is written, gives what it is told to."""

    path, baud, fd = "memory", 1_000_000, -1
    is_using = False

    def __init__(self) -> None:
        self.sent = b""
        self.answer = b""

    def clearPort(self) -> None:
        pass

    def writePort(self, packet: list[int]) -> int:
        self.sent = bytes(packet)
        return len(packet)

    def readPort(self, count: int) -> list[int]:
        piece, self.answer = self.answer[:count], self.answer[count:]
        return list(piece)

    def setPacketTimeout(self, _: int) -> None:
        pass

    def isPacketTimeout(self) -> bool:
        return not self.answer

    def write(self, data: bytes) -> None:
        self.sent = data

    def read(self, deadline_ns: int) -> bytes:
        return b""

    def drain(self) -> int:
        return 0


@pytest.fixture
def port() -> CapturingPort:
    return CapturingPort()


SDK = dynamixel_sdk.PacketHandler(2.0)


def test_instructions(port: CapturingPort) -> None:
    frames = DynamixelFrames()
    data = b"\xff\xff\xfc\x01"
    rows = [
        (lambda: SDK.txPacket(port, [0, 0, 0, 0, 7, 3, 0, 1, 0, 0]), frames.instruction(7, codec.PING)),
        (lambda: SDK.readTx(port, 7, 132, 4), frames.read(7, 132, 4)),
        (lambda: SDK.writeTxOnly(port, 7, 116, 4, list(data)), frames.write(7, 116, data)),
        (lambda: SDK.regWriteTxOnly(port, 7, 116, 4, list(data)), frames.write(7, 116, data, registered=True)),
        (lambda: SDK.action(port, 0xFE), frames.instruction(0xFE, codec.ACTION)),
        (lambda: SDK.reboot(port, 7), frames.instruction(7, codec.REBOOT)),
        (lambda: SDK.clearMultiTurn(port, 7), frames.instruction(7, codec.CLEAR, CLEAR_TURNS)),
        (lambda: SDK.factoryReset(port, 7, 2), frames.instruction(7, codec.FACTORY_RESET, b"\2")),
        (lambda: SDK.syncReadTx(port, 126, 21, [1, 2, 9], 3, False), frames.sync_read(b"\1\2\x09", 126, 21)),
    ]
    for send, ours in rows:
        port.is_using = False
        send()
        assert port.sent == ours


def test_groups(port: CapturingPort) -> None:
    read = dynamixel_sdk.GroupSyncRead(port, SDK, 126, 21)
    write = dynamixel_sdk.GroupSyncWrite(port, SDK, 116, 4)
    values = {1: b"\xff\xff\xff\xff", 2: b"\xff\xfe\xfd\x00", 9: b"\xfd\xff\xff\x01"}
    for servo, value in values.items():
        read.addParam(servo)
        write.addParam(servo, list(value))
    frames = DynamixelFrames()
    read.fastSyncReadTxPacket()
    assert port.sent == frames.sync_read(bytes(values), 126, 21, fast=True)
    port.is_using = False
    write.txPacket()
    assert port.sent == frames.sync_write(bytes(values), 116, list(values.values()))


def test_bulk(port: CapturingPort) -> None:
    read = dynamixel_sdk.GroupBulkRead(port, SDK)
    write = dynamixel_sdk.GroupBulkWrite(port, SDK)
    bus = DynamixelBus(port, allowance_ns=0)
    parts = {1: (144, 2), 2: (146, 1), 200: (116, 4)}
    for servo, (address, count) in parts.items():
        read.addParam(servo, address, count)
        write.addParam(servo, address, count, [0xFF] * count)
    read.txPacket()
    theirs = port.sent
    bus.bulk_read(parts)
    assert port.sent == theirs
    port.is_using = False
    write.txPacket()
    theirs = port.sent
    bus.bulk_write({servo: (address, b"\xff" * count) for servo, (address, count) in parts.items()})
    assert port.sent == theirs


def test_it_does_not_stuff_what_it_sends(port: CapturingPort) -> None:
    """We do; and we understand both, as servos do."""
    data = b"\xff\xff\xfd\x01"
    SDK.writeTxOnly(port, 7, 116, 4, list(data))
    ours = DynamixelFrames().write(7, 116, data)
    assert port.sent != ours and b"\xff\xff\xfd\xfd\x01" in ours and b"\xff\xff\xfd\xfd\x01" not in port.sent
    for frame in (port.sent, ours):
        out = bytearray(40)
        count = codec.unstuff(frame, 7, len(frame) - 2, out)
        assert bytes(out[3:count]) == data


@pytest.mark.parametrize("seed", range(5))
def test_it_reads_our_replies(port: CapturingPort, seed: int) -> None:
    random = Random(seed)
    out = bytearray(200)
    for number in range(100):
        data = bytes(random.choice((0xFF, 0xFE, 0, random.randrange(253))) for _ in range(random.randrange(1, 24)))
        if number % 2:
            data += b"\xff\xff\xfd" + bytes(random.randrange(200) for _ in range(random.randrange(4)))
        error = random.choice((0, 0x80))
        port.answer = bytes(out[: codec.status(out, 7, error, data)])
        port.is_using = False
        read, result, said = SDK.readRx(port, 7, len(data))
        assert (bytes(read), result, said) == (data, 0, error)
