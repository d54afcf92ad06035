"""The simulated table: an SO-101-class arm of chunky primitives and three coloured cubes, as an MJCF string.

World frame: x forward from the arm's base, y left, z up, table at z = 0, metres. Joint zero is the SO-101's
middle pose: upper arm straight up, forearm and gripper level and pointing forward; every pitch joint turns
about +y, so a positive angle leans forward and down.

Lengths follow the SO-101 (TheRobotStudio/SO-ARM100); links are 3.5 to 5 cm thick on purpose: at 96x72 pixels
a true-to-scale arm is thinner than a pixel where it matters most.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

JOINTS = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
"""Joint names in the order of every joint array; the last is the gripper, 0 closed to 1 open."""

COLOURS = ("red", "green", "blue", "yellow", "magenta", "cyan")
"""Cube colours, in the order of every cube array."""

RGB = np.array(
    [
        [0.88, 0.08, 0.08], [0.05, 0.65, 0.10], [0.08, 0.18, 0.90],
        [0.95, 0.85, 0.05], [0.88, 0.08, 0.80], [0.05, 0.80, 0.85],
    ]
)  # fmt: skip
"""Colour of each cube. Shape (6, 3), linear, 0..1."""

SHOULDER_X, SHOULDER_Z = 0.03, 0.12
UPPER_ARM, FOREARM, HAND = 0.116, 0.135, 0.16
CUBE = 0.04
"""Edge of a cube [m]."""
CUBES_PER_SCENE = 3
TIMESTEP = 0.002
"""Physics step [s]."""

LOWER = np.array([-1.92, -1.75, -1.69, -1.66, -2.74, 0.0])
UPPER = np.array([1.92, 1.75, 1.69, 1.66, 2.84, 1.0])
"""Joint limits. Shape (6,), [rad]; gripper 0..1."""

CUBE_RADII = (0.17, 0.29)
CUBE_ANGLE = 0.75
"""Cubes lie in this ring sector in front of the arm: radius [m], angle from straight ahead [rad]."""
CUBE_SPACING = 0.08
"""Least distance between two cubes' centres [m]."""

VIEW_SHIFT, VIEW_TURN = 0.006, 0.007
"""How far the camera may stand from its place, along each axis [m], and look aside, about each axis [rad]: as
far as a camera on a desk stand wanders from day to day."""

STIFFNESS, SERVO_DAMPING = 40.0, 1.6
"""Servo stiffness [N m/rad] and damping [N m s/rad]: with the armature about 35 rad/s and critically damped,
so that a servo trails its goal by some 50 ms, as a loaded STS3215 does."""
STALL_TORQUE = 1.9
"""STS3215 at 7.4 V [N m]."""
GEAR_FRICTION, GEAR_DAMPING = 0.4, 1.5
"""What an unpowered servo's gear train resists with [N m], [N m s/rad]: it holds the arm at home, not
stretched."""

ARM_GROUP, HIDDEN = 1, 5
"""Groups of geometry: the arm's; and what is not drawn."""
_JOINT = 'armature="0.028" damping="0.5"'
_ARM = f'contype="1" conaffinity="0" group="{ARM_GROUP}"'
_LIGHT, _DARK, _TIP = "0.90 0.90 0.92", "0.20 0.21 0.24", "1.0 0.45 0.0"


def _joint(index: int, axis: str) -> str:
    return (
        f'<joint name="{JOINTS[index]}" type="hinge" axis="{axis}" {_JOINT} limited="true" '
        f'range="{LOWER[index]} {UPPER[index]}"/>'
    )


def _geom(kind: str, size: str, mass: float, rgba: str, where: str) -> str:
    return f'<geom type="{kind}" size="{size}" mass="{mass}" rgba="{rgba} 1" {where} {_ARM}/>'


def _arm_body() -> str:
    across = 'euler="1.5708 0 0"'
    return f"""
    <body name="turret" pos="0 0 0.065">{_joint(0, "0 0 1")}
      {_geom("cylinder", "0.034 0.020", 0.12, _LIGHT, 'pos="0 0 0.015"')}
      {_geom("box", "0.026 0.030 0.022", 0.06, _DARK, 'pos="0.022 0 0.045"')}
      <body name="upper_arm" pos="{SHOULDER_X} 0 {SHOULDER_Z - 0.065}">{_joint(1, "0 1 0")}
        {_geom("capsule", "0.021", 0.11, _LIGHT, f'fromto="0 0 0.012 0 0 {UPPER_ARM - 0.012}"')}
        <body name="forearm" pos="0 0 {UPPER_ARM}">{_joint(2, "0 1 0")}
          {_geom("cylinder", "0.024 0.026", 0.05, _DARK, across)}
          {_geom("capsule", "0.019", 0.08, _LIGHT, f'fromto="0.015 0 0 {FOREARM - 0.012} 0 0"')}
          <body name="wrist" pos="{FOREARM} 0 0">{_joint(3, "0 1 0")}
            {_geom("cylinder", "0.021 0.023", 0.05, _DARK, across)}
            {_geom("capsule", "0.018", 0.03, _LIGHT, 'fromto="0.01 0 0 0.045 0 0"')}
            <body name="hand" pos="0.05 0 0">{_joint(4, "1 0 0")}
              {_geom("box", "0.020 0.025 0.019", 0.06, _DARK, 'pos="0.024 0 0"')}
              {_geom("capsule", "0.0125", 0.015, _TIP, 'fromto="0.045 -0.0125 0 0.0975 -0.0125 0"')}
              <body name="jaw" pos="0.040 0.0125 0">{_joint(5, "0 0 1")}
                {_geom("capsule", "0.0125", 0.015, _TIP, 'fromto="0.005 0 0 0.0575 0 0"')}
              </body>
            </body>
          </body>
        </body>
      </body>
    </body>"""


