"""C-level face of the shared-memory mailboxes; see mailbox.pyx."""

ctypedef long long int64
ctypedef unsigned char uint8

cdef enum:
    META = 6        # int64 numbers beside each payload


cdef class Ring:
    """Slots of equal size in shared memory: one writer, any number of readers, nobody ever waits."""
    cdef uint8[::1] memory
    cdef uint8* base
    cdef readonly Py_ssize_t slots
    cdef readonly Py_ssize_t payload_bytes
    cdef Py_ssize_t stride

    cdef uint8* slot(self, int64 index) noexcept nogil
    cdef uint8* begin(self) noexcept nogil
    cdef void publish(self, const int64* meta) noexcept nogil
    cdef int64 published(self) noexcept nogil
    cdef int fetch(self, int64 index, uint8* payload, Py_ssize_t payload_bytes, int64* meta) noexcept nogil
    cdef int64 fetch_newest(self, uint8* payload, int64* meta) noexcept nogil


cdef class FrameRing(Ring):
    cdef readonly Py_ssize_t height
    cdef readonly Py_ssize_t width
    cdef readonly Py_ssize_t pixel_bytes
    cdef void commit(self, int64 number, int64 capture_ns, int64 receive_ns, int64 exposure_us, int64 gain,
                     int64 domain) noexcept nogil


cdef class ChunkBox(Ring):
    cdef readonly Py_ssize_t horizon
    cdef readonly Py_ssize_t joints
    cdef readonly Py_ssize_t latents


cdef class StateRing(Ring):
    cdef readonly Py_ssize_t joints
    cdef double[::1] row
    cdef void put(self, int64 time_ns, int state, int64 chunk_id, int code, const double* positions,
                  const double* velocities, const double* command) noexcept nogil
    cdef int command_at(self, int64 time_ns, double* out) noexcept nogil
    cdef int64 _time(self, int64 index) noexcept nogil
    cdef int64 _bracket(self, int64 time_ns, int64* older, double* share) noexcept nogil


cdef class TrajectoryBox(Ring):
    cdef readonly Py_ssize_t capacity
    cdef readonly Py_ssize_t joints
