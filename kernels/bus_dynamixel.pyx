"""One cycle of a Dynamixel Protocol 2.0 bus: executes the `DynamixelPlan` of the driver, beside `bus.BusCycle`.

The request is a sync write of all goals, stuffed where need be, and in the same write(2) a fast sync read or a sync
read. Consecutive requests ask for different lengths even where nothing was lost (the first two variants in turn), so
that a duplicated reply is no fresh one either. After a loss plain sync reads follow, whose servos answer one by one: in
a fast reply all servos behind a dead one may be missing. Of a fast reply that ends early the servos that have come
whole, by the CRC of each, count.

More bytes are asked for before the state, not behind it: whole registers that every model has.
"""

cimport cython
from libc.string cimport memcpy

from dzedge.kernels cimport codec_dynamixel as dxl
from dzedge.kernels.bus cimport STRAY, BusCycle

cdef enum:
    POSITION = 0                # indices into `places`
    VELOCITY = 1
    EFFORT = 2                  # a current or, on servos without a sensor for it, a load
    VOLTAGE = 3
    TEMPERATURE = 4
    PLACES = 5
    BODY = 1024
    OVERHEAD = 10


@cython.final
cdef class DynamixelCycle(BusCycle):
    """As BusCycle, of a `DynamixelPlan`. V variants; lengths: Shape (V,), int32, [bytes] of data that each asks for;
    places: Shape (5,), int32, where in the shortest of them position (4 bytes), velocity (4), current or load (2),
    voltage (2) and temperature (1) stand, -1 where they are not read. fast: the first so many variants are fast sync
    reads. speed_unit: Shape (J,), [ticks/s]; current_unit: Shape (J,), [A], load_unit: Shape (J,), [1], of one count, 0
    where the servo does not measure it. ticks_low, ticks_high: positions outside are not believed.
    goal_frame: before stuffing. Raises ValueError where shapes do not agree.
    """

    def __init__(self, *, const int[::1] lengths, const int[::1] places, int fast,
                 const double[::1] speed_unit, const double[::1] current_unit, const double[::1] load_unit,
                 int ticks_low, int ticks_high, const unsigned char[::1] goal_frame, **common):
        BusCycle.__init__(self, goal_frame=goal_frame, **common)
        for name, length, wanted in (
                ("lengths", lengths.shape[0], self._variants), ("places", places.shape[0], PLACES),
                ("speed_unit", speed_unit.shape[0], self.joints),
                ("current_unit", current_unit.shape[0], self.joints),
                ("load_unit", load_unit.shape[0], self.joints)):
            if length != wanted:
                raise ValueError(f"{name} has {length} entries, it needs {wanted}")
        if not 0 <= fast < self._variants or min(lengths) < 4 or max(lengths) + 11 > BODY or lengths[0] != min(lengths)\
                or list(lengths[fast:]) != sorted(set(lengths[fast:])):
            raise ValueError(f"{fast} fast variants of {self._variants}, data of {list(lengths)} bytes: at least one "
                             f"plain, of [4, {BODY - 11}] bytes, the shortest first")
        for at in places:
            if not -1 <= at < min(lengths):
                raise ValueError(f"a place of {at}, outside the {lengths[0]} bytes that are read")
        self._lengths, self._places, self._fast = lengths, places, fast
        self._speed_unit, self._current_unit, self._load_unit = speed_unit, current_unit, load_unit
        self._ticks_low, self._ticks_high = ticks_low, ticks_high
        self._steady, self._loss = min(fast, 2) if fast else min(self._variants, 2), fast
        self._parameters = <int>goal_frame.shape[0] - OVERHEAD
        self._plain, self._body = bytearray(goal_frame), bytearray(BODY)
        # every third byte stuffed is the worst there is
        self._out = bytearray(<int>goal_frame.shape[0] * 2 + <int>self._requests.shape[1])

    cdef int _put_goal(self, int at, int ticks) noexcept nogil:
        dxl.put_long(self._plain, at, ticks)
        return dxl.long_word(self._plain, at)

    cdef void _seal_goals(self) noexcept nogil:
        memcpy(&self._out[8], &self._plain[8], self._parameters)
        self._goal_length = dxl.seal(self._out, 0xFE, 0x83, self._parameters)

    cdef int _find(self, int start, bint final) noexcept nogil:
        cdef int longest = self._lengths[self._variants - 1] + 4    # the last is the longest
        # a third more for stuffing
        longest = (8 + self.joints * longest if self._fast else 7 + longest) * 4 // 3 + 2
        return dxl.scan(self._rx, start, self._rx_length, longest, final, self._found)

    cdef void _take(self, int at, int length, bint stale) noexcept nogil:
        if self._rx[at + 7] != 0x55:
            self.counters[STRAY] += 1       # an instruction: of another master, or an echo
        elif self._rx[at + 4] == 0xFE:
            self._take_together(at, length, stale)
        else:
            self._take_status(at, length, stale)

    cdef int _variant_of(self, int count, int first, int end) noexcept nogil:
        """The variant in [first, end) that asks for `count` bytes, or -1."""
        while first < end:
            if self._lengths[first] == count:
                return first
            first += 1
        return -1

    cdef void _take_status(self, int at, int length, bint stale) noexcept nogil:
        cdef int i = self._servo(self._rx[at + 4])
        cdef int count = dxl.unstuff(self._rx, at + 7, at + length - 2, self._body)
        cdef int variant = self._variant_of(count - 2, self._fast, self._variants)
        if i == self.joints or variant < 0:
            if i < self.joints and count == 2 and not stale:
                self._error(i, self._body[1])   # it refuses; it says why
            self.counters[STRAY] += 1
        elif self._fresh(i, variant, stale):
            self._error(i, self._body[1])
            self._answer(i, self._body, 2, variant)

    cdef void _take_together(self, int at, int length, bint stale) noexcept nogil:
        """A whole fast reply. Whether firmware stuffs it is not documented: its length tells."""
        cdef int k, count, variant
        cdef int size = length - 8
        count = size // self.joints - 4
        variant = self._variant_of(count, 0, self._fast) if size % self.joints == 0 else -1
        if variant >= 0 and dxl.fast_slots(self._rx, at, at + length, count) == self.joints:
            for k in range(self.joints):
                self._take_slot(k, self._rx, at + 8 + k * (count + 4), variant, stale)
            return
        size = dxl.unstuff(self._rx, at + 7, at + length - 2, self._body) + 1   # its last CRC, less 0x55
        count = size // self.joints - 4
        variant = self._variant_of(count, 0, self._fast) if size > 0 and size % self.joints == 0 else -1
        if variant < 0:
            self.counters[STRAY] += 1
            return
        for k in range(self.joints):
            self._take_slot(k, self._body, 1 + k * (count + 4), variant, stale)

    cdef void _take_slot(self, int k, const unsigned char[::1] data, int at, int variant, bint stale) noexcept nogil:
        """Servo k's part of a fast reply."""
        if data[at + 1] != self._ids[k]:
            self.counters[STRAY] += 1
        elif self._fresh(k, variant, stale):
            self._error(k, data[at])
            self._answer(k, data, at + 2, variant)

    cdef void _scan(self, bint stale, bint final) noexcept nogil:
        if final and not stale and self.missing and self._variant < self._fast:
            self._salvage()
        BusCycle._scan(self, stale, final)

    cdef void _salvage(self) noexcept nogil:
        """The servos that have come whole of a fast reply that has not."""
        cdef int at, k, count, slots
        count = self._lengths[self._variant]
        for at in range(self._rx_length - 8):
            if (self._rx[at] == 0xFF and self._rx[at + 1] == 0xFF and self._rx[at + 2] == 0xFD
                    and self._rx[at + 3] == 0 and self._rx[at + 4] == 0xFE and self._rx[at + 7] == 0x55
                    and dxl.word(self._rx, at + 5) == self.joints * (count + 4) + 1):
                slots = min(dxl.fast_slots(self._rx, at, self._rx_length, count), self.joints)
                for k in range(slots):
                    self._take_slot(k, self._rx, at + 8 + k * (count + 4), self._variant, False)

    cdef void _answer(self, int i, const unsigned char[::1] data, int at, int variant) noexcept nogil:
        """A fresh answer: `data` from `at` on holds what the variant asked for."""
        at += self._lengths[variant] - self._lengths[0]
        if self._believe(i, dxl.long_word(data, at + self._places[POSITION])):
            self._measure(i, data, at)

    cdef void _measure(self, int i, const unsigned char[::1] data, int at) noexcept nogil:
        cdef double direction = 1.0 if self._scale[i] > 0.0 else -1.0
        cdef double effort
        if self._places[VELOCITY] >= 0:
            effort = dxl.long_word(data, at + self._places[VELOCITY])
            self.velocities[i] = effort * self._speed_unit[i] / self._scale[i]
        if self._places[EFFORT] >= 0:
            effort = direction * dxl.signed_word(data, at + self._places[EFFORT])
            if self._current_unit[i] > 0.0:
                self.currents[i] = effort * self._current_unit[i]
            if self._load_unit[i] > 0.0:
                self.loads[i] = effort * self._load_unit[i]
        if self._places[VOLTAGE] >= 0:
            self.voltages[i] = dxl.word(data, at + self._places[VOLTAGE]) * 0.1
        if self._places[TEMPERATURE] >= 0:
            self.temperatures[i] = data[at + self._places[TEMPERATURE]]
