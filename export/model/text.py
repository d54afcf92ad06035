"""Instructions: a closed vocabulary, and an embedding that says what to do and points at what to do it to."""

import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as fn

from dzedge.errors import PolicyError
from dzedge.export.model.sizes import TOKEN_NAMES, Sizes

WORDS = (
    "reach", "press", "push", "pass", "circle", "wave", "zigzag", "eight", "swing",
    "left", "right", "over", "the", "cube", *TOKEN_NAMES[1:],
)  # fmt: skip
VOCABULARY = {word: index for index, word in enumerate(WORDS, start=1)}
"""Word -> id; 0 is padding. Of the simulator's tasks; any other dataset has one of its own."""

POINTERS = len(TOKEN_NAMES) - 1
"""Entries at the end of an embedding that point at a cube."""

GAIN = 20.0
"""Of the pointer's logits: with plain weights a softmax needs thousands of steps to make up its mind."""

CAPACITY = 32
"""Rows of the embedding table: room for words of later recipes without a change of shape."""


def spelled(instruction: str) -> list[str]:
    """An instruction's words as the runtime cuts them: letters and digits, lower case."""
    return re.findall(r"[^\W_]+", instruction.lower())


def vocabulary_of(instructions: Iterable[str]) -> dict[str, int]:
    """Word -> id of all words in them, in alphabetical order, from 1."""
    words = sorted({word for instruction in instructions for word in spelled(instruction)})
    return {word: index for index, word in enumerate(words, start=1)}


def words_of(instruction: str, length: int, vocabulary: Mapping[str, int] = VOCABULARY) -> list[int]:
    """Ids of an instruction's words, padded with 0 to `length`. The empty instruction is all zeros.

    Raises PolicyError for a word outside the vocabulary or an instruction with too many words.
    """
    words = spelled(instruction)
    if len(words) > length:
        raise PolicyError(f"instruction {instruction!r} has {len(words)} words, allowed 0..{length}: shorten it")
    unknown = [word for word in words if word not in vocabulary]
    if unknown:
        raise PolicyError(f"word {unknown[0]!r} of {instruction!r} is unknown; known: {', '.join(vocabulary)}")
    return [vocabulary[word] for word in words] + [0] * (length - len(words))


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


class PlainTextEncoder(nn.Module):
    """Words -> what to do, for tokens that nothing points at. A word counts by its place: "the cup on the box" and
    "the box on the cup" differ.

    words: Shape (B, W), int64 -> Shape (B, 1, d).
    """

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        width = sizes.width
        self.table = nn.Parameter(0.5 * torch.randn(sizes.vocabulary, width))
        self.places = nn.Parameter(0.5 * torch.randn(sizes.words, width))
        self.each = nn.Sequential(nn.Linear(width, width), nn.GELU())
        self.mix = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))

    def forward(self, words: Tensor) -> Tensor:
        known = (words > 0).to(self.table.dtype).unsqueeze(-1)
        return self.mix((self.each(self.table[words] + self.places) * known).sum(1, keepdim=True))


def text_encoder(sizes: Sizes) -> nn.Module:
    """The one that fits the tokenizer."""
    return TextEncoder(sizes.width) if sizes.structured else PlainTextEncoder(sizes)


def said(text: Tensor, pointers: int) -> tuple[Tensor, Tensor]:
    """What an embedding says to do, Shape (B, 1, d - pointers), and its logits over things and, the last one, zero,
    for "nothing named": then every thing gets the same small share, Shape (B, pointers + 1)."""
    doing = text.shape[-1] - pointers
    return text[..., :doing], fn.pad(text[:, 0, doing:], (0, 1))


def pointer_of(logits: Tensor) -> Tensor:
    """How much each token is meant, 0 for the arm. Shape (B, K) -> Shape (B, K, 1)."""
    return fn.pad(logits.softmax(-1)[:, :-1], (1, 0)).unsqueeze(-1)
