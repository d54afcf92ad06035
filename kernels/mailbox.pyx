"""Shared-memory mailboxes between the processes of a robot.

The supervisor makes one memory file (memfd) for each mailbox and hands it down; a writer or a reader maps it and
wraps it here. Everything rests on one primitive, `Ring`: slots under a sequence lock, the count published last.

- A writer never waits: it claims the oldest slot, fills it, publishes it. Killed half way, it leaves a slot that
  was never published; its successor bumps the ring's epoch and goes on.
- A reader never waits either: it copies, looks whether the slot was overwritten meanwhile, tries at most three
  times, and then keeps what it had.
- Order between cores is C11 acquire/release; plain stores pass every test on x86-64 and tear on aarch64.

Source of the sequence lock's fences: H.-J. Boehm, "Can seqlocks get along with programming language memory
models?", MSPC 2012.
"""

from libc.string cimport memcpy
from libc.math cimport floor

import numpy as np

from dzedge.kernels.atomic cimport dz_fence_acquire, dz_fence_release, dz_load, dz_peek, dz_poke, dz_store


cdef enum:
    ABI = 1
    TRIES = 3
    HEADER = 128            # bytes; two cache lines, so that the count does not share one with the sizes
    SLOT_HEADER = 8 + 8 * META
    # header words
    W_MAGIC = 0
    W_ABI = 1
    W_SLOTS = 2
    W_PAYLOAD = 3
    W_EPOCH = 4
    W_COUNT = 8

cdef int64 MAGIC = 0x65676465_7A64        # "dzedge"


def _stride(payload_bytes):
    return (SLOT_HEADER + payload_bytes + 63) // 64 * 64


