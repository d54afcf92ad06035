"""One servo-bus cycle without the GIL: the contract that `tick` cimports. Meanings are in bus.pyx."""

cimport cython

cpdef enum BusCode:
    # what exchange, begin and digest return
    BUS_OK = 0
    BUS_INCOMPLETE = 1          # a servo did not answer (well) by the deadline: see `results`
    BUS_UNPLUGGED = 2           # POLLHUP, EIO, end of file: the port is gone
    BUS_WRITE_FAILED = 3        # the port took nothing, or not the whole goal frame
    # what compose returns, beside BUS_OK; nothing is composed then
    BUS_NOT_FINITE = 16         # a command that is NaN or infinite
    BUS_RANGE = 17              # outside the servo's tick limits
    BUS_MISMATCH = 18           # a position does not decode to what was meant, or not J of them
    BUS_STEP = 19               # more ticks than the speed limit allows since the last goal sent
    BUS_UNSEEDED = 20           # no goal known to be in the servos yet: call seed() first
    BUS_TIME = 21               # now_ns lies before the last goal sent

cpdef enum ServoCode:
    # one for each servo and cycle, in `results`
    SERVO_OK = 0
    SERVO_NO_REPLY = 1          # nothing valid and expected by the deadline
    SERVO_IMPLAUSIBLE = 2       # a valid frame whose position no servo could have reached; not taken over

cpdef enum:
    # indices into `counters`
    CYCLES = 0
    CHECKSUM = 1                # frames whose sum was wrong
    RESYNC = 2                  # bytes skipped to find the next frame
    STRAY = 3                   # whole frames of an id or a length nobody asked for
    LATE = 4                    # whole replies to an earlier cycle, thrown away
    TIMEOUTS = 5                # servo replies missing at the deadline
    IMPLAUSIBLE = 6
    REFUSED = 7                 # compose refusals
    ALERTS = 8                  # replies with a nonzero ERR byte
    UNSENT = 9                  # goal frames that the port did not take whole
    COUNTERS = 10


cdef class BusCycle:
    cdef readonly int joints
    cdef readonly long long budget_ns       # wire time + allowance: a good deadline is now + budget_ns
    cdef readonly long long sent_ns         # when the last cycle's request was handed over
    cdef readonly long long sampled_ns      # when its servos measured, about: use it as JointState.time_ns
    cdef readonly int composed              # 1: the next exchange/begin carries goals, 0: reads only
    cdef readonly int missing               # servos not yet heard in this cycle

    # results of the last cycle, Shape (J,); a servo without a good reply keeps its last values
    cdef readonly double[::1] positions   # [rad], gripper [1]
    cdef readonly double[::1] velocities   # [rad/s], NaN where the plan does not read them
    cdef readonly double[::1] loads   # [1], -1 to 1 of the servo's stall torque
    cdef readonly double[::1] voltages   # [V]
    cdef readonly double[::1] temperatures   # [deg C]
    cdef readonly double[::1] currents   # [A]
    cdef readonly int[::1] ticks   # [ticks], as measured; -1 = never
    cdef readonly int[::1] results   # ServoCode
    cdef readonly unsigned char[::1] errors   # the ERR byte of the last reply, 0 = no alert
    cdef readonly long long[::1] heard_ns   # request time of the last good reply, 0 = never
    cdef readonly long long[::1] counters   # see CYCLES ...

    # the plan, and buffers of fixed size
    cdef const unsigned char[::1] _ids
    cdef unsigned char[::1] _out
    cdef const unsigned char[:, ::1] _requests
    cdef const int[::1] _offsets
    cdef const int[::1] _lower
    cdef const int[::1] _upper
    cdef const double[::1] _zero
    cdef const double[::1] _scale
    cdef const double[::1] _speed
    cdef double _travel
    cdef int _goal_length
    cdef int _data_length
    cdef int _variant
    cdef int _variants
    cdef int _echo
    cdef int _echo_left
    cdef int _steady            # variants that complete cycles use in turn: [0, steady)
    cdef int _loss              # after the last variant of cycles with a loss this one follows
    cdef int _lost              # the last cycle lost a reply
    cdef int _ticks_low         # a position outside is not believed
    cdef int _ticks_high
    cdef long long _quiet_ns
    cdef long long _number              # of this cycle
    cdef unsigned char[::1] _history    # variants of the last cycles
    cdef long long[::1] _since          # for each servo: the oldest cycle that it may still answer
    cdef int _losses                    # cycles in a row that were not complete
    cdef unsigned int _dice
    cdef int _seeded
    cdef int _running
    cdef int _code
    cdef int[::1] _goal
    cdef int[::1] _next
    cdef long long _goal_ns
    cdef long long _next_ns
    cdef long long _elapsed_max_ns
    cdef long long _sample_delay_ns
    cdef unsigned char[::1] _rx
    cdef int _rx_length
    cdef int[::1] _found
    cdef int _start
    cdef int _length

    # command: Shape (J,), [rad], gripper [1]. Takes effect with the next exchange/begin; BUS_OK or a refusal.
    cdef int prepare(self, double[::1] command, long long now_ns) noexcept nogil
    # Forget what prepare left: the next cycle only reads.
    cdef void drop(self) noexcept nogil
    # One cycle on a non-blocking tty: drain, write, poll, read until all replied or deadline_ns.
    cdef int exchange(self, int fd, long long deadline_ns) noexcept nogil
    # The same without a port (lockstep): begin() says which bytes to send, digest() takes what came back
    # (in any pieces; BUS_OK once all replied), close() ends the cycle as the deadline would.
    cdef const unsigned char* begin(self, long long now_ns, int* length) noexcept nogil
    cdef int digest(self, const unsigned char* data, int n) noexcept nogil
    cdef int close(self) noexcept nogil

    # what depends on the protocol
    cdef int _put_goal(self, int at, int ticks) noexcept nogil
    cdef void _seal_goals(self) noexcept nogil
    cdef int _find(self, int start, bint final) noexcept nogil
    cdef void _take(self, int at, int length, bint stale) noexcept nogil
    cdef void _measure(self, int i, const unsigned char[::1] rx, int at) noexcept nogil
    # what does not
    cdef int _refuse(self, int code) noexcept nogil
    cdef void _assemble(self, long long now_ns) noexcept nogil
    cdef void _sent(self) noexcept nogil
    cdef int _drain(self, int fd) noexcept nogil
    cdef int _send(self, int fd) noexcept nogil
    cdef int _receive(self, int fd, long long deadline_ns) noexcept nogil
    cdef void _scan(self, bint stale, bint final) noexcept nogil
    cdef int _wait(self, int fd, long long wait_ns) noexcept nogil
    cdef int _servo(self, int id) noexcept nogil
    cdef void _next_variant(self) noexcept nogil
    cdef bint _fresh(self, int i, int variant, bint stale) noexcept nogil
    cdef void _error(self, int i, int error) noexcept nogil
    cdef bint _believe(self, int i, int ticks) noexcept nogil
    cdef bint _plausible(self, int i, int ticks) noexcept nogil
