"""The arm's closed forms against MuJoCo's own kinematics."""

import mujoco
import numpy as np
import pytest

from dzedge.hardware.sim import kinematics
from dzedge.hardware.sim.scene import FOREARM, HAND, LOWER, UPPER, UPPER_ARM
from dzedge.hardware.sim.world import World


@pytest.fixture(scope="module")
def world() -> World:
    return World(0)


def test_points_are_mujocos(world: World) -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        joints = rng.uniform(LOWER, UPPER)
        world.data.qpos[:6] = joints
        mujoco.mj_kinematics(world.model, world.data)
        tip, wrist, elbow = kinematics.points(joints)
        assert np.allclose(elbow, world.data.body("forearm").xpos, atol=1e-12)
        assert np.allclose(wrist, world.data.body("wrist").xpos, atol=1e-12)
        hand = world.data.body("hand")
        # The tip is HAND - 0.05 m ahead of the hand's frame, on the axis it rolls about.
        ahead = hand.xpos + hand.xmat.reshape(3, 3)[:, 0] * (HAND - 0.05)
        assert np.allclose(tip, ahead, atol=1e-12)


def test_solved_joints_put_the_tip_there() -> None:
    rng = np.random.default_rng(1)
    for _ in range(200):
        radius, angle, height = rng.uniform(0.18, 0.34), rng.uniform(-1.0, 1.0), rng.uniform(0.01, 0.17)
        place = np.array([radius * np.cos(angle), radius * np.sin(angle), height])
        joints = kinematics.solve(place)
        assert np.allclose(kinematics.points(joints)[0], place, atol=1e-9), place
        assert (joints >= LOWER).all()
        assert (joints <= UPPER).all()


def test_out_of_reach_stretches_towards_it() -> None:
    joints = kinematics.solve(np.array([1.0, 0.0, 0.1]))
    tip, wrist, _ = kinematics.points(joints)
    assert np.isfinite(joints).all()
    assert tip[0] > 0.3
    assert np.linalg.norm(wrist - (0.03, 0.0, 0.12)) < UPPER_ARM + FOREARM


def test_pitch_flattens_outwards_and_upwards() -> None:
    assert kinematics.pitch_at(0.15, 0.05) > kinematics.pitch_at(0.30, 0.05)
    assert kinematics.pitch_at(0.20, 0.05) > kinematics.pitch_at(0.20, 0.15)
