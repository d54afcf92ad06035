"""The control tick drives the Koch of robots/koch.toml on an emulated Dynamixel bus in memory."""

import numpy as np
import pytest

from dzedge.clock import FakeClock
from dzedge.config import default_path, load
from dzedge.control_loop import activate
from dzedge.errors import BusError
from dzedge.hardware import open_arm
from dzedge.hardware.arm import StopCategory
from dzedge.hardware.sim.dynamixel_line import DynamixelLine
from dzedge.hardware.sim.dynamixel_servo import DynamixelServo
from dzedge.hardware.sim.memory_port import MemoryPort
from dzedge.hardware.sim.servo_physics import ServoPhysics
from dzedge.kernels.bus_dynamixel import DynamixelCycle
from dzedge.kernels.tick import Request, State
from dzedge.mailboxes import Mailboxes

MS = 1_000_000
H, DT, PERIOD = 8, 100 * MS, 10 * MS


class Koch:
    """A tick and its servos; time moves a period a step."""

    def __init__(self) -> None:
        self.config = load(default_path().with_name("koch.toml"))
        joints = self.config.arm.joints
        self.clock = FakeClock()
        self.mailboxes = Mailboxes(self.config, H, 4)
        self.start = np.array([(joint.lower + joint.upper) / 2 for joint in joints])
        self.servos = [
            DynamixelServo(joint.id, round(joint.zero + q / joint.scale), model=joint.model)
            for joint, q in zip(joints, self.start, strict=True)
        ]
        self.bus = DynamixelLine(self.servos, advance=ServoPhysics(self.servos))
        self.arm = open_arm(self.config, MemoryPort(self.bus, self.clock), self.clock)
        self.tick, self.cycle = activate(self.arm, self.config, H, DT, self.mailboxes, self.clock.now_ns, hold=False)
        self.mailboxes.board.request = Request.REQUEST_RUN
        self.mailboxes.board.set_task("reach", self.clock.now_ns())
        self.wire: list[bytes] = []

    def step(self, count: int = 1) -> int:
        state = self.tick.state
        for _ in range(count):
            self.clock.advance_to_ns(self.clock.now_ns() + PERIOD)
            request = self.tick.request(self.clock.now_ns())
            due_ns = self.clock.now_ns() + self.cycle.budget_ns
            replies = self.bus.feed(request, self.clock.now_ns())
            self.wire += [request, b"".join(data for ready_ns, data in replies if ready_ns <= due_ns)]
            state = self.tick.reply(self.wire[-1], self.clock.now_ns())
        return state

    def send(self, target: np.ndarray, number: int = 0) -> None:
        positions = np.broadcast_to(target, (H, len(self.start)))
        board = self.mailboxes.board
        empty = np.zeros(0, np.float32)
        self.mailboxes.chunks.put(positions, empty, number, board.epoch, self.clock.now_ns(), DT)

    def reach(self) -> np.ndarray:
        """Move the first joint by 0.3 rad; where all stand then."""
        target = self.start.copy()
        target[0] += 0.3
        for number in range(12):
            self.send(target, number)
            self.step(10)
        return np.asarray(self.cycle.positions).copy()


@pytest.fixture
def koch():
    made = Koch()
    yield made
    made.mailboxes.close()


def test_it_is_held_then_follows_a_chunk(koch: Koch) -> None:
    assert isinstance(koch.cycle, DynamixelCycle)
    assert koch.step(20) == State.ARMED
    np.testing.assert_allclose(koch.cycle.positions, koch.start, atol=0.002)
    there = koch.reach()
    assert there[0] == pytest.approx(koch.start[0] + 0.3, abs=0.02)
    np.testing.assert_allclose(there[1:], koch.start[1:], atol=0.01)
    assert list(koch.cycle.counters[1:]) == [0] * 9


def test_the_same_bytes_again_and_others_for_another_pose(koch: Koch) -> None:
    koch.step(3)
    koch.reach()
    again, other = Koch(), Koch()
    try:
        again.step(3)
        again.reach()
        other.step(3)
        other.start[0] += 0.01
        other.reach()
        assert again.wire == koch.wire != other.wire
    finally:
        again.mailboxes.close()
        other.mailboxes.close()


def test_a_silent_bus_is_a_fault_and_the_servos_stop_by_themselves(koch: Koch) -> None:
    koch.step(3)
    koch.bus.set_fault("line", "off")
    assert koch.step(60) == State.FAULT
    koch.bus.set_fault("line", "ok")
    koch.step(2)
    assert [servo.get("bus_watchdog") for servo in koch.servos] == [-1] * len(koch.servos)
    assert all(servo.get("torque_enable") for servo in koch.servos)


@pytest.mark.parametrize("dead", [1, 4, 6])
def test_torque_off_reaches_all_others(koch: Koch, dead: int) -> None:
    koch.step(3)
    koch.bus.set_fault(str(dead), "off")
    koch.step(20)
    with pytest.raises(BusError, match=f"servo {dead}"):
        koch.arm.deactivate(StopCategory.OFF)
    assert all(servo.get("torque_enable") == 0 for servo in koch.servos if servo.id != dead)
