"""One cycle of a servo bus: goals out, states in, one deadline. Executes the `CyclePlan` of an arm's driver.

`BusCycle` speaks Feetech STS; `bus_dynamixel.DynamixelCycle` replaces what depends on the protocol.

A cycle is one write(2) of a sync-write frame (all goals) and a sync-read frame (all states), then poll(2) and
read(2) until every servo has answered or the deadline has come. It never waits otherwise and never spins.
Without a composed goal it only reads, which is how an arm is watched before it is activated.

**A reply is never taken for one of a later cycle.** Frames carry no sequence number, so: input is drained
before a request is sent, after a cycle in which a servo was missing until the line was silent for the time of one
reply; and the next request asks for one byte more (`variants` lengths in turn), so that a reply which arrives late
has the wrong length. A servo answers in order: once it has given a fresh answer nothing older of it can be on its way,
and once all have, the plain length is used again. A reply is matched with the oldest request of its length that may
still be owed, and is fresh where that is the present one. After `variants` losses in a row lengths come in no order, so
that a servo which comes back, having lost what it owed, has caught up after a few replies, while one that is late by
whatever number of cycles never does. (Requests older than HISTORY cycles count as lost.)

**A goal is checked in integers after it was encoded**, independently of limiter and gate: the bytes decode to
the ticks that were meant, these lie in the servo's limits, and they moved by no more than ceil(speed *
elapsed / tick) + 1 since the last goal that was sent. Otherwise nothing is composed.
"""

from array import array

from libc.errno cimport EAGAIN, EINTR, errno
from libc.math cimport ceil, fabs, floor
from libc.string cimport memcpy, memmove
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec
from posix.unistd cimport read as posix_read
from posix.unistd cimport write as posix_write

from dzedge.kernels cimport codec


cdef extern from "<poll.h>" nogil:
    """
    #ifndef _GNU_SOURCE
    int ppoll(struct pollfd *, nfds_t, const struct timespec *, const void *);
    #endif
    """
    struct pollfd:
        int fd
        short events
        short revents
    int ppoll(pollfd *fds, unsigned long count, const timespec *timeout, const void *mask)
    enum:
        POLLIN

cdef enum:
    RX = 4096                   # bytes of input held at most; a cycle's replies are a few hundred
    SLACK_TICKS = 64            # backlash and noise, allowed beside `travel`
    QUIET_WAITS = 4             # times `quiet_ns`: a line that is never silent must not eat the period
    HISTORY = 1024              # a power of two
    TURN_TICKS = 4096
    POSITION_BIT = 15
    LOAD_BIT = 10

cdef long long NS = 1000000000


cdef inline long long monotonic_ns() noexcept nogil:
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return <long long>now.tv_sec * NS + now.tv_nsec


