"""Checkpoints: one safetensors file of everything a training needs to go on as if it had never stopped.

Tensors lie under dotted names, whatever else there is in the file's metadata as JSON. Nothing in it can run code.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from dzedge.errors import UsageError
from dzedge.export.model.sizes import Sizes
from dzedge.export.optim import Average

Model = TypeVar("Model", bound=nn.Module)


def save(path: Path, **state: Any) -> None:
    """Writes a checkpoint whole or not at all. state: tensors, numbers, text, lists and dicts of them.

    Raises UsageError where two tensors would have one name: keys with dots beside dicts.
    """
    tensors: dict[str, Tensor] = {}
    outline = json.dumps(_outline(state, "", tensors))
    path.parent.mkdir(parents=True, exist_ok=True)
    half = path.with_suffix(".half")
    save_file(tensors, half, metadata={"outline": outline})
    half.replace(path)


def load(path: Path) -> dict[str, Any]:
    """Reads a checkpoint back. Raises UsageError where it is none."""
    try:
        with safe_open(path, framework="pt") as file:
            outline = json.loads((file.metadata() or {})["outline"])
            state: dict[str, Any] = _filled(outline, file.get_tensor)
    except (OSError, SafetensorError, KeyError, json.JSONDecodeError) as error:
        raise UsageError(f"{path}: not a checkpoint of dzedge ({error}); train again, or name another file") from error
    return state


def _outline(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """A value with its tensors taken out. Keys that are numbers (optimizers have such) are marked."""
    if isinstance(value, Tensor):
        if name in tensors:
            raise UsageError(f"checkpoint: two tensors {name!r}; rename one of their keys")
        tensors[name] = value.detach().cpu().contiguous().clone()
        return {"tensor": name}
    if isinstance(value, dict):
        entries = [[key, _outline(part, f"{name}.{key}".lstrip("."), tensors)] for key, part in value.items()]
        return {"entries": entries}
    if isinstance(value, list | tuple):
        return [_outline(part, f"{name}.{index}", tensors) for index, part in enumerate(value)]
    return value


def _filled(outline: Any, tensor: Any) -> Any:
    if isinstance(outline, dict):
        if "tensor" in outline:
            return tensor(outline["tensor"])
        return {key: _filled(part, tensor) for key, part in outline["entries"]}
    if isinstance(outline, list):
        return [_filled(part, tensor) for part in outline]
    return outline


def restore(state: dict[str, Any], model: nn.Module, optimizer: Any, average: Average) -> int:
    """Model, optimizer and average as a checkpoint has them, each where it is now. Returns the step to go on from."""
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    average.values = {name: value.to(average.values[name].device) for name, value in state["average"].items()}
    average.count = state["step"]
    step: int = state["step"]
    return step


LENGTH = ("iterations", "save_every")
"""What a training may go on with another value of."""


def same(path: Path, table: str, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Raises UsageError where a checkpoint was begun by another recipe. table: of the recipe, for the message."""
    for name in sorted(now.keys() - set(LENGTH)):
        if before.get(name) != now[name]:
            raise UsageError(
                f"{path}: was begun with {table}.{name} = {before.get(name)!r}, the recipe says {now[name]!r}; "
                "move the checkpoint away, or name another --out"
            )


def averaged(path: Path, build: Callable[[Sizes], Model]) -> Model:
    """The model of a checkpoint's sizes with its averaged weights, ready to be asked. Raises UsageError."""
    state = load(path)
    model = build(Sizes.from_json(state["sizes"]))
    model.load_state_dict(state["average"])
    return model.eval()


def torch_seed(*parts: int) -> torch.Generator:
    """A generator for one step of a training: the same for the same numbers, whatever was drawn before."""
    mixed = 0
    for part in parts:
        mixed = (mixed * 1_000_003 + part + 1) % (1 << 62)
    return torch.Generator().manual_seed(mixed)
