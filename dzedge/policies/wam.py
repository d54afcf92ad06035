"""The world action model family: imagine what the camera will see, then the actions that make it so.

Six graphs, each run by ONNX Runtime on buffers that lead from one to the next without a copy:

    text -> video_step <- window of K/V rows <- prefill <- frame_encoder <- image
                 | finished video's rows
                 v
            action_step <- state, committed actions

Flow matching, t = 0 noise to t = 1 clean, Euler steps x += v / n. Host arithmetic is float64.
"""

import numpy as np
from numpy.typing import NDArray

from dzedge.engine import Graph, load_graph
from dzedge.policies.base import BundledPolicy, anchor_of, shared
from dzedge.policies.sampler import Sampler
from dzedge.policies.statistics import Floats
from dzedge.types import ActionChunk, ActionPrefix, Frame, Observation


class WorldActionModel(BundledPolicy):
    """A WAM bundle on this machine; see `BundledPolicy` for its arguments and errors."""

    sampler: Sampler
    _decoder: Graph | None = None

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

    def imagine(self, observation: Observation, chunk_id: int = 0) -> NDArray[np.float32]:
        """Latents of the frames it expects, Shape (F, K, C), without deciding on actions."""
        current = self._attend(observation)
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

    def decode(self, latents: NDArray[np.float32]) -> NDArray[np.uint8]:
        """Pictures of latents. Shape (F, K, C) -> (F, height, width, 3), RGB."""
        if self._decoder is None:
            self._decoder = load_graph(self._bundle, "frame_decoder", self._precision, self._machine)
        return decode(self._decoder, latents)

    def latent(self, frame: Frame) -> NDArray[np.float32]:
        """The clean latent of a frame, Shape (K, C); a copy."""
        latent: NDArray[np.float32] = self.perception.kept["latent"][self.perception.slot(frame), 0]
        return latent.copy()

    def metres(self, latents: NDArray[np.float32]) -> Floats:
        """Latents in the units of the world: Shape (..., K, C), positions [m], presence 0..1."""
        return latents * self.statistics.latent_std + self.statistics.latent_mean

    # ------------------------------------------------------------------ graphs

    def _choose(self, sampler: str) -> None:
        self.sampler = Sampler.parse(sampler)

    def _load(self) -> Graph:
        self.action = self._graph("action_step")
        self.video = self._graph("video_step", **shared(self.action.inputs, "key_video", "value_video"))
        self.prefill = self._graph("prefill", latent=self.encoder.outputs["latent"])
        self.perception.follow(self.prefill)
        return self.video

    def _check(self, text: tuple[int, ...]) -> None:
        s, window, video = self.section, self.section.window, self.section.video
        assert window is not None  # the manifest says so of every wam
        row = (window.layers, window.heads, video.tokens, window.head_dim)
        latent, chunk = (1, video.tokens, video.channels), (1, s.horizon, len(s.joints))
        frames, slots = (1, video.frames, *latent[1:]), (1, window.slots)
        kept = (window.slots, *row)
        self.prefill.expect({"latent": latent}, {"key": row, "value": row})
        self.video.expect(
            dict(video=frames, latent=latent, key=kept, value=kept, slot_pos=slots, valid=slots, text=text)
            | {"t_video": (1,)},
            dict(v_video=frames, key_video=row, value_video=row),
        )
        self.action.expect(
            dict(action=chunk, prefix=chunk, prefix_mask=chunk[:2], state=(1, chunk[2]), t_action=(1,))
            | {"key_video": row, "value_video": row},
            {"v_action": chunk},
        )
        self._video, self._action = self.video.inputs["video"], self.action.inputs["action"]
        self._v_video, self._v_action = self.video.outputs["v_video"], self.action.outputs["v_action"]
        self._video_velocity = self.video.bind("v_video")
        self._video_rows = self.video.bind("key_video", "value_video")

    # ----------------------------------------------------------- conditioning

    def _attend(self, observation: Observation) -> NDArray[np.float32]:
        """Fill the window, newest frame in slot 0; returns its latent, Shape (K, C)."""
        unit, video, kept = self.section.video.frame_dt_ns, self.video.inputs, self.perception.kept
        frames = observation.frames[::-1][: video["valid"].shape[1]]
        video["valid"][:] = 0.0
        video["slot_pos"][:] = 0.0
        for slot, frame in enumerate(frames):
            found = self.perception.slot(frame)
            video["key"][slot] = kept["key"][found]
            video["value"][slot] = kept["value"][found]
            video["slot_pos"][0, slot] = (frame.capture_ns - observation.t_obs_ns) / unit
            video["valid"][0, slot] = 1.0
            if slot == 0:
                video["latent"][:] = kept["latent"][found]
        latent: NDArray[np.float32] = video["latent"][0]
        return latent

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
        steps, time = self.sampler.video_steps, self.video.inputs["t_video"]
        for i in range(steps):
            time[0] = i / steps
            self._video_velocity.run()
            self._video += self._v_video / np.float32(steps)

    def _denoise_actions(self) -> None:
        self.video.inputs["t_video"][0] = 1.0
        self._video_rows.run()
        self._denoise(self.action, self.sampler.action_steps)

    def _denoise_together(self) -> None:
        steps = self.sampler.video_steps
        for i in range(steps):
            self.video.inputs["t_video"][0] = self.action.inputs["t_action"][0] = i / steps
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


def decode(decoder: Graph, latents: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Pictures of latents by the `frame_decoder` graph. Shape (F, K, C) -> (F, height, width, 3), RGB."""
    pictures = []
    for latent in latents:
        decoder.inputs["latent"][0] = latent
        decoder.run()
        pixels = np.rint((decoder.outputs["image"][0] + 1.0) * 127.5).clip(0, 255)
        pictures.append(pixels.astype(np.uint8).transpose(1, 2, 0))
    return np.stack(pictures)
