"""What each graph of a bundle is on this machine: which file runs, by what, and how much memory it takes."""

import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from rich.table import Table

from dzedge import session as sessions
from dzedge.bundle import Bundle
from dzedge.clock import MonotonicClock
from dzedge.engine import Graph, Machine, variants


@dataclass(frozen=True, slots=True)
class Footprint:
    """One graph. provider: as in a robot file; operators: how many each provider of ONNX Runtime runs; elsewhere: those
    that the asked one does not; cached: loaded as this machine optimized it before; load_ms: until it could run;
    file_bytes: of the file, nearly all of it weights; buffer_bytes: of inputs and outputs; resident_bytes: what the
    process grew by with the graph loaded and run once (host memory).
    """

    graph: str
    file: str
    precision: str
    provider: str
    operators: dict[str, int]
    elsewhere: list[str]
    cached: bool
    load_ms: float
    file_bytes: int
    buffer_bytes: int
    resident_bytes: int


def chosen(bundle: Bundle, precision: str, machine: Machine) -> dict[str, dict[str, str]]:
    """Graph -> `file`, `precision`, `provider` that run here, without loading anything. Raises BundleError."""
    return {
        name: {"file": variant.file, "precision": variant.precision, "provider": machine.ep}
        for name, variant in variants(bundle, precision, machine).items()
    }


def measure(bundle: Bundle, precision: str, machine: Machine) -> list[Footprint]:
    """All graphs, each loaded anew and run once. Raises BundleError and PolicyError as `engine.Graph`."""
    clock, kept, found = MonotonicClock(), [], []
    chosen = variants(bundle, precision, machine)
    for name, variant in list(chosen.items())[:1]:  # what ONNX Runtime itself takes is not its first graph's
        sessions.fresh(name, bundle.read(variant.file), machine)
    sessions.forget()
    for name, variant in chosen.items():
        model = bundle.read(variant.file)
        before, begun_ns = _resident(), clock.now_ns()
        graph = Graph(name, model, machine)
        load_ms = (clock.now_ns() - begun_ns) / 1e6
        graph.run()
        resident = _resident() - before
        operators = sessions.placement(name, model, machine)
        kept.append(graph)  # its memory must not be given to the next one
        found.append(
            Footprint(
                name, variant.file, variant.precision, machine.ep, sessions.counts(operators),
                [str(one) for one in sessions.elsewhere(operators, machine)],
                sessions.session(name, model, machine).cached, round(load_ms, 3), len(model), graph.nbytes, resident,
            )
        )  # fmt: skip
    return found


def measure_apart(bundle: Bundle, precision: str, machine: Machine) -> list[Footprint]:
    """The same in a process of its own, whose memory nothing else has stirred."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(measure, bundle, precision, machine).result()


def table(footprints: list[Footprint]) -> Table:
    """One row a graph, and their sum."""
    table = Table("graph", "file", "operators", box=None, header_style="bold")
    for name in ("file [MB]", "buffers [kB]", "memory [MB]"):
        table.add_column(name, justify="right")
    for one in footprints:
        by = ", ".join(f"{provider.removesuffix('ExecutionProvider')}: {n}" for provider, n in one.operators.items())
        table.add_row(one.graph, one.file, by, *_sizes([one]))
    table.add_row("all", "", "", *_sizes(footprints), style="bold")
    return table


def _sizes(footprints: list[Footprint]) -> tuple[str, str, str]:
    def total(key: str) -> Any:
        return sum(getattr(one, key) for one in footprints)

    return (
        f"{total('file_bytes') / 1e6:.2f}",
        f"{total('buffer_bytes') / 1e3:.0f}",
        f"{total('resident_bytes') / 1e6:.1f}",
    )


def _resident() -> int:
    """Of this process [bytes]."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
