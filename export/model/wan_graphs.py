"""The coupled layout cut into graphs: what the runtime calls, batch 1, with the boundary's names and shapes.

L layers, A heads, hd a head's width, W words, K patches of a frame of C channels, T tokens of it (4 patches each), F
imagined frames, f clean frames that come together (1 where they stream), S slots of the window, H actions, J joints:

    graph          runs             in                                                    out
    text           once a task      words                                                 key_text, value_text
    frame_encoder  once a frame     image                                                 latent
    prefill        once a frame     latent, key, value, slot_pos, valid, key_text,        new_key, new_value
                                    value_text
    joint_step     each step        video, action, prefix, prefix_mask, state, key,       v_video, v_action
                                    value, slot_pos, valid, key_text, value_text,
                                    t_video, t_action
    frame_decoder  when one looks   latent                                                image

key_text, value_text: Shape (L, A, W, hd). key, value: Shape (S, L, A, T, hd), of the window's frames, in any order,
keys before rotation; valid: Shape (1, S), 1 or 0; slot_pos: positions of the slots and then of the new frames, Shape
(1, S + f) for `prefill` and (1, S + F) for `joint_step`. latent of `prefill`: Shape (1, f, K, C), and video, v_video:
Shape (1, F, K, C), in units of the latents' spread: (latent - latent_mean) / latent_std. new_key, new_value: Shape
(f, L, A, T, hd). action, prefix, v_action: Shape (1, H, J); prefix_mask: Shape (1, H); state: Shape (1, J); t_video,
t_action: Shape (1,), 0 noise to 1 clean. Video and actions attend to each other: one pass is of both.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dzedge.export.model.graphs import Graph
from dzedge.export.model.wan_config import Config, Window
from dzedge.export.model.wan_grid import Grid
from dzedge.export.model.wan_joint import WanJoint
from dzedge.export.model.wan_policy import WanPolicy


class TextGraph(nn.Module):
    """words (1, W) -> key_text, value_text (L, A, W, hd)."""

    def __init__(self, encoder: nn.Module, trunk: WanJoint) -> None:
        super().__init__()
        self.encoder, self.trunk = encoder, trunk

    def forward(self, words: Tensor) -> tuple[Tensor, Tensor]:
        key, value = self.trunk.context(self.encoder(words))
        return key.squeeze(0), value.squeeze(0)


class PrefillGraph(nn.Module):
    """Rows of clean frames that have just come. condition: one more input where the trunk sees the first picture."""

    def __init__(self, trunk: WanJoint, grid: Grid) -> None:
        super().__init__()
        self.trunk, self.grid = trunk, grid

    def forward(
        self, latent: Tensor, key: Tensor, value: Tensor, slot_pos: Tensor, valid: Tensor, key_text: Tensor,
        value_text: Tensor, *condition: Tensor,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        window = Window(key.unsqueeze(0), value.unsqueeze(0), slot_pos, valid)
        words = key_text.unsqueeze(0), value_text.unsqueeze(0)
        picture = map(self.grid.cells, condition)
        new_key, new_value = self.trunk.prefill(self.grid.cells(latent), words, window, *picture)
        return new_key.squeeze(0), new_value.squeeze(0)


class JointGraph(nn.Module):
    """One denoise pass over a block: video, actions and the joint state. condition: as for PrefillGraph."""

    def __init__(self, trunk: WanJoint, grid: Grid) -> None:
        super().__init__()
        self.trunk, self.grid = trunk, grid

    def forward(
        self, video: Tensor, action: Tensor, prefix: Tensor, prefix_mask: Tensor, state: Tensor, key: Tensor,
        value: Tensor, slot_pos: Tensor, valid: Tensor, key_text: Tensor, value_text: Tensor, t_video: Tensor,
        t_action: Tensor, *condition: Tensor,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        window = Window(key.unsqueeze(0), value.unsqueeze(0), slot_pos, valid)
        words = key_text.unsqueeze(0), value_text.unsqueeze(0)
        v_video, v_action = self.trunk(
            self.grid.cells(video), action, prefix, prefix_mask, state.unsqueeze(1), words, window, t_video, t_action,
            *map(self.grid.cells, condition),
        )  # fmt: skip
        return self.grid.patches(v_video), v_action


@dataclass(frozen=True, slots=True)
class Examples:
    """Seeded inputs of the trunk's graphs. frames: f, that `prefill` takes at once."""

    config: Config
    grid: Grid
    rng: torch.Generator
    frames: int = 1

    def noise(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.rng)

    def seen(self, ahead: int) -> dict[str, Tensor]:
        """Window and words, for a pass over `ahead` new frames. The oldest slot is empty."""
        config = self.config
        rows = (config.window, config.layers, config.heads, config.tokens, config.head_width)
        words = (config.layers, config.heads, config.text_tokens, config.head_width)
        valid = torch.ones(1, config.window)
        valid[:, 0] = float(config.window == 1)  # a mask of zeros would prove nothing
        return {
            "key": self.noise(*rows), "value": self.noise(*rows),
            "slot_pos": torch.arange(config.window + ahead).float().unsqueeze(0), "valid": valid,
            "key_text": self.noise(*words), "value_text": self.noise(*words),
        }  # fmt: skip

    def prefill(self) -> dict[str, Tensor]:
        grid, config = self.grid, self.config
        latent = self.noise(1, self.frames, grid.rows * grid.columns, config.channels)
        return {"latent": latent, **self.seen(self.frames)}

    def joint_step(self) -> dict[str, Tensor]:
        config, grid = self.config, self.grid
        chunk, committed = (1, config.actions, config.action_width), torch.zeros(1, config.actions)
        committed[:, :2] = 1.0
        return {
            "video": self.noise(1, config.frames, grid.rows * grid.columns, config.channels),
            "action": self.noise(*chunk), "prefix": self.noise(*chunk) * committed.unsqueeze(-1),
            "prefix_mask": committed, "state": self.noise(1, config.state_width), **self.seen(config.frames),
            "t_video": torch.tensor([0.25]), "t_action": torch.tensor([0.5]),
        }  # fmt: skip


def trunk_graphs(trunk: WanJoint, grid: Grid, rng: torch.Generator, frames: int = 1) -> list[Graph]:
    """`prefill` and `joint_step` of any trunk with one state a block and no condition, imported ones included.
    frames: f, that `prefill` takes at once."""
    like = Examples(trunk.config, grid, rng, frames)
    return [
        Graph("prefill", PrefillGraph(trunk, grid), like.prefill(), ("new_key", "new_value")),
        Graph("joint_step", JointGraph(trunk, grid), like.joint_step(), ("v_video", "v_action")),
    ]


def graphs(model: WanPolicy, encoder: nn.Module, decoder: nn.Module, seed: int = 0) -> list[Graph]:
    """The five graphs with seeded example inputs, in the order in which a task and its chunks need them."""
    sizes, rng = model.sizes, torch.Generator().manual_seed(seed)
    words = torch.arange(1, sizes.words + 1).clamp(max=sizes.vocabulary - 1).unsqueeze(0)
    words[:, 4:] = 0
    image = torch.randn(1, 3, sizes.image_height, sizes.image_width, generator=rng).clamp(-1, 1)
    latent = torch.randn(1, sizes.tokens, sizes.channels, generator=rng)
    return [
        Graph("text", TextGraph(model.words, model.trunk), {"words": words}, ("key_text", "value_text")),
        Graph("frame_encoder", encoder, {"image": image}, ("latent",)),
        *trunk_graphs(model.trunk, model.grid, rng),
        Graph("frame_decoder", decoder, {"latent": latent}, ("image",)),
    ]
