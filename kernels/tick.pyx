"""The control tick: everything that happens between two writes to the arm, without the GIL.

    new chunk? -> adopt (smooth, seam) -> sample -> limiter -> gate -> encode -> bus -> measured joints

`decide` turns the time into one command or none; `Tick.run` puts the bus and the deadlines around it, and
`Tick.request` / `Tick.reply` do the same with bytes in memory. Codes, never exceptions; no allocation.
"""

from libc.string cimport memcpy
from libc.math cimport fabs, isfinite

from dzedge.kernels cimport chunk, gate, limiter
from dzedge.kernels.board cimport B_REQUEST, B_STOP, Board
from dzedge.kernels.bus cimport BUS_INCOMPLETE, BUS_OK, BUS_UNPLUGGED, BusCycle
from dzedge.kernels.mailbox cimport META, ChunkBox, StateRing, TrajectoryBox, int64, uint8
from dzedge.kernels.marks cimport BUS, DECIDE, LATE, Marks

import numpy as np


cdef extern from "<time.h>" nogil:
    ctypedef int clockid_t
    cdef struct timespec:
        long tv_sec
        long tv_nsec
    int clock_gettime(clockid_t, timespec*) noexcept
    int clock_nanosleep(clockid_t, int, const timespec*, timespec*) noexcept
    enum: CLOCK_MONOTONIC
    enum: TIMER_ABSTIME


cdef enum:
    CONTROL = 2             # our line on the board
    SEAM_LOOKS = 16
    LATE_PERIODS = 3        # later than this, the tick stops the arm instead of catching up
    PERIODS_OF_GRACE = 2    # a command may be used while t_now <= t_obs + H * dt + 2 T (DESIGN 6)

cdef double SECONDS = 1e-9
# [rad], gripper [1], beyond a joint's limits: less is inaccurate and the limiter clamps it, more is broken
cdef double BEYOND = 0.25
# [rad] that a seam may swing past the trajectory, beside a tenth of what it has to bridge
cdef double SWING = 0.03


cdef int64 clock_ns() noexcept nogil:
    cdef timespec t
    clock_gettime(CLOCK_MONOTONIC, &t)
    return <int64>t.tv_sec * 1000000000 + t.tv_nsec


cdef void sleep_until(int64 deadline_ns) noexcept nogil:
    cdef timespec t
    t.tv_sec = deadline_ns // 1000000000
    t.tv_nsec = deadline_ns % 1000000000
    clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL)


