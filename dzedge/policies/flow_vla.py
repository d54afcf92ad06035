"""The flow VLA family (pi0.5-like): what is seen, asked and felt as K/V rows, then actions by flow matching.

    context (frames, words, joints) -> K/V rows -> action_step <- committed actions, time

The rows are computed once a chunk; each of the sampler's steps runs only the action expert. It imagines nothing.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dzedge.policies.base import BundledPolicy, anchor_of, shared
from dzedge.policies.context import Context, Shapes
from dzedge.policies.sampler import Euler
from dzedge.types import ActionChunk, ActionPrefix, Observation


class FlowVla(BundledPolicy):
    """A flow VLA bundle on this machine; see `BundledPolicy` for its arguments and errors."""

    sampler: Euler

    def infer(self, observation: Observation, prefix: ActionPrefix, chunk_id: int) -> ActionChunk:
        """One chunk. Shape (H, J), [rad], absolute, targets for t_obs + (i + 1) * dt.

        Raises PolicyError when the prefix is longer than the model was trained for.
        """
        anchor, action = anchor_of(observation), self.action.inputs["action"]
        self._condition(self.action.inputs, anchor, self._committed(prefix))
        self.context.fill(observation, anchor)
        self._noise.of(chunk_id).standard_normal(dtype=np.float32, out=action)
        self._denoise(self.action, self.sampler.steps)
        return self._chunk(observation, self.statistics.positions(action[0], anchor), chunk_id)

    def _choose(self, sampler: str) -> None:
        self.sampler = Euler.parse(sampler)

    def _load(self) -> dict[str, NDArray[Any]]:
        self.action = self._graph("action_step")
        graph = self._graph("context", **shared(self.action.inputs, "key", "value"))
        self.context = Context(graph, self.perception, self.statistics)
        return shared(graph.inputs, "text")

    def _check(self, said: Shapes) -> None:
        chunk = (1, self.horizon, len(self.section.joints))
        rows = self.context.expect(self.section, said)
        self.action.expect(
            dict(action=chunk, prefix=chunk, prefix_mask=chunk[:2], key=rows, value=rows, t_action=(1,)),
            {"v_action": chunk},
        )
