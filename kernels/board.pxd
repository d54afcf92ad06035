"""C-level face of the board; see board.pyx."""

ctypedef long long int64
ctypedef unsigned char uint8


cdef class Board:
    cdef uint8[::1] memory
    cdef int64* words
    cdef readonly int stages
    cdef void beat(self, int stage, int64 now_ns, int state) noexcept nogil
    cdef int64 word(self, int index) noexcept nogil
