"""The `context` graph: two frames, words and joints as the key and value rows that an action expert attends to.

    latent, before (frame_encoder), text, state -> context -> key, value

Its rows are the newest frame's tokens, those of the frame before, the words, the joints: N = 2 K + 2.
"""

from collections.abc import Mapping

from dzedge.bundle import Section
from dzedge.engine import Graph
from dzedge.policies.perception import Perception
from dzedge.policies.statistics import Floats, Statistics
from dzedge.types import Observation

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]


class Context:
    """What is seen, asked and felt, once a chunk.

    graph: `context`, its outputs shared with the expert's inputs; key, value: Shape (L, A, N, hd).
    """

    def __init__(self, graph: Graph, perception: Perception, statistics: Statistics) -> None:
        self.graph = graph
        self._perception, self._statistics = perception, statistics

    def expect(self, section: Section, said: Shapes) -> Shape:
        """Check the boundary; returns the shape of the rows. said: shapes of what `text` makes. Raises BundleError."""
        window, video = section.window, section.video
        assert window is not None  # the manifest says so of every family that has a context
        latent = (1, video.tokens, video.channels)
        rows = (window.layers, window.heads, 2 * video.tokens + 2, window.head_dim)
        inputs = dict(latent=latent, before=latent, has_before=(1,), **said, state=(1, len(section.joints)))
        self.graph.expect(inputs, {"key": rows, "value": rows})
        return rows

    def fill(self, observation: Observation, anchor: Floats) -> None:
        """Compute the rows of an observation. anchor: measured joints, Shape (J,), [rad]."""
        inputs = self.graph.inputs
        self._perception.show(observation.frames, inputs)
        inputs["state"][0] = self._statistics.state(anchor)
        self.graph.run()
