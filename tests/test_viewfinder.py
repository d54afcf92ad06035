"""Which camera a person means, and its frames."""

import gzip
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dzedge.config import default_path
from dzedge.errors import CameraError, UsageError
from dzedge.hardware.camera import CameraHealth, CameraInfo, CameraState
from dzedge.hardware.librealsense import Mode
from dzedge.hardware.sources import Source, Sources
from dzedge.types import Frame
from dzedge.viewfinder import Viewfinder, Wish, facts, find, frame_ring, opened

BAG = Path(__file__).parent / "recordings" / "realsense-2.57.7.bag.gz"
MODES = (
    Mode(1280, 720, 30, "rgb8"), Mode(640, 480, 60, "rgb8"), Mode(640, 480, 30, "yuyv"), Mode(640, 480, 30, "rgb8"),
    Mode(424, 240, 90, "rgb8"), Mode(640, 480, 30, "z16"),
)  # fmt: skip
SIM = Source("sim", CameraInfo("Simulated D435", "sim", "", "", "memory"), (Mode(160, 120, 15, "rgb8"),))
D435 = Source("realsense", CameraInfo("D435", "12", "5.17", "3.2", "usb"), MODES)
WEBCAM = Source("v4l2", CameraInfo("Webcam", "", "", "2.0", "/dev/video4"), (Mode(640, 480, 30, "mjpeg"),))


class Attached:
    """Sources of a machine with these cameras."""

    def __init__(self, *sources: Source, troubles: tuple[str, ...] = ()) -> None:
        self._sources, self._troubles = [*sources, SIM], list(troubles)

    def attached(self) -> list[Source]:
        return self._sources

    def troubles(self) -> list[str]:
        return self._troubles


class TestWish:
    @pytest.mark.parametrize(
        ("wish", "index"),
        [(Wish(), 3), (Wish(format="yuyv"), 2), (Wish(fps=60), 1), (Wish(width=1280), 0), (Wish(height=240), 4)],
    )
    def test_nearest_to_the_usual(self, wish, index):
        assert wish.choose(MODES, "realsense", "12") == MODES[index]

    @pytest.mark.parametrize("wish", [Wish(width=641), Wish(format="z16"), Wish(format="mjpeg")])
    def test_what_it_lacks(self, wish):
        with pytest.raises(UsageError, match=r"camera 12: no such mode; offered: 1280x720 at 30 fps rgb8, .*--width"):
            wish.choose(MODES, "realsense", "12")


class TestFind:
    def test_the_only_one(self):
        table = find(None, None, Wish(), Attached(D435))
        assert (table.driver, table.serial, table.width, table.fps) == ("realsense", "12", 640, 30)

    def test_a_webcam_by_its_device(self):
        table = find(None, None, Wish(), Attached(WEBCAM))
        assert (table.driver, table.path, table.format) == ("v4l2", "/dev/video4", "mjpeg")

    def test_by_serial(self):
        assert find("12", None, Wish(fps=60), Attached(D435, WEBCAM)).fps == 60

    def test_one_on_usb_2_is_looked_at_all_the_same(self):
        poor = replace(D435, info=replace(D435.info, usb="2.1"))
        assert find("12", None, Wish(), Attached(poor)).allow_usb2
        assert not find("12", None, Wish(), Attached(D435)).allow_usb2

    def test_the_simulated_one(self):
        table = find("sim", None, Wish(), Attached())
        assert table.simulated and (table.width, table.height) == (160, 120)
        with pytest.raises(UsageError, match="camera sim: no such mode; offered: 160x120 at 15 fps rgb8"):
            find("sim", None, Wish(fps=30), Attached())

    def test_a_recording(self, tmp_path):
        path = tmp_path / "old.bag"
        path.write_bytes(gzip.decompress(BAG.read_bytes()))
        table = find(str(path), None, Wish(), Attached())
        assert (table.driver, table.path, table.width, table.height) == ("playback", str(path), 32, 24)

    def test_of_a_robot_file(self):
        assert find(None, default_path(), Wish(), Attached()).name == "front"
        assert find("front", default_path(), Wish(), Attached(D435)).simulated
        assert find("sim", default_path(), Wish(), Attached(D435)).simulated
        with pytest.raises(UsageError, match=r"camera back: .* has front; choose one"):
            find("back", default_path(), Wish(), Attached(D435))

    def test_several(self):
        with pytest.raises(UsageError, match=r"2 cameras attached: D435 12 \(USB 3.2\), Webcam"):
            find(None, None, Wish(), Attached(D435, WEBCAM))

    def test_none(self):
        with pytest.raises(CameraError, match="no camera attached; found: none; no permission; plug one in"):
            find(None, None, Wish(), Attached(troubles=("no permission",)))
        with pytest.raises(CameraError, match="camera 13: not attached; found: D435 12"):
            find("13", None, Wish(), Attached(D435))

    def test_one_that_is_in_use(self):
        with pytest.raises(CameraError, match="camera 12: in use; end that"):
            find("12", None, Wish(), Attached(replace(D435, modes=(), trouble="in use; end that")))


