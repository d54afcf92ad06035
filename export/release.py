"""Checkpoints -> signed bundle: `python -m dzedge.export.release --out bundles/wam-nano.dzp --version 2`.

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

from dzedge.errors import UsageError
from dzedge.export import fit_tokenizer, fit_wam, optim, quantize
from dzedge.export.model.graphs import graphs
from dzedge.export.onnx import export_all
from dzedge.export.package import Release, package
from dzedge.export.sampler import Graphs, cases_of
from dzedge.minisign import SecretKey

log = logging.getLogger("dzedge.export.release")

CALIBRATION_CASES, TEST_CASES = 64, 128
WORST_ACTION_SHARE = 0.08
"""Largest error of int8 that is shipped, relative to the actions' root mean square."""


class QuantizationError(UsageError):
    """int8 that costs more accuracy than is shipped."""

    exit_code = 1


def release(
    checkpoints: Path, shard: Path, out: Path, key: Path, version: int, created: str, max_prefix: int, notes: str = ""
) -> dict[str, object]:
    """Builds the bundle `out` from checkpoints/tokenizer.pt and dit.pt. shard: held-out episodes. Returns the report.

    Raises ParityError or QuantizationError: then nothing is written.
    """
    tokenizer = fit_tokenizer.load(checkpoints / "tokenizer.pt")
    wam, moments = fit_wam.load(checkpoints / "dit.pt")
    secret = SecretKey.decode(key.read_text(), str(key))
    cut = graphs(wam, tokenizer.encoder, tokenizer.decoder)
    with tempfile.TemporaryDirectory() as folder:
        files = export_all(cut, Path(folder))
        reference = Graphs(files, wam.sizes, moments)
        words = wam.sizes.words
        feeds = quantize.record(reference, cases_of(shard, CALIBRATION_CASES, words, seed=1))
        variants = quantize.quantize_all(files, feeds)
        cases = cases_of(shard, TEST_CASES, words, seed=2)
        board = Graphs(quantize.with_variant(files, "s8s8"), wam.sizes, moments, qdq_off=True)
        narrow = Graphs(quantize.with_variant(files, "u8s8"), wam.sizes, moments)
        losses = {
            "s8s8": quantize.loss(reference, board, cases, moments),
            "u8s8": quantize.loss(reference, narrow, cases, moments),
        }
        for name, measured in losses.items():
            if not measured.action_share <= WORST_ACTION_SHARE:
                raise QuantizationError(
                    f"{name}: actions differ by {measured.action_share:.1%} of their size, allowed 0..8 %: "
                    "calibrate on more cases or leave more in float"
                )
        report: dict[str, object] = {
            "parameters": {
                "trunk": optim.count(wam.parameters()),
                "encoder": optim.count(tokenizer.encoder.parameters()),
                "decoder": optim.count(tokenizer.decoder.parameters()),
            },
            "int8_against_fp32": {name: asdict(measured) for name, measured in losses.items()},
            "bytes": {path.name: path.stat().st_size for path in sorted(Path(folder).iterdir())},
        }
        found = package(
            out, wam, tokenizer, moments, Release(out.stem, version, max_prefix=max_prefix), secret, created,
            variants, files, card(report, notes),
        )  # fmt: skip
    report["parity"] = {f"{p.graph}.{p.output}": p.difference for p in found}
    return report


def card(report: dict[str, object], notes: str) -> str:
    """What the bundle says about itself in words."""
    return (
        "# A small World Action Model for the simulated SO-101\n\n"
        "Sim-supervised frame tokenizer (it learned positions from the simulator's labels; at run time it sees\n"
        "pixels only) and a flow-matching trunk: video first, then the actions that make it so. Trained on one\n"
        f"CPU core. {notes}\n\n```json\n{json.dumps(report, indent=1)}\n```\n"
    )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoints", type=Path, default=Path("checkpoints"))
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--out", type=Path, default=Path("bundles/wam-nano.dzp"))
    parser.add_argument("--key", type=Path, default=Path(__file__).with_name("test.key"))
    parser.add_argument("--version", type=int, required=True, help="grows with every release")
    parser.add_argument("--created", default=datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"))
    parser.add_argument("--max-prefix", type=int, default=3)
    parser.add_argument("--notes", default="")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(1)
    shards = sorted(options.data.glob("shard*.npz"))
    if not shards:
        raise UsageError(f"{options.data}: no shards to calibrate on; make them with dzedge.export.data")
    report = release(
        options.checkpoints, shards[-1], options.out, options.key, options.version, options.created,
        options.max_prefix, options.notes,
    )  # fmt: skip
    log.info("%s", json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
