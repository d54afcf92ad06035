"""Prompts: what the `text` graph makes of an instruction, kept by what was said.

`prompts.safetensors` of a bundle holds the instructions that its maker knew; with it a small board needs no language
model at all. What else was asked of a large one is kept on this machine (`KeptPrompts`).
"""

import difflib
import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dzedge import tensors
from dzedge.errors import BundleError, PolicyError
from dzedge.graph_cache import GraphCache, state_folder

FOLDER = "prompts"
"""Below this machine's state folder."""
NEAREST = 3
"""Known instructions that a refusal names."""

Said = Mapping[str, NDArray[np.float32]]
"""What `text` makes, by its outputs' names."""


def words_of(instruction: str) -> list[str]:
    """What counts of an instruction: letters and digits, lower case, in words."""
    return re.findall(r"[^\W_]+", instruction.lower())


def key_of(words: Sequence[str]) -> str:
    """SHA-256 of the words, 64 hexadecimal digits."""
    return hashlib.sha256(" ".join(words).encode()).hexdigest()


class Prompts:
    """Known instructions. Array "KEY.OUTPUT" of the file is that output of `text` for the instruction of that key; a
    note under the key says it in words.

    data: the file's bytes; source: names it. Raises BundleError where outputs or shapes differ between instructions.
    """

    def __init__(self, data: bytes, source: str) -> None:
        found = tensors.read(data, source)
        self._instructions = dict(found.notes)
        self._said: dict[str, dict[str, NDArray[Any]]] = {key: {} for key in self._instructions}
        for name, array in found.arrays.items():
            key, _, output = name.partition(".")
            if key not in self._said or array.dtype != np.float32:
                raise BundleError(f"{source}: {name!r} belongs to no instruction, or is no float32; export again")
            self._said[key][output] = array
        shapes = [{name: array.shape for name, array in said.items()} for said in self._said.values()]
        if not shapes or not shapes[0] or any(other != shapes[0] for other in shapes):
            raise BundleError(f"{source}: must hold the same arrays for each of one or more instructions; export again")
        self.shapes: dict[str, tuple[int, ...]] = shapes[0]

    def __len__(self) -> int:
        return len(self._said)

    def find(self, words: Sequence[str]) -> Said | None:
        """What was made of these words, or None."""
        return self._said.get(key_of(words))

    def nearest(self, words: Sequence[str]) -> list[str]:
        """The instructions that read most alike, at most NEAREST."""
        return difflib.get_close_matches(" ".join(words), self._instructions.values(), n=NEAREST, cutoff=0.0)


def encoded(made: Iterable[tuple[Sequence[str], Said]]) -> bytes:
    """The file of these instructions' words and what `text` makes of them."""
    arrays: dict[str, NDArray[Any]] = {}
    notes: dict[str, str] = {}
    for words, said in made:
        key = key_of(words)
        notes[key] = " ".join(words)
        arrays |= {f"{key}.{name}": array for name, array in said.items()}
    return tensors.write(arrays, notes)


class KeptPrompts:
    """Instructions that `text` has seen on this machine, in a private folder; a file that was altered is not read.

    bundle: digest of its manifest: another bundle makes something else of the same words.
    """

    def __init__(self, bundle: str) -> None:
        self._bundle = bundle
        try:
            self._files: GraphCache | None = GraphCache(state_folder() / FOLDER)
        except PolicyError:  # it only saves time
            self._files = None

    def find(self, words: Sequence[str], shapes: Mapping[str, tuple[int, ...]]) -> Said | None:
        """What was made of these words, or None. shapes: of what `text` makes."""
        data = None if self._files is None else self._files.read(self._name(words))
        if data is None:
            return None
        try:
            kept = Prompts(data, "a kept prompt")
        except BundleError:
            return None
        return kept.find(words) if kept.shapes == dict(shapes) else None

    def keep(self, words: Sequence[str], said: Said) -> None:
        """Have it next time."""
        if self._files is not None:
            try:
                self._files.write(self._name(words), encoded([(words, said)]))
            except OSError:  # a full disk is no reason to refuse a task
                return

    def _name(self, words: Sequence[str]) -> str:
        return hashlib.sha256(f"{self._bundle}\0{key_of(words)}".encode()).hexdigest()
