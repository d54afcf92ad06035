"""What a person sees: the live status line on stderr, tables on stdout, or one JSON document instead."""

import fcntl
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import msgspec
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from dzedge.bundle import UNROLLED, Bundle, public_test_key
from dzedge.clock import NS, MonotonicClock, wall_stamp
from dzedge.errors import UsageError

if TYPE_CHECKING:  # doctor must be able to speak where the kernels are not built
    from dzedge.history import OnStatus, RunResult, Status

REFRESH_NS = NS // 10
STDERR = 2
STYLES = {"RUN": "bold white on green", "HOLD": "bold black on yellow", "FAULT": "bold white on red",
          "ESTOP": "bold white on red", "STOPPING": "bold white on magenta"}  # fmt: skip

VERDICTS = {True: ("success", "bold green"), False: ("not reached", "bold red"), None: ("ended", "bold")}


def emit(document: Mapping[str, Any]) -> None:
    """Exactly one JSON document on stdout."""
    sys.stdout.write(json.dumps(document, allow_nan=False) + "\n")


def tell(*renderables: Any) -> None:
    """Tables and sentences on stdout."""
    console = Console(markup=False, highlight=False)  # else parts of 160x120 look like hexadecimal numbers
    for renderable in renderables:
        console.print(renderable, soft_wrap=isinstance(renderable, str))  # a hash or a path is copied whole


@contextmanager
def live(names: Sequence[str], wanted: bool) -> "Iterator[OnStatus]":
    """A status line on stderr while inside, on a terminal only, log lines above it. names: of the joints."""
    if not wanted or not sys.stderr.isatty():
        yield lambda status: None
        return
    clock = MonotonicClock()
    shown_ns = 0
    with _caught_stderr() as (terminal, log):
        console = Console(file=terminal, markup=False, highlight=False)
        with Live(console=console, auto_refresh=False, transient=True) as display:

            def show(status: "Status") -> None:
                nonlocal shown_ns
                if clock.now_ns() - shown_ns >= REFRESH_NS:
                    shown_ns = clock.now_ns()
                    for line in log:
                        console.print(Text(readable(line), "dim"))
                    display.update(status_lines(status, names), refresh=True)

            try:
                yield show
            finally:
                for line in log:
                    console.print(Text(readable(line), "dim"))


@contextmanager
def _caught_stderr() -> Iterator[tuple[TextIO, TextIO]]:
    """(the terminal, what this process and its children write to stderr meanwhile).

    A file, not a pipe: a stage that outlives this process must still be able to write.
    """
    sys.stderr.flush()
    terminal, caught = os.dup(STDERR), os.memfd_create("dzedge-log")
    fcntl.fcntl(caught, fcntl.F_SETFL, os.O_APPEND)
    os.dup2(caught, STDERR)
    with open(terminal, "w") as out, open(f"/proc/self/fd/{caught}", encoding="utf-8") as log:
        try:
            yield out, log
        finally:
            sys.stderr.flush()
            os.dup2(terminal, STDERR)
            os.close(caught)


def readable(line: str) -> str:
    """A stage's log line for a person; anything else as it is."""
    try:
        fields = json.loads(line)
        stage, event = fields.pop("stage"), fields.pop("event")
    except (ValueError, TypeError, AttributeError, KeyError):
        return line.rstrip()
    return f"{stage}: {event} " + ", ".join(f"{key} {value}" for key, value in fields.items() if value != "")


def status_lines(status: "Status", names: Sequence[str]) -> Group:
    """Task, state, joints and stage latencies of a moment."""
    first = Text.assemble((f" {status.state} ", STYLES.get(status.state, "bold black on cyan")))
    first.append(f"  {status.task or 'waiting for a task'}", "bold")
    first.append(f"   {status.elapsed_s:.1f} s   {status.chunks} chunks")
    if status.distance is not None:
        first.append(f"   {100 * status.distance:.1f} cm to go")
    if status.cause:
        first.append(f"   {status.cause}", "yellow")
    joints = Text(" ", "cyan")
    for name, position in zip(names, status.joints.tolist(), strict=True):
        joints.append(f" {name} ", "dim")
        joints.append(f"{position:+.2f} ")
    stages = Text(" ", "blue")
    process = ""
    for name, timing in status.stages.items():
        if "p50_ms" not in timing:
            continue
        before, _, stage = name.rpartition(".")
        if before != process:
            process = before
            stages.append(f" {process} ", "bold")
        stages.append(f" {stage} ", "dim")
        stages.append(f"{timing['p50_ms']:.2g}")
    stages.append("  ms", "dim")
    return Group(first, joints, stages)


