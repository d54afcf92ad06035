"""What every process of a robot does before and after its own work: memory, signals, errors, manners.

The supervisor starts a stage as `python -I -m dzedge.NAME_loop` with the robot's configuration, the memory files
and the control port in its environment; `main` unpacks them.
"""

import json
import os
import select
import signal
from collections.abc import Callable, Mapping

import msgspec

from dzedge import realtime
from dzedge.config import RobotConfig
from dzedge.errors import ConfigError, DzedgeError
from dzedge.mailboxes import Mailboxes, inherited

ROBOT = "DZEDGE_ROBOT"
"""The robot's configuration as JSON, overrides of the command line included."""
SHAPE = "DZEDGE_SHAPE"
"""`horizon,latents` of the policy."""
EXTRA = "DZEDGE_EXTRA"
"""JSON object with what only one stage needs."""
STDERR = 2
STOP_OFF_NOW, STOP_THEN_OFF, STOP_AND_HOLD = 1, 2, 3
"""`board.stopping`: stop category (IEC 60204-1) 0, 1, 2, plus one."""


class Stage:
    """One process of a robot. config: the robot; mailboxes: its shared memory; extra: what only this stage needs."""

    def __init__(self, name: str, environment: Mapping[str, str]) -> None:
        self.name = name
        self.config = msgspec.json.decode(environment[ROBOT], type=RobotConfig)
        horizon, latents = (int(n) for n in environment[SHAPE].split(","))
        self.mailboxes = Mailboxes(self.config, horizon, latents, inherited(environment))
        self.extra: dict[str, object] = json.loads(environment.get(EXTRA, "{}"))
        self.granted: realtime.Granted | None = None

    def fail(self, error: DzedgeError) -> None:
        """Say what went wrong: to the supervisor, and in the log."""
        self.mailboxes.set_failure(self.name, str(error))
        log(self.name, "error", error=type(error).__name__, message=str(error), exit_code=error.exit_code)

    def realtime(self, priority: int, lock_memory: bool) -> None:
        """Claim a real-time priority; refuses to go on without it where the robot file says so."""
        self.granted = realtime.claim(priority, lock_memory)
        if self.granted.refused:
            log(self.name, "realtime", refused=list(self.granted.refused))
            if self.config.realtime.require and priority:
                raise ConfigError(
                    f"realtime.require = true, but {'; '.join(self.granted.refused)}: grant it, or set it to false"
                )


def environment(config: RobotConfig, mailboxes: Mailboxes, extra: Mapping[str, object]) -> dict[str, str]:
    """Environment for a stage, the inverse of `Stage`."""
    shape = f"{mailboxes.chunks.horizon},{mailboxes.chunks.latents}"
    values = {ROBOT: msgspec.json.encode(config).decode(), SHAPE: shape, EXTRA: json.dumps(dict(extra))}
    return values | mailboxes.environment()


def log(stage: str, event: str, **fields: object) -> None:
    """One JSON line on stderr, or nothing: a reader that does not read must never hold up the arm."""
    line = json.dumps({"stage": stage, "event": event, **fields}).encode()
    try:
        if select.select([], [STDERR], [], 0)[1]:
            os.write(STDERR, line[: select.PIPE_BUF - 1] + b"\n")
    except OSError:
        return


def main(name: str, run: Callable[[Stage], None]) -> None:
    """Body of a stage's process: `run(stage)`, with the exit code of what it raises.

    SIGINT is the supervisor's to handle (a terminal sends it to the whole group); SIGTERM asks every loop to end
    by the board, so that the arm comes to its controlled stop whoever was told.
    """
    if ROBOT not in os.environ:
        raise SystemExit(f"dzedge {name}: this process is started by `dzedge run`")
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    stage = Stage(name, os.environ)
    board = stage.mailboxes.board

    def stop(signum: int, frame: object) -> None:
        if not board.stopping:
            board.stopping = STOP_AND_HOLD

    signal.signal(signal.SIGTERM, stop)
    realtime.die_with_parent(int(str(stage.extra["parent"])))
    try:
        run(stage)
    except DzedgeError as error:
        stage.fail(error)
        raise SystemExit(error.exit_code) from None

