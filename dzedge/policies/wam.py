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

from dzedge.bundle import Bundle, Section
from dzedge.engine import Graph, Machine, Noise, load_graph
from dzedge.errors import BundleError, PolicyError
from dzedge.kernels.image import ImagePlan
from dzedge.policies.base import Sampler, Tokenizer
from dzedge.types import ActionChunk, ActionPrefix, Frame, Observation

MEMORY = 32
"""Encoded frames that are kept: one second at 30 fps."""
Floats = NDArray[np.float64]


class Statistics:
    """The manifest's statistics as arrays. Raises BundleError where a shape or a value is wrong."""

    def __init__(self, section: Section) -> None:
        joints, horizon, video = len(section.joints), section.horizon, section.video
        chunk, tokens = (horizon, joints), (video.tokens, video.channels)
        table = section.statistics
        self.action_std = _table("action_std", table.action_std, chunk, positive=True)
        self.action_mean = _table("action_mean", table.action_mean or np.zeros(chunk), chunk)
        self.state_mean = _table("state_mean", table.state_mean, (joints,))
        self.state_std = _table("state_std", table.state_std, (joints,), positive=True)
        # A token that never moves has residual 0: only division needs a positive value.
        self.residual_std = _table("residual_std", table.residual_std, (video.frames, *tokens))
        self.latent_mean = _table("latent_mean", table.latent_mean, tokens)
        self.latent_std = _table("latent_std", table.latent_std, tokens)
        self.relative = np.array([name not in section.absolute_joints for name in section.joints], np.float64)


