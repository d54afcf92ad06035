"""Frames and joints into an Observation: the newest frame, and the remembered ones its policy asks for."""

from collections import deque

import numpy as np
from numpy.typing import NDArray

from dzedge.types import Frame, JointState, Observation

KEPT = 64
"""Frames remembered: two seconds at 30 fps."""
REACH = 0.5
"""A remembered frame may be this share of its age too old or too young; otherwise there is none."""


class ObservationBuilder:
    """The frames of one task, and observations of them.

    history_ns: how long before the newest frame the wanted ones were taken, the newest (0) last.
    """

    def __init__(self, history_ns: tuple[int, ...]) -> None:
        self.history_ns = history_ns
        self._frames: deque[Frame] = deque(maxlen=KEPT)
        self._instruction = ""
        self._epoch = 0

    def begin(self, instruction: str, epoch: int) -> None:
        """A new task: frames of before it are forgotten, because the scene may be another."""
        self._instruction, self._epoch = instruction, epoch
        self._frames.clear()

    def add(self, frame: Frame) -> bool:
        """Remember a frame. False when it is not newer than the last one (a repeat, or time going back)."""
        if self._frames and frame.capture_ns <= self._frames[-1].capture_ns:
            return False
        self._frames.append(frame)
        return True

    @property
    def newest_ns(self) -> int:
        """Capture time of the newest frame, [ns]; -1 before the first."""
        return self._frames[-1].capture_ns if self._frames else -1

    def build(self, positions: NDArray[np.float64], velocities: NDArray[np.float64], time_ns: int) -> Observation:
        """The observation at the newest frame's capture time, t_obs.

        positions, velocities: Shape (J,), [rad], [rad/s], measured, interpolated to t_obs; time_ns: to when
        really. Raises ValueError before the first frame.
        """
        if not self._frames:
            raise ValueError("no frame yet: add one before building an observation")
        t_obs_ns = self.newest_ns
        found = [frame for age in self.history_ns for frame in self._at(t_obs_ns - age, age)]
        frames = {frame.capture_ns: frame for frame in found}
        state = JointState(positions, velocities, time_ns)
        return Observation(tuple(frames.values()), state, t_obs_ns, self._instruction, self._epoch)

    def _at(self, time_ns: int, age_ns: int) -> list[Frame]:
        """The frame nearest to a time, or nothing where none is near enough."""
        nearest = min(self._frames, key=lambda frame: abs(frame.capture_ns - time_ns))
        return [nearest] if abs(nearest.capture_ns - time_ns) <= REACH * age_ns else []
