"""The webcam driver, on a pretended kernel (see dzedge.hardware.sim.video_device for what that cannot prove)."""

import errno
import io
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dzedge.clock import NS
from dzedge.errors import CameraError
from dzedge.hardware import videodev
from dzedge.hardware.camera import CameraState
from dzedge.hardware.librealsense import Mode
from dzedge.hardware.sim.video_device import PADDING, PretendedKernel, VideoDevice
from dzedge.hardware.v4l2 import V4l2
from dzedge.hardware.v4l2_stream import HARDWARE, MONOTONIC, SYSTEM, StampMap
from dzedge.hardware.video_nodes import VideoNodes
from dzedge.kernels.mailbox import FrameRing

WIDTH, HEIGHT, SLOTS = 32, 24, 64
MODES = [Mode(WIDTH, HEIGHT, 30, "yuyv"), Mode(WIDTH, HEIGHT, 15, "yuyv"), Mode(WIDTH, HEIGHT, 30, "mjpeg"),
         Mode(64, 48, 30, "mjpeg"), Mode(WIDTH, HEIGHT, 30, "grey")]  # fmt: skip
WALL = 1_700_000_000 * NS
"""CLOCK_REALTIME - CLOCK_MONOTONIC of the tests."""


@dataclass(frozen=True)
class Config:
    serial: str = ""
    width: int = WIDTH
    height: int = HEIGHT
    fps: int = 30
    format: str = "grey"


def make_ring() -> FrameRing:
    return FrameRing(np.zeros(FrameRing.bytes_for(SLOTS, HEIGHT, WIDTH), np.uint8), SLOTS, HEIGHT, WIDTH)


def wait(condition):
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "nothing came within 10 s"
        time.sleep(0.001)


class Rig:
    """A pretended webcam at /dev/video0 in a folder of its own, its driver, its ring."""

    def __init__(self, folder: Path, config: Config | None = None, **device) -> None:
        self.config = config or Config()
        (folder / "video0").touch()
        self.path = str(folder / "video0")
        self.kernel = PretendedKernel({self.path: VideoDevice(MODES, **device)})
        self.nodes = VideoNodes(self.kernel, folder, folder / "sysfs")
        self.camera = self.driver()
        self.ring = make_ring()

    def driver(self, **changes) -> V4l2:
        config = replace(self.config, **changes)
        return V4l2(config, self.path, nodes=self.nodes, wall_offset=lambda: WALL, warmup=3)

    @property
    def device(self) -> VideoDevice:
        return self.kernel.devices[self.path]

    def start(self) -> None:
        self.camera.start(self.ring, time.monotonic_ns())

    def send(self, number: int, level: int = 0, stamp_ns: int | None = None, **more) -> None:
        """A grey picture whose pixels are `level`, awaited in the ring."""
        before = self.ring.count
        self.put(number, level, stamp_ns, **more)
        wait(lambda: self.ring.count > before)

    def put(self, number: int, level: int = 0, stamp_ns: int | None = None, **more) -> None:
        rows = bytes([level]) * WIDTH + bytes([255 - level]) * PADDING
        stamp_ns = time.monotonic_ns() if stamp_ns is None else stamp_ns
        assert self.kernel.deliver(self.path, rows * HEIGHT, number, stamp_ns, **more)

    def health(self, later_ns: int = 0):
        return self.camera.health(time.monotonic_ns() + later_ns)


@pytest.fixture
def rig(tmp_path: Path):
    rig = Rig(tmp_path)
    yield rig
    rig.camera.close()
    assert not rig.kernel.handles, "left open"
    assert all(memory.mapped == 0 for memory in rig.device.memory), "left mapped"


