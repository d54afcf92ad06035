"""precision.md from the documents beside it: `.venv-dev/bin/python docs/results/precision.py [NAME=FILE ...]`.

NAME=FILE takes in a document under a name: `export-FAMILY` is what `dzedge export --report` wrote; `closed-FAMILY-WAY`
what `dzedge evaluate --json` wrote of that precision. A table whose document is missing is not on the page.
"""

import json
import sys
from pathlib import Path
from typing import Any

from zeroshot import difference, percent, pooled, rows

from dzedge.export.card import COLUMNS, row

HERE = Path(__file__).parent
FOLDER = HERE / "precision"
SPLITS = ("seen", "semantic", "novel")
FAMILIES = {
    "wam": "World action model, version 8 of the bundle, `video_first(4,4)`",
    "wam_all": "The same, exported again in every precision, `--sensitivity u8s8,s8s8`",
    "flow_vla": "Flow VLA (pi0.5-like), `euler(4)`",
    "dual_vla": "Dual-system VLA (GR00T-N1-like), `euler(4)`", "token_vla": "Token VLA (RT-2-like), `greedy`",
}  # fmt: skip
CLOSED = {"fp32": "fp32", "int8 (vnni or neon)": "int8", "fp16": "fp16", "w8": "w8", "w4": "w4"}
"""Ways that are played in closed loop, and the name in their document's name."""
SHOWN = 8
"""Layers in a table of sensitivities."""
NOT_SHOWN = "not shown: no document yet"
Document = dict[str, Any]


def take_in(name: str, path: Path) -> None:
    """Keep a document; of an evaluation only settings, rates and its episodes' outcomes."""
    found = json.loads(path.read_text())
    if name.startswith("closed-"):
        [result] = found["results"]
        kept = ("seed", "task", "verb", "split", "success")
        result["episodes"] = [{key: episode[key] for key in kept} for episode in result["episodes"]]
        found = {"results": [result]}
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / f"{name}.json").write_text(json.dumps(found, separators=(",", ":")) + "\n")


def document(name: str) -> Document | None:
    """One document, or nothing where there is none."""
    path = FOLDER / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def closed(family: str, way: str) -> Document | None:
    """The evaluation of a way of running a family's bundle."""
    found = document(f"closed-{family}-{CLOSED[way]}") if way in CLOSED else None
    return None if found is None else found["results"][0]


def successes(entry: Document) -> tuple[int, int]:
    """Over all splits."""
    parts = [pooled([entry], split) for split in SPLITS]
    return sum(done for done, _ in parts), sum(n for _, n in parts)


def costs() -> list[str]:
    """A table a family: what each way of running its bundle costs."""
    lines: list[str] = []
    for family, title in FAMILIES.items():
        report = document(f"export-{family}")
        if report is None:
            continue
        table = []
        for name, cost in report["precisions"].items():
            entry = closed(family, name)
            table.append([*row(name, cost), "" if entry is None else percent(*successes(entry))])
        machine = report["machine"]
        lines += [f"### {title}", "", *rows(table, [*COLUMNS, "closed-loop success"])]
        lines += [
            f"{report['decisions']} decisions of the held-out dataset; {machine['isa']}, "
            f"onnxruntime {machine['onnxruntime']}, torch {machine['torch']}.", "",
        ]  # fmt: skip
    return lines or [NOT_SHOWN]


def graphs() -> list[str]:
    """Float32 graphs against torch: the worst output of each family."""
    table = []
    for family, title in FAMILIES.items():
        report = document(f"export-{family}")
        if report is not None:
            name, worst = max(report["parity"].items(), key=lambda item: item[1]["relative"])
            shares = f"{worst['relative']:.2g}", f"{worst['absolute']:.2g}"
            table.append([title, str(len(report["parity"])), name, *shares])
    return rows(table, ["", "outputs", "worst", "relative", "absolute"]) if table else [NOT_SHOWN]


def pairs() -> list[str]:
    """int8 minus fp32 over the same scenes."""
    table = []
    for family, title in FAMILIES.items():
        small, plain = closed(family, "int8 (vnni or neon)"), closed(family, "fp32")
        if small is not None and plain is not None:
            cells = [f"{difference(small, plain, split)}" for split in (*SPLITS, None)]
            table.append([title, *cells])
    return rows(table, ["int8 minus fp32, paired", *SPLITS, "all"]) if table else [NOT_SHOWN]


def samplers() -> list[str]:
    """How far each sampler is from the finest one of its family."""
    table = []
    for family, title in FAMILIES.items():
        report = document(f"export-{family}")
        if report is not None:
            table += [[title, f"`{name}`", f"{error:.3g}"] for name, error in report["sampler_errors"].items()]
    return rows(table, ["", "sampler", "rms to the finest [rad]"]) if table else [NOT_SHOWN]


def sensitivity() -> list[str]:
    """The layers that int8 hurts most, a table a family and form that was chosen by them."""
    lines: list[str] = []
    for family, title in FAMILIES.items():
        for form, found in (document(f"export-{family}") or {}).get("sensitivity", {}).items():
            worst, kept = found["layers"][:SHOWN], sum(layer["kept"] for layer in found["layers"])
            error, all_of_them = f"{found['error']:.2%}", f"{found['everything']:.2%} with all {len(found['layers'])}"
            lines += [
                f"{title}, {form}: {all_of_them} layers, {error} with the activations of {kept} in float (aimed at "
                f"{found['bound']:.2%}). Alone:", "",
                *rows(
                    [[layer["name"], layer["op"], " x ".join(map(str, layer["shape"])), f"{layer['error']:.2%}",
                      "yes" if layer["kept"] else ""] for layer in worst],
                    ["layer", "operator", "weights", "action error", "float activations"],
                ),
            ]  # fmt: skip
    return lines or [NOT_SHOWN]


def main() -> None:
    for argument in sys.argv[1:]:
        name, _, path = argument.partition("=")
        take_in(name, Path(path))
    page = (HERE / "precision.template.md").read_text()
    parts = {"costs": costs, "graphs": graphs, "pairs": pairs, "samplers": samplers, "sensitivity": sensitivity}
    for name, part in parts.items():
        page = page.replace(f"<!-- {name} -->", "\n".join(part()).rstrip())
    (HERE / "precision.md").write_text(page)


if __name__ == "__main__":
    main()
