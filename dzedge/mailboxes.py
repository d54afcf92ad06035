"""The shared memory of one robot: made once by the supervisor, mapped by each process it starts.

Memory files (memfd) have no name: when the last process that holds one is gone, it is gone. A named segment would
be unlinked for everybody by the resource tracker of a killed process (facts of Python 3.11).
"""

import json
import mmap
import os
from collections.abc import Mapping
from typing import Any

from dzedge.bundle import Bundle
from dzedge.config import RobotConfig
from dzedge.kernels.board import Board
from dzedge.kernels.mailbox import ChunkBox, FrameRing, Ring, StateRing, TrajectoryBox
from dzedge.kernels.marks import Marks

FRAME_SLOTS = 16
"""Frames kept of each camera: about one second at 15 fps."""
STAGES = ("capture", "inference", "control", "sim")
"""Processes with a heartbeat on the board, in its order."""
REPORT_BYTES = 4096
"""Longest report of control, as JSON, and longest message of a failure."""
TEXT_BYTES = 248
"""Longest instruction, as UTF-8."""
VARIABLE = "DZEDGE_MEMORY"
"""Environment variable that hands the memory files down: `name=fd`, comma separated."""


class Mailboxes:
    """All mailboxes of a robot, over memory files of this process.

    config: the robot; horizon, latents: chunk length H and the number of imagined latents F * K * C of its policy;
    memory: name -> file descriptor; without it new memory files are made.

    Attributes: board; frames (FrameRing of each camera, in the order of the robot file); chunks; states;
    trajectory; marks (timing marks of each stage); and for a simulated robot rendered (FrameRing of each simulated
    camera, filled by the sim process, emptied by capture's feeder), scenes (supervisor to sim: metadata scene number,
    seed), verdicts (sim to supervisor: the scene's default instruction as text; metadata scene number, length of the
    text, task epoch, success, distance to success in micrometres or -1).
    """

    def __init__(
        self, config: RobotConfig, horizon: int, latents: int, memory: Mapping[str, int] | None = None
    ) -> None:
        joints = len(config.arm.joints)
        knots = trajectory_knots(horizon)
        sizes = {
            "board": Board.BYTES,
            "chunks": ChunkBox.bytes_for(horizon, joints, latents),
            "states": StateRing.bytes_for(joints),
            "trajectory": TrajectoryBox.bytes_for(knots, joints),
            "reports": Ring.size(2, REPORT_BYTES),
            "ports": Ring.size(2, TEXT_BYTES),
            "scenes": Ring.size(2, 8),
            "verdicts": Ring.size(2, TEXT_BYTES),
        }
        for index, camera in enumerate(config.cameras):
            size = FrameRing.bytes_for(FRAME_SLOTS, camera.height, camera.width)
            sizes[f"frames{index}"] = size
            if camera.simulated:
                sizes[f"rendered{index}"] = size
        for stage in STAGES:
            sizes[f"marks_{stage}"] = Marks.bytes_for()
            sizes[f"failure_{stage}"] = Ring.size(2, REPORT_BYTES)
        self.memory = dict(memory) if memory is not None else {name: _memfd(name, n) for name, n in sizes.items()}
        maps = {name: mmap.mmap(self.memory[name], size) for name, size in sizes.items()}

        def ring(name: str, index: int) -> FrameRing:
            camera = config.cameras[index]
            return FrameRing(maps[f"{name}{index}"], FRAME_SLOTS, camera.height, camera.width)

        cameras = range(len(config.cameras))
        self.board = Board(maps["board"])
        self.frames = tuple(ring("frames", index) for index in cameras)
        self.rendered = tuple(ring("rendered", index) for index in cameras if config.cameras[index].simulated)
        self.chunks = ChunkBox(maps["chunks"], horizon, joints, latents)
        self.states = StateRing(maps["states"], joints)
        self.trajectory = TrajectoryBox(maps["trajectory"], knots, joints)
        self._reports = Ring(maps["reports"], 2, REPORT_BYTES)
        self._failures = {stage: Ring(maps[f"failure_{stage}"], 2, REPORT_BYTES) for stage in STAGES}
        self._ports = Ring(maps["ports"], 2, TEXT_BYTES)
        self.scenes = Ring(maps["scenes"], 2, 8)
        self.verdicts = Ring(maps["verdicts"], 2, TEXT_BYTES)
        self.marks = {stage: Marks(maps[f"marks_{stage}"]) for stage in STAGES}

    @property
    def port(self) -> str:
        """Path of the simulated arm's serial port; "" until the sim process has made it."""
        record = self._ports.read()
        return bytes(record[1]).rstrip(b"\0").decode() if record else ""

    @port.setter
    def port(self, path: str) -> None:
        self._ports.write(path.encode().ljust(TEXT_BYTES, b"\0"), ())

    def failure(self, stage: str) -> str:
        """Why a stage had to end, in its own words; "" while all is well."""
        record = self._failures[stage].read()
        return bytes(record[1]).rstrip(b"\0").decode("utf-8", "replace") if record else ""

    def set_failure(self, stage: str, message: str) -> None:
        """A stage's own words on why it must end."""
        self._failures[stage].write(message.encode()[:REPORT_BYTES].ljust(REPORT_BYTES, b"\0"), ())

    def report(self, document: Mapping[str, object]) -> None:
        """Publish control's account of itself; see `latest_report`."""
        text = json.dumps(document).encode()
        self._reports.write(text.ljust(REPORT_BYTES)[:REPORT_BYTES], (len(text),))

    def latest_report(self) -> dict[str, Any]:
        """Control's newest account of itself: cause, refused chunks and commands, bus counters; {} before the first."""
        record = self._reports.read()
        return json.loads(bytes(record[1])) if record else {}

    def environment(self) -> dict[str, str]:
        """What a child needs in its environment to map the same memory; pass `descriptors` on to it too."""
        return {VARIABLE: ",".join(f"{name}={fd}" for name, fd in self.memory.items())}

    @property
    def descriptors(self) -> list[int]:
        """File descriptors that a child must inherit."""
        return list(self.memory.values())

    def close(self) -> None:
        """Close this process's memory files; the mappings live on until nothing uses them."""
        for fd in self.memory.values():
            os.close(fd)
        self.memory = {}


def make_mailboxes(config: RobotConfig, bundle: Bundle) -> Mailboxes:
    """New mailboxes for a robot and its policy."""
    section = bundle.manifest.dzedge
    video = section.video
    return Mailboxes(config, section.horizon, video.frames * video.tokens * video.channels)


def inherited(environment: Mapping[str, str]) -> dict[str, int]:
    """The memory files handed down in `environment`. Raises KeyError when there are none."""
    return {name: int(fd) for name, fd in (item.split("=") for item in environment[VARIABLE].split(","))}


def trajectory_knots(horizon: int) -> int:
    """Knots that the running trajectory needs at most: the anchor and H actions, at twice their rate."""
    return 2 * horizon + 1


def _memfd(name: str, size: int) -> int:
    fd = os.memfd_create(f"dzedge-{name}", os.MFD_CLOEXEC)
    os.ftruncate(fd, size)
    return fd
