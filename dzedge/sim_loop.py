"""sim: the simulated robot in real time: physics, a camera into a shared ring, a servo bus on a pseudo-terminal.

Runs as `python -I -m dzedge.sim_loop`, started by the supervisor. What it knows of the truth goes to the supervisor's
verdict alone; policies see frames and servo replies.
"""

import sys
from dataclasses import dataclass
from typing import Any

import numpy as np

from dzedge.clock import NS, MonotonicClock
from dzedge.config import RobotConfig
from dzedge.errors import ConfigError
from dzedge.hardware.sim.camera import EXPOSURE_US, GAIN, MOUNTS
from dzedge.hardware.sim.process import SimulatedRobot
from dzedge.hardware.sim.pty_server import PtyServer
from dzedge.hardware.sim.task import HOVER
from dzedge.kernels.mailbox import FrameRing
from dzedge.mailboxes import STAGES, TEXT_BYTES, Mailboxes
from dzedge.stage import Stage, main

STAGE = STAGES.index("sim")
CONTROL = STAGES.index("control")
ABANDONED_NS = 2 * NS
"""Once the robot is stopping, control silent for this long has ended."""
STEP_NS = 4_000_000
"""How far physics may lag behind the clock."""
SWITCH_S = 0.0005


@dataclass
class Eye:
    """One simulated camera: where its frames go, how often, when the next is due, how many there were."""

    ring: FrameRing
    period_ns: int
    due_ns: int
    frames: int = 0


class Simulation:
    """The simulated robot between its mailboxes: scenes and tasks in, frames and verdicts out. more: arguments of
    SimulatedRobot."""

    def __init__(self, config: RobotConfig, mailboxes: Mailboxes, seed: int, now_ns: int, **more: Any) -> None:
        joints = config.arm.joints
        self.mailboxes = mailboxes
        self.robot = SimulatedRobot(
            seed,
            [joint.zero for joint in joints],
            [joint.scale for joint in joints],
            now_ns=now_ns,
            ids=[joint.id for joint in joints],
            cubes=config.sim.cubes,
            noise=config.sim.camera_noise,
            baud=config.arm.baud,
            models=[joint.model for joint in joints],
            **{"protocol": config.arm.driver, **more},
        )
        self.marks = mailboxes.marks["sim"]
        self.scene = 0
        self.epoch = 0
        self.instruction = ""
        rates = [camera.fps for camera in config.cameras if camera.simulated]
        if len(rates) > len(MOUNTS):
            raise ConfigError(f"cameras: {len(rates)} simulated ones, places for {len(MOUNTS)}; take the others out")
        self.eyes = [Eye(ring, NS // fps, now_ns) for ring, fps in zip(mailboxes.rendered, rates, strict=True)]
        for eye in self.eyes:
            eye.ring.adopt()

    def step(self, now_ns: int) -> bool:
        """Physics, scene and task up to `now_ns`; returns whether the first camera published a frame."""
        self._obey()
        self.robot.step_to(now_ns)
        self._judge()
        due = [mount for mount, eye in enumerate(self.eyes) if now_ns >= eye.due_ns]
        for mount in due:
            self._film(mount, now_ns)
        return 0 in due

    def _film(self, mount: int, now_ns: int) -> None:
        """One frame of one camera."""
        eye = self.eyes[mount]
        with self.marks.span("render"):
            rgb, _ = self.robot.render(now_ns, mount)
        eye.ring.put(rgb, eye.frames, now_ns, now_ns, EXPOSURE_US, GAIN)
        eye.frames += 1
        eye.due_ns += ((now_ns - eye.due_ns) // eye.period_ns + 1) * eye.period_ns

    def _obey(self) -> None:
        """A new scene, a new task."""
        request = self.mailboxes.scenes.read()
        if request is not None and request[2][0] != self.scene:
            self.scene, seed = request[2][0], request[2][1]
            self.robot.rearrange(seed)
            self.instruction = self.robot.default_instruction(seed)
            self.epoch = 0
        if self.mailboxes.board.epoch != self.epoch and self.scene:
            self.epoch, instruction = self.mailboxes.board.task()
            self.robot.assign(instruction)

    def _judge(self) -> None:
        if not self.scene:
            return
        judge = self.robot.judge
        text = self.instruction.encode()[:TEXT_BYTES]
        success = int(judge is not None and judge.success)
        gap = -1
        if judge is not None:
            target = self.robot.world.cubes()[judge.task.cube, :3] + (0.0, 0.0, HOVER)
            gap = int(np.sqrt(((self.robot.world.tip() - target) ** 2).sum()) * 1e6)
        self.mailboxes.verdicts.write(
            text.ljust(TEXT_BYTES, b"\0"), (self.scene, len(text), self.epoch, success, gap)
        )


def run(stage: Stage) -> None:
    """Simulate until the supervisor ends this process: it outlives the others, so that they have an arm to stop."""
    sys.setswitchinterval(SWITCH_S)
    clock = MonotonicClock()
    simulation = Simulation(stage.config, stage.mailboxes, stage.config.sim.seed, clock.now_ns())
    board = stage.mailboxes.board
    # It stands for hardware, which nothing on this machine can delay: above all but control. Its bus thread inherits.
    stage.realtime(stage.config.realtime.priority // 2, lock_memory=False)
    with PtyServer(simulation.robot.bus) as server:
        stage.mailboxes.port = server.path
        while not board.over:
            now_ns = clock.now_ns()
            if board.stopping and now_ns - board.stage(CONTROL)[1] > ABANDONED_NS:
                break  # the supervisor is gone, and control has left the arm
            simulation.step(now_ns)
            board.stamp(STAGE, now_ns, simulation.scene)
            clock.sleep_until_ns(now_ns + STEP_NS)


if __name__ == "__main__":
    main("sim", run)
