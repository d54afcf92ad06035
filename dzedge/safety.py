"""The safety tables of the control tick, and its codes in words.

Nothing here runs in a tick: `kernels.gate` judges, `kernels.tick` acts. This file says what the gate may let
through, and which state each refusal leads to.
"""

from dzedge.kernels import tick

STATES = tuple(state.name for state in tick.State)
"""State names by code."""
CAUSES = {
    tick.CAUSE_NONE: "",
    tick.CAUSE_EXHAUSTED: "no new chunk in time",
    tick.CAUSE_REQUEST: "held on request",
    tick.CAUSE_TASK: "new task",
    tick.CAUSE_OVERRUN: "the control loop was late",
    tick.CAUSE_GATE: "refused by the gate",
    tick.CAUSE_ENCODE: "refused by the bus encoder",
    tick.CAUSE_BUS_SILENT: "no answer from the servo bus",
    tick.CAUSE_UNPLUGGED: "the serial port is gone",
}
"""Why the arm is in its state."""
REFUSALS = {
    tick.REFUSED_EPOCH: "chunk_epoch",
    tick.REFUSED_ORDER: "chunk_order",
    tick.REFUSED_FUTURE: "chunk_future",
    tick.REFUSED_STALE: "chunk_stale",
    tick.REFUSED_STEP: "chunk_step",
    tick.REFUSED_NOT_FINITE: "chunk_not_finite",
}
"""Why a chunk was refused, as counted in reports."""
