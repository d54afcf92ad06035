"""zeroshot.md from the documents beside it: `.venv-dev/bin/python docs/results/zeroshot.py [NAME=FILE ...]`.

NAME=FILE takes in a document of `dzedge evaluate --json`, less what differs from run to run. The tables of success
and of the dream come out of such documents; a row whose document is missing is not on the page.
"""

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from dzedge.canvas import FAINT, INK, MUTED, Axes, Canvas
from dzedge.proportion import paired, wilson

HERE = Path(__file__).parent
FOLDER = HERE / "zeroshot"
SPLITS = ("seen", "semantic", "novel")
HEADLINE = (
    ("wam44", "**world action model**, as shipped: video_first(4,4)"),
    ("wam", "the same weights, one pass each: video_first(1,1)"),
    ("flow_vla", "VLA, pi0.5-like (flow-matching expert)"),
    ("dual_vla", "VLA, GR00T-N1-like (slow features, fast head)"),
    ("token_vla", "VLA, RT-2-like (256-bin tokens)"),
    ("pseudo_vla", "VLA, pi0.5-like, same videos pseudo-labelled"),
)
BASE = "wam_untold"
"""What ablations are held against: other scenes than the headline's."""
ABLATIONS = (
    ("wam_video0", "no videos without actions"),
    ("wam_video25", "25 % of the videos"),
    ("wam_video50", "50 % of the videos"),
    ("wam_hand", "a hand's videos instead of the arm's"),
    ("wam_auxiliary", "video as auxiliary loss only, flash(1)"),
    ("wam_told", "its video stream can be told actions: as shipped"),
)
COLOURS = ("#0b6bcb", "#7fb2e5", "#c2571a", "#4b8b3b", "#8a4fbf", "#b8912b")
CURVE = "![Novel motions over the amount of video](video_share.png)"
Document = dict[str, Any]


def take_in(name: str, path: Path) -> None:
    """Keep a document: settings, rates, latency, and of its episodes scene, task, verb, split and success."""
    [result] = json.loads(path.read_text())["results"]
    kept = ("seed", "task", "verb", "split", "success")
    if isinstance(result["episodes"], list):
        result["episodes"] = [{key: episode[key] for key in kept} for episode in result["episodes"]]
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / f"{name}.json").write_text(json.dumps({"results": [result]}, separators=(",", ":")) + "\n")


def document(name: str) -> Document | None:
    """One document, or nothing where there is none."""
    path = FOLDER / f"{name}.json"
    return json.loads(path.read_text())["results"][0] if path.exists() else None


def trained(name: str) -> list[Document]:
    """The documents of all training seeds of a recipe."""
    found = (document(f"{name}-{seed}") for seed in range(10))
    return [entry for entry in found if entry is not None]


def pooled(entries: Sequence[Document], split: str, verb: str | None = None) -> tuple[int, int]:
    """Successes and episodes over training seeds."""
    rows = [entry[split] if verb is None else entry[split]["verbs"][verb] for entry in entries]
    return round(sum(row["success"] * row["n"] for row in rows)), sum(row["n"] for row in rows)


def percent(successes: int, n: int) -> str:
    low, high = wilson(successes, n)
    return f"{successes} of {n}, {successes / n:.2f} [{low:.2f}, {high:.2f}]"


def outcomes(entry: Document, split: str | None) -> dict[tuple[int, str], bool]:
    return {(e["seed"], e["task"]): e["success"] for e in entry["episodes"] if split in (None, e["split"])}


def difference(one: Document, two: Document, split: str | None) -> str:
    """Paired over equal scenes, of one split or of all: one minus two."""
    first, second = outcomes(one, split), outcomes(two, split)
    keys = sorted(first.keys() & second.keys())
    table = [sum(first[k] is a and second[k] is b for k in keys) for a in (True, False) for b in (True, False)]
    low, high = paired(*table)
    return f"{(table[1] - table[2]) / len(keys):+.2f} [{low:+.2f}, {high:+.2f}]"


def rows(lines: Iterable[Sequence[str]], head: Sequence[str]) -> list[str]:
    """A table in Markdown."""
    return [
        "| " + " | ".join(head) + " |", "|" + "---|" * len(head),
        *("| " + " | ".join(line) + " |" for line in lines), "",
    ]  # fmt: skip


def headline() -> list[str]:
    lines = []
    for name, title in HEADLINE:
        entries = trained(name)
        if entries:
            lines.append([title, str(len(entries)), *(percent(*pooled(entries, split)) for split in SPLITS)])
    return rows(lines, ["policy", "training seeds", *SPLITS])


