"""The simulated RGB-D camera: one ray a pixel, Lambert light, no OpenGL.

The ray caster of `dzedge.kernels.raycast` draws; MuJoCo only says where things are. Table and base never move, so
their rays are cast once a scene; a frame casts what can move into the rectangles that it projects to.
"""

import math

import mujoco
import numpy as np
from numpy.typing import NDArray

from dzedge.hardware.sim.scene import HIDDEN
from dzedge.hardware.sim.world import World
from dzedge.kernels.raycast import RayCaster

WIDTH, HEIGHT, RATE_HZ = 160, 120, 15
FOCAL = 185.0
"""Focal length [px]; the principal point is the image's centre."""
EYE = np.array([0.70, 0.0, 0.62])
AIM = np.array([0.15, 0.0, 0.07])
"""Where the camera stands and what it looks at [m]: opposite the arm and above it, so that the arm comes in
from behind the cubes and seldom hides one."""
MOUNTS = ((EYE, AIM), (np.array([0.20, 0.55, 0.45]), np.array([0.18, 0.0, 0.05])))
"""Places of a robot's simulated cameras in turn: the policies' own; and one to the arm's left."""
EXPOSURE_US, GAIN = 8000, 16
"""What the simulated camera reports of itself: a room with its lights on."""
DEPTH_FAR_M = 4.0
_FLOOR = np.array([0.25, 0.26, 0.28])
_TABLE = (-0.16, 0.44, -0.42, 0.42)
"""The table's edges along x and y [m]: what lies beyond is the floor."""
NOISE = 2.0
"""Sensor noise of the training data: standard deviation [8-bit counts]."""
_NOISE_TILES = 8


def pose(mount: int = 0) -> NDArray[np.float64]:
    """Camera to world rotation where nothing has moved it. Shape (3, 3): columns right, down, forward."""
    eye, aim = MOUNTS[mount]
    forward = (aim - eye) / np.linalg.norm(aim - eye)
    right = np.cross(forward, [0.0, 0.0, 1.0])
    right /= np.linalg.norm(right)
    return np.stack([right, np.cross(forward, right), forward], axis=1)


def placed(view: NDArray[np.float64], mount: int = 0) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Where the camera of a scene stands, Shape (3,), [m], and its rotation to the world, Shape (3, 3).

    view: Shape (6,), see `scene.Layout`; mount: number in MOUNTS. The turn is small, so the order of the axes does
    not matter much; it is one rotation about their sum (Rodrigues).
    """
    angle = float(np.linalg.norm(view[3:]))
    if angle == 0.0:
        return MOUNTS[mount][0] + view[:3], pose(mount)
    x, y, z = view[3:] / angle
    cross = np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
    turn = np.eye(3) + math.sin(angle) * cross + (1.0 - math.cos(angle)) * cross @ cross
    return MOUNTS[mount][0] + view[:3], turn @ pose(mount)


class Camera:
    """The camera over one world. Its buffers are reused; the images it returns are fresh.

    noise: standard deviation of the sensor noise [8-bit counts]; mount: where it stands, number in MOUNTS. Raises
    ValueError for a place that there is not.
    """

    def __init__(self, world: World, noise: float = NOISE, mount: int = 0) -> None:
        if not 0 <= mount < len(MOUNTS):
            raise ValueError(f"simulated camera number {mount + 1}: there are places for {len(MOUNTS)}; leave it out")
        self._world, self._mount = world, mount
        self._sigma = noise
        model = world.model
        shown = (model.geom_group != HIDDEN) & (model.geom_rgba[:, 3] > 0.0)
        still = model.body_weldid[model.geom_bodyid] == 0
        self._still = np.flatnonzero(shown & still).astype(np.int32)
        self._moving = np.flatnonzero(shown & ~still).astype(np.int32)
        self._caster = RayCaster(HEIGHT, WIDTH, FOCAL, model.geom_type, model.geom_size, DEPTH_FAR_M)
        self._lit_layout: object = None

    def _relight(self, data: mujoco.MjData) -> None:
        """A new scene has another light, and the camera stands elsewhere: paint the background again."""
        world, layout, caster = self._world, self._world.layout, self._caster
        caster.aim(*placed(layout.view, self._mount))
        caster.background(data.geom_xpos, data.geom_xmat, self._still)
        colours = np.concatenate([world.model.geom_rgba[:, :3], _FLOOR[None]])
        palette = (255.0 * colours * layout.tint).astype(np.float32)
        caster.relight(palette, layout.light, layout.ambient, layout.diffuse, _TABLE)
        key = [int(layout.places[0, 0] * 1e12), 0xCA3E7A + self._mount]
        rng = np.random.Generator(np.random.Philox(key=key))
        self._noise = rng.normal(0.0, self._sigma, (_NOISE_TILES, HEIGHT * WIDTH, 3)).astype(np.float32)
        self._lit_layout = layout

    def render(
        self, number: int, data: mujoco.MjData | None = None
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint16]]:
        """The scene as it is now. number: the frame's number, which picks its sensor noise; data: a copy of
        the world's state to be drawn instead, so that physics may go on meanwhile.

        Returns RGB, Shape (120, 160, 3), uint8, and depth along the optical axis, Shape (120, 160), uint16,
        [mm], 0 where nothing is nearer than 4 m.
        """
        data = self._world.data if data is None else data
        if self._lit_layout is not self._world.layout:
            self._relight(data)
        self._caster.cast(data.geom_xpos, data.geom_xmat, self._moving)
        rgb, depth = np.empty((HEIGHT, WIDTH, 3), np.uint8), np.empty((HEIGHT, WIDTH), np.uint16)
        self._caster.paint(self._noise[number % _NOISE_TILES], rgb, depth)
        return rgb, depth


def field_of_view() -> float:
    """Horizontal field of view [rad]."""
    return 2.0 * math.atan(WIDTH / 2 / FOCAL)
