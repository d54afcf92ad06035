"""The token VLA family (RT-2-like): actions as words, one after the other.

    context (frames, words, joints) -> K/V rows -> token_step <- last token, rows of those before it
                                                       `-> logits over 256 bins, this token's row

A chunk is H * J tokens, row-major; each says in which of 256 equal bins of its range an action lies. Committed actions
are forced, not chosen. It imagines nothing.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dzedge.bundle import Section
from dzedge.policies.base import BundledPolicy, anchor_of, shared
from dzedge.policies.context import Context, Shapes
from dzedge.policies.sampler import TokenSampler
from dzedge.policies.statistics import Floats, table
from dzedge.types import ActionChunk, ActionPrefix, Observation

BINS = 256
START = BINS
"""The token before the first."""
BROKEN = -1
"""In place of a token: the logits were not finite."""


class Bins:
    """Equal bins of each action's range. low: Shape (H, J), [rad] relative to the anchor; width: of one, (H, J).

    Raises BundleError for a range that is misshapen or empty.
    """

    def __init__(self, section: Section) -> None:
        shape, read = (section.horizon, len(section.joints)), section.statistics
        self.low = table("action_low", read.action_low, shape)
        high = table("action_high", read.action_high, shape)
        self.width = table("action_high - action_low", high - self.low, shape, positive=True) / BINS

    def tokens(self, offsets: Floats) -> list[int]:
        """The bins whose centres are nearest. Shape (d, J), d <= H, to d * J of them, row-major."""
        count = len(offsets)
        place = np.floor((offsets - self.low[:count]) / self.width[:count])
        return [int(token) for token in place.clip(0, BINS - 1).flat]

    def centres(self, tokens: NDArray[np.int64]) -> Floats:
        """Shape (H * J,) to (H, J), [rad] relative to the anchor."""
        centres: Floats = self.low + (tokens.reshape(self.low.shape) + 0.5) * self.width
        return centres


class TokenVla(BundledPolicy):
    """A token VLA bundle on this machine; see `BundledPolicy` for its arguments and errors."""

    sampler: TokenSampler

    def infer(self, observation: Observation, prefix: ActionPrefix, chunk_id: int) -> ActionChunk:
        """One chunk. Shape (H, J), [rad], absolute, targets for t_obs + (i + 1) * dt; from the first token on whose
        logits were not finite, nan. Committed positions are returned as they came.

        Raises PolicyError when the prefix is longer than the model was trained for.
        """
        anchor, committed = anchor_of(observation), self._committed(prefix)
        base = anchor * self.statistics.relative
        self.context.fill(observation, anchor)
        made = self._speak(self.bins.tokens(committed - base), chunk_id)
        positions = self.bins.centres(self._tokens) + base
        positions[: len(committed)] = committed
        positions.reshape(-1)[made:] = math.nan
        return self._chunk(observation, positions, chunk_id)

    def _speak(self, forced: Sequence[int], chunk_id: int) -> int:
        """Fill the chunk's tokens, the first ones with `forced`; returns how many could be made."""
        # What is masked must be finite all the same: nan * 0 is nan, for every chunk to come.
        self._past_key.fill(0.0)
        self._past_value.fill(0.0)
        if self.sampler.temperature:
            self._noise.of(chunk_id).random(out=self._chance)
        inputs, outputs, token = self.token.inputs, self.token.outputs, START
        last, place, run = inputs["token"], inputs["position"], self.token.run
        key, value = outputs["new_key"], outputs["new_value"]
        for position, (key_row, value_row) in enumerate(self._rows):
            last[0], place[0] = token, position
            run()
            key_row[:], value_row[:] = key, value
            token = forced[position] if position < len(forced) else self._pick(position)
            if token == BROKEN:
                return position
            self._tokens[position] = token
        return len(self._rows)

    def _pick(self, position: int) -> int:
        """The token that the logits call for, or BROKEN."""
        logits, temperature = self._logits, self.sampler.temperature
        likeliest = int(logits.argmax())  # of several the first; of nan the nan
        if not math.isfinite(logits[likeliest]):
            return BROKEN
        if not temperature:
            return likeliest
        shares = np.exp((logits.astype(np.float64) - float(logits[likeliest])) / temperature).cumsum()
        return min(int(shares.searchsorted(self._chance[position] * shares[-1], side="right")), BINS - 1)

    def _choose(self, sampler: str) -> None:
        self.sampler = TokenSampler.parse(sampler)

    def _load(self) -> dict[str, NDArray[Any]]:
        self.bins = Bins(self.section)
        self.token = self._graph("token_step")
        graph = self._graph("context", **shared(self.token.inputs, "key", "value"))
        self.context = Context(graph, self.perception, self.statistics)
        return shared(graph.inputs, "text")

    def _check(self, said: Shapes) -> None:
        count = self.horizon * len(self.section.joints)
        rows = self.context.expect(self.section, said)
        past, new = (*rows[:2], count, rows[3]), (*rows[:2], 1, rows[3])
        self.token.expect(
            dict(token=(1,), position=(1,), key=rows, value=rows, past_key=past, past_value=past),
            dict(logits=(1, BINS), new_key=new, new_value=new),
        )
        self._past_key, self._past_value = self.token.inputs["past_key"], self.token.inputs["past_value"]
        self._rows = [(self._past_key[:, :, p : p + 1], self._past_value[:, :, p : p + 1]) for p in range(count)]
        self._logits = self.token.outputs["logits"][0]
        self._tokens, self._chance = np.zeros(count, np.int64), np.zeros(count)
