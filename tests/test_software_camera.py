"""The simulated camera as librealsense sees it."""

import mmap
import os
import subprocess
import sys
import time

import numpy as np
import pytest

from dzedge.errors import CameraError
from dzedge.hardware.librealsense import COLOR, DEPTH, Mode, Sensor, library
from dzedge.hardware.sim.software_camera import SoftwareCamera
from dzedge.kernels.mailbox import FrameRing
from dzedge.kernels.pump import FramePump

HEIGHT, WIDTH, SLOTS = 12, 16, 64

WRITER = """
import mmap, sys, time
import numpy as np
from dzedge.kernels.mailbox import FrameRing
fd, slots, height, width, count = map(int, sys.argv[1:])
ring = FrameRing(np.frombuffer(mmap.mmap(fd, 0), np.uint8), slots, height, width)
sys.stdin.readline()
for number in range(1, count + 1):
    image = np.random.default_rng(number).integers(0, 256, (height, width, 3), np.uint8)
    now = time.monotonic_ns()
    ring.put(image, number, now, now)
    time.sleep(0.002)
"""


def make_ring(slots: int = SLOTS) -> FrameRing:
    return FrameRing(np.zeros(FrameRing.bytes_for(slots, HEIGHT, WIDTH), np.uint8), slots, HEIGHT, WIDTH)


def wait(condition):
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "nothing came within 10 s"
        time.sleep(0.002)


@pytest.fixture(scope="module", autouse=True)
def bus_watcher():
    """Keeps librealsense's bus watcher alive: without a context, each device takes 0.1 s to end its own."""
    lib = library()
    with lib.held("context", lib.call("rs2_create_context", lib.version)):
        yield


class Session:
    """The device's sensor streaming into a pump that the test turns by hand."""

    def __init__(self, camera: SoftwareCamera) -> None:
        self.lib = library()
        self.device = camera.open()
        (self.sensor,) = self.device.sensors()
        self.sensor.open(Mode(WIDTH, HEIGHT, 15, "rgb8"))
        self.ring = make_ring()
        self.queue = 0
        self.start()

    def start(self) -> None:
        self.queue = self.lib.call("rs2_create_frame_queue", 16)
        self.pump = FramePump(self.lib.addresses, self.queue, self.ring)
        self.sensor.start(self.queue)

    def stop(self) -> None:
        self.sensor.stop()
        self.lib.delete("frame_queue", self.queue)

    def close(self) -> None:
        self.stop()
        self.sensor.close()
        self.device.close()


@pytest.fixture
def session():
    session = Session(SoftwareCamera(make_ring()))
    yield session
    session.close()


class TestIdentity:
    def test_says_who_it_is(self):
        camera = SoftwareCamera(make_ring(), serial="left", usb="2.1")
        device = camera.find("left")
        assert [device.info(key) for key in ("name", "serial", "usb")] == ["Simulated D435", "left", "2.1"]
        assert [info.serial for info in camera.attached()] == ["left"]
        for sensor in device.sensors():
            sensor.close()
        device.close()
        camera.close()

    def test_d435_has_colour_alone_and_d405_both_on_one_sensor(self):
        mode = Mode(WIDTH, HEIGHT, 15, "rgb8")
        for product, depth in (("D435", []), ("D405", [Mode(WIDTH, HEIGHT, 15, "z16")])):
            device = SoftwareCamera(make_ring(), product=product).open()
            (sensor,) = device.sensors()
            assert (sensor.modes(COLOR), sensor.modes(DEPTH)) == ([mode], depth)
            sensor.close()
            device.close()

    def test_lens(self):
        device = SoftwareCamera(make_ring(), focal=123.0).open()
        (sensor,) = device.sensors()
        lens = sensor.open(Mode(WIDTH, HEIGHT, 15, "rgb8"))
        assert (lens.fx, lens.fy, lens.ppx, lens.ppy) == (123.0, 123.0, (WIDTH - 1) / 2, (HEIGHT - 1) / 2)
        sensor.close()
        device.close()

    def test_wrong_serial_names_what_is_there(self):
        with pytest.raises(CameraError, match=r"camera 42: not attached; found: Simulated D435 sim \(USB 3.2\)"):
            SoftwareCamera(make_ring()).find("42")

    def test_unplugged_is_not_found(self):
        camera = SoftwareCamera(make_ring())
        camera.unplug()
        with pytest.raises(CameraError, match="found: none"):
            camera.find("sim")
        camera.unplug(plugged=True)
        camera.find("sim").close()


