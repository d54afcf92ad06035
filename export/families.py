"""The policy families: how each learns, and what a checkpoint of it holds."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from dzedge.errors import UsageError
from dzedge.export import checkpoint, fit_policy, fit_vla, fit_wam, fit_wan
from dzedge.export.model import graphs as wam_graphs
from dzedge.export.model import vla_graphs, wan_graphs
from dzedge.export.model.graphs import Graph
from dzedge.export.model.moments import Moments
from dzedge.export.model.wam import Wam
from dzedge.export.model.wan_policy import WanPolicy

LEARNERS: dict[str, Callable[[], fit_policy.Learner]] = {
    "wam": fit_wam.WamLearner, "flow_vla": fit_vla.FlowLearner,
    "token_vla": fit_vla.TokenLearner, "dual_vla": fit_vla.DualLearner, "wan_joint": fit_wan.WanLearner,
}  # fmt: skip


def load(path: Path) -> tuple[str, Any, Moments, dict[str, Any]]:
    """A checkpoint's family, its model with the averaged weights, its statistics, its recipe. Raises UsageError."""
    recipe = checkpoint.load(path).get("recipe", {})
    family = recipe.get("family")
    if family not in LEARNERS:
        raise UsageError(f"{path}: family {family!r}: must be one of {', '.join(LEARNERS)}; name a policy's checkpoint")
    model, moments = fit_policy.load(path, LEARNERS[family]())
    return family, model, moments, recipe


def cut(model: Any, tokenizer: Any, seed: int = 0) -> list[Graph]:
    """The graphs of a model of any family. tokenizer: `tokenizers.AnyTokenizer`."""
    if isinstance(model, Wam):
        return wam_graphs.graphs(model, tokenizer.encoder, tokenizer.decoder, seed)
    if isinstance(model, WanPolicy):
        return wan_graphs.graphs(model, tokenizer.encoder, tokenizer.decoder, seed)
    return vla_graphs.graphs(model, tokenizer.encoder, seed)
