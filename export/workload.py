"""A model as a board sees it: what it holds, what one chunk runs. From a named configuration or a checkpoint's header;
no weights are read."""

import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dzedge.errors import UsageError
from dzedge.export import flops_wam, flops_wan, official
from dzedge.export.flops import Chunk, Part, Run, feed_forward, weights
from dzedge.export.model import wan_policy
from dzedge.export.model.sizes import Sizes
from dzedge.export.model.wan_config import Config
from dzedge.policies.sampler import Sampler

LANGUAGE_MODEL = Part(4_840 * 10**9, 5_681_000_000)
"""UMT5-XXL on one prompt of 512 tokens (facts/dreamzero 1.1 and 2.1)."""
EYES = {
    "wan-2.1": Part(10_600 * 10**9, 54_000_000),
    "wan-2.2": Part(1_670 * 10**9, 150_000_000),
    "tiny": Part(50 * 10**9, 5_000_000),
}
"""Frame encoders of the coupled layout, on the 9 pixel frames of a steady request (facts/dreamzero 1.1, 2.1, 7.3). The
tiny one stands for a distilled encoder that is still to be made: its figures are a budget."""
COUPLED_DURATION_S = 1.6
"""Of 24 actions at 15 Hz (facts/dreamzero 1.2)."""
DT_S = 0.1
"""Of the simulator's data, where a checkpoint names no other."""
WAMS = {
    "wam-nano": Sizes(encoder_width=16, decoder_width=16),
    "wam-9m": Sizes(
        tokenizer="vae", cell=12, tokens=48, channels=16, words=16, width=256, layers=4, heads=8, encoder_width=16,
        decoder_width=16,
    ),
}  # fmt: skip
"""Two-stream models by name: the shipped one, and one of the same structure with 9.5 M parameters."""
NAMES = (*WAMS, *flops_wan.NAMED)


@dataclass(frozen=True, slots=True)
class Workload:
    """What a model asks of a board.

    parameters: of the trunk; prompt: those of them that only a new prompt needs; eye: the frame encoder, in float16 on
    every board; text: the language model, on one prompt; chunk: as dzedge runs it; server: as the original server
    does; window, context: numbers in the kept rows of frames and of a prompt; branches: windows that the server keeps;
    duration_s: of the chunk's motion; sampler: in words.
    """

    name: str
    family: str
    parameters: int
    prompt: int
    eye: Part
    text: Part
    chunk: Chunk
    server: Chunk
    window: int
    context: int
    duration_s: float
    sampler: str


def coupled(name: str, config: Config, evaluations: int = 4, eye: str = "") -> Workload:
    """The workload of a coupled model in the middle of its window. eye: of EYES; "" for the published one, where the
    latent is a published one and the trunk as large, else the tiny one. Raises UsageError."""
    published = {16: "wan-2.1", 48: "wan-2.2"}.get(config.channels, "tiny") if config.image_tokens else "tiny"
    if (eye := eye or published) not in EYES:
        raise UsageError(f"--eye {eye!r}: must be one of {', '.join(EYES)}")
    found, sight = flops_wan.parts(config), EYES[eye]
    return Workload(
        name, "wan_joint", flops_wan.parameters(config), found.embed.weights + found.cross.weights, sight,
        LANGUAGE_MODEL, flops_wan.chunk(found, sight, evaluations),
        flops_wan.server_chunk(found, sight, LANGUAGE_MODEL), found.window, found.context, COUPLED_DURATION_S,
        f"joint({evaluations}), {eye} encoder",
    )  # fmt: skip


def trained_coupled(name: str, sizes: Sizes, evaluations: int = 4, dt_s: float = DT_S) -> Workload:
    """The workload of a coupled model that was trained here, its window full: words and pictures have small encoders
    of its own, frames stream. Raises UsageError for sizes that make no grid."""
    config = wan_policy.config_of(sizes)
    found, sight = flops_wan.parts(config, config.window), flops_wam.encoder(sizes)
    text = feed_forward(sizes.words, sizes.width, sizes.width, sizes.width)
    text += weights((sizes.vocabulary + sizes.words) * sizes.width)
    return Workload(
        name, "wan_joint", flops_wan.parameters(config) + text.weights,
        found.embed.weights + found.cross.weights + text.weights, sight, text,
        flops_wan.chunk(found, sight, evaluations), flops_wan.server_chunk(found, sight, text), found.window,
        found.context, sizes.horizon * dt_s, f"joint({evaluations})",
    )  # fmt: skip


def two_streams(name: str, sizes: Sizes, sampler: str = "video_first(4,4)", dt_s: float = DT_S) -> Workload:
    """The workload of a world action model of two streams. Raises PolicyError for a sampler that it has not."""
    found, steps = flops_wam.parts(sizes), Sampler.parse(sampler)
    passes = steps.video_steps + (not steps.coupled)  # the finished video's rows cost one more
    chunk = {
        "frame_encoder": Run(found.frame_encoder, 1), "prefill": Run(found.prefill, 1),
        "context": Run(found.context, 1),
        "video_step": Run(found.video_step, passes), "action_step": Run(found.action_step, steps.action_steps),
    }  # fmt: skip
    return Workload(
        name, "wam", flops_wam.parameters(found), found.text.weights, found.frame_encoder, found.text, chunk,
        flops_wam.server_chunk(sizes, found), flops_wam.window(sizes), flops_wam.context(sizes),
        sizes.horizon * dt_s, sampler,
    )  # fmt: skip


def named(name: str, evaluations: int = 4, eye: str = "") -> Workload:
    """A configuration by its name, a two-stream model in `evaluations` steps a stream. Raises UsageError."""
    if name in WAMS:
        return two_streams(name, WAMS[name], f"video_first({evaluations},{evaluations})")
    if name in flops_wan.NAMED:
        return coupled(name, flops_wan.NAMED[name], evaluations, eye)
    raise UsageError(f"--config {name!r}: must be one of {', '.join(NAMES)}")


def checkpoint(path: Path, evaluations: int = 4, eye: str = "") -> Workload:
    """A checkpoint by its header alone: of a training, or a folder of the official layout. Raises UsageError for
    anything else, or a family that is none of the world action models."""
    if path.is_dir():
        return coupled(path.name, official.read(path).config, evaluations, eye)
    outline = _header(path)
    family, sizes = dict(outline.get("recipe", {})).get("family"), dict(outline.get("sizes", {}))
    if family == "wam":
        steps = f"video_first({evaluations},{evaluations})"
        return two_streams(path.stem, Sizes.from_json(sizes), steps)
    if family == "wan_joint":
        return trained_coupled(path.stem, Sizes.from_json(sizes), evaluations)
    raise UsageError(f"{path}: family {family!r}: a plan is for wam and wan_joint; name one, or --config NAME")


def _header(path: Path) -> dict[str, Any]:
    """What `export/checkpoint.py` keeps beside the tensors, tables as lists of pairs: safetensors' JSON header."""
    try:
        with path.open("rb") as file:
            (size,) = struct.unpack("<Q", file.read(8))
            if size > 1 << 28:
                raise ValueError(f"header of {size} bytes")
            outline = json.loads(json.loads(file.read(size))["__metadata__"]["outline"])
        return {key: _table(value) for key, value in outline["entries"] if key in ("recipe", "sizes")}
    except (OSError, struct.error, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path}: not a checkpoint of dzedge ({error}); name another file, or --config") from error


def _table(value: dict[str, Any]) -> dict[str, Any]:
    return {key: entry for key, entry in value["entries"]}
