"""Compiles the cycle of a Feetech arm: frame templates, offsets, expected ids and lengths, deadlines."""

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from dzedge.clock import NS
from dzedge.hardware.arm import CyclePlan
from dzedge.hardware.calibration import JointCalibration
from dzedge.hardware.control_table import PRESENT, STATE_BYTES, STS3215
from dzedge.hardware.feetech_bus import encode
from dzedge.kernels import codec

VARIANTS = 8
"""Lengths of the state request, in turn after a lost reply, so that a late one is recognised;
`kernels.bus`."""
ALLOWANCE_NS = 3_000_000
"""Of a cycle, beyond its wire time: two USB frames of 1 ms and a late wake-up."""
TRAVEL = 8192.0
"""[ticks/s] that no STS3215 reaches (45 to 60 rpm are 3000 to 4100): a position further away is not
believed."""
ELAPSED_MAX_NS = NS // 4
"""A pause between goals counts for no more in the largest step that is allowed."""
GOAL_SPEED = 1.5
"""Speed register over the joint's speed limit: the servo's own profile must not lag behind the trajectory."""
GOAL = STS3215["goal_position"].address
GOAL_BYTES = 6
"""Goal position, goal time, goal speed."""
POSITION_BYTES = 2


def goal_row(joint: JointCalibration, velocity: float, ticks: int) -> bytes:
    """Goal position, time 0 (so that speed decides) and speed, as they lie from GOAL on.

    velocity: the joint's limit [rad/s], gripper [1/s].
    """
    speed = min(math.ceil(velocity * abs(joint.scale) * GOAL_SPEED), 32767)
    position, speed_register = STS3215["goal_position"], STS3215["goal_speed"]
    return encode(position, ticks) + bytes(2) + encode(speed_register, speed)


def compile_plan(
    joints: Sequence[JointCalibration],
    velocities: Sequence[float],
    baud: int,
    *,
    state: bool = True,
    echo: bool = False,
    allowance_ns: int = ALLOWANCE_NS,
) -> CyclePlan:
    """The cycle of these joints; its deadline is the wire time at `baud` [bit/s] and `allowance_ns`.

    velocities: limits [rad/s], gripper [1/s]. state: write position, time and speed, read the whole state of
    15 bytes; False: write and read positions only. echo: the adapter returns what is sent.
    """
    width = GOAL_BYTES if state else POSITION_BYTES
    count = STATE_BYTES if state else POSITION_BYTES
    ids = np.array([joint.id for joint in joints], np.uint8)
    rows = np.array(
        [list(goal_row(j, v, 0)[:width]) for j, v in zip(joints, velocities, strict=True)], np.uint8
    )
    goal_frame = _frame(lambda out: codec.sync_write(out, GOAL, ids, rows))
    requests = np.stack([_request(count + extra, ids) for extra in range(VARIANTS)])
    byte_ns = 10 * NS // baud
    sent = len(goal_frame) + requests.shape[1]
    replies = len(ids) * (count + codec.OVERHEAD)
    longest = sent + replies + len(ids) * (VARIANTS - 1)
    return CyclePlan(
        ids=ids,
        goal_frame=goal_frame,
        offsets=np.arange(len(ids), dtype=np.int32) * (width + 1) + 8,
        requests=requests,
        data_length=count,
        zero=np.array([joint.zero for joint in joints]),
        scale=np.array([joint.scale for joint in joints]),
        lower=np.array([joint.lower for joint in joints], np.int32),
        upper=np.array([joint.upper for joint in joints], np.int32),
        speed=np.array(velocities, np.float64),
        travel=TRAVEL,
        budget_ns=longest * byte_ns + allowance_ns,
        sample_delay_ns=sent * byte_ns + replies * byte_ns // 2,
        elapsed_max_ns=ELAPSED_MAX_NS,
        echo=echo,
        quiet_ns=(count + VARIANTS - 1 + codec.OVERHEAD) * byte_ns,
        wire_ns=(sent + replies) * byte_ns,
    )


def _request(count: int, ids: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return _frame(lambda out: codec.sync_read(out, PRESENT, count, ids))


def _frame(encoder: Callable[[bytearray], int]) -> NDArray[np.uint8]:
    out = bytearray(259)
    return np.frombuffer(bytes(out[: encoder(out)]), np.uint8)
