"""The records that flow along the line camera -> policy -> arm: shapes, units, capture time.

J joints, H actions in a chunk, F imagined frames, K latent tokens a frame, C channels a token.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Frame:
    """One camera image.

    image: Shape (height, width, 3), uint8, RGB. Owned by the frame.
    number: the camera's own frame number; a gap is a dropped frame.
    capture_ns, receive_ns: CLOCK_MONOTONIC [ns] of exposure and of arrival on this machine.
    exposure_us, gain: as the camera reports them, [microseconds] and its own steps; -1 not known.
    """

    image: NDArray[np.uint8]
    number: int
    capture_ns: int
    receive_ns: int
    exposure_us: int = -1
    gain: int = -1


@dataclass(frozen=True, slots=True)
class JointState:
    """Measured joints. positions: Shape (J,), [rad]; velocities: Shape (J,), [rad/s]; time_ns: CLOCK_MONOTONIC.

    A gripper is the last joint: 0 closed to 1 open.
    """

    positions: NDArray[np.float64]
    velocities: NDArray[np.float64]
    time_ns: int


@dataclass(frozen=True, slots=True)
class JointCommand:
    """Commanded joints. positions: Shape (J,), [rad]; time_ns: when they were to be reached."""

    positions: NDArray[np.float64]
    time_ns: int


@dataclass(frozen=True, slots=True)
class Observation:
    """What a policy may know: frames and the joints at the newest frame's capture.

    frames: newest last; state: measured joints interpolated to `t_obs_ns`, the newest frame's capture time;
    instruction: what is asked, in words; epoch: the task it belongs to.
    """

    frames: tuple[Frame, ...]
    state: JointState
    t_obs_ns: int
    instruction: str
    epoch: int


@dataclass(frozen=True, slots=True)
class ActionPrefix:
    """Positions already committed to, for real-time chunking. positions: Shape (d, J), [rad], absolute;
    positions[i] is the command for `t_obs + (i + 1) * dt`; d = 0: nothing is committed."""

    positions: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class ActionChunk:
    """What a policy wants done, and what it imagines it will then see.

    positions: Shape (H, J), [rad], absolute; positions[i] is the target for `t_obs_ns + (i + 1) * dt_ns`.
    imagined: Shape (F, K, C), latents of the imagined frames, empty for a policy that imagines nothing.
    chunk_id: counts up from 0 in an epoch of a process; epoch: the task it was made for.
    """

    positions: NDArray[np.float64]
    imagined: NDArray[np.float32]
    t_obs_ns: int
    dt_ns: int
    chunk_id: int
    epoch: int
