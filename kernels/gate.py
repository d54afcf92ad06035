"""The last check before the arm: a command is accepted as it is, or refused; nothing is ever clamped here.

A clamp turns NaN into a limit, which is a real pose; a refusal turns it into a code. Every comparison is written
so that NaN fails it. The first check that fails gives the verdict, and a refused command leaves no trace: what
comes next is judged against the last *accepted* command and the time since then, so no sequence of accepted
commands is faster than 1.05 times the velocity limit over the time that really passed.

`check` reads three tables and owns one memory, all plain arrays, all given by the caller:

    bounds  Shape (6, J), rows velocity [rad/s], acceleration [rad/s^2], jerk [rad/s^3], lower, upper,
            following [rad]; 0 in the acceleration or jerk row: that joint's is not checked
    rules   Shape (8,), see `rules`
    ages    Shape (3,), of observation, command and measured joints [s]
    memory  Shape (memory_size(J),), zeros before `arm`
"""

from enum import IntEnum

import cython
import numpy as np
from cython.cimports.libc.math import fabs
from numpy.typing import NDArray

ACCEPTED = cython.declare(cython.int, 0)
FINITE = cython.declare(cython.int, 1)
MEMORY = cython.declare(cython.int, 2)
ELAPSED = cython.declare(cython.int, 3)
OBSERVATION_AGE = cython.declare(cython.int, 4)
COMMAND_AGE = cython.declare(cython.int, 5)
MEASURED_AGE = cython.declare(cython.int, 6)
POSITION = cython.declare(cython.int, 7)
FOLLOWING = cython.declare(cython.int, 8)
VELOCITY = cython.declare(cython.int, 9)
WINDOW = cython.declare(cython.int, 10)
BURST = cython.declare(cython.int, 11)
ACCELERATION = cython.declare(cython.int, 12)
JERK = cython.declare(cython.int, 13)

Code = IntEnum(
    "Code",
    {
        "ACCEPTED": ACCEPTED, "FINITE": FINITE, "MEMORY": MEMORY, "ELAPSED": ELAPSED,
        "OBSERVATION_AGE": OBSERVATION_AGE, "COMMAND_AGE": COMMAND_AGE, "MEASURED_AGE": MEASURED_AGE,
        "POSITION": POSITION, "FOLLOWING": FOLLOWING, "VELOCITY": VELOCITY, "WINDOW": WINDOW, "BURST": BURST,
        "ACCELERATION": ACCELERATION, "JERK": JERK,
    },
)
"""Verdicts, in the order of the checks.

FINITE: a command, a measured joint or a bound is not a number, or beyond 1e9. MEMORY: not armed, damaged, or of
another shape. ELAPSED: not a positive time. WINDOW: too far within any 250 ms. BURST: too many commands in them.
"""

LARGEST = cython.declare(cython.double, 1e9)  # of any number in a table; what is larger is damage, not a pose
ROUNDING = cython.declare(cython.double, 1e-9)  # relative, of a sum of up to RING steps
RING = cython.declare(cython.int, 256)  # commands remembered: 250 ms at 1 kHz

# memory: cells, then rows of J, then the ring of (elapsed, distances)
ARMED = cython.declare(cython.int, 0)
JOINT = cython.declare(cython.int, 1)
VALUE = cython.declare(cython.int, 2)
BOUND = cython.declare(cython.int, 3)
HEAD = cython.declare(cython.int, 4)
COUNT = cython.declare(cython.int, 5)
LAST = cython.declare(cython.int, 6)  # [s] the last two times between commands, for acceleration and jerk
BEFORE = cython.declare(cython.int, 7)
CELLS = cython.declare(cython.int, 8)
ROWS = cython.declare(cython.int, 5)  # position, velocity, acceleration, time of bad following, sums


@cython.ccall
@cython.nogil
@cython.exceptval(check=False)
def memory_size(joints: cython.int) -> cython.int:
    """Length of the memory of `check` for so many joints."""
    return CELLS + ROWS * joints + RING * (1 + joints)


def rules(
    observation_age: float,
    command_age: float,
    measured_age: float,
    following_time: float = 0.1,
    following_gain: float = 0.15,
    window: float = 0.25,
    margin: float = 1.05,
    burst: int = 0,
) -> NDArray[np.float64]:
    """The rules of `check`, Shape (8,), read-only.

    observation_age, command_age, measured_age: greatest ages [s]; an age below 0 is refused. following_time: how
    long [s] a joint may be farther from its command than its bound plus following_gain [s] x |commanded velocity|.
    window: [s] over which travel is summed. margin: on velocity, acceleration and jerk. burst: most commands in a
    window; 0: as many as the ring holds.
    """
    table = np.array(
        [observation_age, command_age, measured_age, following_time, following_gain, window, margin, burst],
        dtype=np.float64,
    )
    table.setflags(write=False)
    return table


