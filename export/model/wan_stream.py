"""The sliding window of clean frames as the robot keeps it, and sampling from it, in torch."""

import math

import torch
from torch import Tensor

from dzedge.export.model.blocks import Rows
from dzedge.export.model.wan_config import Window
from dzedge.export.model.wan_policy import WanPolicy, newest_position
from dzedge.policies.stream import REACH, SOON


class Stream:
    """Frames of one task, B scenes side by side. words: Shape (B, W).

    Every frame is taken in once: its rows stay what they were when it came. Times are in steps between frames.
    """

    def __init__(self, model: WanPolicy, words: Tensor) -> None:
        self.model, self.words = model, model.context(words)
        self._rows: list[Rows] = []
        self._times: list[float] = []
        self._seen = 0
        config = model.trunk.config
        shape = (len(words), 1, config.layers, config.heads, config.tokens, config.head_width)
        self._empty = torch.zeros(shape, device=words.device)

    def push(self, latent: Tensor, time: float) -> None:
        """Take in a frame. latent: Shape (B, K, C), as the tokenizer makes it."""
        if len(self._times) > 1 and self._times[-1] - self._times[-2] < SOON:
            self._rows.pop()
            self._times.pop()
            self._seen -= 1
        frame = self.model.grid.cells(self.model.scaled(latent).unsqueeze(1))
        self._rows.append(self.model.trunk.prefill(frame, self.words, self._window(time, [time])))
        self._times.append(time)
        self._seen += 1
        slots = self.model.sizes.window
        self._rows, self._times = self._rows[-slots:], self._times[-slots:]

    @property
    def newest(self) -> float:
        """When the newest frame was taken; minus infinity before the first."""
        return self._times[-1] if self._times else -math.inf

    def window(self) -> Window:
        """What the next block attends to."""
        now, frames = self._times[-1], self.model.sizes.frames
        return self._window(now, [now + 1.0 + i for i in range(frames)])

    def _window(self, now: float, ahead: list[float]) -> Window:
        slots, device = self.model.sizes.window, self._empty.device
        kept = [(row, time) for row, time in zip(self._rows, self._times, strict=True) if now - time <= slots + REACH]
        missing = slots - len(kept)
        times = [now] * missing + [time for _, time in kept] + ahead
        base = newest_position(max(self._seen, 1), slots, self.model.sizes.frames)
        position = torch.tensor([time - now + base for time in times], device=device)
        valid = (torch.arange(slots, device=device) >= missing).float()
        count = len(self._empty)
        key, value = (torch.cat([self._empty] * missing + [row[i] for row, _ in kept], dim=1) for i in (0, 1))
        return Window(key, value, position.expand(count, -1), valid.expand(count, -1))


class Noisy:
    """A block on its way from noise to clean. video: Shape (B, F, K, C); action, prefix: Shape (B, H, J); mask: Shape
    (B, H), what of prefix is committed; state: Shape (B, J)."""

    def __init__(
        self, stream: Stream, video: Tensor, action: Tensor, state: Tensor,
        committed: tuple[Tensor, Tensor] | None = None,
    ) -> None:  # fmt: skip
        self.stream, self.video, self.action, self.state = stream, video, action, state.unsqueeze(1)
        self._prefix, self._mask = committed or (torch.zeros_like(action), torch.zeros_like(action[..., 0]))
        self._window = stream.window()

    def velocities(self, t_video: float, t_action: float) -> tuple[Tensor, Tensor]:
        """Of video and of actions."""
        model = self.stream.model
        at = [self.video.new_full((len(self.video),), time) for time in (t_video, t_action)]
        v_video, v_action = model.trunk(
            model.grid.cells(self.video), self.action, self._prefix, self._mask, self.state, self.stream.words,
            self._window, *at,
        )  # fmt: skip
        return model.grid.patches(v_video), v_action

    def joint(self, steps: int) -> None:
        """Both at once."""
        for step in range(steps):
            v_video, v_action = self.velocities(step / steps, step / steps)
            self.video = self.video + v_video / steps
            self.action = self.action + v_action / steps

    def see(self, steps: int) -> None:
        """The video, while the actions are still noise."""
        for step in range(steps):
            self.video = self.video + self.velocities(step / steps, 0.0)[0] / steps

    def act(self, steps: int) -> None:
        """The actions, while the video is taken for finished."""
        for step in range(steps):
            self.action = self.action + self.velocities(1.0, step / steps)[1] / steps
