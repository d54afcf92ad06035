"""The safety tables of the control tick, and its codes in words.

Nothing here runs in a tick: `kernels.gate` judges, `kernels.tick` acts. This file says what the gate may let
through, and which state each refusal leads to.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dzedge.clock import NS
from dzedge.config import RobotConfig
from dzedge.kernels import gate
from dzedge.kernels.tick import Cause, Refusal, State, Tick

STATES = tuple(State.__members__)
"""State names by code."""
CAUSES: dict[int, str] = {
    Cause.CAUSE_NONE: "",
    Cause.CAUSE_EXHAUSTED: "no new chunk in time",
    Cause.CAUSE_REQUEST: "held on request",
    Cause.CAUSE_TASK: "new task",
    Cause.CAUSE_OVERRUN: "the control loop was late",
    Cause.CAUSE_GATE: "refused by the gate",
    Cause.CAUSE_ENCODE: "refused by the bus encoder",
    Cause.CAUSE_BUS_SILENT: "no answer from the servo bus",
    Cause.CAUSE_UNPLUGGED: "the serial port is gone",
    Cause.CAUSE_LIMITER: "a trajectory that is none",
    Cause.CAUSE_SERVO: "a servo is unwell",
}
"""Why the arm is in its state."""
REFUSALS: dict[int, str] = {
    Refusal.REFUSED_EPOCH: "chunk_epoch",
    Refusal.REFUSED_ORDER: "chunk_order",
    Refusal.REFUSED_FUTURE: "chunk_future",
    Refusal.REFUSED_STALE: "chunk_stale",
    Refusal.REFUSED_STEP: "chunk_step",
    Refusal.REFUSED_NOT_FINITE: "chunk_not_finite",
    Refusal.REFUSED_RANGE: "chunk_range",
}
"""Why a chunk was refused, as counted in reports."""


VERDICTS = {
    gate.Code.ACCEPTED: State.RUN,
    gate.Code.FINITE: State.FAULT,
    gate.Code.MEMORY: State.FAULT,
    gate.Code.ELAPSED: State.HOLD,
    gate.Code.OBSERVATION_AGE: State.HOLD,
    gate.Code.COMMAND_AGE: State.HOLD,
    gate.Code.MEASURED_AGE: State.HOLD,
    gate.Code.POSITION: State.FAULT,
    gate.Code.FOLLOWING: State.FAULT,
    gate.Code.VELOCITY: State.FAULT,
    gate.Code.WINDOW: State.FAULT,
    gate.Code.BURST: State.HOLD,
    gate.Code.ACCELERATION: State.HOLD,
    gate.Code.JERK: State.HOLD,
}
"""What a refusal of the gate while running leads to. The limiter makes the FAULTs among them impossible: when one
comes all the same, something is broken and the arm must not go on by itself."""
PERIODS_OF_GRACE = 2
"""A command may be used while t_now <= t_obs + H * dt + 2 T (DESIGN 6)."""
MEASURED_PERIODS = 3
"""Periods without a whole answer of the bus after which a running arm is stopped."""
BURST = 1.2
"""Commands in 250 ms, as a multiple of the nominal number."""
WINDOW_S = 0.25
GRASP = 2.0
"""Following error allowed to a gripper: more than its whole way."""


class GateTables(NamedTuple):
    """bounds: Shape (6, J), rules: Shape (8,), as `kernels.gate` takes them; verdicts: the State for each code."""

    bounds: NDArray[np.float64]
    rules: NDArray[np.float64]
    verdicts: list[int]


def gate_tables(config: RobotConfig, horizon: int, dt_ns: int) -> GateTables:
    """The gate's tables for a robot that plays chunks of `horizon` actions, `dt_ns` apart."""
    safety, period = config.safety, 1.0 / config.arm.rate_hz
    # a gripper that meets what it grasps does not follow, and that is how it should be
    following = np.array([[GRASP if j.kind == "gripper" else safety.following_error for j in config.arm.joints]])
    rules = gate.rules(
        observation_age=horizon * dt_ns / NS + PERIODS_OF_GRACE * period,
        command_age=PERIODS_OF_GRACE * period,
        measured_age=MEASURED_PERIODS * period,
        following_time=safety.following_ms / 1000,
        following_gain=safety.following_time_s,
        window=WINDOW_S,
        burst=math.ceil(BURST * WINDOW_S / period) + 1,
    )
    bounds = np.concatenate([config.arm.limits(), following])
    return GateTables(bounds, rules, [int(VERDICTS[code]) for code in gate.Code])


def refusals(tick: Tick) -> dict[str, int]:
    """Chunks refused at the mailbox and commands refused by the gate, by name, without the zeros."""
    chunks = {REFUSALS[code]: int(n) for code, n in enumerate(tick.refused_chunks)}
    verdicts = zip(gate.Code, tick.refused_commands, strict=True)
    commands = {f"command_{code.name.lower()}": int(n) for code, n in verdicts}
    return {name: n for name, n in (chunks | commands).items() if n}
