"""The control tick on an emulated bus in memory: handoff, refusals, stops, and what reaches the wire."""

import numpy as np
import pytest

from dzedge.clock import FakeClock, MonotonicClock
from dzedge.config import default_path, load
from dzedge.control_loop import activate
from dzedge.hardware import open_arm
from dzedge.hardware.sim.memory_port import MemoryPort
from dzedge.hardware.sim.pty_server import PtyServer
from dzedge.hardware.sim.servo import Servo
from dzedge.hardware.sim.servo_bus import FirstOrder, ServoBus
from dzedge.kernels.tick import Cause, Refusal, Request, State
from dzedge.mailboxes import Mailboxes

MS = 1_000_000
J, H = 6, 8
DT = 100 * MS
PERIOD = 10 * MS
START = np.array([0.0, 0.1, -0.2, 0.3, 0.0, 0.5])
NO_IMAGES = np.zeros(0, np.float32)


class Robot:
    """A tick, its mailboxes and first-order servos on an emulated bus; time moves a period a step."""

    def __init__(self) -> None:
        self.config = load(default_path())
        self.clock = FakeClock()
        self.mailboxes = Mailboxes(self.config, H, 4)
        joints = self.config.arm.joints
        self.servos = [
            Servo(joint.id, round(joint.zero + q / joint.scale)) for joint, q in zip(joints, START, strict=True)
        ]
        for servo in self.servos:
            servo.set_present(servo.get("present_position"), 0.0, 0.0, 7.5, 30.0)
        self.bus = ServoBus(self.servos, advance=FirstOrder(self.servos, tau=0.01))
        self.arm = open_arm(self.config, MemoryPort(self.bus, self.clock), self.clock)
        self.tick, self.cycle = activate(self.arm, self.config, H, DT, self.mailboxes, self.clock.now_ns, hold=False)
        self.mailboxes.board.request = Request.REQUEST_RUN
        self.mailboxes.board.set_task("reach", self.now)
        self.chunks = 0
        self.answering = True
        self.commands: list[np.ndarray] = []
        self.requests: list[bytes] = []
        self.step(3)
        self.commands.clear()

    @property
    def now(self) -> int:
        return self.clock.now_ns()

    def step(self, count: int = 1, period_ns: int = PERIOD) -> int:
        """`count` periods; returns the state."""
        state = self.tick.state
        for _ in range(count):
            self.clock.advance_to_ns(self.now + period_ns)
            request = self.tick.request(self.now)
            replies = self.bus.feed(request, self.now)
            data = b"".join(data for _, data in replies) if self.answering else b""
            state = self.tick.reply(data, self.now)
            self.commands.append(self.tick.command.copy())
            self.requests.append(request)
        return state

    def send(self, target, *, age_ns=0, epoch=None, dt_ns=DT, t_obs_ns=None) -> None:
        """A chunk observed `age_ns` ago. target: a pose for all H actions, or Shape (H, J)."""
        positions = np.broadcast_to(np.asarray(target, float), (H, J))
        epoch = self.mailboxes.board.epoch if epoch is None else epoch
        t_obs_ns = self.now - age_ns if t_obs_ns is None else t_obs_ns
        self.mailboxes.chunks.put(positions, NO_IMAGES, self.chunks, epoch, t_obs_ns, dt_ns)
        self.chunks += 1

    def refused(self, reason: Refusal) -> int:
        return int(self.tick.refused_chunks[reason])

    def limits_hold(self, period_s: float = 0.01) -> None:
        """Velocity, acceleration and jerk of all commands so far, from the limiter's own state."""
        states = np.array(self.commands)
        limits = self.config.arm.limits()
        assert (np.abs(states[:, 1]) <= limits[0] * (1 + 1e-9)).all()
        assert (np.abs(states[:, 2]) <= limits[1] * (1 + 1e-9)).all()
        jerk = np.diff(states[:, 2], axis=0) / period_s
        assert (np.abs(jerk) <= limits[2] * (1 + 1e-6)).all()


@pytest.fixture
def robot():
    made = Robot()
    yield made
    made.mailboxes.close()


def ramp(speed: float) -> np.ndarray:
    """A chunk that moves joint 0 with `speed` [rad/s] from START."""
    chunk = np.tile(START, (H, 1))
    chunk[:, 0] += speed * 0.1 * np.arange(1, H + 1)
    return chunk


def test_activation_does_not_move_the_arm_and_holds_it(robot):
    before = robot.tick.command[0]
    np.testing.assert_allclose(before, START, atol=0.001)
    assert robot.step(50) == State.ARMED
    np.testing.assert_array_equal(robot.tick.command[0], before)


