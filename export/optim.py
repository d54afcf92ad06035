"""What both training stages share: Muon, a schedule by iterations, weight averages."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn


def orthogonalised(stack: Tensor, steps: int = 5) -> Tensor:
    """Newton-Schulz iteration towards the nearest orthogonal matrices, all of one shape at once, in float32.

    Shape (n, rows, columns). Coefficients: K. Jordan et al., Muon (2024). torch.optim.Muon does this in bfloat16,
    one matrix at a time: several times slower on a CPU.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = stack.shape[-2] > stack.shape[-1]
    x = stack.transpose(-2, -1) if tall else stack
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.transpose(-2, -1)
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.transpose(-2, -1) if tall else x


class Muon:
    """Momentum, orthogonalised, for the trunk's matrices; AdamW for everything else.

    rate: learning rate of AdamW; matrix_rate: of Muon, whose update has root-mean-square 0.2 like Adam's.
    """

    def __init__(self, module: nn.Module, rate: float, matrix_rate: float, decay: float = 0.01) -> None:
        matrices = [p for name, p in module.named_parameters() if p.dim() == 2 and ".blocks." in f".{name}"]
        chosen = {id(p) for p in matrices}
        others = [p for p in module.parameters() if id(p) not in chosen]
        self.adam = torch.optim.AdamW(others, lr=rate, betas=(0.9, 0.98), weight_decay=decay, foreach=True)
        self.rate, self.matrix_rate, self.decay = rate, matrix_rate, decay
        shapes = sorted({tuple(p.shape) for p in matrices})
        self.groups = [[p for p in matrices if tuple(p.shape) == shape] for shape in shapes]
        self.momenta = [group[0].new_zeros(len(group), *group[0].shape) for group in self.groups]

    @torch.no_grad()
    def step(self, factor: float) -> None:
        """One update. factor: the schedule's share of the full learning rates."""
        for table in self.adam.param_groups:
            table["lr"] = self.rate * factor
        self.adam.step()
        rate = self.matrix_rate * factor
        for group, momentum in zip(self.groups, self.momenta, strict=True):
            gradient = torch.stack([p.grad if p.grad is not None else torch.zeros_like(p) for p in group])
            momentum.mul_(0.95).add_(gradient)
            update = orthogonalised(gradient + 0.95 * momentum)
            update *= 0.2 * math.sqrt(max(update.shape[-2:]))
            for p, change in zip(group, update, strict=True):
                p.mul_(1.0 - rate * self.decay).sub_(change, alpha=rate)
                p.grad = None
        self.adam.zero_grad()

    def state_dict(self) -> dict[str, Any]:
        return {"adam": self.adam.state_dict(), "momenta": self.momenta}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.adam.load_state_dict(state["adam"])
        self.momenta = [kept.to(own.device) for own, kept in zip(self.momenta, state["momenta"], strict=True)]


class Average:
    """Exponential average of weights and buffers, with a fast start."""

    def __init__(self, module: nn.Module, keep: float) -> None:
        self.keep = keep
        self.count = 0
        self.values = {name: value.detach().clone() for name, value in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        self.count += 1
        keep = min(self.keep, (1.0 + self.count) / (10.0 + self.count))
        for name, value in module.state_dict().items():
            if value.is_floating_point():
                self.values[name].lerp_(value, 1.0 - keep)
            else:
                self.values[name].copy_(value)


def schedule(step: int, total: int, warm_up: int = 100, decay_share: float = 0.4) -> float:
    """Warm up, stay, fall linearly to 2 % over the last `decay_share`. By iterations: seconds depend on neighbours."""
    up = min(1.0, (step + 1) / warm_up)
    left = (total - step) / max(1.0, decay_share * total)
    return min(up, max(0.02, min(1.0, left)))


def count(parameters: Iterable[Tensor]) -> int:
    """Number of weights."""
    return sum(p.numel() for p in parameters)
