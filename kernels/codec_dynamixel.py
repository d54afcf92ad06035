"""Dynamixel Protocol 2.0 frames: encode instructions, find frames in a stream of bytes.

    FF FF FD 00 | id | LEN_L LEN_H | instruction | parameters | CRC_L CRC_H

A status has the instruction 0x55 and an ERR byte before its data. Words are little-endian. In instruction to last
parameter FF FF FD is followed by a stuffed FD; LEN counts it, with the instruction and the CRC; the CRC covers the
stuffed frame from its first byte. Source: ROBOTIS e-manual, protocol2 and crc.

Encoders write one frame into `out` and return its length, or -1 where it does not fit. Unlike in a Feetech frame a
request can never be taken for a reply: only a status has the instruction 0x55.
"""

import cython

PING = 0x01
READ = 0x02
WRITE = 0x03
REG_WRITE = 0x04
ACTION = 0x05
FACTORY_RESET = 0x06
REBOOT = 0x08
CLEAR = 0x10
STATUS = 0x55
SYNC_READ = 0x82
SYNC_WRITE = 0x83
FAST_SYNC_READ = 0x8A
BULK_READ = 0x92
BULK_WRITE = 0x93
FAST_BULK_READ = 0x9A
BROADCAST = 0xFE

OVERHEAD = 10
"""Bytes of a frame beside its parameters."""
STATUS_OVERHEAD = 11
"""Bytes of a status beside its data."""
SLOT_OVERHEAD = 4
"""Bytes of one servo's part of a fast reply beside its data: ERR, id, and the CRC of all bytes up to there."""
FAST_HEAD = 8
"""Bytes of a fast reply before the first servo's part."""

FOUND_AT, FOUND_LENGTH, FOUND_NEXT, FOUND_SKIPPED, FOUND_CHECKSUM = range(5)
"""What `scan` writes into `found`."""


@cython.ccall
@cython.nogil
@cython.exceptval(check=False)
def crc(data: cython.const[cython.uchar][::1], start: cython.int, end: cython.int, seed: cython.int) -> cython.int:
    """CRC-16 (polynomial 0x8005, not reflected) of the bytes [start, end), going on from `seed`, 0 at the beginning.

    For this polynomial a step of eight bits has a closed form: the byte x contributes x*(z^2 + z), and z^15 + z + 1
    where it has an odd number of ones.
    """
    value: cython.int = seed
    x: cython.int
    i: cython.int
    for i in range(start, end):
        x = value >> 8 ^ cython.cast(cython.int, data[i])
        value = (value << 8 & 0xFFFF) ^ x << 1 ^ x << 2
        x = x ^ x >> 4
        if 0x6996 >> (x & 15) & 1:
            value ^= 0x8003
    return value


@cython.ccall
@cython.nogil
@cython.exceptval(check=False)
def word(data: cython.const[cython.uchar][::1], at: cython.int) -> cython.int:
    """The unsigned 16-bit word at `at`."""
    return cython.cast(cython.int, data[at]) | cython.cast(cython.int, data[at + 1]) << 8


@cython.ccall
@cython.nogil
@cython.exceptval(check=False)
def signed_word(data: cython.const[cython.uchar][::1], at: cython.int) -> cython.int:
    """The 16-bit word at `at` in two's complement."""
    raw: cython.int = word(data, at)
    return raw - 0x10000 if raw & 0x8000 else raw


@cython.ccall
@cython.nogil
@cython.exceptval(check=False)
def long_word(data: cython.const[cython.uchar][::1], at: cython.int) -> cython.int:
    """The 32-bit word at `at` in two's complement."""
    return signed_word(data, at + 2) * 0x10000 + word(data, at)


@cython.ccall
@cython.nogil
@cython.exceptval(check=False)
def put_word(out: cython.uchar[::1], at: cython.int, raw: cython.int) -> cython.void:
    """Write the 16-bit word `raw`, of either sign, at `at`."""
    out[at] = raw & 0xFF
    out[at + 1] = raw >> 8 & 0xFF


@cython.ccall
@cython.nogil
@cython.exceptval(check=False)
def put_long(out: cython.uchar[::1], at: cython.int, raw: cython.int) -> cython.void:
    """Write the 32-bit word `raw`, of either sign, at `at`."""
    put_word(out, at, raw & 0xFFFF)
    put_word(out, at + 2, raw >> 16 & 0xFFFF)


