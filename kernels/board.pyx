"""The board: heartbeats of the stages, the task epoch and its instruction, the operator's request.

Words in shared memory that every process of a robot maps, each written by one of them; see mailbox.pyx for the rest.
"""

from dzedge.kernels.atomic cimport dz_load, dz_peek, dz_poke, dz_store


cdef class Board:
    """Heartbeats of the stages, the task epoch and its instruction, and the operator's request.

    Words are int64, each written by one process: `epoch`, `request`, `instruction` by the supervisor, a stage's line
    by that stage.
    """

    BYTES = 8 * (B_STAGES + BEAT * 4)

    def __init__(self, memory):
        self.memory = memory
        if self.memory.shape[0] < 8 * (B_STAGES + BEAT * 4):
            raise ValueError(f"board of {self.memory.shape[0]} bytes, needed {8 * (B_STAGES + BEAT * 4)}")
        self.words = <int64*>&self.memory[0]
        self.stages = 4

    cdef int64 word(self, int index) noexcept nogil:
        return dz_load(&self.words[index])

    cdef int64 task_epoch(self) noexcept nogil:
        return dz_load(&self.words[B_EPOCH]) // 2

    cdef void beat(self, int stage, int64 now_ns, int state) noexcept nogil:
        cdef int64* line = &self.words[B_STAGES + stage * BEAT]
        dz_poke(&line[1], now_ns)
        dz_poke(&line[2], state)
        dz_store(&line[0], dz_peek(&line[0]) + 1)

    def stamp(self, stage, now_ns, state):
        """A stage's heartbeat. stage: index in STAGES."""
        self.beat(stage, now_ns, state)

    def enter(self, stage, pid):
        """A stage is started: clear its line, note its process, count the start."""
        cdef int64* line = &self.words[B_STAGES + <int>stage * BEAT]
        dz_store(&line[0], 0)
        dz_store(&line[3], pid)
        dz_store(&line[4], dz_load(&line[4]) + 1)

    def stage(self, stage):
        """(beats, time_ns, state, pid, starts) of a stage."""
        cdef int64* line = &self.words[B_STAGES + <int>stage * BEAT]
        beats = dz_load(&line[0])
        return beats, dz_peek(&line[1]), dz_peek(&line[2]), dz_peek(&line[3]), dz_peek(&line[4])

    @property
    def epoch(self):
        """Task epoch; a chunk made for another is refused."""
        return self.task_epoch()

    @property
    def request(self):
        """What the operator wants of control; see dzedge.safety."""
        return dz_load(&self.words[B_REQUEST])

    @request.setter
    def request(self, value):
        dz_store(&self.words[B_REQUEST], value)

    @property
    def stopping(self):
        """Non-zero once every loop is to end; the stop category + 1."""
        return dz_load(&self.words[B_STOP])

    @stopping.setter
    def stopping(self, value):
        dz_store(&self.words[B_STOP], value)

    @property
    def over(self):
        """Non-zero once the arm has stopped and its simulator may end."""
        return dz_load(&self.words[B_OVER])

    @over.setter
    def over(self, value):
        dz_store(&self.words[B_OVER], value)

    @property
    def task_ns(self):
        """When the running task was set, CLOCK_MONOTONIC [ns]."""
        return dz_load(&self.words[B_TASK_NS])

    @property
    def instruction(self):
        """What is asked, in words."""
        length = dz_load(&self.words[B_TEXT])
        return bytes(self.memory[8 * (B_TEXT + 1):8 * (B_TEXT + 1) + length]).decode("utf-8", "replace")

    def task(self):
        """(epoch, instruction) that belong together, whoever is setting a new one meanwhile."""
        cdef int64 before
        for _ in range(SETTING):
            before = dz_load(&self.words[B_EPOCH])
            text = self.instruction
            if before % 2 == 0 and dz_load(&self.words[B_EPOCH]) == before:
                break
        return before // 2, text

    def set_task(self, instruction, now_ns):
        """Set the instruction and open a new task epoch; returns the epoch. At most 248 bytes of UTF-8."""
        text = instruction.encode()
        if len(text) > 8 * 31:
            raise ValueError(f"instruction of {len(text)} bytes, at most {8 * 31}: shorten it")
        cdef const uint8[::1] data = text + b"\0"
        cdef Py_ssize_t i
        dz_store(&self.words[B_EPOCH], dz_load(&self.words[B_EPOCH]) + 1)
        for i in range(data.shape[0]):
            self.memory[8 * (B_TEXT + 1) + i] = data[i]
        dz_store(&self.words[B_TEXT], len(text))
        dz_store(&self.words[B_TASK_NS], now_ns)
        dz_store(&self.words[B_EPOCH], dz_load(&self.words[B_EPOCH]) + 1)
        return self.task_epoch()
