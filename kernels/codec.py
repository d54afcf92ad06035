"""Feetech STS frames: encode instructions, find frames in a stream of bytes.

    FF FF | id | LEN | instruction or ERR | parameters | ~(id + LEN + ... + last parameter) & FF

LEN counts everything behind itself. Words are little-endian. Nothing is stuffed, so a payload may hold FF FF,
and requests have the shape of replies: only length, checksum and the caller's expectation tell frames apart.
Source: Feetech's STS3215 memory table and communication protocol manual.

Encoders write one frame into `out` and return its length, or -1 where it does not fit.
"""

import cython

PING = 1
READ = 2
WRITE = 3
SYNC_READ = 0x82
SYNC_WRITE = 0x83
BROADCAST = 0xFE

OVERHEAD = 6
"""Bytes of a frame beside its parameters."""

FOUND_AT, FOUND_LENGTH, FOUND_NEXT, FOUND_SKIPPED, FOUND_CHECKSUM = range(5)
"""What `scan` writes into `found`."""


@cython.ccall
@cython.nogil
@cython.exceptval(check=False)
def checksum(data: cython.const[cython.uchar][::1], start: cython.int, end: cython.int) -> cython.int:
    """Checksum of the bytes [start, end): from the id to the last parameter."""
    total: cython.int = 0
    i: cython.int
    for i in range(start, end):
        total += cython.cast(cython.int, data[i])
    return ~total & 0xFF


@cython.ccall
@cython.nogil
@cython.exceptval(check=False)
def encode_signed(value: cython.int, bit: cython.int) -> cython.int:
    """Sign and magnitude: the sign stands in `bit` (15 position and speed, 10 load, 11 offset), the magnitude
    below it. A magnitude that does not fit gives -1."""
    magnitude: cython.int = -value if value < 0 else value
    if magnitude >= (1 << bit):
        return -1
    return magnitude | (1 << bit) if value < 0 else magnitude


@cython.ccall
@cython.nogil
@cython.exceptval(check=False)
def decode_signed(raw: cython.int, bit: cython.int) -> cython.int:
    """Inverse of `encode_signed`; bits above the sign bit are ignored."""
    magnitude: cython.int = raw & ((1 << bit) - 1)
    return -magnitude if raw & (1 << bit) else magnitude


@cython.ccall
@cython.nogil
@cython.exceptval(check=False)
def word(data: cython.const[cython.uchar][::1], at: cython.int) -> cython.int:
    """The 16-bit word at `at`."""
    return cython.cast(cython.int, data[at]) | cython.cast(cython.int, data[at + 1]) << 8


@cython.ccall
@cython.nogil
@cython.exceptval(check=False)
def put_word(out: cython.uchar[::1], at: cython.int, raw: cython.int) -> cython.void:
    """Write the 16-bit word `raw` at `at`."""
    out[at] = raw & 0xFF
    out[at + 1] = raw >> 8 & 0xFF


@cython.ccall
@cython.nogil
@cython.exceptval(check=False)
def seal(out: cython.uchar[::1], start: cython.int, length: cython.int) -> cython.void:
    """Write the checksum of the frame of `length` bytes that begins at `start`."""
    out[start + length - 1] = checksum(out, start + 2, start + length - 1)


@cython.cfunc
@cython.nogil
@cython.inline
@cython.exceptval(check=False)
def _open(out: cython.uchar[::1], servo: cython.int, code: cython.int, parameters: cython.int) -> cython.int:
    """Header of a frame; returns its whole length, or -1 where `out` or the LEN byte is too small."""
    if parameters + 6 > out.shape[0] or parameters + 2 > 255:
        return -1
    out[0] = 0xFF
    out[1] = 0xFF
    out[2] = servo & 0xFF
    out[3] = parameters + 2
    out[4] = code & 0xFF
    return parameters + 6


@cython.ccall
@cython.nogil
@cython.exceptval(check=False)
def ping(out: cython.uchar[::1], servo: cython.int) -> cython.int:
    """`servo` answers with its ERR byte alone."""
    length: cython.int = _open(out, servo, 0x01, 0)
    if length > 0:
        seal(out, 0, length)
    return length


@cython.ccall
@cython.nogil
@cython.exceptval(check=False)
def read(out: cython.uchar[::1], servo: cython.int, address: cython.int, count: cython.int) -> cython.int:
    """`servo` answers with `count` bytes from `address`."""
    length: cython.int = _open(out, servo, 0x02, 2)
    if length > 0:
        out[5] = address & 0xFF
        out[6] = count & 0xFF
        seal(out, 0, length)
    return length


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _with_data(out: cython.uchar[::1], servo: cython.int, code: cython.int, address: cython.int,
               data: cython.const[cython.uchar][::1]) -> cython.int:
    """A frame of the bytes `data`, led by `address` where that is not negative."""
    lead: cython.int = 1 if address >= 0 else 0
    count: cython.int = cython.cast(cython.int, data.shape[0])
    length: cython.int = _open(out, servo, code, count + lead)
    i: cython.int
    if length > 0:
        if lead:
            out[5] = address & 0xFF
        for i in range(count):
            out[5 + lead + i] = data[i]
        seal(out, 0, length)
    return length


