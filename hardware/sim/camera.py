"""The simulated RGB-D camera: one ray a pixel, Lambert light, no OpenGL.

`mj_multiRay` finds geometry and normal along each ray. Table and base never move, so their rays are cast
once a scene; a frame casts only the rays inside the projected boxes of what can move, which changes no pixel: a ray
outside all boxes cannot meet the moving geometry.
"""

import math

import mujoco
import numpy as np
from numpy.typing import NDArray

from dzedge.hardware.sim.scene import HIDDEN
from dzedge.hardware.sim.world import World

WIDTH, HEIGHT, RATE_HZ = 160, 120, 15
FOCAL = 185.0
"""Focal length [px]; the principal point is the image's centre."""
EYE = np.array([0.70, 0.0, 0.62])
AIM = np.array([0.15, 0.0, 0.07])
"""Where the camera stands and what it looks at [m]: opposite the arm and above it, so that the arm comes in
from behind the cubes and seldom hides one."""
DEPTH_FAR_M = 4.0
_FLOOR = np.array([0.25, 0.26, 0.28])
_TABLE_X, _TABLE_Y = (-0.16, 0.44), 0.42
NOISE = 2.0
"""Sensor noise of the training data: standard deviation [8-bit counts]."""
_NOISE_TILES = 8
_SHOWN = np.array([group != HIDDEN for group in range(mujoco.mjNGROUP)], dtype=np.uint8)


def pose() -> NDArray[np.float64]:
    """Camera to world rotation where nothing has moved it. Shape (3, 3): columns right, down, forward."""
    forward = (AIM - EYE) / np.linalg.norm(AIM - EYE)
    right = np.cross(forward, [0.0, 0.0, 1.0])
    right /= np.linalg.norm(right)
    return np.stack([right, np.cross(forward, right), forward], axis=1)


