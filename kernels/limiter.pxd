# Return bits of `step` and `stop`; 0: the target (or rest) was reached exactly in this tick, on every joint.
cdef int MOVING
cdef int CLAMPED
cdef int RECOVERING
cdef int INVALID

cpdef int step(
    double[:, ::1] state, const double[::1] target, const double[::1] target_velocity,
    const double[:, ::1] limits, double elapsed,
) noexcept nogil
# target rows: position, velocity, acceleration
cpdef int track(
    double[:, ::1] state, const double[:, ::1] target, const double[:, ::1] limits, double elapsed
) noexcept nogil
cpdef int stop(double[:, ::1] state, const double[:, ::1] limits, double elapsed) noexcept nogil
cpdef int run(
    double[:, ::1] state, const double[:, :, ::1] targets, const double[:, ::1] limits,
    const double[::1] elapsed, double[:, :, ::1] out, int[::1] codes,
) noexcept nogil
