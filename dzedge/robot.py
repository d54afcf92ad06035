"""A robot as the command line wants it: its file, what was overridden, its verified bundle."""

import re
from importlib.resources import files
from pathlib import Path
from typing import get_args

import msgspec

from dzedge import minisign
from dzedge.bundle import Bundle, open_bundle
from dzedge.config import SAMPLER, SAMPLERS, SIM, Precision, RobotConfig, default_path, load
from dzedge.errors import BundleError, UsageError
from dzedge.machine import Machine

PRECISIONS: tuple[str, ...] = get_args(Precision)
"""What `--precision` and `policy.precision` may be."""


def read(
    path: Path | None,
    bundle: Path | None = None,
    seed: int | None = None,
    sampler: str = "auto",
    precision: str = "auto",
) -> RobotConfig:
    """The robot file at `path` (None: the simulated robot); another bundle, seed, sampler or precision where one is
    given. Raises ConfigError, UsageError.
    """
    config = load(path if path is not None else default_path())
    replace = msgspec.structs.replace
    if bundle is not None:
        config = replace(config, policy=replace(config.policy, bundle=str(bundle.expanduser().resolve())))
    if precision not in PRECISIONS:
        raise UsageError(f"--precision {precision}: must be {', '.join(PRECISIONS[:-1])} or {PRECISIONS[-1]}")
    if re.match(SAMPLER, sampler) is None:
        raise UsageError(f"--sampler {sampler}: must be {SAMPLERS}")
    if sampler != "auto":
        config = replace(config, policy=replace(config.policy, sampler=sampler))
    if precision != "auto":
        config = replace(config, policy=replace(config.policy, precision=precision))
    if seed is not None:
        config = replace(config, sim=replace(config.sim, seed=seed))
    return config


def verified_bundle(config: RobotConfig) -> Bundle:
    """The bundle that a robot file names, by the keys that it trusts. Raises BundleError, also for another arm's."""
    policy = config.policy
    bundle = open_bundle(policy.bundle, minisign.load_keys(policy.trusted_keys), policy.allow_test_key)
    joints = bundle.manifest.dzedge.joints
    if joints != config.arm.names:
        raise BundleError(
            f"{bundle.name}: made for joints {', '.join(joints)}; {config.robot.name} has "
            f"{', '.join(config.arm.names)}; choose a bundle for this arm, or name its joints alike"
        )
    return bundle


def machine(config: RobotConfig) -> Machine:
    """What a robot file says its graphs are run by, on this machine."""
    policy = config.policy
    return Machine.detect(policy.threads, policy.provider, policy.cuda_graph, policy.cache)


def packaged_bundles() -> list[Path]:
    """The bundles that came with dzedge."""
    return sorted(Path(str(files("dzedge.bundles"))).glob("*.dzp"))


def inspected_bundle(path: Path, keys: list[Path]) -> Bundle:
    """A bundle to look at, by `keys` and the repository's test key. Raises BundleError."""
    return open_bundle(path, minisign.load_keys(tuple(map(str, keys))), allow_test_key=True)


def need_simulation(config: RobotConfig, what: str) -> None:
    """Raises UsageError for a robot with real devices."""
    if not config.arm.simulated or not all(camera.simulated for camera in config.cameras):
        raise UsageError(
            f"{what} needs a simulated robot; {config.robot.name} has arm.port = {config.arm.port!r}: "
            f'leave the robot file out, or set port and serial to "{SIM}"'
        )
