"""The ray-cast camera against analytic geometry."""

from dataclasses import replace

import mujoco
import numpy as np
import pytest

from dzedge.hardware.sim import camera
from dzedge.hardware.sim.camera import EYE, FOCAL, HEIGHT, WIDTH, Camera
from dzedge.hardware.sim.kinematics import solve
from dzedge.hardware.sim.scene import RGB, VIEW_SHIFT, VIEW_TURN, draw_layout
from dzedge.hardware.sim.world import World


@pytest.fixture(scope="module")
def world() -> World:
    return World(3)


@pytest.fixture(scope="module")
def sensor(world: World) -> Camera:
    return Camera(world)


def _project(point: np.ndarray, view: np.ndarray) -> tuple[float, float, float]:
    """By a look-at camera of our own, turned by MuJoCo's quaternions: nothing here is the code's."""
    forward = (camera.AIM - EYE) / np.linalg.norm(camera.AIM - EYE)
    right = np.array([forward[1], -forward[0], 0.0])
    right /= np.linalg.norm(right)
    axes = {"right": right, "down": np.cross(forward, right), "forward": forward}
    angle, turn = np.linalg.norm(view[3:]), np.array([1.0, 0.0, 0.0, 0.0])
    if angle > 0.0:
        mujoco.mju_axisAngle2Quat(turn, view[3:] / angle, angle)
    seen = {}
    for name, axis in axes.items():
        turned = np.empty(3)
        mujoco.mju_rotVecQuat(turned, axis, turn)
        seen[name] = float(turned @ (point - EYE - view[:3]))
    far = seen["forward"]
    return FOCAL * seen["right"] / far + WIDTH / 2, FOCAL * seen["down"] / far + HEIGHT / 2, far


def test_shapes_and_types(sensor: Camera) -> None:
    rgb, depth = sensor.render(0)
    assert rgb.shape == (HEIGHT, WIDTH, 3)
    assert rgb.dtype == np.uint8
    assert depth.shape == (HEIGHT, WIDTH)
    assert depth.dtype == np.uint16


def test_table_depth_is_the_planes(world: World, sensor: Camera) -> None:
    world.reset(3)
    _, depth = sensor.render(0)
    eye, rotation = camera.placed(world.layout.view)
    checked, moved = 0, 0.0
    for v in range(2, HEIGHT, 7):
        for u in range(1, WIDTH, 9):
            ray = rotation @ ((u + 0.5 - WIDTH / 2) / FOCAL, (v + 0.5 - HEIGHT / 2) / FOCAL, 1.0)
            hit = eye + ray * (-eye[2] / ray[2])
            if np.abs(hit[1]) > 0.25 and hit[0] > 0.0:  # beside arm and cubes
                column, row, far = _project(hit, world.layout.view)
                assert (column, row) == pytest.approx((u + 0.5, v + 0.5), abs=1e-6)
                assert abs(depth[v, u] - 1000.0 * far) <= 1.0
                moved = max(moved, abs(depth[v, u] - 1000.0 * _project(hit, np.zeros(6))[2]))
                checked += 1
    assert checked > 20
    assert moved > 2.0, "a camera that nothing had moved would see another table"


def test_cubes_are_where_they_project_to_in_their_colour(world: World, sensor: Camera) -> None:
    for seed in range(6):
        world.reset(seed)
        rgb, depth = sensor.render(0)
        for colour, (x, y, z, present) in enumerate(world.cubes()):
            if not present:
                continue
            u, v, far = _project(np.array([x, y, z + 0.02]), world.layout.view)
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


