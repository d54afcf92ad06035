"""Several streams and several cameras at once, on the layouts of D435, D455 and D405, through the real librealsense."""

import threading
import time
from dataclasses import dataclass

import numpy as np
import pytest

from dzedge.clock import NS
from dzedge.errors import CameraError
from dzedge.hardware import librealsense
from dzedge.hardware.camera import CameraState, Patience, Rung, worst
from dzedge.hardware.pairing import Pairing
from dzedge.hardware.realsense import RealSense, StreamConfig
from dzedge.hardware.sim.software_camera import SoftwareCamera
from dzedge.kernels.mailbox import FrameRing

HEIGHT, WIDTH, SLOTS, FPS = 12, 16, 64, 30
BYTES = {"color": 3, "depth": 2, "infrared": 1, "infrared2": 1}
PERIOD_NS = NS // FPS


@dataclass(frozen=True)
class Config:
    serial: str = "sim"
    width: int = WIDTH
    height: int = HEIGHT
    fps: int = FPS
    format: str = "rgb8"


def make_ring(kind: str = "color") -> FrameRing:
    pixel_bytes = BYTES[kind]
    memory = np.zeros(FrameRing.bytes_for(SLOTS, HEIGHT, WIDTH, pixel_bytes), np.uint8)
    return FrameRing(memory, SLOTS, HEIGHT, WIDTH, pixel_bytes)


def picture(kind: str, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed + 1000 * list(BYTES).index(kind))
    if kind == "color":
        return rng.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    kinds = {2: np.uint16, 1: np.uint8}
    return rng.integers(0, np.iinfo(kinds[BYTES[kind]]).max, (HEIGHT, WIDTH), kinds[BYTES[kind]])


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
    """A simulated camera with streams beside colour, its driver and its rings."""

    def __init__(self, product: str, beside: tuple[str, ...], serial: str = "sim", domain: str = "system", **options):
        rings = {kind: make_ring(kind) for kind in beside}
        phase_ns = (2**32 - 300_000) * 1000 - time.monotonic_ns()  # wraps within a third of a second
        self.provider = SoftwareCamera(
            make_ring(), beside=rings, fps=FPS, serial=serial, product=product, domain=domain, phase_ns=phase_ns
        )
        streams = [StreamConfig(kind, WIDTH, HEIGHT, FPS) for kind in beside]
        self.camera = RealSense(self.provider, Config(serial), beside=streams, warmup=1, **options)
        self.rings = {kind: make_ring(kind) for kind in ("color", *beside)}

    def start(self) -> None:
        beside = {kind: ring for kind, ring in self.rings.items() if kind != "color"}
        self.camera.start(self.rings["color"], time.monotonic_ns(), beside)

    def inject(self, kind: str, number: int, capture_ns: int | None = None) -> None:
        feeder = self.provider.device.feeders[kind]
        capture_ns = time.monotonic_ns() if capture_ns is None else capture_ns
        assert feeder.inject(picture(kind, number), number, capture_ns, 8000 + number, 16) == 1

    def send(self, kind: str, number: int, capture_ns: int | None = None) -> None:
        self.inject(kind, number, capture_ns)
        wait(lambda: self.camera.health(time.monotonic_ns(), kind).number == number)

    def close(self) -> None:
        self.camera.close()
        self.provider.close()


@pytest.fixture
def make_rig():
    rigs = []

    def make(*args, **kwargs):
        rigs.append(Rig(*args, **kwargs))
        return rigs[-1]

    yield make
    for rig in rigs:
        rig.close()


ALL = ("depth", "infrared", "infrared2")


