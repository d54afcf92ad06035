"""The camera's two threads without the GIL: pump (librealsense -> frame ring), feeder (ring -> librealsense).

Both call librealsense's C API through addresses handed in by `dzedge.hardware.librealsense`, so neither a
busy Python thread nor Python's own binding stands between a frame and its slot. Streams, never framesets:
librealsense's syncer repeats the last frame of a stalled stream as if it were new. A sensor with several streams (a
D405 has colour, depth and infrared on one) has one queue; its pump hands frames that are not its own to the next.

ClockMap turns the stamp of a frame into CLOCK_MONOTONIC.
"""

cimport cython
from libc.math cimport llrint
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, strncpy
from posix.time cimport CLOCK_MONOTONIC, CLOCK_REALTIME, clock_gettime, nanosleep, timespec

import numpy as np

from dzedge.kernels.mailbox cimport META, FrameRing, int64, uint8
from dzedge.kernels.yuyv cimport yuyv_row


cdef extern from *:
    """
    static inline long long pump_get(const long long* p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
    static inline void pump_set(long long* p, long long v) { __atomic_store_n(p, v, __ATOMIC_RELEASE); }
    """
    int64 pump_get(const int64*) noexcept nogil
    void pump_set(int64*, int64) noexcept nogil


cdef enum:
    # rs2_timestamp_domain
    HARDWARE = 0
    SYSTEM = 1
    # rs2_frame_metadata_value
    FRAME_TIMESTAMP = 1
    SENSOR_TIMESTAMP = 2
    EXPOSURE = 3
    GAIN = 4
    BACKEND_TIMESTAMP = 9
    # what a row of pixels needs to become RGB
    COPY = 0
    SWAP = 1
    YUYV = 2
    # counters
    FRAMES = 0
    DROPPED = 1
    REPEATED = 2
    RESTARTED = 3
    REJECTED = 4
    FAILED = 5
    IMPLAUSIBLE = 6
    NUMBER = 7
    CAPTURE = 8
    RECEIVE = 9
    DOMAIN = 10
    RESETS = 11
    STEPS = 12
    SWITCHES = 13
    EXPOSURE_US = 14
    GAIN_LEVEL = 15
    TRANSPORT = 16

cdef int64 MASK = <int64>0xFFFFFFFF           # the camera counts microseconds in 32 bits: 71.6 minutes
cdef int64 WRAP_NS = (MASK + 1) * 1000
cdef int64 JUMP_NS = 1000000000                 # more than a burst after a stall can explain
cdef int64 STEP_NS = 1000000                    # a step of the wall clock, not the noise of sampling it
cdef int64 LEAD_NS = 200000000                  # longest believable exposure plus readout
cdef int64 OLD_NS = 1000000000                  # no healthy camera's frame is older than this on arrival
cdef int64 POLL_NS = 500000
cdef int64 NAP_NS = 20000000                    # so that `stop` is heard
cdef int64 DRIFT = 10000                        # 100 ppm as a divisor: D400 clocks measured at 75 ppm

NAMES = (
    "frames", "dropped", "repeated", "restarted", "rejected", "failed", "implausible", "number", "capture_ns",
    "receive_ns", "domain", "clock_resets", "clock_steps", "domain_switches", "exposure_us", "gain",
    "transport_ns",
)

FORMATS = {"rgb8": (COPY, 3), "bgr8": (SWAP, 3), "yuyv": (YUYV, 2)}
"""Colour: what turns it into RGB, and bytes a pixel on arrival."""
RAW = {"z16": (COPY, 2), "y8": (COPY, 1)}
"""Depth and infrared, kept as they are."""


cdef inline int64 now(int clock) noexcept nogil:
    cdef timespec t
    clock_gettime(clock, &t)
    return <int64>t.tv_sec * 1000000000 + t.tv_nsec


cdef int64 realtime_offset() noexcept nogil:
    """CLOCK_REALTIME - CLOCK_MONOTONIC [ns]: the tightest of three samples, lest the thread lost its core
    between."""
    cdef int64 before, wall, after, offset = 0, width, best = 1 << 62
    for _ in range(3):
        before = now(CLOCK_MONOTONIC)
        wall = now(CLOCK_REALTIME)
        after = now(CLOCK_MONOTONIC)
        width = after - before
        if width < best:
            best = width
            offset = wall - before - width // 2
        if best < 2000:
            break
    return offset


