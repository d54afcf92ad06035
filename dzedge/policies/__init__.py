"""Policy families, one file each."""

from dzedge.bundle import Bundle
from dzedge.config import RobotConfig
from dzedge.policies.base import BundledPolicy, Policy
from dzedge.policies.dual_vla import DualVla
from dzedge.policies.flow_vla import FlowVla
from dzedge.policies.token_vla import TokenVla
from dzedge.policies.wam import WorldActionModel
from dzedge.policies.wan_joint import JointWorldModel
from dzedge.robot import machine

FAMILIES: dict[str, type[BundledPolicy]] = {
    "wam": WorldActionModel,
    "flow_vla": FlowVla,
    "token_vla": TokenVla,
    "dual_vla": DualVla,
    "wan_joint": JointWorldModel,
}
"""What runs a bundle, by the family in its manifest."""


def load_policy(config: RobotConfig, bundle: Bundle) -> BundledPolicy:
    """The policy of a robot, ready to run. Raises BundleError where graphs and manifest do not fit, PolicyError for a
    sampler in the robot file that the bundle's family has not."""
    camera = config.cameras[0]
    return FAMILIES[bundle.manifest.dzedge.family](
        bundle,
        machine(config),
        camera=(camera.height, camera.width),
        crop=camera.crop,
        precision=config.policy.precision,
        sampler=config.policy.sampler,
        seed=config.sim.seed,
    )


__all__ = [
    "BundledPolicy", "DualVla", "FlowVla", "JointWorldModel", "Policy", "TokenVla", "WorldActionModel", "load_policy",
]  # fmt: skip
