"""`dzedge arm` on five Feetech servos and a Modbus gripper, each on a pty of its own; the gripper is pymodbus'."""

import asyncio
import json
import os
import re
import select
import sys
import threading
import tty
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("minimalmodbus", reason="Modbus grippers need minimalmodbus (extra [modbus])")
pytest.importorskip("pymodbus.server", reason="pymodbus is the gripper (requirements-dev.txt)")

from pymodbus.server import ModbusSerialServer
from pymodbus.simulator import DataType, SimData, SimDevice

from dzedge import cli
from dzedge.clock import NS, MonotonicClock
from dzedge.config import default_path, parse
from dzedge.control_loop import activate
from dzedge.hardware import open_arm
from dzedge.hardware.arm import StopCategory
from dzedge.hardware.sim.pty_server import PtyServer
from dzedge.hardware.sim.servo import Servo
from dzedge.hardware.sim.servo_bus import FirstOrder, ServoBus
from dzedge.hardware.slow_cycle import SlowCycle
from dzedge.kernels.tick import Request
from dzedge.mailboxes import Mailboxes

Call = Callable[..., tuple[int, dict]]
PUMP_S = 0.05


class Gripper:
    """A 2F gripper that is where it is told to be, on the tty `path`."""

    def __init__(self) -> None:
        self.ends = [os.openpty() for _ in range(2)]
        for _, slave in self.ends:
            tty.setraw(slave)
        self.path, device = (os.ttyname(slave) for _, slave in self.ends)
        self.command, self.loop, started = [0, 0, 0], asyncio.new_event_loop(), threading.Event()
        self._over = threading.Event()

        async def serve() -> None:
            blocks = [SimData(a, count=n, values=0, datatype=DataType.REGISTERS) for a, n in ((0x03E8, 3), (0x07D0, 8))]
            slave = SimDevice(9, blocks, action=self.access)
            self.server = ModbusSerialServer(slave, port=device, baudrate=115_200, reconnect_delay=0)
            await self.server.serve_forever(background=True)
            started.set()
            await self.server.serving

        self.threads = [
            threading.Thread(target=lambda: self.loop.run_until_complete(serve()), daemon=True),
            *(threading.Thread(target=self.pump, args=pair, daemon=True) for pair in ((0, 1), (1, 0))),
        ]
        for thread in self.threads:
            thread.start()
        assert started.wait(10)

    def pump(self, here: int, there: int) -> None:
        """The wire between both ends, one way."""
        source, sink = self.ends[here][0], self.ends[there][0]
        while not self._over.is_set():
            if select.select([source], [], [], PUMP_S)[0]:
                os.write(sink, os.read(source, 4096))

    async def access(
        self, function: int, start: int, address: int, count: int, registers: list[int], values: list[int] | None
    ) -> None:
        """Before each access: what was written is kept, what is read is made of it."""
        if values is not None:
            self.command = list(values)
        elif address == 0x07D0:
            active, going = self.command[0] >> 8 & 1, self.command[0] >> 11 & 1
            status, goal = active | going << 3 | (3 if active else 0) << 4 | 3 << 6, self.command[1] & 255
            registers[address - start : address - start + 3] = [status << 8, goal if going else 0, goal << 8]

    @property
    def position(self) -> float:
        return 1 - (self.command[1] & 255) / 255

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self.server.shutdown(), self.loop).result(10)
        self._over.set()
        for thread in self.threads:
            thread.join(10)
        self.loop.close()
        for pair in self.ends:
            for end in pair:
                os.close(end)


@pytest.fixture
def gripper() -> Iterator[Gripper]:
    made = Gripper()
    yield made
    made.close()


@pytest.fixture
def servos() -> list[Servo]:
    return [Servo(number, 2048) for number in range(1, 6)]


