"""One line of the doctor: what was looked at, what was found, why it matters, what to do."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from rich.table import Table
from rich.text import Text

Status = Literal["ok", "warn", "fail"]
HEADER = "# Printed by `dzedge doctor --fix`, which ran none of it: read it, then run what you want."
STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red"}


@dataclass(frozen=True, slots=True)
class Check:
    """One line. advice: what to do, "" where nothing is to be done; why: it matters; fix: shell commands that do it,
    which the doctor only ever prints. A check that is ok and has an advice recommends it."""

    name: str
    status: Status
    found: str
    advice: str = ""
    why: str = ""
    fix: tuple[str, ...] = ()


def document(checks: list[Check]) -> dict[str, Any]:
    """The one JSON document of `dzedge doctor`."""
    return {
        "ok": all(check.status != "fail" for check in checks),
        "checks": [asdict(check) for check in checks],
        "fix": script(checks),
    }


def table(checks: list[Check]) -> Table:
    """The doctor's lines. Why something matters is said only of what is not well."""
    table = Table(box=None, show_header=False)
    for check in checks:
        lines = [check.found]
        if check.why and check.status != "ok":
            lines.append(check.why)
        if check.advice:
            lines.append(f"-> {check.advice}")
        table.add_row(Text(check.status, STYLES[check.status]), Text(check.name, "bold"), Text("\n".join(lines)))
    return table


def script(checks: Iterable[Check]) -> str:
    """The commands that would mend what is not well or are recommended, each once, with what it is for. Nothing runs
    them here."""
    lines, told = ["#!/bin/sh", HEADER], set()
    for check in checks:
        wanted = check.status != "ok" or check.advice
        new = [command for command in check.fix if command not in told and wanted]
        if new:
            told.update(new)
            lines += ["", f"# {'recommended, ' if check.status == 'ok' else ''}{check.name}: {check.found}", *new]
    if not told:
        lines += ["# Nothing found that a command could mend."]
    return "\n".join(lines) + "\n"