def placed(view: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Where the camera of a scene stands, Shape (3,), [m], and its rotation to the world, Shape (3, 3).

    view: Shape (6,), see `scene.Layout`. Its turn is small, so the order of the three axes does not matter much; it is
    one rotation about their sum (Rodrigues).
    """
    angle = float(np.linalg.norm(view[3:]))
    if angle == 0.0:
        return EYE + view[:3], pose()
    x, y, z = view[3:] / angle
    cross = np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
    turn = np.eye(3) + math.sin(angle) * cross + (1.0 - math.cos(angle)) * cross @ cross
    return EYE + view[:3], turn @ pose()


class Camera:
    """The camera over one world. Its buffers are reused; the images it returns are fresh.

    noise: standard deviation of the sensor noise [8-bit counts].
    """

    def __init__(self, world: World, noise: float = NOISE) -> None:
        self._world = world
        self._data = world.data
        self._sigma = noise
        model = world.model
        v, u = np.mgrid[0:HEIGHT, 0:WIDTH].astype(np.float64)
        across, down = (u + 0.5 - WIDTH / 2) / FOCAL, (v + 0.5 - HEIGHT / 2) / FOCAL
        pixels = np.stack([across, down, np.ones_like(u)], axis=-1)
        length = np.sqrt((pixels**2).sum(axis=-1)).reshape(-1)
        self._directions = pixels.reshape(-1, 3) / length[:, None]
        self._cosine = 1.0 / length
        n = WIDTH * HEIGHT
        self._ids = np.empty(n, dtype=np.int32)
        self._distance = np.empty(n)
        self._normal = np.empty((n, 3))
        self._moving = np.flatnonzero((model.body_weldid[model.geom_bodyid] != 0) & (model.geom_group != HIDDEN))
        self._lit_layout: object = None

    def _cast(self, rays: NDArray[np.float64]) -> int:
        n = len(rays)
        mujoco.mj_multiRay(
            self._world.model, self._data, self._eye, rays.reshape(-1), _SHOWN, True, -1,
            self._ids[:n], self._distance[:n], self._normal.reshape(-1)[: 3 * n], n, DEPTH_FAR_M,
        )  # fmt: skip
        return n

    def _cast_static(self) -> tuple[NDArray[np.int32], NDArray[np.float64], NDArray[np.float64]]:
        """Rays against what never moves: the moving geometry is lifted out of the way by its group."""
        model = self._world.model
        kept = model.geom_group[self._moving].copy()
        model.geom_group[self._moving] = HIDDEN
        self._cast(self._rays)
        model.geom_group[self._moving] = kept
        return self._ids.copy(), self._distance.copy(), self._normal.copy()

    def _touched(self) -> NDArray[np.int64]:
        """Pixels inside the projected bounding box of any moving geometry, one pixel wider on each side."""
        model, data = self._world.model, self._data
        box = model.geom_aabb[self._moving].reshape(-1, 2, 3)
        corners = box[:, :1] + box[:, 1:] * _CORNERS
        axes = data.geom_xmat[self._moving].reshape(-1, 3, 3)
        placed = corners @ axes.transpose(0, 2, 1) + data.geom_xpos[self._moving][:, None]
        seen = (placed - self._eye) @ self._rotation
        image = FOCAL * seen[..., :2] / seen[..., 2:] + (WIDTH / 2, HEIGHT / 2)
        low = np.clip(np.floor(image.min(axis=1)) - 1, 0, (WIDTH, HEIGHT)).astype(int)
        high = np.clip(np.ceil(image.max(axis=1)) + 1, 0, (WIDTH, HEIGHT)).astype(int)
        mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
        for (left, top), (right, bottom) in zip(low.tolist(), high.tolist(), strict=True):
            mask[top:bottom, left:right] = True
        return np.flatnonzero(mask)

    def _shade(
        self,
        rays: NDArray[np.float64],
        ids: NDArray[np.int32],
        distance: NDArray[np.float64],
        normal: NDArray[np.float64],
    ) -> NDArray[np.float32]:
        """Lambert's law, and the floor's colour beyond the table's edge. Returns Shape (n, 3), 0..255."""
        layout = self._world.layout
        colour = self._palette[ids]
        beyond = np.flatnonzero(ids <= 0)
        hit = self._eye[:2] + rays[beyond, :2] * distance[beyond, None]
        off = (hit[:, 0] < _TABLE_X[0]) | (hit[:, 0] > _TABLE_X[1]) | (np.abs(hit[:, 1]) > _TABLE_Y)
        colour[beyond[off]] = self._palette[-1]
        light = layout.ambient + layout.diffuse * np.maximum(normal @ layout.light, 0.0)
        return colour * light.astype(np.float32)[:, None]

    def _relight(self) -> None:
        """A new scene has another light, and the camera stands elsewhere: paint the background again."""
        world = self._world
        self._eye, self._rotation = placed(world.layout.view)
        self._rays = np.ascontiguousarray(self._directions @ self._rotation.T)
        self._background = self._cast_static()
        colours = np.concatenate([world.model.geom_rgba[:, :3], _FLOOR[None]])
        self._palette = (255.0 * colours * world.layout.tint).astype(np.float32)
        self._painted = self._shade(self._rays, *self._background)
        rng = np.random.Generator(np.random.Philox(key=[int(world.layout.places[0, 0] * 1e12), 0xCA3E7A]))
        self._noise = rng.normal(0.0, self._sigma, (_NOISE_TILES, HEIGHT * WIDTH, 3)).astype(np.float32)
        self._lit_layout = world.layout

    def render(
        self, number: int, data: mujoco.MjData | None = None
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint16]]:
        """The scene as it is now. number: the frame's number, which picks its sensor noise; data: a copy of
        the world's state to be drawn instead, so that physics may go on meanwhile.

        Returns RGB, Shape (120, 160, 3), uint8, and depth along the optical axis, Shape (120, 160), uint16,
        [mm], 0 where nothing is nearer than 4 m.
        """
        self._data = self._world.data if data is None else data
        if self._lit_layout is not self._world.layout:
            self._relight()
        touched = self._touched()
        rays = self._rays[touched]
        n = self._cast(rays)
        image = self._painted + self._noise[number % _NOISE_TILES]
        shaded = self._shade(rays, self._ids[:n], self._distance[:n], self._normal[:n])
        image[touched] += shaded - self._painted[touched]
        depth = self._background[1].copy()
        depth[touched] = self._distance[:n]
        millimetres = np.where(depth > 0.0, 1000.0 * depth * self._cosine + 0.5, 0.0)
        rgb = np.clip(image, 0.0, 255.0, out=image).astype(np.uint8).reshape(HEIGHT, WIDTH, 3)
        return rgb, millimetres.astype(np.uint16).reshape(HEIGHT, WIDTH)


_CORNERS = np.array([[x, y, z] for x in (-1.0, 1.0) for y in (-1.0, 1.0) for z in (-1.0, 1.0)])


def field_of_view() -> float:
    """Horizontal field of view [rad]."""
    return 2.0 * math.atan(WIDTH / 2 / FOCAL)
