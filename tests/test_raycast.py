"""The ray caster against `mj_multiRay`, its oracle: pixel by pixel, by what each pixel shows."""

from dataclasses import dataclass

import mujoco
import numpy as np
import pytest

from dzedge.hardware.sim.camera import EYE, FOCAL, HEIGHT, WIDTH, placed, pose
from dzedge.hardware.sim.kinematics import solve
from dzedge.hardware.sim.scene import HIDDEN
from dzedge.hardware.sim.world import World
from dzedge.kernels.raycast import KINDS, RayCaster

FAR = 4.0
AGREE_M = 1e-9
"""Where both see the same shape, the hit is the same to a nanometre."""


@dataclass(frozen=True)
class Seen:
    """What rays met. ids: Shape (n,), -1 nothing; distance: Shape (n,), [m]; normal: Shape (n, 3)."""

    ids: np.ndarray
    distance: np.ndarray
    normal: np.ndarray


def oracle(model: mujoco.MjModel, data: mujoco.MjData, eye: np.ndarray, rays: np.ndarray) -> Seen:
    n = len(rays)
    ids, distance, normal = np.empty(n, np.int32), np.empty(n), np.empty((n, 3))
    shown = np.array([group != HIDDEN for group in range(mujoco.mjNGROUP)], np.uint8)
    mujoco.mj_multiRay(
        model, data, eye, rays.reshape(-1), shown, True, -1, ids, distance, normal.reshape(-1), n, FAR
    )  # fmt: skip
    return Seen(ids, distance, normal)


def everything(model: mujoco.MjModel) -> np.ndarray:
    return np.flatnonzero(model.geom_group != HIDDEN).astype(np.int32)


def lit(caster: RayCaster, model: mujoco.MjModel, data: mujoco.MjData, light: np.ndarray) -> np.ndarray:
    """max(normal . light, 0) of each pixel, read off a white picture. Shape (n,), to 1/255."""
    caster.background(data.geom_xpos, data.geom_xmat, everything(model))
    palette = np.full((caster.shapes + 1, 3), 255.0, np.float32)
    caster.relight(palette, light, 0.0, 1.0, (-1e9, 1e9, -1e9, 1e9))
    caster.cast(data.geom_xpos, data.geom_xmat, np.zeros(0, np.int32))
    rgb, _ = picture(caster)
    return rgb[:, :, 0].reshape(-1) / 255.0


def picture(caster: RayCaster) -> tuple[np.ndarray, np.ndarray]:
    """What `paint` makes of the last cast, without noise."""
    rgb = np.full((caster.height, caster.width, 3), 7, np.uint8)
    depth = np.full((caster.height, caster.width), 7, np.uint16)
    caster.paint(np.zeros((caster.height * caster.width, 3), np.float32), rgb, depth)
    return rgb, depth


SHAPES = """
<mujoco><worldbody>
  <geom type="plane" size="0.5 0.4 1" pos="0 0 -0.3" euler="5 -4 20"/>
  <body pos="0.1 0.05 0.1" euler="20 30 40"><geom type="sphere" size="0.09"/></body>
  <body pos="-0.2 0.1 0.05" euler="50 -30 10"><geom type="capsule" size="0.05 0.11"/></body>
  <body pos="0.0 -0.2 0.0" euler="-40 15 75"><geom type="ellipsoid" size="0.05 0.12 0.08"/></body>
  <body pos="-0.15 -0.15 0.2" euler="70 20 -10"><geom type="cylinder" size="0.07 0.10"/></body>
  <body pos="0.25 0.15 0.0" euler="10 65 30"><geom type="box" size="0.06 0.08 0.10"/></body>
</worldbody></mujoco>
"""


@pytest.fixture(scope="module")
def shapes() -> tuple[mujoco.MjModel, mujoco.MjData]:
    model = mujoco.MjModel.from_xml_string(SHAPES)
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    return model, data


