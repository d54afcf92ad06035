"""The four processes of the simulated robot: killed, interrupted, refused. Real processes, real pty, real time."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest

from dzedge.config import RobotConfig, default_path, load
from dzedge.errors import DeviceError, PolicyError
from dzedge.kernels.tick import Request, State
from dzedge.robot import verified_bundle
from dzedge.stage import STOP_THEN_OFF
from dzedge.supervisor import Supervisor

pytestmark = pytest.mark.slow
PATIENCE_S = 40.0


def wait_for(what: str, condition: Callable[[], object], robot: Supervisor | None = None) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen in {PATIENCE_S} s"
        if robot is not None:
            robot.watch()
        time.sleep(0.01)


def state_of(robot: Supervisor) -> State:
    newest = robot.mailboxes.states.newest()
    return State(newest[2]) if newest else State.BOOT


def commands(robot: Supervisor, since: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(times [s], states, commands of Shape (n, J)) of the ticks still in the ring."""
    records = robot.mailboxes.states.since(since)
    return (
        np.array([r[1] for r in records]) * 1e-9,
        np.array([r[2] for r in records]),
        np.array([r[7] for r in records]),
    )


def assert_speed_held(robot: Supervisor) -> None:
    """No two commands are farther apart than the velocity limit allows in the time between them."""
    times, states, rows = commands(robot)
    driven = states >= State.ARMED
    steps = np.abs(np.diff(rows, axis=0))[driven[1:] & driven[:-1]]
    elapsed = np.diff(times)[driven[1:] & driven[:-1], None]
    assert (steps <= robot.config.arm.limits()[0] * elapsed * 1.05 + 1e-9).all()


@pytest.fixture
def config() -> RobotConfig:
    return load(default_path())


@pytest.fixture
def robot(config: RobotConfig) -> Iterator[Supervisor]:
    with Supervisor(config, verified_bundle(config)) as made:
        made.start()
        made.new_scene(0)
        wait_for("the scene", made.verdict, made)
        made.board.set_task(made.verdict()[0], time.monotonic_ns())
        wait_for("RUN", lambda: state_of(made) == State.RUN, made)
        yield made


@pytest.mark.parametrize("victim", ["inference", "capture"])
def test_without_its_eyes_or_its_mind_the_arm_stops_holds_and_goes_on_when_they_are_back(robot, victim):
    child = robot.children[victim].process
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    wait_for("HOLD", lambda: state_of(robot) == State.HOLD)  # nobody restarts it yet
    time.sleep(0.5)
    assert np.ptp(commands(robot)[2][-20:], axis=0).max() == 0.0
    assert robot.board.request == Request.REQUEST_RUN
    wait_for("RUN again", lambda: state_of(robot) == State.RUN, robot)
    assert robot.restarts == 1
    assert_speed_held(robot)


def test_a_killed_control_leaves_no_goal_beyond_its_last_and_comes_back_holding(robot):
    child = robot.children["control"].process
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    count = robot.mailboxes.states.count
    last = robot.mailboxes.states.newest()[7]
    wait_for("control", lambda: robot.mailboxes.states.count > count + 20, robot)
    assert state_of(robot) == State.HOLD
    assert robot.board.request == Request.REQUEST_HOLD
    _, states, rows = commands(robot, count)
    assert set(states) == {int(State.HOLD)}
    assert np.abs(rows - last).max() < 0.1  # at rest near where it was going: never farther along
    assert np.ptp(rows, axis=0).max() == 0.0
    time.sleep(1.0)
    assert state_of(robot) == State.HOLD  # never by itself
    robot.board.request = Request.REQUEST_RUN
    wait_for("RUN on request", lambda: state_of(robot) == State.RUN, robot)


def test_a_stage_that_hangs_is_killed_and_restarted(robot):
    child = robot.children["inference"].process
    os.kill(child.pid, signal.SIGSTOP)
    wait_for("a restart", lambda: robot.restarts == 1, robot)
    wait_for("RUN again", lambda: state_of(robot) == State.RUN, robot)


def test_the_end_of_the_simulator_is_the_end_of_the_run(robot):
    os.kill(robot.children["sim"].process.pid, signal.SIGKILL)
    with pytest.raises(DeviceError, match="simulated robot is gone"):
        wait_for("the error", lambda: False, robot)


