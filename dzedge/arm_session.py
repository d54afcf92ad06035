"""What the `dzedge arm` commands share: the arm of a robot file on a port, its servos, and how far set-up has come."""

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from dzedge import robot
from dzedge.arm_config import LEROBOT
from dzedge.clock import NS, MonotonicClock
from dzedge.config import RobotConfig
from dzedge.errors import BusError, ConfigError, DeviceError, DzedgeError, SafetyError, UsageError
from dzedge.graph_cache import state_folder
from dzedge.hardware import make_writable, without_gripper
from dzedge.hardware.arm import StopCategory
from dzedge.hardware.calibration import JointCalibration, read_joints
from dzedge.hardware.calibrator import Calibrator, Span
from dzedge.hardware.lerobot import ROBOTS, find_lerobot, folder, locate
from dzedge.hardware.motion import Motion
from dzedge.hardware.serial_port import list_ports
from dzedge.hardware.servo_tool import ToolBus, open_bus
from dzedge.types import JointState

Choice = Callable[[NDArray[np.float64]], NDArray[np.float64]]
"""Pose, Shape (J,), [rad], gripper [1], to the pose that is wanted."""


@dataclass
class Progress:
    """How far a robot's set-up and calibration have come, kept between commands. setup: by servo, what it became;
    offsets, spans: of the calibration that is under way."""

    file: Path
    setup: dict[str, dict[str, Any]] = field(default_factory=dict)
    offsets: dict[str, int] = field(default_factory=dict)
    spans: dict[str, Span] = field(default_factory=dict)

    @classmethod
    def of(cls, name: str) -> "Progress":
        """Of a robot by name. ConfigError for a file that is damaged."""
        progress = cls(state_folder() / "arms" / f"{name}.json")
        if not progress.file.is_file():
            return progress
        try:
            document = json.loads(progress.file.read_text(encoding="utf-8"))
            progress.setup, progress.offsets = dict(document["setup"]), dict(document["offsets"])
            progress.spans = {name: Span(*ends) for name, ends in document["spans"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f"{progress.file} cannot be read: {error}; remove it and begin again") from error
        return progress

    def save(self) -> None:
        """Write it, whole or not at all. ConfigError where that fails."""
        spans = {name: [span.low, span.high] for name, span in self.spans.items()}
        document = {"setup": self.setup, "offsets": self.offsets, "spans": spans}
        written = self.file.with_suffix(".new")
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            written.write_text(json.dumps(document), encoding="utf-8")
            written.replace(self.file)
        except OSError as error:
            raise ConfigError(f"{self.file} cannot be written: {error.strerror}; set XDG_STATE_HOME") from error


class Site:
    """One robot file's arm on its port, or on `port`. UsageError for a simulated arm without a port."""

    def __init__(self, path: Path | None, port: str | None) -> None:
        self.config: RobotConfig = robot.read(path)
        self.clock = MonotonicClock()
        if port is None and self.config.arm.simulated:
            raise UsageError(
                f"{self.config.robot.name} is simulated: start `dzedge sim` and name the path that it tells with "
                f"--port, or name a robot file; ports of this machine: {', '.join(list_ports()) or 'none'}"
            )
        self.port = port or self.config.arm.port
        self.progress = Progress.of(self.config.robot.name)

    # ---- servos

    @property
    def driver(self) -> str:
        return self.config.arm.driver

    def need_servos(self, what: str) -> None:
        """Raises UsageError for an arm without servos on a bus."""
        if self.driver == "mcu":
            raise UsageError(f"{what}: {self.config.robot.name} is behind a microcontroller; its sketch does that")

    def opener(self, driver: str, baud: int) -> ToolBus:
        """As `set_up.Opener`."""
        return open_bus(driver, self.port, baud)

    @contextmanager
    def servos(self) -> Iterator[Calibrator]:
        """The arm's servos on an open bus; nothing is written."""
        first = self.config.arm.joints[0].id
        bus = open_bus(self.driver, self.port, self.config.arm.baud, first=max(first, 0))
        try:
            yield Calibrator(bus, self.config.arm)
        finally:
            bus.port.close()

    # ---- calibration

    def joints(self) -> tuple[JointCalibration, ...] | None:
        """Of the servos, by the calibration file or the robot file; None for an arm without ticks."""
        table = self.config.arm
        if self.driver == "mcu":
            return None
        return read_joints(table if table.gripper is None else without_gripper(table))

    def calibration_file(self) -> Path:
        """The file that exists: the robot file's, else LeRobot's of the robot's name. ConfigError for none."""
        named = self.config.arm.calibration
        if named is not None:
            return Path(locate(named, self.driver))
        found = find_lerobot(self.config.robot.name, self.driver)
        if found is None:
            raise ConfigError(
                f"{self.config.robot.name} has no calibration: name it with arm.calibration, or make it with "
                "`dzedge arm calibrate`"
            )
        return found

    def calibration_target(self) -> Path:
        """Where a new one goes: to the robot file's, else to where LeRobot would keep it."""
        named = self.config.arm.calibration
        if named is not None and not named.startswith(LEROBOT):
            return Path(named)
        name = self.config.robot.name if named is None else named.removeprefix(LEROBOT)
        return folder() / ROBOTS[self.driver][0] / f"{name}.json"

    # ---- motion

    def drive(self, choose: Choice, speed: float, *, release: bool) -> tuple[NDArray[np.float64], JointState]:
        """Move from where the arm is held to `choose(pose)`; then torque off, or hold. The command, and the joints.

        Torque comes on without a jump, and only for a target within the limits. Whatever goes wrong then, it holds, and
        the error says so. DeviceError, SafetyError as `Motion.go`; DzedgeError where it is interrupted by Ctrl-C.
        """
        arming: list[bool] = []
        try:
            return self._drive(choose, speed, release, arming)
        except KeyboardInterrupt:
            raise DzedgeError(f"interrupted before it was done; {self._torque_now()}") from None
        except DzedgeError as error:
            words = [part for part in (self._torque_now() if arming else "", self._unfinished(error)) if part]
            raise type(error)("; ".join([str(error), *words])) from error

    def _drive(
        self, choose: Choice, speed: float, release: bool, arming: list[bool]
    ) -> tuple[NDArray[np.float64], JointState]:
        """arming: gets an entry before torque may come on."""
        arm = make_writable(self.config, self.port, self.clock)
        try:
            arm.open()
            arm.configure()
            measured = arm.read().positions
            Motion(arm, self.config, measured, self.clock, speed).check(choose(measured))
            arming.append(True)
            motion = Motion(arm, self.config, arm.activate().positions, self.clock, speed)
            try:
                arrived = motion.go(choose(motion.position))
            except BaseException:
                with contextlib.suppress(DeviceError):  # gone: the servos hold their last goal
                    arm.deactivate(StopCategory.HOLD)
                raise
            arm.deactivate(StopCategory.STOP_THEN_OFF if release else StopCategory.HOLD)
            return motion.position, arrived
        finally:
            arm.close()

    def _torque_now(self) -> str:
        """What the arm does after a motion that failed, by what its servos say themselves."""
        if self.driver == "mcu":
            return "torque may be on until the device's watchdog ends it: keep away, or cut the power"
        torque: dict[str, bool | None] = {}
        try:
            with self.servos() as servos:
                for name, servo in servos.servos.items():
                    torque[name] = None
                    with contextlib.suppress(BusError):
                        torque[name] = servo.get("torque_enable") == 1
        except DeviceError:
            return "the port is gone: torque may be on, cut the power before you touch it"
        on, off, unknown = ([name for name, is_on in torque.items() if is_on is key] for key in (True, False, None))
        if not unknown and not on:
            return "torque is off"
        parts = []
        if on:
            where = "" if len(on) == len(torque) else f" ({', '.join(on)})"
            parts.append(f"torque is on and the arm holds where it is{where}; `dzedge arm release` lets it go")
        if off:
            parts.append(f"torque is off: {', '.join(off)}")
        if unknown:
            parts.append(f"torque may be on, cut the power before you touch it: {', '.join(unknown)} does not answer")
        return "; ".join(parts)

    def _unfinished(self, error: DzedgeError) -> str:
        """Why an arm refuses in the midst of a calibration: ticks and limits do not fit each other yet."""
        about = isinstance(error, (SafetyError, ConfigError)) or "calibrat" in str(error)
        if not about or not self.progress.offsets:
            return ""
        return (
            "the calibration of this robot is unfinished: `dzedge arm calibrate --step range`, then "
            "`dzedge arm calibrate --step write`"
        )

    def release(self) -> None:
        """Torque off, at once, of everything; the calibration does not matter. DeviceError names what did not obey."""
        bare = msgspec.structs.replace(self.config.arm, calibration=None)
        arm = make_writable(msgspec.structs.replace(self.config, arm=bare), self.port, self.clock)
        arm.open()
        try:
            arm.deactivate(StopCategory.OFF)
        finally:
            arm.close()

    def target(self, pose: NDArray[np.float64], joint: str, position: float) -> NDArray[np.float64]:
        """`pose` with one joint elsewhere. UsageError for a joint that it does not have."""
        names = self.config.arm.names
        if joint not in names:
            raise UsageError(f"joint {joint!r}: {self.config.robot.name} has {', '.join(names)}")
        moved = pose.copy()
        moved[names.index(joint)] = position
        return moved

    def park_pose(self) -> NDArray[np.float64]:
        """The robot file's. UsageError where it has none."""
        pose = self.config.arm.park
        if pose is None:
            raise UsageError(
                f"{self.config.robot.name} has no arm.park: a position for each of "
                f"{', '.join(self.config.arm.names)}; lay the arm down by hand, and take them from `dzedge arm read`"
            )
        return np.array(pose, np.float64)


def named(names: tuple[str, ...], values: NDArray[np.float64]) -> Mapping[str, float]:
    """Positions by joint, rounded for a document."""
    return {name: round(float(value), 5) for name, value in zip(names, values, strict=True)}


PATIENCE_NS = 600 * NS
"""How long a live table waits for a port that was unplugged."""
