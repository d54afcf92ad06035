"""Where the arm's points are, and which joints put its tip somewhere: closed form, for experts and judges.

The arm is a turret with a planar three-link chain: pitches add up, so the hand points `lift + elbow + wrist`
below the horizon.
"""

import math

import numpy as np
from numpy.typing import NDArray

from dzedge.hardware.sim.scene import FOREARM, HAND, LOWER, SHOULDER_X, SHOULDER_Z, UPPER, UPPER_ARM

Vector = NDArray[np.float64]

_REACH = 0.985 * (UPPER_ARM + FOREARM)


def points(joints: Vector) -> Vector:
    """Tip, wrist and elbow. joints: Shape (6,), [rad]. Returns Shape (3, 3), [m], rows tip, wrist, elbow."""
    pan, lift, elbow, wrist = (float(j) for j in joints[:4])
    forearm = lift + elbow
    hand = forearm + wrist
    er, ez = SHOULDER_X + UPPER_ARM * math.sin(lift), SHOULDER_Z + UPPER_ARM * math.cos(lift)
    wr, wz = er + FOREARM * math.cos(forearm), ez - FOREARM * math.sin(forearm)
    tr, tz = wr + HAND * math.cos(hand), wz - HAND * math.sin(hand)
    c, s = math.cos(pan), math.sin(pan)
    return np.array([[tr * c, tr * s, tz], [wr * c, wr * s, wz], [er * c, er * s, ez]])


def pitch_at(radius: float, height: float) -> float:
    """How far below the horizon the hand points when its tip is there [rad]: steep near the base, flatter
    far out and high up, where a steep hand is out of reach. One smooth function, so that a place has one
    pose."""
    pitch = 1.40 - 3.3 * (radius - 0.14) - 2.6 * max(0.0, height - 0.08)
    return min(max(pitch, 0.35), 1.45)


def solve(tip: Vector, roll: float = 0.0, gripper: float = 0.0) -> Vector:
    """Joints that put the tip at `tip` with the hand at `pitch_at`. tip: Shape (3,), [m]. Returns Shape
    (6,), [rad].

    Elbow up. A place out of reach gives the pose that stretches towards it; joint limits clip last.
    """
    x, y, z = (float(t) for t in tip)
    radius = math.hypot(x, y)
    pitch = pitch_at(radius, z)
    dr = radius - HAND * math.cos(pitch) - SHOULDER_X
    dz = z + HAND * math.sin(pitch) - SHOULDER_Z
    distance = math.hypot(dr, dz)
    if distance > _REACH:
        dr, dz, distance = dr * _REACH / distance, dz * _REACH / distance, _REACH
    at_shoulder = (UPPER_ARM**2 + distance**2 - FOREARM**2) / (2.0 * UPPER_ARM * max(distance, 1e-6))
    at_elbow = (UPPER_ARM**2 + FOREARM**2 - distance**2) / (2.0 * UPPER_ARM * FOREARM)
    lift = math.atan2(dr, dz) - math.acos(min(max(at_shoulder, -1.0), 1.0))
    elbow = math.pi / 2 - math.acos(min(max(at_elbow, -1.0), 1.0))
    joints: Vector = np.array([math.atan2(y, x), lift, elbow, pitch - lift - elbow, roll, gripper])
    return np.clip(joints, LOWER, UPPER, out=joints)