def test_what_has_moved_leaves_nothing_behind(world: World) -> None:
    """A camera that has followed an arm draws what one that comes fresh to the scene draws."""
    sensor = Camera(world)
    rng = np.random.default_rng(0)
    for seed in range(5):
        place = np.array([rng.uniform(0.15, 0.3), rng.uniform(-0.2, 0.2), rng.uniform(0.03, 0.15)])
        world.reset(seed, solve(place))
        before, _ = sensor.render(0)
        world.set_goal(rng.uniform(-0.8, 0.8, 6))
        world.step(0.3)
        rgb, depth = sensor.render(0)
        fresh, fresh_depth = Camera(world).render(0)
        assert np.array_equal(rgb, fresh)
        assert np.array_equal(depth, fresh_depth)
        assert not np.array_equal(rgb, before)


def _by_multiray(world: World, sigma: float, number: int) -> tuple[np.ndarray, np.ndarray]:
    """The picture by MuJoCo's own rays and NumPy: as it was drawn for the policies that are in the repository."""
    model, layout, n = world.model, world.layout, WIDTH * HEIGHT
    eye, rotation = camera.placed(layout.view)
    v, u = np.mgrid[0:HEIGHT, 0:WIDTH].astype(np.float64)
    pixels = np.stack([(u + 0.5 - WIDTH / 2) / FOCAL, (v + 0.5 - HEIGHT / 2) / FOCAL, np.ones_like(u)], axis=-1)
    length = np.sqrt((pixels**2).sum(axis=-1)).reshape(-1)
    rays = np.ascontiguousarray((pixels.reshape(-1, 3) / length[:, None]) @ rotation.T)
    colours = np.concatenate([model.geom_rgba[:, :3], np.array([[0.25, 0.26, 0.28]])])
    palette = (255.0 * colours * layout.tint).astype(np.float32)

    def shaded() -> tuple[np.ndarray, np.ndarray]:
        ids, distance, normal = np.empty(n, np.int32), np.empty(n), np.empty((n, 3))
        shown = np.array([1, 1, 1, 1, 1, 0], np.uint8)
        mujoco.mj_multiRay(
            model, world.data, eye, rays.reshape(-1), shown, True, -1, ids, distance, normal.reshape(-1), n, 4.0
        )  # fmt: skip
        colour = palette[ids]
        hit = eye[:2] + rays[:, :2] * distance[:, None]
        off = (hit[:, 0] < -0.16) | (hit[:, 0] > 0.44) | (np.abs(hit[:, 1]) > 0.42)
        colour[(ids <= 0) & off] = palette[-1]
        light = layout.ambient + layout.diffuse * np.maximum(normal @ layout.light, 0.0)
        return colour * light.astype(np.float32)[:, None], distance

    moving = np.flatnonzero(model.body_weldid[model.geom_bodyid] != 0)
    groups = model.geom_group[moving].copy()
    model.geom_group[moving] = 5
    painted, _ = shaded()
    model.geom_group[moving] = groups
    image, distance = shaded()
    rng = np.random.Generator(np.random.Philox(key=[int(layout.places[0, 0] * 1e12), 0xCA3E7A]))
    noise = rng.normal(0.0, sigma, (8, n, 3)).astype(np.float32)[number % 8]
    rgb = np.clip((painted + noise) + (image - painted), 0.0, 255.0).astype(np.uint8)
    depth = np.where(distance > 0.0, 1000.0 * distance * (1.0 / length) + 0.5, 0.0).astype(np.uint16)
    return rgb.reshape(HEIGHT, WIDTH, 3), depth.reshape(HEIGHT, WIDTH)


def test_every_byte_is_what_mujocos_rays_give(world: World) -> None:
    """Policies were trained on these bytes, and lockstep runs are compared by them."""
    sensor = Camera(world, noise=1.0)
    rng = np.random.default_rng(4)
    for seed in range(8):
        place = np.array([rng.uniform(0.15, 0.3), rng.uniform(-0.2, 0.2), rng.uniform(0.03, 0.15)])
        world.reset(seed, solve(place))
        world.set_goal(rng.uniform(-0.8, 0.8, 6))
        world.step(0.2)
        rgb, depth = sensor.render(seed)
        expected, expected_depth = _by_multiray(world, 1.0, seed)
        np.testing.assert_array_equal(rgb, expected)
        np.testing.assert_array_equal(depth, expected_depth)


