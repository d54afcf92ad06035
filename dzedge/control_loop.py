"""control: plays chunks on the arm, at absolute deadlines, whatever happens to the other processes.

Runs as `python -I -m dzedge.control_loop`, started by the supervisor. Python opens and activates the arm; from then
on every period is one `Tick` without the GIL, and Python only looks in between.
"""

from collections.abc import Callable

from dzedge.clock import NS, MonotonicClock
from dzedge.config import RobotConfig, Safety
from dzedge.errors import DeviceError
from dzedge.hardware import explainer, open_arm
from dzedge.hardware.arm import Arm, CyclePlan, StopCategory
from dzedge.hardware.slow_cycle import SlowCycle
from dzedge.kernels import gate
from dzedge.kernels.bus import BusCycle
from dzedge.kernels.tick import Cause, State, Tick
from dzedge.mailboxes import Mailboxes
from dzedge.safety import CAUSES, STATES, gate_tables, refusals
from dzedge.stage import STOP_AND_HOLD, STOP_THEN_OFF, Stage, log, main
from dzedge.trajectory import smoothing

SLICE = 10
"""Periods between two looks of Python at signals and the report."""
PORT_S = 10.0
"""How long the simulated arm's port may take to appear."""


def build_tick(
    config: RobotConfig, horizon: int, dt_ns: int, mailboxes: Mailboxes, plan: CyclePlan, bus: BusCycle,
    smooth: bool = True,
) -> Tick:  # fmt: skip
    """The control tick of a robot: frozen tables around one bus cycle, which is `plan`'s."""
    limits = plan.narrow(config.arm.limits())
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
        smoothing(horizon, limits, smooth),
        limits,
        bounds,
        rules,
        verdicts,
        dt_ns,
        NS // config.arm.rate_hz,
        config.safety.bus_fault_ms * 1_000_000,
        smooth,
    )


def run(stage: Stage) -> None:
    """Control the arm until the robot stops."""
    clock = MonotonicClock()
    config, mailboxes = stage.config, stage.mailboxes
    board = mailboxes.board
    # First of all: a robot that must not run without it must not be energised without it.
    stage.realtime(config.realtime.priority, lock_memory=True)
    arm = open_arm(config, _port(stage, clock))
    try:
        if board.stopping:
            return
        restarted = bool(stage.extra["starts"])
        horizon, dt_ns = mailboxes.chunks.horizon, int(str(stage.extra["dt_ns"]))
        tick, bus = activate(arm, config, horizon, dt_ns, mailboxes, clock.now_ns, hold=restarted)
        _play(stage, tick, bus, arm, clock)
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
    smooth: bool = True,
) -> tuple[Tick, BusCycle]:
    """Torque on without a jump; the tick that holds the arm from there, and its bus cycle.

    hold: in state HOLD, after a restart; smooth: False for experiments without smoothing and seam. Everything that can
    fail is built before torque comes on.
    """
    plan = arm.plan()
    if plan is None:
        raise DeviceError(f"the arm {config.arm.driver} has no cycle plan; use one that has")
    bus = plan.build()
    tick = build_tick(config, horizon, dt_ns, mailboxes, plan, bus, smooth)
    for ring in (mailboxes.states, mailboxes.trajectory):
        ring.adopt()
    pose = arm.activate().positions
    bus.seed(arm.goal_ticks, now_ns())
    (tick.hold if hold else tick.arm)(pose, now_ns())
    return tick, bus


def _play(stage: Stage, tick: Tick, bus: BusCycle, arm: Arm, clock: MonotonicClock) -> None:
    """Run the tick until the robot is told to stop and the arm has come to rest."""
    board, safety = stage.mailboxes.board, stage.config.safety
    explain, slow = explainer(stage.config.arm.driver), arm if isinstance(arm, SlowCycle) else None
    granted = stage.granted
    log("control", STATES[tick.state], priority=granted.priority if granted else 0)
    seen = (tick.state, tick.cause, tick.code)
    unwell = held_ns = 0
    while not (board.stopping and (tick.state == State.FAULT or (tick.state == State.STOPPING and tick.resting))):
        state = slow.run(tick, SLICE) if slow else tick.run(arm.fd, SLICE)
        ailment = ailing(bus, safety, explain)
        unwell = unwell + 1 if ailment else 0
        if unwell * SLICE * 1000 > safety.bus_fault_ms * stage.config.arm.rate_hz:
            tick.fault()
        if slow:  # the words of a device that failed; how long that may last, the tick decides
            ailment = slow.trouble
        stage.mailboxes.report(report(tick, slow.missed if slow else 0) | {"ailment": ailment})
        now = (tick.state, tick.cause, tick.code)
        if now != seen:
            why = explain_state(tick) | {"ailment": ailment}
            log("control", STATES[tick.state], **{key: value for key, value in why.items() if value not in ("", -1)})
            seen = now
        if state not in (State.HOLD, State.FAULT):
            held_ns = 0
        elif held_ns == 0:
            held_ns = clock.now_ns()
        elif clock.now_ns() - held_ns > safety.hold_timeout_s * NS and not board.stopping:
            log("control", "held too long", seconds=safety.hold_timeout_s, then="torque off")
            board.stopping = STOP_THEN_OFF


def ailing(bus: BusCycle, safety: Safety, explain: Callable[[int], str]) -> str:
    """What is wrong with the servos, in words; "" when all is well. What a cycle does not read is well. explain: an ERR
    byte in words."""
    for servo, (volts, heat, error) in enumerate(zip(bus.voltages, bus.temperatures, bus.errors, strict=True)):
        if error:
            return f"joint {servo} reports {explain(error)}"
        if volts < safety.voltage_low or volts > safety.voltage_high:
            return f"joint {servo} has {volts:.1f} V, allowed {safety.voltage_low} to {safety.voltage_high} V"
        if heat > safety.temperature:
            return f"joint {servo} has {heat:.0f} degrees Celsius, allowed {safety.temperature:.0f}"
    return ""


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


def explain_state(tick: Tick) -> dict[str, object]:
    """Why the arm is in its state; of a refusal of the gate also joint, value and bound."""
    why: dict[str, object] = {"cause": CAUSES[tick.cause]}
    if tick.cause == Cause.CAUSE_GATE:
        joint, value, bound = tick.offence
        why |= {"check": gate.Code(tick.code).name, "joint": joint, "value": round(value, 4), "bound": round(bound, 4)}
    return why


def report(tick: Tick, missed: int = 0) -> dict[str, object]:
    """Control's account of itself, for the supervisor. missed: periods, besides the tick's own."""
    counts = {"refused": refusals(tick), "missed": tick.missed + missed}
    return {"state": STATES[tick.state]} | counts | explain_state(tick)


if __name__ == "__main__":
    main("control", run)
