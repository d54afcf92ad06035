"""Lockstep: simulator, capture, inference and control in one process, on a clock that only we move.

The same steps as in the four processes, in a fixed order at each control tick; the bus is bytes in memory, frames go
through librealsense and are awaited by number, the time that inference takes is drawn from a seeded histogram. Two
runs of one seed write the same bytes to the bus.
"""

import hashlib

import numpy as np
from numpy.typing import NDArray

from dzedge.bundle import Bundle
from dzedge.capture_loop import Capture
from dzedge.clock import NS, FakeClock, MonotonicClock
from dzedge.config import RobotConfig
from dzedge.control_loop import activate
from dzedge.errors import CameraError
from dzedge.hardware import open_arm
from dzedge.hardware.sim.memory_port import MemoryPort
from dzedge.history import History, OnStatus, RunResult, Status, stage_timings
from dzedge.inference_loop import Inference
from dzedge.kernels.mailbox import FrameRing
from dzedge.kernels.tick import Request
from dzedge.mailboxes import FRAME_SLOTS, make_mailboxes
from dzedge.policies import load_policy
from dzedge.safety import CAUSES, STATES, refusals
from dzedge.sim_loop import Simulation
from dzedge.types import ActionChunk

START_NS = 10 * NS
"""Where the clock starts: far enough from zero that nothing lies before it."""
LATENCY_MS = np.array([3.0, 3.5, 4.0, 4.5, 5.0, 6.0, 8.0, 12.0, 20.0, 35.0])
LATENCY_SHARE = np.array([0.15, 0.25, 0.22, 0.15, 0.10, 0.06, 0.03, 0.02, 0.015, 0.005])
"""Time from a frame's arrival to its chunk, as a histogram with the long tail of a busy board."""
CAMERA_NS = 12_000_000
"""Capture to arrival: exposure, transfer and the driver."""
FRAME_WAIT_NS = 2 * NS
STATUS_NS = NS // 10
Image = NDArray[np.uint8]


class Lockstep:
    """A whole robot in one process. seed: of the scene, of inference's latencies and of the policy's noise."""

    def __init__(self, config: RobotConfig, bundle: Bundle, seed: int, *, through_camera: bool = True) -> None:
        self.config = config
        self.clock = FakeClock(START_NS)
        self.mailboxes = make_mailboxes(config, bundle)
        self.board = self.mailboxes.board
        self.simulation = Simulation(config, self.mailboxes, seed, START_NS)
        self.inference = Inference(config, load_policy(config, bundle), self.mailboxes)
        self.camera = Wire(config, self.mailboxes.rendered[0]) if through_camera else None
        policy = self.inference.policy
        port = MemoryPort(self.simulation.robot.bus, self.clock)
        arm = open_arm(config, port, self.clock)
        now_ns = self.clock.now_ns
        self.tick, _ = activate(arm, config, policy.horizon, policy.dt_ns, self.mailboxes, now_ns, hold=False)
        self.board.request = Request.REQUEST_RUN
        self.period_ns = NS // config.arm.rate_hz
        self.wire = hashlib.sha256()
        self.scenes = 0
        self.random = np.random.Generator(np.random.Philox(key=[seed, 0x1A7E]))
        self.arriving: list[tuple[int, ActionChunk]] = []
        self.frames: list[tuple[int, int, Image]] = []

    def close(self) -> None:
        """Give the camera back and forget the memory."""
        if self.camera is not None:
            self.camera.close()
        self.mailboxes.close()

    def new_task(self, task: str | None, seed: int) -> str:
        """Lay out the scene of `seed` and ask for `task`, or for what the scene or the robot file offers."""
        self.scenes += 1
        self.mailboxes.scenes.write(bytes(8), (self.scenes, seed))
        self.step()
        text = task or self.config.task.instruction or self.simulation.instruction
        self.board.set_task(text, self.clock.now_ns())
        return text

    def step(self) -> int:
        """One control period; returns its time."""
        self.clock.advance_to_ns(self.clock.now_ns() + self.period_ns)
        now_ns = self.clock.now_ns()
        if self.simulation.step(now_ns):
            self.frames.append((now_ns + CAMERA_NS, now_ns, self._through_camera()))
        while self.frames and self.frames[0][0] <= now_ns:
            _, capture_ns, image = self.frames.pop(0)
            self.mailboxes.frames[0].put(image, self.mailboxes.frames[0].count, capture_ns, now_ns)
        chunk = self.inference.step(now_ns)
        if chunk is not None:
            latency_ms = self.random.choice(LATENCY_MS, p=LATENCY_SHARE)
            self.arriving.append((now_ns + int(latency_ms * 1e6), chunk))
        while self.arriving and self.arriving[0][0] <= now_ns:
            self.inference.publish(self.arriving.pop(0)[1], now_ns)
        self._cycle(now_ns)
        return now_ns

    def _through_camera(self) -> Image:
        rendered = self.mailboxes.rendered[0].newest()
        assert rendered is not None  # the simulation has just put one there
        return rendered[1] if self.camera is None else self.camera.carry(rendered[2])

    def _cycle(self, now_ns: int) -> None:
        request = self.tick.request(now_ns)
        self.wire.update(request)
        replies = self.simulation.robot.bus.feed(request, now_ns)
        self.tick.reply(b"".join(data for _, data in replies), now_ns)

    def status(self, task: str, started_ns: int) -> Status:
        """The present moment, for a status line."""
        newest = self.mailboxes.states.newest()
        verdict = self.mailboxes.verdicts.read()
        return Status(
            task=task,
            state=STATES[self.tick.state],
            cause=CAUSES[self.tick.cause],
            elapsed_s=(self.clock.now_ns() - started_ns) / NS,
            joints=newest[5] if newest else np.zeros(len(self.config.arm.joints)),
            chunks=self.mailboxes.chunks.count,
            distance=verdict[2][4] * 1e-6 if verdict and verdict[2][4] >= 0 else None,
            stages=stage_timings(self.mailboxes),
        )


