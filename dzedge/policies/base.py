"""What every policy family shares: the protocol, words to ids, and how a sampler is written."""

import difflib
import re
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from dzedge.bundle import Language
from dzedge.errors import PolicyError
from dzedge.types import ActionChunk, ActionPrefix, Frame, Observation

CALL = re.compile(r"(video_first|joint|flash)\(([1-9][0-9]?)(?:, ?([1-9][0-9]?))?\)")


class Policy(Protocol):
    """A policy on one robot. Not thread-safe: one loop owns it.

    horizon H, dt_ns: of its chunks; max_prefix: committed actions it was trained for; history_ns: how long
    before `t_obs` the frames of an observation were taken, newest (0) last.
    """

    horizon: int
    dt_ns: int
    max_prefix: int
    history_ns: tuple[int, ...]

    def reset(self, instruction: str) -> None:
        """Begin a task. Raises PolicyError for an instruction that cannot be embedded; the old one stays."""

    def observe(self, frame: Frame) -> None:
        """Take in a frame early, so that `infer` finds it already encoded."""

    def infer(self, observation: Observation, prefix: ActionPrefix, chunk_id: int) -> ActionChunk:
        """The next chunk; `chunk_id` also names its noise. Finite or not is judged where it is received."""


class Imagination(Protocol):
    """What a policy with a world model can do besides."""

    def imagine(self, observation: Observation, chunk_id: int) -> NDArray[np.float32]:
        """Latents of the frames it expects, Shape (F, K, C), without deciding on actions."""

    def decode(self, latents: NDArray[np.float32]) -> NDArray[np.uint8]:
        """Pictures of latents. Shape (F, K, C) -> (F, height, width, 3), RGB."""


class Sampler(NamedTuple):
    """In which order a world action model denoises video and actions.

        video_first(nv,na)    nv steps of video, then na steps of actions that see the finished video
        joint(n)              n steps of both at the same time
        flash(1)              joint(1)

    In joint sampling the actions commit while the video is still noise, so motions that were only ever seen
    in video are lost: hence video first by default. coupled: both share their steps, both counts are equal.
    """

    coupled: bool
    video_steps: int
    action_steps: int

    @classmethod
    def parse(cls, text: str) -> "Sampler":
        """The sampler written as `video_first(1,1)`. Raises PolicyError."""
        call = CALL.fullmatch(text)
        if call is not None:
            kind, first, second = call[1], int(call[2]), call[3]
            if kind == "video_first" and second is not None:
                return cls(False, first, int(second))
            if second is None and (kind == "joint" or (kind == "flash" and first == 1)):
                return cls(True, first, first)
        raise PolicyError(
            f"sampler {text!r}: must be video_first(nv,na), joint(n) or flash(1), 1 to 99 steps; change it"
        )


class Tokenizer:
    """Words to ids of a closed vocabulary; case and punctuation do not matter, unknown words are refused."""

    def __init__(self, language: Language) -> None:
        self._ids = language.vocabulary
        self._length = language.words

    def ids(self, instruction: str) -> NDArray[np.int64]:
        """Shape (W,), 0 pads. Raises PolicyError naming the unknown words and what is known."""
        words = re.findall(r"[^\W_]+", instruction.lower())
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

    def _suggest(self, unknown: list[str]) -> str:
        parts = []
        for word in unknown:
            close = difflib.get_close_matches(word, self._ids, n=1)
            parts.append(f"unknown word {word!r}" + (f" (did you mean {close[0]!r}?)" if close else ""))
        return ", ".join(parts)