def _cube_body(index: int) -> str:
    return f"""
    <body name="cube{index}" pos="{0.2 + 0.1 * index} 0 {CUBE / 2}">
      <freejoint name="cube{index}"/>
      <geom name="cube{index}" type="box" size="{CUBE / 2} {CUBE / 2} {CUBE / 2}" mass="0.04" contype="2"
            conaffinity="3" group="2" friction="0.9 0.01 0.001"/>
    </body>"""


def mjcf(cubes: int = CUBES_PER_SCENE, more: str = "") -> str:
    """The scene as MJCF. Cubes are numbered: which colour each has is the world's to say at its reset. more: further
    bodies.

    The arm does not collide with itself; servos are position actuators whose damping the implicit integrator
    takes in: an explicit one diverges at this stiffness.
    """
    servos = "".join(
        f'<position name="{name}" joint="{name}" kp="{STIFFNESS}" kv="{SERVO_DAMPING}" '
        f'forcerange="{-STALL_TORQUE} {STALL_TORQUE}"/>'
        for name in JOINTS
    )
    return f"""
<mujoco model="dzedge table">
  <compiler angle="radian"/>
  <option timestep="{TIMESTEP}" integrator="implicitfast" cone="pyramidal" iterations="20"
          ls_iterations="10"/>
  <size memory="2M"/>
  <worldbody>
    <geom name="table" type="plane" size="0 0 1" contype="2" conaffinity="3" friction="0.9 0.01 0.001"
          rgba="0.56 0.54 0.52 1"/>
    <geom name="base" type="box" size="0.055 0.045 0.0225" pos="-0.02 0 0.0225" rgba="{_DARK} 1" {_ARM}/>
    <geom name="pedestal" type="cylinder" size="0.036 0.010" pos="0 0 0.055" rgba="{_DARK} 1" {_ARM}/>
    {_arm_body()}
    {"".join(_cube_body(i) for i in range(cubes))}{more}
  </worldbody>
  <actuator>{servos}</actuator>
</mujoco>"""


@dataclass(frozen=True, slots=True)
class Layout:
    """What a seed decides: which cubes lie where, and how the light falls.

    colours: index into COLOURS of each of the scene's cubes; places: Shape (cubes, 3), x, y [m] and yaw
    [rad]; light: Shape (3,), unit vector from the table to the light; ambient, diffuse: shares of brightness;
    tint: Shape (3,), the camera's white balance; view: Shape (6,), the camera's shift along the world's axes [m]
    and its turn about them [rad].
    """

    colours: tuple[int, ...]
    places: NDArray[np.float64]
    light: NDArray[np.float64]
    ambient: float
    diffuse: float
    tint: NDArray[np.float64]
    view: NDArray[np.float64]


def draw_layout(seed: int, cubes: int = CUBES_PER_SCENE, tip: NDArray[np.float64] | None = None) -> Layout:
    """The layout of a seed: the same for the same seed.

    tip: Shape (3,), [m]; where it is low over the table, cubes keep clear of it, so that none appears inside
    the hand.
    """
    rng = np.random.Generator(np.random.Philox(key=[seed, 0x5CE2E]))
    colours = tuple(int(c) for c in rng.permutation(len(COLOURS))[:cubes])
    taken = [] if tip is None or tip[2] > 2.0 * CUBE else [(float(tip[0]), float(tip[1]), 0.0)]
    places = _draw_places(rng, cubes, taken)
    azimuth, tilt = rng.uniform(0.0, 2.0 * np.pi), rng.uniform(0.25, 0.75)
    light = np.array([np.sin(tilt) * np.cos(azimuth), np.sin(tilt) * np.sin(azimuth), np.cos(tilt)])
    diffuse = rng.uniform(0.50, 0.68)
    ambient = rng.uniform(0.36, 0.48)
    tint = rng.uniform(0.96, 1.04, 3)
    view = rng.uniform(-1.0, 1.0, 6) * np.repeat((VIEW_SHIFT, VIEW_TURN), 3)
    return Layout(colours, places, light, ambient, diffuse, tint, view)


def _draw_places(
    rng: np.random.Generator, cubes: int, taken: list[tuple[float, float, float]]
) -> NDArray[np.float64]:
    """Rejection sampling; a set that has no room left for the next cube is thrown away whole."""
    while True:
        places = list(taken)
        for _ in range(40):
            radius = np.sqrt(rng.uniform(CUBE_RADII[0] ** 2, CUBE_RADII[1] ** 2))
            angle, yaw = rng.uniform(-CUBE_ANGLE, CUBE_ANGLE), rng.uniform(-np.pi / 4, np.pi / 4)
            x, y = radius * np.cos(angle), radius * np.sin(angle)
            if all((x - u) ** 2 + (y - v) ** 2 > CUBE_SPACING**2 for u, v, _ in places):
                places.append((x, y, yaw))
            if len(places) == len(taken) + cubes:
                return np.array(places[len(taken) :])
