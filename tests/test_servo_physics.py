"""Servos without a physics engine: profiles, gravity, overload, heat, supply; both protocols."""

from itertools import pairwise

import pytest

from dzedge.clock import NS
from dzedge.hardware.sim.dynamixel_servo import VELOCITY_TICKS_S, DynamixelServo
from dzedge.hardware.sim.emulated_servo import EmulatedServo
from dzedge.hardware.sim.emulator import make_servos
from dzedge.hardware.sim.servo import Servo
from dzedge.hardware.sim.servo_physics import ServoPhysics

STEP_NS = 10_000_000


class Rig:
    """One servo, and the time."""

    def __init__(self, servo: EmulatedServo, gravity: float = 0.0) -> None:
        self.servo = servo
        self.physics = ServoPhysics([servo], [gravity])
        self.now_ns = NS
        self.physics(self.now_ns)

    def run(self, seconds: float) -> list[int]:
        """Positions, a hundred a second."""
        found = []
        for _ in range(round(seconds * 100)):
            self.now_ns += STEP_NS
            self.physics(self.now_ns)
            found.append(self.servo.get("present_position"))
        return found


@pytest.fixture(params=["feetech", "dynamixel"])
def servo(request: pytest.FixtureRequest) -> EmulatedServo:
    (made,) = make_servos(request.param, [1], [2048])
    made.set("torque_enable", 1)
    return made


def test_it_arrives_and_stays(servo: EmulatedServo) -> None:
    rig = Rig(servo)
    servo.set("goal_position", 3000)
    path = rig.run(2.0)
    assert path[-50:] == [3000] * 50 and max(path) <= 3001
    assert servo.get("moving") == 0


def test_speed_and_acceleration_registers_shape_the_motion() -> None:
    servo = Servo(1)
    servo.set("torque_enable", 1)
    servo.set("goal_speed", 500)
    servo.set("acceleration", 10)
    servo.set("goal_position", 3000)
    rig = Rig(servo)
    path = rig.run(3.0)
    speeds = [100 * (b - a) for a, b in pairwise(path)]
    assert 480 <= max(speeds) <= 600  # one tick of rounding is 100 ticks/s
    assert path[20] - 2048 == pytest.approx(0.5 * 1000 * 0.21**2, abs=8)  # from rest under 1000 ticks/s^2
    assert path[-1] == 3000 and max(path) <= 3003


def test_a_wheel_turns_and_wraps() -> None:
    wheel = DynamixelServo(1, 4000)
    wheel.set("mode", 1)
    wheel.set("torque_enable", 1)
    wheel.set("goal_velocity", 60)
    rig = Rig(wheel)
    path = rig.run(1.0)
    assert path[-1] - path[0] == pytest.approx(60 * VELOCITY_TICKS_S, rel=0.02)
    sts = Servo(1, 4000)
    sts.set("mode", 1)
    sts.set("torque_enable", 1)
    sts.set("goal_speed", -800)
    path = Rig(sts).run(6.0)
    assert min(path) >= 0 and max(path) <= 4095 and path[-1] == pytest.approx((4000 - 4800) % 4096, abs=20)


def test_a_stuck_one_stays_and_says_so_by_nothing(servo: EmulatedServo) -> None:
    rig = Rig(servo)
    servo.set_fault("stuck")
    servo.set("goal_position", 3000)
    assert set(rig.run(1.0)) == {2048} and servo.error == 0


def test_blocked_it_overloads_and_protects_itself(servo: EmulatedServo) -> None:
    rig = Rig(servo)
    servo.set_fault("stall")
    servo.set("goal_position", 2500)
    assert set(rig.run(0.9)) == {2048} and servo.error == 0 and servo.torque_share == 1.0
    rig.run(2.0)
    if isinstance(servo, Servo):
        assert servo.error == 32 and servo.torque_enabled and servo.torque_share == 0.2
        assert servo.get("present_load") == 200
    else:
        assert servo.error == 0x80 and servo.get("hardware_error") == 32 and not servo.torque_enabled
    servo.set_fault("ok")
    rig.run(0.1)
    assert servo.error != 0  # it has latched
    servo.set_fault("brownout")
    assert servo.error == 0 and not servo.torque_enabled


def test_weight_is_carried_until_it_is_too_much(servo: EmulatedServo) -> None:
    carried, dropped = Rig(servo, 0.5), Rig(make_servos("feetech", [1], [2048])[0], 0.5)
    path = carried.run(1.0)
    assert path[-1] == pytest.approx(2048 - 6, abs=1)  # a little sag
    load = servo.get("present_load" if isinstance(servo, Servo) else "present_pwm")
    assert load / (1000 if isinstance(servo, Servo) else 885) == pytest.approx(0.5, abs=0.02)
    assert dropped.run(1.0)[-1] < 1800  # without torque


def test_less_torque_than_the_weight_lets_it_go() -> None:
    servo = Servo(1)
    servo.set("torque_enable", 1)
    rig = Rig(servo, 0.5)
    rig.run(0.5)
    servo.set("torque_limit", 300)
    assert rig.run(1.0)[-1] < 1950


def test_work_heats_and_drops_the_supply() -> None:
    servo = Servo(1)
    servo.set("overload_torque", 100)
    servo.set("torque_enable", 1)
    rig = Rig(servo, 0.9)
    rig.run(0.2)
    cold, volts = servo.get("present_temperature"), servo.get("present_voltage")
    assert volts == 73  # 7.5 V less 0.9 x 0.25 V
    heats = []
    while servo.torque_enabled and len(heats) < 2000:
        rig.run(0.1)
        heats.append(servo.get("present_temperature"))
    assert cold < heats[100] < heats[-1] and heats[-1] in (70, 71)  # too hot: it lets go
    assert 400 < len(heats) < 2000
    rig.run(60.0)
    assert servo.error == 0 and servo.get("present_temperature") < 60


def test_a_suspended_machine_does_not_replay_hours() -> None:
    servo = Servo(1)
    rig = Rig(servo)
    rig.physics(rig.now_ns + 10**6 * NS)  # returns
    assert servo.get("present_position") == 2048
