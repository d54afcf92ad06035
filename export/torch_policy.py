"""The torch side of parity: a checkpoint that decides as the robot does, in float32 and without any exported graph.

It has the protocol of `dzedge.policies`, sees the same observations through the same image kernel and draws the same
noise; everything between is the training side's modules, one straight sampler a family.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dzedge.clock import NS
from dzedge.engine import Noise
from dzedge.errors import UsageError
from dzedge.export import families, tokenizers
from dzedge.export.fit_vla import SLOW_STEPS
from dzedge.export.model.blocks import velocity
from dzedge.export.model.moments import Moments
from dzedge.export.model.text import words_of
from dzedge.export.model.wan_stream import Noisy, Stream
from dzedge.export.source import Source
from dzedge.export.tokenizers import AnyTokenizer
from dzedge.export.train import TOKENIZER
from dzedge.kernels.image import ImagePlan
from dzedge.policies.sampler import Euler, Sampler, TokenSampler
from dzedge.types import ActionChunk, ActionPrefix, Frame, Observation

Floats = NDArray[np.float64]
JUST_NOW = 1e-3
"""Times this near each other are of the same frame [steps between frames]."""


@dataclass(frozen=True, slots=True)
class Trained:
    """A policy's checkpoint and what belongs to it. model, tokenizer: in evaluation mode; recipe: of its training;
    source: of its data."""

    family: str
    model: Any
    tokenizer: AnyTokenizer
    moments: Moments
    recipe: dict[str, Any]
    source: Source

    @classmethod
    def load(cls, path: Path) -> "Trained":
        """Of a checkpoint, its tokenizer beside it. Raises UsageError."""
        family, model, moments, recipe = families.load(path)
        tokenizer = tokenizers.load(path.parent / TOKENIZER).eval()
        return cls(family, model.eval(), tokenizer, moments, recipe, Source.load(path))


@dataclass(frozen=True, slots=True)
class Asked:
    """One decision as the model takes it. latents: of the frames, newest first, each Shape (1, K, C); slot_pos: their
    times, Shape (1, n), in frames from t_obs; t_obs_ns: [ns]; state: Shape (1, J); prefix: Shape (1, H, J) and mask:
    Shape (1, H), what is committed; video, action: noise, Shape (1, F, K, C) and (1, H, J)."""

    latents: list[Tensor]
    slot_pos: Tensor
    t_obs_ns: int
    state: Tensor
    prefix: Tensor
    mask: Tensor
    chunk_id: int


class TorchPolicy:
    """A checkpoint as a policy. camera: (height, width) of the frames; sampler: as in a manifest; seed: of all noise.

    Raises PolicyError for a sampler that the family has not.
    """

    def __init__(self, trained: Trained, camera: tuple[int, int], sampler: str, seed: int = 0) -> None:
        sizes = trained.model.sizes
        self.trained, self.model, self.sizes = trained, trained.model, sizes
        self.horizon, self.dt_ns = sizes.horizon, trained.source.dt_ns
        self.max_prefix = int(trained.recipe.get("max_prefix", 0))
        self.history_ns = (trained.source.frame_dt_ns, 0)
        self._plan = ImagePlan(*camera, None, sizes.image_height, sizes.image_width)
        self._noise = Noise(seed)
        self._choose(sampler)

    def reset(self, instruction: str) -> None:
        """Begin a task. Raises PolicyError for words that the model does not know."""
        ids = words_of(instruction, self.sizes.words, self.trained.source.vocabulary)
        with torch.no_grad():
            self.text = self.model.text(torch.tensor([ids]))

    def observe(self, frame: Frame) -> None:
        """Nothing is encoded early here."""

    @torch.no_grad()
    def infer(self, observation: Observation, prefix: ActionPrefix, chunk_id: int) -> ActionChunk:
        """One chunk, as `BundledPolicy.infer`."""
        moments, anchor = self.trained.moments, np.asarray(observation.state.positions, np.float64)
        frames = observation.frames[::-1]
        since = np.array([[frame.capture_ns - observation.t_obs_ns for frame in frames]], np.float64)
        asked = Asked(
            [self._latent(frame) for frame in frames],
            torch.from_numpy((since / self.trained.source.frame_dt_ns).astype(np.float32)),
            observation.t_obs_ns,
            torch.from_numpy(((anchor - moments.state_mean) / moments.state_std).astype(np.float32)[None]),
            *self._committed(prefix.positions - anchor),
            chunk_id,
        )
        offsets, imagined = self._decide(asked)
        positions = anchor + offsets
        return ActionChunk(positions, imagined, observation.t_obs_ns, self.dt_ns, chunk_id, observation.epoch)

    def _choose(self, sampler: str) -> None:
        raise NotImplementedError

    def _decide(self, asked: Asked) -> tuple[Floats, NDArray[np.float32]]:
        """Offsets from the joints, Shape (H, J), [rad], and imagined latents, Shape (F, K, C)."""
        raise NotImplementedError

    def _latent(self, frame: Frame) -> Tensor:
        image = np.empty((3, self.sizes.image_height, self.sizes.image_width), np.float32)
        self._plan.run(frame.image, image)
        latent: Tensor = self.trained.tokenizer.encoder(torch.from_numpy(image[None]))
        return latent

    def _committed(self, offsets: Floats) -> tuple[Tensor, Tensor]:
        prefix, mask = torch.zeros(1, self.horizon, self.sizes.joints), torch.zeros(1, self.horizon)
        count = len(offsets)
        prefix[0, :count] = torch.from_numpy((offsets / self.trained.moments.action_std[:count]).astype(np.float32))
        mask[0, :count] = 1.0
        return prefix, mask

    def _normal(self, generator: np.random.Generator, *shape: int) -> Tensor:
        return torch.from_numpy(generator.standard_normal(shape, dtype=np.float32))

    def _scaled(self, action: Tensor) -> Floats:
        offsets: Floats = action[0].numpy().astype(np.float64) * self.trained.moments.action_std
        return offsets

    def _nothing(self) -> NDArray[np.float32]:
        return np.zeros((0, self.sizes.tokens, self.sizes.channels), np.float32)

    def _pair(self, asked: Asked) -> tuple[Tensor, Tensor, Tensor]:
        """The newest latent, the one before, and whether there is one."""
        there = len(asked.latents) > 1
        before = asked.latents[1] if there else torch.zeros_like(asked.latents[0])
        return asked.latents[0], before, torch.full((1,), float(there))


class WorldActionModel(TorchPolicy):
    """wam: video, then actions against the rows of the finished video; or both at once."""

    def _choose(self, sampler: str) -> None:
        self.sampler = Sampler.parse(sampler)

    def _decide(self, asked: Asked) -> tuple[Floats, NDArray[np.float32]]:
        sizes, generator = self.sizes, self._noise.of(asked.chunk_id)
        window = self._window(asked)
        video = self._normal(generator, 1, sizes.frames, sizes.tokens, sizes.channels)
        action = self._normal(generator, 1, sizes.horizon, sizes.joints)
        if self.sampler.coupled:
            steps = self.sampler.video_steps
            for step in range(steps):
                at = torch.tensor([step / steps])
                moved, rows = self._video(video, asked, window, at)
                action = action + self._action(action, asked, rows, at) / steps
                video = video + moved / steps
        else:
            for step in range(self.sampler.video_steps):
                moved, _ = self._video(video, asked, window, torch.tensor([step / self.sampler.video_steps]))
                video = video + moved / self.sampler.video_steps
            _, rows = self._video(video, asked, window, torch.ones(1))
            for step in range(self.sampler.action_steps):
                at = torch.tensor([step / self.sampler.action_steps])
                action = action + self._action(action, asked, rows, at) / self.sampler.action_steps
        future = asked.latents[0].numpy() + video[0].numpy() * self.trained.moments.residual_std
        return self._scaled(action), future.astype(np.float32)

    def _window(self, asked: Asked) -> tuple[Any, Tensor, Tensor]:
        """Rows, positions and validity of the slots, newest first; a slot without a frame is hidden."""
        slots = self.sizes.window
        latents = asked.latents[:slots]
        empty = [torch.zeros_like(latents[0])] * (slots - len(latents))
        slot_pos, valid = torch.zeros(1, slots), torch.zeros(1, slots)
        slot_pos[:, : len(latents)] = asked.slot_pos[:, :slots]
        valid[:, : len(latents)] = 1.0
        return self.model.window(torch.stack([*latents, *empty], dim=1)), slot_pos, valid

    def _video(self, video: Tensor, asked: Asked, window: tuple[Any, Tensor, Tensor], at: Tensor) -> tuple[Tensor, Any]:
        body = torch.zeros(1, dtype=torch.int64)
        clean, rows, _ = self.model.video(video, asked.latents[0], *window, self.text, at, body)
        return velocity(clean, video, at), rows

    def _action(self, action: Tensor, asked: Asked, rows: Any, at: Tensor) -> Tensor:
        clean = self.model.action(action, asked.prefix, asked.mask, asked.state, rows, at)
        return velocity(clean, action, at)


class JointWorldModel(TorchPolicy):
    """wan_joint: frames one by one into a window that slides, then video and actions together."""

    def reset(self, instruction: str) -> None:
        ids = words_of(instruction, self.sizes.words, self.trained.source.vocabulary)
        self._words = torch.tensor([ids])
        self._stream: Stream | None = None

    def _choose(self, sampler: str) -> None:
        self.sampler = Sampler.parse(sampler)

    def _decide(self, asked: Asked) -> tuple[Floats, NDArray[np.float32]]:
        sizes, generator = self.sizes, self._noise.of(asked.chunk_id)
        video = self._normal(generator, 1, sizes.frames, sizes.tokens, sizes.channels)
        action = self._normal(generator, 1, sizes.horizon, sizes.joints)
        noisy = Noisy(self._seen(asked), video, action, asked.state, (asked.prefix, asked.mask))
        if self.sampler.coupled:
            noisy.joint(self.sampler.video_steps)
        else:
            noisy.see(self.sampler.video_steps)
            noisy.act(self.sampler.action_steps)
        return self._scaled(noisy.action), self.model.raw(noisy.video)[0].numpy()

    def _seen(self, asked: Asked) -> Stream:
        """The stream with the frames that are new in it; a new one where time goes back."""
        now = asked.t_obs_ns / self.trained.source.frame_dt_ns
        if self._stream is None or now < self._stream.newest:
            self._stream = Stream(self.model, self._words)
        for latent, age in reversed(list(zip(asked.latents, asked.slot_pos[0].tolist(), strict=True))):
            if now + age > self._stream.newest + JUST_NOW:
                self._stream.push(latent, now + age)
        return self._stream


class FlowVla(TorchPolicy):
    """flow_vla: a context once, then Euler steps of the expert."""

    def _choose(self, sampler: str) -> None:
        self.steps = Euler.parse(sampler).steps

    def _decide(self, asked: Asked) -> tuple[Floats, NDArray[np.float32]]:
        action = self._normal(self._noise.of(asked.chunk_id), 1, self.horizon, self.sizes.joints)
        known = self._known(asked)
        for step in range(self.steps):
            at = torch.tensor([step / self.steps])
            action = action + velocity(self._clean(action, asked, known, at), action, at) / self.steps
        return self._scaled(action), self._nothing()

    def _known(self, asked: Asked) -> Any:
        _, rows, _ = self.model.context(*self._pair(asked), self.text, asked.state)
        return rows

    def _clean(self, action: Tensor, asked: Asked, known: Any, at: Tensor) -> Tensor:
        clean: Tensor = self.model.action(action, asked.prefix, asked.mask, None, known, at)
        return clean


class DualVla(FlowVla):
    """dual_vla: features that are kept while they are young, then Euler steps of the fast head."""

    _features: tuple[int, Tensor] | None = None

    def reset(self, instruction: str) -> None:
        super().reset(instruction)
        self._features = None

    def _known(self, asked: Asked) -> tuple[Tensor, Tensor]:
        """Features, and their age [s]."""
        kept = SLOW_STEPS * self.dt_ns
        if self._features is None or not 0 <= asked.t_obs_ns - self._features[0] < kept:
            self._features = asked.t_obs_ns, self.model.context(*self._pair(asked), self.text)[0]
        seen_ns, features = self._features
        return features, torch.tensor([(asked.t_obs_ns - seen_ns) / NS])

    def _clean(self, action: Tensor, asked: Asked, known: Any, at: Tensor) -> Tensor:
        clean: Tensor = self.model.head(action, asked.prefix, asked.mask, asked.state, *known, at)
        return clean


class TokenVla(TorchPolicy):
    """token_vla: every token from all tokens before it, each time anew; committed ones are forced."""

    def _choose(self, sampler: str) -> None:
        self.temperature = TokenSampler.parse(sampler).temperature

    def _decide(self, asked: Asked) -> tuple[Floats, NDArray[np.float32]]:
        moments, count = self.trained.moments, self.horizon * self.sizes.joints
        low, high = (bound * moments.action_std for bound in (moments.action_low, moments.action_high))
        width = (high - low) / 256
        _, rows, _ = self.model.context(*self._pair(asked), self.text, asked.state)
        committed = int(asked.mask.sum())
        offsets = self._scaled(asked.prefix)
        forced = np.floor((offsets - low) / width).clip(0, 255).astype(int)[:committed].ravel()
        chance = self._noise.of(asked.chunk_id).random(count)
        tokens = torch.zeros(1, count, dtype=torch.int64)
        for place in range(count):
            if place < len(forced):
                tokens[0, place] = int(forced[place])
            else:
                logits = self.model.stream(tokens, rows)[0, place].numpy().astype(np.float64)
                tokens[0, place] = self._pick(logits, chance[place])
        said = low + (tokens.view(self.horizon, -1).numpy() + 0.5) * width
        said[:committed] = offsets[:committed]
        return said, self._nothing()

    def _pick(self, logits: Floats, chance: float) -> int:
        if not self.temperature:
            return int(logits.argmax())
        shares = np.exp((logits - logits.max()) / self.temperature).cumsum()
        return min(int(shares.searchsorted(chance * shares[-1], side="right")), 255)


FAMILIES: dict[str, type[TorchPolicy]] = {
    "wam": WorldActionModel, "flow_vla": FlowVla, "dual_vla": DualVla, "token_vla": TokenVla,
    "wan_joint": JointWorldModel,
}  # fmt: skip


def torch_policy(trained: Trained, camera: tuple[int, int], sampler: str, seed: int = 0) -> TorchPolicy:
    """The checkpoint of any family as a policy; arguments as `TorchPolicy`. Raises UsageError for a family that has no
    sampler here."""
    if trained.family not in FAMILIES:
        raise UsageError(f"family {trained.family!r}: no torch sampler; known: {', '.join(FAMILIES)}; add one here")
    return FAMILIES[trained.family](trained, camera, sampler, seed)
