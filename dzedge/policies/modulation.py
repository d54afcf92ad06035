"""The `modulation` graph: what each time of the sampler does to every layer, once a task.

A sampler has a handful of distinct times and the words do not change within a task, so a pass only picks what it needs.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dzedge.engine import Graph
from dzedge.policies.perception import Inputs


class Modulation:
    """The graph's outputs at all times of a sampler.

    graph: `t` and `text` in, `mod_video` and `mod_action` out; its `text` is filled by the `text` graph; times: each
    once, 0 noise to 1 clean.
    """

    def __init__(self, graph: Graph, times: Sequence[float]) -> None:
        self.graph = graph
        self._kept: dict[float, dict[str, NDArray[np.float32]]] = {
            time: {name: np.zeros_like(array) for name, array in graph.outputs.items()} for time in times
        }

    def fill(self) -> None:
        """Compute all times for the words that were said last."""
        for time, kept in self._kept.items():
            self.graph.inputs["t"][0] = time
            self.graph.run()
            for name, array in self.graph.outputs.items():
                kept[name][:] = array

    def write(self, time: float, stream: str, inputs: Inputs) -> None:
        """Set a step graph to a time: its `t_...` and `mod_...`. stream: video or action."""
        inputs[f"t_{stream}"][0] = time
        inputs[f"mod_{stream}"][:] = self._kept[time][f"mod_{stream}"]
