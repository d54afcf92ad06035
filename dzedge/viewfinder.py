"""One camera, looked through by a person: found by a word, opened in a fitting mode, its frames awaited."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import msgspec
import numpy as np

from dzedge.camera_config import FORMATS, SIM, CameraDriver, CameraFormat
from dzedge.camera_config import Camera as Table
from dzedge.clock import NS, MonotonicClock
from dzedge.config import load
from dzedge.errors import CameraError, UsageError
from dzedge.hardware.camera import Camera, CameraHealth, CameraState, describe
from dzedge.hardware.librealsense import Mode
from dzedge.hardware.playback import SUFFIXES, recorded_modes
from dzedge.hardware.realsense import RealSense
from dzedge.hardware.recording import Recorder
from dzedge.hardware.sources import Source, Sources, simulated
from dzedge.hardware.video_nodes import VideoNodes
from dzedge.kernels.mailbox import FrameRing
from dzedge.types import Frame

SLOTS = 8
PATIENCE_NS = 8 * NS
"""How long the first frame may take: a RealSense that was restarted twice included."""
POLL_NS = 2_000_000
TEND_NS = 100_000_000
USUAL = Mode(640, 480, 30, "")
"""What is taken of a camera's modes when nobody says: the nearest to it."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What a person wants of a mode; None: any."""

    width: int | None = None
    height: int | None = None
    fps: int | None = None
    format: str | None = None

    def choose(self, modes: Sequence[Mode], driver: str, name: str) -> Mode:
        """The mode that fits, nearest to the usual one. Raises UsageError that lists what is offered."""
        usable = [mode for mode in modes if mode.format in FORMATS[driver]]
        fitting = [
            mode
            for mode in usable
            if all(getattr(self, key) in (None, getattr(mode, key)) for key in ("width", "height", "fps", "format"))
        ]
        if not fitting:
            offered = ", ".join(map(str, usable)) or "none that can be made RGB"
            raise UsageError(
                f"camera {name}: no such mode; offered: {offered}; choose --width, --height, --fps, --format"
            )
        order = FORMATS[driver].index

        def distance(mode: Mode) -> tuple[int, int, int]:
            area = abs(mode.width * mode.height - USUAL.width * USUAL.height)
            return area, abs(mode.fps - USUAL.fps), order(mode.format)

        return min(fitting, key=distance)


def find(word: str | None, robot: Path | None, wish: Wish, sources: Sources) -> Table:
    """The camera that a person means.

    word: "sim", a recording, a device file, the name of a camera of the robot file, or a serial number; None: the robot
    file's first, or else the only one attached. Raises CameraError, UsageError, ConfigError.
    """
    if robot is not None:
        for table in (tables := load(robot).cameras):
            if word in (None, table.name):
                return table
        if wish == Wish() and word is not None and not _stands_alone(word):
            names = ", ".join(table.name for table in tables)
            raise UsageError(f"camera {word}: {robot} has {names}; choose one")
    if word is not None and Path(word).suffix == ".toml":
        raise UsageError(f"camera {word}: a robot file is given with --robot, the name of one of its cameras without")
    if word == SIM:
        return _table("sim", wish.choose(simulated().modes, "sim", word))
    if word is not None and Path(word).suffix in SUFFIXES:
        _, modes, _ = recorded_modes(word)
        return _table("playback", wish.choose(modes, "playback", word), path=word)
    if word is not None and word.startswith("/dev/"):
        return _table("v4l2", wish.choose(VideoNodes().modes(word), "v4l2", word), path=word)
    return _attached(word, wish, sources)


def _stands_alone(word: str) -> bool:
    return word == SIM or word.startswith("/dev/") or Path(word).suffix in (*SUFFIXES, ".toml")


def _attached(serial: str | None, wish: Wish, sources: Sources) -> Table:
    real = [source for source in sources.attached() if source.driver != SIM]
    found = [source for source in real if serial in (None, source.info.serial)]
    there = describe([source.info for source in real])
    if not found:
        why = "".join(f"; {trouble}" for trouble in sources.troubles())
        what = f"camera {serial}: not attached" if serial else "no camera attached"
        raise CameraError(f"{what}; found: {there}{why}; plug one in, or look at the simulated one: sim")
    if len(found) > 1:
        raise UsageError(f"{len(found)} cameras attached: {there}; name one by its serial number or device file")
    (source,) = found
    if not source.modes:
        raise CameraError(f"camera {source.info.serial or source.info.port}: {source.trouble or 'offers no mode'}")
    mode = wish.choose(source.modes, source.driver, source.info.serial or source.info.port)
    if source.driver == "v4l2":
        return _table("v4l2", mode, path=source.info.port)
    return _table("realsense", mode, serial=source.info.serial, allow_usb2=source.info.stepped_down)


def _table(driver: CameraDriver, mode: Mode, **device: Any) -> Table:
    width, height, fps, form = mode.width, mode.height, mode.fps, cast(CameraFormat, mode.format)
    return Table(name="camera", driver=driver, width=width, height=height, fps=fps, format=form, **device)