def test_first_chunk_from_standstill_after_a_long_warm_up_starts_at_the_arm_not_where_it_would_be(robot):
    robot.send(ramp(1.0), age_ns=600 * MS)  # of the chunk's 0.8 s only 0.2 s are left
    robot.step()
    step = np.abs(robot.tick.command[0] - START).max()
    assert robot.tick.state == State.RUN
    assert step < 0.002  # the trajectory itself is 0.6 rad ahead by now
    robot.step(40)
    robot.limits_hold()


def test_a_chunk_is_played_by_time_and_what_is_past_is_skipped(robot):
    robot.send(ramp(0.5))
    robot.step(40)
    expected = START[0] + 0.5 * 0.4
    assert robot.tick.command[0, 0] == pytest.approx(expected, abs=0.03)
    assert robot.tick.command[1, 0] == pytest.approx(0.5, abs=0.15)


def test_seams_keep_the_limits_whatever_the_chunks_say(robot):
    random = np.random.default_rng(1)
    for _ in range(60):
        chunk = START + np.cumsum(random.normal(0, 0.08, (H, J)), axis=0)
        chunk[:, 5] = np.clip(chunk[:, 5], 0, 1)
        robot.send(chunk, age_ns=int(random.integers(0, 300)) * MS)
        robot.step(int(random.integers(1, 40)))
        assert robot.tick.state in (State.RUN, State.HOLD)
    robot.limits_hold()
    assert not robot.tick.refused_commands.any()


def test_two_chunks_that_disagree_meet_without_a_jump(robot):
    robot.send(ramp(0.8))
    robot.step(30)
    robot.send(ramp(-0.4), age_ns=50 * MS)
    robot.step(30)
    robot.limits_hold()
    positions = np.array(robot.commands)[:, 0, 0]
    assert np.abs(np.diff(positions)).max() <= 2.5 * 0.01 * (1 + 1e-9)


def test_a_late_chunk_is_not_waited_for_the_arm_stops_within_its_limits_and_holds(robot):
    robot.send(ramp(0.8))
    state = robot.step(90)
    assert (state, robot.tick.cause) == (State.HOLD, Cause.CAUSE_EXHAUSTED)
    robot.step(60)
    rest = robot.tick.command
    assert robot.tick.resting
    assert rest[0, 0] == pytest.approx(START[0] + 0.8 * 0.8, abs=0.15)
    robot.step(100)
    np.testing.assert_array_equal(robot.tick.command, rest)
    robot.limits_hold()


def test_the_line_resumes_when_chunks_come_again(robot):
    robot.send(ramp(0.5))
    robot.step(150)
    assert robot.tick.state == State.HOLD
    robot.send(ramp(0.2))
    assert robot.step() == State.RUN
    robot.step(30)
    robot.limits_hold()


