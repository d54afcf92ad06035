"""The ray-cast camera against analytic geometry."""

import mujoco
import numpy as np
import pytest

from dzedge.hardware.sim import camera
from dzedge.hardware.sim.camera import EYE, FOCAL, HEIGHT, WIDTH, Camera
from dzedge.hardware.sim.kinematics import solve
from dzedge.hardware.sim.scene import RGB
from dzedge.hardware.sim.world import World


@pytest.fixture(scope="module")
def world() -> World:
    return World(3)


@pytest.fixture(scope="module")
def sensor(world: World) -> Camera:
    return Camera(world)


def _project(point: np.ndarray) -> tuple[float, float, float]:
    right, down, forward = camera.pose().T @ (point - EYE)
    return FOCAL * right / forward + WIDTH / 2, FOCAL * down / forward + HEIGHT / 2, forward


def test_shapes_and_types(sensor: Camera) -> None:
    rgb, depth = sensor.render(0)
    assert rgb.shape == (HEIGHT, WIDTH, 3)
    assert rgb.dtype == np.uint8
    assert depth.shape == (HEIGHT, WIDTH)
    assert depth.dtype == np.uint16


def test_table_depth_is_the_planes(world: World, sensor: Camera) -> None:
    world.reset(3)
    _, depth = sensor.render(0)
    forward = camera.pose()[:, 2]
    checked = 0
    for v in range(2, HEIGHT, 7):
        for u in range(1, WIDTH, 9):
            ray = camera.pose() @ ((u + 0.5 - WIDTH / 2) / FOCAL, (v + 0.5 - HEIGHT / 2) / FOCAL, 1.0)
            hit = EYE + ray * (-EYE[2] / ray[2])
            if np.abs(hit[1]) > 0.25 and hit[0] > 0.0:  # beside arm and cubes
                assert abs(depth[v, u] - 1000.0 * float(forward @ (hit - EYE))) <= 1.0
                checked += 1
    assert checked > 20


def test_cubes_are_where_they_project_to_in_their_colour(world: World, sensor: Camera) -> None:
    for seed in range(6):
        world.reset(seed)
        rgb, depth = sensor.render(0)
        for colour, (x, y, z, present) in enumerate(world.cubes()):
            if not present:
                continue
            u, v, far = _project(np.array([x, y, z + 0.02]))
            patch = rgb[int(v) - 1 : int(v) + 2, int(u) - 1 : int(u) + 2].reshape(-1, 3).mean(axis=0)
            likeness = patch @ RGB.T / np.linalg.norm(patch) / np.linalg.norm(RGB, axis=1)
            assert int(likeness.argmax()) == colour
            assert abs(depth[int(v), int(u)] / 1000.0 - far) < 0.02


def test_same_state_same_image_other_seed_other_image(world: World, sensor: Camera) -> None:
    world.reset(3)
    rgb, depth = sensor.render(5)
    world.reset(4)
    other, _ = sensor.render(5)
    world.reset(3)
    again, depth_again = sensor.render(5)
    fresh, _ = Camera(World(3)).render(5)
    assert np.array_equal(rgb, again)
    assert np.array_equal(depth, depth_again)
    assert np.array_equal(rgb, fresh)
    assert not np.array_equal(rgb, other)


def test_noise_changes_from_frame_to_frame_and_is_small(world: World, sensor: Camera) -> None:
    world.reset(3)
    one, _ = sensor.render(0)
    two, _ = sensor.render(1)
    difference = np.abs(one.astype(int) - two)
    assert 0 < difference.mean() < 4.0
    quiet = Camera(world, noise=0.0)
    assert np.array_equal(quiet.render(0)[0], quiet.render(1)[0])


def test_cast_only_where_something_moves_equals_casting_everything(world: World) -> None:
    sensor = Camera(world)
    rng = np.random.default_rng(0)
    for seed in range(5):
        place = np.array([rng.uniform(0.15, 0.3), rng.uniform(-0.2, 0.2), rng.uniform(0.03, 0.15)])
        world.reset(seed, solve(place))
        rgb, depth = sensor.render(0)
        touched = sensor._touched
        sensor._touched = lambda: np.arange(WIDTH * HEIGHT)
        whole, whole_depth = sensor.render(0)
        sensor._touched = touched
        assert np.array_equal(depth, whole_depth)
        assert np.abs(rgb.astype(int) - whole).max() <= 1


def test_a_copy_of_the_state_gives_the_same_picture(world: World, sensor: Camera) -> None:
    world.reset(2)
    world.set_joint_goal(0, 0.5)
    world.step(0.3)
    copy = mujoco.MjData(world.model)
    mujoco.mj_copyData(copy, world.model, world.data)
    expected, _ = sensor.render(0)
    world.step(0.3)
    assert np.array_equal(sensor.render(0, copy)[0], expected)
    assert not np.array_equal(sensor.render(0)[0], expected)


def test_all_cubes_are_in_view() -> None:
    for x, y in [(0.12, 0.2), (0.12, -0.2), (0.29, 0.0), (0.21, 0.30), (0.21, -0.30)]:
        u, v, _ = _project(np.array([x, y, 0.02]))
        assert 4 < u < WIDTH - 4
        assert 4 < v < HEIGHT - 4


def test_field_of_view() -> None:
    assert camera.field_of_view() == pytest.approx(2 * np.arctan(80 / 185))