class TestLayouts:
    @pytest.mark.parametrize(("product", "sensors", "units"), [("D435", 2, 1e-3), ("D455", 2, 1e-3), ("D405", 1, 1e-4)])
    def test_every_stream_arrives_whole(self, make_rig, product, sensors, units):
        rig = make_rig(product, ALL)
        rig.start()
        assert len(rig.provider.device.sensors()) == sensors
        for number in range(1, 6):
            for kind in BYTES:
                rig.send(kind, number)
        for kind in BYTES:
            count, frame = rig.camera.latest(kind=kind)
            assert (count, frame.number) == (5, 5)
            np.testing.assert_array_equal(frame.image, picture(kind, 5))
            assert (frame.exposure_us, frame.gain) == (8005, 16)
            health = rig.camera.health(time.monotonic_ns(), kind)
            assert (health.frames, health.rejected, health.failed, health.stream) == (5, 0, 0, kind)
            assert rig.camera.lens(kind) is not None
        assert rig.camera.depth_units() == pytest.approx(units)

    @pytest.mark.parametrize("product", ["D435", "D405"])
    def test_colour_alone(self, make_rig, product):
        rig = make_rig(product, ())
        rig.start()
        rig.send("color", 1)
        assert rig.camera.latest()[1].number == 1
        if product == "D435":
            with pytest.raises(CameraError, match="no depth stream is open"):
                rig.camera.depth_units()

    def test_stream_that_is_not_there(self):
        provider = SoftwareCamera(make_ring(), fps=FPS)
        camera = RealSense(provider, Config(), beside=[StreamConfig("depth", WIDTH, HEIGHT, FPS)])
        with pytest.raises(CameraError, match="no depth mode 16x12 at 30 fps z16; offered: none"):
            camera.open()
        assert camera.health(0).state is CameraState.ABSENT

    @pytest.mark.parametrize("kinds", [("thermal",), ("depth", "depth"), ("color",)])
    def test_streams_that_make_no_sense(self, kinds):
        streams = [StreamConfig(kind, WIDTH, HEIGHT, FPS) for kind in kinds]
        with pytest.raises(CameraError, match="choose each of depth, infrared, infrared2 once"):
            RealSense(SoftwareCamera(make_ring()), Config(), beside=streams)

    def test_rings_must_be_the_streams(self, make_rig):
        rig = make_rig("D435", ("depth",))
        with pytest.raises(ValueError, match=r"frame rings for \['color'\], streams \['color', 'depth'\]"):
            rig.camera.start(make_ring(), 0)
        with pytest.raises(ValueError, match="frame ring of 3 bytes a pixel for z16"):
            rig.camera.start(make_ring(), 0, {"depth": make_ring()})

    def test_unknown_product(self):
        with pytest.raises(CameraError, match="simulated camera D999: unknown; choose D435, D455, D405"):
            SoftwareCamera(make_ring(), product="D999")

    def test_usb_2_is_reported_and_named_where_a_mode_is_missing(self):
        provider = SoftwareCamera(make_ring(), fps=FPS, usb="2.1")
        camera = RealSense(provider, Config(), allow_usb2=True)
        assert camera.open().stepped_down
        camera.close()
        fast = RealSense(provider, Config(fps=90), allow_usb2=True)
        with pytest.raises(CameraError, match=r"no colour mode 16x12 at 90 fps rgb8 on this USB 2\.1 link; offered"):
            fast.open()
        assert not RealSense(SoftwareCamera(make_ring(), fps=FPS), Config()).open().stepped_down

    def test_yuyv_colour_becomes_rgb_and_stays_raw_where_the_ring_says_so(self):
        raw = np.random.default_rng(5).integers(0, 256, (HEIGHT, WIDTH, 2), np.uint8)
        seen = {}
        for pixel_bytes in (2, 3):
            memory = np.zeros(FrameRing.bytes_for(SLOTS, HEIGHT, WIDTH, 2), np.uint8)
            provider = SoftwareCamera(FrameRing(memory, SLOTS, HEIGHT, WIDTH, 2), fps=FPS)
            camera = RealSense(provider, Config(format="yuyv"))
            memory = np.zeros(FrameRing.bytes_for(SLOTS, HEIGHT, WIDTH, pixel_bytes), np.uint8)
            camera.start(FrameRing(memory, SLOTS, HEIGHT, WIDTH, pixel_bytes), time.monotonic_ns())
            provider.device.feeder.inject(raw, 1, time.monotonic_ns())
            wait(lambda camera=camera: camera.health(time.monotonic_ns()).frames == 1)
            seen[pixel_bytes] = camera.latest()[1].image
            camera.close()
        np.testing.assert_array_equal(seen[2].view(np.uint8).reshape(HEIGHT, WIDTH, 2), raw)
        assert seen[3].shape == (HEIGHT, WIDTH, 3)


