# Verdicts of `check`: 0 accepted, otherwise the first check that refused.
cdef int ACCEPTED
cdef int FINITE
cdef int MEMORY
cdef int ELAPSED
cdef int OBSERVATION_AGE
cdef int COMMAND_AGE
cdef int MEASURED_AGE
cdef int POSITION
cdef int FOLLOWING
cdef int VELOCITY
cdef int WINDOW
cdef int BURST
cdef int ACCELERATION
cdef int JERK

cpdef int memory_size(int joints) noexcept nogil
cpdef int arm(double[::1] memory, const double[::1] position) noexcept nogil
# ages: observation, command, measured [s]; elapsed: since the last accepted command (or `arm`) [s];
# bounds rows: velocity, acceleration, jerk, lower, upper, following; rules: see gate.py.
cpdef int check(
    const double[::1] command, const double[::1] measured, const double[::1] ages, double elapsed,
    const double[:, ::1] bounds, const double[::1] rules, double[::1] memory,
) noexcept nogil
# The joint that made the last `check` refuse, -1 when no single joint did.
cpdef int offender(const double[::1] memory) noexcept nogil
cpdef int run(
    const double[:, ::1] commands, const double[:, ::1] measured, const double[:, ::1] ages,
    const double[::1] elapsed, const double[:, ::1] bounds, const double[::1] rules, double[::1] memory,
    int[::1] codes,
) noexcept nogil