def by_verb() -> list[str]:
    have = [(name, trained(name)) for name, _ in HEADLINE if trained(name)]
    lines = []
    for split in SPLITS:
        for verb in have[0][1][0][split]["verbs"]:
            cells = [f"{done / n:.2f} ({n})" for done, n in (pooled(entries, split, verb) for _, entries in have)]
            lines.append([split, verb, *cells])
    return rows(lines, ["split", "verb", *(name for name, _ in have)])


def ablations() -> list[str]:
    [shipped] = trained(BASE)
    first = [percent(*pooled([shipped], split)) for split in SPLITS]
    lines = [["not told actions: what the others start from", *first, ""]]
    for name, title in ABLATIONS:
        entries = trained(name)
        if entries:
            cells = [percent(*pooled(entries, split)) for split in SPLITS]
            lines.append([title, *cells, difference(shipped, entries[0], "novel")])
    return rows(lines, ["training seed 0, video_first(1,1)", *SPLITS, "novel: the first minus this, paired"])


def settings() -> list[str]:
    """Everything played with the shipped bundle under other settings: files `set-*.json`."""
    lines = []
    for path in sorted(FOLDER.glob("set-*.json")):
        entry = document(path.stem)
        assert entry is not None
        lines.append([path.stem[4:], *(percent(*pooled([entry], split)) for split in SPLITS)])
    return rows(lines, ["setting", *SPLITS])


def pairs() -> list[str]:
    """The same 300 scenes at the measured latency, in a world that waits, and with 200 ms more."""
    base, lines = document("pair-async"), []
    for name, title in (("pair-sync", "synchronous: the world waits"), ("pair-delay-200", "200 ms more")):
        entry = document(name)
        if base is not None and entry is not None:
            cells = [percent(*pooled([entry], split)) for split in SPLITS]
            one, two = (base, entry) if name == "pair-sync" else (entry, base)
            lines.append([title, *cells, difference(one, two, None)])
    if base is not None:
        lines.insert(0, ["measured latency", *(percent(*pooled([base], split)) for split in SPLITS), ""])
    return rows(lines, ["300 paired scenes", *SPLITS, "the later minus the sooner, all splits"])


def crosscheck() -> list[str]:
    """The same scenes in the robot's own processes in real time, and in lockstep."""
    real, step = document("realtime"), document("lockstep")
    if real is None or step is None:
        return []
    titles = (("real time, four processes", real), ("lockstep", step))
    lines = [[title, *(percent(*pooled([entry], split)) for split in SPLITS)] for title, entry in titles]
    lines.append(["real time minus lockstep, all", difference(real, step, None), "", ""])
    return rows(lines, ["60 scenes", *SPLITS])


def foresight() -> list[str]:
    """The document of `--suite imagination`."""
    entry = document("imagination")
    if entry is None:
        return []
    lines = []
    for split in SPLITS:
        part = entry[split]
        gain, psnr, tip = part["gain_db"], part["psnr_db"], part["tip_mm"]
        inferred, acted = part["actions_r2"]["inferred"], part["actions_r2"]["acted"]
        lines.append([
            f"{split} ({part['moments']} moments)", *(f"{psnr[way]:.1f}" for way in ("copied", "inlay", "perfect")),
            f"{gain['value']:+.1f} [{gain['low']:+.1f}, {gain['high']:+.1f}]",
            *(" / ".join(f"{value:.0f}" for value in tip[way]) for way in ("imagined", "told", "copied")),
            f"{inferred['value']:.3f} [{inferred['low']:.3f}, {inferred['high']:.3f}]", f"{acted['value']:.3f}",
        ])  # fmt: skip
    head = [
        "", "copy [dB]", "dream [dB]", "true latents [dB]", "gain [dB]", "tip error at +0.2 / 0.4 / 0.6 / 0.8 s [mm]",
        "told the actions [mm]", "of copying [mm]", "R2 of actions from true video", "from the dream",
    ]  # fmt: skip
    return rows(lines, head)


PROBES = (
    ("forward", "forward: imagined when told the actions"),
    ("inverse", "inverse: actions from the true video, played again"),
    ("dream reach", "dream against its own actions played, reach"),
    ("dream circle", "dream against its own actions played, circle (novel)"),
    ("untold", "control: imagined, not told the actions"),
    ("copy", "wamprobe's control: frame copy"),
    ("reversed", "wamprobe's control: reversed action"),
)