@cython.ccall
@cython.nogil
@cython.exceptval(check=False)
def seal(out: cython.uchar[::1], servo: cython.int, code: cython.int, parameters: cython.int) -> cython.int:
    """Make the bytes [8, 8 + parameters) of `out` a frame: header, stuffing, LEN and CRC. Returns its length."""
    end: cython.int = parameters + 8
    stuffed: cython.int = 0
    i: cython.int
    to: cython.int
    if parameters < 0 or end + 2 > out.shape[0]:
        return -1
    out[7] = code & 0xFF
    for i in range(9, end):
        if out[i] == 0xFD and out[i - 1] == 0xFF and out[i - 2] == 0xFF:
            stuffed += 1
    if end + stuffed + 2 > out.shape[0] or parameters + stuffed + 3 > 0xFFFF:
        return -1
    to = end + stuffed
    i = end
    while to > i:  # from behind: as long as something is left to stuff, source and target differ
        i -= 1
        to -= 1
        out[to] = out[i]
        if out[i] == 0xFD and out[i - 1] == 0xFF and out[i - 2] == 0xFF:
            out[to] = 0xFD
            to -= 1
            out[to] = 0xFD
    end += stuffed
    out[0] = 0xFF
    out[1] = 0xFF
    out[2] = 0xFD
    out[3] = 0x00
    out[4] = servo & 0xFF
    put_word(out, 5, end - 5)
    put_word(out, end, crc(out, 0, end, 0))
    return end + 2


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _fill(out: cython.uchar[::1], at: cython.int, data: cython.const[cython.uchar][::1]) -> cython.int:
    """Copy `data` to `at`; returns where it ends, or -1 where it or the CRC would not fit."""
    count: cython.int = cython.cast(cython.int, data.shape[0])
    i: cython.int
    if at < 0 or at + count + 2 > out.shape[0]:
        return -1
    for i in range(count):
        out[at + i] = data[i]
    return at + count


@cython.ccall
@cython.nogil
@cython.exceptval(check=False)
def frame(out: cython.uchar[::1], servo: cython.int, code: cython.int,
          data: cython.const[cython.uchar][::1]) -> cython.int:
    """An instruction with the parameters `data`: ping, action, reboot without, factory reset, clear, bulk with."""
    return seal(out, servo, code, _fill(out, 8, data) - 8)


@cython.ccall
@cython.nogil
@cython.exceptval(check=False)
def status(out: cython.uchar[::1], servo: cython.int, error: cython.int,
           data: cython.const[cython.uchar][::1]) -> cython.int:
    """A servo's reply: its ERR byte and the bytes `data`."""
    if out.shape[0] < 11:
        return -1
    out[8] = error & 0xFF
    return seal(out, servo, 0x55, _fill(out, 9, data) - 8)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _range(out: cython.uchar[::1], address: cython.int, count: cython.int) -> cython.int:
    """Address and count of bytes, where most instructions have them; returns where they end, or -1."""
    if out.shape[0] < 14:
        return -1
    put_word(out, 8, address)
    put_word(out, 10, count)
    return 12


@cython.ccall
@cython.nogil
@cython.exceptval(check=False)
def ping(out: cython.uchar[::1], servo: cython.int) -> cython.int:
    """`servo` answers with its model number (2 bytes) and firmware; BROADCAST: all do, by their ids."""
    return seal(out, servo, 0x01, 0)


@cython.ccall
@cython.nogil
@cython.exceptval(check=False)
def read(out: cython.uchar[::1], servo: cython.int, address: cython.int, count: cython.int) -> cython.int:
    """`servo` answers with `count` bytes from `address`."""
    return seal(out, servo, 0x02, _range(out, address, count) - 8)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _write(out: cython.uchar[::1], servo: cython.int, code: cython.int, address: cython.int,
           data: cython.const[cython.uchar][::1]) -> cython.int:
    if out.shape[0] < 12:
        return -1
    put_word(out, 8, address)
    return seal(out, servo, code, _fill(out, 10, data) - 8)


@cython.ccall
@cython.nogil
@cython.exceptval(check=False)
def write(out: cython.uchar[::1], servo: cython.int, address: cython.int,
          data: cython.const[cython.uchar][::1]) -> cython.int:
    """Write the bytes `data` from `address` on; `servo` answers with its ERR byte."""
    return _write(out, servo, 0x03, address, data)


@cython.ccall
@cython.nogil
@cython.exceptval(check=False)
def reg_write(out: cython.uchar[::1], servo: cython.int, address: cython.int,
              data: cython.const[cython.uchar][::1]) -> cython.int:
    """As `write`, done when an action comes."""
    return _write(out, servo, 0x04, address, data)


@cython.ccall
@cython.nogil
@cython.exceptval(check=False)
def sync_read(out: cython.uchar[::1], address: cython.int, count: cython.int,
              ids: cython.const[cython.uchar][::1]) -> cython.int:
    """All of `ids` answer in this order with `count` bytes from `address`, one status each."""
    return seal(out, 0xFE, 0x82, _fill(out, _range(out, address, count), ids) - 8)


