"""The coupled world action model family: video and actions in one sequence, denoised together.

    a task    text -> rows of language
    a frame   image -> frame_encoder -> prefill <- window, language -> rows, into the window
    a pass    joint_step <- window, language, video, actions, state, committed actions

Graphs read and write the same buffers, so nothing is copied between them but a frame's rows, once. A chunk follows
from the frames since the task began, because a frame's rows hold what was seen before it.

Flow matching, t = 0 noise to t = 1 clean, Euler steps x += v / n. Host arithmetic is float64.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dzedge.errors import PolicyError
from dzedge.policies.base import WorldModel, anchor_of, shared
from dzedge.policies.context import Shapes
from dzedge.policies.sampler import Sampler
from dzedge.policies.statistics import Floats
from dzedge.policies.stream import FrameStream
from dzedge.types import ActionChunk, ActionPrefix, Observation

NOTHING = ActionPrefix(np.zeros((0, 0)))


class JointWorldModel(WorldModel):
    """A bundle of the coupled layout on this machine; see `BundledPolicy` for its arguments and errors."""

    sampler: Sampler

    def reset(self, instruction: str) -> None:
        """Begin a task. Raises PolicyError for words that the model does not know; the old task stays."""
        super().reset(instruction)
        self.stream.forget()

    def infer(self, observation: Observation, prefix: ActionPrefix, chunk_id: int) -> ActionChunk:
        """One chunk with the frames that belong to it. Shape (H, J), [rad], absolute, targets for t_obs + (i + 1) * dt.

        Raises PolicyError when the prefix is longer than the model was trained for.
        """
        anchor = self._begin(observation, prefix, chunk_id)
        if self.sampler.coupled:
            self._denoise_together()
        else:
            self._denoise_video()
            self._denoise_actions()
        return self._chunk(observation, self._positions(anchor), chunk_id, self._future())

    def imagine(self, observation: Observation, chunk_id: int = 0) -> NDArray[np.float32]:
        """Latents of the frames it expects, Shape (F, K, C), as the sampler comes to them."""
        self._begin(observation, NOTHING, chunk_id)
        if self.sampler.coupled:
            self._denoise_together()
        else:
            self._denoise_video()
        return self._future()

    def infer_actions(
        self, observation: Observation, future: NDArray[np.float32], prefix: ActionPrefix, chunk_id: int = 0
    ) -> ActionChunk:
        """The actions that lead to given future latents, Shape (F, K, C) (inverse dynamics).

        Raises PolicyError where the model never saw a finished video while it learned: its manifest has no sampler
        video_first then.
        """
        self._check_decoupled("infer_actions")
        anchor = self._begin(observation, prefix, chunk_id)
        self._video[0] = self._scaled(future)
        self._denoise_actions()
        return self._chunk(observation, self._positions(anchor), chunk_id, np.asarray(future, np.float32))

    # ------------------------------------------------------------------ graphs

    def _choose(self, sampler: str) -> None:
        self.sampler = Sampler.parse(sampler)
        if not self.sampler.coupled:
            self._check_decoupled(f"sampler {sampler!r}")

    def _check_decoupled(self, what: str) -> None:
        if not any(sampler.startswith("video_first") for sampler in self.section.samplers):
            raise PolicyError(
                f"{what}: this model was trained with one time for video and actions; it has "
                f"{', '.join(self.section.samplers)}; choose one of them, or train it with clean_share > 0"
            )

    def _load(self) -> dict[str, NDArray[Any]]:
        self.step = self._graph("joint_step")
        known = shared(self.step.inputs, "key", "value", "valid", "key_text", "value_text")
        self.prefill = self._graph("prefill", **known)
        return shared(self.step.inputs, "key_text", "value_text")

    def _check(self, said: Shapes) -> None:
        s, window, video = self.section, self.section.window, self.section.video
        assert window is not None  # the manifest says so of every wan_joint
        made = self.prefill.outputs.get("new_key")
        tokens = made.shape[3] if made is not None and made.ndim == 5 else 0  # patches of a token: the model's affair
        row, latent = (window.layers, window.heads, tokens, window.head_dim), (video.tokens, video.channels)
        chunk, slots = (1, s.horizon, len(s.joints)), window.slots
        known = dict(key=(slots, *row), value=(slots, *row), valid=(1, slots), **said)
        self.prefill.expect(
            {"latent": (1, 1, *latent), "slot_pos": (1, slots + 1), **known},
            {"new_key": (1, *row), "new_value": (1, *row)},
        )
        frames = (1, video.frames, *latent)
        self.step.expect(
            dict(video=frames, action=chunk, prefix=chunk, prefix_mask=chunk[:2], state=(1, chunk[2]))
            | {"slot_pos": (1, slots + video.frames), "t_video": (1,), "t_action": (1,), **known},
            {"v_video": frames, "v_action": chunk},
        )
        self.stream = FrameStream(self.prefill, video.frames, video.frame_dt_ns)
        self._video, self._action = self.step.inputs["video"], self.step.inputs["action"]
        self._v_video, self._v_action = self.step.outputs["v_video"], self.step.outputs["v_action"]
        self._see, self._act = self.step.bind("v_video"), self.step.bind("v_action")

    # ----------------------------------------------------------- conditioning

    def _begin(self, observation: Observation, prefix: ActionPrefix, chunk_id: int) -> Floats:
        """Frames, joints, commitments and noise; returns the anchor, Shape (J,), [rad]."""
        anchor, inputs = anchor_of(observation), self.step.inputs
        self._condition(inputs, anchor, self._committed(prefix))
        inputs["state"][0] = self.statistics.state(anchor)
        self._attend(observation)
        generator = self._noise.of(chunk_id)
        generator.standard_normal(dtype=np.float32, out=self._video)
        generator.standard_normal(dtype=np.float32, out=self._action)
        return anchor

    def _attend(self, observation: Observation) -> None:
        """Take in the frames that are new, oldest first. Where time goes back, what was seen is forgotten."""
        if observation.frames[-1].capture_ns < self.stream.newest_ns:
            self.stream.forget()
        for frame in observation.frames:
            if frame.capture_ns > self.stream.newest_ns:
                latent = self.perception.kept["latent"][self.perception.slot(frame), 0]
                self.stream.push(self._scaled(latent), frame.capture_ns)
        self.stream.place(self.step.inputs["slot_pos"])

    # --------------------------------------------------------------- sampling

    def _denoise_together(self) -> None:
        steps, inputs = self.sampler.video_steps, self.step.inputs
        for i in range(steps):
            inputs["t_video"][0] = inputs["t_action"][0] = i / steps
            self.step.run()
            self._video += self._v_video / np.float32(steps)
            self._action += self._v_action / np.float32(steps)

    def _denoise_video(self) -> None:
        steps, inputs = self.sampler.video_steps, self.step.inputs
        inputs["t_action"][0] = 0.0
        for i in range(steps):
            inputs["t_video"][0] = i / steps
            self._see.run()
            self._video += self._v_video / np.float32(steps)

    def _denoise_actions(self) -> None:
        steps, inputs = self.sampler.action_steps, self.step.inputs
        inputs["t_video"][0] = 1.0
        for i in range(steps):
            inputs["t_action"][0] = i / steps
            self._act.run()
            self._action += self._v_action / np.float32(steps)

    # ---------------------------------------------------------------- results

    def _scaled(self, latents: NDArray[np.floating]) -> Floats:
        """Latents as the graphs take them. Shape (..., K, C)."""
        scaled: Floats = (latents - self.statistics.latent_mean) / self.statistics.latent_std
        return scaled

    def _future(self) -> NDArray[np.float32]:
        future = self._video[0] * self.statistics.latent_std + self.statistics.latent_mean
        return future.astype(np.float32)

    def _positions(self, anchor: Floats) -> Floats:
        return self.statistics.positions(self._action[0], anchor)
