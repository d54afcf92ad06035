"""C-level face of the board; see board.pyx."""

ctypedef long long int64
ctypedef unsigned char uint8


cdef enum:
    BEAT = 8                # words per stage: one cache line
    B_EPOCH = 1             # 2 * task epoch, odd while the task is being set
    B_REQUEST = 2           # what the operator wants of control
    B_STOP = 3              # every loop ends
    B_TASK_NS = 4           # when the task was set
    B_OVER = 5              # the arm has stopped: the simulator may end too
    B_TEXT = 8              # instruction: length, then 31 words of UTF-8
    B_STAGES = 40
    SETTING = 1000          # looks at a task that is being set, then it is taken as it is


cdef class Board:
    cdef uint8[::1] memory
    cdef int64* words
    cdef readonly int stages
    cdef void beat(self, int stage, int64 now_ns, int state) noexcept nogil
    cdef int64 task_epoch(self) noexcept nogil
    cdef int64 word(self, int index) noexcept nogil
