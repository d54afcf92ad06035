"""How far each sampler of a bundle is from the finest one of its family: for the manifest, so that a robot can choose.

The error of a sampler is the root mean square, over decisions, steps and joints (a gripper is not counted, it has no
angle), of the difference between its targets and those of the finest sampler, [rad]. Both decide the same
observations, without committed actions, from the same noise (seed 0, chunk i for decision i), by the float32 files.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dzedge.bundle import Bundle
from dzedge.engine import Machine
from dzedge.export.decisions import Decision
from dzedge.policies import FAMILIES
from dzedge.types import ActionPrefix

FINEST = {
    "wam": "video_first(32,32)", "wan_joint": "joint(32)", "flow_vla": "euler(32)", "dual_vla": "euler(32)",
    "token_vla": "greedy",
}  # fmt: skip
"""What the samplers of a family are held against. Tokens have no finer steps: `sample(T)` is held against `greedy`."""
GRIPPER = "gripper"


def measure(bundle: Bundle, decisions: Sequence[Decision]) -> dict[str, float]:
    """The error of each of a bundle's samplers, [rad], in the manifest's order. Raises BundleError, PolicyError."""
    section = bundle.manifest.dzedge
    angles = np.array([name != GRIPPER for name in section.joints])
    finest = positions(bundle, FINEST[section.family], decisions)
    errors = {}
    for sampler in section.samplers:
        off = (positions(bundle, sampler, decisions) - finest)[..., angles]
        errors[sampler] = float(f"{np.sqrt((off**2).mean()):.4g}")
    return errors


def positions(bundle: Bundle, sampler: str, decisions: Sequence[Decision]) -> NDArray[np.float64]:
    """Targets of every decision, each from a fresh start, Shape (n, H, J), [rad]."""
    section = bundle.manifest.dzedge
    machine, camera = Machine("cpu", Machine.detect().isa, 1), decisions[0].camera
    policy = FAMILIES[section.family](bundle, machine, camera, precision="fp32", sampler=sampler)
    nothing = ActionPrefix(np.zeros((0, len(section.joints))))
    found = []
    for number, decision in enumerate(decisions):
        policy.reset(decision.observation.instruction)
        found.append(policy.infer(decision.observation, nothing, number).positions)
    return np.stack(found)