cdef class Tick:
    """One arm's control tick.

    bus: the compiled bus cycle; chunks, states, trajectory, board, marks: mailboxes; plan: `dzedge.trajectory.plan`
    (smoothing of H + 1 knots); limits: Shape (5, J), rows velocity, acceleration, jerk, lower, upper; gate_bounds,
    gate_rules: as `dzedge.kernels.gate` takes them; verdicts: Shape (codes,), the State that each gate code leads
    to; dt_ns, period_ns, bus_fault_ns: [ns]; blended: whether a seam leads from the command into each new chunk, else
    its samples are what the limiter is told from the next tick on, whatever the leap (a control for experiments).
    Not thread safe; one process runs it.
    """

    cdef BusCycle bus
    cdef ChunkBox chunks
    cdef StateRing states
    cdef TrajectoryBox trajectory
    cdef Board board
    cdef Marks marks
    cdef chunk.SmoothPlan plan
    cdef double[:, ::1] limits, gate_bounds
    cdef double[::1] gate_rules, gate_memory, ages
    cdef int[::1] verdicts
    cdef readonly int joints, horizon
    cdef int64 dt_ns, period_ns, bus_fault_ns

    # what is commanded: rows position, velocity, acceleration; `candidate` until the gate has accepted it
    cdef double[:, ::1] commanded, candidate, wanted
    cdef int64 commanded_ns
    # the running trajectory
    cdef double[:, ::1] raw, knots, moments, offset, spare
    cdef double step
    cdef readonly double window
    cdef readonly bint chase, blended
    cdef int64 start_ns, seam_ns, end_ns
    cdef int64 chunk_seen, chunk_id, writer
    cdef uint8[::1] payload
    # measured
    cdef double[::1] measured, measured_velocity
    cdef int64 measured_ns

    cdef readonly int state, cause, code
    cdef int64 epoch
    cdef int64[::1] refused, refused_by_gate
    cdef readonly int64 ticks, missed, chunks_taken, chased, limited, stops
    cdef int64 next_ns

    def __init__(self, BusCycle bus, ChunkBox chunks, StateRing states, TrajectoryBox trajectory, Board board,
                 Marks marks, chunk.SmoothPlan plan, limits, gate_bounds, gate_rules, verdicts, dt_ns, period_ns,
                 bus_fault_ns, blended=True):
        self.bus, self.chunks, self.states, self.trajectory = bus, chunks, states, trajectory
        self.board, self.marks, self.plan = board, marks, plan
        self.joints = bus.joints
        self.horizon = chunks.horizon
        if plan.length != self.horizon + 1 or plan.joints != self.joints or plan.knots > trajectory.capacity:
            raise ValueError(f"plan for {plan.length} knots of {plan.joints} joints, needed {self.horizon + 1} "
                             f"of {self.joints}, at most {trajectory.capacity} after smoothing")
        self.limits = np.array(limits, dtype=np.float64)
        self.gate_bounds = np.array(gate_bounds, dtype=np.float64)
        self.gate_rules = np.array(gate_rules, dtype=np.float64)
        self.gate_memory = np.zeros(gate.memory_size(self.joints))
        self.ages = np.zeros(3)
        self.verdicts = np.array(verdicts, dtype=np.intc)
        self.dt_ns, self.period_ns, self.bus_fault_ns = dt_ns, period_ns, bus_fault_ns
        self.blended = blended
        self.commanded, self.candidate, self.wanted, self.spare = np.zeros((4, 3, self.joints))
        self.raw = np.zeros((self.horizon + 1, self.joints))
        self.knots, self.moments = np.zeros((2, plan.knots, self.joints))
        self.offset = np.zeros((self.joints, 6))
        self.step = dt_ns * SECONDS / (1 if plan.decimate else plan.factor)
        self.payload = np.zeros(chunks.payload_bytes, np.uint8)
        self.measured, self.measured_velocity = np.zeros(self.joints), np.zeros(self.joints)
        self.refused = np.zeros(REFUSALS, np.int64)
        self.refused_by_gate = np.zeros(self.verdicts.shape[0], np.int64)
        self.state = READY
        self.chunk_id = -1
        self.chunk_seen = chunks.published()

    # ---------------------------------------------------------------- one decision

    cdef void decide(self, int64 now_ns) noexcept nogil:
        """Compose the command for `now_ns` on the bus, or none."""
        self._obey(now_ns)
        if self.state == READY or self.state == ESTOP:
            self.bus.drop()
            return
        cdef int64 late_ns = now_ns - self.commanded_ns
        cdef double elapsed = late_ns * SECONDS
        cdef int code
        if late_ns > LATE_PERIODS * self.period_ns:
            # the arm cannot have been where the trajectory went meanwhile: stop, never catch up in a burst
            if self.state == RUN:
                self._hold(CAUSE_OVERRUN)
            elapsed = PERIODS_OF_GRACE * self.period_ns * SECONDS
        if self.state == RUN and now_ns > self.end_ns + PERIODS_OF_GRACE * self.period_ns:
            self._hold(CAUSE_EXHAUSTED)
        if self.state == RUN:
            self._sample(now_ns)
            self._restore()
            code = limiter.track(self.candidate, self.wanted, self.limits, elapsed)
            self.limited += code != 0
            if code & limiter.INVALID:
                self.cause, self.code = CAUSE_LIMITER, code
            elif self._send(now_ns, elapsed):
                return
            self._refuse()
        self._restore()
        limiter.stop(self.candidate, self.limits, elapsed)
        self.stops += 1
        if not self._send(now_ns, elapsed):
            self.state = FAULT
            self.bus.drop()

    cdef void _obey(self, int64 now_ns) noexcept nogil:
        """The operator's request, a new task, the end."""
        cdef int64 epoch = self.board.task_epoch()
        if self.state == FAULT or self.state == READY or self.state == ESTOP:
            self.epoch = epoch
            return
        if self.board.word(B_STOP) != 0:
            self.state = STOPPING
            return
        if epoch != self.epoch:
            self.epoch = epoch
            if self.state == RUN:
                self._hold(CAUSE_TASK)
        if self.board.word(B_REQUEST) != REQUEST_RUN:
            if self.state == RUN:
                self._hold(CAUSE_REQUEST)
            return
        if self.chunks.published() != self.chunk_seen:
            self._take(now_ns)

    cdef void _hold(self, int cause) noexcept nogil:
        self.state = HOLD
        self.cause = cause
        self.code = 0
        self._show(0)

    cdef void _refuse(self) noexcept nogil:
        """After a refusal while running: what the table says of its code, HOLD or FAULT."""
        if self.cause == CAUSE_GATE and self.code < self.verdicts.shape[0]:
            self.state = self.verdicts[self.code]
        else:
            self.state = FAULT
        self._show(0)

    cdef void _restore(self) noexcept nogil:
        memcpy(&self.candidate[0, 0], &self.commanded[0, 0], 3 * self.joints * sizeof(double))

    cdef bint _send(self, int64 now_ns, double elapsed) noexcept nogil:
        """Gate and encode the candidate; it is the command from then on. 0 when refused."""
        cdef int code
        # a stop is never too old: only what plays a chunk needs a fresh observation and a fresh measurement
        self.ages[0] = (now_ns - self.start_ns) * SECONDS if self.state == RUN else 0.0
        self.ages[1] = 0.0
        self.ages[2] = (now_ns - self.measured_ns) * SECONDS if self.state == RUN else 0.0
        code = gate.check(self.candidate[0], self.measured, self.ages, elapsed, self.gate_bounds, self.gate_rules,
                          self.gate_memory)
        if code != 0:
            self.refused_by_gate[code] += 1
            self.cause, self.code = CAUSE_GATE, code
            return False
        code = self.bus.prepare(self.candidate[0], now_ns)
        if code != BUS_OK:
            self.cause, self.code = CAUSE_ENCODE, code
            return False
        memcpy(&self.commanded[0, 0], &self.candidate[0, 0], 3 * self.joints * sizeof(double))
        self.commanded_ns = now_ns
        return True

    # ---------------------------------------------------------------- the trajectory

    cdef void _sample(self, int64 now_ns) noexcept nogil:
        """Position, velocity, acceleration of the running trajectory at `now_ns` into `wanted`."""
        chunk.sample(self.knots, self.moments, self.step, (now_ns - self.start_ns) * SECONDS, self.wanted)
        if self.chase:
            # Nothing here can be followed smoothly (a step, a leap): go to where it is by the fastest way that is
            # allowed and that could still stop there. Who follows such a velocity overshoots when it ends.
            self.wanted[1:, :] = 0.0
        else:
            chunk.sample_offset(self.offset, self.window, (now_ns - self.seam_ns) * SECONDS, self.wanted)

    cdef void _take(self, int64 now_ns) noexcept nogil:
        """The newest chunk becomes the running trajectory, or is refused and counted; the old one plays on."""
        cdef int64[META] meta
        cdef int64 count = self.chunks.fetch_newest(&self.payload[0], meta)
        cdef int refusal
        if count == 0 or count == self.chunk_seen:
            return
        self.chunk_seen = count
        refusal = self._judge_chunk(meta, now_ns)
        if refusal >= 0:
            self.refused[refusal] += 1
            return
        memcpy(&self.raw[1, 0], &self.payload[0], self.horizon * self.joints * sizeof(double))
        # the knot before the first: what was commanded when the observation was made
        if not self.states.command_at(meta[2], &self.raw[0, 0]):
            memcpy(&self.raw[0, 0], &self.commanded[0, 0], self.joints * sizeof(double))
        self.plan.smooth_to(self.raw, self.knots)
        chunk.spline(self.knots, self.moments)
        chunk.bound(self.knots, self.moments, self.limits[3], self.limits[4])
        self.start_ns = meta[2]
        self.end_ns = meta[2] + self.horizon * self.dt_ns
        # the command holds for the moment it was made for, one period ago: the seam begins there
        self.seam_ns = self.commanded_ns if self.commanded_ns > self.start_ns else self.start_ns
        if self.blended:
            self._blend(now_ns)
        self.chunk_id = meta[0]
        self.chunks_taken += 1
        self.state = RUN
        self.cause = CAUSE_NONE
        self.code = 0
        self._show(self.plan.knots)

    cdef void _blend(self, int64 now_ns) noexcept nogil:
        """The seam from the command into the new trajectory, or none where it cannot be followed smoothly."""
        self.window = chunk.seam(self.knots, self.moments, self.step, (self.seam_ns - self.start_ns) * SECONDS,
                                 self.commanded, self.limits, self.offset)
        self.chase = not (self._playable(now_ns) and self._calm())
        if self.chase:
            self.window = 0.0
            self.chased += 1

    cdef bint _playable(self, int64 now_ns) noexcept nogil:
        """Whether what is left of the trajectory keeps the velocity and acceleration limits."""
        cdef double tau = (now_ns - self.start_ns) * SECONDS
        cdef double end = (self.plan.knots - 1) * self.step
        cdef Py_ssize_t j
        while tau < end:
            chunk.sample(self.knots, self.moments, self.step, tau, self.spare)
            for j in range(self.joints):
                if not (fabs(self.spare[1, j]) <= self.limits[0, j] and fabs(self.spare[2, j]) <= self.limits[1, j]):
                    return False
            tau += 0.5 * self.step
        return True

    cdef bint _calm(self) noexcept nogil:
        """Whether the seam leads straight into the trajectory: a quintic that begins fast swings past it."""
        cdef Py_ssize_t i, j
        cdef double first, allowed
        for i in range(1, SEAM_LOOKS):
            self.spare[:, :] = 0.0
            chunk.sample_offset(self.offset, self.window, fabs(self.window) * i / SEAM_LOOKS, self.spare)
            for j in range(self.joints):
                first = self.offset[j, 0]
                allowed = 0.1 * fabs(first) + SWING
                if not (-allowed <= self.spare[0, j] * (1.0 if first >= 0.0 else -1.0) <= fabs(first) + allowed):
                    return False
        return True

    cdef int _judge_chunk(self, const int64* meta, int64 now_ns) noexcept nogil:
        """-1 when the chunk may be played, else the Refusal."""
        cdef Py_ssize_t i, j
        cdef const double* cells = <const double*>&self.payload[0]
        if meta[1] != self.epoch:
            return REFUSED_EPOCH
        if meta[3] != self.dt_ns:
            return REFUSED_STEP
        if meta[2] <= self.start_ns:
            return REFUSED_ORDER
        if meta[2] > now_ns:
            return REFUSED_FUTURE
        if now_ns >= meta[2] + self.horizon * self.dt_ns:
            return REFUSED_STALE
        for i in range(self.horizon * self.joints):
            if not isfinite(cells[i]):
                return REFUSED_NOT_FINITE
            j = i % self.joints
            if not self.gate_bounds[3, j] - BEYOND <= cells[i] <= self.gate_bounds[4, j] + BEYOND:
                return REFUSED_RANGE
        return -1

    cdef void _show(self, Py_ssize_t knots) noexcept nogil:
        """Publish the running trajectory, seam included, so that inference can look ahead; 0 knots: none runs."""
        cdef int64[META] meta
        cdef Py_ssize_t i
        cdef double* row = <double*>self.trajectory.begin()
        cdef double since_seam
        for i in range(knots):
            memcpy(&self.spare[0, 0], &self.knots[i, 0], self.joints * sizeof(double))
            since_seam = i * self.step - (self.seam_ns - self.start_ns) * SECONDS
            # the knot just before the seam too: readers interpolate from it
            if since_seam > -self.step:
                chunk.sample_offset(self.offset, self.window, since_seam, self.spare)
            memcpy(row + i * self.joints, &self.spare[0, 0], self.joints * sizeof(double))
        meta[0] = self.start_ns
        meta[1] = <int64>(self.step / SECONDS + 0.5)
        meta[2] = knots
        meta[3] = self.chunk_id
        meta[4] = meta[5] = 0
        self.trajectory.publish(meta)

    # ---------------------------------------------------------------- what came back

    cdef void absorb(self, int code, int64 now_ns) noexcept nogil:
        """Take over the measured joints of a finished bus cycle; its code decides about the bus's health."""
        cdef Py_ssize_t j
        if code == BUS_OK:
            for j in range(self.joints):
                self.measured[j] = self.bus.positions[j]
                self.measured_velocity[j] = self.bus.velocities[j]
            self.measured_ns = now_ns
        elif code == BUS_UNPLUGGED:
            self._break(CAUSE_UNPLUGGED, code)
        elif now_ns - self.measured_ns > self.bus_fault_ns:
            self._break(CAUSE_BUS_SILENT, code)
        if self.state == READY:
            memcpy(&self.commanded[0, 0], &self.measured[0], self.joints * sizeof(double))
        self.states.put(now_ns, self.state, self.chunk_id, code, &self.measured[0], &self.measured_velocity[0],
                        &self.commanded[0, 0])
        self.board.beat(CONTROL, now_ns, self.state)
        self.ticks += 1

    cdef void _break(self, int cause, int code) noexcept nogil:
        if self.state != FAULT:
            self.state, self.cause, self.code = FAULT, cause, code
            self._show(0)

    cdef bint at_rest(self) noexcept nogil:
        cdef Py_ssize_t j
        for j in range(self.joints):
            if self.commanded[1, j] != 0.0 or self.commanded[2, j] != 0.0:
                return False
        return True

    # ---------------------------------------------------------------- from Python

    def arm(self, goal, int64 now_ns):
        """Torque came on holding `goal`, Shape (J,), [rad], as just measured: hold it (ARMED) until a chunk comes."""
        cdef Py_ssize_t j
        for j in range(self.joints):
            self.commanded[0, j] = goal[j]
            self.commanded[1, j] = self.commanded[2, j] = 0.0
        gate.arm(self.gate_memory, self.commanded[0])
        memcpy(&self.measured[0], &self.commanded[0, 0], self.joints * sizeof(double))
        self.commanded_ns = self.measured_ns = now_ns
        self.epoch = self.board.epoch
        self.state, self.cause, self.code = ARMED, CAUSE_NONE, 0
        self._show(0)

    def hold(self, goal, int64 now_ns):
        """As `arm`, in state HOLD: control was restarted while the arm held `goal`."""
        self.arm(goal, now_ns)
        self.state, self.cause = HOLD, CAUSE_REQUEST

    def fault(self):
        """A servo is unwell: come to a stop and stay there (FAULT, latched)."""
        self._break(CAUSE_SERVO, 0)

    def run(self, int fd, int ticks):
        """Run `ticks` periods on the port `fd`, at absolute deadlines; returns the state.

        A period that was missed is skipped, never made up for. Returns early once STOPPING has come to rest.
        """
        cdef int _tick
        cdef int64 now_ns, woken_ns
        with nogil:
            if self.next_ns == 0:
                self.next_ns = clock_ns()
            for _tick in range(ticks):
                sleep_until(self.next_ns)
                woken_ns = clock_ns()
                self.marks.mark(LATE, woken_ns - self.next_ns)
                self.decide(woken_ns)
                now_ns = clock_ns()
                self.marks.mark(DECIDE, now_ns - woken_ns)
                self.absorb(self.bus.exchange(fd, self._deadline(now_ns)), woken_ns)
                self.marks.mark(BUS, clock_ns() - now_ns)
                self._next(clock_ns())
                if self.state == STOPPING and self.at_rest():
                    break
        return self.state

    cdef int64 _deadline(self, int64 now_ns) noexcept nogil:
        """The bus has its budget, but never into the next period."""
        cdef int64 latest_ns = self.next_ns + self.period_ns - self.period_ns // 16
        return latest_ns if now_ns + self.bus.budget_ns > latest_ns else now_ns + self.bus.budget_ns

    cdef void _next(self, int64 now_ns) noexcept nogil:
        cdef int64 behind
        self.next_ns += self.period_ns
        behind = now_ns - self.next_ns
        if behind > 0:
            behind = behind // self.period_ns + 1
            self.missed += behind
            self.next_ns += behind * self.period_ns

    def request(self, int64 now_ns):
        """The bytes that this tick writes to the bus, for a bus in memory; follow with `reply`."""
        cdef int length = 0
        cdef const unsigned char* data
        self.decide(now_ns)
        data = self.bus.begin(now_ns, &length)
        return bytes(data[:length])

    def reply(self, const unsigned char[::1] data, int64 now_ns):
        """What the bus in memory answered to `request(now_ns)`; returns the state."""
        cdef int code = BUS_INCOMPLETE
        if data.shape[0] > 0:
            code = self.bus.digest(&data[0], <int>data.shape[0])
        if code != BUS_OK:
            code = self.bus.close()
        self.absorb(code, now_ns)
        return self.state

    @property
    def resting(self):
        """Whether the command has come to rest."""
        return self.at_rest()

    @property
    def command(self):
        """The command in force: rows position, velocity, acceleration, Shape (3, J)."""
        return np.array(self.commanded)

    @property
    def refused_chunks(self):
        """Chunks refused at the mailbox, by Refusal, Shape (REFUSALS,)."""
        return np.array(self.refused)

    @property
    def refused_commands(self):
        """Commands refused by the gate, by its code, Shape (codes,)."""
        return np.array(self.refused_by_gate)

    @property
    def offence(self):
        """(joint, value, bound) of the gate's last refusal; joint -1: no single one."""
        return gate.offender(self.gate_memory), self.gate_memory[2], self.gate_memory[3]
