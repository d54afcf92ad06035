"""Will it run on that board, and how fast at best: `dzedge export --plan BOARD [CHECKPOINT | --config NAME]`.

    python -m dzedge.export.plan orin-nano-8 --config 5B
    python -m dzedge.export.plan agx-orin-64 checkpoints/wam-0.safetensors --json

A chunk's least time is the sum over its passes of max(FLOPs / peak, bytes / bandwidth), and the frame encoder's FLOPs
at float16's peak. No stack reaches it: plan on two to three times as long (facts/dreamzero 7.3). Nothing is measured
here, and no weights are read.
"""

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from dzedge.errors import DzedgeError, UsageError
from dzedge.export import workload
from dzedge.export.advice import advice, digits, seconds
from dzedge.export.boards import BOARDS, GB, PRECISIONS, Board, board
from dzedge.export.flops import flops
from dzedge.export.roofline import Fit, fits
from dzedge.export.workload import EYES, NAMES, Workload

USUAL = (2, 3)
"""A stack's time by the least one."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a board makes of a model. weights: bytes of the trunk by precision; flops: of a chunk by graph; chunk,
    server: FLOPs of all of it, here and as the original server runs a request, and `ratio` between them; rows: bytes
    of the kept keys and values in float16; advice: sentences."""

    board: str
    model: str
    family: str
    sampler: str
    parameters: int
    weights: dict[str, int]
    flops: dict[str, int]
    chunk: int
    server: int
    ratio: float
    rows: dict[str, int]
    precisions: tuple[Fit, ...]
    advice: tuple[str, ...]


def plan(device: Board, model: Workload) -> Plan:
    """The plan of one model on one board."""
    found, chunk, server = fits(device, model), flops(model.chunk), flops(model.server)
    return Plan(
        board=device.name, model=model.name, family=model.family, sampler=model.sampler, parameters=model.parameters,
        weights={name: round(model.parameters * held.bits / 8) for name, held in PRECISIONS.items()},
        flops={name: run.part.flops * run.times for name, run in model.chunk.items()}, chunk=chunk, server=server,
        ratio=chunk / server, rows={"window": 2 * model.window, "context": 2 * model.context}, precisions=found,
        advice=advice(device, model, found),
    )  # fmt: skip


def amount(value: float, unit: str) -> str:
    """A figure with the prefix that fits: 7.15 TFLOP."""
    for prefix, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{digits(value / size)} {prefix}{unit}"
    return f"{digits(value)} {unit}"


def show(console: Console, device: Board, found: Plan) -> None:
    """The plan for people. least: a chunk's lower bound; usual: 2 to 3 times that; server: the lower bound of the
    original server's request."""
    console.print(f"{found.model} ({found.family}, {found.sampler}) on {device.title}", style="bold")
    facts = Table(box=None, show_header=False, pad_edge=False)
    facts.add_row("parameters", f"{found.parameters / 1e9:.3f} B" if found.parameters >= 1e8 else
                  f"{found.parameters / 1e6:.2f} M")  # fmt: skip
    facts.add_row("weights", ", ".join(f"{name} {amount(size, 'B')}" for name, size in found.weights.items()))
    parts = ", ".join(f"{name} {amount(count, 'FLOP')}" for name, count in found.flops.items())
    facts.add_row("a chunk", f"{amount(found.chunk, 'FLOP')}: {parts}")
    facts.add_row(
        "the original server", f"{amount(found.server, 'FLOP')} a request, {found.ratio:.1%} of which is needed here"
    )
    facts.add_row("kept rows", ", ".join(f"{name} {amount(size, 'B')}" for name, size in found.rows.items()))
    facts.add_row(
        "the board", f"{device.memory / GB:g} GB usable, {device.bandwidth / GB:g} GB/s, dense peaks "
        + ", ".join(f"{name} {amount(peak, 'FLOP/s')}" for name, peak in device.peaks.items()),
    )  # fmt: skip
    console.print(facts)
    console.print(_precisions(found))
    for sentence in found.advice:
        console.print(f"- {sentence}")


def _precisions(found: Plan) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("precision", "memory", "fits", "least", "usual", "waits for", "server"):
        table.add_column(name, justify="left" if name in ("precision", "fits", "waits for") else "right", no_wrap=True)
    for fit in found.precisions:
        low, high = (factor * fit.least_s for factor in USUAL)
        unit, scale = ("s", 1.0) if low >= 1.0 else ("ms", 1e3)
        usual = f"{digits(low * scale)} to {digits(high * scale)} {unit}"
        cells = (f"{fit.memory / GB:.2f} GB", "yes" if fit.fits else "no", seconds(fit.least_s), usual, fit.bound)
        table.add_row(fit.precision, *cells, seconds(fit.server_s), style="" if fit.fits else "dim")
    return table


def main(arguments: list[str] | None = None) -> None:
    """`dzedge export --plan`: arguments after `--plan`. Raises UsageError."""
    parser = argparse.ArgumentParser(
        prog="dzedge export --plan", description="Whether a model fits a board, and the least time of a chunk there."
    )
    parser.add_argument("board", choices=tuple(BOARDS), help="the computer")
    parser.add_argument("checkpoint", type=Path, nargs="?", help="of a world action model; its header is read")
    parser.add_argument("--config", help=f"instead of a checkpoint: {', '.join(NAMES)}")
    parser.add_argument("--steps", type=int, default=4, help="denoise steps of each stream, 1 to 99")
    parser.add_argument("--eye", default="", help=f"frame encoder of wan_joint: {', '.join(EYES)}; default: its own")
    parser.add_argument("--json", action="store_true", help="one JSON document")
    options = parser.parse_args(arguments)
    if not 1 <= options.steps <= 99:
        raise UsageError(f"--steps {options.steps}: must be 1 to 99")
    if (options.checkpoint is None) == (options.config is None):
        raise UsageError("name one of a checkpoint and --config NAME")
    if options.config is not None:
        model = workload.named(options.config, options.steps, options.eye)
    else:
        model = workload.checkpoint(options.checkpoint, options.steps, options.eye)
    device = board(options.board)
    found = plan(device, model)
    if options.json:
        sys.stdout.write(json.dumps(asdict(found) | {"source": device.source}) + "\n")
    else:
        show(Console(markup=False, highlight=False), device, found)


if __name__ == "__main__":
    try:
        main()
    except DzedgeError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(error.exit_code)
