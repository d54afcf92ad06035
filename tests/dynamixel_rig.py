"""A Koch-like arm on an emulated Dynamixel bus in memory, for tests: two XL430, four XL330, the last a gripper."""

import numpy as np

from dzedge.clock import NS
from dzedge.config import Arm, Joint
from dzedge.hardware.dynamixel import DynamixelArm
from dzedge.hardware.sim.dynamixel_line import DynamixelLine
from dzedge.hardware.sim.dynamixel_servo import DynamixelServo
from dzedge.hardware.sim.memory_port import MemoryPort
from dzedge.hardware.sim.servo_physics import ServoPhysics

MODELS = ["xl430-w250", "xl430-w250", "xl330-m288", "xl330-m288", "xl330-m288", "xl330-m077"]
COUNT = len(MODELS)
HOME = 2048
MS = NS // 1000


class ManualClock:
    """A clock that only moves when it is waited on."""

    def __init__(self) -> None:
        self.time_ns = 5 * NS

    def now_ns(self) -> int:
        return self.time_ns

    def sleep_until_ns(self, deadline_ns: int) -> None:
        self.time_ns = max(self.time_ns, deadline_ns)


def joint(number: int, **changes) -> Joint:
    settings = {
        "name": f"j{number}", "id": number + 1, "model": MODELS[number], "lower": -1.5, "upper": 1.5, "velocity": 2.5,
        "acceleration": 12.0, "jerk": 200.0, "max_torque": 1.0,
    }  # fmt: skip
    if number == COUNT - 1:
        settings |= {"kind": "gripper", "lower": 0.0, "upper": 1.0, "closed_ticks": 2000, "open_ticks": 3000}
        settings |= {"max_torque": 0.4}
    else:
        settings |= {"zero_ticks": HOME, "direction": 1 if number % 2 == 0 else -1}
    return Joint(**(settings | changes))


def table(joints: list[Joint] | None = None, **changes) -> Arm:
    joints = [joint(number) for number in range(COUNT)] if joints is None else joints
    settings = {"driver": "dynamixel", "port": "/dev/none", "baud": 1_000_000, "rate_hz": 100, "joints": tuple(joints)}
    return Arm(**(settings | changes))


class Rig:
    """An arm and its emulated bus, with one time. shadow: a second servo 11 for the first joint."""

    def __init__(self, *, joints: list[Joint] | None = None, line: dict | None = None, calibration=None, **options):
        self.clock = ManualClock()
        self.table = table(joints, calibration=calibration)
        self.servos = [DynamixelServo(j.id, HOME, model=j.model) for j in self.table.joints]
        for j in self.table.joints:
            if j.shadow_id is not None:
                self.servos.append(DynamixelServo(j.shadow_id, HOME, model=j.model))
        self.bus = DynamixelLine(self.servos, advance=ServoPhysics(self.servos), **(line or {}))
        self.port = MemoryPort(self.bus, self.clock)
        self.arm = DynamixelArm(self.table, self.port, clock=self.clock, **options)

    def __getitem__(self, servo: int) -> DynamixelServo:
        return next(found for found in self.servos if found.id == servo)

    def torque(self) -> list[int]:
        return [servo.get("torque_enable") for servo in self.servos]

    def configured(self) -> "Rig":
        self.arm.open()
        self.arm.configure()
        return self

    def active(self) -> "Rig":
        self.configured()
        self.arm.activate()
        self.cycle = self.arm.plan().build()
        self.cycle.seed(self.arm.goal_ticks, self.clock.now_ns())
        return self

    def run(self, command: np.ndarray | None = None, period_ns: int = 10 * MS) -> int:
        """One cycle of the control tick; a refusal is returned, but the cycle runs."""
        self.clock.time_ns += period_ns
        now_ns = self.clock.now_ns()
        refused = 0 if command is None else self.cycle.compose(command, now_ns)
        self.sent = self.cycle.request(now_ns)
        self.heard = b""
        for ready_ns, reply in self.bus.feed(self.sent, now_ns):
            if ready_ns <= now_ns + self.cycle.budget_ns:
                self.heard += reply
                self.cycle.feed(reply)
        return refused or self.cycle.finish()