class WorldActionModel:
    """A WAM bundle on this machine.

    bundle: opened; machine: what to run on; camera: (height, width) of the frames that will come; crop:
    (left, top, width, height) of them, or None; precision, sampler: as in the robot file; seed: of all noise.

    Raises BundleError for graphs or statistics that do not fit the manifest, PolicyError for a sampler.
    """

    def __init__(
        self,
        bundle: Bundle,
        machine: Machine,
        camera: tuple[int, int],
        crop: tuple[int, int, int, int] | None = None,
        precision: str = "auto",
        sampler: str = "auto",
        seed: int = 0,
    ) -> None:
        section = bundle.manifest.dzedge
        self.section = section
        self.horizon, self.dt_ns = section.horizon, section.dt_ns
        self.max_prefix, self.history_ns = section.max_prefix, section.video.history_ns
        self.sampler = Sampler.parse(section.samplers[0] if sampler == "auto" else sampler)
        self._noise = Noise(seed)
        self.statistics = Statistics(section)
        self.tokenizer = Tokenizer(section.language)
        self._bundle, self._machine, self._precision = bundle, machine, precision
        self._decoder: Graph | None = None
        self._load()
        left, top, width, height = crop or section.image.crop or (0, 0, camera[1], camera[0])
        inside = (top, left, height, width)
        self._plan = ImagePlan(*camera, inside, section.image.height, section.image.width)
        self._image = self.encoder.inputs["image"][0]
        self._memory = FrameMemory(MEMORY, self.encoder.outputs["latent"][0], self.prefill)
        self._warm_up()

    def reset(self, instruction: str) -> None:
        """Begin a task. Raises PolicyError for words that the model does not know; the old task stays."""
        self.text.inputs["words"][0] = self.tokenizer.ids(instruction)
        self.text.run()

    def observe(self, frame: Frame) -> None:
        """Encode a frame, once."""
        self._remember(frame)

    def infer(self, observation: Observation, prefix: ActionPrefix, chunk_id: int) -> ActionChunk:
        """One chunk: imagine, then act. Shape (H, J), [rad], absolute, targets for t_obs + (i + 1) * dt.

        Raises PolicyError when the prefix is longer than the model was trained for.
        """
        current = self._attend(observation)
        anchor = np.asarray(observation.state.positions, np.float64)
        self._condition(anchor, prefix.positions)
        self._draw(chunk_id)
        if self.sampler.coupled:
            self._denoise_together()
        else:
            self._denoise_video()
            self._denoise_actions()
        return self._chunk(observation, anchor, self._future(current), chunk_id)

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
        anchor = np.asarray(observation.state.positions, np.float64)
        self._condition(anchor, prefix.positions)
        self._draw(chunk_id)
        scale = self.statistics.residual_std
        still = scale == 0.0
        self._video[0] = np.where(still, 0.0, (future - current) / np.where(still, 1.0, scale))
        self._denoise_actions()
        return self._chunk(observation, anchor, np.asarray(future, np.float32), chunk_id)

    def decode(self, latents: NDArray[np.float32]) -> NDArray[np.uint8]:
        """Pictures of latents. Shape (F, K, C) -> (F, height, width, 3), RGB."""
        if self._decoder is None:
            self._decoder = load_graph(self._bundle, "frame_decoder", self._precision, self._machine)
        return decode(self._decoder, latents)

    def latent(self, frame: Frame) -> NDArray[np.float32]:
        """The clean latent of a frame, Shape (K, C); a copy."""
        latent: NDArray[np.float32] = self._memory.latents[self._remember(frame)]
        return latent.copy()

    def metres(self, latents: NDArray[np.float32]) -> Floats:
        """Latents in the units of the world: Shape (..., K, C), positions [m], presence 0..1."""
        return latents * self.statistics.latent_std + self.statistics.latent_mean

    # ------------------------------------------------------------------ graphs

    def _load(self) -> None:
        def load(name: str, **share: NDArray[np.float32]) -> Graph:
            return load_graph(self._bundle, name, self._precision, self._machine, share)

        self.action = load("action_step")
        rows = {key: self.action.inputs[key] for key in ("key_video", "value_video") if key in self.action.inputs}
        self.video = load("video_step", **rows)
        self.text = load("text", **{key: self.video.inputs[key] for key in ("text",) if key in self.video.inputs})
        self.encoder = load("frame_encoder")
        self.prefill = load("prefill", latent=self.encoder.outputs["latent"])
        self._check()
        self._video, self._action = self.video.inputs["video"], self.action.inputs["action"]
        self._window_key, self._window_value = self.video.inputs["key"], self.video.inputs["value"]
        self._v_video, self._v_action = self.video.outputs["v_video"], self.action.outputs["v_action"]
        self._video_velocity = self.video.bind("v_video")
        self._video_rows = self.video.bind("key_video", "value_video")

    def _check(self) -> None:
        s, window, video = self.section, self.section.window, self.section.video
        row = (window.layers, window.heads, video.tokens, window.head_dim)
        latent, image = (1, video.tokens, video.channels), (1, 3, s.image.height, s.image.width)
        chunk = (1, s.horizon, len(s.joints))
        width = self.text.outputs["text"].shape if "text" in self.text.outputs else ()
        frames, slots = (1, video.frames, *latent[1:]), (1, window.slots)
        kept = (window.slots, *row)
        self.text.expect({"words": (1, s.language.words)}, {"text": width})
        self.encoder.expect({"image": image}, {"latent": latent})
        self.prefill.expect({"latent": latent}, {"key": row, "value": row})
        self.video.expect(
            dict(video=frames, latent=latent, key=kept, value=kept, slot_pos=slots, valid=slots, text=width)
            | {"t_video": (1,)},
            dict(v_video=frames, key_video=row, value_video=row),
        )
        self.action.expect(
            dict(action=chunk, prefix=chunk, prefix_mask=chunk[:2], state=(1, chunk[2]), t_action=(1,))
            | {"key_video": row, "value_video": row},
            {"v_action": chunk},
        )

    def _warm_up(self) -> None:
        """First runs allocate; they must not be the first chunk's."""
        for graph in (self.text, self.encoder, self.prefill, self.video, self.action):
            graph.run()

    # ----------------------------------------------------------- conditioning

    def _remember(self, frame: Frame) -> int:
        slot = self._memory.find(frame.capture_ns)
        if slot is None:
            self._plan.run(frame.image, self._image)
            self.encoder.run()
            slot = self._memory.add(frame.capture_ns)
        return slot

    def _attend(self, observation: Observation) -> NDArray[np.float32]:
        """Fill the window, newest frame in slot 0; returns its latent, Shape (K, C)."""
        unit, video = self.section.video.frame_dt_ns, self.video.inputs
        frames = observation.frames[::-1][: self.section.window.slots]
        video["valid"][:] = 0.0
        video["slot_pos"][:] = 0.0
        for slot, frame in enumerate(frames):
            found = self._remember(frame)
            self._window_key[slot] = self._memory.keys[found]
            self._window_value[slot] = self._memory.values[found]
            video["slot_pos"][0, slot] = (frame.capture_ns - observation.t_obs_ns) / unit
            video["valid"][0, slot] = 1.0
            if slot == 0:
                video["latent"][0] = self._memory.latents[found]
        latent: NDArray[np.float32] = video["latent"][0]
        return latent

    def _condition(self, anchor: Floats, committed: Floats) -> None:
        count, inputs, table = len(committed), self.action.inputs, self.statistics
        if count > self.max_prefix:
            raise PolicyError(f"prefix of {count} actions: must be 0 to {self.max_prefix}; shorten it")
        inputs["state"][0] = (anchor - table.state_mean) / table.state_std
        inputs["prefix"][:] = 0.0
        inputs["prefix_mask"][:] = 0.0
        if count:
            offset = committed - anchor * table.relative - table.action_mean[:count]
            inputs["prefix"][0, :count] = offset / table.action_std[:count]
            inputs["prefix_mask"][0, :count] = 1.0

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
        steps, time = self.sampler.action_steps, self.action.inputs["t_action"]
        self.video.inputs["t_video"][0] = 1.0
        self._video_rows.run()
        for i in range(steps):
            time[0] = i / steps
            self.action.run()
            self._action += self._v_action / np.float32(steps)

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

    def _chunk(
        self, observation: Observation, anchor: Floats, future: NDArray[np.float32], chunk_id: int
    ) -> ActionChunk:
        table = self.statistics
        positions = anchor * table.relative + self._action[0] * table.action_std + table.action_mean
        return ActionChunk(positions, future, observation.t_obs_ns, self.dt_ns, chunk_id, observation.epoch)