class TestOpen:
    def test_says_who_it_is(self, rig):
        info = rig.camera.open()
        assert (info.name, info.port, info.serial, info.usb) == ("Pretended Webcam", rig.path, "", "")
        assert rig.camera.info == info

    def test_usb_facts_of_sysfs(self, rig, tmp_path):
        folder = tmp_path / "usb"
        (folder / "1-1:1.0").mkdir(parents=True)
        for name, value in (("serial", "AB12"), ("bcdDevice", "0010"), ("speed", "480")):
            (folder / name).write_text(value + "\n")
        (tmp_path / "sysfs" / "video0").mkdir(parents=True)
        (tmp_path / "sysfs" / "video0" / "device").symlink_to(folder / "1-1:1.0")
        (node,) = rig.nodes.attached()
        assert (node.serial, node.firmware, node.speed) == ("AB12", "0010", "2.0")
        camera = V4l2(Config(serial="AB12"), nodes=rig.nodes)
        assert camera.open().port == rig.path
        camera.close()

    def test_wrong_serial_names_what_is_there(self, rig):
        with pytest.raises(CameraError, match="camera 42: not attached; found: Pretended Webcam"):
            V4l2(Config(serial="42"), nodes=rig.nodes).open()

    def test_modes(self, rig):
        assert rig.nodes.modes(rig.path) == sorted(MODES)

    def test_format_that_nobody_converts(self, rig):
        with pytest.raises(CameraError, match="no RGB from format rgb8; choose yuyv, mjpeg, grey"):
            rig.driver(format="rgb8")

    def test_size_that_it_lacks(self, rig):
        with pytest.raises(CameraError, match=r"no mode 640x480 at 30 fps grey, it would give 32x24 grey; offered: "):
            rig.driver(width=640, height=480).open()

    def test_pixels_that_it_lacks(self, rig):
        rig.device.modes = MODES[:2]
        with pytest.raises(CameraError, match="it would give 32x24 yuyv; offered: 32x24 at 15 fps yuyv, 32x24 at 30"):
            rig.camera.open()

    def test_rate_that_it_lacks(self, rig):
        with pytest.raises(CameraError, match=r"no mode 32x24 at 60 fps yuyv, it would give 30 fps; offered"):
            rig.driver(fps=60, format="yuyv").open()

    def test_rate_that_it_has(self, rig):
        rig.camera = rig.driver(fps=15, format="yuyv")
        rig.camera.open()
        assert "S_PARM" in rig.device.asked

    def test_constant_rate_in_the_dark(self, rig):
        rig.device.controls[videodev.EXPOSURE_PRIORITY] = 1
        rig.camera.open()
        assert rig.device.controls[videodev.EXPOSURE_PRIORITY] == 0

    @pytest.mark.parametrize(
        ("request_number", "code", "words"),
        [
            (0, errno.EACCES, "no permission; sudo usermod -aG video"),
            (0, errno.EBUSY, "in use by another program"),
            (videodev.QUERYCAP, errno.ENOTTY, "QUERYCAP: not a camera"),
            (videodev.S_FMT, errno.EBUSY, "S_FMT: in use by another program"),
            (videodev.S_FMT, errno.ENODEV, "S_FMT: unplugged"),
            (videodev.S_PARM, errno.ENODEV, "unplugged"),
        ],
    )
    def test_refusals_in_words(self, rig, request_number, code, words):
        rig.device.refuse[request_number] = code
        with pytest.raises(CameraError, match=words):
            rig.camera.open()

    @pytest.mark.parametrize(
        ("request_number", "code", "words"),
        [
            (videodev.REQBUFS, errno.EBUSY, "in use by another program"),
            (videodev.STREAMON, errno.ENOSPC, "no bandwidth left on its USB bus"),
        ],
    )
    def test_refused_streams_in_words(self, rig, request_number, code, words):
        rig.device.refuse[request_number] = code
        with pytest.raises(CameraError, match=words):
            rig.start()

    def test_a_camera_of_one_rate_is_taken_as_it_is(self, rig):
        rig.device.refuse[videodev.S_PARM] = errno.ENOTTY
        assert rig.camera.open().port == rig.path

    def test_other_nodes_of_a_camera(self, tmp_path):
        rig = Rig(tmp_path, caps=0x00800000)  # metadata
        with pytest.raises(CameraError, match="offers no pictures and no streaming"):
            rig.camera.open()
        assert rig.nodes.attached() == []
        assert not rig.kernel.handles

    def test_absent(self, rig):
        with pytest.raises(CameraError, match="not there; see `dzedge camera list`"):
            V4l2(Config(), rig.path + "9", nodes=rig.nodes).open()

    def test_what_is_there_but_closed_to_us(self, rig):
        assert rig.nodes.refused() == []
        rig.device.refuse[0] = errno.EACCES
        assert rig.nodes.attached() == []
        (words,) = rig.nodes.refused()
        assert "usermod -aG video" in words


