"""The robot file: one strict TOML document says what the robot is and what it may do.

Unknown keys are refused, limits have no defaults, nothing is ever guessed. The records are frozen; every path
in them is absolute, resolved against the folder of the file. Errors are `ConfigError` and name the file, the
key, the value, the allowed interval and what to do (worded by `dzedge.strict`).
"""

import os
import sys
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from dzedge import manifest, strict
from dzedge.arm_config import LEROBOT, Arm
from dzedge.arm_config import Joint as Joint
from dzedge.camera_config import Camera
from dzedge.errors import ConfigError
from dzedge.section import SIM, Name, Section, Text

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SAMPLER = f"^(auto|{manifest.SAMPLER})$"
SAMPLERS = f"auto, {manifest.SAMPLERS}"
Precision = Literal["auto", manifest.Precision]

Seed = Annotated[int, Meta(ge=0, le=2**32 - 1)]


class Robot(Section, frozen=True):
    """[robot]. autostart: whether a booted robot moves by itself ("run") or waits ("hold")."""

    name: Name
    autostart: Literal["hold", "run"]


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
                    f'camera {camera.name} is simulated (serial = "{SIM}"), but arm.port = {self.arm.port!r} is real: '
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
        why = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"{file}: cannot read the robot file: {why}; check the path") from error
    config = parse(text, str(file))
    folder = file.resolve().parent

    def absolute(name: str) -> str:
        return os.path.normpath(folder / Path(name).expanduser())

    replace = msgspec.structs.replace
    keys = tuple(absolute(key) for key in config.policy.trusted_keys)
    policy = replace(config.policy, bundle=absolute(config.policy.bundle), trusted_keys=keys)
    arm = config.arm
    if arm.calibration is not None and not arm.calibration.startswith(LEROBOT):
        arm = replace(arm, calibration=absolute(arm.calibration))
    cameras = tuple(
        replace(camera, path=absolute(camera.path)) if camera.path is not None else camera for camera in config.cameras
    )
    return replace(config, policy=policy, arm=arm, cameras=cameras)
