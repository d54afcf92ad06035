"""The world action model cut into graphs: what the runtime calls, batch 1, with the boundary's names and shapes.

What changes seldom is computed seldom. L layers, A heads, hd a head's width, d width, W words, K tokens, C channels,
F frames, S slots of the window, N rows of context, H actions, J joints:

    graph          runs                in                                           out
    text           once a task         words                                        text, place, key_text, value_text
    modulation     once a task for     t, text                                      mod_video, mod_action
                   each of the
                   sampler's times
    frame_encoder  once a frame        image                                        latent
    prefill        once a frame        latent                                       key, value
    context        once a chunk        key, value, slot_pos, valid, key_text,       key_context, value_context, mask
                                       value_text [, given, has_given]
    video_step     each video step     video, latent, place, key_context,           v_video, key_video, value_video
                                       value_context, mask, mod_video, t_video
    action_step    each action step    action, prefix, prefix_mask, state,          v_action
                                       key_video, value_video, mod_action,
                                       t_action
    frame_decoder  when one looks      latent                                       image

text: Shape (1, 1, d). place: Shape (1, K, d), what is added to each token: its kind, whether the words mean it.
key_text, value_text: Shape (L, A, 1, hd), the row of language. key, value: Shape (L, A, K, hd), a frame's rows before
rotation; as inputs of `context` those of S frames, Shape (S, L, A, K, hd), with slot_pos (age in frames, <= 0) and
valid (1 or 0), Shape (1, S). key_context, value_context: Shape (L, A, N, hd), rotated, N = S K + 1, and H / patch
more where the model was made to be told actions: `given`, Shape (1, H, J), seen where has_given, Shape (1,), is 1.
mask: Shape (1, K + N), added to the logits of a pass's own and the context's rows. mod_video, mod_action: Shape
(1, 6 L, d), row 6 l + i: scale, shift, gate of layer l's attention, then of its feed-forward part, its bias included
(so a step holds no modulation weights, and a scale that is to move into them moves into `modulation`). t, t_video,
t_action: Shape (1,).
"""

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