@cython.ccall
@cython.nogil
@cython.exceptval(check=False)
def fast_sync_read(out: cython.uchar[::1], address: cython.int, count: cython.int,
                   ids: cython.const[cython.uchar][::1]) -> cython.int:
    """As `sync_read`, but all answer together in one frame (see `fast_slots`)."""
    return seal(out, 0xFE, 0x8A, _fill(out, _range(out, address, count), ids) - 8)


@cython.ccall
@cython.nogil
@cython.exceptval(check=False)
def sync_write(out: cython.uchar[::1], address: cython.int, ids: cython.const[cython.uchar][::1],
               data: cython.const[cython.uchar][:, ::1]) -> cython.int:
    """Write row i of `data`, Shape (servos, width), from `address` on in servo ids[i]; nobody answers."""
    servos: cython.int = cython.cast(cython.int, ids.shape[0])
    width: cython.int = cython.cast(cython.int, data.shape[1])
    i: cython.int
    k: cython.int
    if out.shape[0] < 14 + servos * (width + 1):
        return -1
    _range(out, address, width)
    for i in range(servos):
        out[12 + i * (width + 1)] = ids[i]
        for k in range(width):
            out[13 + i * (width + 1) + k] = data[i, k]
    return seal(out, 0xFE, 0x83, 4 + servos * (width + 1))


@cython.ccall
@cython.nogil
@cython.exceptval(check=False)
def scan(data: cython.const[cython.uchar][::1], start: cython.int, end: cython.int, longest: cython.int,
         final: cython.bint, found: cython.int[::1]) -> cython.int:
    """Find the next whole frame in the bytes [start, end). Returns 1: found, 0: more bytes are needed.

    longest: frames of more bytes are not believed, so that a false header cannot swallow good frames.
    final: no more bytes will come: look behind a header whose frame never ended.
    found: Shape (5,). FOUND_AT, FOUND_LENGTH: the frame; FOUND_NEXT: where to scan from next time, bytes
    before it are done with; FOUND_SKIPPED, FOUND_CHECKSUM: bytes skipped and wrong CRCs are added here.
    """
    at: cython.int = start
    length: cython.int
    while at < end:
        if (data[at] == 0xFF and (at + 1 >= end or data[at + 1] == 0xFF) and (at + 2 >= end or data[at + 2] == 0xFD)
                and (at + 3 >= end or data[at + 3] == 0x00)
                and (at + 4 >= end or (data[at + 4] != 0xFF and data[at + 4] != 0xFD))):
            if at + 6 < end:
                length = word(data, at + 5) + 7
                if 10 <= length <= longest:
                    if at + length <= end:
                        if crc(data, at, at + length - 2, 0) == word(data, at + length - 2):
                            found[0] = at
                            found[1] = length
                            found[2] = at + length
                            return 1
                        found[4] += 1
                    elif not final:
                        break
            elif not final:
                break
        found[3] += 1
        at += 1
    found[2] = at
    return 0


@cython.ccall
@cython.nogil
@cython.exceptval(check=False)
def unstuff(data: cython.const[cython.uchar][::1], start: cython.int, end: cython.int,
            out: cython.uchar[::1]) -> cython.int:
    """Copy the bytes [start, end), instruction to last parameter of a frame, into `out` without the stuffed ones;
    returns how many, or -1 where they do not fit."""
    count: cython.int = 0
    i: cython.int = start
    while i < end:
        if count >= out.shape[0]:
            return -1
        out[count] = data[i]
        count += 1
        if (i + 1 < end and i >= start + 2 and data[i] == 0xFD and data[i + 1] == 0xFD
                and data[i - 1] == 0xFF and data[i - 2] == 0xFF):
            i += 1  # the stuffed one
        i += 1
    return count


@cython.ccall
@cython.nogil
@cython.exceptval(check=False)
def fast_slots(data: cython.const[cython.uchar][::1], start: cython.int, end: cython.int,
               count: cython.int) -> cython.int:
    """How many servos of the fast reply that begins at `start` have come whole by `end`, each with `count` bytes.

    Servo k: ERR, id, data from start + FAST_HEAD + k * (count + SLOT_OVERHEAD) on, then the CRC of all bytes from
    `start` up to there; the last one's is the frame's.
    """
    at: cython.int = start + 8
    value: cython.int = crc(data, start, at, 0) if at <= end else 0
    slots: cython.int = 0
    while at + count + 4 <= end:
        value = crc(data, at, at + count + 2, value)
        if value != word(data, at + count + 2):
            break
        value = crc(data, at + count + 2, at + count + 4, value)
        at += count + 4
        slots += 1
    return slots