class TestStream:
    def test_pixels_without_the_padding(self, rig):
        rig.start()
        for number, level in ((1, 10), (2, 200)):
            rig.send(number, level)
            _, frame = rig.camera.latest()
            assert frame.number == number
            assert (frame.image == level).all() and frame.image.shape == (HEIGHT, WIDTH, 3)

    def test_yuyv(self, tmp_path):
        rig = Rig(tmp_path, Config(format="yuyv"))
        rig.start()
        row = bytes([235, 128, 16, 128]) * (WIDTH // 2) + bytes(PADDING)
        rig.kernel.deliver(rig.path, row * HEIGHT, 1, time.monotonic_ns())
        wait(lambda: rig.ring.count)
        image = rig.camera.latest()[1].image
        assert (image[:, 0::2] == 255).all() and (image[:, 1::2] == 0).all()
        rig.camera.close()

    def test_mjpeg_and_a_damaged_one(self, tmp_path):
        rig = Rig(tmp_path, Config(format="mjpeg"))
        rig.start()
        out = io.BytesIO()
        Image.new("RGB", (WIDTH, HEIGHT), (200, 30, 40)).save(out, "JPEG", quality=95)
        rig.kernel.deliver(rig.path, out.getvalue()[:200], 1, time.monotonic_ns())
        wait(lambda: rig.health().rejected == 1)
        rig.kernel.deliver(rig.path, out.getvalue(), 2, time.monotonic_ns())
        wait(lambda: rig.ring.count)
        assert np.abs(rig.camera.latest()[1].image.astype(int) - (200, 30, 40)).max() < 8
        assert rig.health().frames == 1
        rig.camera.close()

    def test_every_buffer_returns(self, rig):
        rig.start()
        for number in range(40):
            rig.send(number)
        wait(lambda: len(rig.device.queued) == len(rig.device.memory))

    def test_gaps_are_counted(self, rig):
        rig.start()
        for number in (1, 2, 5):
            rig.send(number)
        health = rig.health()
        assert (health.frames, health.dropped, health.number) == (3, 2, 5)

    def test_a_slow_reader_gets_the_newest_only(self, rig):
        rig.start()
        stream = rig.camera._stream
        stream.stop()
        rig.camera._thread.join()
        for number in range(1, 5):
            rig.put(number, number)
        assert stream.turn(0)
        assert not stream.turn(0)
        assert [rig.camera.latest()[1].number, rig.ring.count] == [4, 1]
        assert len(rig.device.queued) == len(rig.device.memory)

    def test_damaged_short_and_repeated_ones_do_not_pass(self, rig):
        rig.start()
        rig.send(1, stamp_ns=(stamp_ns := time.monotonic_ns()))
        rig.put(2, flags=videodev.FLAG_ERROR)
        wait(lambda: rig.health().rejected == 1)
        rig.put(3, bytesused=WIDTH)
        wait(lambda: rig.health().rejected == 2)
        rig.send(4, stamp_ns=stamp_ns + 1_000_000)
        rig.put(4, stamp_ns=stamp_ns + 1_000_000)
        wait(lambda: rig.health().repeated == 1)
        assert (rig.ring.count, rig.health().frames) == (2, 2)

    def test_a_driver_that_does_not_count(self, rig):
        rig.start()
        for _ in range(4):
            rig.send(0)
        health = rig.health()
        assert (health.frames, health.number, health.dropped, health.restarted) == (4, 3, 0, 0)

    def test_restart_begins_with_new_buffers(self, rig):
        rig.start()
        rig.send(7)
        rig.camera.stop()
        assert rig.device.memory == [] and not rig.device.streaming
        rig.start()
        rig.send(1)
        assert rig.health().restarted == 0

    def test_ring_of_another_shape(self, rig):
        other = FrameRing(np.zeros(FrameRing.bytes_for(4, 8, 8), np.uint8), 4, 8, 8)
        with pytest.raises(ValueError, match="frame ring of 8x8, camera mode 32x24"):
            rig.camera.start(other, 0)

    def test_an_error_that_passes(self, rig):
        rig.start()
        rig.device.broken = 2
        rig.put(1)
        wait(lambda: rig.ring.count == 1)
        assert rig.health().failed == 2


class TestAge:
    def test_monotonic_stamps_are_ours(self, rig):
        rig.start()
        stamp_ns = (time.monotonic_ns() - 40_000_000) // 1000 * 1000
        rig.send(1, stamp_ns=stamp_ns)
        health = rig.health()
        assert (health.capture_ns, health.domain, health.implausible) == (stamp_ns, MONOTONIC, 0)
        assert health.age_ns >= 40_000_000

    def test_wall_clock_in_disguise(self):
        stamps = StampMap(lambda: WALL)
        captured = stamps.map(WALL + 960_000_000, videodev.TIMESTAMP_MONOTONIC, NS)
        assert (captured, stamps.domain, stamps.implausible) == (960_000_000, SYSTEM, 0)

    def test_wall_clock_that_steps(self):
        offset = WALL
        stamps = StampMap(lambda: offset)
        stamps.map(WALL + 960_000_000, 0, NS)
        offset = WALL + 3 * NS
        assert stamps.map(offset + 1_960_000_000, 0, 2 * NS) == 1_960_000_000
        assert stamps.steps == 1

    def test_a_clock_of_nobody(self):
        """The least delayed picture tells the offset."""
        stamps = StampMap(lambda: WALL)
        zero = 77 * NS
        delays = [30, 22, 20, 35, 50]
        ages = []
        for i, delay in enumerate(delays):
            taken = i * 33_000_000 + 100 * NS
            arrival = taken + delay * 1_000_000
            ages.append((arrival - stamps.map(taken - zero, 0, arrival)) // 1_000_000)
        assert stamps.domain == HARDWARE
        assert ages[2:] == [0, 14, 29] or ages[2:] == [0, 15, 30]

    def test_the_first_stamp_a_little_in_the_future(self):
        stamps = StampMap(lambda: WALL)
        assert stamps.map(NS + 20_000_000, videodev.TIMESTAMP_MONOTONIC, NS) == NS
        assert (stamps.domain, stamps.implausible) == (MONOTONIC, 1)
        assert stamps.map(2 * NS - 5_000_000, videodev.TIMESTAMP_MONOTONIC, 2 * NS) == 2 * NS - 5_000_000

    def test_unflagged_monotonic_stamps_are_not_trusted(self):
        stamps = StampMap(lambda: WALL)
        assert stamps.map(NS - 40_000_000, 0, NS) == NS
        assert stamps.domain == HARDWARE

    def test_stamps_of_the_future_are_flagged_and_cut(self):
        stamps = StampMap(lambda: WALL)
        stamps.map(NS - 1, videodev.TIMESTAMP_MONOTONIC, NS)
        assert stamps.map(3 * NS, videodev.TIMESTAMP_MONOTONIC, 2 * NS) == 2 * NS
        assert stamps.implausible == 1
        stamps.map(NS, videodev.TIMESTAMP_MONOTONIC, 3 * NS)
        assert stamps.implausible == 2


class TestHealth:
    def test_states_on_the_way_up_and_down(self, rig):
        assert rig.health().state is CameraState.ABSENT
        rig.start()
        assert rig.health().state is CameraState.STARTING
        rig.send(1)
        assert rig.health().state is CameraState.WARMUP
        for number in (2, 3):
            rig.send(number)
        assert rig.health().state is CameraState.LIVE
        assert rig.health(later_ns=NS // 10).state is CameraState.LATE  # two periods of 30 fps are 67 ms
        assert rig.health(later_ns=2 * NS).state is CameraState.LOST

    def test_nothing_ever_comes(self, rig):
        rig.start()
        assert rig.health(later_ns=4 * NS).state is CameraState.LOST
        assert rig.health().age_ns == -1

    def test_unplugged_is_known_at_once(self, rig):
        rig.start()
        rig.send(1)
        rig.kernel.unplug(rig.path)
        wait(lambda: rig.health().state is CameraState.ABSENT)
        assert not rig.camera._thread.is_alive()

    def test_plugged_in_again_it_goes_on(self, rig):
        rig.start()
        rig.send(1)
        rig.kernel.unplug(rig.path)
        wait(lambda: rig.health().state is CameraState.ABSENT)
        now_ns = time.monotonic_ns()
        assert rig.camera.tend(now_ns).state is CameraState.ABSENT
        rig.kernel.replug(rig.path)
        assert rig.camera.tend(now_ns).restarts == 2
        rig.send(1, 50)
        assert rig.health().frames == 1 and (rig.camera.latest()[1].image == 50).all()

    def test_gone_for_good(self, rig):
        rig.start()
        rig.kernel.unplug(rig.path)
        wait(lambda: rig.health().state is CameraState.ABSENT)
        now_ns = time.monotonic_ns()
        with pytest.raises(CameraError, match=r"lost; 2 restarts and 1 new openings did not help \(.*not there"):
            for second in range(0, 40):
                rig.camera.tend(now_ns + second * NS // 2)

    def test_stop_twice_close_twice(self, rig):
        rig.start()
        for _ in range(2):
            rig.camera.stop()
        for _ in range(2):
            rig.camera.close()
        assert rig.camera.tend(time.monotonic_ns() + 10 * NS).restarts == 0

    def test_many_starts_leave_nothing(self, rig):
        for _ in range(12):
            rig.start()
            rig.camera.stop()
        assert len(rig.kernel.handles) == 1