class Still:
    """A camera whose frames a test hands out, on a clock that jumps."""

    info = CameraInfo("Still", "7", "", "", "memory")

    def __init__(self) -> None:
        self.queue: list[Frame] = []
        self.state = CameraState.LIVE
        self.tended = 0

    def latest(self, after: int = 0) -> tuple[int, Frame] | None:
        return (after + 1, self.queue.pop(0)) if self.queue else None

    def tend(self, now_ns: int) -> CameraHealth:
        self.tended += 1
        return self.health(now_ns)

    def health(self, now_ns: int) -> CameraHealth:
        return CameraHealth(self.state, 0, 0, 0, 0)


class Jumping:
    """A clock that is where one sleeps to."""

    def __init__(self) -> None:
        self.time_ns = 0

    def now_ns(self) -> int:
        self.time_ns += 1000
        return self.time_ns

    def sleep_until_ns(self, deadline_ns: int) -> None:
        self.time_ns = max(self.time_ns, deadline_ns)


@pytest.fixture
def view():
    view = Viewfinder(Still(), find("sim", None, Wish(), Attached()))
    view.clock = Jumping()
    return view


class TestViewfinder:
    def test_silence_is_an_error(self, view):
        with pytest.raises(CameraError, match="camera 7: no frame for 8 s; replug it"):
            list(view.frames())
        assert view.camera.tended >= 50

    def test_frames_until_a_time(self, view):
        view.camera.queue = [frame(number) for number in range(3)]
        assert [seen.number for seen in view.frames(50_000_000)] == [0, 1, 2]
        assert view.clock.time_ns >= 50_000_000

    def test_waits_for_the_exposure_to_settle(self, view):
        view.camera.queue = [frame(number) for number in range(3)]
        view.camera.state = CameraState.WARMUP
        frames = view.frames()
        assert next(frames).number == 0
        view.camera.state = CameraState.LIVE
        assert view.settled().number == 1


def frame(number: int) -> Frame:
    return Frame(np.zeros((2, 2, 3), np.uint8), number, 0, 0)


def test_the_simulated_scene_through_librealsense():
    sources = Sources()
    with opened(find("sim", None, Wish(), Attached()), sources) as view:
        image = view.settled().image
        assert image.shape == (120, 160, 3) and image.std() > 10
        view.settled()
    assert view.camera.health(time.monotonic_ns()).state is CameraState.ABSENT
    sources.close()


def test_only_librealsense_records(tmp_path):
    webcam = find(None, None, Wish(), Attached(WEBCAM))
    film = opened(webcam, Sources(), record=tmp_path / "a.db3")
    with pytest.raises(UsageError, match='driver "v4l2" cannot record'), film:
        raise AssertionError("never opened")


def test_facts_are_plain():
    told = facts(D435)
    assert told["usb"] == "3.2" and told["modes"][0] == {"width": 1280, "height": 720, "fps": 30, "format": "rgb8"}
    assert frame_ring(8, 6).width == 8
