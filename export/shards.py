"""Weights on disk: tensors by name, read one at a time, so that a model larger than the memory can be looked at,
changed and written out again. Only safetensors are read: nothing in one can run code, as a pickle can.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from safetensors import SafetensorError, safe_open
from torch import Tensor

from dzedge.errors import UsageError

STEMS = ("model", "diffusion_pytorch_model")
"""Names that published folders give their weights."""
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
"""Endings of files that run code when they are loaded: seen, named, never opened."""


class Tensors(Protocol):
    """Tensors by name that lie elsewhere until one is asked for."""

    def names(self) -> Iterable[str]:
        """All names."""

    def shape(self, name: str) -> tuple[int, ...]:
        """Of one tensor, without reading it."""

    def read(self, name: str) -> Tensor:
        """One tensor as it is stored, on the CPU."""


@dataclass(frozen=True, slots=True)
class Shards:
    """The safetensors files of a folder. where: of every tensor its file and shape."""

    folder: Path
    where: dict[str, tuple[Path, tuple[int, ...]]]

    @classmethod
    def open(cls, folder: Path) -> "Shards":
        """Reads the headers alone. Raises UsageError: no weights, a file that is missing or damaged, a tensor that
        lies elsewhere than the index says, or twice."""
        files, promised = _files(folder)
        where: dict[str, tuple[Path, tuple[int, ...]]] = {}
        for path in files:
            for name, shape in _header(path).items():
                if name in where:
                    raise UsageError(f"{path}: {name!r} lies in {where[name][0].name} too; remove one of the files")
                where[name] = (path, shape)
        moved = sorted(name for name in promised if name not in where or where[name][0].name != promised[name])
        if moved:
            raise UsageError(f"{folder}: {', '.join(moved)}: not in the file that the index names; download again")
        return cls(folder, where)

    def names(self) -> tuple[str, ...]:
        return tuple(self.where)

    def shape(self, name: str) -> tuple[int, ...]:
        return self.where[name][1]

    def read(self, name: str) -> Tensor:
        with safe_open(self.where[name][0], framework="pt") as file:
            tensor: Tensor = file.get_tensor(name)
        return tensor

    def files(self) -> tuple[Path, ...]:
        """Every file that holds a tensor, in order."""
        return tuple(dict.fromkeys(path for path, _ in self.where.values()))


@dataclass(frozen=True, slots=True)
class Renamed:
    """Tensors under other names: `stored` tells what a new name was called, and in which of several sources."""

    stored: dict[str, tuple[Tensors, str]]

    def names(self) -> tuple[str, ...]:
        return tuple(self.stored)

    def shape(self, name: str) -> tuple[int, ...]:
        source, old = self.stored[name]
        return source.shape(old)

    def read(self, name: str) -> Tensor:
        source, old = self.stored[name]
        return source.read(old)


def pickles(folder: Path) -> list[str]:
    """Names of the files of a folder that are never opened, because opening them would run what is in them."""
    return sorted(path.name for path in folder.iterdir() if path.suffix in PICKLES)


def _files(folder: Path) -> tuple[list[Path], dict[str, str]]:
    """The weight files of a folder, and in which of them the index says that a tensor lies (where there is one)."""
    for stem in STEMS:
        index = folder / f"{stem}.safetensors.index.json"
        if index.is_file():
            try:
                promised: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
                names = sorted(set(promised.values()))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise UsageError(f"{index}: no weight_map to be read ({error!r}); download again") from error
            if foreign := [name for name in names if Path(name).name != name]:
                raise UsageError(f"{index}: names the file {foreign[0]!r}, allowed: plain names; do not trust it")
            return [folder / name for name in names], promised
        if (folder / f"{stem}.safetensors").is_file():
            return [folder / f"{stem}.safetensors"], {}
    unread = f"; {', '.join(pickles(folder))}: pickles, which can run code, are not read" if folder.is_dir() else ""
    raise UsageError(f"{folder}: neither model.safetensors nor its index{unread}; name a folder with safetensors")


def _header(path: Path) -> dict[str, tuple[int, ...]]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise UsageError(f"{path}: not a safetensors file ({error}); download again") from error