cdef class Ring:
    """Slots of `payload_bytes` each, with six int64 of metadata, over a writable buffer.

    memory: Shape (Ring.size(slots, payload_bytes),), uint8, shared. A zeroed buffer is formatted; a formatted one
    is checked against the arguments.
    Raises ValueError when the buffer is too small, or was formatted for other sizes or by another version.
    """

    def __init__(self, memory, slots, payload_bytes):
        self.memory = memory
        self.slots = slots
        self.payload_bytes = payload_bytes
        self.stride = _stride(payload_bytes)
        needed = Ring.size(slots, payload_bytes)
        if self.memory.shape[0] < needed:
            raise ValueError(f"mailbox of {self.memory.shape[0]} bytes, needed {needed}: "
                             f"make it with Ring.size({slots}, {payload_bytes})")
        self.base = &self.memory[0]
        cdef int64* head = <int64*>self.base
        if dz_load(&head[W_MAGIC]) == 0:
            head[W_ABI] = ABI
            head[W_SLOTS] = slots
            head[W_PAYLOAD] = payload_bytes
            dz_store(&head[W_MAGIC], MAGIC)
        found = (dz_load(&head[W_MAGIC]) == MAGIC, head[W_ABI], head[W_SLOTS], head[W_PAYLOAD])
        if found != (True, ABI, slots, payload_bytes):
            raise ValueError(f"mailbox holds (magic, abi, slots, bytes) = {found}, "
                             f"wanted {(True, ABI, slots, payload_bytes)}: reader and writer differ in "
                             "version or shape")

    @staticmethod
    def size(slots, payload_bytes):
        """Bytes that a ring needs."""
        return HEADER + slots * _stride(payload_bytes)

    def adopt(self):
        """Become the writer: bump the epoch, which tells readers that the writer was restarted. Returns it."""
        cdef int64* head = <int64*>self.base
        dz_store(&head[W_EPOCH], dz_load(&head[W_EPOCH]) + 1)
        return head[W_EPOCH]

    @property
    def epoch(self):
        """How often a writer has adopted this ring."""
        return dz_load(&(<int64*>self.base)[W_EPOCH])

    @property
    def count(self):
        """How many records were published in all."""
        return self.published()

    cdef uint8* slot(self, int64 index) noexcept nogil:
        return self.base + HEADER + (index % self.slots) * self.stride

    cdef int64 published(self) noexcept nogil:
        return dz_load(&(<int64*>self.base)[W_COUNT])

    cdef uint8* begin(self) noexcept nogil:
        """Claim the oldest slot; returns its payload, to be filled before `publish`."""
        cdef int64* head = <int64*>self.slot(self.published())
        # odd = being written; a slot left odd by a writer that died stays odd, with a new number
        dz_poke(&head[0], (dz_peek(&head[0]) + 1) | 1)
        dz_fence_release()
        return (<uint8*>head) + SLOT_HEADER

    cdef void publish(self, const int64* meta) noexcept nogil:
        cdef int64 count = self.published()
        cdef int64* head = <int64*>self.slot(count)
        memcpy(&head[1], meta, 8 * META)
        dz_store(&head[0], dz_peek(&head[0]) + 1)
        dz_store(&(<int64*>self.base)[W_COUNT], count + 1)

    cdef int fetch(self, int64 index, uint8* payload, Py_ssize_t payload_bytes, int64* meta) noexcept nogil:
        """Copy record `index` (0 = the first ever published). 1 when whole, 0 when it is gone or torn."""
        cdef int64* head = <int64*>self.slot(index)
        cdef int64 before
        cdef int64 count = self.published()
        cdef int _attempt
        if index < 0 or index >= count or index <= count - self.slots:
            return 0
        for _attempt in range(TRIES):
            before = dz_load(&head[0])
            if before & 1:
                continue
            memcpy(meta, &head[1], 8 * META)
            if payload_bytes > 0:
                memcpy(payload, (<uint8*>head) + SLOT_HEADER, payload_bytes)
            dz_fence_acquire()
            if dz_peek(&head[0]) == before and self.published() < index + self.slots:
                return 1
        return 0

    cdef int64 fetch_newest(self, uint8* payload, int64* meta) noexcept nogil:
        """Copy the newest record; returns its index + 1, or 0 when there is none that is whole."""
        cdef int64 count
        cdef int _attempt
        for _attempt in range(TRIES):
            count = self.published()
            if count == 0:
                return 0
            if self.fetch(count - 1, payload, self.payload_bytes, meta):
                return count
        return 0

    def write(self, payload, meta):
        """Publish `payload` (bytes-like, `payload_bytes` long) with up to six integers of metadata."""
        cdef const uint8[::1] data = payload
        cdef int64[META] numbers
        cdef int i
        if data.shape[0] != self.payload_bytes:
            raise ValueError(f"payload of {data.shape[0]} bytes, mailbox takes {self.payload_bytes}")
        for i in range(META):
            numbers[i] = meta[i] if i < len(meta) else 0
        memcpy(self.begin(), &data[0], data.shape[0])
        self.publish(numbers)

    def read(self, index=None):
        """(count, payload bytes, metadata) of the newest record or of number `index`; None when it is not there."""
        cdef int64[META] numbers
        payload = np.empty(self.payload_bytes, np.uint8)
        cdef uint8[::1] view = payload
        cdef int64 count
        if index is None:
            count = self.fetch_newest(&view[0], numbers)
        else:
            count = index + 1 if self.fetch(index, &view[0], self.payload_bytes, numbers) else 0
        if count == 0:
            return None
        return count, payload, [numbers[i] for i in range(META)]