class TestRefusedChunks:
    @pytest.fixture(autouse=True)
    def playing(self, robot):
        robot.send(ramp(0.3))
        robot.step(5)

    def check(self, robot, reason):
        before = robot.tick.chunks_taken
        robot.step()
        assert robot.refused(reason) == 1
        assert robot.tick.refused_chunks.sum() == 1
        assert robot.tick.chunks_taken == before
        assert robot.tick.state == State.RUN  # the old one plays on

    def test_from_before_a_reset(self, robot):
        robot.send(ramp(-1.0), epoch=robot.mailboxes.board.epoch - 1)
        self.check(robot, Refusal.REFUSED_EPOCH)

    def test_a_duplicate(self, robot):
        robot.send(ramp(0.3), age_ns=50 * MS)  # the observation of the running chunk
        self.check(robot, Refusal.REFUSED_ORDER)

    def test_out_of_order(self, robot):
        robot.send(ramp(-1.0), age_ns=300 * MS)
        self.check(robot, Refusal.REFUSED_ORDER)

    def test_from_the_future(self, robot):
        robot.send(ramp(-1.0), t_obs_ns=robot.now + 30 * MS)
        self.check(robot, Refusal.REFUSED_FUTURE)

    def test_of_another_time_step(self, robot):
        robot.send(ramp(-1.0), dt_ns=DT // 2)
        self.check(robot, Refusal.REFUSED_STEP)

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    @pytest.mark.parametrize("cell", [(0, 0), (H - 1, J - 1), (3, 2)])
    def test_not_finite(self, robot, value, cell):
        chunk = ramp(0.3)
        chunk[cell] = value
        robot.send(chunk)
        self.check(robot, Refusal.REFUSED_NOT_FINITE)


def test_a_chunk_with_nothing_left_to_play_is_refused(robot):
    robot.send(ramp(0.3), age_ns=801 * MS)
    assert robot.step() == State.ARMED
    assert robot.refused(Refusal.REFUSED_STALE) == 1


@pytest.mark.parametrize("value", [3.0, -50.0, 1e30, 1.7e308])
def test_a_chunk_far_outside_the_joint_limits_is_refused_and_the_old_one_plays_on(robot, value):
    robot.send(ramp(0.3))
    robot.step(5)
    robot.send(np.full((H, J), value))
    robot.step()
    assert robot.refused(Refusal.REFUSED_RANGE) == 1
    assert robot.tick.state == State.RUN
    robot.step(20)
    assert robot.tick.command[1, 0] == pytest.approx(0.3, abs=0.1)


def test_a_chunk_a_little_outside_the_joint_limits_stays_inside_them(robot):
    limits = robot.config.arm.limits()
    robot.send(np.clip(np.tile(limits[4] + 0.1, (H, 1)), None, START + 0.3))
    robot.step(100)
    positions = np.array(robot.commands)[:, 0]
    assert (positions <= limits[4]).all()
    assert (positions >= limits[3]).all()
    robot.limits_hold()


@pytest.mark.parametrize("age_ms", [0, 30, 70, 110, 150])
@pytest.mark.parametrize("distance", [0.05, 0.2, 0.4, 0.8, 1.5])
def test_a_step_to_a_far_pose_overshoots_by_little(robot, distance, age_ms):
    target = START + [distance, 0, 0, 0, 0, 0]
    for _ in range(4):
        robot.send(target, age_ns=age_ms * MS)
        robot.step(40)
    reached = np.array(robot.commands)[:, 0, 0] - START[0]
    assert reached.max() <= distance * 1.08 + 0.01
    assert reached[-1] == pytest.approx(distance, abs=0.01)
    robot.limits_hold()


def test_chunks_that_agree_are_played_as_one(robot):
    """A constant speed, a new chunk every 0.2 s from the trajectory itself: no seam shows."""
    speed, begun = 0.5, robot.now
    for _ in range(12):
        chunk = np.tile(START, (H, 1))
        chunk[:, 0] += speed * ((robot.now - begun) * 1e-9 - 0.03 + 0.1 * np.arange(1, H + 1))
        robot.send(chunk, age_ns=30 * MS)
        robot.step(20)
    steady = np.array(robot.commands)[100:, 1, 0]
    np.testing.assert_allclose(steady, speed, atol=0.02)


def test_a_gripper_that_meets_what_it_grasps_is_no_fault(robot):
    robot.servos[5].set_fault("stuck")
    closing = START.copy()
    closing[5] = 0.05
    for _ in range(6):
        robot.send(closing)
        robot.step(20)
    assert robot.tick.state == State.RUN
    assert not robot.tick.refused_commands.any()


def test_a_gripper_that_is_slammed_does_not_leave_its_range(robot):
    chunk = np.tile(START, (H, 1))
    chunk[:, 5] = [0, 1, 1, 0, 0, 1, 1, 1]
    robot.send(chunk)
    robot.step(100)
    gripper = np.array(robot.commands)[:, 0, 5]
    assert gripper.min() >= 0.0
    assert gripper.max() <= 1.0


def test_a_new_task_stops_the_arm_until_its_first_chunk(robot):
    robot.send(ramp(0.8))
    robot.step(20)
    robot.mailboxes.board.set_task("press", robot.now)
    assert robot.step() == State.HOLD
    assert robot.tick.cause == Cause.CAUSE_TASK
    robot.send(ramp(0.1))
    assert robot.step() == State.RUN
    robot.step(30)
    robot.limits_hold()


def test_hold_and_resume_by_request(robot):
    robot.send(ramp(0.5))
    robot.step(10)
    robot.mailboxes.board.request = Request.REQUEST_HOLD
    assert robot.step() == State.HOLD
    robot.send(ramp(0.5))
    assert robot.step(5) == State.HOLD  # chunks are not even looked at
    robot.mailboxes.board.request = Request.REQUEST_RUN
    robot.send(ramp(0.5))
    assert robot.step() == State.RUN


def test_stopping_comes_to_rest_within_the_limits(robot):
    robot.send(ramp(1.5))
    robot.step(40)
    robot.mailboxes.board.stopping = 3
    for _ in range(200):
        robot.step()
        if robot.tick.resting:
            break
    assert robot.tick.state == State.STOPPING
    assert robot.tick.resting
    robot.limits_hold()


def test_after_a_pause_of_the_loop_there_is_no_burst(robot):
    robot.send(ramp(0.8))
    robot.step(20)
    before = robot.tick.command[0]
    robot.step(1, period_ns=500 * MS)  # the process was stopped; the trajectory went on without it
    assert robot.tick.state == State.HOLD
    assert robot.tick.cause == Cause.CAUSE_OVERRUN
    moved = np.abs(robot.tick.command[0] - before).max()
    assert moved <= 2.5 * 0.02 * (1 + 1e-9)  # two periods' worth at most
    robot.step(50)
    assert robot.tick.resting


def test_a_silent_bus_stops_the_arm_and_then_is_a_fault_that_stays(robot):
    robot.send(ramp(0.5))
    robot.step(20)
    robot.answering = False
    robot.step(5)
    assert robot.tick.state == State.HOLD  # three periods without a measurement
    robot.step(30)
    assert (robot.tick.state, robot.tick.cause) == (State.FAULT, Cause.CAUSE_BUS_SILENT)
    robot.answering = True
    robot.send(ramp(0.1))
    assert robot.step(50) == State.FAULT
    assert robot.tick.resting


def test_an_arm_that_does_not_follow_is_a_fault_and_nothing_more_is_sent(robot):
    robot.servos[0].set_fault("stuck")
    robot.send(ramp(1.5))
    for _ in range(100):
        if robot.step() == State.FAULT:
            break
    assert robot.tick.state == State.FAULT
    assert robot.tick.cause == Cause.CAUSE_GATE
    assert robot.tick.offence[0] == 0  # the joint that does not follow
    robot.step(5)
    sync_writes = [request for request in robot.requests[-3:] if b"\x83" in request[:6]]
    assert sync_writes == []


def test_the_running_trajectory_is_published_for_the_prefix(robot):
    robot.send(ramp(0.5))
    robot.step()
    begun = robot.now
    promised = {t: robot.mailboxes.trajectory.at(begun + t * MS) for t in (100, 200, 400, 600)}
    for t, row in promised.items():
        robot.step((begun + t * MS - robot.now) // PERIOD)
        np.testing.assert_allclose(robot.tick.command[0], row, atol=0.02)


def test_a_trajectory_that_is_no_longer_played_promises_nothing(robot):
    robot.send(ramp(0.5))
    robot.step(5)
    assert robot.mailboxes.trajectory.at(robot.now + 100 * MS) is not None
    robot.mailboxes.board.request = Request.REQUEST_HOLD
    robot.step()
    assert robot.mailboxes.trajectory.at(robot.now + 100 * MS) is None


def test_the_history_holds_the_commands_that_were_sent(robot):
    robot.send(ramp(0.5))
    robot.step(30)
    _, _, command, _ = robot.mailboxes.states.at(robot.now)
    np.testing.assert_array_equal(command, robot.tick.command[0])


def test_a_restarted_control_holds_and_does_not_move_by_itself(robot):
    robot.send(ramp(1.0))
    robot.step(40)
    last = [servo.get("goal_position") for servo in robot.servos]
    robot.clock.advance_to_ns(robot.now + 400 * MS)  # it was killed here, its supervisor starts another
    robot.mailboxes.board.request = Request.REQUEST_HOLD
    arm = open_arm(robot.config, MemoryPort(robot.bus, robot.clock), robot.clock)
    robot.tick, _ = activate(arm, robot.config, H, DT, robot.mailboxes, robot.clock.now_ns, hold=True)
    robot.send(ramp(2.0))
    assert robot.step(50) == State.HOLD
    for servo, goal in zip(robot.servos, last, strict=True):
        assert abs(servo.get("goal_position") - goal) <= 12  # at most where it had come to, never beyond


def test_missed_periods_are_skipped_and_never_made_up_in_a_burst(robot):
    """The real loop on a real pty: after a pause of 0.3 s the ticks come at their old pace, 0.3 s later."""
    with PtyServer(robot.bus) as server:
        arm = open_arm(robot.config, server.path)
        clock = MonotonicClock()
        tick, _ = activate(arm, robot.config, H, DT, robot.mailboxes, clock.now_ns, hold=False)
        first = robot.mailboxes.states.count
        tick.run(arm.fd, 10)
        missed = tick.missed
        clock.sleep_until_ns(clock.now_ns() + 300 * MS)
        tick.run(arm.fd, 10)
        arm.close()
    times = [record[1] for record in robot.mailboxes.states.since(first)]
    assert len(times) == 20
    assert tick.missed - missed >= 28
    assert min(np.diff(times)) > PERIOD // 4
