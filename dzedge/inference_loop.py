"""inference: newest frames and joint states in, one action chunk out, with the imagined frames that belong to it.

Runs as `python -I -m dzedge.inference_loop ROBOT.toml`, started by the supervisor.
"""

import math
from collections import deque

import numpy as np

from dzedge.clock import NS, MonotonicClock
from dzedge.config import RobotConfig
from dzedge.errors import DzedgeError
from dzedge.mailboxes import STAGES, Mailboxes
from dzedge.observation import ObservationBuilder
from dzedge.policies import load_policy
from dzedge.policies.base import Policy
from dzedge.robot import verified_bundle
from dzedge.stage import Stage, main
from dzedge.types import ActionChunk, ActionPrefix, Frame

STAGE = STAGES.index("inference")
IDLE, THINKING, REFUSED = range(3)
"""States shown on the board: no task or nothing to see yet; making chunks; the instruction cannot be embedded."""
DELAYS = 64
"""The delay is the longest of this many chunks (DESIGN, handoff rule 3)."""


class Inference:
    """One policy between the frame ring and the chunk box."""

    def __init__(self, config: RobotConfig, policy: Policy, mailboxes: Mailboxes) -> None:
        self.policy = policy
        self.mailboxes = mailboxes
        self.marks = mailboxes.marks["inference"]
        self.observations = ObservationBuilder(policy.history_ns)
        self.period_ns = int(NS / config.policy.rate_hz)
        self.control_ns = NS // config.arm.rate_hz
        self.age_ns = config.safety.observation_age_ms * 1_000_000
        self.delays: deque[int] = deque(maxlen=DELAYS)
        self.capped = 0
        self.eager = True
        """Whether a frame is encoded as it comes; else by the chunk that wants it, which makes no other chunk."""
        self.epoch = 0
        self.seen = 0
        self.chunks = 0
        self.due_ns = 0
        self.played_ns = 0
        self.state = IDLE

    def step(self, now_ns: int) -> ActionChunk | None:
        """Look at what is new; returns a chunk when one was due and could be made, else None."""
        if self.mailboxes.board.epoch != self.epoch:
            self._begin_task()
        if now_ns < self.played_ns:
            return None
        fresh = self._look(now_ns)
        if not fresh or self.epoch == 0 or self.state == REFUSED or now_ns < self.due_ns:
            return None
        return self._think(now_ns)

    def publish(self, chunk: ActionChunk, now_ns: int) -> None:
        """Hand a chunk to control, and remember how old its observation has become."""
        self.mailboxes.chunks.put(
            chunk.positions, chunk.imagined, chunk.chunk_id, chunk.epoch, chunk.t_obs_ns, chunk.dt_ns
        )
        # Control plays it from its next period on: a prefix read sooner would be the rest of the chunk before.
        self.played_ns = now_ns + self.control_ns
        self.delays.append(now_ns - chunk.t_obs_ns)
        self.marks.record("delay", now_ns - chunk.t_obs_ns)

    def _begin_task(self) -> None:
        self.epoch, instruction = self.mailboxes.board.task()
        self.state = IDLE
        try:
            self.policy.reset(instruction)
        except DzedgeError:
            self.state = REFUSED
            raise
        self.observations.begin(instruction, self.epoch)
        self.due_ns = 0

    def _look(self, now_ns: int) -> bool:
        """Take in the newest frame, once. False when there is nothing new."""
        ring = self.mailboxes.frames[0]
        record = ring.frame() if ring.count > self.seen else None
        if record is None:
            return False
        self.seen, image, number, capture_ns, receive_ns, exposure_us, gain, _ = record
        frame = Frame(image, number, capture_ns, receive_ns, exposure_us, gain)
        if self.eager:
            with self.marks.span("encode"):
                self.policy.observe(frame)
        self.observations.add(frame)
        self.marks.record("camera", now_ns - capture_ns)
        return True

    def _think(self, now_ns: int) -> ActionChunk | None:
        frame_ns = self.observations.newest_ns
        measured = self.mailboxes.states.at(frame_ns)  # None, too, where the bus gave no whole answer then
        if measured is None or now_ns - frame_ns > self.age_ns:
            return None
        observation = self.observations.build(measured[0], measured[1], measured[3])
        with self.marks.span("policy"):
            chunk = self.policy.infer(observation, self.prefix(frame_ns, now_ns), self.chunks)
        self.chunks += 1
        self.due_ns = max((self.due_ns or now_ns) + self.period_ns, now_ns)
        self.state = THINKING
        return chunk

    def prefix(self, t_obs_ns: int, now_ns: int) -> ActionPrefix:
        """Commands that will have been sent before the chunk arrives, at `t_obs + (i + 1) * dt`.

        Past ones from the history, future ones from the running trajectory; it ends where they end.
        """
        wanted = math.ceil(max(self.delays, default=0) / self.policy.dt_ns)
        if wanted > self.policy.max_prefix:
            self.capped += 1
            self.marks.remark("capped", wanted)
            wanted = self.policy.max_prefix
        rows = []
        for i in range(wanted):
            time_ns = t_obs_ns + (i + 1) * self.policy.dt_ns
            if time_ns <= now_ns:
                row = self.mailboxes.states.command(time_ns)
            else:
                row = self.mailboxes.trajectory.at(time_ns)
            if row is None:
                break
            rows.append(row)
        joints = self.mailboxes.states.joints
        return ActionPrefix(np.array(rows, dtype=np.float64).reshape(-1, joints))


def run(stage: Stage) -> None:
    """Make chunks until the robot stops."""
    clock = MonotonicClock()
    policy = load_policy(stage.config, verified_bundle(stage.config))
    inference = Inference(stage.config, policy, stage.mailboxes)
    board = stage.mailboxes.board
    stage.realtime(priority=0, lock_memory=False)
    stage.mailboxes.chunks.adopt()
    while not board.stopping:
        now_ns = clock.now_ns()
        chunk = None
        try:
            chunk = inference.step(now_ns)
        except DzedgeError as error:
            stage.fail(error)
        if chunk is not None:
            inference.publish(chunk, clock.now_ns())
        board.stamp(STAGE, now_ns, inference.state)
        clock.sleep_until_ns(now_ns + 1_000_000)


if __name__ == "__main__":
    main("inference", run)
