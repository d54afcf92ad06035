"""The simulated robot for any other program: a serial port, and frames in a file that can be mapped.

Frames lie in a ring that `dzedge.kernels.mailbox.FrameRing` reads; the file is a memory file of this process,
opened by anyone of the same user through /proc.
"""

import os
from collections.abc import Callable

from dzedge.clock import MonotonicClock
from dzedge.config import RobotConfig
from dzedge.hardware.sim.pty_server import PtyServer
from dzedge.mailboxes import FRAME_SLOTS, Mailboxes
from dzedge.sim_loop import STEP_NS, Simulation


def serve(config: RobotConfig, seed: int, on_ready: Callable[[dict[str, object]], None]) -> None:
    """Simulate until KeyboardInterrupt. on_ready: gets port, frames, the ring's shape, the scene's task."""
    clock = MonotonicClock()
    mailboxes = Mailboxes(config, horizon=1, latents=1)
    simulation = Simulation(config, mailboxes, seed, clock.now_ns())
    camera = config.cameras[0]
    try:
        with PtyServer(simulation.robot.bus) as server:
            on_ready(
                {
                    "port": server.path,
                    "baud": config.arm.baud,
                    "frames": f"/proc/{os.getpid()}/fd/{mailboxes.memory['rendered0']}",
                    "ring": {"slots": FRAME_SLOTS, "height": camera.height, "width": camera.width},
                    "fps": camera.fps,
                    "task": simulation.robot.default_instruction(seed),
                }
            )
            while True:
                now_ns = clock.now_ns()
                simulation.step(now_ns)
                clock.sleep_until_ns(now_ns + STEP_NS)
    finally:
        mailboxes.close()
