"""What a policy sees: frames as latents, each encoded once; and, for the action models, their context."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dzedge.bundle import Section
from dzedge.engine import Graph
from dzedge.kernels.image import ImagePlan
from dzedge.types import Frame

MEMORY = 32
"""Encoded frames that are kept: one second at 30 fps."""
Inputs = Mapping[str, NDArray[Any]]


class Perception:
    """Camera frames through the `frame_encoder` graph; the last ones are remembered by capture time.

    section: sizes; camera: (height, width) of the frames; crop: (left, top, width, height) of them, or None;
    kept: output -> what the graphs made of the last frames, Shape (MEMORY, *its shape), by slot.

    Raises BundleError for a graph that does not fit the manifest.
    """

    def __init__(
        self, section: Section, camera: tuple[int, int], crop: tuple[int, int, int, int] | None, encoder: Graph
    ) -> None:
        image, video = section.image, section.video
        encoder.expect({"image": (1, 3, image.height, image.width)}, {"latent": (1, video.tokens, video.channels)})
        left, top, width, height = crop or image.crop or (0, 0, camera[1], camera[0])
        self._plan = ImagePlan(*camera, (top, left, height, width), image.height, image.width)
        self._image = encoder.inputs["image"][0]
        self._graphs: list[Graph] = []
        self._made: dict[str, NDArray[Any]] = {}
        self._captures = [-1] * MEMORY
        self._next = 0
        self.kept: dict[str, NDArray[Any]] = {}
        self.follow(encoder)

    def follow(self, graph: Graph) -> None:
        """Run `graph` too for every new frame, after those before it, and keep its outputs."""
        self._graphs.append(graph)
        self._made |= graph.outputs
        self.kept |= {name: np.zeros((MEMORY, *array.shape), array.dtype) for name, array in graph.outputs.items()}

    def slot(self, frame: Frame) -> int:
        """Where in `kept` a frame is; encodes it if it is not there, and the oldest goes."""
        if frame.capture_ns in self._captures:
            return self._captures.index(frame.capture_ns)
        self._plan.run(frame.image, self._image)
        for graph in self._graphs:
            graph.run()
        slot = self._next
        for name, array in self._made.items():
            self.kept[name][slot] = array
        self._captures[slot] = frame.capture_ns
        self._next = (slot + 1) % MEMORY
        return slot

    def forget(self) -> None:
        """A new task: its scene may be another, and a clock that is set back would bring old capture times again."""
        self._captures = [-1] * MEMORY

    def show(self, frames: tuple[Frame, ...], inputs: Inputs) -> None:
        """Write the newest frame and the one before it into a graph's `latent`, `before` and `has_before`.

        frames: newest last. With a single frame `before` and `has_before` are 0.
        """
        latents = self.kept["latent"]
        inputs["latent"][:] = latents[self.slot(frames[-1])]
        inputs["has_before"][0] = len(frames) > 1
        if len(frames) > 1:
            inputs["before"][:] = latents[self.slot(frames[-2])]
        else:
            inputs["before"][:] = 0.0
