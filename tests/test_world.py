"""Physics: determinism, servos, cubes."""

import numpy as np
import pytest

from dzedge.hardware.sim.kinematics import solve
from dzedge.hardware.sim.scene import CUBE, LOWER, TIMESTEP, UPPER
from dzedge.hardware.sim.world import FREE_SPEED, HOME, World


@pytest.fixture(scope="module")
def world() -> World:
    return World(0)


def _wave(world: World, seed: int) -> bytes:
    world.reset(seed)
    rng = np.random.default_rng(3)
    for _ in range(30):
        world.set_goal(rng.uniform(LOWER, UPPER) * 0.4)
        world.step(0.02)
    return world.fingerprint()


def test_same_seed_is_bit_equal_next_seed_differs(world: World) -> None:
    first = _wave(world, 7)
    assert _wave(world, 7) == first
    assert _wave(World(7), 7) == first
    assert _wave(world, 8) != first


def test_reset_forgets_everything(world: World) -> None:
    first = _wave(world, 7)
    world.set_profile(0, 0.1, 0.5)
    world.set_torque(1, False)
    world.step(0.5)
    assert _wave(world, 7) == first


def test_holds_its_pose_with_little_droop(world: World) -> None:
    world.reset(1)
    world.step(1.0)
    assert np.abs(world.joints() - HOME).max() < 0.02
    assert np.abs(world.velocities()).max() < 1e-3


def test_wild_goals_stay_finite(world: World) -> None:
    world.reset(2)
    rng = np.random.default_rng(2)
    for _ in range(40):
        world.set_goal(rng.uniform(LOWER, UPPER))
        world.step(0.05)
        assert np.isfinite(world.joints()).all()
        assert np.abs(world.velocities()).max() < 20.0


def test_servo_trails_its_goal_by_a_little(world: World) -> None:
    world.reset(3)
    goal = HOME.copy()
    goal[0] += 0.3
    world.set_goal(goal)
    world.step(0.05)
    assert 0.02 < world.joints()[0] - HOME[0] < 0.25
    world.step(0.35)
    assert abs(world.joints()[0] - goal[0]) < 0.01


def test_speed_register_bounds_the_move(world: World) -> None:
    world.reset(3)
    world.set_profile(0, 0.5, 0.0)
    world.set_joint_goal(0, 1.0)
    world.step(1.0)
    assert world.joints()[0] == pytest.approx(0.5, abs=0.05)
    assert np.abs(world.velocities()[0]) == pytest.approx(0.5, abs=0.05)


def test_acceleration_register_ramps_and_arrives_without_overshoot(world: World) -> None:
    world.reset(3)
    world.set_profile(0, 1.0, 2.0)
    world.set_joint_goal(0, 0.8)
    fastest = most = 0.0
    for _ in range(200):
        world.step(0.01)
        fastest, most = max(fastest, world.velocities()[0]), max(most, world.joints()[0])
    assert fastest < 1.1
    assert most < 0.81
    assert world.joints()[0] == pytest.approx(0.8, abs=0.005)


def test_profile_zero_means_free(world: World) -> None:
    world.reset(3)
    world.set_profile(0, 0.0, 0.0)
    world.set_joint_goal(0, 1.5)
    world.step(0.2)
    assert world.joints()[0] > 0.1 * FREE_SPEED


def test_goal_is_clipped_to_the_limits(world: World) -> None:
    world.reset(3)
    world.set_joint_goal(5, 7.0)
    world.step(1.5)
    assert world.joints()[5] <= 1.01


def test_torque_off_holds_at_home_and_sags_when_stretched(world: World) -> None:
    world.reset(3)
    for joint in range(6):
        world.set_torque(joint, False)
    world.step(2.0)
    assert np.abs(world.joints() - HOME).max() < 0.03
    stretched = np.array([0.0, 0.9, -0.9, 0.0, 0.0, 0.0])
    world.reset(3, stretched)
    for joint in range(6):
        world.set_torque(joint, False)
    world.step(1.0)
    assert world.joints()[1] - stretched[1] > 0.05
    assert not world.torque(1)


def test_torque_on_again_does_not_jump(world: World) -> None:
    stretched = np.array([0.0, 0.9, -0.9, 0.0, 0.0, 0.0])
    world.reset(3, stretched)
    world.set_torque(1, False)
    world.step(1.0)
    sagged = world.joints()[1]
    world.set_joint_goal(1, sagged)
    world.set_torque(1, True)
    world.step(0.1)
    assert abs(world.joints()[1] - sagged) < 0.05


def test_cubes_rest_and_can_be_pushed(world: World) -> None:
    world.reset(4)
    before = world.cubes()
    world.step(1.0)
    rest = world.cubes()
    assert np.abs(rest - before).max() < 1e-3
    assert rest[:, 3].sum() == 3
    index = int(np.flatnonzero(rest[:, 3])[0])
    cube = rest[index, :3]
    world.reset(4, solve(cube + (0.0, -0.065, 0.0)))
    for step in range(100):
        world.set_goal(solve(cube + (0.0, -0.065 + 0.0012 * step, 0.0)))
        world.step(0.01)
    moved = world.cubes()[index, :3] - cube
    assert 0.03 < moved[1] < 0.12
    assert abs(moved[2]) < CUBE / 4


def test_rearrange_keeps_the_arm(world: World) -> None:
    world.reset(4)
    world.set_joint_goal(0, 0.4)
    world.step(0.3)
    joints, velocities, time, view = world.joints(), world.velocities(), world.time, world.layout.view
    world.rearrange(5)
    assert np.array_equal(world.joints(), joints)
    assert np.array_equal(world.velocities(), velocities)
    assert world.time == time
    fresh = World(5)
    assert np.array_equal(world.cubes()[:, 3], fresh.cubes()[:, 3])
    assert np.array_equal(world.layout.view, view)
    assert not np.array_equal(fresh.layout.view, view)


def test_step_counts_whole_steps(world: World) -> None:
    world.reset(0)
    world.step(10 * TIMESTEP)
    assert world.time == pytest.approx(10 * TIMESTEP)


def test_load_has_the_sign_of_gravity(world: World) -> None:
    world.reset(0, np.array([0.0, 0.6, -0.6, 0.0, 0.0, 0.0]))
    world.step(1.0)
    assert world.load()[1] < -0.05


def test_the_camera_stands_elsewhere_in_another_scene(world: World) -> None:
    world.reset(4)
    first = world.layout.view
    world.reset(5)
    assert not np.array_equal(world.layout.view, first)
    world.reset(4)
    assert np.array_equal(world.layout.view, first)


def test_further_bodies_change_no_physics() -> None:
    more = '<body name="extra" mocap="true" pos="0 0.9 0.3"><geom type="sphere" size="0.01" contype="0" '
    more += 'conaffinity="0" group="3"/></body>'
    assert _wave(World(7, more=more), 7) == _wave(World(7), 7)
