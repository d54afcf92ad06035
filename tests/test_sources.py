"""Which driver reads which table of the robot file, and what is found on a machine."""

import gzip
import time
from pathlib import Path

import msgspec
import numpy as np
import pytest

from dzedge.camera_config import Camera
from dzedge.config import default_path, load
from dzedge.errors import CameraError
from dzedge.hardware.camera import CameraInfo
from dzedge.hardware.librealsense import Device, Mode
from dzedge.hardware.playback import Playback
from dzedge.hardware.realsense import RealSense
from dzedge.hardware.sim.software_camera import SoftwareCamera
from dzedge.hardware.sim.video_device import PretendedKernel, VideoDevice
from dzedge.hardware.sources import Sources, usb_trouble
from dzedge.hardware.v4l2 import V4l2
from dzedge.hardware.video_nodes import VideoNodes
from dzedge.kernels.mailbox import FrameRing

SIZE = {"width": 640, "height": 480, "fps": 30}
TABLE = {"name": "front", "driver": "realsense", "serial": "1", "format": "rgb8", **SIZE}
SIM = {"driver": "sim", "serial": "", "width": 160, "height": 120}
BAG = Path(__file__).parent / "recordings" / "realsense-2.57.7.bag.gz"
"""Six frames of 32x24 of a software device, written by pyrealsense2 2.57.7: pixel (x, y) of frame n is 7x, 9y, 10n."""


def table(**changes) -> Camera:
    kept = {key: value for key, value in (TABLE | changes).items() if value is not None}
    return msgspec.convert(kept, Camera)


def make_ring(width: int = 160, height: int = 120) -> FrameRing:
    return FrameRing(np.zeros(FrameRing.bytes_for(8, height, width), np.uint8), 8, height, width)


class TestTable:
    def test_what_each_driver_needs(self):
        assert table().serial == "1" and not table().simulated
        assert table(driver="v4l2", serial=None, path="/dev/video0", format="mjpeg").path == "/dev/video0"
        assert table(driver="v4l2", format="yuyv").serial == "1"
        assert table(driver="playback", serial=None, path="a.db3").serial == ""
        assert table(**SIM).simulated and table(**SIM).serial == "sim"
        assert table(width=160, height=120, serial="sim").simulated

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"serial": None}, r"needs the serial of the camera \(dzedge camera list\)"),
            ({"path": "/dev/video0"}, 'driver = "realsense" has none; leave it out'),
            ({"driver": "v4l2", "serial": None, "format": "yuyv"}, "needs either path or serial"),
            ({"driver": "v4l2", "path": "/dev/video0", "format": "yuyv"}, "needs either path or serial"),
            ({"driver": "v4l2", "serial": "sim", "format": "yuyv"}, 'write driver = "sim"'),
            ({"driver": "playback"}, r"needs the path of a recording, NAME.db3 or NAME.bag"),
            ({"driver": "v4l2"}, 'format = "rgb8": driver = "v4l2" takes yuyv, mjpeg, grey; choose one'),
            ({"format": "mjpeg"}, 'driver = "realsense" takes rgb8, bgr8, yuyv'),
            (SIM | {"width": 640}, "the simulated camera is 160x120, not 640x120"),
            ({"crop": [0, 0, 641, 480]}, "must lie inside the 640x480 image"),
            ({"driver": "playback", "path": "a.db3", "allow_usb2": True}, "allow_usb2 = true: .* asks for no USB 3"),
            ({"driver": "gopro"}, "Invalid enum value 'gopro'"),
        ],
    )
    def test_refusals(self, changes, words):
        with pytest.raises(msgspec.ValidationError, match=words):
            table(**changes)


    def test_paths_are_of_the_robot_files_folder(self, tmp_path):
        text = default_path().read_text(encoding="utf-8")
        for path, wanted in (("a.db3", str(tmp_path / "a.db3")), ("/dev/a.db3", "/dev/a.db3")):
            changed = text.replace('driver = "realsense"\nserial = "sim"', f'driver = "playback"\npath = "{path}"')
            (tmp_path / "robot.toml").write_text(changed, encoding="utf-8")
            (camera,) = load(tmp_path / "robot.toml").cameras
            assert (camera.driver, camera.path, camera.simulated) == ("playback", wanted, False)


