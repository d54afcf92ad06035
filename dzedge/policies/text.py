"""Instructions as what a policy takes: from the bundle's prompts, from this machine's, or by the `text` graph."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dzedge.bundle import Bundle
from dzedge.clock import NS, MonotonicClock
from dzedge.engine import Graph
from dzedge.errors import BundleError, PolicyError
from dzedge.manifest import PROMPTS
from dzedge.policies.tokenizer import Tokenizer
from dzedge.prompts import KeptPrompts, Prompts, Said, words_of

LONG_NS = NS // 10
"""A `text` that takes longer than this is worth a file on this machine [ns]."""


class Text:
    """Fills the buffers that other graphs read what was said from.

    bundle: for its prompts; graph: `text` with its outputs on those buffers, or None where the bundle has none;
    buffers: by the names of its outputs; keep: whether this machine may remember what took long.

    Raises BundleError where graph, prompts and buffers do not fit each other.
    """

    def __init__(self, bundle: Bundle, graph: Graph | None, buffers: Mapping[str, NDArray[Any]], keep: bool) -> None:
        language = bundle.manifest.dzedge.language
        self.graph = graph
        self._buffers = buffers
        self._tokenizer = Tokenizer(language)
        self._clock = MonotonicClock()
        self._known = known_prompts(bundle)
        self._kept = KeptPrompts(bundle.digest) if keep and graph is not None else None
        made = {name: array.shape for name, array in (buffers if graph is None else graph.outputs).items()}
        known = {} if self._known is None else self._known.shapes
        if graph is not None:
            graph.expect({"words": (1, language.words)}, made)
        if known and made != known:
            raise BundleError(f"{bundle.name}/{PROMPTS}: has arrays {known}, wanted {made}; export the bundle again")
        self.shapes = made
        """Of what is said, by name."""

    def say(self, instruction: str) -> None:
        """Fill the buffers. Raises PolicyError for unknown words, and for an unknown instruction without a graph;
        the buffers stay as they were."""
        ids, words = self._tokenizer.ids(instruction), words_of(instruction)
        said = None if self._known is None else self._known.find(words)
        if said is None and self._kept is not None:
            said = self._kept.find(words, self.shapes)
        if said is not None:
            self._fill(said)
        elif self.graph is not None:
            self._compute(self.graph, ids, words)
        else:
            assert self._known is not None  # the manifest says that one of both is there
            raise unknown(instruction, words, self._known)

    def _fill(self, said: Said) -> None:
        for name, array in said.items():
            if self.graph is not None:
                self.graph.put(name, array)
            else:
                self._buffers[name][...] = array

    def _compute(self, graph: Graph, ids: NDArray[np.int64], words: list[str]) -> None:
        graph.inputs["words"][0] = ids
        start_ns = self._clock.now_ns()
        graph.run()
        if self._kept is not None and self._clock.now_ns() - start_ns > LONG_NS:
            self._kept.keep(words, {name: graph.get(name) for name in graph.outputs})


def known_prompts(bundle: Bundle) -> Prompts | None:
    """The instructions that a bundle brings along, or None. Raises BundleError."""
    listed = {entry.path for entry in bundle.manifest.dzedge.files}
    return Prompts(bundle.read(PROMPTS), f"{bundle.name}/{PROMPTS}") if PROMPTS in listed else None


def check_instruction(bundle: Bundle, instruction: str) -> None:
    """Raises PolicyError for an instruction that a policy of this bundle would refuse; loads no graph."""
    Tokenizer(bundle.manifest.dzedge.language).ids(instruction)
    known, words = known_prompts(bundle), words_of(instruction)
    if "text" not in bundle.manifest.dzedge.graphs and known is not None and known.find(words) is None:
        raise unknown(instruction, words, known)


def unknown(instruction: str, words: list[str], known: Prompts) -> PolicyError:
    """The refusal of words that only a language model could read."""
    near = ", ".join(map(repr, known.nearest(words)))
    return PolicyError(
        f"instruction {instruction!r}: this bundle has no language model and knows {len(known)} instructions; "
        f"nearest: {near}; choose one, or export with its text graph"
    )
