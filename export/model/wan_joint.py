"""The coupled layout: one trunk denoises video and actions together (facts/dreamzero 1; names and shapes of the
parameters are those of the published checkpoints, so that they load by key).

A sequence is a first frame (block 0), then blocks of F latent frames, H actions and n states. The tokens of a block
see the clean frames of its window and each other; clean frames see clean frames only, so their rows can be kept. Rows
are kept before RoPE, beside the position of their frame: a host that slides the window renumbers it, because actions
(position `block * H + i`) do not shift along with frames and are known only at the positions of training.

Each stream has its own time t, 0 noise and 1 clean; coupled sampling passes the same to both. Inside it becomes the
published timestep 1000 (1 - t), and the published velocity noise - clean becomes dzedge's clean - noise.

Letters: B batch, F frames of a block, K tokens of a frame, C channels of a latent of h x w, H actions and n states of
a block, U action width, P state width, S window slots, L layers, A heads, hd head width, D width, N tokens, G times.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as fn

from dzedge.errors import UsageError
from dzedge.export.model.blocks import Rows, velocity
from dzedge.export.model.wan_config import PATCH, Config, Kind, Tokens, Window, angles, frame_angles, joined, visible

HIDDEN = -1e4
"""Added to a score that must not count: its exponential is exactly 0, and float16 can hold it."""

TIMESTEPS = 1000.0
"""The published timestep of pure noise."""


def rotate(rows: Tensor, angle: Tensor) -> Tensor:
    """Turns interleaved pairs (2i, 2i+1). rows: Shape (B, A, N, hd); angle: Shape (B, N, hd/2), [rad]."""
    cos, sin = (turn.unsqueeze(1).to(rows.dtype) for turn in (angle.cos(), angle.sin()))
    even, odd = rows.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2)


class RmsNorm(nn.Module):
    """x / rms(x) * weight over the whole width, before heads are split."""

    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__()
        self.epsilon = epsilon
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, rows: Tensor) -> Tensor:
        exact = rows.float()
        exact = exact * torch.rsqrt(exact.square().mean(dim=-1, keepdim=True) + self.epsilon)
        return exact.to(rows.dtype) * self.weight


class Attention(nn.Module):
    """Projections with normalised queries and keys."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.heads = config.heads
        self.q, self.k, self.v, self.o = (nn.Linear(config.width, config.width) for _ in range(4))
        self.norm_q, self.norm_k = (RmsNorm(config.width, config.epsilon) for _ in range(2))

    def split(self, rows: Tensor) -> Tensor:
        """Shape (B, N, D) -> Shape (B, A, N, hd)."""
        return rows.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def merge(self, rows: Tensor) -> Tensor:
        """Shape (B, A, N, hd) -> Shape (B, N, D), projected."""
        return self.o(rows.transpose(1, 2).flatten(2))


class SelfAttention(Attention):
    """Attends to kept rows, then to its own tokens."""

    def forward(self, hidden: Tensor, angle: Tensor, mask: Tensor, before: Rows | None) -> tuple[Tensor, Rows]:
        """New hidden (B, N, D) and own rows before RoPE. angle: of kept and own tokens; mask: added to the scores."""
        query, own = self.split(self.norm_q(self.q(hidden))), self.split(self.norm_k(self.k(hidden)))
        own_value = self.split(self.v(hidden))
        key, value = own, own_value
        if before is not None:
            key, value = torch.cat([before[0], own], dim=2), torch.cat([before[1], own_value], dim=2)
        query = rotate(query, angle[:, -hidden.shape[1] :])
        seen = fn.scaled_dot_product_attention(query, rotate(key, angle), value, attn_mask=mask)
        return self.merge(seen), (own, own_value)


