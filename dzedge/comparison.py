"""Two evaluations over the same scenes, episode by episode: what a setting, or another policy, is worth."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from dzedge.errors import UsageError
from dzedge.proportion import paired
from dzedge.suite import SPLITS

Entry = Mapping[str, Any]


def compare(first: Path, second: Path) -> list[dict[str, Any]]:
    """Pair two documents of `dzedge evaluate --json`. Raises UsageError where they do not hold the same scenes.

    Two single results are paired whatever their policies; of several, those of one policy. Each pairing gives
    {first, second: policy; differing: {setting: [first's, second's]}; and for each split, and "all": n, first, second
    (shares), difference (first minus second), low, high (95 %, `proportion.paired`), only_first, only_second}.
    """
    one, two = _results(first), _results(second)
    if len(one) == len(two) == 1:
        return [_pair(one[0], two[0], first, second)]
    named = {entry["policy"]: entry for entry in two}
    common = [entry for entry in one if entry["policy"] in named]
    if not common:
        raise UsageError(f"--pair {first} {second}: no policy is in both; evaluate the same ones")
    return [_pair(entry, named[entry["policy"]], first, second) for entry in common]


def _results(path: Path) -> list[Entry]:
    try:
        results = json.loads(path.read_text(encoding="utf-8"))["results"]
        for entry in results:
            _outcomes(entry)
            if not isinstance(entry["policy"], str) or not isinstance(entry["settings"], dict):
                raise ValueError("policy or settings")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"--pair {path}: no document of dzedge evaluate --json ({error}); write one") from error
    return list(results)


def _outcomes(entry: Entry) -> dict[tuple[int, str], tuple[str, bool]]:
    """(scene, task) -> (split, success)."""
    return {(e["seed"], e["task"]): (e["split"], bool(e["success"])) for e in entry["episodes"]}


def _pair(one: Entry, two: Entry, first: Path, second: Path) -> dict[str, Any]:
    mine, theirs = _outcomes(one), _outcomes(two)
    if mine.keys() != theirs.keys():
        missing = len(mine.keys() ^ theirs.keys())
        raise UsageError(
            f"--pair {first} {second}: {missing} scenes or tasks are in one only; give both the same --suite, "
            "--episodes and --seeds"
        )
    keys = sorted(one["settings"].keys() | two["settings"].keys())
    values = {key: [one["settings"].get(key), two["settings"].get(key)] for key in keys}
    out: dict[str, Any] = {
        "first": one["policy"],
        "second": two["policy"],
        "differing": {key: pair for key, pair in values.items() if pair[0] != pair[1]},
    }
    results = [(split, success, theirs[key][1]) for key, (split, success) in mine.items()]
    for split in SPLITS:
        of_split = [row[1:] for row in results if row[0] == split]
        if of_split:
            out[split] = _difference(of_split)
    return out | {"all": _difference([row[1:] for row in results])}


def _difference(pairs: Sequence[tuple[bool, bool]]) -> dict[str, Any]:
    n, counts = len(pairs), [pairs.count(kind) for kind in ((True, True), (True, False), (False, True), (False, False))]
    both, only_first, only_second, _ = counts
    low, high = paired(*counts)
    return {
        "n": n,
        "first": (both + only_first) / n,
        "second": (both + only_second) / n,
        "difference": (only_first - only_second) / n,
        "low": low,
        "high": high,
        "only_first": only_first,
        "only_second": only_second,
    }


def table(pairing: Entry) -> Table:
    """One pairing, by split."""
    rows = Table(title=f"{pairing['first']} minus {pairing['second']}", box=None, header_style="bold")
    for column in ("split", "scenes", "first", "second", "difference", "95 % interval"):
        rows.add_column(column, justify="left" if column == "split" else "right")
    for split in (*SPLITS, "all"):
        row = pairing.get(split)
        if row is not None:
            interval = f"{row['low']:+.3f} to {row['high']:+.3f}"
            shares = f"{row['first']:.3f}", f"{row['second']:.3f}", f"{row['difference']:+.3f}"
            rows.add_row(split, str(row["n"]), *shares, interval)
    differing = [f"{key} {a} against {b}" for key, (a, b) in pairing["differing"].items()]
    rows.caption = "; ".join(differing) or "same settings"
    return rows
