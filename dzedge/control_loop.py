"""control: plays chunks on the arm, at absolute deadlines, whatever happens to the other processes.

Runs as `python -I -m dzedge.control_loop`, started by the supervisor. Python opens and activates the arm; from then
on every period is one `Tick` without the GIL, and Python only looks in between.
"""

from collections.abc import Callable

from dzedge.clock import NS, MonotonicClock
from dzedge.config import RobotConfig
from dzedge.errors import DeviceError
from dzedge.hardware import open_arm
from dzedge.hardware.arm import Arm, StopCategory
from dzedge.kernels.bus import BusCycle
from dzedge.kernels.tick import State, Tick
from dzedge.mailboxes import Mailboxes
from dzedge.safety import CAUSES, STATES, gate_tables, refusals
from dzedge.stage import STOP_AND_HOLD, Stage, log, main
from dzedge.trajectory import smoothing

SLICE = 10
"""Periods between two looks of Python at signals and the report."""
PORT_S = 10.0
"""How long the simulated arm's port may take to appear."""


def build_tick(config: RobotConfig, horizon: int, dt_ns: int, mailboxes: Mailboxes, bus: BusCycle) -> Tick:
    """The control tick of a robot: frozen tables around one bus cycle."""
    limits = config.arm.limits().copy()
    soft = config.safety.soft_margin
    joints = config.arm.joints
    for j, joint in enumerate(joints):
        margin = 0.0 if joint.kind == "gripper" else soft
        limits[3, j] += margin
        limits[4, j] -= margin
    bounds, rules, verdicts = gate_tables(config, horizon, dt_ns)
    return Tick(
        bus,
        mailboxes.chunks,
        mailboxes.states,
        mailboxes.trajectory,
        mailboxes.board,
        mailboxes.marks["control"],
        smoothing(horizon, limits),
        limits,
        bounds,
        rules,
        verdicts,
        dt_ns,
        NS // config.arm.rate_hz,
        config.safety.bus_fault_ms * 1_000_000,
    )


def run(stage: Stage) -> None:
    """Control the arm until the robot stops."""
    clock = MonotonicClock()
    config, mailboxes = stage.config, stage.mailboxes
    board = mailboxes.board
    arm = open_arm(config, _port(stage, clock))
    try:
        restarted = bool(stage.extra["starts"])
        horizon, dt_ns = int(str(stage.extra["horizon"])), int(str(stage.extra["dt_ns"]))
        tick = activate(arm, config, horizon, dt_ns, mailboxes, clock.now_ns, hold=restarted)
        stage.realtime(config.realtime.priority, lock_memory=True)
        _play(stage, tick, arm.fd)
        arm.deactivate(StopCategory((board.stopping or STOP_AND_HOLD) - 1))
    finally:
        arm.close()


def activate(
    arm: Arm,
    config: RobotConfig,
    horizon: int,
    dt_ns: int,
    mailboxes: Mailboxes,
    now_ns: Callable[[], int],
    hold: bool,
) -> Tick:
    """Torque on without a jump; the tick that holds the arm from there. hold: in state HOLD, after a restart."""
    plan = arm.plan()
    if plan is None:
        raise DeviceError(f"the arm {config.arm.driver} has no cycle plan; use one that has")
    bus = plan.build()
    tick = build_tick(config, horizon, dt_ns, mailboxes, bus)
    mailboxes.states.adopt()
    pose = arm.activate().positions
    bus.seed(arm.goal_ticks, now_ns())
    (tick.hold if hold else tick.arm)(pose, now_ns())
    return tick


def _play(stage: Stage, tick: Tick, fd: int) -> None:
    """Run the tick until the robot is told to stop and the arm has come to rest."""
    granted = stage.granted
    log("control", STATES[tick.state], priority=granted.priority if granted else 0)
    seen = (tick.state, tick.cause, tick.code)
    board = stage.mailboxes.board
    while not (board.stopping and (tick.state == State.FAULT or (tick.state == State.STOPPING and tick.resting))):
        tick.run(fd, SLICE)
        now = (tick.state, tick.cause, tick.code)
        stage.mailboxes.report(report(tick))
        if now != seen:
            why = {"cause": CAUSES[tick.cause]} if tick.cause else {}
            log("control", STATES[tick.state], **why, **({"code": tick.code} if tick.code else {}))
            seen = now


def _port(stage: Stage, clock: MonotonicClock) -> str:
    """The serial port: the robot file's, or the one that the simulator has made. Raises DeviceError."""
    if not stage.config.arm.simulated:
        return stage.config.arm.port
    deadline_ns = clock.now_ns() + int(PORT_S * NS)
    while not stage.mailboxes.port:
        if stage.mailboxes.board.stopping:
            raise SystemExit(0)
        if clock.now_ns() > deadline_ns:
            raise DeviceError(f"the simulated arm has no port after {PORT_S} s: see the sim process's messages above")
        clock.sleep_until_ns(clock.now_ns() + 5_000_000)
    return stage.mailboxes.port


def report(tick: Tick) -> dict[str, object]:
    """Control's account of itself, for the supervisor."""
    return {
        "state": STATES[tick.state],
        "cause": CAUSES[tick.cause],
        "code": tick.code,
        "refused": refusals(tick),
        "missed": tick.missed,
    }


if __name__ == "__main__":
    main("control", run)