@pytest.fixture
def robot(tmp_path: Path, gripper: Gripper, servos: list[Servo]) -> Iterator[Path]:
    physics = FirstOrder(servos, speed=20000.0, tau=0.01)
    with PtyServer(ServoBus(servos, advance=physics)) as server:
        text = default_path().read_text(encoding="utf-8").replace("key = true", "key = false")
        text = text.replace('serial = "sim"', 'serial = "1"').replace("rate_hz = 100", "rate_hz = 50", 1)
        named = f'gripper = {{ driver = "modbus", port = "{gripper.path}" }}\npark = [0.0, 0.0, 0.0, 0.0, 0.1, 1.0]'
        text = text.replace('port = "sim"', f'port = "{server.path}"\n{named}')
        jaw = text[text.rindex("[[arm.joints]]") : text.index("[[cameras]]")]
        bare = re.sub("^(id|model|max_torque|closed_ticks|open_ticks) = .*\n", "", jaw, flags=re.MULTILINE)
        path = tmp_path / "robot.toml"
        path.write_text(text.replace(jaw, bare), encoding="utf-8")
        yield path


@pytest.fixture
def arm(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    def run(*arguments: object) -> tuple[int, dict]:
        monkeypatch.setattr(sys, "argv", ["dzedge", "arm", *map(str, arguments), "--json"])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return int(str(ended.value.code or 0)), json.loads(capsys.readouterr().out)

    return run


def test_both_move_are_read_parked_and_let_go(robot: Path, arm: Call, gripper: Gripper, servos: list[Servo]) -> None:
    code, document = arm("move", robot, "gripper", 0.6, "--speed", 1.0)
    assert code == 0, document
    assert gripper.position == pytest.approx(0.6, abs=0.01) and [s.get("torque_enable") for s in servos] == [1] * 5
    code, document = arm("move", robot, "elbow_flex", 0.2, "--speed", 1.0)
    assert code == 0 and document["command"]["gripper"] == pytest.approx(0.6, abs=0.01), "the gripper stays"
    code, document = arm("read", robot)
    rows = {row["joint"]: row["position"] for row in document["joints"]}
    assert code == 0
    assert (rows["elbow_flex"], rows["gripper"]) == (pytest.approx(0.2, abs=0.01), pytest.approx(0.6, abs=0.01))
    code, document = arm("park", robot, "--speed", 1.0)
    assert code == 0, document
    assert [s.get("torque_enable") for s in servos] == [0] * 5 and gripper.command[0] == 0, "reset: it lets go"


def test_a_dead_servo_does_not_keep_the_gripper(robot: Path, arm: Call, gripper: Gripper, servos: list[Servo]) -> None:
    arm("move", robot, "gripper", 0.5, "--speed", 1.0)
    servos[1].set_fault("off")
    code, document = arm("release", robot, "--yes")
    assert code == 3 and "servo 2 (shoulder_lift)" in document["message"]
    assert [s.get("torque_enable") for s in servos] == [0, 1, 0, 0, 0] and gripper.command[0] == 0


def test_the_control_tick_plays_both(robot: Path, gripper: Gripper, servos: list[Servo]) -> None:
    """The arm as `dzedge run` opens it: a slow tick, the servos' own cycle and the gripper's registers."""
    text = robot.read_text().replace("rate_hz = 50", "rate_hz = 20").replace("following_ms = 100", "following_ms = 500")
    config = parse(text.replace("bus_fault_ms = 250", "bus_fault_ms = 1000"), "robot.toml")
    clock, mailboxes = MonotonicClock(), Mailboxes(config, 8, 4)
    arm = open_arm(config, config.arm.port, clock)
    assert isinstance(arm, SlowCycle)
    try:
        tick, _ = activate(arm, config, 8, NS // 10, mailboxes, clock.now_ns, hold=False)
        mailboxes.board.request = Request.REQUEST_RUN
        mailboxes.board.set_task("reach", clock.now_ns())
        arm.run(tick, 3)
        pose = tick.command[0].copy()
        pose[[0, 5]] += 0.2, -0.4  # the gripper is open at first
        chunk = np.broadcast_to(pose, (8, 6)).astype(float)
        mailboxes.chunks.put(chunk, np.zeros(0, np.float32), 0, mailboxes.board.epoch, clock.now_ns(), NS // 10)
        arm.run(tick, 24)
        assert servos[0].get("present_position") == pytest.approx(2048 + 0.2 * 652, abs=8)
        assert gripper.position == pytest.approx(pose[5], abs=0.02) and gripper.position < 0.7
        arm.deactivate(StopCategory.STOP_THEN_OFF)
        assert [servo.get("torque_enable") for servo in servos] == [0] * 5 and gripper.command[0] == 0
    finally:
        arm.close()
        mailboxes.close()
