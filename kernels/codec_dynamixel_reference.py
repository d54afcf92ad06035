"""The Dynamixel codec again, in plain Python on whole byte strings: written independently, to be tested against.

Same names, same arguments, same meaning as in `codec_dynamixel`; slow, and never used on a robot.
"""

import re
from collections.abc import MutableSequence, Sequence

Bytes = Sequence[int]
Buffer = MutableSequence[int]

PATTERN, STUFFED = b"\xff\xff\xfd", b"\xff\xff\xfd\xfd"
HEADER = re.compile(rb"\xff(?:\Z|\xff(?:\Z|\xfd(?:\Z|\x00(?:\Z|[^\xfd\xff](?:\Z|.(?:\Z|(.)))))))", re.DOTALL)
"""A header as far as it has come; group 1 is there once LEN is."""


def crc(data: Bytes, start: int, end: int, seed: int) -> int:
    """The textbook's division, bit by bit."""
    remainder = seed
    for byte in bytes(data[start:end]):
        for bit in range(7, -1, -1):
            carry = remainder >> 15 ^ byte >> bit & 1
            remainder = remainder * 2 % 0x10000 ^ carry * 0x8005
    return remainder


def word(data: Bytes, at: int) -> int:
    return int.from_bytes(bytes(data[at : at + 2]), "little")


def signed_word(data: Bytes, at: int) -> int:
    return int.from_bytes(bytes(data[at : at + 2]), "little", signed=True)


def long_word(data: Bytes, at: int) -> int:
    return int.from_bytes(bytes(data[at : at + 4]), "little", signed=True)


def put_word(out: Buffer, at: int, raw: int) -> None:
    out[at], out[at + 1] = (raw % 0x10000).to_bytes(2, "little")


def put_long(out: Buffer, at: int, raw: int) -> None:
    out[at], out[at + 1], out[at + 2], out[at + 3] = (raw % 2**32).to_bytes(4, "little")


def whole(servo: int, code: int, parameters: bytes) -> bytes:
    """A frame."""
    body = (bytes([code % 256]) + parameters).replace(PATTERN, STUFFED)
    head = b"\xff\xff\xfd\x00" + bytes([servo % 256]) + (len(body) + 2).to_bytes(4, "little")[:2]
    return head + body + crc(head + body, 0, len(head + body), 0).to_bytes(2, "little")


def frame(out: Buffer, servo: int, code: int, data: Bytes) -> int:
    made = whole(servo, code, bytes(data))
    if len(made) > len(out) or len(made) - 7 > 0xFFFF:
        return -1
    for i, byte in enumerate(made):
        out[i] = byte
    return len(made)


def seal(out: Buffer, servo: int, code: int, parameters: int) -> int:
    return -1 if parameters < 0 else frame(out, servo, code, bytes(out[8 : 8 + parameters]))


def status(out: Buffer, servo: int, error: int, data: Bytes) -> int:
    return frame(out, servo, 0x55, bytes([error % 256]) + bytes(data))


def _words(*values: int) -> bytes:
    return b"".join((value % 0x10000).to_bytes(2, "little") for value in values)


def ping(out: Buffer, servo: int) -> int:
    return frame(out, servo, 1, b"")


def read(out: Buffer, servo: int, address: int, count: int) -> int:
    return frame(out, servo, 2, _words(address, count))


def write(out: Buffer, servo: int, address: int, data: Bytes) -> int:
    return frame(out, servo, 3, _words(address) + bytes(data))


def reg_write(out: Buffer, servo: int, address: int, data: Bytes) -> int:
    return frame(out, servo, 4, _words(address) + bytes(data))


def sync_read(out: Buffer, address: int, count: int, ids: Bytes) -> int:
    return frame(out, 0xFE, 0x82, _words(address, count) + bytes(ids))


def fast_sync_read(out: Buffer, address: int, count: int, ids: Bytes) -> int:
    return frame(out, 0xFE, 0x8A, _words(address, count) + bytes(ids))


def sync_write(out: Buffer, address: int, ids: Bytes, data: Sequence[Bytes]) -> int:
    rows = b"".join(bytes([servo]) + bytes(row) for servo, row in zip(ids, data, strict=True))
    return frame(out, 0xFE, 0x83, _words(address, len(data[0])) + rows)


def scan(data: Bytes, start: int, end: int, longest: int, final: bool, found: Buffer) -> int:
    stream = bytes(data[start:end])
    at = 0
    while header := HEADER.search(stream, at):
        at = header.start()
        size = word(stream, at + 5) + 7 if header[1] else 0
        if 10 <= size <= longest and at + size <= len(stream):
            if crc(stream, at, at + size - 2, 0) == word(stream, at + size - 2):
                found[0], found[1], found[2] = start + at, size, start + at + size
                found[3] += at
                return 1
            found[4] += 1
        elif not final and (not header[1] or 10 <= size <= longest):
            break
        at += 1
    else:
        at = len(stream)
    found[2] = start + at
    found[3] += at
    return 0


def unstuff(data: Bytes, start: int, end: int, out: Buffer) -> int:
    plain = bytes(data[start:end]).replace(STUFFED, PATTERN)
    if len(plain) > len(out):
        return -1
    for i, byte in enumerate(plain):
        out[i] = byte
    return len(plain)


def fast_slots(data: Bytes, start: int, end: int, count: int) -> int:
    stream, size, slots = bytes(data[start:end]), count + 4, 0
    while True:
        stop = 8 + (slots + 1) * size
        if stop > len(stream) or crc(stream, 0, stop - 2, 0) != word(stream, stop - 2):
            return slots
        slots += 1