class Wire:
    """The simulated camera's way through librealsense, frame by frame: what goes in is awaited by its number."""

    def __init__(self, config: RobotConfig, rendered: FrameRing) -> None:
        camera = config.cameras[0]
        memory = bytearray(FrameRing.bytes_for(FRAME_SLOTS, camera.height, camera.width))
        self.ring = FrameRing(memory, FRAME_SLOTS, camera.height, camera.width)
        self.capture = Capture(config, (rendered,), (self.ring,))
        self.clock = MonotonicClock()
        self.capture.start(self.clock.now_ns())

    def carry(self, number: int) -> Image:
        """The pixels of frame `number` as the driver delivers them. Raises CameraError when they do not come."""
        begun_ns = now_ns = self.clock.now_ns()
        while now_ns - begun_ns < FRAME_WAIT_NS:
            record = self.ring.newest()
            if record is not None and record[2] == number:
                return record[1]
            self.clock.sleep_until_ns(now_ns + 100_000)
            now_ns = self.clock.now_ns()
        raise CameraError(f"frame {number} did not come through the simulated camera in {FRAME_WAIT_NS / NS:.0f} s")

    def close(self) -> None:
        self.capture.close()


def run_lockstep(
    config: RobotConfig,
    bundle: Bundle,
    *,
    task: str | None,
    seed: int,
    duration_s: float | None,
    on_status: OnStatus,
) -> RunResult:
    """As `dzedge.supervisor.run_robot`, in lockstep. Needs a simulated robot. Raises DzedgeError."""
    wall = MonotonicClock()
    started_ns = wall.now_ns()
    robot = Lockstep(config, bundle, seed)
    history = History()
    try:
        begun_ns = due_ns = robot.clock.now_ns()
        played = succeeded = 0
        while True:
            text = robot.new_task(task, seed + played)
            task_ns, success = robot.clock.now_ns(), False
            while not success and robot.clock.now_ns() - task_ns < config.task.timeout_s * NS:
                now_ns = robot.step()
                history.collect(robot.mailboxes)
                judge = robot.simulation.robot.judge
                success = judge is not None and judge.success
                if now_ns >= due_ns:
                    due_ns = now_ns + STATUS_NS
                    on_status(robot.status(text, begun_ns))
                if duration_s is not None and now_ns - begun_ns >= duration_s * NS:
                    break
            cut = not success and robot.clock.now_ns() - task_ns < config.task.timeout_s * NS
            played += not cut
            succeeded += success
            if duration_s is None or robot.clock.now_ns() - begun_ns >= duration_s * NS:
                break
        simulated_s = (robot.clock.now_ns() - begun_ns) / NS
        return RunResult(
            task=text if duration_s is None or played == 0 else f"{succeeded} of {played} tasks",
            success=0 < played == succeeded,
            seed=seed,
            duration_s=simulated_s,
            chunks=robot.mailboxes.chunks.count,
            refused=refusals(robot.tick),
            restarts=0,
            wire_sha256=robot.wire.hexdigest(),
            stages=stage_timings(robot.mailboxes),
            history=history,
            real_time_factor=simulated_s * NS / (wall.now_ns() - started_ns),
        )
    finally:
        robot.close()
