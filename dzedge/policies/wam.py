"""The world action model family: imagine what the camera will see, then the actions that make it so.

Graphs, each run by ONNX Runtime on buffers that lead from one to the next without a copy:

    a task    text -> modulation (at each of the sampler's times)
    a frame   image -> frame_encoder -> prefill -> rows, kept in a ring
    a chunk   window of rows -> context -> rows, turned to their age, that every pass attends to
    a pass    video_step <- context, text, modulation
                 | finished video's rows
                 v
              action_step <- state, committed actions, modulation

A frame's rows are made once and written into the window once, when the frame enters a slot of it; no pass stacks or
turns them again. Slots go by age, so a chunk's bytes follow from its observation and noise alone.

Flow matching, t = 0 noise to t = 1 clean, Euler steps x += v / n. Host arithmetic is float64.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dzedge.errors import PolicyError
from dzedge.policies.base import WorldModel, anchor_of, shared
from dzedge.policies.context import Shapes
from dzedge.policies.modulation import Modulation
from dzedge.policies.sampler import Sampler
from dzedge.policies.statistics import Floats
from dzedge.types import ActionChunk, ActionPrefix, Observation

NO_FRAME = -1
"""In place of a capture time: the slot of the window is empty."""


class WorldActionModel(WorldModel):
    """A WAM bundle on this machine; see `BundledPolicy` for its arguments and errors."""

    sampler: Sampler
    _inside: list[int]
    """Capture time of the frame in each slot of the window."""

    def reset(self, instruction: str) -> None:
        """Begin a task. Raises PolicyError for an instruction that the model does not know; the old task stays."""
        super().reset(instruction)
        self._inside = [NO_FRAME] * len(self._inside)
        self.modulation.fill()

    def infer(self, observation: Observation, prefix: ActionPrefix, chunk_id: int) -> ActionChunk:
        """One chunk: imagine, then act. Shape (H, J), [rad], absolute, targets for t_obs + (i + 1) * dt.

        Raises PolicyError when the prefix is longer than the model was trained for.
        """
        current = self._attend(observation)
        anchor = self._begin(observation, prefix)
        self._draw(chunk_id)
        if self.sampler.coupled:
            self._denoise_together()
        else:
            self._denoise_video()
            self._denoise_actions()
        return self._chunk(observation, self._positions(anchor), chunk_id, self._future(current))

    @property
    def follows_actions(self) -> bool:
        """Whether `imagine` can be told actions."""
        return "given" in self.context.inputs

    def imagine(
        self, observation: Observation, chunk_id: int = 0, actions: Floats | None = None
    ) -> NDArray[np.float32]:
        """Latents of the frames it expects, Shape (F, K, C), without deciding on actions.

        actions: those it is to expect the frames of, Shape (H, J), [rad], absolute; None: its own choice. Raises
        PolicyError for actions where the model was not made to be told them, or for another shape.
        """
        current = self._attend(observation, actions)
        self._draw(chunk_id)
        self._denoise_video()
        return self._future(current)

    def infer_actions(
        self, observation: Observation, future: NDArray[np.float32], prefix: ActionPrefix, chunk_id: int = 0
    ) -> ActionChunk:
        """The actions that lead to given future latents, Shape (F, K, C) (inverse dynamics)."""
        current = self._attend(observation)
        anchor = self._begin(observation, prefix)
        self._draw(chunk_id)
        scale = self.statistics.residual_std
        still = scale == 0.0
        self._video[0] = np.where(still, 0.0, (future - current) / np.where(still, 1.0, scale))
        self._denoise_actions()
        return self._chunk(observation, self._positions(anchor), chunk_id, np.asarray(future, np.float32))

    def metres(self, latents: NDArray[np.float32]) -> Floats:
        """Latents in the units of the world: Shape (..., K, C), positions [m], presence 0..1."""
        return latents * self.statistics.latent_std + self.statistics.latent_mean

    # ------------------------------------------------------------------ graphs

    def _choose(self, sampler: str) -> None:
        self.sampler = Sampler.parse(sampler)

    def _load(self) -> dict[str, NDArray[Any]]:
        self.action = self._graph("action_step")
        self.video = self._graph("video_step", **shared(self.action.inputs, "key_video", "value_video"))
        rows = shared(self.video.inputs, "key_context", "value_context", "mask")
        self.context = self._graph("context", **rows)
        self.modulation = Modulation(self._graph("modulation"), self.sampler.times)
        self.prefill = self._graph("prefill", latent=self.encoder.outputs["latent"])
        self.perception.follow(self.prefill)
        return (
            shared(self.modulation.graph.inputs, "text")
            | shared(self.video.inputs, "place")
            | shared(self.context.inputs, "key_text", "value_text")
        )

    def _check(self, said: Shapes) -> None:
        s, window, video = self.section, self.section.window, self.section.video
        assert window is not None  # the manifest says so of every wam
        layers = (window.layers, window.heads)
        row, words = (*layers, video.tokens, window.head_dim), (*layers, 1, window.head_dim)
        latent, chunk = (1, video.tokens, video.channels), (1, s.horizon, len(s.joints))
        frames, slots, kept = (1, video.frames, *latent[1:]), (1, window.slots), (window.slots, *row)
        told = {"given": chunk, "has_given": (1,)} if "given" in self.context.inputs else {}
        rows = self.context.outputs["key_context"].shape if "key_context" in self.context.outputs else ()
        seen = dict(key_context=rows, value_context=rows, mask=(1, video.tokens + rows[2] if len(rows) == 4 else 0))
        text = said.get("text", ())
        width = text[-1] if text else 0
        six = (1, 6 * window.layers, width)
        self.prefill.expect({"latent": latent}, {"key": row, "value": row})
        self.context.expect(
            dict(key=kept, value=kept, slot_pos=slots, valid=slots, key_text=words, value_text=words) | told, seen
        )
        self.modulation.graph.expect({"t": (1,), "text": text}, dict(mod_video=six, mod_action=six))
        self.video.expect(
            dict(video=frames, latent=latent, place=(1, video.tokens, width), **seen, mod_video=six, t_video=(1,)),
            dict(v_video=frames, key_video=row, value_video=row),
        )
        self.action.expect(
            dict(action=chunk, prefix=chunk, prefix_mask=chunk[:2], state=(1, chunk[2]))
            | dict(key_video=row, value_video=row, mod_action=six, t_action=(1,)),
            {"v_action": chunk},
        )
        self._inside = [NO_FRAME] * window.slots
        self._video, self._action = self.video.inputs["video"], self.action.inputs["action"]
        self._v_video, self._v_action = self.video.outputs["v_video"], self.action.outputs["v_action"]
        self._video_velocity = self.video.bind("v_video")
        self._video_rows = self.video.bind("key_video", "value_video")

    # ----------------------------------------------------------- conditioning

    def _attend(self, observation: Observation, given: Floats | None = None) -> NDArray[np.float32]:
        """Make the rows of context, newest frame in slot 0; returns its latent, Shape (K, C).

        given: actions that the video is to follow, Shape (H, J), [rad]. Raises PolicyError.
        """
        self._tell(observation, given)
        unit, inputs, kept = self.section.video.frame_dt_ns, self.context.inputs, self.perception.kept
        frames = observation.frames[::-1][: len(self._inside)]
        inputs["valid"][:] = 0.0
        inputs["slot_pos"][:] = 0.0
        for slot, frame in enumerate(frames):
            found = self.perception.slot(frame)
            if self._inside[slot] != frame.capture_ns:
                inputs["key"][slot] = kept["key"][found]
                inputs["value"][slot] = kept["value"][found]
                self._inside[slot] = frame.capture_ns
            inputs["slot_pos"][0, slot] = (frame.capture_ns - observation.t_obs_ns) / unit
            inputs["valid"][0, slot] = 1.0
            if slot == 0:
                self.video.inputs["latent"][:] = kept["latent"][found]
        self.context.run()
        latent: NDArray[np.float32] = self.video.inputs["latent"][0]
        return latent

    def _tell(self, observation: Observation, given: Floats | None) -> None:
        """Give the context actions, or none. Raises PolicyError."""
        inputs = self.context.inputs
        if not self.follows_actions:
            if given is not None:
                raise PolicyError(f"{self.section.model_id} cannot be told actions; train it with sizes.given = true")
            return
        inputs["has_given"][0] = given is not None
        inputs["given"][:] = 0.0
        if given is not None:
            wanted = inputs["given"].shape[1:]
            if np.shape(given) != wanted:
                raise PolicyError(f"actions to imagine have shape {np.shape(given)}: must be {wanted}; give a chunk")
            inputs["given"][0] = self.statistics.actions(given, anchor_of(observation))

    def _begin(self, observation: Observation, prefix: ActionPrefix) -> Floats:
        """Condition the actions on joints and commitments; returns the anchor, Shape (J,), [rad]."""
        anchor, inputs = anchor_of(observation), self.action.inputs
        self._condition(inputs, anchor, self._committed(prefix))
        inputs["state"][0] = self.statistics.state(anchor)
        return anchor

    # --------------------------------------------------------------- sampling

    def _draw(self, chunk_id: int) -> None:
        generator = self._noise.of(chunk_id)
        generator.standard_normal(dtype=np.float32, out=self._video)
        generator.standard_normal(dtype=np.float32, out=self._action)

    def _denoise_video(self) -> None:
        steps = self.sampler.video_steps
        for i in range(steps):
            self.modulation.write(i / steps, "video", self.video.inputs)
            self._video_velocity.run()
            self._video += self._v_video / np.float32(steps)

    def _denoise_actions(self) -> None:
        self.modulation.write(1.0, "video", self.video.inputs)
        self._video_rows.run()
        steps = self.sampler.action_steps
        for i in range(steps):
            self.modulation.write(i / steps, "action", self.action.inputs)
            self.action.run()
            self._action += self._v_action / np.float32(steps)

    def _denoise_together(self) -> None:
        steps = self.sampler.video_steps
        for i in range(steps):
            self.modulation.write(i / steps, "video", self.video.inputs)
            self.modulation.write(i / steps, "action", self.action.inputs)
            self.video.run()
            self.action.run()
            self._video += self._v_video / np.float32(steps)
            self._action += self._v_action / np.float32(steps)

    # ---------------------------------------------------------------- results

    def _future(self, current: NDArray[np.float32]) -> NDArray[np.float32]:
        future: NDArray[np.float32] = (current + self._video[0] * self.statistics.residual_std).astype(np.float32)
        return future

    def _positions(self, anchor: Floats) -> Floats:
        return self.statistics.positions(self._action[0], anchor)