@contextmanager
def progress(words: str, total: int) -> Iterator[Any]:
    """A bar on stderr, on a terminal only; yields `advance(words="")`, whose words stand at its end."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    bars = BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    columns = TextColumn(words), *bars, TextColumn("{task.fields[so]}")
    console = Console(stderr=True, markup=False)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(words, total=total, so="")
        yield lambda so="": bar.update(task, advance=1, so=so)


def run_report(result: "RunResult", files: Sequence[str]) -> Group:
    """The end of a run, for a person."""
    verdict = Text(*VERDICTS[result.success])
    line = Text.assemble(verdict, f"  {result.task}", style="")
    refused = ", ".join(f"{count} {code}" for code, count in result.refused.items() if count) or "none"
    facts = Text(
        f"seed {result.seed}, {result.duration_s:.1f} s, {result.chunks} chunks, refused: {refused}, "
        f"restarts: {result.restarts}"
    )
    parts: list[Any] = [line, facts]
    if result.wire_sha256:
        parts.append(Text(f"wire {result.wire_sha256}", "dim"))
    if result.stages:
        parts.append(stage_table(result.stages))
    return Group(*parts, *(Text(f"wrote {file}") for file in files))


def stage_table(stages: Mapping[str, Mapping[str, float]]) -> Table:
    """Percentiles of every stage."""
    timed = {name: row for name, row in stages.items() if "p50_ms" in row}
    columns = list(dict.fromkeys(key for row in timed.values() for key in row))
    table = Table("stage", box=None, header_style="bold")
    for key in columns:
        table.add_column(key.replace("_ms", " [ms]"), justify="right")
    for name, row in timed.items():
        cells = (f"{row[key]:.0f}" if key == "count" else f"{row[key]:.3f}" for key in columns)
        table.add_row(name, *cells)
    return table


def bundle_facts(bundle: Bundle) -> dict[str, Any]:
    """Who signed a verified bundle, and what it is."""
    section = bundle.manifest.dzedge
    test = bundle.key.raw == public_test_key().raw
    return {
        "model": section.model_id,
        "version": section.version,
        "signed_by": bundle.key.name + (" (test key: trusted for a simulated arm only)" if test else ""),
        "manifest_sha256": bundle.digest,
        "files": len(section.files),
        "bytes": sum(entry.size for entry in section.files if entry.path != UNROLLED),
        **{f"{UNROLLED}_bytes": entry.size for entry in section.files if entry.path == UNROLLED},
    }


def bundle_manifest(bundle: Bundle) -> dict[str, Any]:
    """The manifest as plain values."""
    plain = msgspec.to_builtins(bundle.manifest)
    assert isinstance(plain, dict)
    return plain


def graph_table(bundle: Bundle) -> Table:
    """Graphs and the files that hold them."""
    sizes = {entry.path: entry.size for entry in bundle.manifest.dzedge.files}
    table = Table("graph", "precision", "for", "file", "size [kB]", box=None, header_style="bold")
    table.columns[4].justify = "right"
    for name, graph in bundle.manifest.dzedge.graphs.items():
        for variant in graph.variants:
            row = name, variant.precision, f"{variant.ep} {variant.isa}", variant.file
            table.add_row(*row, f"{sizes[variant.file] / 1000:.0f}")
    return table


def make_folder(folder: Path | None) -> Path:
    """The folder of a run's summary, made before anything moves; None: a new `runs/<time>`. Raises UsageError."""
    out = folder if folder is not None else Path("runs") / wall_stamp()
    try:
        if folder is None:
            out.parent.mkdir(exist_ok=True)
            tries = (out, *(out.with_name(f"{out.name}-{i}") for i in range(2, 100)))
            out = next(name for name in tries if not name.exists())
        out.mkdir(parents=True, exist_ok=True)
        probe = out / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UsageError(f"{out}: cannot be written: {error.strerror}; choose another --out") from error
    return out
