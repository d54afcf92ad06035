"""supervisor: starts the processes of a robot, watches them, restarts what died, ends them all.

    sim (simulated robots only) ─► capture ─► inference ─► control

Control outlives the others. When it is itself restarted, the request goes to HOLD: a restarted control finds an arm
that still holds its last goal, holds it too, and never moves by itself.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from dzedge import stage
from dzedge.bundle import Bundle
from dzedge.clock import NS, MonotonicClock
from dzedge.config import RobotConfig
from dzedge.errors import DeviceError, DzedgeError, PolicyError, SafetyError, UsageError
from dzedge.history import History, OnStatus, RunResult, Status, stage_timings
from dzedge.inference_loop import REFUSED
from dzedge.kernels.tick import Cause, Request, State
from dzedge.mailboxes import STAGES, make_mailboxes
from dzedge.safety import CAUSES, STATES

POLL_NS = NS // 20
SILENT_NS = {"capture": 5 * NS, "inference": 5 * NS, "control": NS, "sim": 5 * NS}
"""A stage whose heartbeat is older is killed and restarted."""
PAUSE_NS = NS // 2
"""A supervisor that was itself not running for this long judges nobody by a heartbeat."""
STARTING_NS = 30 * NS
"""Time to the first heartbeat: a large model on a small board takes its time."""
RESTARTS_PER_MINUTE = 5
"""A stage that dies more often than this ends the run: something is broken that a restart does not mend."""
STOP_NS = 5 * NS
"""Time for a controlled stop before a stage is killed."""
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
"""Signals that end a run by a controlled stop."""


@dataclass
class Child:
    """One process of a robot. died_ns: when it was last found dead, for the restart budget."""

    name: str
    process: subprocess.Popen[bytes]
    started_ns: int
    died_ns: list[int] = field(default_factory=list)


class Supervisor:
    """The processes of one robot and the memory between them.

    Use as a context manager: leaving it ends every process and closes every file, whatever happened inside.
    Raises what the stages could not: DeviceError and its kin, with the message of the stage that failed.
    """

    def __init__(self, config: RobotConfig, bundle: Bundle) -> None:
        self.config = config
        self.section = bundle.manifest.dzedge
        self.clock = MonotonicClock()
        self.mailboxes = make_mailboxes(config, bundle)
        self.board = self.mailboxes.board
        self.children: dict[str, Child] = {}
        self.restarts = 0
        self.scene = 0
        self.watched_ns = 0

    def __enter__(self) -> "Supervisor":
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()
        self.mailboxes.close()

    # ---------------------------------------------------------------- processes

    def start(self) -> None:
        """Start every stage; returns at once, they come up side by side."""
        names = ["capture", "inference", "control"]
        if self.config.arm.simulated:
            names.insert(0, "sim")
        autostart = self.config.robot.autostart == "run"
        self.board.request = Request.REQUEST_RUN if autostart else Request.REQUEST_HOLD
        for name in names:
            self._spawn(name)

    def _spawn(self, name: str) -> None:
        index = STAGES.index(name)
        extra = {
            "parent": os.getpid(),
            "starts": self.board.stage(index)[4],
            "dt_ns": self.section.dt_ns,
        }
        environment = os.environ | stage.environment(self.config, self.mailboxes, extra)
        environment["OMP_NUM_THREADS"] = "1"
        process = subprocess.Popen(
            [sys.executable, "-I", "-m", f"dzedge.{name}_loop"],
            env=environment,
            pass_fds=self.mailboxes.descriptors,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            start_new_session=True,  # what a terminal sends (Ctrl-C, Ctrl-Z, hang-up) is the supervisor's to handle
        )
        self.board.enter(index, process.pid)
        now_ns = self.clock.now_ns()
        if name in self.children:
            self.children[name].process = process
            self.children[name].started_ns = now_ns
        else:
            self.children[name] = Child(name, process, now_ns)

    def watch(self) -> None:
        """Find stages that died or fell silent, and restart them. Raises when one cannot be kept alive."""
        now_ns = self.clock.now_ns()
        paused, self.watched_ns = now_ns - self.watched_ns > PAUSE_NS, now_ns
        if paused and not any(child.process.poll() for child in self.children.values()):
            return  # whoever stopped this process may have stopped the others too: give them time to beat
        for child in self.children.values():
            beats, beat_ns, *_ = self.board.stage(STAGES.index(child.name))
            if child.process.poll() is None:
                limit_ns = SILENT_NS[child.name] if beats else STARTING_NS
                if now_ns - (beat_ns if beats else child.started_ns) < limit_ns:
                    continue
                stage.log("supervisor", "silent", child=child.name)
                child.process.kill()
                child.process.wait()
            if not self.board.stopping:
                self._restart(child, now_ns)
        self._check()

    def _check(self) -> None:
        """Raise what the stages report without dying of it: a latched FAULT, words that cannot be embedded."""
        report = self.mailboxes.latest_report()
        if report.get("state") == State.FAULT.name:
            known = {key: report.get(key) for key in ("check", "joint", "value", "bound", "ailment")}
            details = ", ".join(f"{key} {value}" for key, value in known.items() if value not in (None, ""))
            by_device = report["cause"] in (CAUSES[Cause.CAUSE_BUS_SILENT], CAUSES[Cause.CAUSE_UNPLUGGED])
            kind = DeviceError if by_device else SafetyError
            raise kind(f"control: FAULT, {report['cause']}{': ' + details if details else ''}; the arm has stopped")
        if self.board.stage(STAGES.index("inference"))[2] == REFUSED:
            raise PolicyError(f"inference: {self.mailboxes.failure('inference')}")

    def _restart(self, child: Child, now_ns: int) -> None:
        code = child.process.returncode
        if code > 0:
            kinds: dict[int, type[DzedgeError]] = {kind.exit_code: kind for kind in DzedgeError.__subclasses__()}
            kinds[1] = DzedgeError
            message = self.mailboxes.failure(child.name) or f"ended with exit code {code}; see the log above"
            raise kinds.get(code, DzedgeError)(f"{child.name}: {message}")
        child.died_ns = [t for t in child.died_ns if now_ns - t < 60 * NS] + [now_ns]
        if len(child.died_ns) > RESTARTS_PER_MINUTE:
            raise DeviceError(
                f"{child.name} died {len(child.died_ns)} times in a minute (last by {_signal_name(code)}), "
                f"allowed {RESTARTS_PER_MINUTE}: look at the log above"
            )
        if child.name == "sim":
            raise DeviceError(f"the simulated robot is gone (by {_signal_name(code)}); start it again")
        if child.name == "control":
            self.board.request = Request.REQUEST_HOLD
        self.restarts += 1
        stage.log("supervisor", "restart", child=child.name, ended_by=_signal_name(code))
        self._spawn(child.name)

    def stop(self, category: int = stage.STOP_AND_HOLD) -> None:
        """Bring the arm to its controlled stop and end every stage; kills what has not ended in time."""
        self.board.stopping = category
        deadline_ns = self.clock.now_ns() + STOP_NS
        for child in sorted(self.children.values(), key=lambda child: child.name == "sim"):
            if child.name == "sim":
                self.board.over = 1
            try:
                child.process.wait(max(0.05, (deadline_ns - self.clock.now_ns()) / NS))
            except subprocess.TimeoutExpired:
                stage.log("supervisor", "killed", child=child.name)
                child.process.kill()
                child.process.wait()
        self.children = {}

    # ---------------------------------------------------------------- tasks

    def new_scene(self, seed: int) -> None:
        """Tell the simulator to lay out the scene of `seed`; the arm stays where it is."""
        self.scene += 1
        self.mailboxes.scenes.write(bytes(8), (self.scene, seed))

    def verdict(self) -> tuple[str, bool, float | None] | None:
        """(the scene's default instruction, success of the running task, distance [m]) of the present scene."""
        record = self.mailboxes.verdicts.read()
        if record is None or record[2][0] != self.scene:
            return None
        _, text, (_, length, epoch, success, micrometres, _) = record
        instruction = bytes(text[:length]).decode()
        current = epoch == self.board.epoch
        return instruction, bool(success) and current, micrometres * 1e-6 if micrometres >= 0 else None

    def status(self, started_ns: int) -> Status:
        """The present moment, for a status line."""
        newest = self.mailboxes.states.newest()
        state = newest[2] if newest else 0
        joints = newest[5] if newest else np.zeros(len(self.config.arm.joints))
        verdict = self.verdict()
        return Status(
            task=self.board.instruction,
            state=STATES[state],
            cause=self.mailboxes.latest_report().get("cause", ""),
            elapsed_s=(self.clock.now_ns() - started_ns) / NS,
            joints=joints,
            chunks=self.mailboxes.chunks.count,
            distance=verdict[2] if verdict else None,
            stages=stage_timings(self.mailboxes),
        )


def run_robot(
    config: RobotConfig,
    bundle: Bundle,
    *,
    task: str | None,
    seed: int,
    duration_s: float | None,
    on_status: OnStatus,
) -> RunResult:
    """Run a robot until its task succeeds or times out; with `duration_s`, tasks in new scenes until then.

    SIGINT, SIGTERM, SIGHUP and SIGQUIT end it early by a controlled stop. Raises DzedgeError.
    """
    if task is None and config.task.instruction is None and not config.arm.simulated:
        raise UsageError(f"{config.robot.name} has nothing to do: give --task, or task.instruction in its file")
    history = History()
    with _signals() as interrupted, Supervisor(config, bundle) as robot:
        robot.start()
        if config.arm.simulated:
            robot.new_scene(seed)
        started_ns = robot.clock.now_ns()
        episodes = Episodes(robot, task, seed, duration_s)
        while not interrupted and not robot.board.stopping:
            robot.clock.sleep_until_ns(robot.clock.now_ns() + POLL_NS)
            robot.watch()
            history.collect(robot.mailboxes)
            on_status(robot.status(started_ns))
            if episodes.step(robot.clock.now_ns()):
                break
        robot.stop()
        history.collect(robot.mailboxes)
        return RunResult(
            task=episodes.title,
            success=episodes.success(bool(interrupted)),
            seed=seed,
            duration_s=(robot.clock.now_ns() - started_ns) / NS,
            chunks=robot.mailboxes.chunks.count,
            refused=robot.mailboxes.latest_report().get("refused", {}),
            restarts=robot.restarts,
            wire_sha256="",
            stages=stage_timings(robot.mailboxes),
            history=history,
        )


class Episodes:
    """One task after the other, each until success or its time-out; without `duration_s` only one."""

    def __init__(self, robot: Supervisor, task: str | None, seed: int, duration_s: float | None) -> None:
        self.robot, self.task, self.seed = robot, task, seed
        self.limit_ns = None if duration_s is None else int(duration_s * NS)
        self.timeout_ns = int(robot.config.task.timeout_s * NS)
        self.begun_ns = robot.clock.now_ns()
        self.task_ns = 0
        self.moving_ns = 0
        self.played = self.succeeded = 0

    def step(self, now_ns: int) -> bool:
        """Look at the running task, begin the next; returns whether all is over."""
        if self.limit_ns is not None and now_ns - self.begun_ns >= self.limit_ns:
            return True
        if self.task_ns == 0:
            self._begin(now_ns)
            return False
        newest = self.robot.mailboxes.states.newest()
        if self.moving_ns == 0 and newest is not None and newest[2] == State.RUN:
            self.moving_ns = now_ns
        verdict = self.robot.verdict()
        done = verdict is not None and verdict[1]
        # an arm that is to be held has no time in which to fail; one that holds because it must has
        waiting = self.moving_ns == 0 and self.robot.config.robot.autostart == "hold"
        if not done and (waiting or now_ns - (self.moving_ns or self.task_ns) < self.timeout_ns):
            return False
        self.played += 1
        self.succeeded += done
        self.task_ns = self.moving_ns = 0
        if self.limit_ns is None:
            return True
        if self.robot.config.arm.simulated:
            self.robot.new_scene(self.seed + self.played)
        return False

    @property
    def title(self) -> str:
        """What was asked: the task, or how many of how many."""
        if self.limit_ns is None or self.played == 0:
            return self.robot.board.instruction
        return f"{self.succeeded} of {self.played} tasks"

    def success(self, interrupted: bool) -> bool | None:
        """Of a simulated robot: whether every task that was finished or timed out was done, and the arm was free to go
        on. None where nobody can judge: a real arm that moved, or a run that was interrupted in its first task."""
        config = self.robot.config
        if not config.arm.simulated:
            return None if self.played or self.moving_ns else False
        if interrupted and self.played == 0:
            return None
        held = config.robot.autostart == "run" and self.robot.board.request == Request.REQUEST_HOLD
        return 0 < self.played == self.succeeded and not held

    def _begin(self, now_ns: int) -> None:
        text = self.task or _default_task(self.robot, self.robot.config)
        if text is not None:
            self.robot.board.set_task(text, now_ns)
            self.task_ns = now_ns
        elif now_ns - self.begun_ns > STARTING_NS:
            raise DeviceError(f"the simulated scene gave no task in {STARTING_NS // NS} s; give one with --task")


def _default_task(robot: Supervisor, config: RobotConfig) -> str | None:
    """What to do when nobody asked: the robot file's instruction, or else what the simulated scene offers."""
    if config.task.instruction is not None:
        return config.task.instruction
    verdict = robot.verdict()
    return verdict[0] if verdict else None


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Signals that ask for the end are collected in the list instead of raised."""
    caught: list[int] = []

    def note(signum: int, frame: object) -> None:
        caught.append(signum)

    old = {number: signal.signal(number, note) for number in ENDING}
    try:
        yield caught
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def _signal_name(code: int) -> str:
    return f"exit code {code}" if code >= 0 else signal.Signals(-code).name