def gallery(model: mujoco.MjModel, data: mujoco.MjData, seed: int, far: float = FAR) -> tuple[RayCaster, np.ndarray]:
    """A camera somewhere around the shapes, looking at their middle; its eye."""
    rng = np.random.default_rng(seed)
    eye = rng.normal(size=3)
    eye *= rng.uniform(0.7, 1.5) / np.linalg.norm(eye)
    eye[2] = abs(eye[2])
    forward = -eye / np.linalg.norm(eye)
    right = np.cross(forward, [0.0, 0.0, 1.0])
    right /= np.linalg.norm(right)
    caster = RayCaster(90, 120, 100.0, model.geom_type, model.geom_size, far)
    caster.aim(eye, np.stack([right, np.cross(forward, right), forward], axis=1))
    caster.cast(data.geom_xpos, data.geom_xmat, everything(model))
    return caster, eye


class TestShapes:
    @pytest.mark.parametrize("kind", sorted(KINDS))
    def test_each_kind_is_where_mujoco_has_it(self, shapes, kind: str) -> None:
        model, data = shapes
        number = int(np.flatnonzero(model.geom_type == KINDS[kind])[0])
        met = missed = 0
        for seed in range(12):
            caster, eye = gallery(model, data, seed)
            truth = oracle(model, data, eye, caster.rays)
            ours, theirs = caster.ids == number, truth.ids == number
            assert (ours != theirs).sum() == 0, "which pixels show it"
            assert np.abs(caster.distance - truth.distance)[ours].max(initial=0.0) <= AGREE_M
            met, missed = met + int(ours.sum()), missed + int((~ours).sum())
        assert met > 500 and missed > 500

    @pytest.mark.parametrize("seed", range(6))
    def test_normals_are_mujocos(self, shapes, seed: int) -> None:
        model, data = shapes
        caster, eye = gallery(model, data, seed)
        truth = oracle(model, data, eye, caster.rays)
        hit = truth.ids >= 0
        for light in np.eye(3):
            expected = np.maximum(truth.normal @ light, 0.0)
            assert np.abs(lit(caster, model, data, light) - expected)[hit].max() <= 1.01 / 255

    def test_nothing_is_nothing(self, shapes) -> None:
        model, data = shapes
        caster, eye = gallery(model, data, 0)
        truth = oracle(model, data, eye, caster.rays)
        assert ((caster.ids < 0) == (truth.ids < 0)).all()
        assert (caster.distance[caster.ids < 0] == -1.0).all()
        assert (caster.ids < 0).any()

    def test_far_things_are_not_seen(self, shapes) -> None:
        model, data = shapes
        near, _ = gallery(model, data, 1)
        far = float(np.median(near.distance[near.ids >= 0]))
        caster, _ = gallery(model, data, 1, far)
        gone = near.distance > far
        assert gone.any()
        np.testing.assert_array_equal(caster.ids[gone], -1)
        np.testing.assert_array_equal(caster.distance[~gone], near.distance[~gone])

    @pytest.mark.parametrize("eye", [(0.0, 0.0, 0.0), (-0.2, 0.1, 0.05), (0.25, 0.15, 0.0)])
    def test_from_the_middle_of_things(self, shapes, eye) -> None:
        """Inside a shape, and with shapes behind the camera."""
        model, data = shapes
        caster = RayCaster(40, 60, 30.0, model.geom_type, model.geom_size, FAR)
        caster.aim(np.array(eye), np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]]))
        caster.cast(data.geom_xpos, data.geom_xmat, everything(model))
        truth = oracle(model, data, np.array(eye), caster.rays)
        np.testing.assert_array_equal(caster.ids, truth.ids)
        assert np.abs(caster.distance - truth.distance).max() <= AGREE_M


