"""An arm behind a microcontroller in real time, the reference sketch's core on a pty: the control process alone, and
`dzedge run` whole, its camera a recording."""

import contextlib
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import tty
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from dzedge import bundle, cli, packing, stage
from dzedge.clock import NS, MonotonicClock
from dzedge.config import RobotConfig, default_path, load, parse
from dzedge.hardware import make_arm
from dzedge.hardware.mcu import McuArm
from dzedge.hardware.slow_cycle import SlowCycle
from dzedge.kernels.tick import Request, State
from dzedge.mailboxes import Mailboxes

ROOT = Path(__file__).resolve().parents[1]
SKETCH = ROOT / "hardware" / "sketches" / "dzedge_mcu"
PATIENCE_S = 30.0
H, DT = 8, NS // 10
START = [0.25, -0.5, 0.5]
JOINTS = """
[arm]
driver = "mcu"
port = "{port}"
baud = 115200
rate_hz = 50
hold_ms = 500
off_ms = 5000

[[arm.joints]]
name = "pan"
lower = -1.5
upper = 1.5
velocity = 1.0
acceleration = 5.0
jerk = 100.0

[[arm.joints]]
name = "lift"
lower = -1.0
upper = 1.0
velocity = 1.0
acceleration = 5.0
jerk = 100.0

[[arm.joints]]
name = "gripper"
kind = "gripper"
lower = 0.0
upper = 1.0
velocity = 1.0
acceleration = 5.0
jerk = 100.0

"""
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler (g++) to build the core with"),
]


def robot_text(port: str) -> str:
    """The simulated robot's file with another arm and a real camera, which no control process asks for."""
    text = default_path().read_text(encoding="utf-8").replace("key = true", "key = false")
    text = text.replace('serial = "sim"', 'serial = "1"').replace("following_ms = 100", "following_ms = 500")
    before, _, rest = text.partition("[arm]")
    return before + JOINTS.format(port=port) + rest[rest.index("[[cameras]]") :]


def robot(port: str) -> RobotConfig:
    return parse(robot_text(port), "mcu.toml")


class Device:
    """The compiled core on a pty; its clock is kept with ours. torque: what its joints were told, in order."""

    def __init__(self, program: Path) -> None:
        self.master, self.slave = os.openpty()
        tty.setraw(self.slave)
        self.port = os.ttyname(self.slave)
        self.torque: list[bool] = []
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self._process = subprocess.Popen([program, str(self.master)], pass_fds=[self.master], **pipes)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._tick, daemon=True)
        self._thread.start()

    def _tick(self) -> None:
        before = time.monotonic()
        while not self._over.wait(0.005):
            now = time.monotonic()
            self._process.stdin.write(f"advance {round((now - before) * 1e6)}\n")
            self._process.stdin.flush()
            before = now
            while (line := self._process.stdout.readline().strip()) != "ok":
                self.torque.append(line == "torque 1")

    def await_release(self) -> None:
        """What its joints are told comes a moment after what the host is told."""
        deadline = time.monotonic() + PATIENCE_S
        while self.torque[-1]:
            assert time.monotonic() < deadline, "torque stays on"
            time.sleep(0.01)

    def kill(self) -> None:
        """From now on it is silent."""
        self._over.set()
        self._thread.join()
        self._process.kill()

    def close(self) -> None:
        self._over.set()
        self._thread.join()
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        assert self._process.wait(10) in (0, -signal.SIGKILL)
        self._process.stdout.close()
        os.close(self.master)
        os.close(self.slave)


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """The core as a program, with so many joints."""
    return functools.cache(lambda joints: compiled(tmp_path_factory.mktemp("mcu") / "mcu_host", joints))


def compiled(program: Path, joints: int) -> Path:
    sources = [SKETCH / "mcu_core.cpp", ROOT / "tests" / "mcu_host.cpp"]
    options = ["-std=c++11", "-O1", f"-DMCU_JOINTS={joints}", f"-I{SKETCH}"]
    subprocess.run(["g++", *options, *sources, "-o", program], check=True)
    return program


@pytest.fixture
def device(build: Callable[[int], Path], request: pytest.FixtureRequest) -> Iterator[Device]:
    made = Device(build(getattr(request, "param", 3)))
    yield made
    made.close()


