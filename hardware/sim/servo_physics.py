"""What turns emulated servos where there is no physics engine: profiles, gravity, load, heat, supply.

Each servo by itself, in closed form a step: a reference that obeys the speed and acceleration registers, and a joint
that follows it, sags under its load and stops where something blocks it.
"""

import math
from collections.abc import Sequence

from dzedge.clock import NS
from dzedge.hardware.sim.emulated_servo import EmulatedServo

FREE_SPEED = 3000.0
"""Of an unlimited servo [ticks/s]: an STS3215's 45 rpm."""
FREE_ACCELERATION = 200_000.0
"""Of an unlimited servo [ticks/s^2]."""
FOLLOW_S = 0.01
"""Time constant with which a joint follows its reference."""
SAG_TICKS = 12.0
"""How far a joint hangs behind its goal at stall torque: a servo without integral gain."""
GRIP_TICKS = 100.0
"""Distance from goal at which a blocked servo gives all it may."""
INERTIA = 0.1 / FREE_ACCELERATION
"""Share of stall torque per acceleration [s^2/tick]."""
GEAR_FRICTION = 0.15
"""Share of stall torque that holds a joint without power."""
FALL_SPEED = 1500.0
"""Of a joint that nothing holds, at full load [ticks/s]."""
STEP_NS = 10_000_000
LONGEST_NS = NS
"""Time that is made up for at most."""
SAG_V, ROOM_C, HEATING_C, HEATING_S = 0.25, 30.0, 60.0, 60.0
"""Drop of the supply [V] at one servo's stall torque; room and rise at stall torque [deg C], and its time constant."""
HALF_TURN = 2048


class ServoPhysics:
    """Use as `ServoBus(servos, advance=ServoPhysics(servos))`.

    gravity: share of stall torque that the arm's weight asks of each servo at horizontal, which is its encoder's
    middle; none: nothing hangs on them. supply_v: offset from what the servos are meant for [V].
    """

    def __init__(self, servos: Sequence[EmulatedServo], gravity: Sequence[float] = (), supply_v: float = 0.0) -> None:
        self.servos = list(servos)
        self.gravity = [*gravity, *[0.0] * (len(self.servos) - len(gravity))]
        self.supply_v = supply_v
        self.positions = [float(servo.encoder) for servo in self.servos]
        self._references = list(self.positions)
        self._speeds = [0.0] * len(self.servos)
        self._driven = [False] * len(self.servos)
        self._heat = [0.0] * len(self.servos)
        self._now_ns = 0

    def __call__(self, now_ns: int) -> None:
        """Step to now_ns."""
        if self._now_ns == 0:
            self._now_ns = now_ns
        self._now_ns = max(self._now_ns, now_ns - LONGEST_NS)
        while self._now_ns < now_ns:
            step_ns = min(now_ns - self._now_ns, STEP_NS)
            self._now_ns += step_ns
            self._step(step_ns / NS)

    def _step(self, dt: float) -> None:
        loads, speeds = [], []
        for i, servo in enumerate(self.servos):
            servo.elapse(self._now_ns)
            if servo.pushed is not None:
                self.positions[i], servo.pushed = servo.pushed, None
            driven = servo.torque_enabled
            if driven and not self._driven[i]:
                self._references[i], self._speeds[i] = self.positions[i], 0.0
            self._driven[i] = driven
            before = self.positions[i]
            loads.append(self._drive(i, servo, dt) if driven else self._fall(i, servo, dt))
            speeds.append((self.positions[i] - before) / dt)
        sag = self.supply_v - SAG_V * sum(map(abs, loads))
        for i, servo in enumerate(self.servos):
            self._heat[i] += (HEATING_C * loads[i] ** 2 - self._heat[i]) * min(dt / HEATING_S, 1.0)
            heat = ROOM_C + self._heat[i]
            servo.set_present(self.positions[i], speeds[i], loads[i], servo.supply_v + sag, heat)
            servo.protect(dt)

    def _weight(self, i: int) -> float:
        """Share of stall torque that pulls the joint down; positive against growing ticks."""
        if self.gravity[i] == 0.0:
            return 0.0
        return self.gravity[i] * math.cos((self.positions[i] - HALF_TURN) * math.pi / HALF_TURN)

    def _drive(self, i: int, servo: EmulatedServo, dt: float) -> float:
        """Move a driven joint; returns the share of stall torque that it gives, -1..1."""
        limit, weight = servo.torque_share, self._weight(i)
        acceleration = self._follow_profile(i, servo, dt)
        if servo.blocked:
            push = (self._references[i] - self.positions[i]) / GRIP_TICKS
            return min(max(push, -limit), limit)
        asked = weight + INERTIA * acceleration
        given = min(max(asked, -limit), limit)
        if abs(asked) > limit + 1e-9:  # too weak: the load takes the joint along
            self.positions[i] -= (asked - given) * FALL_SPEED * dt
            self._references[i], self._speeds[i] = self.positions[i], 0.0
            return given
        rest = self._references[i] - SAG_TICKS * weight
        self.positions[i] += (rest - self.positions[i]) * dt / (FOLLOW_S + dt)
        return given

    def _follow_profile(self, i: int, servo: EmulatedServo, dt: float) -> float:
        """Advance the reference by one step; returns its acceleration [ticks/s^2]."""
        fastest = min(servo.goal_speed or FREE_SPEED, FREE_SPEED)
        hardest = min(servo.acceleration or FREE_ACCELERATION, FREE_ACCELERATION)
        wheel = servo.wheel_speed
        if wheel is not None:
            wanted = min(max(wheel, -FREE_SPEED), FREE_SPEED)
        else:
            error = servo.goal_ticks - self._references[i]
            # the last step is short enough to end on the goal
            bound = min(fastest, math.sqrt(2.0 * hardest * abs(error)), abs(error) / dt)
            wanted = math.copysign(bound, error)
        before = self._speeds[i]
        change = hardest * dt
        self._speeds[i] = min(max(wanted, before - change), before + change)
        self._references[i] += self._speeds[i] * dt
        return (self._speeds[i] - before) / dt

    def _fall(self, i: int, servo: EmulatedServo, dt: float) -> float:
        """A joint without torque: its gear holds a little, the rest of its weight takes it down."""
        weight = self._weight(i)
        pulled = max(abs(weight) - GEAR_FRICTION, 0.0)
        if not servo.blocked:
            self.positions[i] -= math.copysign(pulled, weight) * FALL_SPEED * dt
        return 0.0