class TestStall:
    @pytest.mark.parametrize("product", ["D435", "D405"])
    @pytest.mark.parametrize("stalled", ["color", "depth"])
    def test_one_stalled_stream_is_stale_within_two_periods_though_the_other_runs(self, make_rig, product, stalled):
        """What librealsense's pipeline never tells: it goes on pairing the old frame with new ones."""
        rig = make_rig(product, ("depth",))
        rig.start()
        for kind in ("color", "depth"):
            rig.send(kind, 1)
        running = "depth" if stalled == "color" else "color"
        last_ns = rig.camera.health(time.monotonic_ns(), stalled).receive_ns
        look_ns = Patience(FPS).look_ns
        told_ns = None
        for step in range(1, 80):
            now_ns = last_ns + step * look_ns
            if step % 8 == 0:
                rig.send(running, 1 + step // 8)
            if rig.camera.health(now_ns, stalled).state is CameraState.LATE:
                told_ns = now_ns
                break
            assert rig.camera.health(now_ns, stalled).state is CameraState.LIVE
        assert told_ns is not None
        assert PERIOD_NS < told_ns - last_ns <= 2 * PERIOD_NS
        assert rig.camera.latest(kind=stalled)[1].number == 1
        other = rig.camera.health(rig.camera.health(told_ns, running).receive_ns, running)
        assert other.number > 1
        assert other.state is CameraState.LIVE

    def test_a_frame_three_quarters_of_a_period_late_is_no_stall(self):
        patience = Patience(FPS)
        at = 100 * NS
        assert patience.judge(0, 9, at, at, at + PERIOD_NS * 174 // 100) is CameraState.LIVE
        assert patience.judge(0, 9, at, at, at + PERIOD_NS * 176 // 100) is CameraState.LATE

    @pytest.mark.parametrize("fps", [5, 15, 30, 60, 90])
    def test_looked_at_as_often_as_it_says_it_tells_within_two_periods(self, fps):
        patience = Patience(fps)
        assert patience.late_ns + patience.look_ns < 1.9 * NS // fps

    def test_a_stalled_stream_is_recovered_though_the_other_runs(self, make_rig):
        rig = make_rig("D405", ("depth",))
        rig.start()
        for kind in ("color", "depth"):
            rig.send(kind, 1)
        at = rig.camera.health(time.monotonic_ns(), "depth").receive_ns + NS
        rig.camera.tend(at)
        assert rig.camera.health(at).restarts == 1
        for kind in ("color", "depth"):
            rig.send(kind, 1)
        assert worst([rig.camera.health(time.monotonic_ns(), kind) for kind in rig.rings]).state is CameraState.LIVE


class TestReset:
    def test_a_camera_that_comes_back_on_usb_2_is_refused_in_words(self, make_rig):
        """The ladder to its end, on a clock of the test's own: two restarts, a reset, and a link that stepped down."""
        rig = make_rig("D435", ("depth",))
        rig.start()
        for kind in ("color", "depth"):
            rig.send(kind, 1)
        rig.provider._identity["usb"] = "2.1"
        now_ns, error, states = time.monotonic_ns() + NS, "", set()
        for tick in range(300):
            try:
                states.add(rig.camera.tend(now_ns + tick * NS // 10).state)
            except CameraError as failure:
                error = str(failure)
                break
        assert "2 restarts and 1 resets did not help" in error
        assert "on a USB 2.1 link, needed 3" in error
        assert CameraState.ABSENT in states

    def test_all_streams_come_back_after_a_replug(self, make_rig):
        rig = make_rig("D405", ("depth", "infrared"))
        rig.start()
        for kind in rig.rings:
            rig.send(kind, 1)
        rig.provider.unplug()
        now_ns = time.monotonic_ns() + NS
        for tick in range(20):
            rig.camera.tend(now_ns + tick * NS // 10)
        assert rig.camera.worst(now_ns).state is CameraState.ABSENT
        assert "not attached" in rig.camera.trouble
        rig.provider.unplug(plugged=True)
        for tick in range(20, 30):
            rig.camera.tend(now_ns + tick * NS // 10)
        for kind in rig.rings:
            rig.send(kind, 1)
            health = rig.camera.health(time.monotonic_ns(), kind)
            assert (health.frames, health.resets) == (1, 1)


class TestSensorsThatCannotBeStopped:
    def spoil(self, camera: RealSense) -> list:
        """The first sensor's stop fails, as that of a camera that is gone does."""
        modules = list(camera._modules)
        stop = modules[0].sensor.stop

        def failing() -> None:
            stop()
            raise CameraError("librealsense stop: no such device")

        modules[0].sensor.stop = failing
        return modules

    def test_no_pump_stays_behind(self, make_rig):
        rig = make_rig("D435", ("depth",))
        rig.start()
        modules = self.spoil(rig.camera)
        pumps = [stream.pump for module in modules for stream in module.streams]
        assert len(modules) == 2 and None not in pumps
        with pytest.raises(CameraError, match="no such device"):
            rig.camera.close()
        assert [module._thread for module in modules] == [None, None]

    def test_the_camera_is_reset_all_the_same(self, make_rig):
        rig = make_rig("D435", ("depth",))
        rig.start()
        resets = []
        real = rig.provider.reset
        rig.provider.reset = lambda device: resets.append(device) or real(device)
        self.spoil(rig.camera)
        with pytest.raises(CameraError, match="no such device"):
            rig.camera._climb(Rung.RESET, time.monotonic_ns())
        assert len(resets) == 1


class TestPairs:
    @pytest.mark.parametrize("domain", ["hardware", "system", "global"])
    @pytest.mark.parametrize("product", ["D435", "D405"])
    def test_colour_and_depth_by_capture_time(self, make_rig, product, domain):
        """In each clock's stamps; the hardware clock wraps on the way. Its map is as good as the fastest frame so far,
        so a few go before."""
        rig = make_rig(product, ("depth",), domain=domain)
        rig.start()
        for number in range(1, 9):
            for kind in ("depth", "color"):
                rig.send(kind, number)
        pairing = Pairing([rig.rings["color"], rig.rings["depth"]], PERIOD_NS)
        found = []
        for number in range(9, 24):
            begun = time.monotonic_ns()
            rig.send("depth", number, begun)
            rig.send("color", number, begun)
            got = pairing.newest()
            assert got is not None
            assert [frame.number for frame in got.frames] == [number, number]
            assert got.skew_ns < PERIOD_NS // 4
            found.append(got)
            time.sleep(0.03)
        assert all(frame.capture_ns <= frame.receive_ns for got in found for frame in got.frames)
        for kind in ("color", "depth"):
            health = rig.camera.health(time.monotonic_ns(), kind)
            assert (health.clock_resets, health.clock_steps, health.domain_switches) == (0, 0, 0)

    def test_two_cameras_whose_clocks_have_nothing_in_common(self, make_rig):
        left = make_rig("D435", (), serial="left", domain="hardware")
        right = make_rig("D405", (), serial="right", domain="global")
        left.start()
        right.start()
        for number in range(1, 9):
            left.send("color", number)
        pairing = Pairing([left.rings["color"], right.rings["color"]], PERIOD_NS)
        for number in range(9, 16):
            at = time.monotonic_ns()
            left.send("color", number, at)
            right.send("color", 50 + number, at)
            got = pairing.newest()
            assert [frame.number for frame in got.frames] == [number, 50 + number]
            time.sleep(0.02)
        assert pairing.newest() is None

    def test_a_clock_that_is_reset_is_noticed_and_mapped_anew(self, make_rig):
        rig = make_rig("D435", ("depth",), domain="hardware")
        rig.start()
        for number in range(1, 4):
            rig.send("color", number)
        rig.send("color", 4, time.monotonic_ns() - 700 * NS)  # its counter jumps back
        rig.send("color", 5, time.monotonic_ns() - 700 * NS)
        health = rig.camera.health(time.monotonic_ns())
        assert health.clock_resets == 1
        frame = rig.camera.latest()[1]
        assert frame.receive_ns - frame.capture_ns < NS // 10
        assert rig.camera.health(time.monotonic_ns(), "depth").clock_resets == 0


def test_start_and_stop_with_all_streams_leaves_nothing_behind(make_rig):
    rig = make_rig("D405", ALL)
    rig.start()
    rig.camera.close()
    threads = threading.active_count()
    for _ in range(10):
        rig.start()
        rig.send("infrared", 1)
        rig.camera.stop()
    rig.camera.close()
    assert threading.active_count() == threads
