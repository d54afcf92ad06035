"""Official DreamZero checkpoints -> `wan_joint`.

A folder holds config.json, safetensors (one file, or shards and an index), experiment_cfg/conf.yaml and
experiment_cfg/metadata.json. The network is read whole, adapters merged; every name is accounted for. Not read,
because there is no code for them here: the text encoder, the image encoder and the frame tokenizer. A prompt's
embedding and the first picture's image tokens are therefore inputs, made elsewhere and kept; so are latents, unless
a tokenizer of ours was trained to give the same.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import torch

from dzedge.errors import UsageError
from dzedge.export import lora
from dzedge.export.embodiment import Embodiment, read_embodiment
from dzedge.export.model.wan_config import Config
from dzedge.export.model.wan_joint import WanJoint
from dzedge.export.official_config import Head, config_of, read_head
from dzedge.export.official_keys import expected, sort, taken
from dzedge.export.shards import Shards, Tensors, pickles


@dataclass(frozen=True, slots=True)
class Official:
    """A checkpoint, its weights still on disk. weights: by the names of WanJoint, adapters merged when read;
    shards: files that hold them; notes: what was left out, merged or cannot be undone, in words."""

    config: Config
    embodiment: Embodiment
    weights: Tensors
    shards: tuple[Path, ...]
    notes: tuple[str, ...]

    @property
    def parameters(self) -> int:
        return sum(math.prod(self.weights.shape(name)) for name in self.weights.names())


def read(
    folder: Path, tag: str | None = None, base: Path | None = None, picture: tuple[int, int] | None = None,
    ignore: tuple[str, ...] = (),
) -> Official:  # fmt: skip
    """Reads a folder but for its weights.

    tag: embodiment, where there are several; base: folder of the model that a checkpoint of adapters alone changes;
    picture: height and width, [pixels], where the folder does not tell; ignore: names of tensors to be left out.
    Raises UsageError: a file that is missing or not understood, and any tensor missing, left over or misshapen.
    """
    head = read_head(folder)
    net = head.network
    embodiment = read_embodiment(folder, tag, int(net["max_state_dim"]), int(net["action_dim"]))
    config = config_of(head, _picture(picture, head, embodiment, folder))
    own = Shards.open(folder)
    found = sort(own)
    plain, adapters = lora.split(found.network)
    notes = [
        f"left out: {part}, {tensors} tensors of {parameters:,} parameters: there is no code for it here"
        for part, (tensors, parameters) in found.left_out.items()
    ]
    sources: list[tuple[Tensors, dict[str, str]]] = [(own, {name: found.network[name] for name in plain})]
    shards = own.files()
    if base is not None:
        under = Shards.open(base)
        beneath = sort(under)
        sources.append((under, beneath.network))
        spare = sorted({*beneath.unknown, *(set(beneath.network) - set(expected(config)))})
        notes += [f"not used of the base model: {name}" for name in spare]
        shards += tuple(path for path in under.files() if path not in shards)
    weights, missing = taken(config, sources)
    unknown = [*found.unknown, *(found.network[name] for name in plain if name not in weights.stored)]
    _account(folder, missing, unknown, ignore)
    notes += [f"left out as asked: {name}" for name in unknown]
    unread = {name for where in (folder, base) if where is not None for name in pickles(where)}
    notes += [f"not opened: {name}: a pickle can run code" for name in sorted(unread)]
    merged = _merged(weights, own, found.network, adapters, head)
    if adapters:
        notes.append(f"merged: {len(adapters)} adapters of rank {head.lora[0]}")  # type: ignore[index]
    return Official(config, embodiment, merged, shards, (*notes, *embodiment.notes()))


def load(official: Official) -> WanJoint:
    """The model in memory, float32, one tensor after the other. For sizes that fit; others go through `layered`."""
    with torch.device("meta"):
        model = WanJoint(official.config)
    state = {name: official.weights.read(name).to(torch.float32) for name in official.weights.names()}
    model.load_state_dict(state, strict=True, assign=True)
    return model.eval()


def _picture(
    asked: tuple[int, int] | None, head: Head, embodiment: Embodiment, folder: Path
) -> tuple[int, int]:  # fmt: skip
    found = asked or head.picture or embodiment.picture()
    if found is None:
        raise UsageError(f"{folder}: neither config.json nor conf.yaml tells the picture's height and width; name them")
    return found


def _account(folder: Path, missing: list[str], unknown: list[str], ignore: tuple[str, ...]) -> None:
    """Every name is in its place, or was asked to be left out."""
    if missing:
        raise UsageError(
            f"{folder}: {len(missing)} tensors are missing: {', '.join(missing)}; a checkpoint of adapters alone needs "
            "its base model, named beside it; otherwise the download is not whole"
        )
    if spare := [name for name in unknown if name not in ignore]:
        raise UsageError(
            f"{folder}: {len(spare)} tensors are not known: {', '.join(spare)}; ask for them to be ignored, by name, "
            "where you know that the model does without"
        )


def _merged(
    weights: Tensors, source: Tensors, stored: dict[str, str], adapters: dict[str, tuple[str, str]], head: Head
) -> Tensors:  # fmt: skip
    if not adapters:
        return weights
    if head.lora is None:
        raise UsageError("config.json: train_architecture names no adapters, yet the weights hold some; which is true?")
    pairs = {name: (stored[low], stored[high]) for name, (low, high) in adapters.items()}
    lora.check(weights, source, pairs, head.lora[0])
    return lora.Merged(weights, source, pairs, head.lora[1])