class TestTable:
    """The robot's own scene, by what a pixel shows: table, base, arm, cubes."""

    @staticmethod
    def views(world: World, seeds: range):
        model, data = world.model, world.data
        caster = RayCaster(HEIGHT, WIDTH, FOCAL, model.geom_type, model.geom_size, FAR)
        rng = np.random.default_rng(7)
        for seed in seeds:
            place = np.array([rng.uniform(0.15, 0.30), rng.uniform(-0.2, 0.2), rng.uniform(0.03, 0.2)])
            world.reset(seed, solve(place))
            eye, rotation = placed(world.layout.view)
            caster.aim(eye, rotation)
            yield caster, oracle(model, data, eye, np.ascontiguousarray(caster.rays))

    def test_every_class_of_pixel_agrees(self) -> None:
        world = World(0)
        model, data = world.model, world.data
        moving = model.body_weldid[model.geom_bodyid] != 0
        classes = {
            "table": np.array([0]),
            "base": np.flatnonzero(~moving)[1:],
            "arm": np.flatnonzero(moving & (model.geom_group == 1)),
            "cubes": np.flatnonzero(model.geom_group == 2),
        }
        seen = dict.fromkeys(classes, 0)
        for caster, truth in self.views(world, range(12)):
            caster.cast(data.geom_xpos, data.geom_xmat, everything(model))
            for name, numbers in classes.items():
                ours, theirs = np.isin(caster.ids, numbers), np.isin(truth.ids, numbers)
                assert (ours != theirs).sum() == 0, name
                assert np.abs(caster.distance - truth.distance)[ours].max(initial=0.0) <= AGREE_M, name
                seen[name] += int(ours.sum())
        assert min(seen.values()) > 2000, seen

    def test_rectangles_leave_nothing_out(self) -> None:
        """Background and moving shapes apart give the picture of all of them together."""
        world = World(0)
        model, data = world.model, world.data
        still = np.flatnonzero(model.body_weldid[model.geom_bodyid] == 0).astype(np.int32)
        moving = np.setdiff1d(everything(model), still).astype(np.int32)
        for caster, truth in self.views(world, range(6)):
            caster.background(data.geom_xpos, data.geom_xmat, still)
            assert not np.array_equal(caster.ids, truth.ids)
            caster.cast(data.geom_xpos, data.geom_xmat, moving)
            np.testing.assert_array_equal(caster.ids, truth.ids)
            assert np.abs(caster.distance - truth.distance).max() <= AGREE_M

    def test_a_moved_camera_sees_another_picture(self) -> None:
        world = World(0)
        model, data = world.model, world.data
        caster = RayCaster(HEIGHT, WIDTH, FOCAL, model.geom_type, model.geom_size, FAR)
        seen = []
        for eye in (EYE, EYE + (0.0, 0.0, 0.01)):
            caster.aim(eye, pose())
            caster.cast(data.geom_xpos, data.geom_xmat, everything(model))
            seen.append(caster.distance.copy())
        assert (np.abs(seen[0] - seen[1]) > 1e-3).mean() > 0.5