class TextGraph(nn.Module):
    """All that is constant as long as the task is."""

    def __init__(self, wam: Wam) -> None:
        super().__init__()
        self.text, self.stream = wam.text, wam.video

    def forward(self, words: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        text = self.text(words)
        doing, logits = self.stream.said(text)
        key, value = self.stream.words(doing)
        place = self.stream.place(logits, torch.zeros(1, dtype=torch.int64))  # a bundle is for one robot: ours
        return text, place, key.squeeze(0), value.squeeze(0)


class ModulationGraph(nn.Module):
    """What a time and the words do to every layer of both streams."""

    def __init__(self, wam: Wam) -> None:
        super().__init__()
        self.video, self.action = wam.video, wam.action

    def forward(self, t: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        doing, _ = self.video.said(text)
        return self.video.modulation(doing, t), self.action.modulation(t)


class ContextGraph(nn.Module):
    """The rows that every pass over a chunk's future attends to."""

    def __init__(self, wam: Wam) -> None:
        super().__init__()
        self.stream = wam.video

    def forward(
        self, key: Tensor, value: Tensor, slot_pos: Tensor, valid: Tensor, key_text: Tensor, value_text: Tensor,
        *given: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        window, words = (key.unsqueeze(0), value.unsqueeze(0)), (key_text.unsqueeze(0), value_text.unsqueeze(0))
        told = (given[0], given[1]) if given else None
        rows, values, mask = self.stream.context(window, slot_pos, valid, words, told)
        return rows.squeeze(0), values.squeeze(0), mask.flatten(1)


class VideoGraph(nn.Module):
    """One denoise pass over the future: its velocity, and the rows that actions attend to."""

    def __init__(self, wam: Wam) -> None:
        super().__init__()
        self.stream = wam.video

    def forward(
        self, video: Tensor, latent: Tensor, place: Tensor, key_context: Tensor, value_context: Tensor, mask: Tensor,
        mod_video: Tensor, t_video: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        seen = mask.expand(latent.shape[1], -1)  # opset 23's Attention wants a row for each query
        context = (key_context.unsqueeze(0), value_context.unsqueeze(0), seen)
        clean, rows = self.stream.denoise(video, latent, place, context, mod_video)
        return velocity(clean, video, t_video), rows[0].squeeze(0), rows[1].squeeze(0)


class ActionGraph(nn.Module):
    """One denoise pass over the chunk against the video's rows."""

    def __init__(self, wam: Wam) -> None:
        super().__init__()
        self.stream = wam.action

    def forward(
        self, action: Tensor, prefix: Tensor, prefix_mask: Tensor, state: Tensor,
        key_video: Tensor, value_video: Tensor, mod_action: Tensor, t_action: Tensor,
    ) -> Tensor:  # fmt: skip
        rows = (key_video.unsqueeze(0), value_video.unsqueeze(0))
        clean = self.stream.denoise(action, prefix, prefix_mask, state, rows, mod_action)
        return velocity(clean, action, t_action)


class Examples:
    """Seeded inputs of every boundary tensor, by graph."""

    def __init__(self, sizes: Sizes, seed: int) -> None:
        self._sizes = sizes
        self._rng = torch.Generator().manual_seed(seed)
        self._row = (sizes.layers, sizes.heads)
        self._frame = (1, sizes.tokens, sizes.channels)
        self._six = (1, 6 * sizes.layers, sizes.width)

    def _noise(self, *shape: int, scale: float = 1.0) -> Tensor:
        return scale * torch.randn(*shape, generator=self._rng)

    def _rows(self, *leading: int, count: int) -> tuple[Tensor, Tensor]:
        shape = (*leading, *self._row, count, self._sizes.head_width)
        return self._noise(*shape), self._noise(*shape)

    def words(self) -> dict[str, Tensor]:
        words = torch.arange(1, self._sizes.words + 1).clamp(max=self._sizes.vocabulary - 1).unsqueeze(0)
        words[:, 4:] = 0
        return {"words": words}

    def image(self) -> dict[str, Tensor]:
        return {"image": self._noise(1, 3, self._sizes.image_height, self._sizes.image_width).clamp(-1, 1)}

    def latent(self) -> dict[str, Tensor]:
        return {"latent": self._noise(*self._frame)}

    def modulation(self) -> dict[str, Tensor]:
        return {"t": torch.tensor([0.25]), "text": self._noise(1, 1, self._sizes.width)}

    def context(self) -> dict[str, Tensor]:
        sizes = self._sizes
        key, value = self._rows(sizes.window, count=sizes.tokens)
        key_text, value_text = self._rows(count=1)
        valid = torch.ones(1, sizes.window)
        valid[:, 1:] = 0.0  # a mask of zeros would prove nothing
        seen = {
            "key": key, "value": value, "slot_pos": torch.arange(sizes.window).neg().float().unsqueeze(0),
            "valid": valid, "key_text": key_text, "value_text": value_text,
        }  # fmt: skip
        told = {"given": self._noise(1, sizes.horizon, sizes.joints), "has_given": torch.ones(1)}
        return seen | (told if sizes.given else {})

    def video_step(self) -> dict[str, Tensor]:
        sizes = self._sizes
        count = context_rows(sizes)
        key, value = self._rows(count=count)
        mask = torch.zeros(1, sizes.tokens + count)
        mask[:, -2] = -1e4
        return {
            "video": self._noise(1, sizes.frames, *self._frame[1:]), **self.latent(),
            "place": self._noise(1, sizes.tokens, sizes.width), "key_context": key, "value_context": value,
            "mask": mask, "mod_video": self._noise(*self._six, scale=0.3), "t_video": torch.tensor([0.25]),
        }  # fmt: skip

    def action_step(self) -> dict[str, Tensor]:
        sizes = self._sizes
        chunk, committed = (1, sizes.horizon, sizes.joints), torch.zeros(1, sizes.horizon)
        committed[:, :2] = 1.0
        key, value = self._rows(count=sizes.tokens)
        return {
            "action": self._noise(*chunk), "prefix": self._noise(*chunk) * committed.unsqueeze(-1),
            "prefix_mask": committed, "state": self._noise(1, sizes.joints), "key_video": key, "value_video": value,
            "mod_action": self._noise(*self._six, scale=0.3), "t_action": torch.tensor([0.25]),
        }  # fmt: skip


def context_rows(sizes: Sizes) -> int:
    """N: rows of the window's frames, of language and, where the model was made to be told them, of given actions."""
    return sizes.window * sizes.tokens + 1 + (sizes.horizon // sizes.patch if sizes.given else 0)


def graphs(wam: Wam, encoder: nn.Module, decoder: nn.Module, seed: int = 0) -> list[Graph]:
    """The eight graphs with seeded example inputs, in the order in which a task and its chunks need them."""
    like = Examples(wam.sizes, seed)
    return [
        Graph("text", TextGraph(wam), like.words(), ("text", "place", "key_text", "value_text")),
        Graph("modulation", ModulationGraph(wam), like.modulation(), ("mod_video", "mod_action")),
        Graph("frame_encoder", encoder, like.image(), ("latent",)),
        Graph("prefill", PrefillGraph(wam), like.latent(), ("key", "value")),
        Graph("context", ContextGraph(wam), like.context(), ("key_context", "value_context", "mask")),
        Graph("video_step", VideoGraph(wam), like.video_step(), ("v_video", "key_video", "value_video")),
        Graph("action_step", ActionGraph(wam), like.action_step(), ("v_action",)),
        Graph("frame_decoder", decoder, like.latent(), ("image",)),
    ]
