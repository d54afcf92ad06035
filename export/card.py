"""What a bundle says about itself in words: its README.md, with the table of what each precision costs."""

import json
from collections.abc import Mapping
from typing import Any

KINDS = {
    "wam": ("World Action Model", "video first, then the actions that make it so"),
    "flow_vla": ("VLA in the manner of pi0.5", "what is seen and said, then actions by flow matching"),
    "token_vla": ("VLA in the manner of RT-2", "what is seen and said, then actions as words of 256 bins"),
    "dual_vla": ("VLA in the manner of GR00T N1", "slow features of what is seen and said, then a fast action head"),
    "wan_joint": ("World Action Model of the coupled layout", "video and actions in one sequence, denoised together"),
}
EYES = {
    True: "Sim-supervised frame tokenizer (it learned positions from the simulator's labels; at run time it sees\n"
    "pixels only)",
    False: "Self-supervised frame tokenizer (a convolutional autoencoder of image patches, without labels)",
}
"""What the tokenizer is, by whether its tokens are things."""
COLUMNS = (
    "precision", "files [MB]", "step graphs / fp32", "largest graph difference", "action error", "mean [rad]",
    "worst [rad]", "imagined tip [mm]", "chunk time / fp32",
)  # fmt: skip


def card(
    family: str, report: Mapping[str, Any], notes: str, robot: str = "so101-sim", structured: bool = True
) -> str:  # fmt: skip
    """report: as `release.release` returns it; notes: a sentence of whoever exports; robot: its type; structured:
    whether tokens are things."""
    kind, how = KINDS.get(family, (f"policy of family {family}", "see the manifest"))
    whose = "the simulated SO-101" if robot == "so101-sim" else robot
    where = "Trained on one\nCPU core. " if structured else ""  # the recipe of things is the one for a CPU
    costs = report.get("precisions")
    return (
        f"# A small {kind} for {whose}\n\n"
        f"{EYES[structured]} and a trunk: {how}. {where}{notes}\n\n{costs_said(costs) if costs else ''}"
        f"```json\n{json.dumps(report, indent=1)}\n```\n"
    )


def costs_said(costs: Mapping[str, Mapping[str, Any]]) -> str:
    """The table of `judge.document`, and what its columns are."""
    return (
        "Whole chunks on ONNX Runtime against torch in float32, from the same noise, over held-out decisions. Action\n"
        "error: root mean square of the difference by that of the actions. Graph difference: of the worst output, by\n"
        "its largest value in torch. In float: files for other processors, rounded as those do.\n\n"
        f"{table(costs)}\n"
    )


def table(costs: Mapping[str, Mapping[str, Any]], **more: Mapping[str, str]) -> str:
    """In Markdown. more: further columns, each a cell by the name of a row."""
    head = [*COLUMNS, *(name.replace("_", " ") for name in more)]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for name, cost in costs.items():
        cells = [*row(name, cost), *(column.get(name, "") for column in more.values())]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def row(name: str, cost: Mapping[str, Any]) -> list[str]:
    """The cells of COLUMNS."""
    dream, ratio = cost["imagined_mm"], cost["chunk_ratio"]
    return [
        name, f"{cost['bytes'] / 1e6:.2f}", f"{cost['step_bytes']:.2f}", f"{cost['graph']:.2g} ({cost['worst_graph']})",
        f"{cost['action_share']:.2g}" if cost["action_share"] < 1e-4 else f"{100 * cost['action_share']:.2f} %",
        f"{cost['action_mean']:.2g}", f"{cost['worst_rad']:.2g} ({cost['worst_joint']})",
        "" if dream is None else f"{dream:.2g}", "" if ratio is None else f"{ratio:.2f}",
    ]  # fmt: skip
