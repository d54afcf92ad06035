"""The RealSense driver, on the real librealsense: its devices are software devices, its clock is the
test's."""

import subprocess
import sys
import threading
import time
from dataclasses import dataclass

import numpy as np
import pytest

from dzedge.clock import NS
from dzedge.errors import CameraError
from dzedge.hardware import librealsense
from dzedge.hardware.camera import CameraState, RecoveryLadder, Rung
from dzedge.hardware.librealsense import Library
from dzedge.hardware.realsense import LiveDevices, RealSense
from dzedge.hardware.sim.software_camera import SoftwareCamera
from dzedge.kernels.mailbox import FrameRing

HEIGHT, WIDTH, SLOTS = 12, 16, 64


@dataclass(frozen=True)
class Config:
    serial: str = "sim"
    width: int = WIDTH
    height: int = HEIGHT
    fps: int = 30
    format: str = "rgb8"


def make_ring(slots: int = SLOTS, height: int = HEIGHT, width: int = WIDTH) -> FrameRing:
    return FrameRing(np.zeros(FrameRing.bytes_for(slots, height, width), np.uint8), slots, height, width)


def picture(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)


def wait(condition):
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "nothing came within 10 s"
        time.sleep(0.001)


@pytest.fixture(scope="module", autouse=True)
def bus_watcher():
    """Keeps librealsense's bus watcher alive: without a context, each device takes 0.1 s to end its own."""
    lib = librealsense.library()
    with lib.held("context", lib.call("rs2_create_context", lib.version)):
        yield


class Rig:
    """Provider, driver and ring."""

    def __init__(self, **options) -> None:
        self.provider = SoftwareCamera(make_ring(), fps=30)
        self.camera = RealSense(self.provider, Config(), **options)
        self.ring = make_ring()

    def start(self) -> None:
        self.camera.start(self.ring, time.monotonic_ns())

    def send(self, *numbers: int) -> None:
        """Inject and wait until the driver has them."""
        for number in numbers:
            assert self.provider.device.feeder.inject(picture(number), number, time.monotonic_ns()) == 1
            wait(lambda number=number: self.health().number == number)

    def health(self, later_ns: int = 0):
        return self.camera.health(time.monotonic_ns() + later_ns)


@pytest.fixture
def rig():
    rig = Rig(warmup=3)
    yield rig
    rig.camera.close()
    rig.provider.close()


class TestOpen:
    def test_tells_who_and_what(self, rig):
        info = rig.camera.open()
        assert (info.name, info.serial, info.usb) == ("Simulated D435", "sim", "3.2")
        assert info.intrinsics is not None
        assert rig.camera.info == info

    def test_wrong_serial(self):
        camera = RealSense(SoftwareCamera(make_ring()), Config(serial="123"))
        with pytest.raises(CameraError, match=r"camera 123: not attached; found: Simulated D435 sim"):
            camera.open()

    @pytest.mark.parametrize("wrong", [{"width": 640, "height": 480}, {"fps": 90}, {"format": "bgr8"}])
    def test_wrong_mode_names_those_offered(self, wrong):
        camera = RealSense(SoftwareCamera(make_ring(), fps=30), Config(**wrong))
        with pytest.raises(CameraError, match=r"no colour mode .*; offered: 16x12 at 30 fps rgb8; choose one"):
            camera.open()
        assert camera.health(0).state is CameraState.ABSENT

    def test_format_without_colour(self):
        with pytest.raises(CameraError, match="no RGB from format z16; choose rgb8, bgr8, yuyv"):
            RealSense(SoftwareCamera(make_ring()), Config(format="z16"))

    def test_usb_2_is_refused_unless_allowed(self):
        provider = SoftwareCamera(make_ring(), fps=30, usb="2.1")
        with pytest.raises(CameraError, match=r"on a USB 2\.1 link, needed 3"):
            RealSense(provider, Config()).open()
        camera = RealSense(provider, Config(), allow_usb2=True)
        assert camera.open().usb == "2.1"
        camera.close()

    def test_one_sensor_for_colour_and_depth(self):
        provider = SoftwareCamera(make_ring(), fps=30, product="D405")
        camera = RealSense(provider, Config())
        assert camera.open().name == "Simulated D405"
        camera.close()

    def test_options(self, rig):
        rig.camera.open()
        assert rig.camera._modules[0].sensor.option("auto_exposure_priority") == 0
        camera = RealSense(SoftwareCamera(make_ring(), fps=30), Config(), options={"auto_exposure_priority": 9})
        with pytest.raises(CameraError, match="must lie in"):
            camera.open()
        camera = RealSense(SoftwareCamera(make_ring(), fps=30), Config(), options={"exposure": 9})
        with pytest.raises(CameraError, match="option exposure: not offered"):
            camera.open()

    def test_ring_of_another_shape(self, rig):
        with pytest.raises(ValueError, match="frame ring of 20x12, camera mode 16x12"):
            rig.camera.start(make_ring(width=20), 0)

    def test_no_camera_on_this_bus(self):
        devices = LiveDevices()
        with pytest.raises(CameraError, match="camera no-such-serial: not attached; found: "):
            devices.find("no-such-serial")
        devices.close()
        devices.close()

    def test_library_that_is_none(self, tmp_path):
        (tmp_path / "librealsense2.so").write_bytes(b"no library")
        with pytest.raises(CameraError, match="cannot be loaded"):
            Library(str(tmp_path / "librealsense2.so"))

    def test_library_not_installed(self, monkeypatch):
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        monkeypatch.setattr("ctypes.util.find_library", lambda name: None)
        with pytest.raises(CameraError, match=r"install dzedge\[realsense\]"):
            librealsense.library.__wrapped__()


