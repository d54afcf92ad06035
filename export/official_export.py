"""`dzedge export OFFICIAL_FOLDER --out PARTS`: an official checkpoint as graphs, without ever holding it whole.

What comes out is the network's part of a policy: its graphs, its weights, and what their numbers mean. It is no
bundle that runs, because three models beside the network have no code here (see `official`): `context` wants a
prompt's embedding (and an image's tokens), `prefill` wants latents. Both can be made elsewhere and kept.
"""

import argparse
import json
import logging
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from dzedge.errors import UsageError
from dzedge.export.embodiment import Channel, Embodiment
from dzedge.export.layered import WEIGHTS, export_layered
from dzedge.export.model.wan_joint import WanJoint
from dzedge.export.official import Official, load, read
from dzedge.export.official_graphs import half_graphs, official_graphs
from dzedge.export.parity import check
from dzedge.export.prompt_templates import TEMPLATES, prompt
from dzedge.export.q99 import Range

log = logging.getLogger("dzedge.export.official")

DTYPES = {"fp32": torch.float32, "fp16": torch.float16}
RECORD = "official.json"
CHECKED = 200_000_000
"""Most parameters of a network that is loaded whole to check its graphs against it."""


def export(
    folder: Path, out: Path, tag: str | None = None, base: Path | None = None,
    picture: tuple[int, int] | None = None, ignore: tuple[str, ...] = (), precision: str = "fp32",
) -> dict[str, Any]:  # fmt: skip
    """Writes the graphs of an official checkpoint, `weights.safetensors` and `official.json` into `out`, whole or not
    at all. Returns what `official.json` says. precision: fp32, or fp16 (computed in, behind a float32 boundary).

    Memory: one tensor at a time, so far less than one shard. Raises UsageError (see `official.read`), and ParityError
    where the network is small enough to be compared and its fp32 graphs differ.
    """
    if precision not in DTYPES:
        raise UsageError(f"precision {precision!r}, allowed: {', '.join(DTYPES)}")
    if out.suffix == ".dzp":
        raise UsageError(
            f"{out}: an official checkpoint becomes parts, not a bundle that runs: its text encoder, image encoder and "
            "frame tokenizer have no code here; name a folder without .dzp"
        )
    official = read(folder, tag, base, picture, ignore)
    log.info("%s: %s parameters in %d shards", folder, f"{official.parameters:,}", len(official.shards))
    for note in official.notes:
        log.info("%s", note)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as half:
        record = _parts(official, Path(half) / "parts", precision)
        shutil.rmtree(out, ignore_errors=True)
        (Path(half) / "parts").rename(out)
    return record


def _parts(official: Official, folder: Path, precision: str) -> dict[str, Any]:
    make = official_graphs if precision == "fp32" else half_graphs
    paths = export_layered(lambda: make(WanJoint(official.config)), official.weights, folder, DTYPES[precision])
    record = describe(official, precision) | {"parity": _parity(official, paths, precision)}
    (folder / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return record


def describe(official: Official, precision: str) -> dict[str, Any]:
    """What a host must know to use the graphs, as JSON."""
    body = official.embodiment
    return {
        "family": "wan_joint", "precision": precision, "parameters": official.parameters, "weights": WEIGHTS,
        "sizes": official.config.to_json(), "embodiment": _body(body), "notes": list(official.notes),
        "prompt": prompt(body.tag, "{task}") if body.tag in TEMPLATES else None,
    }  # fmt: skip


def _body(body: Embodiment) -> dict[str, Any]:
    return {
        "tag": body.tag, "cameras": list(body.cameras), "view": body.view, "crop": body.crop,
        "state": _space(body.state, body.state_range), "action": _space(body.action, body.action_range),
    }  # fmt: skip


def _space(channels: tuple[Channel, ...], values: Range) -> dict[str, Any]:
    named = [{"name": each.name, "width": each.width, "relative": each.relative} for each in channels]
    return {"channels": named, "q01": values.low.tolist(), "q99": values.high.tolist(), "width": values.width}


def _parity(official: Official, paths: dict[str, Path], precision: str) -> dict[str, float] | str:
    """Largest difference of every output, relative to the output's size; or why it was not measured."""
    if precision != "fp32":
        return "not measured here: a graph of float16 is judged by the actions it gives"
    if official.parameters > CHECKED:
        return f"not measured: over {CHECKED:,} parameters the network is not loaded whole"
    with torch.no_grad():
        measured = check(official_graphs(load(official)), paths)
    return {f"{found.graph}.{found.output}": found.relative for found in measured}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="dzedge export", description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path, help="folder with config.json, safetensors and experiment_cfg/")
    parser.add_argument("--out", type=Path, required=True, help="folder for graphs, weights and official.json")
    parser.add_argument("--embodiment", help="tag, where the checkpoint has several, e.g. oxe_droid")
    parser.add_argument("--base", type=Path, help="folder of the model that a checkpoint of adapters changes")
    parser.add_argument("--picture", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help="of the mosaic, [pixels]")
    parser.add_argument("--ignore", nargs="*", default=[], metavar="NAME", help="tensors to be left out")
    parser.add_argument("--precision", choices=sorted(DTYPES), default="fp32")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(1)
    picture = None if options.picture is None else (options.picture[0], options.picture[1])
    record = export(
        options.checkpoint, options.out, options.embodiment, options.base, picture, tuple(options.ignore),
        options.precision,
    )  # fmt: skip
    log.info("%s", json.dumps({key: record[key] for key in ("parameters", "parity")}))


if __name__ == "__main__":
    main()
