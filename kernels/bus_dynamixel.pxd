"""One cycle of a Dynamixel bus without the GIL. Meanings are in bus_dynamixel.pyx."""

cimport cython
from dzedge.kernels.bus cimport BusCycle


@cython.final
cdef class DynamixelCycle(BusCycle):
    cdef int _parameters            # bytes of the goal frame's parameters, before stuffing
    cdef unsigned char[::1] _plain  # the goal frame before stuffing
    cdef unsigned char[::1] _body   # of a reply without its stuffing: 0x55, ERR, data
    cdef const int[::1] _lengths    # for each variant: bytes of data
    cdef const int[::1] _places     # in the shortest reply: position, velocity, effort, voltage, temperature; -1 none
    cdef int _fast                  # the first so many variants are fast sync reads
    cdef const double[::1] _speed_unit
    cdef const double[::1] _current_unit
    cdef const double[::1] _load_unit

    cdef int _variant_of(self, int count, int first, int end) noexcept nogil
    cdef void _take_status(self, int at, int length, bint stale) noexcept nogil
    cdef void _take_together(self, int at, int length, bint stale) noexcept nogil
    cdef void _take_slot(self, int k, const unsigned char[::1] data, int at, int variant, bint stale) noexcept nogil
    cdef void _salvage(self) noexcept nogil
    cdef void _answer(self, int i, const unsigned char[::1] data, int at, int variant) noexcept nogil
