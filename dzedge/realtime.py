"""What a process asks of the kernel to be on time, and what it was given.

Nothing here fails quietly: `claim` returns what was granted, word by word, and the caller decides whether that is
enough (`realtime.require` of the robot file).
"""

import ctypes
import gc
import os
import signal
from dataclasses import dataclass

PR_SET_PDEATHSIG = 1
PR_SET_TIMERSLACK = 29
MCL_CURRENT, MCL_FUTURE = 1, 2
# Linux: mlockall and prctl, see mlockall(2), prctl(2).


@dataclass(frozen=True)
class Granted:
    """What the kernel granted. priority: SCHED_FIFO priority, 0 = ordinary; refused: reasons in words."""

    priority: int
    memory_locked: bool
    timer_slack: bool
    refused: tuple[str, ...]


def claim(priority: int, lock_memory: bool) -> Granted:
    """Ask for SCHED_FIFO `priority` (0: ordinary), 1 ns of timer slack, and, if `lock_memory`, for memory that is
    never paged out; freeze what the collector has seen so far and switch it off (a full collection takes 0.2 s)."""
    libc = ctypes.CDLL(None, use_errno=True)
    refused = []
    if priority:
        try:
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(priority))
        except OSError as error:
            refused.append(f"SCHED_FIFO {priority}: {error.strerror}; grant CAP_SYS_NICE or LimitRTPRIO")
            priority = 0
    locked = False
    if lock_memory:
        locked = libc.mlockall(MCL_CURRENT | MCL_FUTURE) == 0
        if not locked:
            reason = os.strerror(ctypes.get_errno())
            refused.append(f"mlockall: {reason}; grant CAP_IPC_LOCK or LimitMEMLOCK")
    slack = libc.prctl(PR_SET_TIMERSLACK, 1, 0, 0, 0) == 0
    if not slack:
        refused.append(f"timer slack: {os.strerror(ctypes.get_errno())}")
    gc.collect()
    gc.freeze()
    gc.disable()
    return Granted(priority, locked, slack, tuple(refused))


def die_with_parent(parent: int) -> None:
    """Get SIGTERM when the parent process ends; at once if it is not `parent` any more."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGTERM)