cdef class FrameRing(Ring):
    """Camera frames of one stream. pixel_bytes: 3 for colour, Shape (height, width, 3), uint8; 2 for depth, Shape
    (height, width), uint16; 1 for infrared, Shape (height, width), uint8.

    Metadata: number, capture_ns, receive_ns, exposure_us, gain, clock domain; the last three -1 where not known.
    """

    def __init__(self, memory, slots, height, width, pixel_bytes=3):
        if pixel_bytes not in (1, 2, 3):
            raise ValueError(f"frame ring of {pixel_bytes} bytes a pixel: must be 3 (colour), 2 (depth), 1 (infrared)")
        Ring.__init__(self, memory, slots, height * width * pixel_bytes)
        self.height = height
        self.width = width
        self.pixel_bytes = pixel_bytes

    @staticmethod
    def bytes_for(slots, height, width, pixel_bytes=3):
        """Bytes that a frame ring needs."""
        return Ring.size(slots, height * width * pixel_bytes)

    cdef void commit(self, int64 number, int64 capture_ns, int64 receive_ns, int64 exposure_us, int64 gain,
                     int64 domain) noexcept nogil:
        """Publish the slot that `begin` returned."""
        cdef int64[META] meta
        meta[0] = number
        meta[1] = capture_ns
        meta[2] = receive_ns
        meta[3] = exposure_us
        meta[4] = gain
        meta[5] = domain
        self.publish(meta)

    def put(self, image, number, capture_ns, receive_ns, exposure_us=-1, gain=-1, domain=-1):
        """Publish a frame. image: of the ring's shape. Raises ValueError on another."""
        shape = (self.height, self.width) + ((3,) if self.pixel_bytes == 3 else ())
        if image.shape != shape or image.dtype.itemsize * (3 if self.pixel_bytes == 3 else 1) != self.pixel_bytes:
            raise ValueError(f"frame of shape {image.shape}, {image.dtype}, ring takes {shape}, "
                             f"{self.pixel_bytes} bytes a pixel")
        meta = (number, capture_ns, receive_ns, exposure_us, gain, domain)
        self.write(np.ascontiguousarray(image).reshape(-1).view(np.uint8), meta)

    def newest(self, after=0):
        """(count, image, number, capture_ns, receive_ns) of the newest frame when more than `after` frames have
        been published, else None. image: of the ring's shape, a copy owned by the caller."""
        if self.published() <= after:
            return None
        record = self.frame()
        return None if record is None else record[:5]

    def frame(self, index=None):
        """(count, image, number, capture_ns, receive_ns, exposure_us, gain, domain) of the newest frame or of number
        `index` (0 = the first ever published); None when it is not there. image: a copy owned by the caller."""
        record = self.read(index)
        if record is None:
            return None
        count, payload, meta = record
        if self.pixel_bytes == 3:
            image = payload.reshape(self.height, self.width, 3)
        else:
            image = payload.view(np.uint16 if self.pixel_bytes == 2 else np.uint8).reshape(self.height, self.width)
        return (count, image, *meta)

    def stamps(self):
        """(index, capture_ns) of every frame that can still be read, oldest first; none is copied."""
        cdef int64[META] meta
        cdef int64 index, count = self.published()
        found = []
        for index in range(max(0, count - self.slots + 1), count):
            if self.fetch(index, NULL, 0, meta):
                found.append((index, meta[1]))
        return found


cdef class ChunkBox(Ring):
    """The newest action chunk. Metadata: chunk_id, epoch, t_obs_ns, dt_ns.

    positions: Shape (H, J), float64, [rad]; imagined: Shape (latents,), float32.
    """

    def __init__(self, memory, horizon, joints, latents):
        Ring.__init__(self, memory, 2, horizon * joints * 8 + latents * 4)
        self.horizon = horizon
        self.joints = joints
        self.latents = latents

    @staticmethod
    def bytes_for(horizon, joints, latents):
        """Bytes that a chunk box needs."""
        return Ring.size(2, horizon * joints * 8 + latents * 4)

    def put(self, positions, imagined, chunk_id, epoch, t_obs_ns, dt_ns):
        """Publish a chunk. Raises ValueError on a wrong shape; what is in it is judged by the tick."""
        positions = np.ascontiguousarray(positions, np.float64)
        imagined = np.ascontiguousarray(imagined, np.float32).reshape(-1)
        if positions.shape != (self.horizon, self.joints):
            raise ValueError(f"chunk of shape {positions.shape}, wanted ({self.horizon}, {self.joints})")
        if imagined.shape[0] not in (0, self.latents):
            raise ValueError(f"{imagined.shape[0]} imagined latents, wanted {self.latents} or none")
        if imagined.shape[0] == 0:
            imagined = np.zeros(self.latents, np.float32)
        payload = np.concatenate([positions.reshape(-1).view(np.uint8), imagined.view(np.uint8)])
        self.write(payload, (chunk_id, epoch, t_obs_ns, dt_ns))

    def newest(self, after=0):
        """(count, positions, imagined, chunk_id, epoch, t_obs_ns, dt_ns), or None when nothing new."""
        if self.published() <= after:
            return None
        record = self.read()
        if record is None:
            return None
        count, payload, meta = record
        cut = self.horizon * self.joints * 8
        positions = payload[:cut].view(np.float64).reshape(self.horizon, self.joints)
        return count, positions, payload[cut:].view(np.float32), meta[0], meta[1], meta[2], meta[3]


