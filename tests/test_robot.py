"""The robot as the command line opens it: overrides, and bundles that do not fit."""

import msgspec
import pytest

from dzedge import robot
from dzedge.errors import BundleError, UsageError
from dzedge.lockstep import run_lockstep


def test_seed_and_bundle_of_the_command_line_win(tmp_path):
    config = robot.read(None, tmp_path / "other.dzp", 5)
    assert config.policy.bundle == str(tmp_path / "other.dzp")
    assert config.sim.seed == 5
    assert robot.read(None).policy.bundle.endswith("wam-nano.dzp")


def test_a_bundle_for_another_arm_is_refused_before_anything_starts():
    config = robot.read(None)
    joints = tuple(msgspec.structs.replace(joint, name=f"{joint.name}_x") for joint in config.arm.joints)
    config = msgspec.structs.replace(config, arm=msgspec.structs.replace(config.arm, joints=joints))
    with pytest.raises(BundleError, match=r"made for joints shoulder_pan, .*; sim has shoulder_pan_x"):
        robot.verified_bundle(config)


def test_the_test_key_is_not_trusted_unless_the_robot_file_says_so():
    config = robot.read(None)
    config = msgspec.structs.replace(config, policy=msgspec.structs.replace(config.policy, allow_test_key=False))
    with pytest.raises(BundleError, match="key"):
        robot.verified_bundle(config)


def test_a_real_arm_is_not_simulated():
    config = robot.read(None)
    robot.need_simulation(config, "--lockstep")
    real = msgspec.structs.replace(
        config,
        arm=msgspec.structs.replace(config.arm, port="/dev/ttyACM0"),
        policy=msgspec.structs.replace(config.policy, allow_test_key=False),
        cameras=(msgspec.structs.replace(config.cameras[0], serial="123456789012"),),
    )
    with pytest.raises(UsageError, match="/dev/ttyACM0"):
        robot.need_simulation(real, "--lockstep")


def test_sampler_and_precision_of_the_command_line_win_and_are_checked():
    config = robot.read(None, sampler="joint(4)", precision="fp32")
    assert (config.policy.sampler, config.policy.precision) == ("joint(4)", "fp32")
    with pytest.raises(UsageError, match="--sampler joint: must be"):
        robot.read(None, sampler="joint")
    with pytest.raises(UsageError, match=r"--precision int4: must be auto, fp32, .*, fp8 or nvfp4"):
        robot.read(None, precision="int4")


def test_machine_is_what_the_robot_file_says():
    config = robot.read(None)
    found = robot.machine(config)
    assert (found.ep, found.cuda_graph, found.cache) == ("cpu", False, True)
    policy = msgspec.structs.replace(config.policy, provider="tensorrt", cuda_graph=True, cache=False, threads=3)
    found = robot.machine(msgspec.structs.replace(config, policy=policy))
    assert (found.ep, found.cuda_graph, found.cache, found.threads) == ("tensorrt", True, False, 3)


def test_every_bundle_that_came_along_drives_the_simulated_robot():
    """A reach of one second each, from the signed files; how well they do is docs/results/zeroshot.md."""
    families = {}
    for path in robot.packaged_bundles():
        config = robot.read(None, path, 3)
        bundle = robot.verified_bundle(config)
        result = run_lockstep(
            config, bundle, task="reach the red cube", seed=3, duration_s=1.0, on_status=lambda status: None, lean=True
        )
        families[bundle.manifest.dzedge.family] = result
    assert set(families) == {"wam", "flow_vla", "token_vla", "dual_vla"}
    assert all(result.chunks >= 3 and not result.refused for result in families.values())
    assert len({result.wire_sha256 for result in families.values()}) == 4
