"""The webcam driver against the kernel itself: its virtual camera, vivid, is the judge.

    modprobe vivid n_devs=1 node_types=0x1 num_inputs=1 input_types=0
    pytest tests/judges/test_vivid.py

Skipped where there is none; tests/judges/vivid_vm.py runs it in a virtual machine. What vivid cannot show: USB, MJPEG,
the clocks of real cameras.
"""

import ctypes
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest

from dzedge.errors import CameraError
from dzedge.hardware import videodev
from dzedge.hardware.camera import CameraHealth, CameraState
from dzedge.hardware.librealsense import Mode
from dzedge.hardware.v4l2 import V4l2
from dzedge.hardware.v4l2_stream import MONOTONIC
from dzedge.hardware.video_nodes import VideoNodes
from dzedge.hardware.videodev import LinuxKernel
from dzedge.kernels.mailbox import FrameRing

NODES = [node for node in VideoNodes().attached() if node.card == "vivid"]
pytestmark = pytest.mark.skipif(not NODES, reason="no vivid camera: modprobe vivid (see above)")
BARS = [(191, 191, 191), (191, 191, 0), (0, 191, 191), (0, 191, 0), (191, 0, 191), (191, 0, 0), (0, 0, 191), (0, 0, 0)]
"""vivid's test pattern: 75 % colour bars."""
NEXT_CONTROL = 0x80000000


class QueryControl(ctypes.Structure):
    """struct v4l2_queryctrl."""

    _fields_ = (
        ("id", ctypes.c_uint32), ("type", ctypes.c_uint32), ("name", ctypes.c_char * 32), ("range", ctypes.c_int32 * 4),
        ("flags", ctypes.c_uint32), ("reserved", ctypes.c_uint32 * 2),
    )  # fmt: skip


@dataclass(frozen=True)
class Config:
    serial: str = ""
    width: int = 640
    height: int = 480
    fps: int = 15
    format: str = "yuyv"


class Rig:
    """The driver on vivid."""

    def __init__(self, config: Config | None = None) -> None:
        self.config = config or Config()
        self.path = NODES[0].path
        self.camera = V4l2(self.config, self.path)
        size = 64, self.config.height, self.config.width
        self.ring = FrameRing(np.zeros(FrameRing.bytes_for(*size), np.uint8), *size)

    def start(self, frames: int = 3) -> "Rig":
        self.camera.open()
        self.camera.start(self.ring, time.monotonic_ns())
        self.wait(lambda health: health.frames >= frames)
        return self

    def health(self) -> CameraHealth:
        return self.camera.health(time.monotonic_ns())

    def wait(self, condition: Callable[[CameraHealth], bool], tend: bool = False) -> CameraHealth:
        deadline = time.monotonic() + 30
        while not condition(health := self.camera.tend(time.monotonic_ns()) if tend else self.health()):
            assert time.monotonic() < deadline, f"not within 30 s: {health}"
            time.sleep(0.02)
        return health

    def press(self, name: str) -> None:
        """Press a button of vivid's. Raises KeyError when this kernel has none of that name."""
        kernel, controls, asked = LinuxKernel(), {}, QueryControl(id=NEXT_CONTROL)
        fd = kernel.open(self.path)
        try:
            while True:
                try:
                    kernel.ioctl(fd, videodev._request(3, 36, QueryControl), asked)
                except OSError:
                    break
                controls[asked.name.decode()] = asked.id
                asked.id |= NEXT_CONTROL
            kernel.ioctl(fd, videodev.S_CTRL, videodev.Control(controls[name], 1))
        finally:
            os.close(fd)


@pytest.fixture
def rig():
    rig = Rig()
    yield rig
    rig.camera.close()


def test_modes():
    modes = VideoNodes().modes(NODES[0].path)
    assert Mode(640, 480, 15, "yuyv") in modes and Mode(640, 480, 15, "grey") in modes
    assert modes == sorted(set(modes))


@pytest.mark.parametrize("pixels", ["yuyv", "grey"])
def test_colour_bars(pixels):
    rig = Rig(Config(format=pixels)).start()
    image = rig.camera.latest()[1].image
    rig.camera.close()
    seen = [image[240, 40 + 80 * bar].astype(int) for bar in range(8)]
    for colour, bar in zip(seen, BARS, strict=True):
        if pixels == "yuyv":
            assert np.abs(colour - bar).max() <= 4, (colour, bar)
        else:
            luma = 0.2126 * bar[0] + 0.7152 * bar[1] + 0.0722 * bar[2]  # ITU-R BT.709, as vivid does
            assert np.abs(colour - luma).max() <= 4, (colour, luma)


def test_stamps_are_the_kernels_own(rig):
    health = rig.start(10).health()
    assert health.domain == MONOTONIC and health.repeated == health.rejected == health.restarted == 0
    stamps = [rig.ring.read(index)[2][:3] for index in range(rig.ring.count)]
    assert all(later[0] > earlier[0] and later[1] > earlier[1] for earlier, later in pairwise(stamps))
    assert all(0 <= receive - capture < 1_000_000_000 for _, capture, receive in stamps)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"width": 333}, "it would give"),
        ({"fps": 77}, r"it would give \d+ fps; offered"),
        ({"format": "mjpeg"}, "it would give"),
    ],
)
def test_modes_that_it_lacks(changes, words):
    with pytest.raises(CameraError, match=words):
        V4l2(Config(**changes), NODES[0].path).open()


def test_a_second_program_is_told(rig):
    rig.start()
    with pytest.raises(CameraError, match="in use by another program"):
        Rig(Config(width=320, height=180)).start()


def test_damaged_buffers_do_not_pass(rig):
    rig.start()
    rig.press("Inject V4L2_BUF_FLAG_ERROR")
    rig.wait(lambda health: health.rejected == 1)
    frames = rig.health().frames
    rig.wait(lambda health: health.frames > frames + 3)
    assert rig.health().rejected == 1


def test_a_queue_in_error_is_started_anew(rig):
    rig.start()
    rig.press("Inject Fatal Streaming Error")
    rig.wait(lambda health: health.failed > 0)
    health = rig.wait(lambda health: health.restarts > 0 and health.frames > 3, tend=True)
    assert health.failed == 0


def test_unplugged_is_known_and_replugged_goes_on(rig):
    """vivid comes back when its last descriptor is closed."""
    rig.start()
    rig.press("Disconnect")
    rig.wait(lambda health: health.state is CameraState.ABSENT)
    health = rig.wait(lambda health: health.restarts > 0 and health.frames > 3, tend=True)
    assert health.state in (CameraState.WARMUP, CameraState.LIVE)


def test_many_starts(rig):
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        Rig().start(1).camera.close()
    assert len(os.listdir("/proc/self/fd")) == before