def memory(joints: int) -> NDArray[np.float64]:
    """A new memory for so many joints, Shape (memory_size(joints),); not armed."""
    return np.zeros(memory_size(joints))


@cython.ccall
@cython.nogil
@cython.exceptval(check=False)
def arm(memory: cython.double[::1], position: cython.const[cython.double][::1]) -> cython.int:
    """Start from rest at `position`, Shape (J,), [rad]: what the arm holds now. Forgets everything before.

    Returns ACCEPTED, or FINITE or MEMORY, and then the memory is not armed.
    """
    joints: cython.Py_ssize_t = position.shape[0]
    i: cython.Py_ssize_t
    if memory.shape[0] != memory_size(cython.cast(cython.int, joints)):
        return MEMORY
    for i in range(memory.shape[0]):
        memory[i] = 0.0
    memory[JOINT] = -1.0
    for i in range(joints):
        if not fabs(position[i]) <= LARGEST:
            memory[JOINT] = i
            return FINITE
        memory[CELLS + i] = position[i]
        memory[CELLS + 3 * joints + i] = -1.0
    memory[ARMED] = 1.0
    return ACCEPTED


@cython.ccall
@cython.nogil
@cython.exceptval(check=False)
def offender(memory: cython.const[cython.double][::1]) -> cython.int:
    """The joint that made the last `check` refuse; -1 when it was accepted or no single joint was to blame."""
    if memory.shape[0] < CELLS or not (-1.0 <= memory[JOINT] <= LARGEST):
        return -1
    return cython.cast(cython.int, memory[JOINT])