class Control:
    """The control process of a robot, and this process in the place of all others."""

    def __init__(self, config: RobotConfig) -> None:
        self.mailboxes = Mailboxes(config, H, 4)
        self.clock = MonotonicClock()
        self.board = self.mailboxes.board
        self.board.request = Request.REQUEST_RUN
        extra = {"parent": os.getpid(), "starts": 0, "dt_ns": DT}
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-m", "dzedge.control_loop"],
            env=os.environ | stage.environment(config, self.mailboxes, extra),
            pass_fds=self.mailboxes.descriptors,
            stderr=subprocess.PIPE,
            text=True,
        )

    def newest(self) -> tuple:
        return self.mailboxes.states.newest()

    def wait(self, what: str, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            assert self.process.poll() is None, f"{what}: it ended: {self.process.stderr.read()}"
            assert time.monotonic() < deadline, f"{what} did not happen in {PATIENCE_S} s"
            time.sleep(0.01)

    def send(self, pose: list[float]) -> None:
        """A chunk that goes to `pose`."""
        positions = np.broadcast_to(np.array(pose), (H, len(pose))).astype(float)
        now_ns = self.clock.now_ns()
        self.mailboxes.chunks.put(positions, np.zeros(0, np.float32), 0, self.board.epoch, now_ns, DT)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.process.stderr.close()
        self.mailboxes.close()


@pytest.fixture
def control(device: Device) -> Iterator[Control]:
    made = Control(robot(device.port))
    yield made
    made.close()


def test_a_chunk_is_played_and_the_arm_is_let_go(device: Device, control: Control) -> None:
    control.wait("the arm is armed", lambda: control.newest() and control.newest()[2] == State.ARMED)
    np.testing.assert_allclose(control.newest()[5], START, atol=5e-3)
    assert device.torque[-1] is True
    control.board.set_task("reach", control.clock.now_ns())
    control.send([0.45, -0.5, 0.9])
    control.wait("it runs", lambda: control.newest()[2] == State.RUN)
    control.wait("it is there", lambda: abs(control.newest()[5][0] - 0.45) < 0.01)
    control.wait("it holds at the end of the chunk", lambda: control.newest()[2] == State.HOLD)
    path = np.array([record[7] for record in control.mailboxes.states.since(0)])
    assert 0.44 < path[:, 0].max() < 0.5, "the spline through a sudden chunk swings a little beyond it"
    assert np.abs(path[:, 1] + 0.5).max() < 1e-3, "a joint that was not asked to does not move"
    control.board.stopping = stage.STOP_THEN_OFF
    assert control.process.wait(PATIENCE_S) == 0
    device.await_release()


def test_a_device_that_falls_silent_is_a_fault(device: Device, control: Control) -> None:
    control.wait("the arm is armed", lambda: control.newest() and control.newest()[2] == State.ARMED)
    device.kill()
    control.wait("a fault", lambda: control.mailboxes.latest_report().get("state") == "FAULT")
    assert "no answer to" in control.mailboxes.latest_report()["ailment"]
    control.board.stopping = stage.STOP_AND_HOLD
    assert control.process.wait(PATIENCE_S) == 3, "the stop could not be confirmed"


def test_the_arm_of_the_file_is_a_slow_one() -> None:
    made = make_arm(robot("/dev/none"), "/dev/none")
    assert isinstance(made, SlowCycle) and made.names == ("pan", "lift", "gripper")


def test_the_arm_commands(
    device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Read, move and release it by hand; servos it has none to set up."""
    path = tmp_path / "robot.toml"
    path.write_text(robot_text(device.port), encoding="utf-8")

    def arm(*arguments: object) -> tuple[int, dict]:
        monkeypatch.setattr(sys, "argv", ["dzedge", "arm", *map(str, arguments), "--json"])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return int(str(ended.value.code or 0)), json.loads(capsys.readouterr().out)

    code, document = arm("read", path)
    assert code == 0 and [row["position"] for row in document["joints"]] == pytest.approx(START, abs=1e-3)
    code, document = arm("move", path, "pan", "0.5", "--speed", 0.8)
    assert code == 0 and document["measured"]["pan"] == pytest.approx(0.5, abs=0.05), document
    code, document = arm("release", path, "--yes")
    assert code == 0
    device.await_release()
    code, document = arm("setup", path, "--joint", "pan", "--yes")
    assert code == 2 and "is behind a microcontroller" in document["message"]


def whole_robot(folder: Path, port: str) -> Path:
    """A robot file of this arm with the simulated one's joints, a recording as its camera and a bundle of one's own
    key: nothing of it is simulated to dzedge."""
    shutil.copytree(ROOT / "bundles" / "flow-vla.dzp", folder / "mine.dzp")
    _, secret, public = packing.keygen(folder / "mine")
    bundle.sign(folder / "mine.dzp", packing.load_secret(secret))
    film = ["sim", "--width", "160", "--height", "120", "--fps", "15", "--seconds", "2", "--raw"]
    record = ["camera", "record", *film, "--out", folder / "table.db3"]
    subprocess.run([sys.executable, "-I", "-m", "dzedge.cli", *record], check=True, capture_output=True)
    changes = {
        "allow_test_key = true": f'allow_test_key = false\ntrusted_keys = ["{public}"]',
        "../bundles/wam-nano.dzp": str(folder / "mine.dzp"),
        'driver = "realsense"\nserial = "sim"': f'driver = "playback"\npath = "{folder / "table.db3"}"',
        'driver = "feetech"': 'driver = "mcu"\nhold_ms = 500\noff_ms = 5000',
        'port = "sim"': f'port = "{port}"',
        "baud = 1000000": "baud = 115200",
        "rate_hz = 100": "rate_hz = 50",
        "timeout_s = 12.0": "timeout_s = 5.0",
        "following_ms = 100": "following_ms = 500",
        "observation_age_ms = 400": "observation_age_ms = 500",
    }
    text = default_path().read_text(encoding="utf-8")
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    servo = ("id", "model", "zero_ticks", "direction", "max_torque", "closed_ticks", "open_ticks")
    lines = [line for line in text.splitlines() if not line.startswith(tuple(f"{key} = " for key in servo))]
    path = folder / "robot.toml"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


@pytest.mark.parametrize("device", [6], indirect=True)
def test_dzedge_run_moves_it(device: Device, tmp_path: Path) -> None:
    path = whole_robot(tmp_path, device.port)
    ran = subprocess.run(
        [sys.executable, "-I", "-m", "dzedge.cli", "run", path, "--task", "reach the red cube", "--headless", "--json",
         "--out", tmp_path / "out"],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    document = json.loads(ran.stdout)
    assert document["chunks"] >= 2 and document["restarts"] == 0
    assert True in device.torque, "it was energised"
    arm = McuArm(load(path).arm.joints, device.port)
    arm.open()
    try:
        moved = np.abs(arm.read().positions - [0.25, -0.5, 0.5, 0.0, 0.0, 0.0])
    finally:
        arm.close()
    assert moved.max() > 0.02, "and it moved"
