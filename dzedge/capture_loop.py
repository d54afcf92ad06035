"""capture: owns every librealsense object and writes frames into the shared rings.

An abort inside librealsense must not take the model or the arm along: this process dies alone and is started anew.
Runs as `python -I -m dzedge.capture_loop`, started by the supervisor.
"""

import os
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial

from dzedge.clock import MonotonicClock
from dzedge.config import RobotConfig
from dzedge.errors import CameraError
from dzedge.hardware.camera import Camera, CameraHealth, CameraState, Patience, worst
from dzedge.hardware.deadline import Deadline
from dzedge.hardware.sources import Sources
from dzedge.kernels.mailbox import FrameRing
from dzedge.mailboxes import STAGES
from dzedge.stage import Stage, log, main

STAGE = STAGES.index("capture")
PERIOD_NS = 50_000_000
"""How often the cameras are looked after at least; frames do not wait for it."""
SWITCH_S = 0.0005
"""Python threads give way after this: librealsense's own threads wait on one (measured, facts of the driver)."""


class Capture:
    """All cameras of the robot. The pumps move frames by themselves; `step` sees to the health of the streams.

    rendered: where the simulator puts the frames of each simulated camera; frames: where each camera's frames go;
    deadline: what ends this process when a device's library does not return.
    """

    def __init__(
        self,
        config: RobotConfig,
        rendered: Sequence[FrameRing],
        frames: Sequence[FrameRing],
        deadline: Deadline | None = None,
    ) -> None:
        self.frames = frames
        self.names = [camera.name for camera in config.cameras]
        self.period_ns = min([PERIOD_NS, *(Patience(camera.fps).look_ns for camera in config.cameras)])
        self._deadline = deadline
        simulated = iter(rendered)
        self.sources = Sources()
        self.cameras: list[Camera] = [
            self.sources.camera(camera, next(simulated) if camera.simulated else None) for camera in config.cameras
        ]

    def _bounded(self, name: str, call: str) -> AbstractContextManager[None]:
        return nullcontext() if self._deadline is None else self._deadline.watch(f"camera {name}: {call}")

    def start(self, now_ns: int) -> None:
        """Open every camera and make frames flow. Raises CameraError."""
        for name, camera, ring in zip(self.names, self.cameras, self.frames, strict=True):
            ring.adopt()
            with self._bounded(name, "open"):
                camera.open()
            with self._bounded(name, "start"):
                camera.start(ring, now_ns)

    def step(self, now_ns: int) -> list[CameraHealth]:
        """Look after the streams; lost ones are recovered. Raises CameraError when one cannot be."""
        healths = []
        for name, camera in zip(self.names, self.cameras, strict=True):
            with self._bounded(name, "recovery"):
                healths.append(camera.tend(now_ns))
        return healths

    def close(self) -> None:
        """Give every device back."""
        for name, camera in zip(self.names, self.cameras, strict=True):
            with self._bounded(name, "close"):
                camera.close()
        self.sources.close()


def leave(stage: Stage, words: str) -> None:
    """Say why, and end the process at once: its exit handlers would hang as well."""
    stage.fail(CameraError(words))
    os._exit(CameraError.exit_code)


def tell(capture: Capture) -> None:
    """Which cameras these are, and which of them had to make do with a slower link."""
    for name, camera in zip(capture.names, capture.cameras, strict=True):
        info = camera.info
        log("capture", "camera", name=name, model=info.name, serial=info.serial, firmware=info.firmware, usb=info.usb,
            stepped_down=info.stepped_down)  # fmt: skip


def run(stage: Stage) -> None:
    """Capture until the robot stops."""
    sys.setswitchinterval(SWITCH_S)
    clock = MonotonicClock()
    board = stage.mailboxes.board
    deadline = Deadline(clock, partial(leave, stage))
    capture = Capture(stage.config, stage.mailboxes.rendered, stage.mailboxes.frames, deadline)
    seen = CameraState.ABSENT
    try:
        # Before the start: pumps and librealsense's own threads inherit it. Above inference, below control.
        stage.realtime(stage.config.realtime.priority // 4, lock_memory=False)
        deadline.guard()
        capture.start(clock.now_ns())
        tell(capture)
        next_ns = clock.now_ns()
        while not board.stopping:
            now_ns = clock.now_ns()
            health = worst(capture.step(now_ns))
            board.stamp(STAGE, now_ns, health.state)
            if health.state != seen:
                seen = health.state
                age = {"age_ms": round(health.age_ns / 1e6, 1)} if health.age_ns >= 0 else {}
                log("capture", seen.name, **age, stream=health.stream, dropped=health.dropped)
            next_ns = max(next_ns + capture.period_ns, clock.now_ns())
            clock.sleep_until_ns(next_ns)
    finally:
        capture.close()


if __name__ == "__main__":
    main("capture", run)
