"""Timing marks that are always on: a ring of 16-byte events and one log-linear histogram for each stage.

Everything lies in a buffer of the caller, so that another process can read while this one writes: the writer
never waits, allocates or formats; encoding is done afterwards by whoever reads.
"""

import numpy as np

from libc.stdint cimport int64_t as int64, uint8_t as uint8, uint64_t as uint64
from libc.string cimport memcpy, memset
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec


cdef extern from *:
    """
    #include <stdint.h>
    static inline int dz_top_bit(uint64_t v) { return 63 - __builtin_clzll(v); }
    static inline uint64_t dz_add(uint64_t *p, uint64_t n) {
        return __atomic_fetch_add(p, n, __ATOMIC_RELAXED);
    }
    static inline uint64_t dz_load(const uint64_t *p) { return __atomic_load_n(p, __ATOMIC_RELAXED); }
    static inline void dz_store(uint64_t *p, uint64_t v) { __atomic_store_n(p, v, __ATOMIC_RELAXED); }
    """
    int dz_top_bit(uint64) noexcept nogil
    uint64 dz_add(uint64*, uint64) noexcept nogil
    uint64 dz_load(const uint64*) noexcept nogil
    void dz_store(uint64*, uint64) noexcept nogil


cdef enum:
    STAGES = 32
    NAME = 24                   # bytes of a stage's name
    EVENTS = 16384              # a power of two
    SUB_BITS = 6                # 64 buckets an octave: a bucket is at most 1/64 of its value wide
    SUB = 64
    TOP = 36                    # highest octave: 2^37 ns = 137 s
    BUCKETS = 2048              # SUB * (TOP - SUB_BITS + 2)
    HEAD = 8                    # words: magic, abi, stages known, events written, clipped, ...
    LONGEST = 4294967295        # ns that an event can hold, 4.3 s

cdef uint64 MAGIC = 0x736B72616D7A64        # "dzmarks"
cdef uint64 ABI = 1
cdef int64 LIMIT = (1 << 37) - 1
FIXED = ("late", "decide", "bus")
EVENT = np.dtype([("time_ns", "<u8"), ("stage", "<u2"), ("kind", "u1"), ("spare", "u1"), ("value", "<u4")])


cdef inline int _bucket(int64 value) noexcept nogil:
    cdef int top
    if value < SUB:
        return <int>value
    top = dz_top_bit(<uint64>value)
    return (top - SUB_BITS + 1) * SUB + <int>(value >> (top - SUB_BITS)) - SUB


cdef inline uint64 _now_ns() noexcept nogil:
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return <uint64>now.tv_sec * 1000000000 + <uint64>now.tv_nsec


