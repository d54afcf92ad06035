"""Recording and playing back, on the real librealsense: a simulated camera goes in, the same pictures come out."""

import importlib.util
import sqlite3
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from dzedge.errors import CameraError, UsageError
from dzedge.hardware import librealsense
from dzedge.hardware.camera import CameraState
from dzedge.hardware.librealsense import Mode
from dzedge.hardware.playback import Playback, Recordings, recorded_modes
from dzedge.hardware.realsense import RealSense
from dzedge.hardware.recording import Recorder
from dzedge.hardware.sim.software_camera import SoftwareCamera
from dzedge.kernels.mailbox import FrameRing

HEIGHT, WIDTH, SLOTS, FRAMES = 12, 16, 64, 20
PERIOD_NS = 1_000_000_000 // 30
STAMP_NS = 33_250_000
"""Between the stamps of the recorded frames."""


@dataclass(frozen=True)
class Config:
    serial: str = ""
    width: int = WIDTH
    height: int = HEIGHT
    fps: int = 30
    format: str = "rgb8"


def make_ring() -> FrameRing:
    return FrameRing(np.zeros(FrameRing.bytes_for(SLOTS, HEIGHT, WIDTH), np.uint8), SLOTS, HEIGHT, WIDTH)


def picture(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)


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


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty frames of a simulated camera, number 7 left out."""
    path = tmp_path_factory.mktemp("recording") / "ä b.db3"
    simulated = SoftwareCamera(make_ring(), fps=30, serial="left", domain="hardware", phase_ns=3_000_000_000)
    camera, ring = RealSense(Recorder(simulated, path), Config("left")), make_ring()
    camera.start(ring, time.monotonic_ns())
    base_ns = time.monotonic_ns() - STAMP_NS
    for number in range(1, FRAMES + 2):
        if number != 7:
            simulated.device.feeder.inject(picture(number), number, base_ns + number * STAMP_NS)
            wait(lambda number=number: camera.health(0).number == number)
        time.sleep(PERIOD_NS / 1e9)
    assert camera.health(time.monotonic_ns()).frames == FRAMES
    camera.close()
    return path


class Player:
    """A recording in a ring of its own."""

    def __init__(self, path: Path, **changes) -> None:
        self.camera, self.ring = Playback(str(path), Config(**changes)), make_ring()
        self.camera.start(self.ring, time.monotonic_ns())

    def health(self):
        return self.camera.health(time.monotonic_ns())

    def tend(self):
        return self.camera.tend(time.monotonic_ns())


@pytest.fixture
def player(recording: Path):
    player = Player(recording)
    yield player
    player.camera.close()


class TestRecorder:
    def test_rosbags_reads_what_we_wrote(self, recording: Path) -> None:
        if importlib.util.find_spec("rosbags") is None:
            pytest.skip("rosbags is not installed (requirements-dev.txt)")
        from rosbags.highlevel import AnyReader
        from rosbags.typesys import Stores, get_typestore

        with AnyReader([recording], default_typestore=get_typestore(Stores.ROS2_HUMBLE)) as reader:
            counts = {connection.topic: connection.msgcount for connection in reader.connections}
            pictures = [topic for topic in counts if "/Color_0/image/data" in topic]
            assert [counts[topic] for topic in pictures] == [FRAMES]
            assert counts["/device_0/sensor_0/Color_0/image/metadata"] == FRAMES
            (connection,) = (c for c in reader.connections if c.topic == pictures[0])
            stamps = [stamp for _, stamp, _ in reader.messages([connection])]
            assert np.diff(stamps).min() > 0

    def test_identity_modes_and_length(self, recording: Path) -> None:
        info, modes, length_ns = recorded_modes(str(recording))
        assert (info.serial, info.name, modes) == ("left", "Simulated D435", [Mode(WIDTH, HEIGHT, 30, "rgb8")])
        assert (FRAMES - 1) * PERIOD_NS < length_ns < 5_000_000_000

    @pytest.mark.parametrize(
        ("name", "words"),
        [("a.bag", "must end in .db3"), ("there.db3", "is there already"), ("none/a.db3", "no folder .*none; make it")],
    )
    def test_files_that_it_does_not_write(self, tmp_path: Path, name: str, words: str) -> None:
        (tmp_path / "there.db3").write_bytes(b"precious")
        with pytest.raises(UsageError, match=words):
            Recorder(SoftwareCamera(make_ring()), tmp_path / name)
        assert (tmp_path / "there.db3").read_bytes() == b"precious"

    def test_a_lost_camera_ends_the_recording_and_keeps_it(self, tmp_path: Path) -> None:
        """The recovery ladder would begin the file anew."""
        simulated, path = SoftwareCamera(make_ring(), fps=30), tmp_path / "a.db3"
        camera, ring = RealSense(Recorder(simulated, path), Config("sim")), make_ring()
        camera.start(ring, time.monotonic_ns())
        simulated.device.feeder.inject(picture(1), 1, time.monotonic_ns())
        wait(lambda: camera.health(0).frames == 1)
        now_ns = time.monotonic_ns()
        with pytest.raises(CameraError, match=r"lost; .*a.db3: broken off, and kept"):
            for second in range(40):
                camera.tend(now_ns + (second + 2) * 1_000_000_000)
        camera.close()
        assert recorded_modes(str(path))[1] == [Mode(WIDTH, HEIGHT, 30, "rgb8")]

    def test_wrong_serial_writes_nothing(self, tmp_path: Path) -> None:
        recorder = Recorder(SoftwareCamera(make_ring()), tmp_path / "a.db3")
        with pytest.raises(CameraError, match="camera 42: not attached; found: Simulated D435 sim"):
            RealSense(recorder, Config("42")).open()
        assert not (tmp_path / "a.db3").exists()


class TestPlayback:
    def test_same_pictures_numbers_and_distances(self, player: Player) -> None:
        wait(lambda: player.health().frames == FRAMES)
        numbers, stamps = [], []
        for index in range(FRAMES):
            _, pixels, meta = player.ring.read(index)
            np.testing.assert_array_equal(pixels.reshape(HEIGHT, WIDTH, 3), picture(meta[0]))
            numbers.append(meta[0])
            stamps.append(meta[1])
        assert numbers == [number for number in range(1, FRAMES + 2) if number != 7]
        assert player.health().dropped == 1
        # Most exactly; less where a frame that came faster showed that the clock's offset was smaller.
        assert abs(np.median(np.diff(stamps)) - STAMP_NS) < 0.01 * STAMP_NS
        assert np.diff(stamps).min() > 0

    def test_frames_are_of_now(self, player: Player) -> None:
        wait(lambda: player.health().frames >= 3)
        health = player.health()
        assert health.implausible == 0 and health.transport_ns == 0
        assert 0 <= health.age_ns < 200_000_000

    def test_begins_anew_at_its_end(self, player: Player) -> None:
        wait(lambda: player.health().frames == FRAMES)
        wait(lambda: player.tend().frames < FRAMES)
        wait(lambda: player.health().frames > 2)
        assert player.camera.rounds == 1
        health = player.tend()
        assert (health.restarts, health.resets, health.restarted) == (0, 0, 0)
        assert health.state is CameraState.LIVE

    def test_info(self, player: Player) -> None:
        assert (player.camera.info.serial, player.camera.info.usb) == ("left", "3.2")
        assert player.camera.info.intrinsics is not None

    def test_mode_that_was_not_recorded(self, recording: Path) -> None:
        with pytest.raises(CameraError, match="no colour mode 640x480 at 30 fps rgb8; offered: 16x12 at 30 fps rgb8"):
            Playback(str(recording), Config(width=640, height=480)).open()

    def test_another_cameras_recording(self, recording: Path) -> None:
        with pytest.raises(CameraError, match=r"camera right: recording .* is of left; correct"):
            Playback(str(recording), Config("right")).open()

    def test_close_twice_and_after_stop(self, player: Player) -> None:
        player.camera.stop()
        player.camera.stop()
        assert player.tend().state is CameraState.ABSENT
        player.camera.close()
        player.camera.close()

    def test_many_rounds_leave_nothing(self, recording: Path) -> None:
        for _ in range(10):
            Player(recording).camera.close()


class TestRecordings:
    @pytest.mark.parametrize(
        ("name", "words"),
        [
            ("none.db3", "not there"),
            ("a.mp4", "must end in .db3 or .bag"),
            ("bad.db3", "damaged, or not librealsense's .*record it again"),
            ("empty.db3", "damaged, or not librealsense's"),
            ("bare.db3", "holds no pictures: it was broken off"),
            ("bad.bag", "Failed to create ros reader.*record it again"),
        ],
    )
    def test_files_that_are_none(self, tmp_path: Path, name: str, words: str) -> None:
        (tmp_path / "bad.db3").write_bytes(b"SQLite format 3\0" + bytes(100))
        (tmp_path / "empty.db3").touch()
        (tmp_path / "bad.bag").write_bytes(b"#ROSBAG V2.0\n" + bytes(100))
        # Broken off at once: librealsense itself would read it for ever.
        with closing(sqlite3.connect(tmp_path / "bare.db3")) as database:
            database.execute("CREATE TABLE topics(id INTEGER, name TEXT)")
            database.execute("CREATE TABLE messages(id INTEGER, topic_id INTEGER, data BLOB)")
            database.execute("INSERT INTO topics VALUES(1, '/file_version')")
            database.execute("INSERT INTO messages VALUES(1, 1, '4')")
            database.commit()
        with pytest.raises(CameraError, match=words):
            Recordings(str(tmp_path / name)).attached()
