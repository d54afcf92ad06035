"""Graphs of an imported trunk: `wan_graphs` with what the published checkpoints need beyond it.

    graph          in                                              out
    context        text (1, W, text_width)                         key_text, value_text (L, A, I + W, hd)
                   [image (1, I, image_width)]
    prefill_first  as `prefill` of wan_graphs, one frame           new_key, new_value (1, L, A, T, hd)
    prefill        as `prefill` of wan_graphs, F frames            new_key, new_value (F, L, A, T, hd)
    joint_step     as `joint_step` of wan_graphs                   v_video, v_action

`context` stands where `text` does in a model that has its words' embeddings inside: text and image are what the
published encoders make of a prompt and of the episode's first picture, I = 257 image tokens or none. Where a
checkpoint sees the first frame beside the noisy ones, `prefill` and `joint_step` have a last input, condition: Shape
(1, f, K, condition_channels), a mask of 4 channels and the first picture's latent of 16.
"""

from dataclasses import replace

import torch
from torch import Tensor, nn

from dzedge.errors import UsageError
from dzedge.export.model.graphs import Graph
from dzedge.export.model.wan_graphs import Examples, JointGraph, PrefillGraph
from dzedge.export.model.wan_grid import Grid
from dzedge.export.model.wan_joint import WanJoint

EXACT = ("slot_pos", "valid", "t_video", "t_action")
"""Inputs that stay float32 in a half graph: positions and times are angles."""


class ContextGraph(nn.Module):
    """Rows of a prompt and, where there is one, of the first picture."""

    def __init__(self, trunk: WanJoint) -> None:
        super().__init__()
        self.trunk = trunk

    def forward(self, text: Tensor, image: Tensor | None = None) -> tuple[Tensor, Tensor]:
        key, value = self.trunk.context(text, image)
        return key.squeeze(0), value.squeeze(0)


class Half(nn.Module):
    """A module of float16 weights behind a boundary of float32. exact: which inputs stay as they are."""

    def __init__(self, module: nn.Module, exact: tuple[bool, ...]) -> None:
        super().__init__()
        self.inner, self.exact = module, exact

    def forward(self, *given: Tensor) -> tuple[Tensor, ...]:
        inputs = (value if exact else value.half() for value, exact in zip(given, self.exact, strict=True))
        return tuple(value.float() for value in self.inner(*inputs))


def official_graphs(trunk: WanJoint, seed: int = 0) -> list[Graph]:
    """The four graphs with seeded example inputs. Raises UsageError where a block has several states: the boundary
    has one."""
    config, rng = trunk.config, torch.Generator().manual_seed(seed)
    if config.states != 1:
        raise UsageError(f"wan: {config.states} states a block, allowed 1 in a graph")
    given = {"text": torch.randn(1, config.text_tokens, config.text_width, generator=rng)}
    if config.image_tokens:
        given["image"] = torch.randn(1, config.image_tokens, config.image_width, generator=rng)
    first, _ = _trunk_graphs(trunk, rng, 1)
    return [
        Graph("context", ContextGraph(trunk), given, ("key_text", "value_text")),
        replace(first, name="prefill_first"), *_trunk_graphs(trunk, rng, config.frames),
    ]  # fmt: skip


def half_graphs(trunk: WanJoint, seed: int = 0) -> list[Graph]:
    """The same, computing in float16. The trunk's weights are changed in place."""
    for module in trunk.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            # Not module.half(): that swaps tensors, which those without memory refuse.
            setattr(module, name, nn.Parameter(parameter.half(), requires_grad=False))
    return [
        replace(graph, module=Half(graph.module, tuple(name in EXACT for name in graph.inputs)))
        for graph in official_graphs(trunk, seed)
    ]


def _trunk_graphs(trunk: WanJoint, rng: torch.Generator, frames: int) -> list[Graph]:
    """`prefill` of so many frames and `joint_step`, with a condition where the trunk wants one."""
    config = trunk.config
    grid = Grid(config.latent_height, config.latent_width)
    # To the boundary a prompt's rows are one run, image tokens first.
    like = replace(config, text_tokens=config.text_tokens + config.image_tokens)
    examples, cells = Examples(like, grid, rng, frames), grid.rows * grid.columns
    inputs = [examples.prefill(), examples.joint_step()]
    if config.condition_channels:
        for given, count in zip(inputs, (frames, config.frames), strict=True):
            given["condition"] = torch.randn(1, count, cells, config.condition_channels, generator=rng)
    return [
        Graph("prefill", PrefillGraph(trunk, grid), inputs[0], ("new_key", "new_value")),
        Graph("joint_step", JointGraph(trunk, grid), inputs[1], ("v_video", "v_action")),
    ]