def test_the_second_camera_stands_elsewhere(world: World, sensor: Camera) -> None:
    world.reset(3)
    front, _ = sensor.render(0)
    side, depth = Camera(world, mount=1).render(0)
    assert np.abs(front.astype(int) - side).mean() > 5.0
    eye, rotation = camera.placed(world.layout.view, 1)
    for x, y, z, present in world.cubes():
        if present:
            right, down, forward = rotation.T @ (np.array([x, y, z]) - eye)
            u, v = FOCAL * right / forward + WIDTH / 2, FOCAL * down / forward + HEIGHT / 2
            if 0 <= u < WIDTH and 0 <= v < HEIGHT:
                assert depth[int(v), int(u)] / 1000.0 < forward + 0.03, "it, or something in front of it"
    with pytest.raises(ValueError, match="simulated camera number 3: there are places for 2"):
        Camera(world, mount=2)


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
    bounds = np.repeat((VIEW_SHIFT, VIEW_TURN), 3)
    corners = np.array(np.meshgrid(*[(-1.0, 1.0)] * 6)).reshape(6, -1).T
    for x, y in [(0.12, 0.2), (0.12, -0.2), (0.29, 0.0), (0.21, 0.30), (0.21, -0.30)]:
        for corner in corners:
            u, v, _ = _project(np.array([x, y, 0.02]), corner * bounds)
            assert 0 < u < WIDTH
            assert 0 < v < HEIGHT


class TestPlaced:
    @pytest.mark.parametrize("seed", range(6))
    def test_projects_as_an_analytic_camera(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        view = draw_layout(seed).view
        eye, rotation = camera.placed(view)
        for point in rng.uniform((0.0, -0.4, 0.0), (0.4, 0.4, 0.3), (10, 3)):
            right, down, forward = rotation.T @ (point - eye)
            u, v, far = _project(point, view)
            assert FOCAL * right / forward + WIDTH / 2 == pytest.approx(u, abs=1e-9)
            assert FOCAL * down / forward + HEIGHT / 2 == pytest.approx(v, abs=1e-9)
            assert forward == pytest.approx(far, abs=1e-12)

    def test_is_a_rotation(self) -> None:
        for seed in range(5):
            _, rotation = camera.placed(draw_layout(seed).view)
            assert np.allclose(rotation @ rotation.T, np.eye(3), atol=1e-14)
            assert np.linalg.det(rotation) == pytest.approx(1.0)

    def test_unmoved_it_is_the_pose(self) -> None:
        eye, rotation = camera.placed(np.zeros(6))
        assert np.array_equal(eye, EYE)
        assert np.array_equal(rotation, camera.pose())

    def test_a_turn_moves_the_picture_by_as_many_pixels(self) -> None:
        """A turn about the line of sight's vertical moves the image's centre by focal length times angle."""
        angle = 0.007
        _, rotation = camera.placed(np.array([0.0, 0.0, 0.0, 0.0, 0.0, angle]))
        right, _, forward = camera.pose().T @ rotation[:, 2]
        level = np.hypot(*camera.pose()[:2, 2])
        assert abs(FOCAL * right / forward) == pytest.approx(FOCAL * angle * level, rel=1e-3)

    def test_the_picture_moves_with_it(self, world: World, sensor: Camera) -> None:
        world.reset(3)
        seen, _ = Camera(world, noise=0.0).render(0)
        kept = world.layout
        world.layout = replace(kept, view=np.zeros(6))
        still, _ = Camera(world, noise=0.0).render(0)
        world.layout = kept
        again, _ = Camera(world, noise=0.0).render(0)
        assert np.array_equal(seen, again)
        assert (np.abs(seen.astype(int) - still) > 8).mean() > 0.01


def test_field_of_view() -> None:
    assert camera.field_of_view() == pytest.approx(2 * np.arctan(80 / 185))
