"""A checkpoint -> a signed bundle: `dzedge export checkpoints/wam-0.safetensors --out wam-nano.dzp --version 2`.

Graphs, each compared with torch; a first float32 bundle that drives and is watched for calibration; quantized files;
then the whole bundle, packed and signed, against torch, chunk by chunk, in every precision. All in a folder beside the
bundle, which takes its place only where every bound of `bounds.toml` holds. What was measured travels in the
bundle's README.md.

`dzedge export OFFICIAL_FOLDER ...` is `official_export`, `dzedge export --plan ...` is `plan`.
"""

import argparse
import importlib
import json
import logging
import sys
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, get_args

import torch

from dzedge import console
from dzedge.errors import UsageError
from dzedge.export import bounds
from dzedge.export.decisions import recorded
from dzedge.export.making import Making, Wanted, calibrating, instructions_of, staged
from dzedge.export.onnx import OPSET, OPSETS
from dzedge.export.quantize import INT8_FORMS
from dzedge.export.torch_policy import Trained
from dzedge.export.train import parts
from dzedge.manifest import Precision
from dzedge.minisign import SecretKey

log = logging.getLogger("dzedge.export.release")

PRECISIONS = get_args(Precision)
STAGES = ("graphs", "parity", "prompts", "calibration", "quantization", "samplers", "judging")
CHOOSING, MARGIN = 48, 0.9
"""Decisions that choose which layers stay float, and the part of the bound that is aimed at: others judge it."""
Advance = Callable[[str], None]


def release(
    checkpoint: Path, datasets: Sequence[Path], out: Path, wanted: Wanted, advance: Advance = log.info
) -> dict[str, Any]:
    """Builds the bundle `out` from a policy's checkpoint and the tokenizer beside it; returns the report.

    datasets: the policy's; on the last one nothing was trained; advance: told of every stage that begins, as STAGES.
    Raises ParityError, BoundError naming every bound that is broken, UsageError: then `out` is as it was.
    """
    limits, trained = bounds.read(wanted.limits), Trained.load(checkpoint)
    with staged(out) as folder:
        making = Making(trained, wanted, folder, out.stem)
        making.about()
        advance("graphs")
        making.graphs()
        if wanted.unrolled:
            making.unroll()
        advance("parity")
        making.compare()
        advance("prompts")
        making.say(instructions_of(datasets, trained.source))
        opened = making.seal()
        section = opened.manifest.dzedge
        tested, tuned = (
            recorded(datasets[-1], trained.source, wanted.pairs, section.video.history_ns, section.max_prefix, seed)
            for seed in (2, 1)
        )
        if wanted.quantized:
            advance("calibration")
            feeds = calibrating(opened, tuned)
            share = limits.of(trained.family, "int8").action_share
            if wanted.sensitivity and share is not None:
                making.choose_layers(opened, tuned[:CHOOSING], feeds, MARGIN * share, log.info)
            advance("quantization")
            making.quantize(feeds)
        advance("samplers")
        making.sample(opened, tested)
        advance("judging")
        if broken := making.judge(making.seal(), tested, limits):
            raise bounds.BoundError("\n".join(broken))
        making.document()
        making.seal()
    return making.report


def precisions_of(text: str) -> tuple[Precision, ...]:
    """`fp32,int8` as precisions, fp32 among them whether named or not. Raises UsageError."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in PRECISIONS:
            raise UsageError(f"--precisions {name}: must be some of {','.join(PRECISIONS)}")
    return tuple(dict.fromkeys(("fp32", *names)))  # type: ignore[arg-type]


def forms_of(text: str) -> tuple[str, ...]:
    """`u8s8,s8s8` as forms of int8. Raises UsageError."""
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    for name in names:
        if name not in INT8_FORMS:
            raise UsageError(f"--sensitivity {name}: must be some of {','.join(INT8_FORMS)}")
    return names


def parser() -> argparse.ArgumentParser:
    """The command line of `dzedge export`."""
    found = argparse.ArgumentParser(
        prog="dzedge export", description=__doc__.splitlines()[0],
        epilog="dzedge export OFFICIAL_FOLDER --help and dzedge export --plan --help tell of those.",
    )  # fmt: skip
    found.add_argument("checkpoint", type=Path, help="of a policy; its tokenizer lies beside it")
    found.add_argument("--out", type=Path, required=True, help="the bundle, e.g. bundles/wam-nano.dzp")
    found.add_argument("--data", type=Path, default=Path("data"), help="datasets; the last one is judged on")
    found.add_argument("--key", type=Path, default=Path(__file__).with_name("test.key"))
    found.add_argument("--version", type=int, required=True, help="grows with every release")
    found.add_argument("--created", default=datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"))
    found.add_argument("--precisions", default="fp32,int8", help=f"some of {','.join(PRECISIONS)}")
    found.add_argument("--sensitivity", default="", help=f"keep sensitive layers in float: {','.join(INT8_FORMS)}")
    found.add_argument("--opset", type=int, choices=OPSETS, default=OPSET)
    found.add_argument("--no-text", action="store_true", help="only known instructions, without the text graph")
    found.add_argument("--unrolled", action="store_true", help="act.onnx besides, a whole chunk as one graph")
    found.add_argument("--bounds", type=Path, default=bounds.DEFAULT, help="a TOML table of what may be lost")
    found.add_argument("--report", type=Path, help="write what was measured here too, as JSON")
    found.add_argument("--notes", default="", help="a sentence for the bundle's card")
    return found


def main(arguments: list[str] | None = None) -> None:
    given = sys.argv[1:] if arguments is None else list(arguments)
    other = other_command(given)
    if other is not None:
        entry: Any = importlib.import_module(f"dzedge.export.{other[0]}")
        entry.main(other[1])
        return
    options = parser().parse_args(given)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(1)
    wanted = Wanted(
        SecretKey.decode(options.key.read_text(), str(options.key)), options.version, options.created,
        precisions_of(options.precisions), options.opset, not options.no_text, options.unrolled, options.bounds,
        forms_of(options.sensitivity), options.notes,
    )  # fmt: skip
    with console.progress(f"export {options.out.stem}", len(STAGES)) as step:

        def advance(stage: str) -> None:
            log.info("%s", stage)
            step(stage)

        report = release(options.checkpoint, parts(options.data, marker=False), options.out, wanted, advance)
    if options.report:
        options.report.write_text(json.dumps(report, indent=1) + "\n")
    log.info("wrote %s; what it costs:\n%s", options.out, json.dumps(report["precisions"], indent=1))


def other_command(arguments: list[str]) -> tuple[str, list[str]] | None:
    """Module and arguments of what is not a checkpoint of ours: `--plan [--board] BOARD`, or an official folder."""
    if "--plan" in arguments:
        return "plan", [word for word in arguments if word not in ("--plan", "--board")]
    if any((Path(word) / "config.json").is_file() for word in arguments[:1]):
        return "official_export", arguments
    return None


if __name__ == "__main__":
    main()