def test_a_controlled_stop_ends_every_process_in_time(robot):
    children = [child.process for child in robot.children.values()]
    robot.stop(STOP_THEN_OFF)
    assert [process.returncode for process in children] == [0, 0, 0, 0]
    assert np.abs(np.diff(commands(robot)[2][-2:], axis=0)).max() < 0.001  # the last step of the braking
    assert_speed_held(robot)


def test_a_camera_that_is_not_there_ends_the_run_with_its_error(config):
    camera = msgspec.structs.replace(config.cameras[0], serial="123456789012")
    config = msgspec.structs.replace(config, cameras=(camera,))
    with Supervisor(config, verified_bundle(config)) as robot:
        robot.start()
        with pytest.raises(DeviceError, match="camera 123456789012: not attached"):
            wait_for("the error", lambda: False, robot)
        assert robot.mailboxes.states.newest() is None or state_of(robot) != State.RUN


MARK = "DZEDGE_TEST_RUN"


class Run:
    """`dzedge run` in a process of its own; its descendants are known by a mark in their environment."""

    def __init__(self, out: Path) -> None:
        self.mark = f"{MARK}={out}".encode()
        command = [sys.executable, "-I", "-m", "dzedge.cli", "run", "--duration", "60", "--out", str(out), "--json"]
        environment = os.environ | {MARK: str(out)}
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdout=pipe, stderr=pipe, env=environment, start_new_session=True)

    def __enter__(self) -> "Run":
        wait_for("its processes and the simulated port", lambda: len(self.alive()) == 5 and "ptmx" in self.held())
        return self

    def __exit__(self, *exc: object) -> None:
        for entry in self.alive():
            os.kill(int(entry.name), signal.SIGKILL)
        self.process.communicate()

    def held(self) -> str:
        """What its processes have open, one a line."""
        targets = []
        for entry in self.alive():
            try:
                targets += [os.readlink(link) for link in (entry / "fd").iterdir()]
            except OSError:
                continue
        return "\n".join(targets)

    def alive(self) -> list[Path]:
        """Its processes, the supervisor included: folders of /proc."""
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                if self.mark in (entry / "environ").read_bytes().split(b"\0") and (entry / "cmdline").read_bytes():
                    found.append(entry)
            except OSError:
                continue
        return found


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_run_by_a_controlled_stop_and_leaves_nothing_behind(number, tmp_path):
    with Run(tmp_path) as run:
        assert "memfd:dzedge" in run.held()  # all of it goes when its last process does
        time.sleep(4.0)
        run.process.send_signal(number)
        out, err = run.process.communicate(timeout=PATIENCE_S)
        assert run.alive() == []
    document = msgspec.json.decode(out)
    assert document["restarts"] == 0, err.decode()
    assert b"Traceback" not in err


def test_its_processes_end_when_the_supervisor_itself_is_killed(tmp_path):
    with Run(tmp_path) as run:
        time.sleep(2.0)
        run.process.kill()
        wait_for("the end of its processes", lambda: run.alive() == [])


def test_a_stage_that_is_told_to_end_ends_the_run_by_a_controlled_stop(robot):
    os.kill(robot.children["inference"].process.pid, signal.SIGTERM)
    wait_for("the stop", lambda: robot.board.stopping)
    wait_for("rest", lambda: state_of(robot) == State.STOPPING)
    robot.stop()
    assert_speed_held(robot)


def test_a_fault_ends_the_run_with_its_reason(robot):
    os.kill(robot.children["sim"].process.pid, signal.SIGSTOP)  # the bus falls silent
    with pytest.raises(DeviceError, match="FAULT, no answer from the servo bus"):
        wait_for("the error", lambda: False, robot)
    os.kill(robot.children["sim"].process.pid, signal.SIGCONT)


def test_words_that_cannot_be_embedded_end_the_run_with_their_reason(robot):
    robot.board.set_task("reach the sofa", time.monotonic_ns())
    with pytest.raises(PolicyError, match="unknown word 'sofa'"):
        wait_for("the error", lambda: False, robot)
    assert state_of(robot) in (State.HOLD, State.RUN)


def test_a_terminal_that_hangs_up_ends_a_run_by_a_controlled_stop(tmp_path):
    with Run(tmp_path) as run:
        time.sleep(3.0)
        os.killpg(run.process.pid, signal.SIGHUP)  # the whole process group, as a terminal does it
        out, err = run.process.communicate(timeout=PATIENCE_S)
        assert run.alive() == []
    assert b"STOPPING" in err
    assert msgspec.json.decode(out)["restarts"] == 0
