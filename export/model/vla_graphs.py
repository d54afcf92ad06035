"""The VLA families cut into graphs: what the runtime calls, batch 1, with the boundary's names and shapes."""

import torch
from torch import Tensor, nn

from dzedge.export.model.blocks import velocity
from dzedge.export.model.dual_vla import DualVla
from dzedge.export.model.flow_vla import FlowVla
from dzedge.export.model.graphs import Graph
from dzedge.export.model.sizes import Sizes
from dzedge.export.model.token_vla import TokenVla

Vla = FlowVla | TokenVla | DualVla


class ContextGraph(nn.Module):
    """What is seen, said and felt -> every layer's rows, (L, A, N, hd), twice."""

    def __init__(self, model: FlowVla | TokenVla) -> None:
        super().__init__()
        self.context = model.context

    def forward(
        self, latent: Tensor, before: Tensor, has_before: Tensor, text: Tensor, state: Tensor
    ) -> tuple[Tensor, Tensor]:
        _, rows, _ = self.context(latent, before, has_before, text, state)
        return rows[0].squeeze(0), rows[1].squeeze(0)


class FeaturesGraph(nn.Module):
    """The slow system: what is seen and said -> (1, N, d)."""

    def __init__(self, model: DualVla) -> None:
        super().__init__()
        self.context = model.context

    def forward(self, latent: Tensor, before: Tensor, has_before: Tensor, text: Tensor) -> Tensor:
        features: Tensor = self.context(latent, before, has_before, text)[0]
        return features


class FlowStepGraph(nn.Module):
    """One denoise pass of the action expert against the context's rows."""

    def __init__(self, model: FlowVla) -> None:
        super().__init__()
        self.stream = model.action

    def forward(
        self, action: Tensor, prefix: Tensor, prefix_mask: Tensor, key: Tensor, value: Tensor, t_action: Tensor
    ) -> Tensor:
        rows = (key.unsqueeze(0), value.unsqueeze(0))
        return velocity(self.stream(action, prefix, prefix_mask, None, rows, t_action), action, t_action)


class HeadGraph(nn.Module):
    """One denoise pass of the fast system."""

    def __init__(self, model: DualVla) -> None:
        super().__init__()
        self.head = model.head

    def forward(
        self, action: Tensor, prefix: Tensor, prefix_mask: Tensor, state: Tensor, features: Tensor, age: Tensor,
        t_action: Tensor,
    ) -> Tensor:  # fmt: skip
        clean = self.head(action, prefix, prefix_mask, state, features, age, t_action)
        return velocity(clean, action, t_action)


class TokenGraph(nn.Module):
    """One action token: logits (1, 256), and its own rows (L, A, 1, hd), twice."""

    def __init__(self, model: TokenVla) -> None:
        super().__init__()
        self.stream = model.stream

    def forward(
        self, token: Tensor, position: Tensor, key: Tensor, value: Tensor, past_key: Tensor, past_value: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        context = (key.unsqueeze(0), value.unsqueeze(0))
        past = (past_key.unsqueeze(0), past_value.unsqueeze(0))
        logits, own = self.stream.say(token, position, context, past)
        return logits, own[0].squeeze(0), own[1].squeeze(0)


def graphs(model: Vla, encoder: nn.Module, seed: int = 0) -> list[Graph]:
    """The graphs of a VLA with seeded example inputs, in the order in which a chunk needs them."""
    sizes: Sizes = model.sizes
    rng = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=rng)

    words = torch.arange(1, sizes.words + 1).clamp(max=sizes.vocabulary - 1).unsqueeze(0)
    words[:, 4:] = 0
    image = noise(1, 3, sizes.image_height, sizes.image_width).clamp(-1, 1)
    frame, state = (1, sizes.tokens, sizes.channels), noise(1, sizes.joints)
    seen = {
        "latent": noise(*frame), "before": noise(*frame), "has_before": torch.ones(1), "text": noise(1, 1, sizes.width),
    }  # fmt: skip
    rows = (sizes.layers, sizes.heads, model.context.length, sizes.head_width)
    known = {"key": noise(*rows), "value": noise(*rows)}
    committed = torch.zeros(1, sizes.horizon)
    committed[:, :2] = 1.0
    chunk = (1, sizes.horizon, sizes.joints)
    action = {"action": noise(*chunk), "prefix": noise(*chunk) * committed.unsqueeze(-1), "prefix_mask": committed}
    time = {"t_action": torch.tensor([0.25])}
    found = [
        Graph("text", model.text, {"words": words}, ("text",)),
        Graph("frame_encoder", encoder, {"image": image}, ("latent",)),
    ]
    if isinstance(model, DualVla):
        features = noise(1, model.context.length, sizes.width)
        step = {**action, "state": state, "features": features, "age": torch.tensor([0.2]), **time}
        return [
            *found, Graph("features", FeaturesGraph(model), seen, ("features",)),
            Graph("action_step", HeadGraph(model), step, ("v_action",)),
        ]  # fmt: skip
    found.append(Graph("context", ContextGraph(model), {**seen, "state": state}, ("key", "value")))
    if isinstance(model, FlowVla):
        step = {**action, **known, **time}
        return [*found, Graph("action_step", FlowStepGraph(model), step, ("v_action",))]
    said = (sizes.layers, sizes.heads, model.stream.length, sizes.head_width)
    step = {
        "token": torch.tensor([7]), "position": torch.tensor([3]), **known,
        "past_key": noise(*said), "past_value": noise(*said),
    }  # fmt: skip
    return [*found, Graph("token_step", TokenGraph(model), step, ("logits", "new_key", "new_value"))]
