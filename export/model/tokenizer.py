"""A sim-supervised frame tokenizer: one camera image <-> one token per thing in it.

It learns from the simulator's own labels where the arm's points and the cubes are. That is privileged
supervision at training time and is declared as such in the manifest; at run time it sees pixels only.
Soft-argmax heat maps carry the positions because a plain convolutional code loses the gripper's tip
(17 mm by linear probe, against a task tolerance of 30 mm).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as fn

from dzedge.export.model.sizes import ARM_CHANNELS, CUBE_CHANNELS, Sizes

ARM_MAPS = 6
"""Heat maps for the arm: three are supervised (tip, wrist, elbow), three are free."""


def convolution(inputs: int, outputs: int, size: int = 3, stride: int = 1) -> nn.Sequential:
    """Convolution, batch norm, ReLU. Shape (B, inputs, h, w) -> Shape (B, outputs, h / stride, w / stride)."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
    )


def grid(height: int, width: int) -> Tensor:
    """Centres of a grid's cells. Shape (height * width, 2), (u, v) in [-1, 1], u to the right."""
    v = (torch.arange(height) + 0.5) / height * 2 - 1
    u = (torch.arange(width) + 0.5) / width * 2 - 1
    return torch.stack([u.repeat(height), v.repeat_interleave(width)], dim=1)


