"""Timing marks: the C-level contract of `marks.pyx`."""

from libc.stdint cimport int64_t as int64, uint8_t as uint8, uint64_t as uint64


cdef enum:
    LATE = 0        # stages that every Marks knows by number; others get theirs from `Marks.stage(name)`
    DECIDE = 1
    BUS = 2


cdef enum:
    VALUE = 0       # kinds of an event
    COUNT = 1


cdef class Marks:
    cdef object memory
    cdef uint8[::1] view
    cdef uint64* head
    cdef uint64* peaks
    cdef uint64* buckets
    cdef uint64* ring
    cdef dict known

    # A duration [ns] of a stage, into its histogram and the event ring. Any thread; about 50 ns.
    cdef void mark(self, int stage, int64 value_ns) noexcept nogil
    # Something that happened (a drop, a refusal), with a code; into the event ring only.
    cdef void note(self, int stage, int64 code) noexcept nogil
