"""Names in an official checkpoint: which tensor is which of ours, and that none is missing or left over
(facts/dreamzero 4).

The network's tensors carry our names under a prefix. Beside them lie three models that have no code here: the text
encoder (UMT5), the image encoder (CLIP) and the frame tokenizer (VAE). They are counted and left out; what they would
give comes from elsewhere (see `official`).
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from dzedge.errors import UsageError
from dzedge.export.model.wan_config import Config
from dzedge.export.model.wan_joint import WanJoint
from dzedge.export.shards import Renamed, Tensors

HEAD = "action_head."
NETWORK = ("model.base_model.model.", "model.")
"""Of the network's tensors after HEAD: inside an adapter's wrapper, and without."""
LEFT_OUT = {
    "text_encoder.": "text encoder (UMT5)", "image_encoder.": "image encoder (CLIP)", "vae.": "frame tokenizer (VAE)",
}  # fmt: skip
"""After HEAD: parts that are recognised and not taken over."""
WRAPPED = ".base_layer."
"""What an adapter puts into the name of the weight that it changes."""


@dataclass(frozen=True, slots=True)
class Sorted:
    """Names of a checkpoint. network: its own names by ours, adapters among them; left_out: of every part that is not
    taken over tensors and parameters; unknown: all others."""

    network: dict[str, str]
    left_out: dict[str, tuple[int, int]]
    unknown: tuple[str, ...]


def sort(weights: Tensors) -> Sorted:
    """Sorts the names of a checkpoint. A file of the bare network (a base model) has no prefixes.

    Raises UsageError where two names mean the same tensor.
    """
    network: dict[str, str] = {}
    left_out: dict[str, tuple[int, int]] = {}
    unknown: list[str] = []
    bare = not any(name.startswith(HEAD) for name in weights.names())
    for name in weights.names():
        part = None if bare else _part(name)
        if part is not None:
            tensors, parameters = left_out.get(part, (0, 0))
            left_out[part] = (tensors + 1, parameters + math.prod(weights.shape(name)))
        elif (ours := name if bare else _ours(name)) is None:
            unknown.append(name)
        else:
            ours = ours.replace(WRAPPED, ".")
            if ours in network:
                raise UsageError(f"checkpoint: {network[ours]!r} and {name!r} are both {ours!r}; remove one of them")
            network[ours] = name
    return Sorted(network, left_out, tuple(unknown))


def expected(config: Config) -> dict[str, tuple[int, ...]]:
    """Every tensor that a network of these sizes needs, with its shape; made without memory."""
    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in WanJoint(config).state_dict().items()}


def taken(config: Config, sources: Iterable[tuple[Tensors, dict[str, str]]]) -> tuple[Renamed, list[str]]:
    """The network's tensors by our names, each from the first source that has it, and our names that no source has.

    sources: each with its own names by ours. Raises UsageError naming every tensor of a wrong shape.
    """
    stored: dict[str, tuple[Tensors, str]] = {}
    wrong: list[str] = []
    wanted = expected(config)
    for name, shape in wanted.items():
        for source, names in sources:
            if name in names:
                stored[name] = (source, names[name])
                if (found := source.shape(names[name])) != shape:
                    wrong.append(f"{names[name]} is {found}, expected {shape}")
                break
    if wrong:
        raise UsageError(f"checkpoint: {'; '.join(wrong)}; config.json is of another checkpoint")
    return Renamed(stored), [name for name in wanted if name not in stored]


def _part(name: str) -> str | None:
    after = name.removeprefix(HEAD) if name.startswith(HEAD) else name
    return next((part for prefix, part in LEFT_OUT.items() if after.startswith(prefix)), None)


def _ours(name: str) -> str | None:
    for prefix in NETWORK:
        if name.startswith(HEAD + prefix):
            return name.removeprefix(HEAD + prefix)
    return None
