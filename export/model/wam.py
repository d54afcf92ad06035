"""The World Action Model: p(future frames, actions | frames, joints, instruction) by flow matching.

Two streams with weights of their own. The video stream (one token per thing, its F future frames side by
side) attends to itself, to the rows of clean frames and to language. The action stream (the joint state and
H actions in patches) attends to the video stream's rows and to itself, never to language, and the video
never attends to actions: so the rows of a finished video are computed once and every action pass is cheap,
and video without actions is in distribution. Each stream has its own time t: 0 is noise, 1 is clean.

Both predict the clean value x inside and give the velocity (x - x_t) / (1 - t) outside: residuals to the
current frame and targets relative to the measured joints have structure that noise has not.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as fn

from dzedge.export.model.action_stream import ActionStream
from dzedge.export.model.blocks import (
    Block,
    Rows,
    TimeEncoder,
    layers_of,
    names_of,
    normalised,
    rotate,
    rows_of,
    start_small,
)
from dzedge.export.model.sizes import Sizes
from dzedge.export.model.text import pointer_of, said, text_encoder

EMBODIMENTS = 4
"""Bodies that a trunk can tell apart; 0 is the one it acts with."""

Given = tuple[Tensor, Tensor]
"""Clean actions that the video is to follow, Shape (B, H, J), and whether they are given, Shape (B,), 1 or 0."""


class Prefill(nn.Module):
    """Clean latents -> the rows that later passes attend to. One block per frame, then every layer's rows.

    A clean frame attends only to itself, so its rows do not depend on what else is in the window.
    """

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.enter = nn.Linear(sizes.channels, sizes.width)
        self.names = nn.Parameter(0.2 * torch.randn(sizes.kinds, sizes.width))
        self.block = Block(sizes.width, sizes.heads)
        self.rows = nn.Linear(sizes.width, sizes.layers * 2 * sizes.width)

    def forward(self, latent: Tensor) -> Rows:
        hidden = self.enter(latent) + names_of(self.names, self.sizes.tokens)
        still = torch.zeros(1, 1, self.sizes.width, device=latent.device)
        query, key, value = self.block.project(hidden, still, still)
        hidden = hidden + self.block.attend(query, key, value, None)
        hidden = hidden + self.block.feed(hidden, still, still)
        return rows_of(self.rows(normalised(hidden)), self.sizes.layers, self.sizes.heads)


class VideoStream(nn.Module):
    """Denoises the residuals of F future frames."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.sizes = sizes
        width = sizes.width
        self.enter = nn.Linear((sizes.frames + 1) * sizes.channels, width)
        self.names = nn.Parameter(0.2 * torch.randn(sizes.kinds, width))
        if sizes.pointers:
            self.named = nn.Parameter(torch.randn(width))
        self.time = TimeEncoder(width)
        self.doing = nn.Linear(width - sizes.pointers, width)
        self.shared = nn.Linear(width, 6 * width)
        self.text_rows = nn.Linear(width, sizes.layers * 2 * width)
        self.bodies = nn.Parameter(0.2 * torch.randn(EMBODIMENTS, width))
        self.blocks = nn.ModuleList(Block(width, sizes.heads) for _ in range(sizes.layers))
        self.leave = nn.Linear(width, sizes.frames * sizes.channels)
        if sizes.given:
            self.given = nn.Linear(sizes.patch * sizes.joints, width)
            self.given_names = nn.Parameter(0.2 * torch.randn(sizes.horizon // sizes.patch, width))
            self.given_rows = nn.Linear(width, sizes.layers * 2 * width)

    def _outside(self, window: Rows, slot_pos: Tensor, valid: Tensor, text: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rows of the window (rotated now) and of language, and the mask that hides empty slots."""
        key, value = window
        position = slot_pos.unsqueeze(-1).expand(-1, -1, self.sizes.tokens)[:, :, None, None]
        key = rotate(key, position).permute(0, 2, 3, 1, 4, 5).flatten(3, 4)
        value = value.permute(0, 2, 3, 1, 4, 5).flatten(3, 4)
        words_key, words_value = rows_of(self.text_rows(text), self.sizes.layers, self.sizes.heads)
        hidden = (1.0 - valid).repeat_interleave(self.sizes.tokens, dim=1) * -1e4
        mask = fn.pad(hidden, (self.sizes.tokens, 1))[:, None, None]
        return torch.cat([key, words_key], dim=3), torch.cat([value, words_value], dim=3), mask

    def _told(self, action: Tensor, seen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rows of given actions, and their mask."""
        hidden = self.given(action.unflatten(1, (-1, self.sizes.patch)).flatten(2)) + self.given_names
        key, value = rows_of(self.given_rows(hidden), self.sizes.layers, self.sizes.heads)
        return key, value, ((1.0 - seen) * -1e4)[:, None, None, None].expand(-1, 1, 1, hidden.shape[1])

    def forward(
        self,
        video: Tensor,
        latent: Tensor,
        window: Rows,
        slot_pos: Tensor,
        valid: Tensor,
        text: Tensor,
        time: Tensor,
        body: Tensor,
        given: Given | None = None,
    ) -> tuple[Tensor, Rows, Tensor]:
        """Predicted clean residuals (B, F, K, C); own rows (B, L, A, K, hd); logits over cubes and none (B, K),
        over none alone (B, 1) where tokens are patches.

        video: Shape (B, F, K, C); latent: Shape (B, K, C); window: keys and values, Shape (B, S, L, A, K, hd);
        slot_pos, valid: Shape (B, S); text: Shape (B, 1, d); time: Shape (B,); body: Shape (B,), int64; given: clean
        actions, Shape (B, H, J), and whether they may be seen, Shape (B,), where `sizes.given`.
        """
        sizes = self.sizes
        doing, logits = said(text, sizes.pointers)
        doing = self.doing(doing)
        outside_key, outside_value, mask = self._outside(window, slot_pos, valid, doing)
        if given is not None:
            key, value, hidden_given = self._told(*given)
            outside_key, outside_value = torch.cat([outside_key, key], 3), torch.cat([outside_value, value], 3)
            mask = torch.cat([mask.expand(len(video), -1, -1, -1), hidden_given], dim=-1)
        packed = torch.cat([latent, video.transpose(1, 2).flatten(2)], dim=-1)
        hidden = self.enter(packed) + names_of(self.names, sizes.tokens)
        if sizes.pointers:
            hidden = hidden + pointer_of(logits) * self.named
        hidden = hidden + self.bodies[body].unsqueeze(1)
        shared = self.shared(fn.silu(self.time(time) + doing.squeeze(1)))
        ahead = torch.ones(1, 1, sizes.tokens, device=video.device)
        keys, values = [], []
        for layer, block in enumerate(layers_of(self.blocks)):
            scale, shift, gate, scale_up, shift_up, gate_up = block.modulation(shared)
            query, key, value = block.project(hidden, scale, shift)
            query, turned = rotate(query, ahead), rotate(key, ahead)
            seen_key = torch.cat([turned, outside_key[:, layer]], dim=2)
            seen_value = torch.cat([value, outside_value[:, layer]], dim=2)
            hidden = hidden + (1.0 + gate) * block.attend(query, seen_key, seen_value, mask)
            hidden = hidden + (1.0 + gate_up) * block.feed(hidden, scale_up, shift_up)
            keys.append(key)
            values.append(value)
        clean = self.leave(normalised(hidden)).unflatten(-1, (sizes.frames, sizes.channels)).transpose(1, 2)
        return clean, (torch.stack(keys, dim=1), torch.stack(values, dim=1)), logits


class Wam(nn.Module):
    """The whole trunk: text, prefill, video stream, action stream."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.text = text_encoder(sizes)
        self.prefill = Prefill(sizes)
        self.video = VideoStream(sizes)
        self.action = ActionStream(sizes)
        start_small(self, [self.video, self.action])

    def window(self, latents: Tensor) -> Rows:
        """Rows of S clean frames. latents: Shape (B, S, K, C) -> Shape (B, S, L, A, K, hd), twice."""
        key, value = self.prefill(latents.flatten(0, 1))
        return key.unflatten(0, latents.shape[:2]), value.unflatten(0, latents.shape[:2])