class TestSensor:
    def test_mode_that_it_lacks(self, session):
        session.sensor.stop()
        with pytest.raises(CameraError, match="no mode 640x480 at 30 fps rgb8; choose one of: 16x12 at 15 fps rgb8"):
            session.sensor.open(Mode(640, 480, 30, "rgb8"))

    def test_second_opener_is_told(self, session):
        with pytest.raises(CameraError, match="streaming"):
            session.sensor.open(Mode(WIDTH, HEIGHT, 15, "rgb8"))

    def test_options(self, session):
        sensor: Sensor = session.sensor
        assert sensor.option("auto_exposure_priority") == 1
        sensor.set_option("auto_exposure_priority", 0)
        assert sensor.option("auto_exposure_priority") == 0
        with pytest.raises(CameraError, match=r"auto_exposure_priority = 7: must lie in \[0.0, 1.0\]"):
            sensor.set_option("auto_exposure_priority", 7)
        with pytest.raises(
            CameraError, match=r"option warp_speed: not offered; choose one of: .*auto_exposure_priority"
        ):
            sensor.set_option("warp_speed", 1)

    def test_librealsense_words_reach_the_error(self, session):
        with pytest.raises(CameraError, match=r"librealsense start_queue: .*already streaming"):
            session.sensor.start(session.queue)


class TestStream:
    def test_frames_of_another_process_arrive_whole(self):
        size = FrameRing.bytes_for(SLOTS, HEIGHT, WIDTH)
        fd = os.memfd_create("frames")
        os.ftruncate(fd, size)
        source = FrameRing(np.frombuffer(mmap.mmap(fd, size), np.uint8), SLOTS, HEIGHT, WIDTH)
        arguments = [sys.executable, "-c", WRITER, *map(str, (fd, SLOTS, HEIGHT, WIDTH, 60))]
        writer = subprocess.Popen(arguments, pass_fds=[fd], stdin=subprocess.PIPE)
        session = Session(SoftwareCamera(source))
        writer.communicate(b"\n", timeout=20)
        wait(lambda: session.device.feeder.snapshot()["fed"] == 60 or session.pump.poll(0) < 0)
        os.close(fd)
        while session.pump.poll(0):
            pass
        # The queue keeps the newest 16 of what was not fetched meanwhile.
        assert session.ring.count == 16
        for index in range(16):
            _, pixels, meta = session.ring.read(index)
            expected = np.random.default_rng(45 + index).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
            assert meta[0] == 45 + index
            np.testing.assert_array_equal(pixels.reshape(expected.shape), expected)
        session.close()

    def test_old_frame_does_not_survive_a_restart(self, session):
        image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
        session.device.feeder.inject(image, 7, time.monotonic_ns())
        session.stop()
        session.start()
        session.device.feeder.inject(image, 8, time.monotonic_ns())
        assert session.pump.poll(1000) == 1
        assert session.pump.poll(0) == 0
        assert session.ring.newest()[2] == 8

    def test_feeder_runs_only_while_it_streams(self, session):
        session.sensor.stop()
        assert session.sensor._threads == []
        session.sensor.stop()
        session.sensor.start(session.queue)
        assert session.sensor._threads[0].is_alive()

    def test_closed_device_takes_nothing(self):
        session = Session(SoftwareCamera(make_ring()))
        session.close()
        session.close = None
        assert session.device.feeder.inject(np.zeros((HEIGHT, WIDTH, 3), np.uint8), 1, 1) == 0

    def test_many_devices_leave_nothing_behind(self):
        def resources():
            return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))

        Session(SoftwareCamera(make_ring())).close()
        before = resources()
        for _ in range(30):
            Session(SoftwareCamera(make_ring())).close()
        assert resources() == before
