"""The world action model cut into graphs: what the runtime calls, batch 1, with the boundary's names and shapes."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dzedge.export.model.blocks import velocity
from dzedge.export.model.sizes import Sizes
from dzedge.export.model.wam import Wam


@dataclass(frozen=True, slots=True)
class Graph:
    """One ONNX graph: the module that computes it, its example inputs by name, its outputs' names."""

    name: str
    module: nn.Module
    inputs: dict[str, Tensor]
    outputs: tuple[str, ...]


class PrefillGraph(nn.Module):
    """latent (1, K, C) -> key, value (L, A, K, hd)."""

    def __init__(self, wam: Wam) -> None:
        super().__init__()
        self.prefill = wam.prefill

    def forward(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        key, value = self.prefill(latent)
        return key.squeeze(0), value.squeeze(0)


class VideoGraph(nn.Module):
    """One denoise pass over the future: its velocity, and the rows that actions attend to."""

    def __init__(self, wam: Wam) -> None:
        super().__init__()
        self.stream = wam.video

    def forward(
        self, video: Tensor, latent: Tensor, key: Tensor, value: Tensor,
        slot_pos: Tensor, valid: Tensor, text: Tensor, t_video: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        window = (key.unsqueeze(0), value.unsqueeze(0))
        body = torch.zeros(1, dtype=torch.int64)  # a bundle is for one robot: ours
        clean, rows, _ = self.stream(video, latent, window, slot_pos, valid, text, t_video, body)
        return velocity(clean, video, t_video), rows[0].squeeze(0), rows[1].squeeze(0)


class ActionGraph(nn.Module):
    """One denoise pass over the chunk against the video's rows."""

    def __init__(self, wam: Wam) -> None:
        super().__init__()
        self.stream = wam.action

    def forward(
        self, action: Tensor, prefix: Tensor, prefix_mask: Tensor, state: Tensor,
        key_video: Tensor, value_video: Tensor, t_action: Tensor,
    ) -> Tensor:  # fmt: skip
        rows = (key_video.unsqueeze(0), value_video.unsqueeze(0))
        clean = self.stream(action, prefix, prefix_mask, state, rows, t_action)
        return velocity(clean, action, t_action)


def graphs(wam: Wam, encoder: nn.Module, decoder: nn.Module, seed: int = 0) -> list[Graph]:
    """The six graphs with seeded example inputs, in the order in which a chunk needs them."""
    sizes: Sizes = wam.sizes
    rng = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=rng)

    rows = (sizes.layers, sizes.heads, sizes.tokens, sizes.head_width)
    frame, frames = (1, sizes.tokens, sizes.channels), (1, sizes.frames, sizes.tokens, sizes.channels)
    chunk = (1, sizes.horizon, sizes.joints)
    committed = torch.zeros(1, sizes.horizon)
    committed[:, :2] = 1.0
    words = torch.arange(1, sizes.words + 1).clamp(max=sizes.vocabulary - 1).unsqueeze(0)
    words[:, 4:] = 0
    moments = {
        "slot_pos": torch.arange(sizes.window).neg().float().unsqueeze(0),
        "valid": torch.ones(1, sizes.window),
    }
    video = {
        "video": noise(*frames), "latent": noise(*frame),
        "key": noise(sizes.window, *rows), "value": noise(sizes.window, *rows), **moments,
        "text": noise(1, 1, sizes.width), "t_video": torch.tensor([0.25]),
    }  # fmt: skip
    action = {
        "action": noise(*chunk), "prefix": noise(*chunk) * committed.unsqueeze(-1), "prefix_mask": committed,
        "state": noise(1, sizes.joints), "key_video": noise(*rows), "value_video": noise(*rows),
        "t_action": torch.tensor([0.25]),
    }  # fmt: skip
    image = noise(1, 3, sizes.image_height, sizes.image_width).clamp(-1, 1)
    return [
        Graph("text", wam.text, {"words": words}, ("text",)),
        Graph("frame_encoder", encoder, {"image": image}, ("latent",)),
        Graph("prefill", PrefillGraph(wam), {"latent": noise(*frame)}, ("key", "value")),
        Graph("video_step", VideoGraph(wam), video, ("v_video", "key_video", "value_video")),
        Graph("action_step", ActionGraph(wam), action, ("v_action",)),
        Graph("frame_decoder", decoder, {"latent": noise(*frame)}, ("image",)),
    ]
