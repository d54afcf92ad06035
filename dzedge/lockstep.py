"""Lockstep: simulator, capture, inference and control in one process, on a clock that only we move.

The same steps as in the four processes, in a fixed order at each control tick; the bus is bytes in memory, frames go
through librealsense and are awaited by number, the time that inference takes is drawn from a seeded table. Two runs of
one seed write the same bytes to the bus.
"""

import hashlib
from collections.abc import Callable

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from dzedge.bundle import Bundle
from dzedge.capture_loop import Capture
from dzedge.clock import NS, FakeClock, MonotonicClock
from dzedge.conditions import Conditions
from dzedge.config import RobotConfig
from dzedge.control_loop import activate
from dzedge.errors import CameraError
from dzedge.hardware import open_arm
from dzedge.hardware.sim.memory_port import MemoryPort
from dzedge.history import History, OnStatus, RunResult, Status, stage_timings
from dzedge.inference_loop import Inference
from dzedge.kernels.mailbox import FrameRing
from dzedge.kernels.tick import Request
from dzedge.latency import DECISIONS, Latency
from dzedge.mailboxes import FRAME_SLOTS, make_mailboxes
from dzedge.policies import load_policy
from dzedge.safety import CAUSES, STATES, refusals
from dzedge.sim_loop import Simulation
from dzedge.types import ActionChunk

START_NS = 10 * NS
"""Where the clock starts: far enough from zero that nothing lies before it."""
CAMERA_NS = 12_000_000
"""Capture to arrival: exposure, transfer and the driver."""
FRAME_WAIT_NS = 2 * NS
STATUS_NS = NS // 10
Image = NDArray[np.uint8]



class Lockstep:
    """A whole robot in one process. seed: of the scene and of inference's latencies; the robot file's is the policy's.

    lean: leave out what changes no byte on the bus: frames do not go through librealsense, and only those that a chunk
    is made of are encoded.
    """

    def __init__(
        self,
        config: RobotConfig,
        bundle: Bundle,
        seed: int,
        *,
        conditions: Conditions = Conditions(),
        lean: bool = False,
    ) -> None:
        self.config = config
        self.conditions = conditions
        self.clock = FakeClock(START_NS)
        self.mailboxes = make_mailboxes(config, bundle)
        self.board = self.mailboxes.board
        self.simulation = Simulation(config, self.mailboxes, seed, START_NS)
        policy = load_policy(config, bundle)
        if not conditions.prefix:
            policy.max_prefix = 0
        self.inference = Inference(config, policy, self.mailboxes)
        self.inference.eager = not lean
        self.camera = None if lean else Wire(config, self.mailboxes.rendered[0])
        port = MemoryPort(self.simulation.robot.bus, self.clock)
        arm = open_arm(config, port, self.clock)
        self.tick, _ = activate(
            arm, config, policy.horizon, policy.dt_ns, self.mailboxes, self.clock.now_ns,
            hold=False, smooth=conditions.smoothing,
        )  # fmt: skip
        self.board.request = Request.REQUEST_RUN
        self.period_ns = NS // config.arm.rate_hz
        self.camera_ns = 0 if conditions.synchronous else CAMERA_NS
        self.wire = hashlib.sha256()
        self.scenes = 0
        self.random = np.random.Generator(np.random.Philox(key=[seed, 0x1A7E]))
        self.thinking: tuple[int, ActionChunk] | None = None
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
            self.frames.append((now_ns + self.camera_ns, now_ns, self._through_camera()))
        while self.frames and self.frames[0][0] <= now_ns:
            _, capture_ns, image = self.frames.pop(0)
            self.mailboxes.frames[0].put(image, self.mailboxes.frames[0].count, capture_ns, now_ns)
        if self.conditions.synchronous:
            self._cycle(now_ns)  # first: the observation wants the joints of this very moment
            self._infer(now_ns)
        else:
            self._infer(now_ns)
            self._cycle(now_ns)
        return now_ns

    def _infer(self, now_ns: int) -> None:
        """Inference is one loop: until its chunk is there, it looks at nothing."""
        self._publish(now_ns)
        if self.thinking is None:
            chunk = self._decide(now_ns)
            if chunk is not None:
                self.thinking = now_ns + self._latency_ns(), chunk
                self._publish(now_ns)

    def _decide(self, now_ns: int) -> ActionChunk | None:
        return self.inference.step(now_ns)

    def _latency_ns(self) -> int:
        if self.conditions.synchronous:
            return 0
        return self.conditions.latency.draw_ns(self.random) + int(self.conditions.delay_ms * 1e6)

    def _publish(self, now_ns: int) -> None:
        if self.thinking is not None and self.thinking[0] <= now_ns:
            self.inference.publish(self.thinking[1], now_ns)
            self.thinking = None

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
        first = replace(config, cameras=config.cameras[:1])  # policies look through no other
        self.capture = Capture(first, (rendered,), (self.ring,))
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