class FrameEncoder(nn.Module):
    """Image -> latent. image: Shape (B, 3, h, w) in [-1, 1] -> Shape (B, K, C), normalised.

    A U-shaped stack gives heat maps at half resolution; each map's expected position and the features
    under it give a thing's position. Presence is a sigmoid and multiplies its cube's position.
    """

    cells: Tensor

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        w = sizes.encoder_width
        self.sizes = sizes
        self.maps = ARM_MAPS + sizes.tokens - 1
        self.stem = convolution(3, w, 5, 2)
        self.fine = convolution(w, w)
        self.down = convolution(w, 2 * w, 3, 2)
        self.mid = convolution(2 * w, 2 * w)
        self.lower = convolution(2 * w, 3 * w, 3, 2)
        self.deep = nn.ModuleList(convolution(3 * w, 3 * w) for _ in range(3))
        self.up_mid = nn.Conv2d(3 * w, 2 * w, 1)
        self.up_fine = nn.Conv2d(2 * w, w, 1)
        self.join = convolution(w, w)
        self.heat = nn.Conv2d(w, self.maps, 1)
        self.arm = nn.Sequential(nn.Linear(ARM_MAPS * (w + 2), 96), nn.ReLU(), nn.Linear(96, ARM_CHANNELS))
        self.cube = nn.Sequential(nn.Linear(w + 3, 64), nn.ReLU(), nn.Linear(64, CUBE_CHANNELS))
        cells = (sizes.image_height // 2, sizes.image_width // 2)
        self.register_buffer("cells", grid(*cells), persistent=False)

    def features(self, image: Tensor) -> Tensor:
        """Shape (B, w, h / 2, w / 2)."""
        fine = self.fine(self.stem(image))
        mid = self.mid(self.down(fine))
        deep = self.lower(mid)
        for block in self.deep:
            deep = deep + block(deep)
        mid = mid + fn.interpolate(self.up_mid(deep), scale_factor=2.0, mode="nearest")
        fine = fine + fn.interpolate(self.up_fine(mid), scale_factor=2.0, mode="nearest")
        return self.join(fine)

    def forward(self, image: Tensor) -> Tensor:
        return self.read(image)[0]

    def read(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Latent (B, K, C); presence logits (B, K - 1); log heat (B, maps, cells)."""
        return self.locate(self.features(image))

    def locate(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The same from features, Shape (B, w, h / 2, w / 2)."""
        heat = self.heat(features).flatten(2)
        peak = heat.softmax(-1)
        where = peak @ self.cells
        what = peak @ features.flatten(2).transpose(1, 2)
        strength = heat.logsumexp(-1, keepdim=True) * 0.1
        seen = torch.cat([where, what], dim=-1)
        arm = self.arm(seen[:, :ARM_MAPS].flatten(1)).unsqueeze(1)
        cube = self.cube(torch.cat([seen[:, ARM_MAPS:], strength[:, ARM_MAPS:]], dim=-1))
        logit = cube[..., 3]
        present = logit.sigmoid().unsqueeze(-1)
        cube = torch.cat([cube[..., :3] * present, present], dim=-1)
        cube = fn.pad(cube, (0, self.sizes.channels - CUBE_CHANNELS))
        arm = fn.pad(arm, (0, self.sizes.channels - ARM_CHANNELS))
        return torch.cat([arm, cube], dim=1), logit, heat.log_softmax(-1)


class FrameDecoder(nn.Module):
    """Latent -> image: draws what was imagined. Shape (B, K, C) -> Shape (B, 3, h, w) in [-1, 1].

    Points are projected by a small learned camera and drawn as soft blobs and segments at half resolution;
    convolutions shade them over a learned background.
    """

    cells: Tensor
    latent_mean: Tensor
    latent_std: Tensor

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        w = sizes.decoder_width
        self.sizes = sizes
        self.camera = nn.Sequential(nn.Linear(3, 32), nn.ReLU(), nn.Linear(32, 2))
        self.base = nn.Parameter(torch.zeros(1, 1, 3))
        self.register_buffer("latent_mean", torch.zeros(sizes.tokens, sizes.channels))
        self.register_buffer("latent_std", torch.ones(sizes.tokens, sizes.channels))
        maps = 2 * (3 + 3) + 2 * (sizes.tokens - 1) + 1
        self.log_sharp = nn.Parameter(torch.tensor([2.5, 5.0]))
        height, width = sizes.image_height // 2, sizes.image_width // 2
        self.register_buffer("cells", grid(height, width), persistent=False)
        self.scene = nn.Parameter(torch.zeros(1, 4, height, width))
        self.shade = nn.Sequential(
            nn.Conv2d(maps + 4, w, 3, 1, 1), nn.ReLU(), nn.Conv2d(w, w, 3, 1, 1), nn.ReLU(),
            nn.Conv2d(w, 12, 3, 1, 1), nn.PixelShuffle(2),
        )  # fmt: skip
        self.background = nn.Parameter(torch.zeros(1, 3, sizes.image_height, sizes.image_width))

    def _blobs(self, points: Tensor) -> Tensor:
        """points: Shape (B, n, 2) -> Shape (B, 2 n, cells): a wide and a narrow blob each."""
        square = ((points.unsqueeze(2) - self.cells) ** 2).sum(-1)
        wide, narrow = self.log_sharp.exp().unbind()
        return torch.cat([(-square * wide).exp(), (-square * narrow).exp()], dim=1)

    def _segments(self, start: Tensor, end: Tensor) -> Tensor:
        """Soft lines between image points. Shape (B, n, 2) twice -> Shape (B, 2 n, cells)."""
        along = end - start
        offset = self.cells - start.unsqueeze(2)
        scale = (along**2).sum(-1, keepdim=True) + 1e-4
        part = ((offset * along.unsqueeze(2)).sum(-1) / scale).clamp(0.0, 1.0)
        square = ((offset - part.unsqueeze(-1) * along.unsqueeze(2)) ** 2).sum(-1)
        wide, narrow = self.log_sharp.exp().unbind()
        return torch.cat([(-square * wide).exp(), (-square * narrow).exp()], dim=1)

    def forward(self, latent: Tensor) -> Tensor:
        return self.draw(latent).clamp(-1.0, 1.0)

    def draw(self, latent: Tensor) -> Tensor:
        """The image before it is clamped: what the loss sees, so that no pixel loses its gradient."""
        metres = latent * self.latent_std + self.latent_mean
        arm = metres[:, 0, :9].reshape(-1, 3, 3)
        joints = torch.cat([arm, self.base.expand(arm.shape[0], 1, 3)], dim=1)
        joints = self.camera(joints * 4.0)
        cubes = self.camera(metres[:, 1:, :3] * 4.0)
        present = latent[:, 1:, 3:4]
        drawn = self._blobs(cubes) * torch.cat([present, present], dim=1)
        gripper = latent[:, 0:1, 9:10].expand(-1, 1, self.cells.shape[0])
        maps = torch.cat(
            [self._blobs(joints[:, :3]), self._segments(joints[:, :3], joints[:, 1:]), drawn, gripper], dim=1
        )
        maps = maps.unflatten(2, self.scene.shape[2:])
        maps = torch.cat([maps, self.scene.expand(maps.shape[0], -1, -1, -1)], dim=1)
        return self.shade(maps) + self.background