@cython.ccall
@cython.nogil
@cython.exceptval(check=False)
def write(out: cython.uchar[::1], servo: cython.int, address: cython.int,
          data: cython.const[cython.uchar][::1]) -> cython.int:
    """Write the bytes `data` from `address` on; `servo` answers with its ERR byte."""
    return _with_data(out, servo, 0x03, address & 0xFF, data)


@cython.ccall
@cython.nogil
@cython.exceptval(check=False)
def status(out: cython.uchar[::1], servo: cython.int, error: cython.int,
           data: cython.const[cython.uchar][::1]) -> cython.int:
    """A servo's reply: its ERR byte and the bytes `data`."""
    return _with_data(out, servo, error, -1, data)


@cython.ccall
@cython.nogil
@cython.exceptval(check=False)
def sync_read(out: cython.uchar[::1], address: cython.int, count: cython.int,
              ids: cython.const[cython.uchar][::1]) -> cython.int:
    """All of `ids` answer in this order with `count` bytes from `address`, one reply each."""
    servos: cython.int = cython.cast(cython.int, ids.shape[0])
    length: cython.int = _open(out, 0xFE, 0x82, servos + 2)
    i: cython.int
    if length > 0:
        out[5] = address & 0xFF
        out[6] = count & 0xFF
        for i in range(servos):
            out[7 + i] = ids[i]
        seal(out, 0, length)
    return length


@cython.ccall
@cython.nogil
@cython.exceptval(check=False)
def sync_write(out: cython.uchar[::1], address: cython.int, ids: cython.const[cython.uchar][::1],
               data: cython.const[cython.uchar][:, ::1]) -> cython.int:
    """Write row i of `data`, Shape (servos, width), from `address` on in servo ids[i]; nobody answers."""
    servos: cython.int = cython.cast(cython.int, ids.shape[0])
    width: cython.int = cython.cast(cython.int, data.shape[1])
    length: cython.int = _open(out, 0xFE, 0x83, servos * (width + 1) + 2)
    i: cython.int
    k: cython.int
    if length > 0:
        out[5] = address & 0xFF
        out[6] = width & 0xFF
        for i in range(servos):
            out[7 + i * (width + 1)] = ids[i]
            for k in range(width):
                out[8 + i * (width + 1) + k] = data[i, k]
        seal(out, 0, length)
    return length


@cython.ccall
@cython.nogil
@cython.exceptval(check=False)
def scan(data: cython.const[cython.uchar][::1], start: cython.int, end: cython.int, longest: cython.int,
         final: cython.bint, found: cython.int[::1]) -> cython.int:
    """Find the next whole frame in the bytes [start, end). Returns 1: found, 0: more bytes are needed.

    longest: frames of more bytes are not believed, so that a false header cannot swallow good frames.
    final: no more bytes will come: look behind a header whose frame never ended.
    found: Shape (5,). FOUND_AT, FOUND_LENGTH: the frame; FOUND_NEXT: where to scan from next time, bytes
    before it are done with; FOUND_SKIPPED, FOUND_CHECKSUM: bytes skipped and wrong checksums are added here.
    """
    at: cython.int = start
    length: cython.int
    while at < end:
        if data[at] == 0xFF and (at + 1 >= end or data[at + 1] == 0xFF):
            if at + 3 < end:
                length = cython.cast(cython.int, data[at + 3]) + 4
                if data[at + 2] != 0xFF and length >= 6 and length <= longest:
                    if at + length <= end:
                        if checksum(data, at + 2, at + length - 1) == data[at + length - 1]:
                            found[0] = at
                            found[1] = length
                            found[2] = at + length
                            return 1
                        found[4] += 1
                    elif not final:
                        break
            elif not final and (at + 2 >= end or data[at + 2] != 0xFF):
                break
        found[3] += 1
        at += 1
    found[2] = at
    return 0


@cython.ccall
@cython.nogil
@cython.exceptval(check=False)
def echo_length(sent: cython.const[cython.uchar][::1], length: cython.int,
                data: cython.const[cython.uchar][::1], start: cython.int, end: cython.int) -> cython.int:
    """How many bytes from `start` are the adapter's echo of the `length` bytes `sent`: `length`; 0 where they
    differ; -1 while too few bytes have come to tell."""
    i: cython.int
    for i in range(length):
        if start + i >= end:
            return -1
        if data[start + i] != sent[i]:
            return 0
    return length
