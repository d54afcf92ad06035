"""`dzedge arm ...`: find servos, set them up, calibrate, read, move, park and release an arm. As in `dzedge.cli`,
nothing heavy is imported before a command needs it.

Each command does without a terminal what it does with one: what would be asked is an option, and --json gives one
document. Exit codes: 1 a check failed, 2 usage, 3 a device, 4 refused for safety.
"""

from pathlib import Path
from typing import Annotated, Any

import typer

from dzedge.errors import UsageError

app = typer.Typer(help="Serial arms: find, set up, calibrate, read, move, park, release.", no_args_is_help=True)
Robot = Annotated[Path | None, typer.Argument(metavar="[ROBOT.toml]", help="Robot file; none: the simulated robot's.")]
Port = Annotated[str | None, typer.Option(metavar="PATH", help="Another serial port than the robot file's.")]
Speed = Annotated[float, typer.Option(min=0.01, max=1.0, help="Fraction of the robot file's velocities.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask: the arm is supported, or its servo connected.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]


@app.command()
def scan(
    port: Annotated[str | None, typer.Argument(metavar="[PORT]", help="Serial port; none: all there are.")] = None,
    protocol: Annotated[str, typer.Option(help="feetech, dynamixel or both.")] = "both",
    ids: Annotated[str, typer.Option(help="Ids to ask, e.g. 1-30 or 1,2,11-16; all: 0-252.")] = "1-30",
    baud: Annotated[list[int] | None, typer.Option(help="Rate to look at; may be repeated; none: all.")] = None,
    as_json: Json = False,
) -> None:
    """List the servos that answer, at all rates: id, model, firmware, rate, alerts. Exit code 1 where none does."""
    from dzedge import arm_guide, arm_view, console

    found, troubles = arm_guide.scan_ports(port, protocol, ids, baud)
    if as_json:
        console.emit(arm_view.scan_document(found, troubles))
    else:
        shown = [arm_view.scan_table(found, troubles)] if troubles or any(found.values()) else []
        console.tell(*shown, *([] if any(found.values()) else [arm_guide.NOTHING_FOUND]))
    raise typer.Exit(0 if any(found.values()) else 1)


@app.command()
def setup(
    robot: Robot = None,
    joint: Annotated[
        list[str] | None, typer.Option(help="Only this joint's servo; may be repeated; shadow servos: JOINT.shadow.")
    ] = None,
    port: Port = None,
    ids: Annotated[str, typer.Option(help="Where to look for the servo, e.g. 1-30.")] = "1-30",
    restart: Annotated[bool, typer.Option("--restart", help="Forget what was set up already.")] = False,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Give servos their ids and rates, one connected servo at a time; goes on where it was left. Without a terminal:
    one --joint and --yes for each servo."""
    from dzedge import arm_guide, console
    from dzedge.arm_session import Site

    document = arm_guide.SetUp(Site(robot, port), arm_guide.parse_ids(ids), yes, as_json).run(joint or [], restart)
    if as_json:
        console.emit(document)


@app.command()
def calibrate(
    robot: Robot = None,
    port: Port = None,
    step: Annotated[str, typer.Option(help="all, or one of middle, range, write.")] = "all",
    seconds: Annotated[
        float | None, typer.Option(min=0.1, max=3600, help="How long ranges are recorded; none: until Enter [s].")
    ] = None,
    full_turn: Annotated[
        list[str] | None, typer.Option(metavar="JOINT", help="Turns without end; none: wrist_roll; may be repeated.")
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="JSON", help="File to write; none: the robot file's.")] = None,
    check: Annotated[bool, typer.Option("--check", help="Only compare the file with the servos; 1: differs.")] = False,
    restore: Annotated[bool, typer.Option("--restore", help="Write the file into the servos.")] = False,
    restart: Annotated[bool, typer.Option("--restart", help="Forget a calibration that was not finished.")] = False,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Calibrate by hand: middle, then ranges, then registers and a LeRobot file; goes on where it was left. Torque goes
    off: support the arm."""
    from dzedge import arm_calibrate, console
    from dzedge.arm_session import Site

    guide = arm_calibrate.Calibration(Site(robot, port), yes, as_json)
    if check and restore:
        raise UsageError("--check and --restore: one of them")
    if check:
        document = guide.check()
    elif restore:
        document = guide.restore()
    else:
        document = guide.run(step, seconds, full_turn, out, restart)
    if as_json:
        console.emit(document)
    raise typer.Exit(0 if document["ok"] else 1)


@app.command()
def read(
    robot: Robot = None,
    port: Port = None,
    once: Annotated[bool, typer.Option("--once", help="One table, also on a terminal.")] = False,
    as_json: Json = False,
) -> None:
    """Show every joint: position, ticks, torque, load, volts, temperature, alerts; on a terminal live, until Ctrl-C.
    Writes nothing; exit code 1 where a servo is silent, has an alert, or stands outside its limits."""
    from dzedge import arm_guide, arm_view, console, prompt
    from dzedge.arm_session import Site

    site = Site(robot, port)
    gripper = arm_guide.gripper_name(site)
    if not once and not as_json and prompt.on_terminal():
        arm_guide.watch(site, gripper)
        return
    rows = arm_guide.read_once(site)
    if as_json:
        console.emit({"port": site.port, "joints": rows})
    else:
        console.tell(*arm_view.reading(rows, gripper, site.port))
    raise typer.Exit(1 if arm_view.wrong(rows) else 0)


@app.command(context_settings={"ignore_unknown_options": True})
def move(
    robot: Annotated[Path, typer.Argument(metavar="ROBOT.toml", help="Robot file; - : the simulated robot's.")],
    joint: Annotated[str, typer.Argument(metavar="JOINT")],
    position: Annotated[float, typer.Argument(metavar="POSITION", help="[rad]; a gripper: 0 closed to 1 open.")],
    port: Port = None,
    speed: Speed = 0.25,
    as_json: Json = False,
) -> None:
    """Move one joint slowly within its limits; torque comes on without a jump, and afterwards the arm holds."""
    from dzedge import arm_guide
    from dzedge.arm_session import Site

    site = Site(None if str(robot) == "-" else robot, port)
    arm_guide.drive(site, lambda pose: site.target(pose, joint, position), speed, release=False, as_json=as_json)


@app.command()
def park(
    robot: Robot = None,
    port: Port = None,
    speed: Speed = 0.25,
    hold: Annotated[bool, typer.Option("--hold", help="Leave torque on.")] = False,
    as_json: Json = False,
) -> None:
    """Move slowly to the robot file's arm.park, from the last command, then switch torque off."""
    from dzedge import arm_guide
    from dzedge.arm_session import Site

    site = Site(robot, port)
    pose = site.park_pose()
    arm_guide.drive(site, lambda held: pose, speed, release=not hold, as_json=as_json)


@app.command()
def release(robot: Robot = None, port: Port = None, yes: Yes = False, as_json: Json = False) -> None:
    """Switch torque off at once: the arm drops. Works whatever the calibration is and whichever servo is dead."""
    from dzedge import console, prompt
    from dzedge.arm_session import Site

    site = Site(robot, port)
    prompt.confirm("Torque goes off and the arm drops. Is it supported?", yes, as_json)
    site.release()
    document: dict[str, Any] = {"released": list(site.config.arm.names)}
    if as_json:
        console.emit(document)
    else:
        console.tell(f"torque is off: {', '.join(site.config.arm.names)}")
