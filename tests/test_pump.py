"""Frame pump and feeder against the real librealsense: every frame crosses a software device."""

import ctypes
import threading
import time

import numpy as np
import pytest

from dzedge.hardware.librealsense import COLOR, DEPTH, FORMATS, INFRARED, Sensor, library
from dzedge.hardware.librealsense_calls import Intrinsics, VideoStream
from dzedge.kernels.mailbox import FrameRing
from dzedge.kernels.pump import Feeder, FramePump

HEIGHT, WIDTH = 6, 8
FRAME_TIMESTAMP, SENSOR_TIMESTAMP, EXPOSURE, GAIN, BACKEND_TIMESTAMP = 1, 2, 3, 4, 9
DELETER = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
NO_DELETER = DELETER(lambda _: None)


class SoftwareFrame(ctypes.Structure):
    """rs2_software_video_frame, written down a second time."""

    _fields_ = (
        ("pixels", ctypes.c_void_p),
        ("deleter", DELETER),
        ("stride", ctypes.c_int),
        ("bpp", ctypes.c_int),
        ("timestamp", ctypes.c_double),
        ("domain", ctypes.c_int),
        ("frame_number", ctypes.c_int),
        ("profile", ctypes.c_void_p),
        ("depth_units", ctypes.c_float),
    )


def make_ring(slots: int = 8, height: int = HEIGHT, width: int = WIDTH, pixel_bytes: int = 3) -> FrameRing:
    memory = np.zeros(FrameRing.bytes_for(slots, height, width, pixel_bytes), np.uint8)
    return FrameRing(memory, slots, height, width, pixel_bytes)


@pytest.fixture(scope="module", autouse=True)
def bus_watcher():
    """Keeps librealsense's bus watcher alive: without a context, each device takes 0.1 s to end its own."""
    lib = library()
    with lib.held("context", lib.call("rs2_create_context", lib.version)):
        yield


class Stream:
    """A software sensor that streams into a queue, and the pump that empties it."""

    def __init__(self, pixels: str = "rgb8", slots: int = 64, width: int = WIDTH, pixel_bytes: int = 3) -> None:
        self.lib = lib = library()
        self.ring = make_ring(slots, pixel_bytes=pixel_bytes)
        self.device = lib.call("rs2_create_software_device")
        handle = lib.call("rs2_software_device_add_sensor", self.device, b"RGB Camera")
        self.bytes = {"yuyv": 2, "z16": 2, "y8": 1}.get(pixels, 3)
        lens = Intrinsics(width, HEIGHT, 4, 3, 8, 8, 0)
        kind, index = {"z16": (DEPTH, 0), "y8": (INFRARED, 1)}.get(pixels, (COLOR, 0))
        video = VideoStream(kind, index, 1, width, HEIGHT, 30, self.bytes, FORMATS[pixels], lens)
        self.profile = lib.call("rs2_software_sensor_add_video_stream_ex", handle, video, 1)
        self.sensor = Sensor(lib, handle)
        self.queue = lib.call("rs2_create_frame_queue", 64)
        self.sensor.open(self.sensor.modes(kind)[0], kind)
        self.sensor.start(self.queue)
        self.pump = FramePump(lib.addresses, self.queue, self.ring, pixels)
        self.inject_frame = lib._dll.rs2_software_sensor_on_video_frame
        self.inject_frame.argtypes = [ctypes.c_void_p, SoftwareFrame, ctypes.c_void_p]
        self.alive: list[np.ndarray] = []

    def inject(self, image, number, stamp_ms=0.0, domain=1, stride=None, bytes_per_pixel=None):
        data = np.ascontiguousarray(image, np.uint8)
        self.alive.append(data)
        frame = SoftwareFrame(
            data.ctypes.data,
            NO_DELETER,
            stride or WIDTH * self.bytes,
            bytes_per_pixel or self.bytes,
            stamp_ms,
            domain,
            number,
            self.profile,
            0.0,
        )
        self.inject_frame(self.sensor.handle, frame, None)

    def metadata(self, key, value):
        self.lib.call("rs2_software_sensor_set_metadata", self.sensor.handle, key, value)

    def drain(self) -> int:
        taken = 0
        while self.pump.poll(0):
            taken += 1
        return taken

    def feeder(self, ring, domain=1, phase_ns=0):
        return Feeder(self.lib.addresses, self.sensor.handle, self.profile, ring, domain, phase_ns)

    def close(self):
        self.sensor.close()
        self.lib.delete("frame_queue", self.queue)
        self.lib.delete("device", self.device)


