"""Dynamixel Protocol 2.0 as the emulated servos speak it: CRC, stuffing, frames.

    FF FF FD 00 | id | LEN LEN | instruction | parameters | CRC CRC

Written apart from `dzedge.kernels.codec`, which the driver uses: a fault of either cannot hide in the other. Source:
ROBOTIS e-manual, protocol2.
"""

from collections.abc import Iterator

HEADER = b"\xff\xff\xfd\x00"
STATUS = 0x55
SHORTEST = 10
LONGEST = 1024
"""The longest frame that is believed, as in the vendor's SDK."""


def _crc_table() -> tuple[int, ...]:
    table = []
    for value in range(256):
        crc = value << 8
        for _ in range(8):
            crc = crc << 1 ^ 0x8005 if crc & 0x8000 else crc << 1
        table.append(crc & 0xFFFF)
    return tuple(table)


_CRC = _crc_table()


def crc16(data: bytes, crc: int = 0) -> int:
    """CRC-16, polynomial 0x8005, not reflected, going on from `crc`."""
    for byte in data:
        crc = (crc << 8 & 0xFF00) ^ _CRC[crc >> 8 ^ byte]
    return crc


def sealed(frame: bytes) -> bytes:
    """The frame with its CRC behind it."""
    return frame + crc16(frame).to_bytes(2, "little")


def stuff(body: bytes) -> bytes:
    """Instruction and parameters as they cross the wire: FD after each FF FF FD."""
    return body.replace(b"\xff\xff\xfd", b"\xff\xff\xfd\xfd")


def unstuff(body: bytes) -> bytes:
    """Inverse of `stuff`."""
    return body.replace(b"\xff\xff\xfd\xfd", b"\xff\xff\xfd")


def status(servo_id: int, error: int, data: bytes) -> bytes:
    """A servo's reply: its ERR byte and data."""
    body = stuff(bytes((STATUS, error)) + data)
    return sealed(HEADER + bytes((servo_id,)) + (len(body) + 2).to_bytes(2, "little") + body)


def requests(pending: bytes | bytearray, found: list[int]) -> Iterator[tuple[int, bytes, int]]:
    """All whole, undamaged frames: (id, instruction and parameters unstuffed, index behind the frame).

    found: [0] becomes the index before which everything is done with.
    """
    at = 0
    while True:
        at = pending.find(HEADER, at)
        if at < 0:
            # the header's beginning may be the end of what has come
            keep = next((n for n in (3, 2, 1) if pending.endswith(HEADER[:n])), 0)
            found[0] = len(pending) - keep
            return
        found[0] = at
        if at + 7 > len(pending):
            return
        end = at + 7 + int.from_bytes(pending[at + 5 : at + 7], "little")
        if not SHORTEST <= end - at <= LONGEST:
            at += 1
            continue
        if end > len(pending):
            return
        frame = bytes(pending[at:end])
        if crc16(frame[:-2]) != int.from_bytes(frame[-2:], "little"):
            at += 1
            continue
        found[0] = at = end
        yield frame[4], unstuff(frame[7:-2]), end
