"""Instructions: a closed vocabulary, and an embedding that says what to do and points at what to do it to."""

import re

import torch
from torch import Tensor, nn

from dzedge.errors import PolicyError
from dzedge.export.model.sizes import TOKEN_NAMES

WORDS = (
    "reach", "press", "push", "pass", "circle", "wave", "zigzag", "eight", "swing",
    "left", "right", "over", "the", "cube", *TOKEN_NAMES[1:],
)  # fmt: skip
VOCABULARY = {word: index for index, word in enumerate(WORDS, start=1)}
"""Word -> id; 0 is padding."""

POINTERS = len(TOKEN_NAMES) - 1
"""Entries at the end of an embedding that point at a cube."""

GAIN = 20.0
"""Of the pointer's logits: with plain weights a softmax needs thousands of steps to make up its mind."""

CAPACITY = 32
"""Rows of the embedding table: room for words of later recipes without a change of shape."""


def words_of(instruction: str, length: int) -> list[int]:
    """Ids of an instruction's words, padded with 0 to `length`. The empty instruction is all zeros.

    Raises PolicyError for a word outside the vocabulary or an instruction with too many words.
    """
    words = re.findall(r"[a-z]+", instruction.lower())
    if len(words) > length:
        raise PolicyError(f"instruction {instruction!r} has {len(words)} words, allowed 0..{length}: shorten it")
    unknown = [word for word in words if word not in VOCABULARY]
    if unknown:
        raise PolicyError(f"word {unknown[0]!r} of {instruction!r} is unknown; known: {', '.join(WORDS)}")
    return [VOCABULARY[word] for word in words] + [0] * (length - len(words))


def colour_of(instruction: str) -> int:
    """Index 0..5 of the colour an instruction names, -1 where it names none."""
    words = re.findall(r"[a-z]+", instruction.lower())
    named = [index for index, name in enumerate(TOKEN_NAMES[1:]) if name in words]
    return named[0] if named else -1


class TextEncoder(nn.Module):
    """Words -> what to do, and which thing to do it to.

    A colour's name only points: its words fill the last K - 1 entries with logits over the cubes. All other words
    are summed and mixed into the rest. The two never meet here, so a verb means the same for every colour: mixed
    together, pairs that training never shows came out short (0.35 against 1.00 for "push right").

    words: Shape (B, W), int64 -> Shape (B, 1, d).
    """

    pointing: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        doing = width - POINTERS
        self.table = nn.Parameter(0.5 * torch.randn(CAPACITY, doing))
        self.mix = nn.Sequential(nn.Linear(doing, width), nn.GELU(), nn.Linear(width, doing))
        self.points = nn.Parameter(torch.zeros(CAPACITY, POINTERS))
        pointing = torch.zeros(CAPACITY, 1)
        pointing[[VOCABULARY[name] for name in TOKEN_NAMES[1:]]] = 1.0
        self.register_buffer("pointing", pointing, persistent=False)

    def forward(self, words: Tensor) -> Tensor:
        known = (words > 0).to(self.table.dtype).unsqueeze(-1)
        points = self.pointing[words] * known
        doing = self.mix((self.table[words] * (known - points)).sum(1, keepdim=True))
        return torch.cat([doing, (GAIN * self.points[words] * points).sum(1, keepdim=True)], dim=-1)