def offence(memory: NDArray[np.float64]) -> tuple[int, float, float]:
    """Joint, value and bound of the last refusal, for messages."""
    return offender(memory), float(memory[VALUE]), float(memory[BOUND])


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _refuse(
    memory: cython.double[::1], code: cython.int, joint: cython.Py_ssize_t, value: cython.double,
    bound: cython.double,
) -> cython.int:
    memory[JOINT] = joint
    memory[VALUE] = value
    memory[BOUND] = bound
    return code


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _fits(
    command: cython.const[cython.double][::1], measured: cython.const[cython.double][::1],
    ages: cython.const[cython.double][::1], bounds: cython.const[cython.double][:, ::1],
    rules: cython.const[cython.double][::1], memory: cython.double[::1],
) -> cython.bint:
    """Whether all tables are of one shape and the memory's cells are such as this module writes."""
    joints: cython.Py_ssize_t = command.shape[0]
    if not (
        measured.shape[0] == joints and ages.shape[0] == 3 and bounds.shape[0] == 6 and bounds.shape[1] == joints
        and rules.shape[0] == 8 and memory.shape[0] == memory_size(cython.cast(cython.int, joints))
    ):
        return False
    return (
        memory[ARMED] == 1.0 and 0.0 <= memory[HEAD] < RING and 0.0 <= memory[COUNT] <= RING
        and 0.0 <= memory[LAST] <= LARGEST and 0.0 <= memory[BEFORE] <= LARGEST
    )


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _finite(
    command: cython.const[cython.double][::1], measured: cython.const[cython.double][::1],
    bounds: cython.const[cython.double][:, ::1], rules: cython.const[cython.double][::1],
    memory: cython.double[::1],
) -> cython.int:
    i: cython.Py_ssize_t
    row: cython.Py_ssize_t
    for i in range(command.shape[0]):
        if not fabs(command[i]) <= LARGEST:
            return _refuse(memory, FINITE, i, command[i], LARGEST)
        if not fabs(measured[i]) <= LARGEST:
            return _refuse(memory, FINITE, i, measured[i], LARGEST)
        for row in range(6):
            if not fabs(bounds[row, i]) <= LARGEST:
                return _refuse(memory, FINITE, i, bounds[row, i], LARGEST)
    for i in range(8):
        if not 0.0 <= rules[i] <= LARGEST:
            return _refuse(memory, FINITE, -1, rules[i], LARGEST)
    return ACCEPTED


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _window(
    command: cython.const[cython.double][::1], elapsed: cython.double, bounds: cython.const[cython.double][:, ::1],
    rules: cython.const[cython.double][::1], memory: cython.double[::1],
) -> cython.int:
    """Travel and number of commands within the window that ends with this command.

    This command counts whole, however long it took to come: a jump after a stall is a jump. The oldest one counts
    for the share of its time that lies in the window.
    """
    joints: cython.Py_ssize_t = command.shape[0]
    sums: cython.Py_ssize_t = CELLS + 4 * joints
    left: cython.double = rules[5] - elapsed
    share: cython.double
    seen: cython.int = 0
    i: cython.Py_ssize_t
    slot: cython.Py_ssize_t = cython.cast(cython.Py_ssize_t, memory[HEAD])
    at: cython.Py_ssize_t
    for i in range(joints):
        memory[sums + i] = fabs(command[i] - memory[CELLS + i])
    while left > 0.0 and seen < memory[COUNT]:
        slot = slot - 1 if slot > 0 else RING - 1
        at = CELLS + ROWS * joints + slot * (1 + joints)
        if not 0.0 < memory[at] <= LARGEST:
            return _refuse(memory, MEMORY, -1, memory[at], LARGEST)
        share = 1.0 if memory[at] <= left else left / memory[at]
        left = left - memory[at]
        for i in range(joints):
            memory[sums + i] += share * memory[at + 1 + i]
        seen = seen + 1
    if (left > 0.0 and seen == RING) or (rules[7] > 0.0 and seen + 1 > rules[7]):
        return _refuse(memory, BURST, -1, seen + 1, rules[7] if rules[7] > 0.0 else RING)
    for i in range(joints):
        share = rules[6] * bounds[0, i] * rules[5] * (1.0 + ROUNDING)
        if not memory[sums + i] <= share:
            return _refuse(memory, WINDOW, i, memory[sums + i], share)
    return ACCEPTED


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _smooth(
    command: cython.const[cython.double][::1], elapsed: cython.double, bounds: cython.const[cython.double][:, ::1],
    rules: cython.const[cython.double][::1], memory: cython.double[::1],
) -> cython.int:
    """Acceleration and jerk as divided differences of accepted positions: means of the true ones, never above them."""
    joints: cython.Py_ssize_t = command.shape[0]
    last: cython.double = memory[LAST] if memory[LAST] > 0.0 else elapsed
    before: cython.double = memory[BEFORE] if memory[BEFORE] > 0.0 else last
    a: cython.double
    j: cython.double
    i: cython.Py_ssize_t
    for i in range(joints):
        a = ((command[i] - memory[CELLS + i]) / elapsed - memory[CELLS + joints + i]) / (0.5 * (last + elapsed))
        if bounds[1, i] != 0.0 and not fabs(a) <= rules[6] * bounds[1, i]:
            return _refuse(memory, ACCELERATION, i, a, rules[6] * bounds[1, i])
        j = 3.0 * (a - memory[CELLS + 2 * joints + i]) / (before + last + elapsed)
        if bounds[2, i] != 0.0 and not fabs(j) <= rules[6] * bounds[2, i]:
            return _refuse(memory, JERK, i, j, rules[6] * bounds[2, i])
    return ACCEPTED


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _commit(
    command: cython.const[cython.double][::1], measured: cython.const[cython.double][::1], elapsed: cython.double,
    bounds: cython.const[cython.double][:, ::1], rules: cython.const[cython.double][::1],
    memory: cython.double[::1],
) -> cython.int:
    """Remember an accepted command."""
    joints: cython.Py_ssize_t = command.shape[0]
    last: cython.double = memory[LAST] if memory[LAST] > 0.0 else elapsed
    slot: cython.Py_ssize_t = cython.cast(cython.Py_ssize_t, memory[HEAD])
    at: cython.Py_ssize_t = CELLS + ROWS * joints + slot * (1 + joints)
    timer: cython.Py_ssize_t
    i: cython.Py_ssize_t
    v: cython.double
    memory[at] = elapsed
    for i in range(joints):
        v = (command[i] - memory[CELLS + i]) / elapsed
        memory[at + 1 + i] = fabs(command[i] - memory[CELLS + i])
        memory[CELLS + 2 * joints + i] = (v - memory[CELLS + joints + i]) / (0.5 * (last + elapsed))
        memory[CELLS + joints + i] = v
        memory[CELLS + i] = command[i]
        timer = CELLS + 3 * joints + i
        if fabs(command[i] - measured[i]) <= bounds[5, i] + rules[4] * fabs(v):
            memory[timer] = -1.0
        else:
            memory[timer] = memory[timer] + elapsed if memory[timer] >= 0.0 else 0.0
    memory[BEFORE] = last
    memory[LAST] = elapsed
    memory[HEAD] = slot + 1 if slot + 1 < RING else 0
    if memory[COUNT] < RING:
        memory[COUNT] = memory[COUNT] + 1.0
    memory[JOINT] = -1.0
    return ACCEPTED


