"""Action chunk to trajectory: the C-level contract of `chunk.py`.

n knots `step` seconds apart, J joints; every function returns 0, or -1 when shapes disagree (nothing is written).
"""

cpdef int spline(const double[:, ::1] knots, double[:, ::1] moments) noexcept nogil
cpdef int bound(const double[:, ::1] knots, double[:, ::1] moments,
                const double[::1] lower, const double[::1] upper) noexcept nogil
cpdef int sample(const double[:, ::1] knots, const double[:, ::1] moments, double step, double tau,
                 double[:, ::1] out) noexcept nogil
cpdef int blend(const double[:, ::1] start, double window, double[:, ::1] offset) noexcept nogil
# > 0: the window; 0: nothing to blend; < 0: minus the longest window there is, which breaks a limit;
# NaN: shapes disagree or something is not finite, and the offset is not to be used.
cpdef double seam(const double[:, ::1] knots, const double[:, ::1] moments, double step, double tau,
                  const double[:, ::1] commanded, const double[:, ::1] limits,
                  double[:, ::1] offset) noexcept nogil
# Takes the window as `seam` returned it, either sign.
cpdef int sample_offset(const double[:, ::1] offset, double window, double t,
                        double[:, ::1] out) noexcept nogil


cdef class SmoothPlan:
    cdef readonly Py_ssize_t length, joints, factor, window, order, rate
    cdef readonly bint decimate
    cdef readonly Py_ssize_t dense, knots, points  # rows after resampling, after smoothing, after rollout
    cdef bint _bounded
    cdef const double[:, ::1] _projection, _phases, _rollout_phases
    cdef const double[::1] _lower, _upper
    cdef double[:, ::1] _moments, _dense_rows, _knot_rows, _knot_moments, _start, _offset

    # The caller answers for the shapes. One plan serves one thread at a time: it owns its buffers.
    cdef void resample_to(self, const double[:, ::1] chunk, double[:, ::1] out) noexcept nogil
    cdef void savgol_to(self, const double[:, ::1] rows, double[:, ::1] out) noexcept nogil
    cdef void smooth_to(self, const double[:, ::1] chunk, double[:, ::1] out) noexcept nogil
    cdef void rollout_to(self, const double[:, ::1] chunk, const double[:, ::1] commanded, double step,
                         double window, double[:, ::1] out) noexcept nogil
