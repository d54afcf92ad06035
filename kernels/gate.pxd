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
cpdef int arm(double[::1] memory, double[::1] position) noexcept nogil
cpdef int check(
    double[::1] command, double[::1] measured, double[::1] ages, double elapsed,
    double[:, ::1] bounds, double[::1] rules, double[::1] memory
) noexcept nogil
cpdef int offender(double[::1] memory) noexcept nogil
