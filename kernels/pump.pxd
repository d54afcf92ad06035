"""C-level face of the camera pump; see pump.pyx."""

cimport cython

from dzedge.kernels.mailbox cimport FrameRing, int64, uint8


cdef enum:
    COUNTERS = 20
    TRACE = 1024


# The C API of librealsense; the last argument is always rs2_error**.
ctypedef int (*Wait)(void*, unsigned int, void**, void**) noexcept nogil
ctypedef void (*Release)(void*) noexcept nogil
ctypedef const char* (*Text)(void*) noexcept nogil
ctypedef unsigned long long (*Number)(void*, void**) noexcept nogil
ctypedef double (*Stamp)(void*, void**) noexcept nogil
ctypedef int (*Field)(void*, void**) noexcept nogil
ctypedef int (*Supports)(void*, int, void**) noexcept nogil
ctypedef long long (*Metadata)(void*, int, void**) noexcept nogil
ctypedef const void* (*Data)(void*, void**) noexcept nogil
ctypedef void (*Describe)(const void*, int*, int*, int*, int*, int*, void**) noexcept nogil


cdef struct Library:
    Wait try_wait
    Release release
    Release free_error
    Text error_message
    Number number
    Stamp stamp
    Supports supports
    Metadata metadata
    Data data
    Field domain
    Field data_size
    Field width
    Field height
    Field stride
    Field bits
    Data profile
    Describe describe


cdef struct SoftwareFrame:      # rs2_software_video_frame of rs_internal.h
    void* pixels
    Release deleter
    int stride
    int bpp
    double timestamp
    int domain
    int frame_number
    const void* profile
    float depth_units


ctypedef void (*Inject)(void*, SoftwareFrame, void**) noexcept nogil
ctypedef void (*SetMetadata)(void*, int, int64, void**) noexcept nogil


@cython.final
cdef class ClockMap:
    cdef readonly int domain
    cdef readonly int64 offset_ns
    cdef readonly int64 resets
    cdef readonly int64 steps
    cdef readonly int64 switches
    cdef int64 last_stamp
    cdef int64 last_receive
    cdef int64 last_realtime
    cdef int anchored

    cpdef void forget(self) noexcept nogil
    cpdef int64 map(self, int64 stamp_ns, int domain, int64 receive_ns, int64 realtime_ns) noexcept nogil
    cdef int64 _hardware(self, int64 stamp_ns, int64 receive_ns) noexcept nogil


@cython.final
cdef class FramePump:
    cdef Library library
    cdef void* queue
    cdef readonly FrameRing ring
    cdef readonly ClockMap clock
    cdef readonly int stream
    cdef readonly int index
    cdef readonly FramePump beside
    cdef int convert
    cdef int pixel_bytes
    cdef int64 stopping
    cdef int64[COUNTERS] counters
    cdef int64[4 * TRACE] history
    cdef char[256] message

    cdef _bind(self, addresses)
    cdef int _failed(self, void* error) noexcept nogil
    cdef int _turn(self, unsigned int timeout_ms) noexcept nogil
    cdef int _route(self, void* frame, int64 receive_ns) noexcept nogil
    cdef int _offer(self, void* frame, int64 receive_ns, int stream, int index) noexcept nogil
    cdef int _take(self, void* frame, int64 receive_ns) noexcept nogil
    cdef void _account(self, int64 commit_ns, void* frame, int64 number, int64 capture_ns, int64 receive_ns,
                       int64 realtime_ns) noexcept nogil
    cdef int64 _meta(self, void* frame, int key) noexcept nogil
    cdef int _store(self, void* frame) noexcept nogil
    cdef int64 _lead(self, void* frame) noexcept nogil
    cdef void _copy(self, const uint8* source, int stride, uint8* target) noexcept nogil


@cython.final
cdef class Feeder:
    cdef Inject on_frame
    cdef SetMetadata set_metadata
    cdef float depth_units
    cdef Release free_error
    cdef void* sensor
    cdef void* profile
    cdef readonly FrameRing ring
    cdef readonly int domain
    cdef readonly int64 phase_ns
    cdef int64 stopping
    cdef int64 fed
    cdef int64 missed
    cdef int64 failed
    cdef int64[2 * TRACE] history

    cdef double _stamp(self, int64 capture_ns) noexcept nogil
    cdef void _tell(self, int key, int64 value) noexcept nogil
    cdef int _send(self, uint8* pixels, int64 number, int64 capture_ns, int64 exposure_us, int64 gain) noexcept nogil
    cdef void _wait(self, int64 fed_ns, int64 interval_ns) noexcept nogil
    cdef void _loop(self) noexcept nogil
