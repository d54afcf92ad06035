"""The robot file: one strict TOML document says what the robot is and what it may do.

Unknown keys are refused, limits have no defaults, nothing is ever guessed. The records are frozen; every path
in them is absolute, resolved against the folder of the file. Errors are `ConfigError` and name the file, the
key, the value, the allowed interval and what to do (worded by `dzedge.strict`).
"""

import math
import os
import sys
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from dzedge import manifest, strict
from dzedge.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

TICKS_PER_TURN = 4096
"""Encoder resolution of an STS3215."""
SIM = "sim"
"""As `arm.port` or a camera's `serial`: the simulated robot instead of a device."""
SIM_CAMERA = (160, 120)
"""Width and height of the simulated camera [pixels]."""
SAMPLER = f"^(auto|{manifest.SAMPLER})$"
SAMPLERS = f"auto, {manifest.SAMPLERS}"
Precision = Literal["auto", manifest.Precision]

Name = Annotated[str, Meta(pattern=r"^[a-z][a-z0-9_]{0,31}$", description="a-z, 0-9, _; 1 to 32 characters")]
Text = Annotated[str, Meta(min_length=1, max_length=200)]
Ticks = Annotated[int, Meta(ge=0, le=TICKS_PER_TURN - 1, description="[ticks]")]
Pixels = Annotated[int, Meta(ge=0, le=4096, description="[pixels]")]
Seed = Annotated[int, Meta(ge=0, le=2**32 - 1)]


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A table of the robot file."""


class Robot(Section, frozen=True):
    """[robot]. autostart: whether a booted robot moves by itself ("run") or waits ("hold")."""

    name: Name
    autostart: Literal["hold", "run"]


class Joint(Section, frozen=True):
    """[[arm.joints]], from the base outwards; a gripper is the last: 0 closed to 1 open, limits in 1/s.

    Revolute: position = direction * (ticks - zero_ticks) * 2 pi / 4096. Gripper: position =
    (ticks - closed_ticks) / (open_ticks - closed_ticks). A calibration file replaces the ticks.
    """

    name: Name
    id: Annotated[int, Meta(ge=0, le=253, description="servo id on the bus")]
    model: Literal["sts3215"]
    lower: Annotated[float, Meta(ge=-2 * math.pi, le=2 * math.pi, description="[rad], gripper [1]")]
    upper: Annotated[float, Meta(ge=-2 * math.pi, le=2 * math.pi, description="[rad], gripper [1]")]
    velocity: Annotated[float, Meta(gt=0, le=7, description="[rad/s], gripper [1/s]")]
    acceleration: Annotated[float, Meta(gt=0, le=200, description="[rad/s2], gripper [1/s2]")]
    jerk: Annotated[float, Meta(gt=0, le=20000, description="[rad/s3], gripper [1/s3]")]
    max_torque: Annotated[float, Meta(gt=0, le=1, description="fraction of the servo's stall torque")]
    kind: Literal["revolute", "gripper"] = "revolute"
    zero_ticks: Ticks | None = None
    direction: Literal[1, -1] | None = None
    closed_ticks: Ticks | None = None
    open_ticks: Ticks | None = None

    def __post_init__(self) -> None:
        if not self.lower < self.upper:
            raise ValueError(f"lower = {self.lower} must be below upper = {self.upper}; exchange them")
        turning, gripping = (self.zero_ticks, self.direction), (self.closed_ticks, self.open_ticks)
        if self.kind == "gripper":
            if None in gripping or turning != (None, None):
                raise ValueError('kind = "gripper" needs closed_ticks and open_ticks, not zero_ticks, direction')
            if self.closed_ticks == self.open_ticks:
                raise ValueError(f"closed_ticks and open_ticks are both {self.open_ticks}; calibrate the gripper")
            if self.lower < 0 or self.upper > 1:
                raise ValueError(f"a gripper's limits must lie in [0, 1], not [{self.lower}, {self.upper}]")
        elif None in turning or gripping != (None, None):
            raise ValueError('kind = "revolute" needs zero_ticks and direction, not closed_ticks, open_ticks')
        for limit in (self.lower, self.upper):
            ticks = self.zero + limit / self.scale
            if not -0.5 <= ticks < TICKS_PER_TURN - 0.5:
                raise ValueError(
                    f"the limit {limit} is at {ticks:.0f} ticks, outside [0, {TICKS_PER_TURN - 1}]; "
                    "narrow it, or centre the joint"
                )

    @property
    def zero(self) -> int:
        """Ticks at position 0."""
        zero = self.closed_ticks if self.kind == "gripper" else self.zero_ticks
        assert zero is not None
        return zero

    @property
    def scale(self) -> float:
        """Position change of one tick, signed: [rad/tick], gripper [1/tick]."""
        if self.closed_ticks is not None and self.open_ticks is not None:
            return 1.0 / (self.open_ticks - self.closed_ticks)
        return (self.direction or 1) * 2 * math.pi / TICKS_PER_TURN


class Arm(Section, frozen=True):
    """[arm]. port: a serial device, or "sim"; rate_hz: of the control loop; calibration: optional file."""

    driver: Literal["feetech"]
    port: Text
    baud: Literal[1000000, 500000, 250000, 128000, 115200]
    rate_hz: Annotated[int, Meta(ge=50, le=500, description="[Hz]")]
    joints: Annotated[tuple[Joint, ...], Meta(min_length=1, max_length=16)]
    calibration: Text | None = None

    def __post_init__(self) -> None:
        for key in ("name", "id"):
            values = [getattr(joint, key) for joint in self.joints]
            twice = sorted({str(v) for v in values if values.count(v) > 1})
            if twice:
                raise ValueError(f"joints: {key} {', '.join(twice)} is used twice; each joint needs its own")
        if any(joint.kind == "gripper" for joint in self.joints[:-1]):
            raise ValueError("joints: a gripper must be the last joint; move its table to the end")
        # Sync write and sync read of one 2-byte register each: 16 + 12 n bytes of 10 bits, answers included.
        wire = (16 + 12 * len(self.joints)) * 10 / self.baud
        if wire * self.rate_hz > 0.9:
            raise ValueError(
                f"rate_hz = {self.rate_hz}: {len(self.joints)} servos at {self.baud} baud need "
                f"{wire * 1e3:.2f} ms on the wire: at most {int(0.9 / wire)} Hz; lower rate_hz or raise baud"
            )

    @property
    def simulated(self) -> bool:
        return self.port == SIM

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(joint.name for joint in self.joints)

    def limits(self) -> NDArray[np.float64]:
        """Shape (5, J), read-only; rows velocity, acceleration, jerk, lower, upper (the kernels' order)."""
        rows = ("velocity", "acceleration", "jerk", "lower", "upper")
        limits = np.array([[getattr(joint, row) for joint in self.joints] for row in rows], dtype=np.float64)
        limits.setflags(write=False)
        return limits


class Camera(Section, frozen=True):
    """[[cameras]], the policy's first. serial: of the device, or "sim"; crop: [left, top, width, height]."""

    name: Name
    driver: Literal["realsense"]
    serial: Text
    width: Annotated[int, Meta(ge=32, le=1920, description="[pixels]")]
    height: Annotated[int, Meta(ge=32, le=1080, description="[pixels]")]
    fps: Annotated[int, Meta(ge=1, le=90, description="[Hz]")]
    format: Literal["rgb8"]
    crop: tuple[Pixels, Pixels, Pixels, Pixels] | None = None

    def __post_init__(self) -> None:
        if self.simulated and (self.width, self.height) != SIM_CAMERA:
            wanted = f"{SIM_CAMERA[0]}x{SIM_CAMERA[1]}"
            raise ValueError(f"the simulated camera is {wanted}, not {self.width}x{self.height}; write {wanted}")
        if self.crop is None:
            return
        left, top, width, height = self.crop
        if min(width, height) < 1 or left + width > self.width or top + height > self.height:
            raise ValueError(f"crop = {list(self.crop)} must lie inside the {self.width}x{self.height} image")

    @property
    def simulated(self) -> bool:
        return self.serial == SIM


class Policy(Section, frozen=True):
    """[policy]. bundle: folder NAME.dzp; sampler "auto": the bundle's own; provider: what ONNX Runtime must run the
    graphs by, all of them; precision "auto": the best that is right on this provider and processor; threads 0:
    cores - 1; cuda_graph: capture each run and replay it; cache: keep optimized graphs, and TensorRT's engines,
    between starts; trusted_keys: public key files beside the packaged ones; allow_test_key: only for a simulated arm.
    """

    bundle: Text
    sampler: Annotated[str, Meta(pattern=SAMPLER, description=SAMPLERS)]
    rate_hz: Annotated[float, Meta(ge=2, le=15, description="[Hz]")]
    provider: Literal["cpu", "cuda", "tensorrt"]
    precision: Precision
    threads: Annotated[int, Meta(ge=0, le=64)]
    cuda_graph: bool
    cache: bool
    allow_test_key: bool
    trusted_keys: tuple[Text, ...] = ()

    def __post_init__(self) -> None:
        if self.cuda_graph and self.provider == "cpu":
            raise ValueError('cuda_graph = true with provider = "cpu": a CPU has none; set it to false')


class Safety(Section, frozen=True):
    """[safety]: bounds of the gate; what lies outside is refused, never clamped.

    Following error: |measured - commanded| <= following_error + following_time_s * |commanded velocity|,
    refused when violated for following_ms.
    """

    observation_age_ms: Annotated[int, Meta(ge=50, le=500, description="[ms] since capture")]
    following_error: Annotated[float, Meta(gt=0, le=0.5, description="[rad]")]
    following_time_s: Annotated[float, Meta(ge=0, le=0.5, description="[s]")]
    following_ms: Annotated[int, Meta(ge=20, le=500, description="[ms]")]
    soft_margin: Annotated[float, Meta(ge=0, le=0.2, description="[rad] inside the joint limits")]
    arming_error: Annotated[float, Meta(gt=0, le=0.1, description="[rad] command to measured when arming")]
    bus_fault_ms: Annotated[int, Meta(ge=50, le=1000, description="[ms] without a whole answer")]
    hold_timeout_s: Annotated[float, Meta(ge=1, le=3600, description="[s] of HOLD before stop category 1")]
    temperature: Annotated[float, Meta(ge=40, le=75, description="[degrees Celsius], highest")]
    voltage_low: Annotated[float, Meta(ge=4, le=14, description="[V]")]
    voltage_high: Annotated[float, Meta(ge=4, le=14, description="[V]")]

    def __post_init__(self) -> None:
        if not self.voltage_low < self.voltage_high:
            raise ValueError(f"voltage_low = {self.voltage_low} must be below voltage_high = {self.voltage_high}")


class Realtime(Section, frozen=True):
    """[realtime]. priority: SCHED_FIFO of the control loop, 0 = ordinary; require: refuse to run without."""

    priority: Annotated[int, Meta(ge=0, le=95)]
    require: bool


class Sim(Section, frozen=True):
    """[sim]: the simulated scene. camera_noise: standard deviation [8-bit counts]; cubes: how many of six."""

    seed: Seed = 0
    cubes: Annotated[int, Meta(ge=1, le=6)] = 3
    camera_noise: Annotated[float, Meta(ge=0, le=50, description="[8-bit counts]")] = 1.0


class Task(Section, frozen=True):
    """[task]. instruction: what to do when nobody asks for another thing; timeout_s: one attempt [s]."""

    timeout_s: Annotated[float, Meta(gt=0, le=3600, description="[s]")]
    instruction: Text | None = None


class RobotConfig(Section, frozen=True):
    """A whole robot file."""

    robot: Robot
    arm: Arm
    cameras: Annotated[tuple[Camera, ...], Meta(min_length=1, max_length=8)]
    policy: Policy
    safety: Safety
    realtime: Realtime
    task: Task
    sim: Sim = Sim()

    def __post_init__(self) -> None:
        if self.policy.allow_test_key and not self.arm.simulated:
            raise ValueError(
                f"policy.allow_test_key = true with arm.port = {self.arm.port!r}: the test key is public; "
                'set it to false and sign the bundle with your own key, or set arm.port = "sim"'
            )
        for camera in self.cameras:
            if camera.simulated and not self.arm.simulated:
                raise ValueError(
                    f'camera {camera.name} has serial = "{SIM}", but arm.port = {self.arm.port!r} is real: '
                    "no simulator draws its frames; give the serial of a real camera"
                )
        for joint in self.arm.joints:
            if joint.kind == "revolute" and joint.upper - joint.lower <= 2 * self.safety.soft_margin:
                raise ValueError(
                    f"safety.soft_margin = {self.safety.soft_margin} on both sides leaves nothing of {joint.name}'s "
                    f"[{joint.lower}, {joint.upper}]; make it smaller"
                )
        names = [camera.name for camera in self.cameras]
        if len(set(names)) != len(names):
            raise ValueError(f"cameras: names {names} must differ; rename one")


def default_path() -> Path:
    """The robot file of the simulated arm, as installed with the package."""
    return Path(str(files("dzedge.robots") / "sim.toml"))


def parse(text: str, source: str) -> RobotConfig:
    """The robot file `text`; `source` names it in errors. Paths stay as written. Raises ConfigError."""
    try:
        document: dict[str, Any] = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{source}: not a TOML document: {error}; correct that line") from error
    return strict.convert(document, RobotConfig, source, ConfigError)


def load(path: str | Path) -> RobotConfig:
    """The robot file at `path`, its own paths made absolute. Raises ConfigError."""
    file = Path(path).expanduser()
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: cannot read the robot file: {error}; check the path") from error
    config = parse(text, str(file))
    folder = file.resolve().parent

    def absolute(name: str) -> str:
        return os.path.normpath(folder / Path(name).expanduser())

    replace = msgspec.structs.replace
    keys = tuple(absolute(key) for key in config.policy.trusted_keys)
    policy = replace(config.policy, bundle=absolute(config.policy.bundle), trusted_keys=keys)
    arm = config.arm
    if arm.calibration is not None:
        arm = replace(arm, calibration=absolute(arm.calibration))
    return replace(config, policy=policy, arm=arm)
