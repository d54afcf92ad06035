"""Feeds damaged streams to the two frame parsers: no crash, no hang, and of the good frames at most one lost.

    python tests/fuzz_codec.py [--streams 10000000] [--seed 0] [--protocol feetech|dynamixel]

A stream is the replies of three servos to one request, so of one length, full of bytes that look like headers; a run of
its bytes is flipped, lost, doubled, replaced, or has the beginning of another frame put before it. It is scanned whole
or in two pieces, as it would come, by the rules of the bus cycle: longer frames are not believed, and behind the
beginning of one that nobody asked for is looked again. Frames that the damage did not touch are good ones. Prints one
JSON line for each protocol; exit status 1 where a stream lost more than one of them.
"""

import argparse
import json
import sys
from random import Random
from types import ModuleType

import numpy as np

from dzedge.kernels import codec, codec_dynamixel

CODECS: dict[str, ModuleType] = {"feetech": codec, "dynamixel": codec_dynamixel}
POOL = 1024
"""Replies of each length."""
SIZES = tuple(range(16))
"""[bytes] of data."""
IDS = range(1, 7)
BAIT = {
    "feetech": (b"\xff\xff", b"\xff\xff\x01", b"\xff\xff\x02\x30", b"\xff\xff\xff", b"\xff"),
    "dynamixel": (b"\xff\xff\xfd", b"\xff\xff\xfd\x00\x01", b"\xff\xff\xfd\x00\x02\x30\x00\x55", b"\xff\xff\xfd\xfd"),
}  # fmt: skip
"""What makes a parser believe in a frame that is none."""


def pool(protocol: str, size: int, random: Random) -> list[bytes]:
    """Good replies with data that resembles headers; stuffing may make them longer."""
    out, frames = bytearray(64), []
    for _ in range(POOL):
        data = bytes(random.choice((0xFF, 0xFF, 0xFD, 0, 0x55, random.randrange(256))) for _ in range(size))
        length = CODECS[protocol].status(out, random.choice(IDS), random.choice((0, 0, 0x80, 4)), data)
        frames.append(bytes(out[:length]))
    return frames


class Fuzzer:
    """Streams of one protocol. lost: good frames not found; worst: of one stream; forged: frames that nobody sent."""

    def __init__(self, protocol: str, seed: int) -> None:
        self.random = Random(seed)
        self.scan = CODECS[protocol].scan
        self.bait = BAIT[protocol]
        self.id_at = 2 if protocol == "feetech" else 4
        self.pools = [pool(protocol, size, self.random) for size in SIZES]
        self.lengths = [{len(frame) for frame in frames} for frames in self.pools]
        self.found = np.zeros(5, np.int32)
        self._found = memoryview(self.found)
        self.streams = self.lost = self.worst = self.forged = self.spared = 0

    def run(self, count: int) -> None:
        for _ in range(count):
            self.stream()

    def stream(self) -> None:
        """Make one and scan it."""
        bits = self.random.getrandbits(100)
        size = bits >> 96
        frames = self.pools[size]
        a, b, c = frames[bits & 1023], frames[bits >> 12 & 1023], frames[bits >> 24 & 1023]
        whole = a + b + c
        at = (bits >> 36 & 0xFFFF) * len(whole) >> 16
        run, kind = 1 + (bits >> 52 & 7), bits >> 55 & 7
        piece = whole[at : at + run]
        if kind == 0:  # flipped bits
            new = bytes((piece[0] ^ 1 << (bits >> 58 & 7),)) + piece[1:]
        elif kind == 1:  # lost
            new = b""
        elif kind == 2:  # doubled
            new = piece + piece
        elif kind == 3:  # replaced
            new = (bits >> 60).to_bytes(5, "little")[: len(piece)]
        elif kind == 4:  # the beginning of a frame
            new = frames[bits >> 61 & 1023][: 1 + (bits >> 73 & 15)] + piece
        else:
            new = self.bait[(bits >> 58) % len(self.bait)] + (piece if kind < 7 else b"")
        data = whole[:at] + new + whole[at + run :]
        good = self.untouched((a, b, c), at, len(piece), kind, len(new) - len(piece))
        self.judge(data, good, self.lengths[size], bits >> 77)

    def untouched(self, sent: tuple[bytes, ...], at: int, run: int, kind: int, shift: int) -> list[tuple[int, int]]:
        """Where the good frames lie after the damage: (start, length)."""
        inserted = kind in (2, 4, 5, 6)  # the bytes at the place itself stay as they are, behind what was put in
        good, start = [], 0
        for frame in sent:
            end = start + len(frame)
            if end <= at:
                good.append((start, len(frame)))
            elif start >= at + (0 if inserted else run):
                good.append((start + shift, len(frame)))
            start = end
        return good

    def judge(self, data: bytes, good: list[tuple[int, int]], lengths: set[int], cut: int) -> None:
        """Scan it, in two pieces where the bits of `cut` say so; count what was lost."""
        heard: set[tuple[int, int]] = set()
        end, at = len(data), 0
        if cut & 1:
            at = self.take(data, at, (cut >> 1) % (end + 1), False, lengths, heard)
        if self.take(data, at, end, True, lengths, heard) != end:
            raise AssertionError(f"bytes are left of {data.hex()}")
        missing = sum(frame not in heard for frame in good)
        self.streams += 1
        self.spared += len(good)
        self.lost += missing
        self.forged += len(heard) - len(good) + missing
        self.worst = max(self.worst, missing)

    def take(
        self, data: bytes, at: int, end: int, final: bool, lengths: set[int], heard: set[tuple[int, int]]
    ) -> int:
        """Collect the frames in [at, end); returns where the next piece begins."""
        scan, found, row = self.scan, self.found, self._found
        longest = max(lengths)
        while scan(data, at, end, longest, final, found):
            start, length, following = row[0], row[1], row[2]
            if not at <= start < following <= end:
                raise AssertionError(f"the parser does not move on from {at} in {data.hex()}")
            if length in lengths and data[start + self.id_at] in IDS:
                heard.add((start, length))
                at = following
            else:
                at = start + 1
        return row[2]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, default=10_000_000, help="for each protocol")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--protocol", choices=tuple(CODECS))
    options = parser.parse_args()
    worst = 0
    for protocol in [options.protocol] if options.protocol else CODECS:
        fuzzer = Fuzzer(protocol, options.seed)
        fuzzer.run(options.streams)
        row = {"protocol": protocol, "streams": fuzzer.streams, "good_frames": fuzzer.spared, "lost": fuzzer.lost,
               "worst_stream": fuzzer.worst, "others_found": fuzzer.forged}  # fmt: skip
        sys.stdout.write(json.dumps(row) + "\n")
        sys.stdout.flush()
        worst = max(worst, fuzzer.worst)
    return int(worst > 1)


if __name__ == "__main__":
    sys.exit(main())
