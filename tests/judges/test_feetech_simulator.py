"""Our Feetech driver on a bus that others wrote: feetech-cli 0.1.8's simulator, bridged to a pty."""

import os
import select
import threading
import tty
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest

from dzedge.clock import NS, MonotonicClock
from dzedge.config import default_path, load
from dzedge.errors import BusError
from dzedge.hardware.arm import StopCategory
from dzedge.hardware.feetech import FeetechArm
from dzedge.kernels import codec

pytestmark = pytest.mark.skipif(find_spec("feetech_cli") is None, reason="feetech-cli is in .venv-dev")
ROBOT = load(default_path())
IDS = [joint.id for joint in ROBOT.arm.joints]
CLOCK = MonotonicClock()


class Bridge:
    """Their bus behind a pty: whole requests in, its answers out."""

    def __init__(self, bus: Any) -> None:
        self.bus = bus
        self._master, self._slave = os.openpty()
        tty.setraw(self._slave)
        self.path = os.ttyname(self._slave)
        self._end, self._stop = os.pipe()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        pending, found = bytearray(), np.zeros(5, np.int32)
        while self._end not in (ready := select.select([self._master, self._end], [], [])[0]):
            pending += os.read(ready[0], 4096)
            done = 0
            while codec.scan(pending, done, len(pending), 259, False, found):
                at, length, done = (int(value) for value in found[:3])
                self.bus.write(bytes(pending[at : at + length]))
                os.write(self._master, self.bus.read(4096))
            del pending[: int(found[2])]

    def close(self) -> None:
        os.write(self._stop, b"x")
        self._thread.join()
        for descriptor in (self._master, self._slave, self._end, self._stop):
            os.close(descriptor)


@pytest.fixture(params=[False, True], ids=["plain", "echo"])
def rig(request: pytest.FixtureRequest) -> Iterator[tuple[Any, FeetechArm]]:
    """Their bus, and our arm on it, open."""
    simulator = pytest.importorskip("feetech_cli.simulator")
    servos = [simulator.SimulatedServo(i) for i in IDS]
    gripper = ROBOT.arm.joints[-1]
    servos[-1].raw_position = (gripper.zero + (gripper.open_ticks or 0)) // 2
    servos[-1]._settle()
    bus = simulator.SimulatedBus(servos, echo=request.param)
    bridge = Bridge(bus)
    arm = FeetechArm(ROBOT.arm, bridge.path, voltage=(9.5, 13.0))
    arm.open()
    assert arm.bus.echo is request.param
    yield bus, arm
    arm.close()
    bridge.close()


def torques(bus: Any) -> list[int]:
    return [servo.get("torque_enable") for servo in bus.servos]


def test_from_configure_to_deactivate(rig: tuple[Any, FeetechArm]) -> None:
    bus, arm = rig
    arm.configure()
    assert torques(bus) == [0] * 6 and not any(servo.rejected_writes for servo in bus.servos)
    assert all(servo.locked for servo in bus.servos)
    pose = arm.activate()
    assert torques(bus) == [1] * 6
    plan = arm.plan()
    cycle = plan.build()
    cycle.seed(arm.goal_ticks, CLOCK.now_ns())
    command = pose.positions.copy()
    for _ in range(100):
        now_ns = CLOCK.now_ns()
        command[0] += 0.002
        assert cycle.compose(command, now_ns) == 0
        assert cycle.cycle(arm.fd, now_ns + NS // 5) == 0
        assert list(cycle.goals) == [servo.get("goal_position") for servo in bus.servos]
        CLOCK.sleep_until_ns(now_ns + NS // 500)
    assert bus.servos[0].get("present_position") == round(2048 + 0.2 * 2048 / np.pi)
    np.testing.assert_allclose(arm.read().positions, command, atol=0.002)
    arm.deactivate(StopCategory.OFF)
    assert torques(bus) == [0] * 6


def test_a_servo_that_is_gone(rig: tuple[Any, FeetechArm]) -> None:
    bus, arm = rig
    arm.configure()
    arm.activate()
    (gone,) = (servo for servo in bus.servos if servo.servo_id == 3)
    bus.servos.remove(gone)
    with pytest.raises(BusError, match="servo 3"):
        arm.deactivate(StopCategory.OFF)
    assert torques(bus) == [0] * 5 and gone.get("torque_enable") == 1


def test_a_lock_is_opened_for_what_differs_and_closed_again(rig: tuple[Any, FeetechArm]) -> None:
    bus, arm = rig
    bus.servos[1].memory[7] = 100  # return delay; theirs has no name for it
    arm.configure()
    assert bus.servos[1].memory[7] == 0 and bus.servos[1].locked
    written = len(bus.tx_log)
    arm.configure()
    writes = [packet for packet in bus.tx_log[written:] if packet[4] == codec.WRITE]
    assert writes == []  # nothing differs now, and EEPROM wears


def test_alerts_are_told(rig: tuple[Any, FeetechArm]) -> None:
    bus, arm = rig
    arm.configure()
    bus.servos[4].error = 32
    with pytest.raises(Exception, match="overloaded"):
        arm.activate()
    assert torques(bus) == [0] * 6