cdef class BusCycle:
    """One arm's cycle, from the plain arrays of a `CyclePlan`. J servos, in the order of the joints.

    ids: Shape (J,), uint8. goal_frame: the sync-write frame with all but the positions filled in;
    offsets: Shape (J,), where in it each goal position stands. requests: Shape (variants, bytes), sync-read
    frames that ask for data_length, data_length + 1, ... bytes from Present Position on.
    ticks = zero + scale * position: zero, scale: Shape (J,), [ticks], [ticks/rad], signed, gripper [ticks/1].
    lower, upper: Shape (J,), [ticks]. speed: Shape (J,), [rad/s], gripper [1/s], of goals.
    travel: [ticks/s], what no servo can exceed: a position further away is not believed.
    budget_ns: wire time and allowance. sample_delay_ns: from the request to the middle of the replies.
    elapsed_max_ns: longer pauses between goals earn no larger step. echo: the adapter returns what we send.
    quiet_ns: how long the line must be silent before a request that follows a lost reply.
    Raises ValueError where shapes do not agree.
    """

    def __init__(self, *, const unsigned char[::1] ids, const unsigned char[::1] goal_frame,
                 const int[::1] offsets, const unsigned char[:, ::1] requests, int data_length,
                 const double[::1] zero, const double[::1] scale, const int[::1] lower, const int[::1] upper,
                 const double[::1] speed, double travel, long long budget_ns, long long sample_delay_ns,
                 long long elapsed_max_ns, bint echo=False, long long quiet_ns=0):
        cdef int count = <int>ids.shape[0]
        cdef int i
        for name, length in (("offsets", offsets.shape[0]), ("zero", zero.shape[0]),
                             ("scale", scale.shape[0]), ("lower", lower.shape[0]),
                             ("upper", upper.shape[0]), ("speed", speed.shape[0])):
            if length != count:
                raise ValueError(f"{name} has {length} entries, ids has {count}: one for each servo")
        if count == 0 or data_length < 2 or requests.shape[0] == 0:
            raise ValueError(f"a cycle needs servos ({count}), bytes ({data_length}, at least 2), requests")
        for i in range(count):
            if not 5 <= offsets[i] <= goal_frame.shape[0] - 3 or not fabs(scale[i]) > 0.0:
                raise ValueError(f"servo {ids[i]}: offset {offsets[i]} or scale {scale[i]} cannot be used")
        self.joints = count
        self.budget_ns = budget_ns
        self._ids, self._requests, self._offsets = ids, requests, offsets
        self._zero, self._scale, self._lower, self._upper, self._speed = zero, scale, lower, upper, speed
        self._travel, self._data_length, self._variants = travel, data_length, <int>requests.shape[0]
        self._elapsed_max_ns, self._sample_delay_ns, self._echo = elapsed_max_ns, sample_delay_ns, echo
        self._quiet_ns, self._steady, self._loss = quiet_ns, min(2, <int>requests.shape[0]), 0
        self._ticks_low, self._ticks_high = 0, TURN_TICKS - 1
        self._goal_length = <int>goal_frame.shape[0]
        self._history, self._since = bytearray(HISTORY), array("q", [1] * count)
        self._number, self._losses, self._dice = 0, 0, 1
        self._out = bytearray(bytes(goal_frame) + bytes(requests.shape[1]))
        self._rx = bytearray(RX)
        self._goal, self._next = array("i", [0] * count), array("i", [0] * count)
        self._found = array("i", [0] * 5)
        self._allocate_results(count)

    def _allocate_results(self, int count):
        nan = [float("nan")] * count
        self.positions, self.velocities, self.loads = array("d", nan), array("d", nan), array("d", nan)
        self.voltages, self.temperatures, self.currents = array("d", nan), array("d", nan), array("d", nan)
        self.results, self.errors = array("i", [SERVO_NO_REPLY] * count), bytearray(count)
        self.ticks = array("i", [-1] * count)
        self.heard_ns, self.counters = array("q", [0] * count), array("q", [0] * COUNTERS)

    def seed(self, const int[::1] ticks, long long now_ns):
        """Say which goals the servos hold: Shape (J,), [ticks]. compose refuses until this was called, and
        measures the first step from here."""
        if ticks.shape[0] != self.joints:
            raise ValueError(f"{ticks.shape[0]} goals for {self.joints} servos")
        self._goal[:] = ticks
        self._goal_ns = now_ns
        self._seeded = 1
        self.composed = 0

    def unseed(self):
        """Forget the goals, as after torque off: compose refuses from now on."""
        self._seeded = 0
        self.composed = 0

    @property
    def goals(self):
        """The goals last sent, Shape (J,), [ticks]."""
        return list(self._goal)

    def compose(self, double[::1] command, long long now_ns):
        """`prepare` for Python: encode `command` for the next cycle; BUS_OK or why not."""
        return self.prepare(command, now_ns)

    def discard(self):
        """`drop` for Python."""
        self.drop()

    def finish(self):
        """`close` for Python: end the cycle as its deadline does; a BusCode."""
        return self.close()

    def cycle(self, int fd, long long deadline_ns):
        """`exchange` for Python: one cycle on the tty `fd`; returns a BusCode."""
        cdef int code
        with nogil:
            code = self.exchange(fd, deadline_ns)
        return code

    def request(self, long long now_ns):
        """`begin` for Python: the bytes to send in a cycle that begins at now_ns."""
        cdef int length = 0
        cdef const unsigned char *data = self.begin(now_ns, &length)
        return data[:length]

    def feed(self, const unsigned char[::1] data):
        """`digest` for Python: take the bytes that came back; returns BUS_OK once all servos replied."""
        if data.shape[0] == 0:
            return self.digest(NULL, 0)
        return self.digest(&data[0], <int>data.shape[0])

    cdef int prepare(self, double[::1] command, long long now_ns) noexcept nogil:
        """Encode `command`, Shape (J,), [rad], gripper [1], for the next cycle; BUS_OK or why not."""
        cdef int i, ticks
        cdef double exact, elapsed
        self.composed = 0
        if command.shape[0] != self.joints:
            return self._refuse(BUS_MISMATCH)
        if not self._seeded:
            return self._refuse(BUS_UNSEEDED)
        if now_ns < self._goal_ns:
            return self._refuse(BUS_TIME)
        elapsed = <double>min(now_ns - self._goal_ns, self._elapsed_max_ns) * 1e-9
        for i in range(self.joints):
            exact = self._zero[i] + self._scale[i] * command[i]
            if not exact - exact == 0.0:
                return self._refuse(BUS_NOT_FINITE)
            if not (self._lower[i] - 0.5 <= exact <= self._upper[i] + 0.5):
                return self._refuse(BUS_RANGE)
            ticks = self._put_goal(self._offsets[i], <int>floor(exact + 0.5))
            if fabs(ticks - exact) > 0.5:
                return self._refuse(BUS_MISMATCH)
            if ticks < self._lower[i] or ticks > self._upper[i]:
                return self._refuse(BUS_RANGE)
            if fabs(ticks - self._goal[i]) > ceil(self._speed[i] * fabs(self._scale[i]) * elapsed) + 1.0:
                return self._refuse(BUS_STEP)
            self._next[i] = ticks
        self._seal_goals()
        self._next_ns = now_ns
        self.composed = 1
        return BUS_OK

    cdef int _put_goal(self, int at, int ticks) noexcept nogil:
        """Encode a goal into the goal frame; returns what its bytes decode to."""
        codec.put_word(self._out, at, codec.encode_signed(ticks, POSITION_BIT))
        return codec.decode_signed(codec.word(self._out, at), POSITION_BIT)

    cdef void _seal_goals(self) noexcept nogil:
        codec.seal(self._out, 0, self._goal_length)

    cdef int _refuse(self, int code) noexcept nogil:
        self.counters[REFUSED] += 1
        return code

    cdef void drop(self) noexcept nogil:
        """Forget what prepare left: the next cycle only reads."""
        self.composed = 0

    cdef const unsigned char* begin(self, long long now_ns, int *length) noexcept nogil:
        """Open a cycle without a port; returns the bytes to send, which count as sent."""
        self._rx_length = 0
        self._assemble(now_ns)
        length[0] = self._length
        self._sent()
        return &self._out[self._start]

    cdef void _assemble(self, long long now_ns) noexcept nogil:
        cdef int i
        cdef int request = <int>self._requests.shape[1]
        memcpy(&self._out[self._goal_length], &self._requests[self._variant, 0], request)
        self._start = 0 if self.composed else self._goal_length
        self._length = self._goal_length - self._start + request
        self._echo_left = self._echo
        self.sent_ns = now_ns
        self.sampled_ns = now_ns + self._sample_delay_ns
        self.missing = self.joints
        self._running = 1
        self._number += 1
        self._history[self._number & (HISTORY - 1)] = self._variant
        for i in range(self.joints):
            self.results[i] = SERVO_NO_REPLY
            self._since[i] = max(self._since[i], self._number - HISTORY + 1)

    cdef void _sent(self) noexcept nogil:
        cdef int i
        if self.composed:
            for i in range(self.joints):
                self._goal[i] = self._next[i]
            self._goal_ns = self._next_ns
        self.composed = 0

    cdef int digest(self, const unsigned char *data, int n) noexcept nogil:
        """Take bytes that came back, in any pieces. The last reply finishes the cycle: then as `close`, else
        BUS_INCOMPLETE."""
        cdef int part
        while n > 0:
            part = min(n, RX - self._rx_length)
            memcpy(&self._rx[self._rx_length], data, part)
            self._rx_length += part
            data += part
            n -= part
            self._scan(False, False)
        return BUS_INCOMPLETE if self.missing else self.close()

    cdef int close(self) noexcept nogil:
        """Close the cycle, as its deadline does: BUS_OK where every servo gave a good reply. Idempotent."""
        cdef int i
        cdef int code = BUS_OK
        if not self._running:
            return self._code
        self._running = 0
        if self.missing:
            self._scan(False, True)
        self.counters[CYCLES] += 1
        self.counters[TIMEOUTS] += self.missing
        self._lost = self.missing > 0
        self._next_variant()
        for i in range(self.joints):
            if self.results[i] != SERVO_OK:
                code = BUS_INCOMPLETE
        self._code = code
        return code

    cdef void _next_variant(self) noexcept nogil:
        """Another length for the next request."""
        cdef int others = self._variants - self._loss - 1
        cdef int step
        self._losses = min(self._losses + 1, 255) if self.missing else 0
        if self._losses == 0:
            # after a complete cycle only a duplicate can be on its way; it has another length than the next reply
            self._variant = self._variant + 1 if self._variant + 1 < self._steady else 0
        elif self._losses < self._variants or others < 1 or self._variant < self._loss:
            self._variant = max(self._variant + 1, self._loss) if self._variant + 1 < self._variants else self._loss
        else:
            self._dice ^= self._dice << 13
            self._dice ^= self._dice >> 17
            self._dice ^= self._dice << 5
            step = 1 + <int>(self._dice % <unsigned int>others)
            self._variant = self._loss + (self._variant - self._loss + step) % (others + 1)

    cdef void _scan(self, bint stale, bint final) noexcept nogil:
        """Work through the input. stale: it came before the request, so nothing in it counts."""
        cdef int start = 0
        cdef int echo
        cdef long long strays
        if self._echo_left and not stale:
            echo = codec.echo_length(self._out[self._start:], self._length, self._rx, 0, self._rx_length)
            if echo < 0 and not final:
                return
            self._echo_left = 0
            start = max(echo, 0)
        self._found[3] = self._found[4] = 0
        while self._find(start, final):
            strays = self.counters[STRAY]
            self._take(self._found[0], self._found[1], stale)
            # what nobody asked for may be no frame: an 8-bit sum is right by chance, and good ones begin in it
            start = self._found[2] if strays == self.counters[STRAY] else self._found[0] + 1
        start = self._found[2]
        self.counters[RESYNC] += self._found[3]
        self.counters[CHECKSUM] += self._found[4]
        self._rx_length -= start
        memmove(&self._rx[0], &self._rx[start], self._rx_length)

    cdef int _find(self, int start, bint final) noexcept nogil:
        """The next whole frame in the input, as the codec's `scan` finds it."""
        return codec.scan(self._rx, start, self._rx_length, 6 + self._data_length + self._variants - 1, final,
                          self._found)

    cdef int _servo(self, int id) noexcept nogil:
        """Index of the servo with this id; `joints` where there is none."""
        cdef int i = 0
        while i < self.joints and self._ids[i] != id:
            i += 1
        return i

    cdef bint _fresh(self, int i, int variant, bint stale) noexcept nogil:
        """Whether a good reply of servo i to a request of this variant answers the present one."""
        cdef long long asked = self._since[i]
        while asked <= self._number and self._history[asked & (HISTORY - 1)] != variant:
            asked += 1
        if asked > self._number:
            self.counters[LATE if stale else STRAY] += 1    # nobody asked, or it was answered
            return False
        self._since[i] = asked + 1          # it answers in order
        if stale or asked < self._number:
            self.counters[LATE] += 1
            return False
        self.missing -= 1
        return True

    cdef void _take(self, int at, int length, bint stale) noexcept nogil:
        """One whole frame: a reply that was asked for, or one to be counted and dropped."""
        cdef int i = self._servo(self._rx[at + 2])
        cdef int extra = length - 6 - self._data_length
        if i == self.joints or extra < 0 or extra >= self._variants:
            self.counters[STRAY] += 1
            return
        if not self._fresh(i, extra, stale):
            return
        self._error(i, self._rx[at + 4])
        if self._believe(i, codec.decode_signed(codec.word(self._rx, at + 5), POSITION_BIT)):
            self._measure(i, self._rx, at + 5)

    cdef void _error(self, int i, int error) noexcept nogil:
        """Keep the ERR byte of a fresh reply."""
        self.errors[i] = error
        if error:
            self.counters[ALERTS] += 1

    cdef bint _believe(self, int i, int ticks) noexcept nogil:
        """Take the position of a fresh reply over, unless no servo could have reached it."""
        if not self._plausible(i, ticks):
            self.results[i] = SERVO_IMPLAUSIBLE
            self.counters[IMPLAUSIBLE] += 1
            return False
        self.results[i] = SERVO_OK
        self.heard_ns[i] = self.sent_ns
        self.ticks[i] = ticks
        self.positions[i] = (ticks - self._zero[i]) / self._scale[i]
        return True

    cdef bint _plausible(self, int i, int ticks) noexcept nogil:
        """An 8-bit sum passes 2 % of random damage; a position out of reach is damage, too."""
        cdef double reach
        if ticks < self._ticks_low or ticks > self._ticks_high:
            return False
        if self.heard_ns[i] == 0:
            return True
        reach = self._travel * <double>(self.sent_ns - self.heard_ns[i]) * 1e-9 + SLACK_TICKS
        return fabs(ticks - self.ticks[i]) <= reach

    cdef void _measure(self, int i, const unsigned char[::1] rx, int at) noexcept nogil:
        """Registers from Present Position (56) on: position, speed, load, voltage, temperature, current."""
        cdef double direction = 1.0 if self._scale[i] > 0.0 else -1.0
        if self._data_length >= 4:
            self.velocities[i] = codec.decode_signed(codec.word(rx, at + 2), POSITION_BIT) / self._scale[i]
        if self._data_length >= 8:
            self.loads[i] = direction * codec.decode_signed(codec.word(rx, at + 4), LOAD_BIT) * 0.001
            self.voltages[i] = rx[at + 6] * 0.1
            self.temperatures[i] = rx[at + 7]
        if self._data_length >= 15:
            self.currents[i] = direction * codec.decode_signed(codec.word(rx, at + 13), POSITION_BIT) * 0.0065

    cdef int exchange(self, int fd, long long deadline_ns) noexcept nogil:
        """One cycle on the non-blocking tty `fd` until CLOCK_MONOTONIC deadline_ns; a BusCode."""
        cdef int code = self._drain(fd)
        self._assemble(monotonic_ns())
        if code == BUS_OK:
            code = self._send(fd)
        if code == BUS_OK:
            code = self._receive(fd, deadline_ns)
        self.composed = 0
        # a cycle that failed half-way is closed all the same: counters, and the next request's length
        if code == BUS_OK:
            return self.close()
        self.close()
        return code

    cdef int _drain(self, int fd) noexcept nogil:
        """Throw away what came since the last cycle: it answers nothing that will be asked now. After a lost reply
        wait until the line is quiet."""
        cdef ssize_t n
        cdef int waits = 0
        cdef int _round
        for _round in range(16):
            n = posix_read(fd, &self._rx[self._rx_length], RX - self._rx_length)
            if n < 0 and errno != EAGAIN and errno != EINTR:
                return BUS_UNPLUGGED
            if n > 0:
                self._rx_length += <int>n
                self._scan(True, True)
            # n == 0: a tty opened with VMIN = 0 has nothing; a dead one shows when it is written to or polled
            elif self._lost and waits < QUIET_WAITS and self._wait(fd, self._quiet_ns) > 0:
                waits += 1
            else:
                break
        self._rx_length = 0
        return BUS_OK

    cdef int _wait(self, int fd, long long wait_ns) noexcept nogil:
        """Wait for input: 1 there is some, 0 none in that time, -1 hung up, -2 interrupted by a signal."""
        cdef pollfd polled
        cdef timespec wait
        cdef int ready
        polled.fd = fd
        polled.events = POLLIN
        wait.tv_sec = wait_ns // NS
        wait.tv_nsec = wait_ns % NS
        ready = ppoll(&polled, 1, &wait, NULL)
        if ready < 0:
            return -2 if errno == EINTR else -1
        return -1 if ready > 0 and not polled.revents & POLLIN else ready

    cdef int _send(self, int fd) noexcept nogil:
        cdef ssize_t n = posix_write(fd, &self._out[self._start], self._length)
        if n < 0 and errno != EAGAIN and errno != EINTR:
            return BUS_UNPLUGGED
        if n == self._length or (self.composed and n >= self._goal_length):
            self._sent()
        elif self.composed:
            self.counters[UNSENT] += 1
        return BUS_OK if n == self._length else BUS_WRITE_FAILED

    cdef int _receive(self, int fd, long long deadline_ns) noexcept nogil:
        cdef ssize_t n
        cdef int ready
        while self.missing:
            ready = self._wait(fd, max(deadline_ns - monotonic_ns(), 0))
            if ready == 0:
                break
            if ready == -1:
                return BUS_UNPLUGGED
            n = posix_read(fd, &self._rx[self._rx_length], RX - self._rx_length)
            if n == 0 and ready > 0 or n < 0 and errno != EAGAIN and errno != EINTR:
                return BUS_UNPLUGGED
            if n > 0:
                self._rx_length += <int>n
                self._scan(False, False)
        return BUS_OK