@pytest.fixture
def make_stream():
    streams = []

    def make(*args, **kwargs):
        streams.append(Stream(*args, **kwargs))
        return streams[-1]

    yield make
    for stream in streams:
        stream.close()


@pytest.fixture
def stream(make_stream):
    return make_stream()


def picture(seed: int, shape=(HEIGHT, WIDTH, 3)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


class TestPixels:
    def test_rgb_is_byte_exact(self, stream):
        for i in range(20):
            stream.inject(picture(i), i)
        assert stream.drain() == 20
        for i in range(20):
            _, pixels, meta = stream.ring.read(i)
            assert meta[0] == i
            np.testing.assert_array_equal(pixels.reshape(HEIGHT, WIDTH, 3), picture(i))

    def test_rows_with_padding(self, stream):
        rows = picture(1, (HEIGHT, WIDTH * 3 + 5))
        stream.inject(rows, 1, stride=WIDTH * 3 + 5)
        stream.drain()
        np.testing.assert_array_equal(stream.ring.newest()[1].reshape(HEIGHT, -1), rows[:, : WIDTH * 3])

    def test_bgr_is_swapped(self, make_stream):
        stream = make_stream("bgr8")
        stream.inject(picture(2), 1)
        stream.drain()
        np.testing.assert_array_equal(stream.ring.newest()[1], picture(2)[:, :, ::-1])

    def test_yuyv_becomes_rgb(self, make_stream):
        stream = make_stream("yuyv")
        raw = picture(3, (HEIGHT, WIDTH, 2))
        stream.inject(raw, 1)
        stream.drain()
        y = 255 / 219 * (raw[:, :, 0].astype(float) - 16)
        u = np.repeat(raw[:, 0::2, 1].astype(float) - 128, 2, axis=1)
        v = np.repeat(raw[:, 1::2, 1].astype(float) - 128, 2, axis=1)
        rgb = np.stack([y + 1.596 * v, y - 0.392 * u - 0.813 * v, y + 2.017 * u], axis=2)
        assert np.abs(stream.ring.newest()[1] - np.clip(rgb, 0, 255)).max() <= 1.5

    def test_other_shape_is_refused_and_counted(self, make_stream):
        stream = make_stream(width=WIDTH // 2)
        stream.inject(picture(1), 1, stride=WIDTH // 2 * 3)
        assert stream.drain() == 1
        assert (stream.pump.snapshot()["rejected"], stream.ring.count) == (1, 0)

    @pytest.mark.parametrize("wrong", [{"stride": WIDTH * 3 - 1}, {"bytes_per_pixel": 2}])
    def test_rows_too_short_or_other_depth_are_refused(self, stream, wrong):
        stream.inject(picture(1), 1, **wrong)
        stream.drain()
        assert (stream.pump.snapshot()["rejected"], stream.ring.count) == (1, 0)

    def test_format_that_the_ring_does_not_fit(self, stream):
        with pytest.raises(ValueError, match="frame ring of 3 bytes a pixel for z16"):
            FramePump(stream.lib.addresses, stream.queue, stream.ring, "z16")
        with pytest.raises(KeyError):
            FramePump(stream.lib.addresses, stream.queue, stream.ring, "jpeg")


class TestKinds:
    """Depth, infrared and raw YUYV, and several streams of one sensor in one queue."""

    @pytest.mark.parametrize(
        ("pixels", "pixel_bytes", "kind"), [("z16", 2, np.uint16), ("y8", 1, np.uint8), ("yuyv", 2, np.uint16)]
    )
    def test_raw_frames_are_byte_exact(self, make_stream, pixels, pixel_bytes, kind):
        stream = make_stream(pixels, pixel_bytes=pixel_bytes)
        image = np.random.default_rng(1).integers(0, np.iinfo(kind).max, (HEIGHT, WIDTH), kind)
        stream.inject(image.view(np.uint8), 1)
        stream.drain()
        np.testing.assert_array_equal(stream.ring.newest()[1], image)

    def test_a_depth_ring_takes_no_colour(self, stream):
        ring = make_ring(pixel_bytes=2)
        for pixels in ("rgb8", "y8"):
            with pytest.raises(ValueError, match="frame ring of 2 bytes a pixel"):
                FramePump(stream.lib.addresses, stream.queue, ring, pixels)

    def test_streams_of_one_queue_go_to_their_own_rings(self, make_stream):
        stream = make_stream()
        color, infrared = stream.ring, make_ring(pixel_bytes=1)
        beside = FramePump(stream.lib.addresses, stream.queue, infrared, "y8", 3, 1)
        pump = FramePump(stream.lib.addresses, stream.queue, color, "rgb8", COLOR, 0, beside)
        stream.inject(picture(1), 1)
        while pump.poll(0):
            pass
        assert (color.count, infrared.count) == (1, 0)
        assert pump.snapshot()["frames"] == 1
        other = FramePump(stream.lib.addresses, stream.queue, color, "rgb8", COLOR, 1, beside)
        stream.inject(picture(2), 2)
        while other.poll(0):
            pass
        assert other.snapshot()["rejected"] == 1, "of a stream that nobody wants"
        assert (color.count, infrared.count) == (1, 0)

    def test_exposure_and_gain_lie_beside_the_frame(self, stream):
        stream.metadata(EXPOSURE, 8500)
        stream.metadata(GAIN, 64)
        stream.inject(picture(0), 1, time.time() * 1e3, domain=2)
        stream.metadata(EXPOSURE, 4000)
        stream.inject(picture(0), 2, time.time() * 1e3, domain=2)
        stream.drain()
        assert [stream.ring.frame(i)[5:] for i in (0, 1)] == [(8500, 64, 2), (4000, 64, 2)]


class TestNumbers:
    def test_gaps_are_counted(self, stream):
        for number in (5, 6, 9, 10, 20):
            stream.inject(picture(0), number)
        stream.drain()
        counts = stream.pump.snapshot()
        assert (counts["frames"], counts["dropped"], counts["number"]) == (5, 2 + 9, 20)

    def test_repeated_number_is_no_new_frame(self, stream):
        for number in (5, 5, 5, 6):
            stream.inject(picture(0), number)
        stream.drain()
        counts = stream.pump.snapshot()
        assert (counts["frames"], counts["repeated"], stream.ring.count) == (2, 2, 2)

    def test_numbers_that_begin_anew(self, stream):
        for number in (100, 101, 1, 2):
            stream.inject(picture(0), number)
        stream.drain()
        counts = stream.pump.snapshot()
        assert (counts["frames"], counts["restarted"], counts["dropped"]) == (4, 1, 0)


class TestTime:
    def test_wall_clock_stamp_is_capture_time(self, stream):
        offset = time.time_ns() - time.monotonic_ns()
        before = time.monotonic_ns()
        stream.inject(picture(0), 1, (before + offset) * 1e-6, domain=1)
        stream.drain()
        _, _, _, capture_ns, receive_ns = stream.ring.newest()
        assert abs(capture_ns - before) < 20_000_000
        assert before <= receive_ns <= time.monotonic_ns()
        assert stream.pump.snapshot()["implausible"] == 0

    def test_stamp_from_the_future_is_cut_to_arrival_and_counted(self, stream):
        stream.inject(picture(0), 1, time.time() * 1e3 + 26_000, domain=2)
        stream.drain()
        _, _, _, capture_ns, receive_ns = stream.ring.newest()
        assert capture_ns == receive_ns
        assert stream.pump.snapshot()["implausible"] == 1

    def test_stamp_from_long_ago_is_kept_and_counted(self, stream):
        stream.inject(picture(0), 1, time.time() * 1e3 - 26_000, domain=1)
        stream.drain()
        _, _, _, capture_ns, receive_ns = stream.ring.newest()
        assert abs(receive_ns - capture_ns - 26_000_000_000) < 1_000_000_000
        assert stream.pump.snapshot()["implausible"] == 1

    def test_middle_of_exposure_where_the_camera_tells(self, stream):
        stream.metadata(FRAME_TIMESTAMP, 3000)
        stream.metadata(SENSOR_TIMESTAMP, 2**32 - 2000)
        stream.metadata(EXPOSURE, 8500)
        stream.metadata(GAIN, 64)
        stream.inject(picture(0), 1, 3.0, domain=0)
        stream.drain()
        _, _, _, capture_ns, receive_ns = stream.ring.newest()
        assert receive_ns - capture_ns == 5_000_000
        counts = stream.pump.snapshot()
        assert (counts["exposure_us"], counts["gain"], counts["domain"]) == (8500, 64, 0)

    def test_unbelievable_exposure_is_left_out(self, stream):
        stream.metadata(FRAME_TIMESTAMP, 3000)
        stream.metadata(SENSOR_TIMESTAMP, 5000)
        stream.inject(picture(0), 1, 3.0, domain=0)
        stream.drain()
        _, _, _, capture_ns, receive_ns = stream.ring.newest()
        assert receive_ns == capture_ns

    def test_way_from_kernel_to_pump(self, stream):
        stream.metadata(BACKEND_TIMESTAMP, int(time.time() * 1e3) - 40)
        stream.inject(picture(0), 1)
        stream.drain()
        assert 39_000_000 <= stream.pump.snapshot()["transport_ns"] < 10_000_000_000

    def test_metadata_that_is_not_there(self, stream):
        stream.inject(picture(0), 1)
        stream.drain()
        counts = stream.pump.snapshot()
        assert (counts["exposure_us"], counts["gain"], counts["failed"]) == (-1, -1, 0)


class TestFeeder:
    @pytest.mark.parametrize("domain", [0, 1, 2])
    def test_stamp_of_each_clock_arrives_as_capture_time(self, stream, domain):
        feeder = stream.feeder(make_ring(), domain, phase_ns=(2**32 - 50_000) * 1000 - time.monotonic_ns())
        for number in range(1, 11):
            capture_ns = time.monotonic_ns()
            assert feeder.inject(picture(number), number, capture_ns) == 1
            assert stream.pump.poll(1000) == 1
            _, image, got, mapped_ns, receive_ns = stream.ring.newest()
            np.testing.assert_array_equal(image, picture(number))
            assert got == number
            # A hardware clock's map keeps the smallest delay seen; a wall clock's is exact to its sampling.
            assert capture_ns - 1_000_000 <= mapped_ns <= (receive_ns if domain == 0 else capture_ns + 1_000_000)
            time.sleep(0.01)
        counts = stream.pump.snapshot()
        assert (counts["domain"], counts["clock_resets"], counts["implausible"]) == (domain, 0, 0)

    def test_ring_of_another_writer_is_fed_in_order(self, stream):
        source = make_ring(64)
        feeder = stream.feeder(source)
        thread = threading.Thread(target=feeder.run)
        source.put(picture(99), 99, 1, 1)
        thread.start()
        # Frames from before the start are old: the feeder leaves them out.
        self.wait(lambda: self.offer(source, feeder, 0))
        for number in range(1, 41):
            source.put(picture(number), number, time.monotonic_ns(), 0)
        self.wait(lambda: feeder.snapshot()["fed"] >= 40 + 1)
        feeder.stop()
        thread.join(5)
        assert not thread.is_alive()
        stream.drain()
        numbers = [stream.ring.read(i)[2][0] for i in range(stream.ring.count)]
        assert 99 not in numbers
        assert numbers[-40:] == list(range(1, 41))
        np.testing.assert_array_equal(stream.ring.newest()[1], picture(40))
        assert feeder.snapshot()["missed"] == feeder.snapshot()["failed"] == 0

    def test_frames_overwritten_before_their_turn_are_counted(self, stream):
        source = make_ring(4)
        feeder = stream.feeder(source)
        thread = threading.Thread(target=feeder.run)
        thread.start()
        self.wait(lambda: self.offer(source, feeder, 0))
        fed = feeder.snapshot()["fed"]
        before = source.count
        for number in range(1, 2001):
            source.put(picture(1), number, time.monotonic_ns(), 0)
            if number % 10 == 0:
                stream.drain()
        self.wait(lambda: self.total(feeder) >= source.count - before + fed)
        feeder.stop()
        thread.join(5)
        stream.drain()
        assert stream.ring.newest()[2] == 2000
        assert feeder.snapshot()["missed"] > 0

    def test_wrong_shape(self, stream):
        with pytest.raises(ValueError, match="sensor takes"):
            stream.feeder(make_ring()).inject(np.zeros((HEIGHT, WIDTH + 1, 3), np.uint8), 1, 1)

    def test_detached_injects_nothing(self, stream):
        feeder = stream.feeder(make_ring())
        feeder.detach()
        assert feeder.inject(picture(1), 1, 1) == 0
        assert stream.drain() == 0

    def test_stopped_sensor_takes_nothing(self, stream):
        stream.sensor.stop()
        stream.feeder(make_ring()).inject(picture(1), 1, 1)
        assert stream.drain() == 0

    @staticmethod
    def wait(condition):
        deadline = time.monotonic() + 10
        while not condition():
            assert time.monotonic() < deadline, "nothing came within 10 s"
            time.sleep(0.002)

    @staticmethod
    def offer(source, feeder, number):
        """Publish until the feeder has taken one: then it runs."""
        if feeder.snapshot()["fed"]:
            return True
        source.put(picture(0), number, time.monotonic_ns(), 0)
        time.sleep(0.005)
        return False

    @staticmethod
    def total(feeder):
        counts = feeder.snapshot()
        return counts["fed"] + counts["missed"]


class TestThread:
    def test_busy_python_costs_no_frame(self, stream):
        source, done = make_ring(16), threading.Event()
        feeder = stream.feeder(source)

        def spin():
            while not done.is_set():
                sum(range(500))

        threads = [threading.Thread(target=body) for body in (spin, stream.pump.run, feeder.run)]
        for thread in threads:
            thread.start()
        TestFeeder.wait(lambda: TestFeeder.offer(source, feeder, 0))
        for number in range(1, 61):
            source.put(picture(number), number, time.monotonic_ns(), 0)
            time.sleep(0.005)
        TestFeeder.wait(lambda: stream.pump.snapshot()["number"] == 60)
        done.set()
        feeder.stop()
        stream.pump.stop()
        for thread in threads:
            thread.join(5)
            assert not thread.is_alive()
        counts = stream.pump.snapshot()
        assert (counts["dropped"], counts["failed"], counts["rejected"]) == (0, 0, 0)
        np.testing.assert_array_equal(stream.ring.newest()[1], picture(60))

    def test_trace_tells_when(self, stream):
        feeder = stream.feeder(make_ring())
        for number in range(1, 1031):
            feeder.inject(picture(1), number, 1)
            assert stream.pump.poll(1000) == 1
        injected, pumped = feeder.trace(), stream.pump.trace()
        assert [row[0] for row in injected] == [row[0] for row in pumped] == list(range(7, 1031))
        for (_, sent_ns), (_, capture_ns, receive_ns, commit_ns) in zip(injected, pumped, strict=True):
            assert capture_ns <= sent_ns <= receive_ns <= commit_ns

    def test_stopped_pump_returns_at_once(self, stream):
        stream.pump.stop()
        stream.pump.run()
        assert stream.pump.error == ""

    def test_missing_function(self, stream):
        addresses = {k: v for k, v in stream.lib.addresses.items() if k != "rs2_release_frame"}
        with pytest.raises(KeyError, match="rs2_release_frame"):
            FramePump(addresses, stream.queue, stream.ring)

    def test_librealsense_complaint_is_kept(self, stream):
        pump = FramePump(stream.lib.addresses, 0, stream.ring)
        assert pump.poll(0) == -1
        assert "null pointer" in pump.error
        assert pump.snapshot()["failed"] == 1
