"""Policy families, one file each."""

from dzedge.bundle import Bundle
from dzedge.config import RobotConfig
from dzedge.engine import Machine
from dzedge.policies.base import Policy
from dzedge.policies.wam import WorldActionModel


def load_policy(config: RobotConfig, bundle: Bundle) -> WorldActionModel:
    """The policy of a robot, ready to run. Raises BundleError where graphs and manifest do not fit."""
    camera = config.cameras[0]
    return WorldActionModel(
        bundle,
        Machine.detect(config.policy.threads),
        camera=(camera.height, camera.width),
        crop=camera.crop,
        precision=config.policy.precision,
        sampler=config.policy.sampler,
        seed=config.sim.seed,
    )


__all__ = ["Policy", "WorldActionModel", "load_policy"]
