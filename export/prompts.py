"""Writes a bundle's prompts: what its `text` graph makes of every instruction that its maker knows."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from dzedge import prompts
from dzedge.errors import PolicyError, UsageError
from dzedge.export import parity
from dzedge.export.dataset import Dataset
from dzedge.export.model.text import words_of
from dzedge.manifest import PROMPTS


def write(folder: Path, text: Path, instructions: Iterable[str], length: int, vocabulary: Mapping[str, int]) -> int:
    """Writes prompts.safetensors into a bundle's folder. Returns how many instructions it holds.

    text: the float32 `text` graph, so that the cache gives what the graph gives, bit for bit; instructions: equal ones
    once; length: words of the longest, W; vocabulary: word -> id. Raises UsageError where there are none, or one has
    words that the model does not know.
    """
    session, made = parity.session(text), {}
    names = [output.name for output in session.get_outputs()]
    for instruction in instructions:
        words = prompts.words_of(instruction)
        if prompts.key_of(words) in made:
            continue
        try:
            ids = np.array([words_of(instruction, length, vocabulary)], dtype=np.int64)
        except PolicyError as error:
            raise UsageError(f"prompts: {error}") from error
        made[prompts.key_of(words)] = words, dict(zip(names, session.run(names, {"words": ids}), strict=True))
    if not made:
        raise UsageError("prompts: no instruction to keep; name datasets that have tasks")
    (folder / PROMPTS).write_bytes(prompts.encoded(made.values()))
    return len(made)


def instructions_of(roots: Iterable[Path]) -> list[str]:
    """The tasks of datasets, each once, in alphabetical order."""
    return sorted({task for root in roots for task in Dataset(root).tasks if task})