class TestCamera:
    def test_each_driver_by_its_name(self, tmp_path):
        (tmp_path / "a.bag").touch()
        sources = Sources(live=SoftwareCamera(make_ring()))
        kinds = {
            RealSense: table(),
            V4l2: table(driver="v4l2", serial=None, path="/dev/video0", format="mjpeg"),
            Playback: table(driver="playback", serial=None, path=str(tmp_path / "a.bag")),
        }
        for kind, asked in kinds.items():
            assert type(sources.camera(asked)) is kind
        assert type(sources.camera(table(**SIM), make_ring())) is RealSense
        sources.close()

    def test_usb_2_only_where_it_is_allowed(self):
        sources = Sources(live=SoftwareCamera(make_ring(), serial="1", usb="2.1", fps=30))
        asked = table(width=160, height=120)
        with pytest.raises(CameraError, match=r"on a USB 2\.1 link, needed 3"):
            sources.camera(asked).open()
        camera = sources.camera(msgspec.structs.replace(asked, allow_usb2=True))
        assert camera.open().usb == "2.1"
        camera.close()

    def test_simulated_frames_come_through_librealsense(self):
        rendered, frames, sources = make_ring(), make_ring(), Sources()
        camera = sources.camera(table(**SIM, fps=15), rendered)
        camera.start(frames, time.monotonic_ns())
        picture = np.random.default_rng(0).integers(0, 256, (120, 160, 3), np.uint8)
        deadline = time.monotonic() + 10
        while frames.count == 0 and time.monotonic() < deadline:
            rendered.put(picture, 5, time.monotonic_ns(), time.monotonic_ns())
            time.sleep(0.02)
        np.testing.assert_array_equal(camera.latest()[1].image, picture)
        camera.close()
        sources.close()

    def test_a_recording_of_an_old_librealsense(self, tmp_path):
        path = tmp_path / "old.bag"
        path.write_bytes(gzip.decompress(BAG.read_bytes()))
        asked = table(driver="playback", serial="old", path=str(path), width=32, height=32)
        asked = msgspec.structs.replace(asked, height=24)  # smaller than a robot file takes
        sources, frames = Sources(), make_ring(32, 24)
        camera = sources.camera(asked)
        camera.start(frames, time.monotonic_ns())
        deadline = time.monotonic() + 10
        while frames.count < 6 and time.monotonic() < deadline:
            time.sleep(0.01)
        x, y = np.meshgrid(np.arange(32), np.arange(24))
        for index in range(6):
            _, pixels, meta = frames.read(index)
            wanted = np.stack([7 * x, 9 * y, np.full_like(x, 10 * meta[0])], axis=2)
            np.testing.assert_array_equal(pixels.reshape(24, 32, 3), wanted)
            assert meta[0] == index + 1
        camera.close()


class Bus:
    """Two RealSense cameras, one on a poor cable, one in use."""

    def __init__(self) -> None:
        self.inner = SoftwareCamera(make_ring(), serial="1", usb="2.1")
        self.closed = 0

    def attached(self) -> list[CameraInfo]:
        return [*self.inner.attached(), CameraInfo("Intel RealSense D405", "2", "5.16", "3.2", "usb2")]

    def find(self, serial: str) -> Device:
        return self.inner.find(serial)

    def reset(self, device: Device) -> None:
        raise AssertionError("nobody asked for a reset")

    def close(self) -> None:
        self.closed += 1


class TestAttached:
    @pytest.fixture
    def sources(self, tmp_path):
        devices = {}
        for number, card in enumerate(["Webcam", "Intel(R) RealSense(TM) 435", "Thermal", "Locked"]):
            (tmp_path / f"video{number}").touch()
            devices[str(tmp_path / f"video{number}")] = VideoDevice([Mode(64, 48, 30, "mjpeg")], card)
        devices[str(tmp_path / "video2")].modes = []
        devices[str(tmp_path / "video3")].refuse[0] = 13
        nodes = VideoNodes(PretendedKernel(devices), tmp_path, tmp_path)
        sources = Sources(nodes, Bus())
        yield sources
        sources.close()

    def test_all_of_them(self, sources):
        found = sources.attached()
        assert [(source.driver, source.info.name) for source in found] == [
            ("realsense", "Simulated D435"), ("realsense", "Intel RealSense D405"), ("v4l2", "Webcam"),
            ("v4l2", "Thermal"), ("sim", "Simulated D435"),
        ]  # fmt: skip
        assert found[0].modes == (Mode(160, 120, 15, "rgb8"),)
        assert "on a USB 2.1 link, needed 3" in found[0].trouble
        assert "camera 2: not attached" in found[1].trouble
        assert (found[2].modes, found[2].trouble) == ((Mode(64, 48, 30, "mjpeg"),), "")
        assert "no format that can be made RGB" in found[3].trouble
        assert found[4].trouble == ""

    def test_what_may_hide_more(self, sources):
        (words,) = sources.troubles()
        assert "video3" in words and "usermod -aG video" in words

    def test_without_librealsense(self, sources, monkeypatch):
        def missing():
            raise CameraError("librealsense: not installed; install dzedge[realsense]")

        monkeypatch.setattr("dzedge.hardware.sources.LiveDevices", missing)
        sources.close()
        assert [source.driver for source in sources.attached()] == ["v4l2", "v4l2", "sim"]
        assert sources.troubles()[0] == "librealsense: not installed; install dzedge[realsense]"


def test_only_slow_links_are_trouble():
    links = {"1.1": True, "2.0": True, "2.1": True, "3.0": False, "3.2": False, "": False}
    for usb, bad in links.items():
        assert bool(usb_trouble(CameraInfo("D435", "1", "", usb, ""))) is bad