class CrossAttention(Attention):
    """Attends to text and, with weights of its own, to image tokens; the results are added."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.images = config.image_tokens
        if self.images:
            self.k_img, self.v_img = (nn.Linear(config.width, config.width) for _ in range(2))
            self.norm_k_img = RmsNorm(config.width, config.epsilon)

    def rows(self, text: Tensor, image: Tensor | None) -> Rows:
        """Keys and values of a prompt, image tokens first, each Shape (B, A, tokens, hd)."""
        key, value = self.split(self.norm_k(self.k(text))), self.split(self.v(text))
        if image is None:
            return key, value
        image_key, image_value = self.norm_k_img(self.k_img(image)), self.v_img(image)
        return torch.cat([self.split(image_key), key], dim=2), torch.cat([self.split(image_value), value], dim=2)

    def forward(self, hidden: Tensor, context: Rows) -> Tensor:
        query, n = self.split(self.norm_q(self.q(hidden))), self.images
        seen = fn.scaled_dot_product_attention(query, context[0][:, :, n:], context[1][:, :, n:])
        if n:
            seen = seen + fn.scaled_dot_product_attention(query, context[0][:, :, :n], context[1][:, :, :n])
        return self.merge(seen)


class Block(nn.Module):
    """Self-attention, cross-attention, feed-forward; adaptive norm with six vectors a time."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        width = config.width
        self.norm1 = nn.LayerNorm(width, config.epsilon, elementwise_affine=False)
        self.self_attn = SelfAttention(config)
        self.norm3 = nn.LayerNorm(width, config.epsilon)
        self.cross_attn = CrossAttention(config)
        self.norm2 = nn.LayerNorm(width, config.epsilon, elementwise_affine=False)
        self.ffn = nn.Sequential(nn.Linear(width, config.feed), nn.GELU("tanh"), nn.Linear(config.feed, width))
        self.modulation = nn.Parameter(torch.randn(1, 6, width) / width**0.5)

    def forward(
        self, hidden: Tensor, shared: Tensor, owner: Tensor, angle: Tensor, mask: Tensor, context: Rows,
        before: Rows | None,
    ) -> tuple[Tensor, Rows]:  # fmt: skip
        """hidden: Shape (B, N, D); shared: Shape (B, G, 6, D), spread to tokens only here: G is small."""
        vectors = (shared + self.modulation.unsqueeze(1)).index_select(1, owner).unbind(2)
        shift, scale, gate, shift_up, scale_up, gate_up = vectors
        seen, rows = self.self_attn(self.norm1(hidden) * (1.0 + scale) + shift, angle, mask, before)
        hidden = hidden + seen * gate
        hidden = hidden + self.cross_attn(self.norm3(hidden), context)
        return hidden + self.ffn(self.norm2(hidden) * (1.0 + scale_up) + shift_up) * gate_up, rows


class CategoryLinear(nn.Module):
    """A linear layer stored (1, in, out), as the published files hold it: the axis of embodiments has length 1."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.W = nn.Parameter(0.02 * torch.randn(1, inputs, outputs))
        self.b = nn.Parameter(torch.zeros(1, outputs))

    def forward(self, rows: Tensor) -> Tensor:
        return rows @ self.W[0] + self.b[0]


class CategoryMlp(nn.Module):
    """State encoder and action decoder."""

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.layer1, self.layer2 = CategoryLinear(inputs, hidden), CategoryLinear(hidden, outputs)

    def forward(self, rows: Tensor) -> Tensor:
        return self.layer2(fn.relu(self.layer1(rows)))


class ActionEncoder(nn.Module):
    """An action and its own timestep -> a token."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.W1, self.W2, self.W3 = (CategoryLinear(n, width) for n in (inputs, 2 * width, width))

    def forward(self, action: Tensor, time: Tensor) -> Tensor:
        """action: Shape (B, H, U); time: Shape (B, H), 0 noise to 1 clean -> Shape (B, H, D)."""
        entered = self.W1(action)
        angle = angles(TIMESTEPS * (1.0 - time), entered.shape[-1])
        code = torch.cat([angle.sin(), angle.cos()], dim=-1).to(entered.dtype)
        return self.W3(fn.silu(self.W2(torch.cat([entered, code], dim=-1))))


