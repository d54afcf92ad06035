"""What every policy family shares: the protocol, and what runs a bundle's graphs alike."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dzedge.bundle import Bundle
from dzedge.engine import Graph, Machine, Noise, load_graph
from dzedge.errors import PolicyError
from dzedge.policies.perception import Inputs, Perception
from dzedge.policies.statistics import Floats, Statistics
from dzedge.policies.text import Text
from dzedge.types import ActionChunk, ActionPrefix, Frame, Observation


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


class BundledPolicy(ABC):
    """A policy whose graphs lie in a bundle: loads them, embeds words, encodes frames, scales joints.

    bundle: opened; machine: what to run on; camera: (height, width) of the frames that will come; crop:
    (left, top, width, height) of them, or None; precision, sampler: as in the robot file; seed: of all noise.

    A family adds `_choose`, `_load`, `_check` and `infer`. Raises BundleError for graphs or statistics that do not
    fit the manifest, PolicyError for a sampler that the family has not.
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
        self.statistics = Statistics(section)
        self._choose(section.samplers[0] if sampler == "auto" else sampler)
        self._noise = Noise(seed)
        self._bundle, self._machine, self._precision = bundle, machine, precision
        self._loaded: list[Graph] = []
        self._nothing = np.zeros((0, section.video.tokens, section.video.channels), np.float32)
        self.encoder = self._graph("frame_encoder")
        self.perception = Perception(section, camera, crop, self.encoder)
        buffers = self._load()
        graph = self._graph("text", **buffers) if "text" in section.graphs else None
        self.text = Text(bundle, graph, buffers, machine.cache)
        self._check(self.text.shapes)
        for graph in self._loaded:  # first runs allocate; they must not be the first chunk's
            graph.run()

    def reset(self, instruction: str) -> None:
        """Begin a task. Raises PolicyError for an instruction that the model does not know; the old task stays."""
        self.text.say(instruction)
        self.perception.forget()

    def observe(self, frame: Frame) -> None:
        """Encode a frame, once."""
        self.perception.slot(frame)

    @abstractmethod
    def infer(self, observation: Observation, prefix: ActionPrefix, chunk_id: int) -> ActionChunk:
        """One chunk. Shape (H, J), [rad], absolute, targets for t_obs + (i + 1) * dt.

        Raises PolicyError when the prefix is longer than the model was trained for.
        """

    # ------------------------------------------------------- what a family adds

    @abstractmethod
    def _choose(self, sampler: str) -> None:
        """Take a sampler as it is written. Raises PolicyError."""

    @abstractmethod
    def _load(self) -> dict[str, NDArray[Any]]:
        """Load the family's own graphs; returns the input buffers that `text` is to fill, by its outputs' names."""

    @abstractmethod
    def _check(self, said: Mapping[str, tuple[int, ...]]) -> None:
        """Check the boundaries of those graphs. said: shapes of what `text` makes. Raises BundleError."""

    # ---------------------------------------------------------- what it may use

    def _graph(self, name: str, **share: NDArray[Any]) -> Graph:
        graph = load_graph(self._bundle, name, self._precision, self._machine, share)
        self._loaded.append(graph)
        return graph

    def _committed(self, prefix: ActionPrefix) -> Floats:
        """The committed positions, Shape (d, J). Raises PolicyError for more than the model was trained for."""
        if len(prefix.positions) > self.max_prefix:
            raise PolicyError(f"prefix of {len(prefix.positions)} actions: must be 0 to {self.max_prefix}; shorten it")
        return prefix.positions

    def _condition(self, inputs: Inputs, anchor: Floats, committed: Floats) -> None:
        """Write committed positions into a graph's `prefix` and `prefix_mask`."""
        count = len(committed)
        inputs["prefix"][:] = 0.0
        inputs["prefix_mask"][:] = 0.0
        if count:
            inputs["prefix"][0, :count] = self.statistics.actions(committed, anchor)
            inputs["prefix_mask"][0, :count] = 1.0

    def _denoise(self, step: Graph, steps: int) -> None:
        """Actions from noise at t = 0 to t = 1, in place: Euler steps x += v / n."""
        action, velocity, time = step.inputs["action"], step.outputs["v_action"], step.inputs["t_action"]
        for i in range(steps):
            time[0] = i / steps
            step.run()
            action += velocity / np.float32(steps)

    def _chunk(
        self,
        observation: Observation,
        positions: Floats,
        chunk_id: int,
        imagined: NDArray[np.float32] | None = None,
    ) -> ActionChunk:
        future = self._nothing if imagined is None else imagined
        return ActionChunk(positions, future, observation.t_obs_ns, self.dt_ns, chunk_id, observation.epoch)


class WorldModel(BundledPolicy):
    """A policy that imagines, and whose latents can be looked at."""

    _decoder: Graph | None = None

    def decode(self, latents: NDArray[np.float32]) -> NDArray[np.uint8]:
        """Pictures of latents. Shape (F, K, C) -> (F, height, width, 3), RGB."""
        if self._decoder is None:
            self._decoder = load_graph(self._bundle, "frame_decoder", self._precision, self._machine)
        pictures = []
        for latent in latents:
            self._decoder.inputs["latent"][0] = latent
            self._decoder.run()
            pixels = np.rint((self._decoder.outputs["image"][0] + 1.0) * 127.5).clip(0, 255)
            pictures.append(pixels.astype(np.uint8).transpose(1, 2, 0))
        return np.stack(pictures)

    def latent(self, frame: Frame) -> NDArray[np.float32]:
        """The clean latent of a frame, Shape (K, C); a copy."""
        latent: NDArray[np.float32] = self.perception.kept["latent"][self.perception.slot(frame), 0]
        return latent.copy()


def shared(inputs: Inputs, *names: str) -> dict[str, NDArray[Any]]:
    """Those input buffers that are there, for another graph to fill; one that is missing is for `expect` to name."""
    return {name: inputs[name] for name in names if name in inputs}


def anchor_of(observation: Observation) -> Floats:
    """The measured joints that a chunk is relative to. Shape (J,), [rad], float64."""
    return np.asarray(observation.state.positions, np.float64)
