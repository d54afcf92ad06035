"""Another embodiment for videos without actions: a hand that reaches in from the side and has no joints of ours.

It is moved by where its fingertip is to be; palm and forearm follow, pointing at a shoulder beside the table.
"""

import math

import numpy as np
from numpy.typing import NDArray

from dzedge.hardware.sim import scene
from dzedge.hardware.sim.world import World

Vector = NDArray[np.float64]

SHOULDER = np.array([0.12, 0.75, 0.45])
"""Where the forearm comes from [m]: somebody sits to the left of the arm."""
HAND, FOREARM = 0.12, 0.14
"""Fingertip to wrist, wrist to what counts as the elbow [m]."""
_SKIN, _SLEEVE = "0.87 0.63 0.50", "0.22 0.30 0.50"


def _segment(name: str, geoms: str) -> str:
    return f'<body name="{name}" mocap="true" pos="0 0.9 0.3">{geoms}</body>'


def _capsule(radius: float, start: float, end: float, colour: str) -> str:
    return (
        f'<geom type="capsule" size="{radius}" fromto="0 0 {start} 0 0 {end}" rgba="{colour} 1" contype="0" '
        'conaffinity="0" group="3"/>'
    )


BODIES = _segment("marker", _capsule(0.011, 0.011, 0.06, _SKIN) + _capsule(0.026, 0.075, HAND, _SKIN)) + _segment(
    "sleeve", _capsule(0.027, 0.0, 0.45, _SLEEVE)
)


class MarkerWorld(World):
    """The table with a hand instead of the arm: the arm rests unseen, `set_tip` moves the hand."""

    def __init__(self, seed: int = 0, cubes: int = scene.CUBES_PER_SCENE) -> None:
        self._points = np.zeros((3, 3))
        super().__init__(seed, cubes, BODIES)
        arm = self.model.geom_group == scene.ARM_GROUP
        fixed = self.model.geom_bodyid == 0
        self.model.geom_group[arm & ~fixed] = scene.HIDDEN

    def set_tip(self, tip: Vector) -> None:
        """Put the fingertip there, at once. tip: Shape (3,), [m]."""
        towards = SHOULDER - tip
        along = towards / np.linalg.norm(towards)
        wrist = tip + HAND * along
        rest = SHOULDER - wrist + (0.0, 0.0, 0.10)
        back = rest / np.linalg.norm(rest)
        self._points = np.stack([tip, wrist, wrist + FOREARM * back])
        for body, (place, direction) in enumerate(((tip, along), (wrist, back))):
            self.data.mocap_pos[body] = place
            self.data.mocap_quat[body] = _turned(direction)

    def points(self) -> Vector:
        """Tip, wrist and elbow of the hand. Shape (3, 3), [m]."""
        return self._points.copy()


def _turned(direction: Vector) -> Vector:
    """The quaternion that turns +z to a direction. Shape (3,), unit -> Shape (4,)."""
    x, y, z = (float(c) for c in direction)
    quaternion = np.array([1.0 + z, -y, x, 0.0])
    length = float(np.linalg.norm(quaternion))
    return quaternion / length if length > 1e-9 else np.array([0.0, 1.0, 0.0, 0.0]) * math.copysign(1.0, z)