class ImageProjection(nn.Module):
    """Image tokens -> Shape (B, tokens, D)."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Sequential(
            nn.LayerNorm(inputs), nn.Linear(inputs, inputs), nn.GELU(), nn.Linear(inputs, width), nn.LayerNorm(width)
        )

    def forward(self, image: Tensor) -> Tensor:
        return self.proj(image)


class Head(nn.Module):
    """Video tokens -> pixels of their latent patch."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.norm = nn.LayerNorm(config.width, config.epsilon, elementwise_affine=False)
        self.head = nn.Linear(config.width, PATCH * PATCH * config.channels)
        self.modulation = nn.Parameter(torch.randn(1, 2, config.width) / config.width**0.5)

    def forward(self, hidden: Tensor, embedded: Tensor) -> Tensor:
        """hidden: Shape (B, F*K, D); embedded: Shape (B, F, D), time of each frame -> Shape (B, F, C, h, w)."""
        tokens, frames = self.config.tokens, embedded.shape[1]
        shift, scale = (self.modulation.unsqueeze(1) + embedded.unsqueeze(2)).repeat_interleave(tokens, 1).unbind(2)
        pixels = self.head(self.norm(hidden) * (1.0 + scale) + shift)
        patches = pixels.unflatten(-1, (PATCH, PATCH, -1)).unflatten(1, (frames, *self.config.grid))
        return patches.permute(0, 1, 6, 2, 4, 3, 5).flatten(5, 6).flatten(3, 4)


