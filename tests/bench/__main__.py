"""`make bench`: every bench_*.py in a process of its own, into build/bench.json and a table.

    python tests/bench              all; writes build/bench.json
    python tests/bench limiter bus  only bench_limiter.py and bench_bus.py; prints, writes nothing

A row is {id, value, unit, rival, ratio, bar, ok}; ratio = ours / rival, lower is better, bar = the highest that
passes. Exit code 1 when a benchmark could not run; a missed bar is reported, it is not an error of the run.
"""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

FOLDER = Path(__file__).resolve().parent
RESULTS = FOLDER.parents[1] / "build" / "bench.json"
KEYS = ("id", "value", "unit", "rival", "ratio", "bar", "ok")
MARK = "bench-rows "


def run_here(name: str) -> None:
    """Body of the child process: run one file, and write its rows on the last line that has the mark."""
    spec = importlib.util.spec_from_file_location(f"bench_{name}", FOLDER / f"bench_{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    sys.stdout.write(MARK + json.dumps(module.run()) + "\n")


def run(name: str) -> list[dict[str, object]] | None:
    """Rows of one file, None where it failed; its other output goes through to stderr."""
    done = subprocess.run(
        [sys.executable, str(Path(__file__).resolve()), "--here", name], stdout=subprocess.PIPE, text=True
    )
    lines = done.stdout.splitlines()
    rows = next((line for line in reversed(lines) if line.startswith(MARK)), None)
    if done.returncode or rows is None:
        return None
    return [{key: row.get(key) for key in KEYS} for row in json.loads(rows.removeprefix(MARK))]


def show(rows: list[dict[str, object]], failed: list[str]) -> None:
    """The table, missed bars in red."""
    table = Table(box=None, header_style="bold")
    for key in KEYS[:-1]:
        table.add_column(key, justify="left" if key in ("id", "unit") else "right")
    for row in rows:
        cells = (
            f"{cell:.4g}" if isinstance(cell, float) else "" if cell is None else str(cell) for cell in row.values()
        )
        table.add_row(*list(cells)[:-1], style="" if row["ok"] else "bold red")
    console = Console()
    console.print(table)
    missed = [str(row["id"]) for row in rows if not row["ok"]]
    console.print(f"{len(rows) - len(missed)} of {len(rows)} within their bar; missed: {', '.join(missed) or 'none'}")
    if failed:
        console.print(f"could not run: {', '.join(failed)}", style="bold red")


def main(wanted: list[str]) -> int:
    names = wanted or sorted(path.stem.removeprefix("bench_") for path in FOLDER.glob("bench_*.py"))
    rows: list[dict[str, object]] = []
    failed = []
    for name in names:
        sys.stderr.write(f"bench {name}\n")
        found = run(name)
        if found is None:
            failed.append(name)
        else:
            rows += found
    if not wanted:
        RESULTS.parent.mkdir(parents=True, exist_ok=True)
        RESULTS.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    show(rows, failed)
    return 1 if failed else 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--here"]:
        run_here(sys.argv[2])
    else:
        sys.exit(main(sys.argv[1:]))
