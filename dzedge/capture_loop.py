"""capture: owns every librealsense object and writes frames into the shared rings.

An abort inside librealsense must not take the model or the arm along: this process dies alone and is started anew.
Runs as `python -I -m dzedge.capture_loop`, started by the supervisor.
"""

import sys
from collections.abc import Sequence

from dzedge.clock import MonotonicClock
from dzedge.config import RobotConfig
from dzedge.hardware.camera import Camera, CameraHealth, CameraState
from dzedge.hardware.realsense import DeviceProvider, LiveDevices, RealSense
from dzedge.hardware.sim.software_camera import SoftwareCamera
from dzedge.kernels.mailbox import FrameRing
from dzedge.mailboxes import STAGES
from dzedge.stage import Stage, log, main

STAGE = STAGES.index("capture")
PERIOD_NS = 50_000_000
"""How often the cameras are looked after; frames do not wait for it."""
SWITCH_S = 0.0005
"""Python threads give way after this: librealsense's own threads wait on one (measured, facts of the driver)."""


class Capture:
    """All cameras of the robot. The pumps move frames by themselves; `step` sees to the health of the streams.

    rendered: where the simulator puts the frames of each simulated camera; frames: where each camera's frames go.
    """

    def __init__(self, config: RobotConfig, rendered: Sequence[FrameRing], frames: Sequence[FrameRing]) -> None:
        self.frames = frames
        simulated = iter(rendered)
        live: LiveDevices | None = None
        self.cameras: list[Camera] = []
        for camera in config.cameras:
            provider: DeviceProvider
            if camera.simulated:
                provider = SoftwareCamera(next(simulated), fps=camera.fps, serial=camera.serial)
            else:
                provider = live = live or LiveDevices()
            self.cameras.append(RealSense(provider, camera))

    def start(self, now_ns: int) -> None:
        """Open every camera and make frames flow. Raises CameraError."""
        for camera, ring in zip(self.cameras, self.frames, strict=True):
            ring.adopt()
            camera.open()
            camera.start(ring, now_ns)

    def step(self, now_ns: int) -> list[CameraHealth]:
        """Look after the streams; lost ones are recovered. Raises CameraError when one cannot be."""
        return [camera.tend(now_ns) for camera in self.cameras]

    def close(self) -> None:
        """Give every device back."""
        for camera in self.cameras:
            camera.close()


def run(stage: Stage) -> None:
    """Capture until the robot stops."""
    sys.setswitchinterval(SWITCH_S)
    clock = MonotonicClock()
    board = stage.mailboxes.board
    capture = Capture(stage.config, stage.mailboxes.rendered, stage.mailboxes.frames)
    seen = CameraState.ABSENT
    try:
        # Before the start: pumps and librealsense's own threads inherit it. Above inference, below control.
        stage.realtime(stage.config.realtime.priority // 4, lock_memory=False)
        capture.start(clock.now_ns())
        next_ns = clock.now_ns()
        while not board.stopping:
            now_ns = clock.now_ns()
            worst = max(capture.step(now_ns), key=lambda health: health.state)
            board.stamp(STAGE, now_ns, worst.state)
            if worst.state != seen:
                seen = worst.state
                age = {"age_ms": round(worst.age_ns / 1e6, 1)} if worst.age_ns >= 0 else {}
                log("capture", seen.name, **age, dropped=worst.dropped)
            next_ns = max(next_ns + PERIOD_NS, clock.now_ns())
            clock.sleep_until_ns(next_ns)
    finally:
        capture.close()


if __name__ == "__main__":
    main("capture", run)