def frame_ring(width: int, height: int) -> FrameRing:
    """A ring of this process alone."""
    return FrameRing(np.zeros(FrameRing.bytes_for(SLOTS, height, width), np.uint8), SLOTS, height, width)


class Viewfinder:
    """An open camera and the frames that come. camera: in the making; table: its mode."""

    def __init__(self, camera: Camera, table: Table) -> None:
        self.camera, self.table = camera, table
        self.clock = MonotonicClock()
        self._ring = frame_ring(table.width, table.height)
        self._count = 0
        self._tended_ns = 0
        self.health: CameraHealth | None = None

    def open(self) -> None:
        """Open it and make frames flow. Raises CameraError."""
        self.camera.open()
        self.camera.start(self._ring, self.clock.now_ns())

    def poll(self) -> Frame | None:
        """A frame that was not seen before, the newest; None: there is none yet. Looks after the stream, too. Raises
        CameraError when it is lost."""
        now_ns = self.clock.now_ns()
        if now_ns - self._tended_ns >= TEND_NS:
            self._tended_ns = now_ns
            self.health = self.camera.tend(now_ns)
        record = self.camera.latest(self._count)
        if record is None:
            return None
        self._count, frame = record
        return frame

    def frames(self, until_ns: int | None = None) -> Iterator[Frame]:
        """New frames, the newest of them each time, until then. Raises CameraError when none comes for long."""
        deadline_ns = self.clock.now_ns() + PATIENCE_NS
        while until_ns is None or self.clock.now_ns() < until_ns:
            frame = self.poll()
            if frame is not None:
                deadline_ns = self.clock.now_ns() + PATIENCE_NS
                yield frame
            elif self.clock.now_ns() >= deadline_ns:
                info = self.camera.info
                raise CameraError(
                    f"camera {info.serial or info.port}: no frame for {PATIENCE_NS / NS:.0f} s; replug it, and end "
                    "other programs that use it"
                )
            else:
                self.clock.sleep_until_ns(self.clock.now_ns() + POLL_NS)

    def settled(self) -> Frame:
        """A frame after the camera's exposure has settled. Raises CameraError."""
        for frame in self.frames():
            health = self.camera.health(self.clock.now_ns())
            if health.state not in (CameraState.STARTING, CameraState.WARMUP):
                return frame
        raise AssertionError("frames end only by an error")


class Renderer:
    """Renders the simulated scene into a ring, in a thread of its own. seed: of the scene; fps: [Hz]."""

    def __init__(self, ring: FrameRing, fps: int, seed: int) -> None:
        from dzedge.hardware.sim.camera import Camera as SimCamera  # not before: it takes MuJoCo
        from dzedge.hardware.sim.world import World

        self._ring, self._period_ns = ring, NS // fps
        world = World(seed)
        world.reset(seed)
        self._camera = SimCamera(world)
        self._clock = MonotonicClock()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="renderer", daemon=True)

    def __enter__(self) -> "Renderer":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        number = 0
        while not self._stopping.is_set():
            now_ns = self._clock.now_ns()
            image, _ = self._camera.render(number)
            self._ring.put(image, number, now_ns, now_ns)
            number += 1
            self._clock.sleep_until_ns(now_ns + self._period_ns)


@contextmanager
def opened(
    table: Table,
    sources: Sources,
    *,
    record: Path | None = None,
    compressed: bool = True,
    seed: int = 0,
    scene: Callable[[FrameRing], object] | None = None,
) -> Iterator[Viewfinder]:
    """The camera of a table, open while inside.

    record: write what it films there; seed: of the simulated scene; scene: makes, of the ring for a simulated camera's
    frames, a context that fills it; None: the scene over which the simulated arm stands. Raises CameraError,
    UsageError.
    """
    with ExitStack() as stack:
        rendered = None
        if table.simulated:
            rendered = frame_ring(table.width, table.height)
            filling = scene(rendered) if scene is not None else Renderer(rendered, table.fps, seed)
            stack.enter_context(filling)  # type: ignore[arg-type]
        camera = sources.camera(table, rendered)
        if record is not None:
            if not isinstance(camera, RealSense):
                raise UsageError(
                    f'driver "{table.driver}" cannot record: librealsense writes what its own cameras film; name a '
                    "RealSense, or sim"
                )
            provider = Recorder(sources.provider(table, rendered), record, compressed=compressed)
            camera = RealSense(provider, table, allow_usb2=table.allow_usb2)
        stack.callback(camera.close)
        view = Viewfinder(camera, table)
        view.open()
        yield view


def facts(source: Source) -> dict[str, object]:
    """A source as JSON says it."""
    told = {key: value for key, value in msgspec.to_builtins(source.info).items() if key != "intrinsics"}
    modes = [{"width": m.width, "height": m.height, "fps": m.fps, "format": m.format} for m in source.modes]
    return {"driver": source.driver, **told, "trouble": source.trouble, "modes": modes}
