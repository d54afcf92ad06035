"""The dual-system VLA family (GR00T-N1-like): a slow system that sees and reads, a fast one that acts.

    features (frames, words)       every `slow_ns`
        |
        v
    action_step <- joints, committed actions, age of the features, time       every chunk

Between two looks the actions go on from the old features, told how old they are. It imagines nothing.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dzedge.clock import NS
from dzedge.policies.base import BundledPolicy, anchor_of, shared
from dzedge.policies.context import Shapes
from dzedge.policies.sampler import Euler
from dzedge.types import ActionChunk, ActionPrefix, Observation

SLOW_NS = 400_000_000
"""How long features are used where the manifest does not say."""


class DualVla(BundledPolicy):
    """A dual-system VLA bundle on this machine; see `BundledPolicy` for its arguments and errors."""

    sampler: Euler
    _seen_ns: int | None = None
    """Capture time of the frame that the features are of; None: there are none of this task."""

    def reset(self, instruction: str) -> None:
        """Begin a task: its words are seen to at once. Raises PolicyError for unknown words; the old task stays."""
        super().reset(instruction)
        self._seen_ns = None

    def infer(self, observation: Observation, prefix: ActionPrefix, chunk_id: int) -> ActionChunk:
        """One chunk. Shape (H, J), [rad], absolute, targets for t_obs + (i + 1) * dt.

        Raises PolicyError when the prefix is longer than the model was trained for.
        """
        anchor, inputs = anchor_of(observation), self.action.inputs
        self._condition(inputs, anchor, self._committed(prefix))
        inputs["state"][0] = self.statistics.state(anchor)
        inputs["age"][0] = self._look(observation) / NS
        self._noise.of(chunk_id).standard_normal(dtype=np.float32, out=inputs["action"])
        self._denoise(self.action, self.sampler.steps)
        return self._chunk(observation, self.statistics.positions(inputs["action"][0], anchor), chunk_id)

    def _look(self, observation: Observation) -> int:
        """Have features not older than `slow_ns`; returns their age, [ns]."""
        now_ns = observation.t_obs_ns
        age_ns = self.slow_ns if self._seen_ns is None else now_ns - self._seen_ns
        if 0 <= age_ns < self.slow_ns:
            return age_ns
        self.perception.show(observation.frames, self.features.inputs)
        self.features.run()
        self._seen_ns = now_ns
        return 0

    def _choose(self, sampler: str) -> None:
        self.sampler = Euler.parse(sampler)

    def _load(self) -> dict[str, NDArray[Any]]:
        self.slow_ns = SLOW_NS if self.section.slow_ns is None else self.section.slow_ns
        self.action = self._graph("action_step")
        self.features = self._graph("features", **shared(self.action.inputs, "features"))
        return shared(self.features.inputs, "text")

    def _check(self, said: Shapes) -> None:
        video, joints = self.section.video, len(self.section.joints)
        latent, chunk = (1, video.tokens, video.channels), (1, self.horizon, joints)
        features = (1, 2 * video.tokens + 1, *said.get("text", ())[2:])
        self.features.expect(dict(latent=latent, before=latent, has_before=(1,), **said), {"features": features})
        self.action.expect(
            dict(action=chunk, prefix=chunk, prefix_mask=chunk[:2], state=(1, joints), features=features)
            | {"age": (1,), "t_action": (1,)},
            {"v_action": chunk},
        )
