"""Pairing by capture time, against the pairs that a common exposure makes."""

import numpy as np
import pytest

from dzedge.hardware.pairing import Pairing
from dzedge.kernels.mailbox import FrameRing

MS = 1_000_000
PERIOD_NS = 33 * MS


def make_ring(pixel_bytes: int = 3, slots: int = 16) -> FrameRing:
    return FrameRing(np.zeros(FrameRing.bytes_for(slots, 2, 4, pixel_bytes), np.uint8), slots, 2, 4, pixel_bytes)


def put(ring: FrameRing, number: int, capture_ns: int) -> None:
    kinds = {3: ((2, 4, 3), np.uint8), 2: ((2, 4), np.uint16), 1: ((2, 4), np.uint8)}
    shape, kind = kinds[ring.pixel_bytes]
    ring.put(np.full(shape, number % 200, kind), number, capture_ns, capture_ns + MS, 5000 + number, 16)


def numbers(found) -> tuple[int, ...] | None:
    return None if found is None else tuple(frame.number for frame in found.frames)


class TestPairing:
    def test_frames_of_one_moment(self) -> None:
        color, depth = make_ring(3), make_ring(2)
        pairing = Pairing([color, depth], PERIOD_NS)
        assert pairing.newest() is None
        put(color, 1, 100 * MS)
        assert pairing.newest() is None
        put(depth, 7, 103 * MS)
        found = pairing.newest()
        assert numbers(found) == (1, 7)
        assert found.skew_ns == 3 * MS
        assert (found.frames[0].exposure_us, found.frames[1].gain) == (5001, 16)
        assert found.frames[1].image.dtype == np.uint16
        assert pairing.newest() is None, "no set twice"

    @pytest.mark.parametrize("seed", range(5))
    def test_every_true_pair_is_found_and_no_other(self, seed: int) -> None:
        """Three streams exposed together, arriving in any order with delays of up to two periods, some frames lost."""
        rng = np.random.default_rng(seed)
        rings = [make_ring(kind) for kind in (3, 2, 1)]
        pairing = Pairing(rings, PERIOD_NS)
        arrivals, whole = [], set()
        for moment in range(200):
            there = rng.random(3) > 0.1
            if there.all():
                whole.add(moment)
            for stream in np.flatnonzero(there):
                capture_ns = moment * PERIOD_NS + int(rng.integers(-3 * MS, 3 * MS)) + 10 * PERIOD_NS
                arrivals.append((capture_ns + int(rng.integers(0, 2 * PERIOD_NS)), stream, moment, capture_ns))
        # A stream's own frames keep their order; streams overtake each other.
        last = [0, 0, 0]
        ordered = []
        for at, stream, moment, capture_ns in sorted(arrivals, key=lambda row: (row[1], row[2])):
            last[stream] = max(last[stream], at)
            ordered.append((last[stream], stream, moment, capture_ns))
        found, taken = [], set()
        for _, stream, moment, capture_ns in sorted(ordered):
            put(rings[stream], moment, capture_ns)
            got = pairing.newest()
            if got is not None:
                assert len(set(numbers(got))) == 1, "one moment"
                assert got.skew_ns <= 6 * MS
                found.append(numbers(got)[0])
                taken.add(numbers(got)[0])
        assert found == sorted(taken), "in order, none twice"
        assert taken <= whole
        assert len(taken) > 0.9 * len(whole), "newest first may leave out a set that was overtaken"

    def test_a_stalled_stream_is_not_repeated(self) -> None:
        color, depth = make_ring(3), make_ring(2)
        pairing = Pairing([color, depth], PERIOD_NS)
        for moment in range(5):
            put(color, moment, moment * PERIOD_NS)
            put(depth, moment, moment * PERIOD_NS)
        assert numbers(pairing.newest()) == (4, 4)
        for moment in range(5, 12):
            put(color, moment, moment * PERIOD_NS)
            assert pairing.newest() is None
        put(depth, 11, 11 * PERIOD_NS + MS)
        assert numbers(pairing.newest()) == (11, 11)

    def test_beyond_the_tolerance_is_no_pair(self) -> None:
        color, depth = make_ring(3), make_ring(2)
        pairing = Pairing([color, depth], PERIOD_NS, 4 * MS)
        put(color, 1, 100 * MS)
        put(depth, 1, 105 * MS)
        assert pairing.newest() is None
        put(color, 2, 102 * MS)
        assert numbers(pairing.newest()) == (2, 1)

    def test_the_nearest_of_two(self) -> None:
        """A frame belongs to its nearest, though the other is within the tolerance as well."""
        color, depth = make_ring(3), make_ring(2)
        pairing = Pairing([color, depth], PERIOD_NS)
        put(color, 1, 100 * MS)
        put(color, 2, 120 * MS)
        put(depth, 1, 114 * MS)
        assert numbers(pairing.newest()) == (2, 1)
        assert pairing.newest() is None

    def test_three_that_span_too_much(self) -> None:
        rings = [make_ring(), make_ring(), make_ring()]
        pairing = Pairing(rings, PERIOD_NS, 5 * MS)
        for ring, at in zip(rings, (100, 96, 104), strict=True):
            put(ring, 1, at * MS)
        assert pairing.newest() is None

    @pytest.mark.parametrize("tolerance", [0, -1, PERIOD_NS // 2 + 1])
    def test_tolerances_that_pair_a_frame_twice(self, tolerance: int) -> None:
        with pytest.raises(ValueError, match=r"must lie in \(0, 16500000\]"):
            Pairing([make_ring(), make_ring()], PERIOD_NS, tolerance)

    def test_one_stream(self) -> None:
        with pytest.raises(ValueError, match="1 streams to be paired"):
            Pairing([make_ring()], PERIOD_NS)