class WanJoint(nn.Module):
    """The trunk with its inputs and outputs. Four uses: `context` once a prompt, `prefill` once a clean frame or
    block, `forward` once a denoise step, `teacher_forced` in training."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.state_encoder = CategoryMlp(config.state_width, config.hidden, width)
        self.action_encoder = ActionEncoder(config.action_width, width)
        self.action_decoder = CategoryMlp(width, config.hidden, config.action_width)
        inputs = config.channels + config.condition_channels
        self.patch_embedding = nn.Conv3d(inputs, width, (1, PATCH, PATCH), stride=(1, PATCH, PATCH))
        self.text_embedding = nn.Sequential(
            nn.Linear(config.text_width, width), nn.GELU("tanh"), nn.Linear(width, width)
        )
        self.time_embedding = nn.Sequential(nn.Linear(config.time_width, width), nn.SiLU(), nn.Linear(width, width))
        self.time_projection = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.head = Head(config)
        if config.image_tokens:
            self.img_emb = ImageProjection(config.image_width, width)
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(self.patch_embedding.weight.flatten(1))
        for module in (*self.text_embedding, *self.time_embedding):
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
        nn.init.zeros_(self.head.head.weight)

    def context(self, text: Tensor, image: Tensor | None = None) -> Rows:
        """Cross-attention rows of a prompt, each Shape (B, L, A, image_tokens + W, hd); constant, so kept by prompt.

        text: Shape (B, W, text_width), zero after its end (zeros count: the published model does not hide them);
        image: Shape (B, image_tokens, image_width). UsageError where the image is missing or not wanted.
        """
        if (image is not None) != bool(self.config.image_tokens):
            raise UsageError(f"wan: image given: {image is not None}, expected {self.config.image_tokens} image tokens")
        words, picture = self.text_embedding(text), None if image is None else self.img_emb(image)
        rows = [block.cross_attn.rows(words, picture) for block in self._layers()]
        return torch.stack([key for key, _ in rows], dim=1), torch.stack([value for _, value in rows], dim=1)

    def prefill(self, latent: Tensor, context: Rows, window: Window, condition: Tensor | None = None) -> Rows:
        """Rows of clean frames, to be put into slots, each Shape (B, f, L, A, K, hd).

        latent: Shape (B, f, C, h, w), f = 1 for the first frame and F for a block, always 1 where streaming;
        condition: Shape (B, f, Cc, h, w). UsageError for several frames at once where streaming.
        """
        frames = latent.shape[1]
        if self.config.streaming and frames != 1:
            raise UsageError(f"wan: prefill of {frames} frames, allowed 1 where clean frames are streaming")
        time = latent.new_ones(latent.shape[0], frames)
        block = torch.ones(frames, dtype=torch.long, device=latent.device)
        tokens = self._frames(Kind.CLEAN, latent, condition, time, window.positions[1], block, block)
        rows = self._run(tokens, context, window)[1]
        stacked = (torch.stack(part, dim=1).unflatten(3, (frames, -1)) for part in zip(*rows, strict=True))
        key, value = (part.permute(0, 3, 1, 2, 4, 5) for part in stacked)
        return key, value

    def forward(
        self, video: Tensor, action: Tensor, prefix: Tensor, prefix_mask: Tensor, state: Tensor, context: Rows,
        window: Window, t_video: Tensor, t_action: Tensor, condition: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Velocities of one block: v_video (B, F, C, h, w), v_action (B, H, U).

        video: Shape (B, F, C, h, w); action, prefix: Shape (B, H, U); prefix_mask: Shape (B, H), 1 = committed (that
        action is clean and at time 1, whatever t_action); state: Shape (B, n, P); t_video, t_action: Shape (B,).
        """
        config = self.config
        committed, ahead = prefix_mask.unsqueeze(-1), window.positions[1]
        known = committed * prefix + (1.0 - committed) * action
        times = prefix_mask + (1.0 - prefix_mask) * t_action.unsqueeze(1)
        index = torch.floor((ahead[:, :1] - 1.0) / config.frames)
        block = torch.ones(config.frames, dtype=torch.long, device=video.device)
        tokens = joined([
            self._frames(Kind.NOISY, video, condition, t_video.unsqueeze(1).expand_as(ahead), ahead, block),
            *self._registers(known, times, state, index),
        ])  # fmt: skip
        hidden, _, embedded = self._run(tokens, context, window)
        count = config.frames * config.tokens
        v_video = -self.head(hidden[:, :count], embedded[:, : config.frames])
        v_action = -self.action_decoder(hidden[:, count : count + config.actions])
        return v_video, committed * velocity(prefix, action, t_action) + (1.0 - committed) * v_action

    def teacher_forced(
        self, clean: Tensor, video: Tensor, action: Tensor | None, state: Tensor | None, context: Rows,
        t_video: Tensor, t_action: Tensor | None, condition: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        """Velocities of all blocks in one pass, each block given the clean frames before it.

        clean, video: Shape (B, T, C, h, w), T = 1 + blocks * F; action: Shape (B, blocks * H, U); state: Shape
        (B, blocks * n, P); both None for video without actions; t_video: Shape (B, T); t_action: Shape (B, blocks * H).
        The mask is dense: N^2 bytes, fit for small grids; the 14B grid needs a block-sparse kernel in its place.
        """
        config, length = self.config, clean.shape[1]
        frame = torch.arange(length, device=clean.device)
        block = (frame + config.frames - 1).div(config.frames, rounding_mode="floor")
        position = frame.to(t_video.dtype).expand(clean.shape[0], -1)
        parts = [
            self._frames(Kind.CLEAN, clean, condition, torch.ones_like(t_video), position, block, frame),
            self._frames(Kind.NOISY, video, condition, t_video, position, block),
        ]
        acting = {"action": action, "state": state, "t_action": t_action}
        missing = [name for name, given in acting.items() if given is None]
        if action is not None and state is not None and t_action is not None:
            parts += self._registers(action, t_action, state, t_action.new_zeros(clean.shape[0], 1))
        elif len(missing) < len(acting):
            raise UsageError(f"wan: {missing[0]} is missing; give all of {', '.join(acting)}, or none (video alone)")
        hidden, _, embedded = self._run(joined(parts), context)
        hidden, count = hidden[:, length * config.tokens :], length * config.tokens
        v_video = -self.head(hidden[:, :count], embedded[:, length : 2 * length])
        if action is None:
            return v_video, None
        return v_video, -self.action_decoder(hidden[:, count : count + action.shape[1]])

    def _layers(self) -> list[Block]:
        return [block for block in self.blocks if isinstance(block, Block)]

    def _frames(
        self, kind: Kind, latent: Tensor, condition: Tensor | None, time: Tensor, position: Tensor, block: Tensor,
        frame: Tensor | None = None,
    ) -> Tokens:  # fmt: skip
        """latent: Shape (B, F, C, h, w); time, position: Shape (B, F); block, frame: Shape (F,)."""
        config = self.config
        packed = latent if condition is None else torch.cat([latent, condition], dim=2)
        expected = (config.channels + config.condition_channels, config.latent_height, config.latent_width)
        if tuple(packed.shape[2:]) != expected:
            raise UsageError(f"wan: latent with condition is {tuple(packed.shape[2:])}, expected {expected}")
        # A patch is one frame deep: a plain image convolution does it, and every backend has one.
        weight, bias = self.patch_embedding.weight.squeeze(2), self.patch_embedding.bias
        hidden = fn.conv2d(packed.flatten(0, 1), weight, bias, stride=PATCH).flatten(2).transpose(1, 2)
        hidden = hidden.unflatten(0, packed.shape[:2]).flatten(1, 2)
        owner = torch.arange(len(block), device=latent.device).repeat_interleave(config.tokens)
        place = torch.stack([torch.full_like(block, kind), block, torch.zeros_like(block) if frame is None else frame])
        angle = frame_angles(config, position)
        return Tokens(hidden, time, owner, angle, place.repeat_interleave(config.tokens, dim=1))

    def _registers(self, action: Tensor, time: Tensor, state: Tensor, index: Tensor) -> list[Tokens]:
        """Actions and states of blocks from number `index`, Shape (B, 1), on. time: Shape (B, blocks * H).

        A state takes the time of its block's last action: the first may be committed and clean.
        """
        config = self.config
        state_time = time[:, config.actions - 1 :: config.actions].repeat_interleave(config.states, dim=1)
        parts = []
        for kind, hidden, times, each in (
            (Kind.ACTION, self.action_encoder(action, time), time, config.actions),
            (Kind.STATE, self.state_encoder(state), state_time, config.states),
        ):
            step = torch.arange(hidden.shape[1], device=action.device)
            block = step.div(each, rounding_mode="floor") + 1
            angle = angles(index * each + step, config.head_width)
            place = torch.stack([torch.full_like(step, kind), block, torch.zeros_like(step)])
            parts.append(Tokens(hidden, times, step, angle, place))
        return parts

    def _run(self, tokens: Tokens, context: Rows, window: Window | None = None) -> tuple[Tensor, list[Rows], Tensor]:
        """Hidden after the last layer (B, N, D), every layer's own rows, the times' embeddings (B, G, D)."""
        config, count = self.config, tokens.hidden.shape[1]
        angle, place = tokens.angle, tokens.place
        code = angles(TIMESTEPS * (1.0 - tokens.time), config.time_width)
        code = torch.cat([code.cos(), code.sin()], dim=-1).to(tokens.hidden.dtype)
        embedded = self.time_embedding(code)
        shared = self.time_projection(embedded).unflatten(-1, (6, -1))
        if window is not None:
            # To the rule a slot is the first frame of a sequence whose block 1 is now: clean, and recent.
            kept = frame_angles(config, window.positions[0])
            angle = torch.cat([kept, angle], dim=1)
            place = fn.pad(place, (kept.shape[1], 0))
        mask = HIDDEN * (~visible(config, place)[-count:]).to(tokens.hidden.dtype)
        if window is not None:
            empty = HIDDEN * (1.0 - window.valid).repeat_interleave(config.tokens, dim=1)
            mask = mask + fn.pad(empty, (0, count))[:, None, None].to(mask.dtype)
        hidden, rows = tokens.hidden, []
        for layer, block in enumerate(self._layers()):
            before = None if window is None else window.rows(layer)
            prompt = context[0][:, layer], context[1][:, layer]
            hidden, own = block(hidden, shared, tokens.owner, angle, mask, prompt, before)
            rows.append(own)
        return hidden, rows, embedded


def parameters_on_meta(config: Config) -> int:
    """Number of parameters, counted without memory for any."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in WanJoint(config).parameters())