class Stopwatch(Lockstep):
    """A robot in lockstep that takes the real time of its decisions: samples_ms."""

    def __init__(self, config: RobotConfig, bundle: Bundle, seed: int) -> None:
        self.real = MonotonicClock()
        self.samples_ms: list[float] = []
        super().__init__(config, bundle, seed, lean=True)
        self.inference.eager = True
        self.ahead_ns = self.real.now_ns() - self.clock.now_ns()

    def step(self) -> int:
        """One control period, not before its real time has come: caches are as cold then as on a robot."""
        self.real.sleep_until_ns(self.ahead_ns + self.clock.now_ns() + self.period_ns)
        return super().step()

    def _decide(self, now_ns: int) -> ActionChunk | None:
        begun_ns = self.real.now_ns()
        chunk = super()._decide(now_ns)
        if chunk is not None:
            self.samples_ms.append((self.real.now_ns() - begun_ns) * 1e-6)
        return chunk


def measure(
    config: RobotConfig, bundle: Bundle, decisions: int = DECISIONS, on_decision: Callable[[], None] = lambda: None
) -> Latency:
    """How long this machine takes for a decision of the policy, in real time: 200 at 5 Hz take 40 s.

    From a frame that has arrived to a chunk, `Inference.step` whole: image, encoder, observation, prefix, policy.
    """
    robot = Stopwatch(config, bundle, config.sim.seed)
    try:
        while (done := len(robot.samples_ms)) < decisions:
            if robot.clock.now_ns() >= START_NS + robot.scenes * int(config.task.timeout_s * NS):
                robot.new_task(None, config.sim.seed + robot.scenes)
            robot.step()
            if len(robot.samples_ms) > done:
                on_decision()
        return Latency.of(robot.samples_ms, bundle.manifest.dzedge.model_id, decisions)
    finally:
        robot.close()


def run_lockstep(
    config: RobotConfig,
    bundle: Bundle,
    *,
    task: str | None,
    seed: int,
    duration_s: float | None,
    on_status: OnStatus | None = None,
    conditions: Conditions = Conditions(),
    lean: bool = False,
) -> RunResult:
    """As `dzedge.supervisor.run_robot`, in lockstep. Needs a simulated robot. Raises DzedgeError.

    lean: as in `Lockstep`, and the result has no history: the same happens, sooner.
    """
    wall = MonotonicClock()
    started_ns = wall.now_ns()
    robot = Lockstep(config, bundle, seed, conditions=conditions, lean=lean)
    history = History()
    begun_ns = due_ns = robot.clock.now_ns()

    def watch(now_ns: int) -> None:
        nonlocal due_ns
        if not lean:
            history.collect(robot.mailboxes)
        if on_status is not None and now_ns >= due_ns:
            due_ns = now_ns + STATUS_NS
            on_status(robot.status(text, begun_ns))

    try:
        played = succeeded = 0
        while True:
            text = robot.new_task(task, seed + played)
            timeout_ns = robot.clock.now_ns() + int(config.task.timeout_s * NS)
            end_ns = timeout_ns if duration_s is None else min(timeout_ns, begun_ns + int(duration_s * NS))
            success = _attempt(robot, end_ns, watch)
            now_ns = robot.clock.now_ns()
            played += success or now_ns >= timeout_ns
            succeeded += success
            if duration_s is None or now_ns - begun_ns >= duration_s * NS:
                break
        judge = robot.simulation.robot.judge
        return RunResult(
            task=text if duration_s is None or played == 0 else f"{succeeded} of {played} tasks",
            success=0 < played == succeeded,
            seed=seed,
            duration_s=(now_ns - begun_ns) / NS,
            chunks=robot.mailboxes.chunks.count,
            refused=refusals(robot.tick),
            restarts=0,
            wire_sha256=robot.wire.hexdigest(),
            stages=stage_timings(robot.mailboxes),
            history=history,
            real_time_factor=(now_ns - begun_ns) / (wall.now_ns() - started_ns),
            measure=judge.measure() if judge is not None else None,
        )
    finally:
        robot.close()


def _attempt(robot: Lockstep, end_ns: int, watch: Callable[[int], None]) -> bool:
    """Step until the task is done or its time is over; returns which."""
    while robot.clock.now_ns() < end_ns:
        watch(robot.step())
        judge = robot.simulation.robot.judge
        if judge is not None and judge.success:
            return True
    return False