class FrameMemory:
    """The last encoded frames: latents and the K/V rows that attention needs of them.

    latents: Shape (size, K, C); keys, values: Shape (size, L, A, K, hd). latent: the encoder's output buffer.
    """

    def __init__(self, size: int, latent: NDArray[np.float32], prefill: Graph) -> None:
        self._latent, self._prefill = latent, prefill
        self._key, self._value = prefill.outputs["key"], prefill.outputs["value"]
        self._captures = [-1] * size
        self._next = 0
        self.latents = np.zeros((size, *latent.shape), np.float32)
        self.keys = np.zeros((size, *self._key.shape), np.float32)
        self.values = np.zeros((size, *self._value.shape), np.float32)

    def find(self, capture_ns: int) -> int | None:
        """The slot of the frame captured then, if it is still kept."""
        try:
            return self._captures.index(capture_ns)
        except ValueError:
            return None

    def add(self, capture_ns: int) -> int:
        """Keep what the encoder just made; the oldest goes."""
        slot = self._next
        self._prefill.run()
        self.latents[slot], self.keys[slot], self.values[slot] = self._latent, self._key, self._value
        self._captures[slot] = capture_ns
        self._next = (slot + 1) % len(self._captures)
        return slot


def decode(decoder: Graph, latents: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Pictures of latents by the `frame_decoder` graph. Shape (F, K, C) -> (F, height, width, 3), RGB."""
    pictures = []
    for latent in latents:
        decoder.inputs["latent"][0] = latent
        decoder.run()
        pixels = np.rint((decoder.outputs["image"][0] + 1.0) * 127.5).clip(0, 255)
        pictures.append(pixels.astype(np.uint8).transpose(1, 2, 0))
    return np.stack(pictures)


def _table(name: str, values: object, shape: tuple[int, ...], positive: bool = False) -> Floats:
    try:
        array = np.array(values, dtype=np.float64)
    except ValueError:
        array = np.empty(0)
    if array.shape != shape:
        raise BundleError(f"statistics.{name}: shape {array.shape}, the manifest's sizes say {shape}; export again")
    if positive and not np.all(array > 0):
        raise BundleError(f"statistics.{name}: {array.min()} must be positive; export again")
    array.setflags(write=False)
    return array
