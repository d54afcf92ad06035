"""Compiles the cycle of a Dynamixel arm: frame templates, offsets, expected ids and lengths, deadlines."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from dzedge.clock import NS
from dzedge.hardware.arm import CyclePlan
from dzedge.hardware.calibration import JointCalibration
from dzedge.hardware.control_table import ControlTable
from dzedge.kernels import codec_dynamixel as codec
from dzedge.kernels.bus_dynamixel import DynamixelCycle

ALLOWANCE_NS = 3_000_000
"""Of a cycle, beyond its wire time: two USB frames of 1 ms and a late wake-up."""
ELAPSED_MAX_NS = NS // 4
"""A pause between goals counts for no more in the largest step that is allowed."""
TRAVEL = 1.5
"""Over the model's velocity limit as shipped, about its speed without load: no servo is faster."""
RPM_TICKS = 4096 / 60
"""[ticks/s] of a revolution a minute."""
TURN = 4096

STATE_END, SPEED_END = 147, 136
"""One past present temperature, and one past present position."""
STATE_STARTS = (126, 124, 123, 122, 120, 116, 112, 108)
"""Where the state request begins, in turn: present current or load first, then ever more whole registers before it, so
that consecutive reads differ in length."""
SPEED_STARTS = (128, 126, 124, 123, 122, 120, 116, 112)
POSITION_AT, VELOCITY_AT, EFFORT_AT, VOLTAGE_AT, TEMPERATURE_AT = 132, 128, 126, 144, 146
FAST = 2
"""Of the variants are asked for by fast sync read, too: those of cycles without a loss."""
GOAL_AT, GOAL_BYTES = 116, 4
GOAL_OFFSET = 13
"""Of the first goal in a sync write."""


@dataclass(frozen=True, slots=True)
class DynamixelPlan(CyclePlan):
    """One Dynamixel bus cycle, compiled. Arrays are `DynamixelCycle`'s, where their shapes and units stand."""

    lengths: NDArray[np.int32]
    places: NDArray[np.int32]
    fast: int
    speed_unit: NDArray[np.float64]
    current_unit: NDArray[np.float64]
    load_unit: NDArray[np.float64]
    ticks_low: int
    ticks_high: int

    def build(self) -> DynamixelCycle:
        """The executable cycle; it only reads until it is seeded with the goals that the servos hold."""
        names = [field.name for field in fields(self) if field.name != "wire_ns"]
        return DynamixelCycle(**{name: getattr(self, name) for name in names})


def compile_plan(
    joints: Sequence[JointCalibration],
    velocities: Sequence[float],
    tables: Sequence[ControlTable],
    baud: int,
    *,
    state: bool = True,
    fast: bool = False,
    echo: bool = False,
    allowance_ns: int = ALLOWANCE_NS,
) -> DynamixelPlan:
    """The cycle of these joints; its deadline is the wire time at `baud` [bit/s] and `allowance_ns`.

    velocities: limits [rad/s], gripper [1/s]; tables: of each joint's servo. state: read current or load, velocity,
    position, voltage and temperature, 21 bytes; False: velocity and position. fast: by fast sync read. echo: the
    adapter returns what is sent.
    """
    ids = bytes(joint.id for joint in joints)
    starts, end = (STATE_STARTS, STATE_END) if state else (SPEED_STARTS, SPEED_END)
    goal_frame = _frame(lambda out: codec.sync_write(out, GOAL_AT, ids, np.zeros((len(ids), GOAL_BYTES), np.uint8)))
    plain = [(start, end - start) for start in starts]
    quick = plain[:FAST] if fast else []
    rows = [_request(codec.fast_sync_read, row, ids) for row in quick]
    rows += [_request(codec.sync_read, row, ids) for row in plain]
    count, most = end - starts[0], end - starts[-1]
    sent = len(goal_frame) + len(rows[0])
    replies = len(ids) * (count + codec.SLOT_OVERHEAD) + codec.FAST_HEAD
    if not fast:
        replies = len(ids) * (count + codec.STATUS_OVERHEAD)
    byte_ns = 10 * NS // baud
    return DynamixelPlan(
        ids=np.frombuffer(ids, np.uint8),
        goal_frame=goal_frame,
        offsets=np.arange(len(ids), dtype=np.int32) * (GOAL_BYTES + 1) + GOAL_OFFSET,
        requests=np.stack(rows),
        data_length=count,
        zero=np.array([joint.zero for joint in joints]),
        scale=np.array([joint.scale for joint in joints]),
        lower=np.array([joint.lower for joint in joints], np.int32),
        upper=np.array([joint.upper for joint in joints], np.int32),
        speed=np.array(velocities, np.float64),
        travel=max(TRAVEL * _speed(found) for found in tables),
        budget_ns=(sent + len(ids) * (most + codec.STATUS_OVERHEAD)) * byte_ns + allowance_ns,
        sample_delay_ns=sent * byte_ns + replies * byte_ns // 2,
        elapsed_max_ns=ELAPSED_MAX_NS,
        echo=echo,
        quiet_ns=(most + codec.STATUS_OVERHEAD) * byte_ns,
        wire_ns=(sent + replies) * byte_ns,
        lengths=np.array([size for _, size in quick + plain], np.int32),
        places=_places(starts[0], end),
        fast=len(quick),
        speed_unit=np.array([found["present_velocity"].scale * RPM_TICKS for found in tables]),
        current_unit=_units(tables, "present_current"),
        load_unit=_units(tables, "present_load"),
        ticks_low=min(joint.lower for joint in joints) - TURN,
        ticks_high=max(joint.upper for joint in joints) + TURN,
    )


def _speed(found: ControlTable) -> float:
    """A model's speed without load [ticks/s], about."""
    register = found["velocity_limit"]
    return (register.initial or 0) * register.scale * RPM_TICKS


def _units(tables: Sequence[ControlTable], name: str) -> NDArray[np.float64]:
    """What one count of a register is, in each table; 0 where there is none."""
    return np.array([found[name].scale if name in found else 0.0 for found in tables])


def _places(start: int, end: int) -> NDArray[np.int32]:
    addresses = (POSITION_AT, VELOCITY_AT, EFFORT_AT, VOLTAGE_AT, TEMPERATURE_AT)
    return np.array([at - start if start <= at < end else -1 for at in addresses], np.int32)


def _request(
    encoder: Callable[[bytearray, int, int, bytes], int], row: tuple[int, int], ids: bytes
) -> NDArray[np.uint8]:
    return _frame(lambda out: encoder(out, *row, ids))


def _frame(encoder: Callable[[bytearray], int]) -> NDArray[np.uint8]:
    out = bytearray(1024)
    return np.frombuffer(bytes(out[: encoder(out)]), np.uint8)
