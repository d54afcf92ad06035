"""The layout that a seed gives, and the model built from it."""

import mujoco
import numpy as np
import pytest

from dzedge.hardware.sim import scene


@pytest.mark.parametrize("seed", range(20))
def test_cubes_lie_apart_inside_their_sector(seed: int) -> None:
    layout = scene.draw_layout(seed)
    x, y = layout.places[:, 0], layout.places[:, 1]
    radius = np.hypot(x, y)
    assert len(set(layout.colours)) == scene.CUBES_PER_SCENE
    assert (radius >= scene.CUBE_RADII[0]).all()
    assert (radius <= scene.CUBE_RADII[1]).all()
    assert (np.abs(np.arctan2(y, x)) <= scene.CUBE_ANGLE).all()
    gaps = np.hypot(x[:, None] - x, y[:, None] - y)[np.triu_indices(len(x), 1)]
    assert (gaps > scene.CUBE_SPACING).all()


def test_same_seed_same_layout_next_seed_another() -> None:
    one, again, other = scene.draw_layout(5), scene.draw_layout(5), scene.draw_layout(6)
    assert one.places.tobytes() == again.places.tobytes()
    assert one.light.tobytes() == again.light.tobytes()
    assert one.places.tobytes() != other.places.tobytes()
    assert one.light.tobytes() != other.light.tobytes()


def test_every_colour_occurs() -> None:
    seen = {colour for seed in range(30) for colour in scene.draw_layout(seed).colours}
    assert seen == set(range(len(scene.COLOURS)))


def test_light_comes_from_above() -> None:
    for seed in range(20):
        layout = scene.draw_layout(seed)
        assert np.isclose(np.linalg.norm(layout.light), 1.0)
        assert layout.light[2] > 0.7


@pytest.mark.parametrize("cubes", [1, 3, 6])
def test_model_has_that_many_cubes(cubes: int) -> None:
    model = mujoco.MjModel.from_xml_string(scene.mjcf(cubes))
    assert model.nq == len(scene.JOINTS) + 7 * cubes
    assert model.nu == len(scene.JOINTS)
    assert scene.draw_layout(1, cubes).places.shape == (cubes, 3)


def test_joint_limits_are_the_models() -> None:
    model = mujoco.MjModel.from_xml_string(scene.mjcf())
    assert np.allclose(model.jnt_range[: len(scene.JOINTS), 0], scene.LOWER)
    assert np.allclose(model.jnt_range[: len(scene.JOINTS), 1], scene.UPPER)


def test_cubes_keep_clear_of_a_low_hand() -> None:
    low = np.array([0.22, 0.0, 0.03])
    for seed in range(10):
        places = scene.draw_layout(seed, 3, low).places
        assert (np.hypot(*(places[:, :2] - low[:2]).T) > scene.CUBE_SPACING).all()


def test_a_high_hand_changes_nothing() -> None:
    high = np.array([0.22, 0.0, 0.2])
    assert scene.draw_layout(4, 3, high).places.tobytes() == scene.draw_layout(4).places.tobytes()


def test_the_camera_wanders_a_little_from_scene_to_scene() -> None:
    views = np.array([scene.draw_layout(seed).view for seed in range(200)])
    bound = np.repeat((scene.VIEW_SHIFT, scene.VIEW_TURN), 3)
    assert (np.abs(views) <= bound).all()
    assert (np.abs(views).max(axis=0) > 0.9 * bound).all(), "it uses its room along every axis"
    assert np.abs(views.mean(axis=0) / bound).max() < 0.2
    assert scene.draw_layout(3).view.tobytes() == scene.draw_layout(3).view.tobytes()
    assert len(np.unique(views, axis=0)) == 200


def test_further_bodies_leave_the_arm_first() -> None:
    more = '<body name="extra" mocap="true"><geom type="sphere" size="0.01" group="3"/></body>'
    plain = mujoco.MjModel.from_xml_string(scene.mjcf())
    model = mujoco.MjModel.from_xml_string(scene.mjcf(more=more))
    assert model.nq == plain.nq
    assert model.nmocap == plain.nmocap + 1
    for joint, name in enumerate(scene.JOINTS):
        assert model.joint(name).qposadr[0] == joint