class TestStream:
    def test_frames_whole_numbered_and_dated(self, rig):
        rig.start()
        before = time.monotonic_ns()
        rig.send(*range(1, 11))
        count, frame = rig.camera.latest()
        np.testing.assert_array_equal(frame.image, picture(10))
        assert (count, frame.number) == (10, 10)
        assert before <= frame.capture_ns <= frame.receive_ns <= time.monotonic_ns()
        health = rig.health()
        assert (health.frames, health.dropped, health.failed, health.rejected) == (10, 0, 0, 0)

    def test_slow_reader_gets_the_newest(self, rig):
        rig.start()
        rig.send(1)
        count, _ = rig.camera.latest()
        rig.send(*range(2, 30))
        count, frame = rig.camera.latest(count)
        assert frame.number == 29
        assert rig.camera.latest(count) is None

    def test_missing_numbers_are_counted(self, rig):
        rig.start()
        rig.send(1, 2, 5, 9)
        assert rig.health().dropped == 2 + 3

    def test_restart_forgets_the_old_frame(self, rig):
        rig.start()
        rig.send(1, 2)
        rig.camera.stop()
        assert rig.health().state is CameraState.ABSENT
        rig.start()
        assert rig.health().state is CameraState.STARTING
        rig.send(50)
        health = rig.health()
        assert (health.frames, health.number, health.dropped) == (1, 50, 0)

    def test_ring_is_fed_by_the_simulator(self, rig):
        source = rig.provider._ring
        rig.start()

        def offered():
            source.put(picture(0), source.count, time.monotonic_ns(), 0)
            time.sleep(0.003)
            return rig.health().frames

        wait(offered)
        source.put(picture(500), 500, time.monotonic_ns(), 0)
        wait(lambda: rig.health().number == 500)
        np.testing.assert_array_equal(rig.camera.latest()[1].image, picture(500))

    def test_nothing_stays_after_close(self, rig):
        threads = threading.active_count()
        for _ in range(10):
            rig.start()
            rig.send(1)
            rig.camera.close()
        rig.camera.close()
        rig.camera.stop()
        assert threading.active_count() == threads
        assert rig.camera.latest()[1].number == 1