cdef class Marks:
    """Marks of one process in `memory`, a writable buffer of `Marks.bytes_for()` bytes, zeros at first.

    Any thread may mark. A running ring may show its last event half written; histograms are always whole.
    A value is kept to 1 % up to 137 s; what is longer counts as that, what is negative as 0.
    Raises ValueError for a buffer that is too small or was made by another version.
    """

    def __init__(self, memory):
        self.memory = memory
        self.view = memoryview(memory).cast("B")
        if self.view.shape[0] < Marks.bytes_for():
            raise ValueError(f"marks need {Marks.bytes_for()} bytes, the buffer has {self.view.shape[0]}")
        self.head = <uint64*>&self.view[0]
        self.peaks = self.head + HEAD + STAGES * NAME // 8
        self.buckets = self.peaks + STAGES
        self.ring = self.buckets + STAGES * BUCKETS
        self.known = {}
        if self.head[0] == 0:
            self.head[1] = ABI
            self.head[0] = MAGIC
        if self.head[0] != MAGIC or self.head[1] != ABI:
            raise ValueError("the buffer does not hold marks of this version; give a zeroed one")
        for name in FIXED:
            self.stage(name)

    @staticmethod
    def bytes_for():
        """Bytes that the marks of a process need."""
        return 8 * (HEAD + STAGES * NAME // 8 + STAGES + STAGES * BUCKETS) + 16 * EVENTS

    cdef void mark(self, int stage, int64 value_ns) noexcept nogil:
        cdef int64 value = value_ns
        if stage < 0 or stage >= STAGES:
            return
        if value < 0 or value > LIMIT:
            dz_add(&self.head[4], 1)
            value = 0 if value < 0 else LIMIT
        dz_add(&self.buckets[stage * BUCKETS + _bucket(value)], 1)
        if <uint64>value > dz_load(&self.peaks[stage]):
            dz_store(&self.peaks[stage], <uint64>value)
        _event(self, stage, VALUE, value)

    cdef void note(self, int stage, int64 code) noexcept nogil:
        if 0 <= stage < STAGES:
            _event(self, stage, COUNT, code)

    @property
    def names(self):
        """Names of the stages, by number."""
        return tuple(self._name(stage) for stage in range(self.head[2]))

    @property
    def clipped(self):
        """Values that were negative or above 137 s."""
        return int(dz_load(&self.head[4]))

    def stage(self, name):
        """The number of the stage `name`, given to it at first use. Raises ValueError when all are taken."""
        cdef bytes text
        if name in self.known:
            return self.known[name]
        if name not in self.names:
            text = name.encode("ascii")
            if not 0 < len(text) < NAME or self.head[2] == STAGES:
                raise ValueError(f"stage {name!r}: names have 1 to {NAME - 1} characters, {STAGES} fit")
            memcpy(<char*>(self.head + HEAD) + self.head[2] * NAME, <char*>text, len(text))
            self.head[2] += 1
        self.known[name] = self.names.index(name)
        return self.known[name]

    def record(self, name, int64 value_ns):
        """A duration [ns] of the stage `name`."""
        self.mark(self.stage(name), value_ns)

    def remark(self, name, int64 code):
        """Something that happened in the stage `name`, with a code of 0 to 2^32 - 1."""
        self.note(self.stage(name), code)

    def span(self, name):
        """A context manager that records how long its body took."""
        return Span(self, self.stage(name))

    def histogram(self, name):
        """Counts of the stage's buckets. Shape (2048,), uint64, a copy; bounds: `bucket_bounds`."""
        cdef Py_ssize_t first = (<uint8*>&self.buckets[self.stage(name) * BUCKETS]) - &self.view[0]
        return np.frombuffer(self.view[first:first + 8 * BUCKETS], np.uint64).copy()

    def percentile(self, name, q):
        """Middle of the bucket that holds percentile `q` in [0, 100], [ns]; 0 when nothing was recorded."""
        return self._percentiles(self.stage(name), (q,))[0]

    def summary(self):
        """{stage: {count, mean_ns, p50_ns, p90_ns, p99_ns, p999_ns, max_ns}} of the stages that recorded."""
        out = {}
        for stage, name in enumerate(self.names):
            counts = self.histogram(name)
            count = int(counts.sum())
            if count:
                p50, p90, p99, p999 = self._percentiles(stage, (50, 90, 99, 99.9))
                mean = int(counts @ (sum(bucket_bounds()) / 2) / count)
                out[name] = {
                    "count": count, "mean_ns": mean, "p50_ns": p50, "p90_ns": p90, "p99_ns": p99,
                    "p999_ns": p999, "max_ns": int(dz_load(&self.peaks[stage])),
                }
        return out

    def events(self):
        """The newest events, oldest first. Structured array (time_ns, stage, kind, spare, value), a copy.

        kind 0: value is a duration [ns], at most 4.3 s; kind 1: value is a code.
        """
        cdef Py_ssize_t first = (<uint8*>self.ring) - &self.view[0]
        written = int(dz_load(&self.head[3]))
        ring = np.frombuffer(self.view[first:first + 16 * EVENTS], EVENT)
        start = max(0, written - EVENTS)
        return ring[np.arange(start, written) % EVENTS]

    def clear(self):
        """Forget all counts and events; names stay."""
        memset(self.peaks, 0, 8 * STAGES + 8 * STAGES * BUCKETS + 16 * EVENTS)
        self.head[3] = self.head[4] = 0

    def _name(self, stage):
        first = 8 * HEAD + stage * NAME
        return bytes(self.view[first:first + NAME]).rstrip(b"\0").decode("ascii")

    def _percentiles(self, stage, wanted):
        counts = self.histogram(self._name(stage)).cumsum()
        total = int(counts[BUCKETS - 1])
        if total == 0:
            return [0 for _ in wanted]
        low, high = bucket_bounds()
        # Nearest rank: the smallest value such that q percent of the values are not above it.
        ranks = [max(1, int(np.ceil(q / 100 * total))) for q in wanted]
        indices = [int(np.searchsorted(counts, rank)) for rank in ranks]
        return [min(int((low[i] + high[i]) // 2), int(dz_load(&self.peaks[stage]))) for i in indices]


cdef void _event(Marks marks, int stage, int kind, int64 value) noexcept nogil:
    cdef uint64 slot = dz_add(&marks.head[3], 1) & (EVENTS - 1)
    cdef uint64 short_value = LONGEST if value > LONGEST else <uint64>value
    dz_store(&marks.ring[2 * slot], _now_ns())
    dz_store(&marks.ring[2 * slot + 1], <uint64>stage | (<uint64>kind << 16) | (short_value << 32))


cdef class Span:
    """Records the time between entering and leaving; made by `Marks.span`."""

    cdef Marks marks
    cdef int stage
    cdef uint64 start_ns

    def __cinit__(self, Marks marks, int stage):
        self.marks = marks
        self.stage = stage

    def __enter__(self):
        self.start_ns = _now_ns()
        return self

    def __exit__(self, *failure):
        self.marks.mark(self.stage, <int64>(_now_ns() - self.start_ns))
        return False


def bucket_bounds():
    """(low, high), Shape (2048,) each, int64, [ns]: a bucket holds low <= value < high."""
    index = np.arange(BUCKETS)
    octave = np.maximum(index // SUB - 1, 0)
    low = np.where(index < SUB, index, (SUB + index % SUB) << octave)
    return low, low + (np.int64(1) << octave)


def mark_cost_ns(Marks marks, int count):
    """Mean cost of a mark from C, [ns]; for the benchmark."""
    cdef int i
    cdef uint64 start = _now_ns()
    with nogil:
        for i in range(count):
            marks.mark(BUS, i)
    return (_now_ns() - start) / count
