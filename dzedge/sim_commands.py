"""`dzedge sim`: the simulated robot for any other program. As in `dzedge.cli`, nothing heavy is imported before it is
needed."""

import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

Robot = Annotated[Path | None, typer.Argument(metavar="[ROBOT.toml]", help="Robot file; none: the simulated robot.")]
Seed = Annotated[int | None, typer.Option(min=0, max=2**32 - 1, help="Of the simulated scene and all noise.")]
Protocol = Annotated[str | None, typer.Option(help="feetech or dynamixel; none: the robot file's driver.")]
Link = Annotated[Path | None, typer.Option(metavar="PATH", help="A stable name for the port, gone while unplugged.")]
Socket = Annotated[Path | None, typer.Option(metavar="PATH", help="Control socket; none: in a folder of its own.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]

HELP = """Serve the simulated robot to any other program, until Ctrl-C. Its servo bus is on a pseudo-terminal, its
frames in a file that can be mapped.

A robot file with real devices is served as its arm alone, in the middle of its range.

The control socket takes JSON, a document a line: {"fault": "silent", "servo": 3, "for_s": 2}; without "servo"
of the whole line; "at_s" later; "rate" for a share of the replies. Also {"get": "offset", "servo": 3},
{"set": "offset", "servo": 3, "value": 12}, {"push": 1500, "servo": 3}, {"state": true}, {"transcript": 100}.

Push moves a joint without torque to a present position, as a hand does; what has torque refuses it.

Faults of a servo: ok off silent stuck stall garbage wrong slow delayed intermittent flip drop truncate dup foreign
noise alert overheat undervolt brownout.

Faults of the line: ok off garbage wrong slow delayed intermittent flip drop truncate dup foreign noise echo master
brownout unplug replug.
"""


def sim(
    robot: Robot = None,
    seed: Seed = None,
    protocol: Protocol = None,
    link: Link = None,
    socket: Socket = None,
    as_json: Json = False,
) -> None:
    """See HELP."""
    from dzedge import console, simulator
    from dzedge import robot as robots

    config = robots.read(robot, seed=seed)

    def ready(served: dict[str, object]) -> None:
        if as_json:
            console.emit(served)
        else:
            console.tell(*(f"{key}: {value}" for key, value in served.items()), "Ctrl-C ends it")
        sys.stdout.flush()

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        simulator.serve(config, config.sim.seed, ready, protocol=protocol, link=link, socket=socket)
    except KeyboardInterrupt:
        raise typer.Exit(0) from None
