"""What judges of the servo bus share: `dzedge sim` in a process of its own, and what tests ask it beside the port."""

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

SO101 = files("dzedge.robots").joinpath("so101.toml").read_text(encoding="utf-8")


class Sim:
    """A running `dzedge sim`: its port, and its own registers by the control socket."""

    def __init__(self, protocol: str, folder: Path, robot: str = SO101) -> None:
        (folder / "robot.toml").write_text(robot, encoding="utf-8")
        command = [sys.executable, "-m", "dzedge.cli", "sim", str(folder / "robot.toml")]
        command += ["--protocol", protocol, "--json"]
        paths = ["--link", str(folder / "port"), "--socket", str(folder / "socket")]
        self._child = subprocess.Popen([*command, *paths], stdout=subprocess.PIPE, text=True)
        assert self._child.stdout is not None
        self.told = json.loads(self._child.stdout.readline())
        self.protocol = protocol
        self.port = str(self.told["port"])
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(self.told["socket"])
        self._lines = self._socket.makefile("rw", encoding="utf-8")
        if protocol == "dynamixel":
            for servo in self.told["ids"]:
                self.set(servo, "return_delay", 0)

    def close(self) -> int:
        """End it as a user does; returns its exit code."""
        self._lines.close()
        self._socket.close()
        self._child.terminate()
        assert self._child.stdout is not None
        self._child.stdout.close()
        return self._child.wait(20)

    def ask(self, **request: Any) -> dict[str, Any]:
        """One request of the control socket; its answer."""
        self._lines.write(json.dumps(request) + "\n")
        self._lines.flush()
        answer: dict[str, Any] = json.loads(self._lines.readline())
        assert answer["ok"], answer
        return answer

    def get(self, servo: int, name: str) -> int:
        """A register as the servo itself has it."""
        return int(self.ask(get=name, servo=servo)["value"])

    def set(self, servo: int, name: str, value: int) -> None:
        self.ask(set=name, servo=servo, value=value)


@pytest.fixture(scope="module")
def dynamixel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sim]:
    """Six XL330 with ids 1 to 6."""
    yield from _served("dynamixel", tmp_path_factory)


@pytest.fixture(scope="module")
def feetech(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sim]:
    """Six STS3215 with ids 1 to 6."""
    yield from _served("feetech", tmp_path_factory)


@pytest.fixture
def new_servo(tmp_path: Path) -> Iterator[Sim]:
    """One XL330 as it comes out of its box: id 1, 57600 baud."""
    head, pan = SO101.split("[[arm.joints]]")[:2]
    robot = f"{head}[[arm.joints]]{pan}[[cameras]]{SO101.split('[[cameras]]')[1]}"
    for old, new in (
        ("= 1000000", "= 57600"), ("rate_hz = 100", "rate_hz = 50"), ("feetech", "dynamixel"), ("sts3215", "xl330-m288")
    ):  # fmt: skip
        robot = robot.replace(old, new)
    sim = Sim("dynamixel", tmp_path, robot)
    yield sim
    assert sim.close() == 0


def _served(protocol: str, paths: pytest.TempPathFactory) -> Iterator[Sim]:
    sim = Sim(protocol, paths.mktemp(protocol))
    yield sim
    assert sim.close() == 0
