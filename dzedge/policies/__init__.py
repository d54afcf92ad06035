"""Policy families, one file each."""

from dzedge.bundle import Bundle
from dzedge.config import RobotConfig
from dzedge.engine import Machine
from dzedge.errors import BundleError
from dzedge.policies.base import Policy
from dzedge.policies.wam import WorldActionModel


def load_policy(config: RobotConfig, bundle: Bundle) -> WorldActionModel:
    """The policy of a robot, ready to run. Raises BundleError where bundle and robot do not fit."""
    section = bundle.manifest.dzedge
    if section.joints != config.arm.names:
        raise BundleError(
            f"{bundle.name}: made for joints {', '.join(section.joints)}; {config.robot.name} has "
            f"{', '.join(config.arm.names)}; choose a bundle for this arm, or name its joints alike"
        )
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
