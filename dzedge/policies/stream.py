"""A sliding window of clean frames whose rows are made once, each attending to those that came before it.

A frame goes through the `prefill` graph when it comes, against the window as it then is, and its rows take the place
of the oldest ones: one copy of one frame, nothing is stacked or turned again. The graphs learn the order from
`slot_pos` alone, which is renumbered for every frame: actions do not shift along with frames, so the newest frame
always stands where a frame stood in training.
"""

import math

import numpy as np
from numpy.typing import NDArray

from dzedge.engine import Graph

NO_FRAME = -1
"""In place of a capture time: the slot is empty."""
SOON = 0.72
"""A frame that comes sooner after the one before it, in steps between frames, stays only until the next one comes:
a robot that decides more often than frames were apart in training must not fill its window with the last moment."""
REACH = 0.53
"""How much older than the window is long, in steps between frames, a frame may be and still be seen. Neither number
is one that whole periods of a usual camera come to."""


class FrameStream:
    """The window of one task.

    prefill: its `key`, `value` and `valid` are the window, and are read by other graphs too; frames: F, of a block;
    frame_ns: between frames [ns].
    """

    def __init__(self, prefill: Graph, frames: int, frame_ns: int) -> None:
        self._prefill, self._frames, self._unit = prefill, frames, frame_ns
        self._captures = [NO_FRAME] * prefill.inputs["valid"].shape[1]
        self._seen = 0
        prefill.keep("key", "value")

    @property
    def newest_ns(self) -> int:
        """When the newest frame in it was taken, [ns]; -1 where there is none."""
        return max(self._captures)

    def forget(self) -> None:
        """A new task."""
        self._captures = [NO_FRAME] * len(self._captures)
        self._seen = 0

    def push(self, latent: NDArray[np.floating], capture_ns: int) -> None:
        """Take in a frame newer than all before. latent: Shape (K, C), in units of its spread."""
        self._drop_soon()
        inputs, outputs = self._prefill.inputs, self._prefill.outputs
        self._seen += 1
        inputs["latent"][0, 0] = latent
        self._number(inputs["slot_pos"], capture_ns, 0)
        self._prefill.run()
        slot = self._captures.index(min(self._captures))  # an empty one, else the oldest
        inputs["key"][slot] = outputs["new_key"][0]
        inputs["value"][slot] = outputs["new_value"][0]
        self._prefill.send("key", "value")
        self._captures[slot] = capture_ns

    def place(self, slot_pos: NDArray[np.float32]) -> None:
        """Number the window and the block after it. slot_pos: Shape (1, S + F), of the graph that denoises it."""
        self._number(slot_pos, self.newest_ns, 1)

    def _number(self, slot_pos: NDArray[np.float32], now_ns: int, ahead: int) -> None:
        """Positions of the slots, then of new frames, the first `ahead` steps after now; hides what is too old."""
        slots, valid, newest = len(self._captures), self._prefill.inputs["valid"], self._position()
        for slot, capture_ns in enumerate(self._captures):
            age = (now_ns - capture_ns) / self._unit
            seen = capture_ns != NO_FRAME and age <= slots + REACH
            valid[0, slot] = seen
            slot_pos[0, slot] = newest - age if seen else newest
        slot_pos[0, slots:] = newest + ahead + np.arange(slot_pos.shape[1] - slots)

    def _position(self) -> int:
        """Of the newest frame: as in a training sequence of a first frame and blocks, the last of which are one whose
        window is filled for the first time, and one whose window has slid."""
        slots = len(self._captures)
        filled = math.ceil((slots - 1) / self._frames)
        return self._frames * (0 if self._seen == 1 else filled + (self._seen > slots))

    def _drop_soon(self) -> None:
        last, before = ([NO_FRAME, *sorted(self._captures)])[:-3:-1]
        if before != NO_FRAME and last - before < SOON * self._unit:
            self._captures[self._captures.index(last)] = NO_FRAME
            self._seen -= 1
