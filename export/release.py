"""A checkpoint -> a signed bundle: `dzedge export checkpoints/wam-0.safetensors --out bundles/wam-nano.dzp`.

Exports every graph, checks parity, calibrates and quantizes on real trajectories, measures what int8 costs in
radians and millimetres, packs and signs. What was measured travels in the bundle's README.md.
"""

import argparse
import json
import logging
import tempfile
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path

import torch

from dzedge.bundle import Variant
from dzedge.errors import UsageError
from dzedge.export import families, optim, quantize, tokenizers
from dzedge.export.model.moments import Moments
from dzedge.export.model.wam import Wam
from dzedge.export.onnx import export_all
from dzedge.export.package import Release, package
from dzedge.export.sampler import Graphs, cases_of
from dzedge.export.source import Source
from dzedge.export.train import TOKENIZER, parts
from dzedge.minisign import SecretKey

log = logging.getLogger("dzedge.export.release")

CALIBRATION_CASES, TEST_CASES = 64, 128
WORST_ACTION_SHARE = 0.08
"""Largest error of int8 that is shipped, relative to the actions' root mean square."""


class QuantizationError(UsageError):
    """int8 that costs more accuracy than is shipped."""

    exit_code = 1


def release(
    policy: Path, root: Path, out: Path, key: Path, version: int, created: str, notes: str = "", int8: bool = True
) -> dict[str, object]:
    """Builds the bundle `out` from a policy's checkpoint and the tokenizer beside it. root: a held-out dataset; int8:
    whether a world action model gets quantized graphs too. Returns the report.

    Raises ParityError or QuantizationError: then nothing is written.
    """
    tokenizer, source = tokenizers.load(policy.parent / TOKENIZER), Source.load(policy)
    family, model, moments, recipe = families.load(policy)
    secret = SecretKey.decode(key.read_text(), str(key))
    report: dict[str, object] = {
        "family": family, "recipe": recipe,
        "parameters": {
            "trunk": optim.count(model.parameters()), "encoder": optim.count(tokenizer.encoder.parameters()),
            "decoder": optim.count(tokenizer.decoder.parameters()),
        },
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        files = export_all(families.cut(model, tokenizer), Path(folder))
        variants = _quantized(files, model, moments, root, source, report) if int8 and family == "wam" else None
        report["bytes"] = {path.name: path.stat().st_size for path in sorted(Path(folder).iterdir())}
        about = Release(out.stem, version, family, max_prefix=recipe["max_prefix"])
        text = card(family, report, notes, source.robot, model.sizes.structured)
        found = package(
            out, model, tokenizer, moments, about, secret, created, variants, files, text, source
        )  # fmt: skip
    report["parity"] = {f"{p.graph}.{p.output}": p.difference for p in found}
    return report


def _quantized(
    files: dict[str, Path], model: Wam, moments: Moments, root: Path, source: Source, report: dict[str, object]
) -> dict[str, list[Variant]]:
    """Quantized files beside the float ones, and into the report what they cost. Raises QuantizationError."""
    reference = Graphs(files, model.sizes, moments)
    feeds = quantize.record(reference, cases_of(root, CALIBRATION_CASES, model.sizes, 1, source))
    variants = quantize.quantize_all(files, feeds)
    cases = cases_of(root, TEST_CASES, model.sizes, 2, source)
    board = Graphs(quantize.with_variant(files, "s8s8"), model.sizes, moments, qdq_off=True)
    narrow = Graphs(quantize.with_variant(files, "u8s8"), model.sizes, moments)
    both = {"s8s8": board, "u8s8": narrow}
    losses = {name: quantize.loss(reference, graphs, cases, moments) for name, graphs in both.items()}
    for name, measured in losses.items():
        if not measured.action_share <= WORST_ACTION_SHARE:
            raise QuantizationError(
                f"{name}: actions differ by {measured.action_share:.1%} of their size, allowed 0..8 %: "
                "calibrate on more cases or leave more in float"
            )
    report["int8_against_fp32"] = {name: asdict(measured) for name, measured in losses.items()}
    return variants


KINDS = {
    "wam": ("World Action Model", "video first, then the actions that make it so"),
    "flow_vla": ("VLA in the manner of pi0.5", "what is seen and said, then actions by flow matching"),
    "token_vla": ("VLA in the manner of RT-2", "what is seen and said, then actions as words of 256 bins"),
    "dual_vla": ("VLA in the manner of GR00T N1", "slow features of what is seen and said, then a fast action head"),
}


EYES = {
    True: "Sim-supervised frame tokenizer (it learned positions from the simulator's labels; at run time it sees\n"
    "pixels only)",
    False: "Self-supervised frame tokenizer (a convolutional autoencoder of image patches, without labels)",
}
"""What the tokenizer is, by whether its tokens are things."""


def card(
    family: str, report: dict[str, object], notes: str, robot: str = "so101-sim", structured: bool = True
) -> str:  # fmt: skip
    """What the bundle says about itself in words."""
    kind, how = KINDS[family]
    whose = "the simulated SO-101" if robot == "so101-sim" else robot
    where = "Trained on one\nCPU core. " if structured else ""  # the recipe of things is the one for a CPU
    return (
        f"# A small {kind} for {whose}\n\n"
        f"{EYES[structured]} and a trunk: {how}. {where}{notes}\n\n```json\n{json.dumps(report, indent=1)}\n```\n"
    )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="dzedge export", description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path, help="of a policy; its tokenizer lies beside it")
    parser.add_argument("--out", type=Path, required=True, help="the bundle, e.g. bundles/wam-nano.dzp")
    parser.add_argument("--data", type=Path, default=Path("data"), help="datasets; the last one calibrates")
    parser.add_argument("--key", type=Path, default=Path(__file__).with_name("test.key"))
    parser.add_argument("--version", type=int, required=True, help="grows with every release")
    parser.add_argument("--created", default=datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"))
    parser.add_argument("--no-int8", action="store_true", help="float32 graphs alone")
    parser.add_argument("--notes", default="")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(1)
    held_out = parts(options.data, marker=False)[-1]
    report = release(
        options.checkpoint, held_out, options.out, options.key, options.version, options.created, options.notes,
        not options.no_int8,
    )  # fmt: skip
    log.info("%s", json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
