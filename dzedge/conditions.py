"""What lockstep may lay on a policy: lateness, or the lack of what the runtime does about it."""

from dataclasses import dataclass

from dzedge.latency import DEFAULT, Latency


@dataclass(frozen=True)
class Conditions:
    """What lockstep lays on a policy, beside the robot file.

    latency: from a frame's arrival to its chunk; delay_ms: added to each [ms], as by a slower model: no frame is
    looked at meanwhile; synchronous: the world waits, camera and inference take no time; prefix: whether the model is
    told the actions already committed to; smoothing: of the trajectory, filter and seam, else the limiter alone leads
    from one chunk to the next.
    """

    latency: Latency = DEFAULT
    delay_ms: float = 0.0
    synchronous: bool = False
    prefix: bool = True
    smoothing: bool = True
