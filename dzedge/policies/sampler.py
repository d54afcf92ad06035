"""How a chunk is drawn from a model, and how that is written: `video_first(1,1)`, `euler(4)`, `sample(0.7)`."""

import re
from typing import NamedTuple

from dzedge.errors import PolicyError

STEPS = r"([1-9][0-9]?)"
TOGETHER = re.compile(rf"(video_first|joint|flash)\({STEPS}(?:, ?{STEPS})?\)")
EULER = re.compile(rf"euler\({STEPS}\)")
SAMPLE = re.compile(r"sample\(([0-9](?:\.[0-9]{1,2})?)\)")
COLDEST, HOTTEST = 0.1, 2.0


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

    @property
    def times(self) -> tuple[float, ...]:
        """Every time t that a pass over video or actions is made at, each once; 1 is that of a finished video."""
        steps = (self.video_steps, self.action_steps)
        return tuple(sorted({i / n for n in steps for i in range(n)} | {1.0}))

    @classmethod
    def parse(cls, text: str) -> "Sampler":
        """The sampler written as `video_first(1,1)`. Raises PolicyError."""
        call = TOGETHER.fullmatch(text)
        if call is not None:
            kind, first, second = call[1], int(call[2]), call[3]
            if kind == "video_first" and second is not None:
                return cls(False, first, int(second))
            if second is None and (kind == "joint" or (kind == "flash" and first == 1)):
                return cls(True, first, first)
        raise PolicyError(
            f"sampler {text!r}: must be video_first(nv,na), joint(n) or flash(1), 1 to 99 steps; change it"
        )


class Euler(NamedTuple):
    """`euler(n)`: n equal steps from noise to actions along the model's velocity."""

    steps: int

    @classmethod
    def parse(cls, text: str) -> "Euler":
        """The sampler written as `euler(4)`. Raises PolicyError."""
        call = EULER.fullmatch(text)
        if call is None:
            raise PolicyError(f"sampler {text!r}: must be euler(n), 1 to 99 steps; change it")
        return cls(int(call[1]))


class TokenSampler(NamedTuple):
    """`greedy`: the likeliest token; `sample(T)`: a token with probability softmax(logits / T). temperature: T, or 0
    for greedy."""

    temperature: float

    @classmethod
    def parse(cls, text: str) -> "TokenSampler":
        """The sampler written as `greedy` or `sample(0.7)`. Raises PolicyError."""
        if text == "greedy":
            return cls(0.0)
        call = SAMPLE.fullmatch(text)
        if call is None or not COLDEST <= float(call[1]) <= HOTTEST:
            raise PolicyError(
                f"sampler {text!r}: must be greedy or sample(T), T in [{COLDEST}, {HOTTEST:g}]; change it"
            )
        return cls(float(call[1]))