cdef class StateRing(Ring):
    """The last 1024 control ticks: measured joints and the command sent. Metadata: time_ns, state, chunk_id, code.

    Each record holds positions, velocities and command, Shape (J,) each, [rad], [rad/s], [rad].
    """

    RECORDS = 1024

    def __init__(self, memory, joints):
        Ring.__init__(self, memory, 1024, 3 * joints * 8)
        self.joints = joints
        self.row = np.zeros(3 * joints)

    @staticmethod
    def bytes_for(joints):
        """Bytes that a state ring needs."""
        return Ring.size(1024, 3 * joints * 8)

    cdef void put(self, int64 time_ns, int state, int64 chunk_id, int code, const double* positions,
                  const double* velocities, const double* command) noexcept nogil:
        cdef int64[META] meta
        cdef double* row = <double*>self.begin()
        cdef Py_ssize_t size = self.joints * 8
        memcpy(row, positions, size)
        memcpy(row + self.joints, velocities, size)
        memcpy(row + 2 * self.joints, command, size)
        meta[0] = time_ns
        meta[1] = state
        meta[2] = chunk_id
        meta[3] = code
        meta[4] = meta[5] = 0
        self.publish(meta)

    cdef int command_at(self, int64 time_ns, double* out) noexcept nogil:
        """The command in force at `time_ns`, interpolated; writer's side. 0 when the ring does not reach back."""
        cdef int64 newer, older
        cdef int64[META] meta
        cdef double share
        cdef Py_ssize_t j
        cdef double* row
        newer = self._bracket(time_ns, &older, &share)
        if newer < 0:
            return 0
        if not self.fetch(older, <uint8*>&self.row[0], self.payload_bytes, meta):
            return 0
        row = &self.row[2 * self.joints]
        for j in range(self.joints):
            out[j] = row[j]
        if newer != older:
            if not self.fetch(newer, <uint8*>&self.row[0], self.payload_bytes, meta):
                return 0
            for j in range(self.joints):
                out[j] += share * (row[j] - out[j])
        return 1

    cdef int64 _time(self, int64 index) noexcept nogil:
        cdef int64[META] meta
        if not self.fetch(index, NULL, 0, meta):
            return -1
        return meta[0]

    cdef int64 _bracket(self, int64 time_ns, int64* older, double* share) noexcept nogil:
        """Records around `time_ns`: returns the newer one's index, or -1 when the time is not covered.

        A time after the newest record is covered by the newest: a state is as fresh as its last cycle.
        """
        cdef int64 newest = self.published() - 1
        cdef int64 low, high, middle, t_low, t_high
        if newest < 0:
            return -1
        if time_ns >= self._time(newest):
            older[0] = newest
            share[0] = 0.0
            return newest
        low = newest - self.slots + 16      # the oldest few may be overwritten while we look
        if low < 0:
            low = 0
        if self._time(low) > time_ns or self._time(low) < 0:
            return -1
        high = newest
        while high - low > 1:
            middle = (low + high) // 2
            if self._time(middle) <= time_ns:
                low = middle
            else:
                high = middle
        t_low = self._time(low)
        t_high = self._time(high)
        if t_low < 0 or t_high <= t_low:
            return -1
        older[0] = low
        share[0] = <double>(time_ns - t_low) / <double>(t_high - t_low)
        return high

    def append(self, time_ns, state, chunk_id, code, positions, velocities, command):
        """Publish one tick from Python (tests, and arms without a cycle plan)."""
        cdef double[::1] p = np.ascontiguousarray(positions, np.float64)
        cdef double[::1] v = np.ascontiguousarray(velocities, np.float64)
        cdef double[::1] c = np.ascontiguousarray(command, np.float64)
        if not p.shape[0] == v.shape[0] == c.shape[0] == self.joints:
            raise ValueError(f"arrays of {p.shape[0]}, {v.shape[0]}, {c.shape[0]} joints, ring takes {self.joints}")
        self.put(time_ns, state, chunk_id, code, &p[0], &v[0], &c[0])

    def at(self, time_ns):
        """(positions, velocities, command, time_ns) interpolated to `time_ns`. Shape (J,) each.

        After the newest record: the newest, with its own time. None when the time is not covered, or when the bus
        gave no whole answer around it, so that what stands there was measured earlier.
        """
        found = self._between(time_ns)
        if found is None or found[2] != 0:
            return None
        rows, newest_ns, _ = found
        return rows[0], rows[1], rows[2], min(int(time_ns), newest_ns)

    def command(self, time_ns):
        """The command in force at `time_ns`, Shape (J,), or None when it is not covered."""
        found = self._between(time_ns)
        return None if found is None else found[0][2]

    def _between(self, time_ns):
        """(rows of Shape (3, J) interpolated to `time_ns`, time of the newer record, worse bus code of the two)."""
        cdef int64 older
        cdef double share
        cdef int64 newer = self._bracket(time_ns, &older, &share)
        if newer < 0:
            return None
        first, second = self.read(older), self.read(newer)
        if first is None or second is None:
            return None
        rows = first[1].view(np.float64) * (1.0 - share) + second[1].view(np.float64) * share
        return rows.reshape(3, self.joints), second[2][0], max(first[2][3], second[2][3])

    def newest(self):
        """(count, time_ns, state, chunk_id, code, positions, velocities, command), or None before the first tick."""
        record = self.read()
        return None if record is None else self._unpack(record)

    def since(self, count):
        """Records from number `count` on that are still there, oldest first, as `newest` gives them."""
        out = []
        for index in range(max(count, self.published() - self.slots + 16, 0), self.published()):
            record = self.read(index)
            if record is not None:
                out.append(self._unpack(record))
        return out

    def _unpack(self, record):
        count, payload, meta = record
        rows = payload.view(np.float64).reshape(3, self.joints)
        return count, meta[0], meta[1], meta[2], meta[3], rows[0], rows[1], rows[2]