@cython.ccall
@cython.nogil
@cython.exceptval(check=False)
def check(
    command: cython.const[cython.double][::1], measured: cython.const[cython.double][::1],
    ages: cython.const[cython.double][::1], elapsed: cython.double, bounds: cython.const[cython.double][:, ::1],
    rules: cython.const[cython.double][::1], memory: cython.double[::1],
) -> cython.int:
    """Judge one command; ACCEPTED also remembers it as the one that was sent.

    command, measured: Shape (J,), [rad]. elapsed: [s] since the last accepted command, or since `arm`; a shorter
    time is stricter. The tables are described at the top. Returns a `Code`; `offender` and `offence` say more.
    """
    joints: cython.Py_ssize_t = command.shape[0]
    i: cython.Py_ssize_t
    code: cython.int
    moved: cython.double
    bound: cython.double
    if not _fits(command, measured, ages, bounds, rules, memory):
        if memory.shape[0] >= CELLS:
            memory[JOINT] = -1.0
        return MEMORY
    code = _finite(command, measured, bounds, rules, memory)
    if code != ACCEPTED:
        return code
    if not 0.0 < elapsed <= LARGEST:
        return _refuse(memory, ELAPSED, -1, elapsed, 0.0)
    for i in range(3):
        if not 0.0 <= ages[i] <= rules[i]:
            return _refuse(memory, OBSERVATION_AGE + cython.cast(cython.int, i), -1, ages[i], rules[i])
    for i in range(joints):
        if not bounds[3, i] <= command[i] <= bounds[4, i]:
            return _refuse(
                memory, POSITION, i, command[i], bounds[3, i] if command[i] < bounds[3, i] else bounds[4, i]
            )
    for i in range(joints):
        moved = fabs(command[i] - memory[CELLS + i])
        bound = bounds[5, i] + rules[4] * (moved / elapsed)
        if fabs(command[i] - measured[i]) <= bound:
            continue
        if memory[CELLS + 3 * joints + i] >= 0.0 and not memory[CELLS + 3 * joints + i] + elapsed <= rules[3]:
            return _refuse(memory, FOLLOWING, i, fabs(command[i] - measured[i]), bound)
    for i in range(joints):
        moved = fabs(command[i] - memory[CELLS + i])
        bound = rules[6] * bounds[0, i] * elapsed
        if not moved <= bound:
            return _refuse(memory, VELOCITY, i, moved / elapsed, rules[6] * bounds[0, i])
    code = _window(command, elapsed, bounds, rules, memory)
    if code == ACCEPTED:
        code = _smooth(command, elapsed, bounds, rules, memory)
    if code == ACCEPTED:
        code = _commit(command, measured, elapsed, bounds, rules, memory)
    return code


@cython.ccall
@cython.nogil
@cython.exceptval(check=False)
def run(
    commands: cython.const[cython.double][:, ::1], measured: cython.const[cython.double][:, ::1],
    ages: cython.const[cython.double][:, ::1], elapsed: cython.const[cython.double][::1],
    bounds: cython.const[cython.double][:, ::1], rules: cython.const[cython.double][::1],
    memory: cython.double[::1], codes: cython.int[::1],
) -> cython.int:
    """`check` through a whole sequence, for replays.

    commands, measured: Shape (N, J); ages: Shape (N, 3); elapsed: Shape (N,), [s] between the commands; a refused
    one's time is added to the next one's. codes: Shape (N,), the verdicts. Returns how many were refused; -1 when
    shapes disagree.
    """
    k: cython.Py_ssize_t
    ticks: cython.Py_ssize_t = elapsed.shape[0]
    since: cython.double = 0.0
    refused: cython.int = 0
    if commands.shape[0] != ticks or measured.shape[0] != ticks or ages.shape[0] != ticks or codes.shape[0] != ticks:
        return -1
    for k in range(ticks):
        since = since + elapsed[k]
        codes[k] = check(commands[k], measured[k], ages[k], since, bounds, rules, memory)
        if codes[k] == ACCEPTED:
            since = 0.0
        else:
            refused = refused + 1
    return refused
