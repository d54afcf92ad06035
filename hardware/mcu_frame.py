"""The frame of the microcontroller protocol: COBS(type, seq, payload, CRC-32), then a zero. docs/mcu-protocol.md.

Consistent overhead byte stuffing (Cheshire and Baker, 1999) leaves no zero inside a frame, so a zero always ends one
and a receiver is back in step at the next zero, whatever came before. Frames stay below 254 bytes: COBS then costs
exactly one byte. The CRC is that of Ethernet and zlib, little endian, over type, seq and payload.
"""

import zlib
from dataclasses import dataclass

LONGEST = 253
"""Bytes of type, seq, payload and CRC together."""
OVERHEAD = 6
"""Of them type, seq and CRC."""
REPLY = 0x80
"""Set in the type of a reply: a request that an adapter echoes is none."""


@dataclass(frozen=True, slots=True)
class McuFrame:
    """One frame. type, seq: [0, 255]; payload: at most LONGEST - OVERHEAD bytes."""

    type: int
    seq: int
    payload: bytes


def encode(frame: McuFrame) -> bytes:
    """The bytes on the wire, with the closing zero. Raises ValueError for a payload that is too long."""
    if len(frame.payload) > LONGEST - OVERHEAD:
        raise ValueError(f"a payload of {len(frame.payload)} bytes, allowed up to {LONGEST - OVERHEAD}; send less")
    body = bytes((frame.type, frame.seq)) + frame.payload
    body += zlib.crc32(body).to_bytes(4, "little")
    return b"".join(bytes((len(block) + 1,)) + block for block in body.split(b"\0")) + b"\0"


def decode(wire: bytes) -> McuFrame | None:
    """The frame in `wire`, which has no closing zero; None where it is damaged."""
    if not OVERHEAD < len(wire) <= LONGEST + 1:
        return None
    blocks, at = [], 0
    while at < len(wire):
        code = wire[at]
        if code in (0, 255) or at + code > len(wire):
            return None
        blocks.append(wire[at + 1 : at + code])
        at += code
    body = b"\0".join(blocks)
    if b"\0" in wire or zlib.crc32(body[:-4]) != int.from_bytes(body[-4:], "little"):
        return None
    return McuFrame(body[0], body[1], body[2:-4])


class FrameReader:
    """Takes bytes as they come, gives frames. damaged: frames that were not whole; a zero more does no harm."""

    def __init__(self) -> None:
        self.damaged = 0
        self._pending = bytearray()
        self._too_long = False

    def feed(self, data: bytes) -> list[McuFrame]:
        """The frames that end in `data`."""
        *ended, rest = data.split(b"\0")
        found = []
        for part in ended:
            self._take(part)
            frame = None if self._too_long else decode(bytes(self._pending))
            if frame is not None:
                found.append(frame)
            elif self._pending:
                self.damaged += 1
            self._pending.clear()
            self._too_long = False
        self._take(rest)
        return found

    def _take(self, part: bytes) -> None:
        """Keep `part`, but never more than a frame can have: noise without zeros must not fill the memory."""
        self._pending += part
        if len(self._pending) > LONGEST + 1:
            self._too_long = True
            del self._pending[1:]

    def clear(self) -> None:
        """Forget what has come of a frame."""
        self._pending.clear()
        self._too_long = False
