"""Frames of several streams that were captured together, by mapped capture time.

Not by arrival, nor by membership of a librealsense frameset: its syncer was seen to pair frames 25 ms apart at 30 fps,
stamps of different clocks, and one old frame again and again with every new one of another stream.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from dzedge.kernels.mailbox import FrameRing
from dzedge.types import Frame


@dataclass(frozen=True, slots=True)
class FrameSet:
    """One frame of each stream, in the order of the streams. skew_ns: between the first and the last capture."""

    frames: tuple[Frame, ...]
    skew_ns: int


class Pairing:
    """Sets of frames from several rings, of one camera or of many.

    rings: the streams; capture times are CLOCK_MONOTONIC in all of them. period_ns: the shortest frame period among
    them; tolerance_ns: how far apart captures of one set may be, at most half a period (the default).

    Frames belong together when each is the other's nearest in time and within the tolerance of it; at half a period or
    less no frame that is still to come can be nearer, so nothing is waited for. No frame is given out twice, and sets
    come in order: a stalled stream ends the sets, it does not repeat itself.

    Raises ValueError for less than two rings, or a tolerance outside (0, period_ns / 2].
    """

    def __init__(self, rings: Sequence[FrameRing], period_ns: int, tolerance_ns: int | None = None) -> None:
        tolerance_ns = period_ns // 2 if tolerance_ns is None else tolerance_ns
        if len(rings) < 2:
            raise ValueError(f"{len(rings)} streams to be paired: give two or more")
        if not 0 < tolerance_ns <= period_ns // 2:
            raise ValueError(
                f"tolerance of {tolerance_ns} ns must lie in (0, {period_ns // 2}], half the shortest frame period"
            )
        self._rings, self._tolerance_ns = tuple(rings), tolerance_ns
        self._used = [-1] * len(rings)

    def newest(self) -> FrameSet | None:
        """The newest set that has not been given out, and is newer than all that have; None where there is none."""
        stamps = [
            [(index, capture_ns) for index, capture_ns in ring.stamps() if index > used]
            for ring, used in zip(self._rings, self._used, strict=True)
        ]
        if not all(stamps):
            return None
        for number in reversed(range(len(stamps[0]))):
            chosen = self._partners(stamps, number)
            found = self._read(chosen) if chosen is not None else None
            if chosen is not None and found is not None:
                self._used = chosen
                return found
        return None

    def _partners(self, stamps: list[list[tuple[int, int]]], number: int) -> list[int] | None:
        """Indices of the frames that belong to the first stream's frame `number`, None where one is missing."""
        own = stamps[0]
        index, capture_ns = own[number]
        chosen, times = [index], [capture_ns]
        for other in stamps[1:]:
            partner, time_ns = _nearest(other, capture_ns)
            if abs(time_ns - capture_ns) > self._tolerance_ns or _nearest(own, time_ns)[0] != index:
                return None
            chosen.append(partner)
            times.append(time_ns)
        return chosen if max(times) - min(times) <= self._tolerance_ns else None

    def _read(self, chosen: Sequence[int]) -> FrameSet | None:
        """The frames themselves; None where one was overwritten meanwhile."""
        frames = []
        for ring, index in zip(self._rings, chosen, strict=True):
            record = ring.frame(index)
            if record is None:
                return None
            _, image, number, capture_ns, receive_ns, exposure_us, gain, _ = record
            frames.append(Frame(image, number, capture_ns, receive_ns, exposure_us, gain))
        times = [frame.capture_ns for frame in frames]
        return FrameSet(tuple(frames), max(times) - min(times))


def _nearest(stamps: Sequence[tuple[int, int]], time_ns: int) -> tuple[int, int]:
    """The (index, capture_ns) nearest to a time; the earlier of two that are as near."""
    return min(stamps, key=lambda stamp: (abs(stamp[1] - time_ns), stamp[1]))
