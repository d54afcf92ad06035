"""The simulated robot behind its bus: bytes in, bytes out, driven by time alone."""

import math

import numpy as np
import pytest

from dzedge.clock import NS
from dzedge.hardware.sim.process import SimulatedRobot
from dzedge.hardware.sim.world import HOME

ZERO = (2048,) * 6
SCALE = (2 * math.pi / 4096,) * 5 + (1.0 / (3186 - 2048),)


@pytest.fixture
def robot() -> SimulatedRobot:
    return SimulatedRobot(3, ZERO, SCALE, now_ns=NS)


def _write(robot: SimulatedRobot, joint: int, ticks: int) -> None:
    robot.servos[joint].write(42, ticks.to_bytes(2, "little"))


def _frame(servo: int, instruction: int, *parameters: int) -> bytes:
    body = bytes([servo, len(parameters) + 2, instruction, *parameters])
    return b"\xff\xff" + body + bytes([~sum(body) & 0xFF])


def test_servos_stand_where_the_arm_is(robot: SimulatedRobot) -> None:
    for joint, servo in enumerate(robot.servos):
        assert servo.get("present_position") == round(HOME[joint] / SCALE[joint] + ZERO[joint])
        assert servo.get("torque_enable") == 0


def test_a_goal_over_the_bus_moves_the_joint_and_answers_show_it(robot: SimulatedRobot) -> None:
    goal = 2048 + 300
    robot.bus.feed(_frame(1, 0x03, 42, goal & 255, goal >> 8), NS)
    robot.step_to(2 * NS)
    assert robot.world.joints()[0] == pytest.approx(300 * SCALE[0], abs=0.01)
    replies = robot.bus.feed(_frame(1, 0x02, 56, 2), 2 * NS + 10_000_000)
    answer = b"".join(data for _, data in replies)
    assert abs(int.from_bytes(answer[5:7], "little") - goal) < 8


def test_goal_speed_register_limits(robot: SimulatedRobot) -> None:
    robot.servos[0].set("goal_speed", 200)
    _write(robot, 0, 2048 + 1000)
    robot.step_to(2 * NS)
    assert robot.world.joints()[0] == pytest.approx(200 * SCALE[0], abs=0.05)


def test_direction_and_gripper_scale() -> None:
    scale = (-SCALE[0], *SCALE[1:])
    robot = SimulatedRobot(3, ZERO, scale, now_ns=0)
    _write(robot, 0, 2048 + 200)
    _write(robot, 5, 3186)
    robot.step_to(NS)
    assert robot.world.joints()[0] == pytest.approx(-200 * SCALE[0], abs=0.01)
    assert robot.world.joints()[5] == pytest.approx(1.0, abs=0.02)
    assert robot.servos[5].get("present_position") == pytest.approx(3186, abs=20)


def test_without_torque_nothing_moves(robot: SimulatedRobot) -> None:
    robot.step_to(3 * NS)
    assert np.abs(robot.world.joints() - HOME).max() < 0.03


def test_a_stuck_servo_stays(robot: SimulatedRobot) -> None:
    robot.bus.set_fault("1", "stuck")
    _write(robot, 0, 2500)
    robot.step_to(2 * NS)
    assert abs(robot.world.joints()[0] - HOME[0]) < 0.01


def _story(seed: int, chop_ns: int) -> bytes:
    robot = SimulatedRobot(seed, ZERO, SCALE, now_ns=NS)
    _write(robot, 0, 2300)
    _write(robot, 1, 2100)
    for now_ns in range(NS, NS + 300_000_001, chop_ns):
        robot.step_to(now_ns)
    rgb, _ = robot.render(NS + 300_000_000)
    return robot.world.fingerprint() + rgb.tobytes()


def test_bit_equal_however_time_is_cut_and_another_seed_differs() -> None:
    first = _story(3, 10_000_000)
    assert _story(3, 10_000_000) == first
    assert _story(3, 4_000_000) == first
    assert _story(4, 10_000_000) != first


def test_time_never_runs_back(robot: SimulatedRobot) -> None:
    robot.step_to(2 * NS)
    before = robot.world.fingerprint()
    robot.step_to(NS)
    assert robot.world.fingerprint() == before


def test_a_suspended_simulator_does_not_chase_hours(robot: SimulatedRobot) -> None:
    robot.step_to(3600 * NS)
    assert robot.world.time <= 2.01
    robot.step_to(3600 * NS + 10_000_000)
    assert robot.world.time == pytest.approx(2.01)


def test_supply_and_temperature_are_plausible(robot: SimulatedRobot) -> None:
    _write(robot, 1, 2600)
    robot.step_to(2 * NS)
    assert 65 <= robot.servos[1].get("present_voltage") <= 75
    assert 27 <= robot.servos[1].get("present_temperature") <= 40


def test_tasks_and_scenes(robot: SimulatedRobot) -> None:
    words = robot.default_instruction(3)
    assert robot.assign(words)
    assert robot.judge is not None
    assert not robot.assign("make coffee")
    assert robot.judge is None
    before = robot.world.joints()
    robot.rearrange(4)
    assert np.array_equal(robot.world.joints(), before)
    assert robot.default_instruction(4).startswith("reach the ")


def test_render_draws_the_moment_it_is_asked_for(robot: SimulatedRobot) -> None:
    _write(robot, 0, 2600)
    robot.bus.feed(b"", NS)
    first, _ = robot.render(NS)
    later, _ = robot.render(NS + 8 * NS // 15 + 1)  # eight frames on: the same noise
    assert np.abs(first.astype(int) - later).max() > 50