@cython.final
cdef class ClockMap:
    """A frame's stamp as CLOCK_MONOTONIC [ns].

    HARDWARE: the camera's 32-bit microsecond counter, unwrapped. Its offset to our clock is the running
    minimum of (receive - stamp): the fastest frame is the one least delayed. The minimum may rise by 100
    ppm of the time gone by, so that it follows a camera clock that is slower than ours; one that is faster
    lowers it by itself. Hence, with one undelayed frame every 10 s, it is at most 1 ms off. The smallest
    delay of the path stays in the result. SYSTEM and GLOBAL: wall clock; CLOCK_REALTIME - CLOCK_MONOTONIC
    at receipt is taken off, its steps are counted.

    offset_ns: receive minus stamp in use; resets: how often the hardware counter jumped and was anchored
    anew; steps: jumps of the wall clock over 1 ms; switches: changes of the domain.
    """

    def __init__(self):
        self.forget()

    cpdef void forget(self) noexcept nogil:
        """Begin anew, as after a reset of the camera; the counts stay."""
        self.anchored = 0
        self.domain = -1

    cpdef int64 map(self, int64 stamp_ns, int domain, int64 receive_ns, int64 realtime_ns) noexcept nogil:
        """stamp_ns: the frame's stamp; domain: 0 hardware, 1 system, 2 global; receive_ns: CLOCK_MONOTONIC on
        arrival; realtime_ns: CLOCK_REALTIME - CLOCK_MONOTONIC then. Returns the capture time, not checked
        against the arrival."""
        if domain != self.domain:
            if self.domain >= 0:
                self.switches += 1
            self.anchored = 0
            self.domain = domain
        if domain == HARDWARE:
            return self._hardware(stamp_ns, receive_ns)
        if self.anchored and abs(realtime_ns - self.last_realtime) > STEP_NS:
            self.steps += 1
        self.anchored = 1
        self.last_realtime = realtime_ns
        self.offset_ns = -realtime_ns
        return stamp_ns - realtime_ns

    cdef int64 _hardware(self, int64 stamp_ns, int64 receive_ns) noexcept nogil:
        cdef int64 elapsed, advance, turns, candidate
        if self.anchored:
            elapsed = receive_ns - self.last_receive
            # As many turns of the counter as fit the time gone by here: right even after hours of silence.
            turns = <int64>llrint(<double>(self.last_stamp + elapsed - stamp_ns) / <double>WRAP_NS)
            stamp_ns += turns * WRAP_NS
            advance = stamp_ns - self.last_stamp
            if advance < 0 or abs(advance - elapsed) > JUMP_NS:
                self.resets += 1
                self.anchored = 0
                stamp_ns -= turns * WRAP_NS
        candidate = receive_ns - stamp_ns
        if self.anchored:
            self.offset_ns = min(self.offset_ns + (receive_ns - self.last_receive) // DRIFT, candidate)
        else:
            self.offset_ns = candidate
        self.anchored = 1
        self.last_stamp = stamp_ns
        self.last_receive = receive_ns
        return stamp_ns + self.offset_ns


@cython.final
cdef class FramePump:
    """Moves frames of one stream from an rs2_frame_queue into a FrameRing.

    addresses: of the C functions, by name; queue: an rs2_frame_queue*; ring: this is its only writer;
    pixels: what the stream delivers: "rgb8", "bgr8", "yuyv" (becomes RGB in a ring of 3 bytes a pixel, stays as it is
    in one of 2), "z16" or "y8"; stream, index: which stream, 0 for whatever comes; beside: the pump of another stream
    of the same queue, which gets what is not this one's and is not run itself. `run` is the body of a thread and
    returns within 50 ms of `stop`; `poll` is one turn of it. The caller keeps the queue alive until `run` has
    returned. Raises KeyError when an address or the format is missing, ValueError when the ring is of another kind.
    """

    def __init__(self, addresses, size_t queue, FrameRing ring, pixels="rgb8", int stream=0, int index=0,
                 FramePump beside=None):
        self.convert, self.pixel_bytes = (FORMATS | RAW)[pixels]
        if ring.pixel_bytes == self.pixel_bytes and self.convert == YUYV:
            self.convert = COPY
        if ring.pixel_bytes != (self.pixel_bytes if self.convert == COPY else 3):
            raise ValueError(f"frame ring of {ring.pixel_bytes} bytes a pixel for {pixels}: colour takes 3, depth 2, "
                             "infrared 1")
        self.stream, self.index, self.beside = stream, index, beside
        self.queue = <void*>queue
        self.ring = ring
        self.clock = ClockMap()
        self._bind(addresses)

    cdef _bind(self, addresses):
        lib = &self.library
        lib.try_wait = <Wait><size_t>addresses["rs2_try_wait_for_frame"]
        lib.release = <Release><size_t>addresses["rs2_release_frame"]
        lib.free_error = <Release><size_t>addresses["rs2_free_error"]
        lib.error_message = <Text><size_t>addresses["rs2_get_error_message"]
        lib.number = <Number><size_t>addresses["rs2_get_frame_number"]
        lib.stamp = <Stamp><size_t>addresses["rs2_get_frame_timestamp"]
        lib.supports = <Supports><size_t>addresses["rs2_supports_frame_metadata"]
        lib.metadata = <Metadata><size_t>addresses["rs2_get_frame_metadata"]
        lib.data = <Data><size_t>addresses["rs2_get_frame_data"]
        lib.domain = <Field><size_t>addresses["rs2_get_frame_timestamp_domain"]
        lib.data_size = <Field><size_t>addresses["rs2_get_frame_data_size"]
        lib.width = <Field><size_t>addresses["rs2_get_frame_width"]
        lib.height = <Field><size_t>addresses["rs2_get_frame_height"]
        lib.stride = <Field><size_t>addresses["rs2_get_frame_stride_in_bytes"]
        lib.bits = <Field><size_t>addresses["rs2_get_frame_bits_per_pixel"]
        lib.profile = <Data><size_t>addresses["rs2_get_frame_stream_profile"]
        lib.describe = <Describe><size_t>addresses["rs2_get_stream_profile_data"]

    def run(self):
        """Pump until `stop`. Releases the GIL for the whole time."""
        cdef timespec pause
        pause.tv_sec = 0
        pause.tv_nsec = 10000000
        with nogil:
            while not pump_get(&self.stopping):
                if self._turn(50) < 0:
                    nanosleep(&pause, NULL)

    def poll(self, unsigned int timeout_ms=0):
        """One turn: 1 a frame was taken, 0 there was none, -1 librealsense failed (see `error`)."""
        cdef int result
        with nogil:
            result = self._turn(timeout_ms)
        return result

    def stop(self):
        """Make `run` return within 50 ms; it can not be run again."""
        pump_set(&self.stopping, 1)

    def snapshot(self):
        """Counters by name, and number, capture_ns, receive_ns of the newest frame (0 before the first)."""
        return {name: pump_get(&self.counters[i]) for i, name in enumerate(NAMES)}

    def trace(self):
        """(number, capture_ns, receive_ns, commit_ns) of the last 1024 frames, oldest first; commit: in the
        ring."""
        return rows(self.history, 4, pump_get(&self.counters[FRAMES]))

    @property
    def error(self):
        """What librealsense last complained about, "" when it never did."""
        return self.message.decode("utf-8", "replace")

    cdef int _failed(self, void* error) noexcept nogil:
        if error == NULL:
            return 0
        strncpy(self.message, self.library.error_message(error), 255)
        self.library.free_error(error)
        pump_set(&self.counters[FAILED], self.counters[FAILED] + 1)
        return 1

    cdef int _turn(self, unsigned int timeout_ms) noexcept nogil:
        cdef void* frame = NULL
        cdef void* error = NULL
        cdef int got = self.library.try_wait(self.queue, timeout_ms, &frame, &error)
        cdef int64 receive_ns = now(CLOCK_MONOTONIC)
        if self._failed(error):
            return -1
        if not got:
            return 0
        got = self._route(frame, receive_ns)
        self.library.release(frame)
        return got

    cdef int _route(self, void* frame, int64 receive_ns) noexcept nogil:
        """Give the frame to the pump whose stream it is of; rejected by this one where it is nobody's."""
        cdef void* error = NULL
        cdef const void* profile
        cdef int stream = 0, form = 0, index = 0, uid = 0, fps = 0
        cdef int got
        if self.stream == 0:
            return self._take(frame, receive_ns)
        profile = self.library.profile(frame, &error)
        if error == NULL:
            self.library.describe(profile, &stream, &form, &index, &uid, &fps, &error)
        if self._failed(error):
            return -1
        got = self._offer(frame, receive_ns, stream, index)
        if got < 0:
            pump_set(&self.counters[REJECTED], self.counters[REJECTED] + 1)
        return 1

    cdef int _offer(self, void* frame, int64 receive_ns, int stream, int index) noexcept nogil:
        """Take the frame, or pass it on; -1 where nobody wants it."""
        if stream == self.stream and index == self.index:
            self._take(frame, receive_ns)
            return 1
        if self.beside is None:
            return -1
        return self.beside._offer(frame, receive_ns, stream, index)

    cdef int _take(self, void* frame, int64 receive_ns) noexcept nogil:
        cdef void* error = NULL
        cdef int64* count = self.counters
        cdef int64 number = <int64>self.library.number(frame, &error)
        cdef double stamp_ms = self.library.stamp(frame, &error) if error == NULL else 0
        cdef int domain = self.library.domain(frame, &error) if error == NULL else 0
        cdef int64 realtime_ns = realtime_offset()
        cdef int64 capture_ns, whole
        if self._failed(error):
            return -1
        if count[FRAMES] > 0 and number == count[NUMBER]:
            pump_set(&count[REPEATED], count[REPEATED] + 1)      # an old picture must not pass for a new one
            return 1
        if not self._store(frame):
            pump_set(&count[REJECTED], count[REJECTED] + 1)
            return 1
        if count[FRAMES] > 0 and number > count[NUMBER] + 1:
            pump_set(&count[DROPPED], count[DROPPED] + number - count[NUMBER] - 1)
        elif count[FRAMES] > 0 and number < count[NUMBER]:
            pump_set(&count[RESTARTED], count[RESTARTED] + 1)
            self.clock.forget()
        whole = <int64>stamp_ms                     # in two parts: a wall clock in ns exceeds 53 bits
        capture_ns = self.clock.map(whole * 1000000 + <int64>llrint((stamp_ms - <double>whole) * 1e6), domain,
                                    receive_ns, realtime_ns) - self._lead(frame)
        if capture_ns > receive_ns or receive_ns - capture_ns > OLD_NS:
            pump_set(&count[IMPLAUSIBLE], count[IMPLAUSIBLE] + 1)
        capture_ns = min(capture_ns, receive_ns)
        pump_set(&count[EXPOSURE_US], self._meta(frame, EXPOSURE))
        pump_set(&count[GAIN_LEVEL], self._meta(frame, GAIN))
        self.ring.commit(number, capture_ns, receive_ns, count[EXPOSURE_US], count[GAIN_LEVEL], self.clock.domain)
        self._account(now(CLOCK_MONOTONIC), frame, number, capture_ns, receive_ns, realtime_ns)
        return 1

    cdef void _account(self, int64 commit_ns, void* frame, int64 number, int64 capture_ns, int64 receive_ns,
                       int64 realtime_ns) noexcept nogil:
        cdef int64* count = self.counters
        cdef int64* row = &self.history[4 * (count[FRAMES] % TRACE)]
        row[0] = number
        row[1] = capture_ns
        row[2] = receive_ns
        row[3] = commit_ns
        cdef int64 backend_ms = self._meta(frame, BACKEND_TIMESTAMP)
        pump_set(&count[NUMBER], number)
        pump_set(&count[CAPTURE], capture_ns)
        pump_set(&count[RECEIVE], receive_ns)
        pump_set(&count[DOMAIN], self.clock.domain)
        pump_set(&count[RESETS], self.clock.resets)
        pump_set(&count[STEPS], self.clock.steps)
        pump_set(&count[SWITCHES], self.clock.switches)
        if backend_ms > 0:
            pump_set(&count[TRANSPORT], receive_ns + realtime_ns - backend_ms * 1000000)
        pump_set(&count[FRAMES], count[FRAMES] + 1)

    cdef int64 _meta(self, void* frame, int key) noexcept nogil:
        """A metadata value, -1 when the frame has none."""
        cdef void* error = NULL
        cdef int64 value = -1
        if self.library.supports(frame, key, &error) and error == NULL:
            value = self.library.metadata(frame, key, &error)
        if self._failed(error):
            return -1
        return value

    cdef int64 _lead(self, void* frame) noexcept nogil:
        """From the middle of the exposure to the stamp, which marks the readout [ns]; 0 where it is not
        told."""
        cdef int64 readout_us = self._meta(frame, FRAME_TIMESTAMP)
        cdef int64 middle_us = self._meta(frame, SENSOR_TIMESTAMP)
        cdef int64 lead_ns
        if readout_us <= 0 or middle_us <= 0:
            return 0
        lead_ns = ((readout_us - middle_us) & MASK) * 1000
        return lead_ns if lead_ns <= LEAD_NS else 0

    cdef int _store(self, void* frame) noexcept nogil:
        """Copy the pixels into the ring's next slot; 0 when the frame is not of the ring's shape."""
        cdef void* error = NULL
        cdef int width = self.library.width(frame, &error) if error == NULL else 0
        cdef int height = self.library.height(frame, &error) if error == NULL else 0
        cdef int stride = self.library.stride(frame, &error) if error == NULL else 0
        cdef int bits = self.library.bits(frame, &error) if error == NULL else 0
        cdef int size = self.library.data_size(frame, &error) if error == NULL else 0
        cdef const uint8* pixels = <const uint8*>self.library.data(frame, &error) if error == NULL else NULL
        if self._failed(error) or pixels == NULL:
            return 0
        if width != self.ring.width or height != self.ring.height or bits != 8 * self.pixel_bytes:
            return 0
        if stride < width * self.pixel_bytes or 0 < size < stride * height:   # injected frames report 0
            return 0
        self._copy(pixels, stride, self.ring.begin())
        return 1

    cdef void _copy(self, const uint8* source, int stride, uint8* target) noexcept nogil:
        cdef Py_ssize_t x, height = self.ring.height, width = self.ring.width
        cdef Py_ssize_t row = self.ring.pixel_bytes * width
        if self.convert == COPY and stride == row:
            memcpy(target, source, height * stride)
            return
        for _ in range(height):
            if self.convert == COPY:
                memcpy(target, source, row)
            elif self.convert == SWAP:
                for x in range(width):
                    target[3 * x] = source[3 * x + 2]
                    target[3 * x + 1] = source[3 * x + 1]
                    target[3 * x + 2] = source[3 * x]
            else:
                yuyv_row(source, target, width)
            source += stride
            target += row


cdef list rows(const int64* table, int width, int64 count):
    """The newest rows of a table of TRACE rows into which `count` were written in turn."""
    first = max(0, count - TRACE)
    return [tuple([table[width * (i % TRACE) + j] for j in range(width)]) for i in range(first, count)]


@cython.final
cdef class Feeder:
    """Injects what appears in a FrameRing into a librealsense software sensor, with number, capture time and, where
    the ring tells them, exposure and gain.

    sensor, profile: rs2_sensor* and rs2_stream_profile* of the software device; ring: written by the
    simulator, maybe in another process; domain: 0 hardware, 1 system, 2 global; phase_ns: what the hardware
    clock read at CLOCK_MONOTONIC 0; depth_units: metres of one count of a depth stream. `run` is the body of a
    thread; only frames published after its start are fed, in order, and those overwritten before their turn are left
    out, so that the receiver sees a gap in the numbers.
    """

    def __init__(self, addresses, size_t sensor, size_t profile, FrameRing ring, int domain=SYSTEM,
                 int64 phase_ns=0, float depth_units=0):
        self.depth_units = depth_units
        self.on_frame = <Inject><size_t>addresses["rs2_software_sensor_on_video_frame"]
        self.set_metadata = <SetMetadata><size_t>addresses["rs2_software_sensor_set_metadata"]
        self.free_error = <Release><size_t>addresses["rs2_free_error"]
        self.sensor = <void*>sensor
        self.profile = <void*>profile
        self.ring = ring
        self.domain = domain
        self.phase_ns = phase_ns

    def run(self):
        """Feed until `stop`. Releases the GIL for the whole time."""
        with nogil:
            self._loop()

    def stop(self):
        """Make `run` return within 20 ms."""
        pump_set(&self.stopping, 1)

    def ready(self):
        """Allow `run` again after `stop`."""
        pump_set(&self.stopping, 0)

    def inject(self, image, int64 number, int64 capture_ns, int64 exposure_us=-1, int64 gain=-1):
        """Inject one frame now. image: of the ring's shape. Raises ValueError on another."""
        cdef const uint8[::1] pixels = np.ascontiguousarray(image).reshape(-1).view(np.uint8)
        if image.shape[:2] != (self.ring.height, self.ring.width) or pixels.shape[0] != self.ring.payload_bytes:
            wanted = (self.ring.height, self.ring.width, self.ring.pixel_bytes)
            raise ValueError(f"frame of shape {image.shape}, {image.dtype}, sensor takes {wanted} bytes")
        cdef uint8* copy = <uint8*>malloc(self.ring.payload_bytes)
        if copy == NULL:
            raise MemoryError
        memcpy(copy, &pixels[0], self.ring.payload_bytes)
        return self._send(copy, number, capture_ns, exposure_us, gain)

    def detach(self):
        """Inject nothing more, ever: the sensor's handle is about to go. `run` has returned before."""
        self.sensor = NULL

    def trace(self):
        """(number, injected_ns) of up to the last 1024 frames, oldest first."""
        return rows(self.history, 2, pump_get(&self.fed))

    def snapshot(self):
        """Frames injected, frames overwritten before their turn, injections that librealsense refused."""
        return {
            "fed": pump_get(&self.fed),
            "missed": pump_get(&self.missed),
            "failed": pump_get(&self.failed),
        }

    cdef double _stamp(self, int64 capture_ns) noexcept nogil:
        """Capture time as the stamp [ms] of the chosen clock."""
        if self.domain == HARDWARE:
            return <double>(((capture_ns + self.phase_ns) // 1000) & MASK) * 1e-3
        return <double>(capture_ns + realtime_offset()) * 1e-6

    cdef void _tell(self, int key, int64 value) noexcept nogil:
        """Metadata of the frames from now on; nothing for a value that is not known."""
        cdef void* error = NULL
        if value > 0:
            self.set_metadata(self.sensor, key, value, &error)
            if error != NULL:
                self.free_error(error)

    cdef int _send(self, uint8* pixels, int64 number, int64 capture_ns, int64 exposure_us, int64 gain) noexcept nogil:
        """Hand `pixels` (from malloc) to librealsense, which frees them when the frame's last holder lets
        go."""
        cdef SoftwareFrame frame
        cdef void* error = NULL
        if self.sensor == NULL:
            free(pixels)
            return 0
        frame.pixels = pixels
        frame.deleter = free
        frame.stride = <int>(self.ring.pixel_bytes * self.ring.width)
        frame.bpp = <int>self.ring.pixel_bytes
        frame.timestamp = self._stamp(capture_ns)
        frame.domain = self.domain
        frame.frame_number = <int>number
        frame.profile = self.profile
        frame.depth_units = self.depth_units
        self._tell(EXPOSURE, exposure_us)
        self._tell(GAIN, gain)
        self.history[2 * (self.fed % TRACE)] = number
        self.history[2 * (self.fed % TRACE) + 1] = now(CLOCK_MONOTONIC)
        self.on_frame(self.sensor, frame, &error)
        if error != NULL:
            self.free_error(error)
            pump_set(&self.failed, self.failed + 1)
            return 0
        pump_set(&self.fed, self.fed + 1)
        return 1

    cdef void _wait(self, int64 fed_ns, int64 interval_ns) noexcept nogil:
        """A short sleep; a longer one in the first three quarters of the shortest interval seen lately, for half a
        millisecond all the time costs 4 % of a core."""
        cdef timespec pause
        cdef int64 early_ns = fed_ns + interval_ns * 3 // 4 - now(CLOCK_MONOTONIC)
        pause.tv_sec = 0
        pause.tv_nsec = max(POLL_NS, min(early_ns, NAP_NS))
        nanosleep(&pause, NULL)

    cdef void _loop(self) noexcept nogil:
        cdef int64[META] meta
        cdef int64 seen = self.ring.published()
        cdef int64 count
        cdef int64 fed_ns = now(CLOCK_MONOTONIC)
        cdef int64 interval_ns = 0
        cdef uint8* pixels
        while not pump_get(&self.stopping):
            count = self.ring.published()
            if count == seen:
                self._wait(fed_ns, interval_ns)
                continue
            interval_ns = min(interval_ns + interval_ns // 8 + POLL_NS, now(CLOCK_MONOTONIC) - fed_ns)
            fed_ns = now(CLOCK_MONOTONIC)
            if count - seen >= self.ring.slots:
                pump_set(&self.missed, self.missed + count - seen - (self.ring.slots - 1))
                seen = count - (self.ring.slots - 1)
            pixels = <uint8*>malloc(self.ring.payload_bytes)
            if pixels != NULL and self.ring.fetch(seen, pixels, self.ring.payload_bytes, meta):
                self._send(pixels, meta[0], meta[1], meta[3], meta[4])
            else:
                free(pixels)
                pump_set(&self.missed, self.missed + 1)
            seen += 1
