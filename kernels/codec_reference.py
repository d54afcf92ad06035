"""The STS codec again, in plain Python on whole byte strings: written independently, to be tested against.

Same names, same arguments, same meaning as in `codec`; slow, and never used on a robot.
"""

import re
from collections.abc import MutableSequence, Sequence

Bytes = Sequence[int]

HEADER = re.compile(rb"\xff(?:\xff(?:[^\xff](.)?|\Z)|\Z)", re.DOTALL)
"""A header as far as it has come; group 1 is LEN, once it is there."""


def checksum(data: Bytes, start: int, end: int) -> int:
    return 255 - sum(map(int, data[start:end])) % 256


def encode_signed(value: int, bit: int) -> int:
    return -1 if abs(value) >= 1 << bit else abs(value) + (1 << bit if value < 0 else 0)


def decode_signed(raw: int, bit: int) -> int:
    sign, magnitude = divmod(raw % (1 << bit + 1), 1 << bit)
    return magnitude * (1 - 2 * sign)


def word(data: Bytes, at: int) -> int:
    return int.from_bytes(bytes(data[at : at + 2]), "little")


def put_word(out: MutableSequence[int], at: int, raw: int) -> None:
    out[at], out[at + 1] = raw % 256, raw // 256 % 256


def seal(out: MutableSequence[int], start: int, length: int) -> None:
    out[start + length - 1] = checksum(out, start + 2, start + length - 1)


def frame(out: MutableSequence[int], servo: int, code: int, parameters: bytes) -> int:
    body = bytes([servo % 256, min(len(parameters) + 2, 256) % 256, code % 256]) + parameters
    whole = b"\xff\xff" + body + bytes([checksum(body, 0, len(body))])
    if len(parameters) + 2 > 255 or len(whole) > len(out):
        return -1
    for i, byte in enumerate(whole):
        out[i] = byte
    return len(whole)


def ping(out: MutableSequence[int], servo: int) -> int:
    return frame(out, servo, 1, b"")


def read(out: MutableSequence[int], servo: int, address: int, count: int) -> int:
    return frame(out, servo, 2, bytes([address % 256, count % 256]))


def write(out: MutableSequence[int], servo: int, address: int, data: Bytes) -> int:
    return frame(out, servo, 3, bytes([address % 256]) + bytes(data))


def status(out: MutableSequence[int], servo: int, error: int, data: Bytes) -> int:
    return frame(out, servo, error, bytes(data))


def sync_read(out: MutableSequence[int], address: int, count: int, ids: Bytes) -> int:
    return frame(out, 0xFE, 0x82, bytes([address % 256, count % 256]) + bytes(ids))


def sync_write(out: MutableSequence[int], address: int, ids: Bytes, data: Sequence[Bytes]) -> int:
    rows = b"".join(bytes([servo]) + bytes(row) for servo, row in zip(ids, data, strict=True))
    return frame(out, 0xFE, 0x83, bytes([address % 256, len(data[0])]) + rows)


def scan(data: Bytes, start: int, end: int, longest: int, final: bool, found: MutableSequence[int]) -> int:
    stream = bytes(data[start:end])
    at = 0
    while header := HEADER.search(stream, at):
        at = header.start()
        size = header[1][0] + 4 if header[1] else 0
        if 6 <= size <= longest and at + size <= len(stream):
            if sum(stream[at + 2 : at + size]) % 256 == 255:
                found[0], found[1], found[2] = start + at, size, start + at + size
                found[3] += at
                return 1
            found[4] += 1
        elif not final and (not header[1] or 6 <= size <= longest):
            break
        at += 1
    else:
        at = len(stream)
    found[2] = start + at
    found[3] += at
    return 0


def echo_length(sent: Bytes, length: int, data: Bytes, start: int, end: int) -> int:
    wanted, heard = bytes(sent[:length]), bytes(data[start:end])[:length]
    if not wanted.startswith(heard):
        return 0
    return length if len(heard) == length else -1