cdef class TrajectoryBox(Ring):
    """The trajectory that control is running, seam included. Metadata: start_ns, step_ns, knots, chunk_id.

    Knot i is the commanded position at `start_ns + i * step_ns`, Shape (J,), [rad].
    """

    def __init__(self, memory, capacity, joints):
        Ring.__init__(self, memory, 2, capacity * joints * 8)
        self.capacity = capacity
        self.joints = joints

    @staticmethod
    def bytes_for(capacity, joints):
        """Bytes that a trajectory box needs."""
        return Ring.size(2, capacity * joints * 8)

    def newest(self):
        """(knots of Shape (n, J), start_ns, step_ns, chunk_id), or None when nothing runs."""
        record = self.read()
        if record is None or record[2][2] == 0:
            return None
        _, payload, meta = record
        knots = payload.view(np.float64).reshape(self.capacity, self.joints)[:meta[2]]
        return knots, meta[0], meta[1], meta[3]

    def at(self, time_ns):
        """Commanded position at `time_ns`, Shape (J,), linear between knots; None outside the trajectory."""
        running = self.newest()
        if running is None:
            return None
        knots, start_ns, step_ns, _ = running
        where = (time_ns - start_ns) / step_ns
        index = int(floor(where))
        if index < 0 or index >= len(knots) - 1:
            return knots[len(knots) - 1] if where == len(knots) - 1 else None
        share = where - index
        return knots[index] * (1.0 - share) + knots[index + 1] * share
