"""`act.onnx`: a whole chunk of a world action model as one graph, for programs that run one graph and know no loop.

The sampler is unrolled and the statistics are inside: two pictures, joints, words and noise in, joint targets out.
Our own runtime does not use it: it would compute again with every chunk, and in one precision, what it keeps.
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from dzedge.bundle import UNROLLED
from dzedge.errors import UsageError
from dzedge.export.model import graphs as cut
from dzedge.export.model.graphs import Graph
from dzedge.export.model.moments import Moments
from dzedge.export.model.wam import Wam
from dzedge.export.onnx import OPSET, export_graph
from dzedge.export.parity import TOLERANCE, Parity, compare, require
from dzedge.policies.sampler import Sampler

SAMPLER = "video_first(1,1)"
NAME = "act"


class Unrolled(nn.Module):
    """The graphs of a world action model, one after the other. sampler: video first, its steps unrolled.

    Raises UsageError for a coupled sampler.
    """

    action_std: Tensor
    state_mean: Tensor
    state_std: Tensor

    def __init__(self, wam: Wam, encoder: nn.Module, moments: Moments, sampler: str = SAMPLER) -> None:
        super().__init__()
        self.sizes, self.steps = wam.sizes, Sampler.parse(sampler)
        if self.steps.coupled:
            raise UsageError(f"act.onnx: sampler {sampler!r}: must be video_first(nv,na); choose one")
        self.encoder = encoder
        self.text, self.modulation = cut.TextGraph(wam), cut.ModulationGraph(wam)
        self.prefill, self.context = cut.PrefillGraph(wam), cut.ContextGraph(wam)
        self.video_step, self.action_step = cut.VideoGraph(wam), cut.ActionGraph(wam)
        for name in ("action_std", "state_mean", "state_std"):
            self.register_buffer(name, torch.from_numpy(getattr(moments, name)).float())

    def forward(
        self, image: Tensor, image_before: Tensor, state: Tensor, words: Tensor, noise_video: Tensor, noise: Tensor
    ) -> Tensor:
        """Targets for t_obs + (i + 1) * dt, Shape (1, H, J), [rad], absolute.

        image, image_before: RGB in [-1, 1], Shape (1, 3, h, w), one frame apart; state: measured joints, Shape (1, J),
        [rad]; words: ids, 0 pads, Shape (1, W); noise_video, noise: standard normal, Shape (1, F, K, C), (1, H, J).
        """
        text, place, key_text, value_text = self.text(words)
        latent = self.encoder(image)
        context = self._context(latent, self.encoder(image_before), key_text, value_text)
        video, action = noise_video, noise
        for i in range(self.steps.video_steps):
            moved, _, _ = self._video(video, latent, place, context, i / self.steps.video_steps, text)
            video = video + moved / self.steps.video_steps
        _, key, value = self._video(video, latent, place, context, 1.0, text)
        scaled = (state - self.state_mean) / self.state_std
        for i in range(self.steps.action_steps):
            time = torch.tensor([i / self.steps.action_steps])
            modulation = self.modulation(time, text)[1]
            free = torch.zeros_like(action), torch.zeros(1, self.sizes.horizon)
            moved = self.action_step(action, *free, scaled, key, value, modulation, time)
            action = action + moved / self.steps.action_steps
        return state.unsqueeze(1) + action * self.action_std

    def _context(
        self, latent: Tensor, before: Tensor, key_text: Tensor, value_text: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Rows of the window (two frames, the other slots empty) and of language."""
        sizes = self.sizes
        (key, value), (key_before, value_before) = self.prefill(latent), self.prefill(before)
        empty = [torch.zeros_like(key)] * (sizes.window - 2)
        slots = torch.arange(sizes.window)
        told = [torch.zeros(1, sizes.horizon, sizes.joints), torch.zeros(1)] if sizes.given else []
        rows: tuple[Tensor, Tensor, Tensor] = self.context(
            torch.stack([key, key_before, *empty]), torch.stack([value, value_before, *empty]),
            (slots.clamp(max=1).neg()).float()[None], (slots < 2).float()[None], key_text, value_text, *told,
        )  # fmt: skip
        return rows

    def _video(
        self, video: Tensor, latent: Tensor, place: Tensor, context: tuple[Tensor, Tensor, Tensor], at: float,
        text: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        time = torch.tensor([at])
        found: tuple[Tensor, Tensor, Tensor] = self.video_step(
            video, latent, place, *context, self.modulation(time, text)[0], time
        )
        return found


def graph(module: Unrolled, seed: int = 0) -> Graph:
    """The one graph with seeded example inputs."""
    sizes, like = module.sizes, cut.Examples(module.sizes, seed)
    rng = torch.Generator().manual_seed(seed)
    inputs = {
        "image": like.image()["image"], "image_before": like.image()["image"],
        "state": module.state_mean[None] + module.state_std * torch.randn(1, sizes.joints, generator=rng),
        "words": like.words()["words"],
        "noise_video": torch.randn(1, sizes.frames, sizes.tokens, sizes.channels, generator=rng),
        "noise": torch.randn(1, sizes.horizon, sizes.joints, generator=rng),
    }  # fmt: skip
    return Graph(NAME, module, inputs, ("action",))


def write(
    folder: Path, wam: Wam, encoder: nn.Module, moments: Moments, sampler: str = SAMPLER, opset: int = OPSET
) -> list[Parity]:
    """Writes act.onnx into a bundle's folder (pack it afterwards), if it gives what torch gives.

    Raises ParityError where it does not, UsageError for a coupled sampler or an unknown opset.
    """
    made = graph(Unrolled(wam, encoder, moments, sampler).eval())
    with torch.no_grad():
        path = export_graph(made, folder / UNROLLED, opset)
    found = compare(made, path)
    require(found, TOLERANCE)
    return found
