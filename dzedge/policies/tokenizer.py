"""Words to ids of a closed vocabulary."""

import difflib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dzedge.bundle import Language
from dzedge.errors import PolicyError
from dzedge.prompts import words_of


class Tokenizer:
    """Words to ids of a closed vocabulary; case and punctuation do not matter, unknown words are refused."""

    def __init__(self, language: Language) -> None:
        self._ids = language.vocabulary
        self._length = language.words

    def ids(self, instruction: str) -> NDArray[np.int64]:
        """Shape (W,), 0 pads. Raises PolicyError naming the unknown words and what is known."""
        words = words_of(instruction)
        unknown = sorted({word for word in words if word not in self._ids})
        if unknown:
            raise PolicyError(f"instruction {instruction!r}: {self._suggest(unknown)}; known: {self._known()}")
        if len(words) > self._length:
            raise PolicyError(
                f"instruction {instruction!r} has {len(words)} words: must be 0 to {self._length}; shorten it"
            )
        ids = np.zeros(self._length, np.int64)
        ids[: len(words)] = [self._ids[word] for word in words]
        return ids

    def _known(self) -> str:
        return ", ".join(self._ids)

    def _suggest(self, unknown: Sequence[str]) -> str:
        parts = []
        for word in unknown:
            close = difflib.get_close_matches(word, self._ids, n=1)
            parts.append(f"unknown word {word!r}" + (f" (did you mean {close[0]!r}?)" if close else ""))
        return ", ".join(parts)
