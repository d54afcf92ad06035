"""The simulated robot for any other program: a serial port, and frames in a file that can be mapped.

Frames lie in a ring that `dzedge.kernels.mailbox.FrameRing` reads; the file is a memory file of this process,
opened by anyone of the same user through /proc. What can be made to go wrong with the port: `hardware.sim.emulator`.
"""

import os
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from dzedge import realtime
from dzedge.clock import MonotonicClock
from dzedge.config import RobotConfig
from dzedge.errors import UsageError
from dzedge.hardware.sim.emulator import PROTOCOLS, Emulator, make_bus, make_servos
from dzedge.hardware.sim.servo_bus import ServoBus
from dzedge.hardware.sim.servo_physics import ServoPhysics
from dzedge.mailboxes import FRAME_SLOTS, Mailboxes
from dzedge.sim_loop import STEP_NS, SWITCH_S, Simulation

GRAVITY = (0.0, 0.13, 0.1, 0.05)
"""Share of stall torque that an arm's weight asks of its first joints, where no physics engine says it: not so much
that it falls without torque."""
IDLE_NS = 200_000_000
OnReady = Callable[[dict[str, object]], None]


def serve(
    config: RobotConfig,
    seed: int,
    on_ready: OnReady,
    *,
    protocol: str | None = None,
    link: Path | None = None,
    socket: Path | None = None,
) -> None:
    """Simulate until KeyboardInterrupt. on_ready: gets port, protocol, control socket; where the whole robot is
    simulated, also frames, the ring's shape and the scene's task. Of a robot with real devices the arm alone is
    served, on physics that knows no table.

    protocol: "feetech" or "dynamixel", None: the robot file's; link: a stable name for the port; socket: of control,
    None: in a folder of its own. UsageError where that arm cannot be simulated.
    """
    spoken = protocol or config.arm.driver
    if spoken not in PROTOCOLS:
        raise UsageError(f"arm.driver = {spoken!r}: a servo bus speaks {' or '.join(PROTOCOLS)}; give --protocol")
    sys.setswitchinterval(SWITCH_S)
    whole = config.arm.simulated and all(camera.simulated for camera in config.cameras)
    try:
        if whole:
            _serve_robot(config, seed, on_ready, spoken, link, socket)
        else:
            _serve_arm(config, seed, on_ready, spoken, link, socket)
    except ValueError as error:
        raise UsageError(str(error)) from error


def _be_hardware(config: RobotConfig) -> None:
    """Nothing on this machine can delay a servo, where that is granted."""
    realtime.claim(config.realtime.priority // 2, lock_memory=False)


def _told(emulator: Emulator, config: RobotConfig) -> dict[str, object]:
    return {
        "port": emulator.port,
        "protocol": emulator.bus.protocol,
        "baud": config.arm.baud,
        "ids": [servo.id for servo in emulator.bus.servos],
        "socket": str(emulator.socket),
    }


def _serve_robot(
    config: RobotConfig, seed: int, on_ready: OnReady, protocol: str, link: Path | None, socket: Path | None
) -> None:
    clock = MonotonicClock()
    camera = config.cameras[0]
    with closing(Mailboxes(config, horizon=1, latents=1)) as mailboxes:
        simulation = Simulation(config, mailboxes, seed, clock.now_ns(), protocol=protocol, protect=True)
        _be_hardware(config)
        with Emulator(simulation.robot.bus, link=link, socket=socket) as emulator:
            on_ready(
                _told(emulator, config)
                | {
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


def _serve_arm(
    config: RobotConfig, seed: int, on_ready: OnReady, protocol: str, link: Path | None, socket: Path | None
) -> None:
    clock = MonotonicClock()
    bus = arm_bus(config, seed, protocol)
    _be_hardware(config)
    with Emulator(bus, link=link, socket=socket) as emulator:
        on_ready(_told(emulator, config))
        while True:
            clock.sleep_until_ns(clock.now_ns() + IDLE_NS)


def arm_bus(config: RobotConfig, seed: int, protocol: str, **line: Any) -> ServoBus:
    """The servos of a robot file, shadows behind the others, in the middle of their ranges; line: arguments of the bus.
    ValueError where they do not know its rate."""
    joints = [joint for joint in config.arm.joints if joint.id >= 0]  # others are on an adapter of their own
    if not joints:
        raise ValueError("no servo on this arm's bus: nothing to serve")
    members = [(joint.id, joint) for joint in joints]
    members += [(joint.shadow_id, joint) for joint in joints if joint.shadow_id is not None]
    places = [round(joint.zero + 0.5 * (joint.lower + joint.upper) / joint.scale) for _, joint in members]
    ids, models = [servo for servo, _ in members], [joint.model for _, joint in members]
    servos = make_servos(protocol, ids, places, seed, models, config.arm.baud)
    return make_bus(
        protocol, servos, baud=config.arm.baud, seed=seed, advance=ServoPhysics(servos, GRAVITY), **line
    )
