"""The hand: it is drawn where it says it is, and nothing is left of the arm."""

import mujoco
import numpy as np
import pytest

from dzedge.hardware.sim import camera, marker
from dzedge.hardware.sim.camera import FOCAL, HEIGHT, WIDTH, Camera
from dzedge.hardware.sim.marker import MarkerWorld
from dzedge.hardware.sim.scene import JOINTS
from dzedge.hardware.sim.world import HOME, World

TIP = np.array([0.24, 0.02, 0.08])
SKIN = np.array([0.87, 0.63, 0.50])


@pytest.fixture
def world() -> MarkerWorld:
    made = MarkerWorld(3)
    made.set_tip(TIP)
    mujoco.mj_forward(made.model, made.data)
    return made


def _picture(world: World) -> np.ndarray:
    return Camera(world, noise=0.0).render(0)[0].astype(int)


def _colour_at(world: World, point: np.ndarray) -> np.ndarray:
    eye, rotation = camera.placed(world.layout.view)
    right, down, forward = rotation.T @ (point - eye)
    u, v = FOCAL * right / forward + WIDTH / 2, FOCAL * down / forward + HEIGHT / 2
    return _picture(world)[int(v), int(u)] / 255.0 / world.layout.tint


def _likeness(colour: np.ndarray, wanted: np.ndarray) -> float:
    return float(colour @ wanted / np.linalg.norm(colour) / np.linalg.norm(wanted))


class TestPoints:
    def test_tip_wrist_and_elbow_hang_together(self, world: MarkerWorld) -> None:
        tip, wrist, elbow = world.points()
        assert np.allclose(tip, TIP)
        assert np.allclose(world.tip(), TIP)
        assert np.linalg.norm(wrist - tip) == pytest.approx(marker.HAND)
        assert np.linalg.norm(elbow - wrist) == pytest.approx(marker.FOREARM)
        assert elbow[1] > wrist[1] > tip[1], "it comes from the left"
        assert elbow[2] > tip[2]

    def test_is_a_copy(self, world: MarkerWorld) -> None:
        world.points()[:] = 7.0
        assert np.allclose(world.tip(), TIP)

    def test_is_not_the_arms(self, world: MarkerWorld) -> None:
        assert np.abs(world.points() - World(3).points()).max() > 0.05

    def test_drawn_where_it_says(self, world: MarkerWorld) -> None:
        tip, wrist, elbow = world.points()
        finger = tip + 0.3 * (wrist - tip)
        palm = tip + 0.8 * (wrist - tip)
        for place in (finger, palm):
            assert _likeness(_colour_at(world, place), SKIN) > 0.995
        sleeve = np.array([0.22, 0.30, 0.50])
        assert _likeness(_colour_at(world, wrist + 0.5 * (elbow - wrist)), sleeve) > 0.99
        world.set_tip(TIP + (0.0, -0.15, 0.0))
        mujoco.mj_forward(world.model, world.data)
        assert _likeness(_colour_at(world, finger), SKIN) < 0.99, "it has gone away"

    @pytest.mark.parametrize("place", [(0.12, 0.75, 0.20), (0.12, 0.75, 0.60), (0.30, -0.25, 0.02)])
    def test_every_direction_is_a_rotation(self, world: MarkerWorld, place: tuple[float, float, float]) -> None:
        world.set_tip(np.array(place))
        mujoco.mj_forward(world.model, world.data)
        tip, wrist, elbow = world.points()
        for name, start, end in (("marker", tip, wrist), ("sleeve", wrist, elbow)):
            body = world.data.body(name)
            assert np.allclose(body.xpos, start)
            along = body.xmat.reshape(3, 3)[:, 2]
            assert np.allclose(along, (end - start) / np.linalg.norm(end - start), atol=1e-9)


class TestArm:
    def test_is_not_drawn(self, world: MarkerWorld) -> None:
        """Wherever it stands, the picture is the same; with the arm's own world it is not."""
        before = _picture(world)
        turned = HOME + (0.6, 0.2, 0.1, 0.0, 0.0, 0.5)
        world.data.qpos[: len(JOINTS)] = turned
        mujoco.mj_forward(world.model, world.data)
        assert np.array_equal(_picture(world), before)
        arm = World(3)
        seen = _picture(arm)
        arm.data.qpos[: len(JOINTS)] = turned
        mujoco.mj_forward(arm.model, arm.data)
        assert not np.array_equal(_picture(arm), seen)

    def test_same_table_and_cubes_as_without_a_hand(self, world: MarkerWorld) -> None:
        plain = World(3)
        assert np.array_equal(world.cubes(), plain.cubes())
        differs = np.abs(_picture(world) - _picture(plain)).max(axis=2) > 3
        assert 0.02 < differs.mean() < 0.4, "arm and hand differ, the rest does not"


def test_a_camera_that_has_followed_the_hand_leaves_nothing_behind(world: MarkerWorld) -> None:
    eye = Camera(world, noise=0.0)
    before, _ = eye.render(0)
    world.set_tip(world.points()[0] + (0.03, -0.02, 0.02))
    mujoco.mj_kinematics(world.model, world.data)
    seen, _ = eye.render(0)
    fresh, _ = Camera(world, noise=0.0).render(0)
    assert np.array_equal(seen, fresh)
    assert not np.array_equal(seen, before)


def test_the_hand_touches_nothing(world: MarkerWorld) -> None:
    cube = world.cubes()[world.layout.colours[0], :3]
    world.set_tip(cube)
    before = world.cubes()
    world.step(0.2)
    assert np.abs(world.cubes() - before).max() < 1e-3


def test_same_seed_same_picture_next_seed_another(world: MarkerWorld) -> None:
    again, other = MarkerWorld(3), MarkerWorld(4)
    for made in (again, other):
        made.set_tip(TIP)
        mujoco.mj_forward(made.model, made.data)
    assert np.array_equal(_picture(world), _picture(again))
    assert not np.array_equal(_picture(world), _picture(other))