class TestPaint:
    @pytest.fixture
    def caster(self, shapes) -> RayCaster:
        model, data = shapes
        caster, _ = gallery(model, data, 2)
        caster.background(data.geom_xpos, data.geom_xmat, everything(model))
        return caster

    def test_depth_is_along_the_axis_in_millimetres(self, shapes, caster: RayCaster) -> None:
        palette = np.zeros((caster.shapes + 1, 3), np.float32)
        caster.relight(palette, np.array([0.0, 0.0, 1.0]), 1.0, 0.0, (-1.0, 1.0, -1.0, 1.0))
        _, depth = picture(caster)
        v, u = np.divmod(np.arange(caster.height * caster.width), caster.width)
        square = ((u + 0.5 - 60) / 100.0) ** 2 + ((v + 0.5 - 45) / 100.0) ** 2 + 1.0
        expected = np.where(caster.ids >= 0, np.floor(1000.0 * caster.distance / np.sqrt(square) + 0.5), 0.0)
        np.testing.assert_array_equal(depth.reshape(-1), expected)

    def test_beyond_the_ground_is_the_last_colour(self, caster: RayCaster) -> None:
        palette = np.full((caster.shapes + 1, 3), 100.0, np.float32)
        palette[-1] = (10.0, 20.0, 30.0)
        caster.relight(palette, np.array([0.0, 0.0, 1.0]), 1.0, 0.0, (-1e9, 0.0, -1e9, 1e9))
        rgb, _ = picture(caster)
        other = (rgb == (10, 20, 30)).all(axis=-1).reshape(-1)
        ground = caster.ids == 0
        assert other[ground].any() and not other[ground].all()
        assert not other[caster.ids > 0].any() and other[caster.ids < 0].all()

    def test_noise_is_added_and_clipped(self, caster: RayCaster) -> None:
        palette = np.full((caster.shapes + 1, 3), 250.0, np.float32)
        caster.relight(palette, np.array([0.0, 0.0, 1.0]), 1.0, 0.0, (-1e9, 1e9, -1e9, 1e9))
        noise = np.zeros((caster.height * caster.width, 3), np.float32)
        noise[0], noise[1], noise[2] = 20.0, -300.0, -10.5
        rgb = np.empty((caster.height, caster.width, 3), np.uint8)
        caster.paint(noise, rgb, np.empty((caster.height, caster.width), np.uint16))
        assert [int(value) for value in rgb[0, :4, 0]] == [255, 0, 239, 250]


class TestRefusals:
    def test_geometry_that_cannot_be_drawn(self) -> None:
        with pytest.raises(ValueError, match=r"kind \[7\]: it can be drawn as plane, sphere"):
            RayCaster(4, 4, 3.0, np.array([0, 7]), np.ones((2, 3)))

    @pytest.mark.parametrize("wrong", [{"height": 0}, {"width": 5000}, {"focal": 0.0}, {"far": -1.0}])
    def test_sizes_out_of_range(self, wrong: dict) -> None:
        arguments = {"height": 4, "width": 4, "focal": 3.0, "far": 4.0, **wrong}
        with pytest.raises(ValueError, match="sides must be 1 to 4096"):
            RayCaster(**arguments, kinds=np.array([2]), sizes=np.ones((1, 3)))

    def test_arrays_of_another_shape(self) -> None:
        caster = RayCaster(4, 6, 3.0, np.array([2, 6]), np.ones((2, 3)))
        places, turns, one = np.zeros((2, 3)), np.zeros((2, 9)), np.zeros(1, np.int32)
        with pytest.raises(ValueError, match=r"sizes of shape \(1, 3\), wanted \(2, 3\)"):
            RayCaster(4, 6, 3.0, np.array([2, 6]), np.ones((1, 3)))
        with pytest.raises(ValueError, match=r"wanted \(2, 3\) and \(2, 9\)"):
            caster.cast(places[:1], turns, one)
        with pytest.raises(ValueError, match="shape 2: must be 0 to 1"):
            caster.cast(places, turns, one + 2)
        with pytest.raises(ValueError, match=r"wanted \(3,\), \(3, 3\)"):
            caster.aim(np.zeros(2), np.eye(3))
        with pytest.raises(ValueError, match=r"palette of shape \(2, 3\), wanted \(3, 3\)"):
            caster.relight(np.zeros((2, 3), np.float32), np.zeros(3), 0.0, 0.0, (0, 0, 0, 0))
        with pytest.raises(ValueError, match="noise, rgb, depth of shape"):
            caster.paint(np.zeros((24, 3), np.float32), np.zeros((6, 4, 3), np.uint8), np.zeros((4, 6), np.uint16))

    def test_inputs_are_left_alone(self, shapes) -> None:
        model, data = shapes
        caster, _ = gallery(model, data, 3)
        before = data.geom_xpos.copy(), data.geom_xmat.copy()
        caster.cast(data.geom_xpos, data.geom_xmat, everything(model))
        np.testing.assert_array_equal(before[0], data.geom_xpos)
        np.testing.assert_array_equal(before[1], data.geom_xmat)
