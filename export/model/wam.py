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
    by_layer,
    layers_of,
    modulations,
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

    def place(self, logits: Tensor, body: Tensor) -> Tensor:
        """What each token is: its kind, whether it is meant, in which body it is seen. Shape (B, K, d).

        logits: over cubes and none, Shape (B, K), where `sizes.pointers`; body: Shape (B,), int64.
        """
        place = names_of(self.names, self.sizes.tokens) + self.bodies[body].unsqueeze(1)
        return place + pointer_of(logits) * self.named if self.sizes.pointers else place

    def words(self, doing: Tensor) -> Rows:
        """The row of language. doing: what to do, Shape (B, 1, d) -> Shape (B, L, A, 1, hd), twice."""
        return rows_of(self.text_rows(doing), self.sizes.layers, self.sizes.heads)

    def modulation(self, doing: Tensor, time: Tensor) -> Tensor:
        """Every layer's six vectors at a time. doing: Shape (B, 1, d); time: Shape (B,) -> Shape (B, 6 L, d)."""
        return modulations(self.blocks, self.shared(fn.silu(self.time(time) + doing.squeeze(1))))

    def context(
        self, window: Rows, slot_pos: Tensor, valid: Tensor, words: Rows, given: Given | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """All that a pass attends to beside itself: keys and values of the window (rotated now), of language, of
        given actions, each Shape (B, L, A, N, hd); and what is added to the logits of own and these rows, Shape
        (B, 1, 1, K + N), so that empty slots are not seen."""
        key, value = window
        position = slot_pos.unsqueeze(-1).expand(-1, -1, self.sizes.tokens)[:, :, None, None]
        key = rotate(key, position).permute(0, 2, 3, 1, 4, 5).flatten(3, 4)
        value = value.permute(0, 2, 3, 1, 4, 5).flatten(3, 4)
        hidden = (1.0 - valid).repeat_interleave(self.sizes.tokens, dim=1) * -1e4
        mask = fn.pad(hidden, (self.sizes.tokens, 1))[:, None, None]
        key, value = torch.cat([key, words[0]], dim=3), torch.cat([value, words[1]], dim=3)
        if given is None:
            return key, value, mask
        given_key, given_value, hidden_given = self._told(*given)
        mask = torch.cat([mask.expand(len(given[0]), -1, -1, -1), hidden_given], dim=-1)
        return torch.cat([key, given_key], 3), torch.cat([value, given_value], 3), mask

    def _told(self, action: Tensor, seen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rows of given actions, and their mask."""
        hidden = self.given(action.unflatten(1, (-1, self.sizes.patch)).flatten(2)) + self.given_names
        key, value = rows_of(self.given_rows(hidden), self.sizes.layers, self.sizes.heads)
        return key, value, ((1.0 - seen) * -1e4)[:, None, None, None].expand(-1, 1, 1, hidden.shape[1])

    def denoise(
        self, video: Tensor, latent: Tensor, place: Tensor, context: tuple[Tensor, Tensor, Tensor], modulation: Tensor
    ) -> tuple[Tensor, Rows]:
        """One pass: predicted clean residuals (B, F, K, C), and own rows (B, L, A, K, hd). What does not change from
        pass to pass comes ready made: `place`, `context`, and of each time its `modulation`."""
        sizes = self.sizes
        outside_key, outside_value, mask = context
        packed = torch.cat([latent, video.transpose(1, 2).flatten(2)], dim=-1)
        hidden = self.enter(packed) + place
        ahead = torch.ones(1, 1, sizes.tokens, device=video.device)
        vectors = by_layer(modulation)
        keys, values = [], []
        for layer, block in enumerate(layers_of(self.blocks)):
            scale, shift, gate, scale_up, shift_up, gate_up = vectors[layer]
            query, key, value = block.project(hidden, scale, shift)
            query, turned = rotate(query, ahead), rotate(key, ahead)
            seen_key = torch.cat([turned, outside_key[:, layer]], dim=2)
            seen_value = torch.cat([value, outside_value[:, layer]], dim=2)
            hidden = hidden + (1.0 + gate) * block.attend(query, seen_key, seen_value, mask)
            hidden = hidden + (1.0 + gate_up) * block.feed(hidden, scale_up, shift_up)
            keys.append(key)
            values.append(value)
        clean = self.leave(normalised(hidden)).unflatten(-1, (sizes.frames, sizes.channels)).transpose(1, 2)
        return clean, (torch.stack(keys, dim=1), torch.stack(values, dim=1))

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
        doing, logits = self.said(text)
        context = self.context(window, slot_pos, valid, self.words(doing), given)
        clean, rows = self.denoise(video, latent, self.place(logits, body), context, self.modulation(doing, time))
        return clean, rows, logits

    def said(self, text: Tensor) -> tuple[Tensor, Tensor]:
        """What an embedding says to do, Shape (B, 1, d), and its logits over cubes and none, Shape (B, K)."""
        doing, logits = said(text, self.sizes.pointers)
        return self.doing(doing), logits


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