def causal() -> list[str]:
    """The document of `yardstick_wamprobe --json`."""
    path = FOLDER / "wamprobe.json"
    if not path.exists():
        return []
    found = json.loads(path.read_text())["probes"]
    lines = []
    for name, title in PROBES:
        probe = found[name]
        shares = ("action_dependence", "counterfactual_direction_accuracy", "candidate_ranking_spearman")
        cells = {key: "{:.2f} [{:.2f}, {:.2f}]".format(*probe[key]) for key in shares}
        cells |= {key: f"{1e3 * probe[key][0]:.0f}" for key in ("state_fde", "top1_regret")}
        still = "{:.2f} [{:.2f}, {:.2f}]".format(*probe["noop_stability"]) if "noop_stability" in probe else ""
        lines.append([title, *(cells[key] for key in shares), still, cells["state_fde"], cells["top1_regret"]])
    head = ["probe", "dependence", "direction", "rank correlation", "standing still", "final error [mm]", "regret [mm]"]
    return rows(lines, head)


def bars() -> None:
    """Success by policy and split as a picture."""
    have = [(name, colour, trained(name)) for (name, _), colour in zip(HEADLINE, COLOURS, strict=True) if trained(name)]
    canvas = Canvas(1000, 420)
    canvas.text((40, 36), "Success in closed loop, release scenes", 20, INK, bold=True)
    axes = Axes(canvas, (70.0, 70.0, 980.0, 330.0), (0.0, 3.0), (0.0, 1.0))
    axes.grid(x_labels=False)
    width = 0.8 / len(have)
    for place, split in enumerate(SPLITS):
        canvas.text((axes.across(place + 0.5), 356), split, 15, INK, "mm")
        for index, (_, colour, entries) in enumerate(have):
            done, n = pooled(entries, split)
            left, right = (axes.across(place + 0.1 + (index + side) * width) for side in (0.08, 0.92))
            canvas.box(left, axes.up(done / n), right, axes.up(0.0), colour)
            low, high = wilson(done, n)
            canvas.line([((left + right) / 2, axes.up(low)), ((left + right) / 2, axes.up(high))], INK, 1.2)
    x = 70.0
    for name, colour, _ in have:
        canvas.box(x, 384, x + 14, 398, colour)
        canvas.text((x + 20, 391), name, 13, INK, "lm")
        x += 44 + canvas.text_width(name, 13)
    canvas.save(HERE / "zeroshot.png")


def curve() -> bool:
    """Novel motions over the amount of videos without actions. Returns whether there is enough to draw."""
    recipes = ((0, "wam_video0"), (25, "wam_video25"), (50, "wam_video50"), (100, BASE))
    points = [(share, trained(name)) for share, name in recipes if trained(name)]
    if len(points) < 3:
        return False
    canvas = Canvas(560, 360)
    canvas.text((40, 34), "Novel motions by amount of video", 17, INK, bold=True)
    axes = Axes(canvas, (70.0, 60.0, 530.0, 290.0), (-5.0, 105.0), (0.0, 1.0))
    axes.grid(x_labels=True)
    canvas.text((300, 336), "share of the videos without actions [%]", 13, MUTED, "mm")
    rates = []
    for share, entries in points:
        done, n = pooled(entries[:1], "novel")
        low, high = wilson(done, n)
        canvas.line([(axes.across(share), axes.up(low)), (axes.across(share), axes.up(high))], FAINT, 6)
        rates.append((axes.across(share), axes.up(done / n)))
    canvas.line(rates, COLOURS[0], 2.0)
    for at in rates:
        canvas.dot(at, 4, COLOURS[0])
    canvas.save(HERE / "video_share.png")
    return True


def main() -> None:
    for argument in sys.argv[1:]:
        name, _, path = argument.partition("=")
        take_in(name, Path(path))
    page = (HERE / "zeroshot.template.md").read_text()
    bars()
    parts = {
        "headline": headline, "by_verb": by_verb, "ablations": ablations, "settings": settings, "pairs": pairs,
        "crosscheck": crosscheck, "foresight": foresight, "causal": causal,
    }  # fmt: skip
    for name, part in parts.items():
        page = page.replace(f"<!-- {name} -->", "\n".join(part()).rstrip())
    page = page.replace("<!-- curve -->", CURVE if curve() else "")
    (HERE / "zeroshot.md").write_text(page)


if __name__ == "__main__":
    main()