class TestHealth:
    def test_from_absent_to_live(self, rig):
        assert rig.health().state is CameraState.ABSENT
        rig.start()
        assert (rig.health().state, rig.health().age_ns) == (CameraState.STARTING, -1)
        rig.send(1, 2)
        assert rig.health().state is CameraState.WARMUP
        rig.send(3)
        health = rig.camera.health(rig.health().receive_ns)
        assert health.state is CameraState.LIVE
        assert health.age_ns == health.receive_ns - health.capture_ns

    def test_stall_is_visible_at_once(self, rig):
        rig.start()
        rig.send(1, 2, 3)
        arrival = rig.health().receive_ns
        states = {ms: rig.camera.health(arrival + ms * 1_000_000).state for ms in (0, 50, 60, 900, 1000)}
        live, late, lost = CameraState.LIVE, CameraState.LATE, CameraState.LOST
        assert states == {0: live, 50: live, 60: late, 900: late, 1000: lost}
        assert rig.camera.health(arrival + NS).age_ns >= NS
        rig.send(4)
        assert rig.camera.health(rig.health().receive_ns).state is live

    def test_same_frame_again_does_not_hide_a_stall(self, rig):
        rig.start()
        rig.send(1, 2, 3)
        arrival = rig.health().receive_ns
        rig.provider.device.feeder.inject(picture(3), 3, time.monotonic_ns())
        wait(lambda: rig.health().repeated == 1)
        assert rig.health().receive_ns == arrival
        assert rig.camera.latest()[0] == 3

    def test_frames_captured_long_ago_are_late(self, rig):
        rig.start()
        rig.send(1, 2, 3)
        rig.provider.device.feeder.inject(picture(4), 4, time.monotonic_ns() - NS // 2)
        wait(lambda: rig.health().number == 4)
        assert rig.camera.health(rig.health().receive_ns).state is CameraState.LATE

    def test_start_without_a_frame_is_lost_in_the_end(self, rig):
        rig.start()
        assert rig.health(2 * NS).state is CameraState.STARTING
        assert rig.health(4 * NS).state is CameraState.LOST


class TestLadder:
    def test_steps(self):
        ladder, lost = RecoveryLadder(), CameraState.LOST
        assert [ladder.decide(lost, t * NS) for t in range(3)] == [Rung.RESTART, Rung.RESTART, Rung.RESET]
        assert ladder.decide(CameraState.STARTING, 3 * NS) is Rung.WAIT
        assert ladder.decide(lost, 7 * NS) is Rung.GIVE_UP

    def test_healthy_states_need_nothing(self):
        ladder = RecoveryLadder()
        for state in (CameraState.STARTING, CameraState.WARMUP, CameraState.LIVE, CameraState.LATE):
            assert ladder.decide(state, 0) is Rung.WAIT

    def test_ten_live_seconds_lead_back_to_the_ground(self):
        for live_s, next_rung in ((9, Rung.RESET), (11, Rung.RESTART)):
            ladder = RecoveryLadder()
            for t in range(2):
                ladder.decide(CameraState.LOST, t * NS)
            for t in range(2, 3 + live_s):
                ladder.decide(CameraState.LIVE, t * NS)
            assert ladder.decide(CameraState.LOST, 20 * NS) is next_rung

    def test_late_frames_are_no_live_seconds(self):
        ladder = RecoveryLadder()
        for t in range(2):
            ladder.decide(CameraState.LOST, t * NS)
        for t in range(2, 30):
            ladder.decide(CameraState.LATE if t % 5 == 0 else CameraState.LIVE, t * NS)
        assert ladder.decide(CameraState.LOST, 30 * NS) is Rung.RESET

    def test_return_after_a_reset_is_awaited(self):
        ladder, absent = RecoveryLadder(), CameraState.ABSENT
        for _ in range(3):
            ladder.decide(CameraState.LOST, 0)
        rungs = [ladder.decide(absent, t * NS // 10) for t in range(151)]
        assert rungs.count(Rung.REOPEN) == 29
        assert set(rungs[:-1]) == {Rung.WAIT, Rung.REOPEN}
        assert rungs[-1] is Rung.GIVE_UP


class TestRecovery:
    def climb(self, rig, start_ns, seconds):
        """Tend every 100 ms of the test's own time; returns the healths and the error at the end, if any."""
        seen = []
        for tick in range(seconds * 10):
            try:
                seen.append(rig.camera.tend(start_ns + tick * NS // 10))
            except CameraError as error:
                return seen, str(error)
        return seen, ""

    def test_dead_stream_is_restarted_reset_and_given_up(self, rig):
        rig.start()
        rig.send(1, 2, 3)
        seen, error = self.climb(rig, time.monotonic_ns(), 30)
        assert "lost; 2 restarts and 1 resets did not help (no frames); replug it" in error
        assert (seen[-1].restarts, seen[-1].resets) == (2, 1)
        assert {health.state for health in seen} >= {
            CameraState.STARTING,
            CameraState.LATE,
            CameraState.ABSENT,
        }

    def test_stream_that_comes_back_after_a_restart(self, rig):
        rig.start()
        rig.send(1, 2, 3)
        now = time.monotonic_ns() + NS
        assert rig.camera.tend(now).state is CameraState.STARTING
        rig.send(4, 5, 6)
        assert rig.camera.tend(time.monotonic_ns()).restarts == 1
        assert rig.camera.health(rig.health().receive_ns).state is CameraState.LIVE
        np.testing.assert_array_equal(rig.camera.latest()[1].image, picture(6))

    def test_unplugged_and_plugged_again(self, rig):
        rig.start()
        rig.send(1, 2, 3)
        rig.provider.unplug()
        now = time.monotonic_ns() + NS
        seen, error = self.climb(rig, now, 5)
        assert (seen[-1].state, error) == (CameraState.ABSENT, "")
        assert "not attached" in rig.camera.trouble
        rig.provider.unplug(plugged=True)
        seen, error = self.climb(rig, now + 5 * NS, 1)
        assert (seen[-1].state, error) == (CameraState.STARTING, "")
        rig.send(1)
        assert rig.health().frames == 1

    def test_unplugged_for_good(self, rig):
        rig.start()
        rig.provider.unplug()
        _, error = self.climb(rig, time.monotonic_ns() + 4 * NS, 30)
        assert "replug it" in error
        assert "not attached" in error

    def test_camera_nobody_wants_is_left_alone(self, rig):
        assert rig.camera.tend(100 * NS).state is CameraState.ABSENT
        rig.start()
        rig.camera.stop()
        assert rig.camera.tend(time.monotonic_ns() + 100 * NS).restarts == 0


EXIT = """
import signal, sys, threading, time
import numpy as np
from dzedge.hardware.realsense import RealSense
from dzedge.hardware.sim.software_camera import SoftwareCamera
from dzedge.kernels.mailbox import FrameRing

class Config:
    serial, width, height, fps, format = "sim", 16, 12, 30, "rgb8"

def ring():
    return FrameRing(np.zeros(FrameRing.bytes_for(4, 12, 16), np.uint8), 4, 12, 16)

source = ring()
camera = RealSense(SoftwareCamera(source, fps=30), Config())
camera.start(ring(), time.monotonic_ns())
image = np.zeros((12, 16, 3), np.uint8)
number = 0
while camera.health(time.monotonic_ns()).frames < 5:
    number += 1
    source.put(image, number, time.monotonic_ns(), 0)
    time.sleep(0.001)
way = sys.argv[1]
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
if way == "close":
    camera.close()
elif way == "error":
    sys.excepthook = lambda *_: None
    raise RuntimeError
elif way == "signal":
    signal.raise_signal(signal.SIGTERM)
elif way == "busy":
    def spin():
        while True:
            sum(range(99))
    threading.Thread(target=spin, daemon=True).start()
"""


def test_every_way_out_is_clean():
    """A thread left inside librealsense at exit aborts one run in three or so: fifteen runs, three of each
    way."""
    ways = [way for way in ("close", "leave", "error", "signal", "busy") for _ in range(3)]
    runs = []
    for start in range(0, len(ways), 5):
        batch = [subprocess.Popen([sys.executable, "-c", EXIT, way]) for way in ways[start : start + 5]]
        runs += [(run.args[-1], run.wait(timeout=30)) for run in batch]
    assert runs == [(way, 1 if way == "error" else 0) for way in ways]
