"""The [arm] table of a robot file: joints, servos and the line between. See `dzedge.config` for the whole."""

import math
from typing import Annotated, Literal

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from dzedge.section import SIM, Name, Section, Text

TICKS_PER_TURN = 4096
"""Encoder resolution of STS and Dynamixel X servos."""
MODELS = {
    "feetech": ("sts3215", "sts3250"),
    "dynamixel": (
        "xl430-w250", "xl330-m077", "xl330-m288", "xm430-w350", "xm540-w270", "xc430-w150", "xc330-t181", "xc330-t288",
        "xh540-w150",
    ),
    "mcu": (),
}  # fmt: skip
"""Servo models, by the arm's driver."""
BAUD_RATES = {
    "feetech": (1_000_000, 500_000, 250_000, 128_000, 115_200),
    "dynamixel": (57_600, 115_200, 1_000_000, 2_000_000, 3_000_000, 4_000_000),
    "mcu": (9600, 57_600, 115_200, 230_400, 460_800, 500_000, 921_600, 1_000_000, 2_000_000),
}
"""[bit/s], by the arm's driver."""
RATES = {"feetech": (50, 500), "dynamixel": (50, 500), "mcu": (10, 50)}
"""Lowest and highest rate of the control loop [Hz], by the arm's driver. A microcontroller is talked to from Python,
and so is every arm beside a Modbus gripper."""
WIRE_BYTES = {"feetech": (16, 12), "dynamixel": (28, 21), "mcu": (0, 0)}
"""Bytes of a cycle that writes goals and reads positions, answers included: of the cycle, and of each servo."""
LEROBOT = "lerobot:"
"""Before an id as `arm.calibration`: LeRobot's own file of that id."""

Ticks = Annotated[int, Meta(ge=0, le=TICKS_PER_TURN - 1, description="[ticks]")]


class Joint(Section, frozen=True, omit_defaults=True):
    """[[arm.joints]], from the base outwards; a gripper is the last: 0 closed to 1 open, limits in 1/s.

    Revolute: position = direction * (ticks - zero_ticks) * 2 pi / 4096. Gripper: position =
    (ticks - closed_ticks) / (open_ticks - closed_ticks). A calibration file replaces the ticks. Joints of a
    microcontroller and a Modbus gripper have no id, model, max_torque or ticks: those live in the device.
    shadow_id: of a second servo that turns the same joint (Dynamixel: by its secondary id).
    """

    name: Name
    lower: Annotated[float, Meta(ge=-2 * math.pi, le=2 * math.pi, description="[rad], gripper [1]")]
    upper: Annotated[float, Meta(ge=-2 * math.pi, le=2 * math.pi, description="[rad], gripper [1]")]
    velocity: Annotated[float, Meta(gt=0, le=7, description="[rad/s], gripper [1/s]")]
    acceleration: Annotated[float, Meta(gt=0, le=200, description="[rad/s2], gripper [1/s2]")]
    jerk: Annotated[float, Meta(gt=0, le=20000, description="[rad/s3], gripper [1/s3]")]
    kind: Literal["revolute", "gripper"] = "revolute"
    id: Annotated[int, Meta(ge=0, le=253, description="servo id on the bus")] = -1
    model: str = ""
    max_torque: Annotated[float, Meta(gt=0, le=1, description="fraction of the servo's stall torque")] = 0.0
    zero_ticks: Ticks | None = None
    direction: Literal[1, -1] | None = None
    closed_ticks: Ticks | None = None
    open_ticks: Ticks | None = None
    shadow_id: Annotated[int, Meta(ge=0, le=252, description="servo id on the bus")] | None = None

    def __post_init__(self) -> None:
        if not self.lower < self.upper:
            raise ValueError(f"lower = {self.lower} must be below upper = {self.upper}; exchange them")
        if self.kind == "gripper" and (self.lower < 0 or self.upper > 1):
            raise ValueError(f"a gripper's limits must lie in [0, 1], not [{self.lower}, {self.upper}]")
        if self.ticked:
            self._check_ticks()

    @property
    def ticked(self) -> bool:
        """Whether the file says anything of ticks."""
        return any(v is not None for v in (self.zero_ticks, self.direction, self.closed_ticks, self.open_ticks))

    def _check_ticks(self) -> None:
        turning, gripping = (self.zero_ticks, self.direction), (self.closed_ticks, self.open_ticks)
        if self.kind == "gripper":
            if None in gripping or turning != (None, None):
                raise ValueError('kind = "gripper" needs closed_ticks and open_ticks, not zero_ticks, direction')
            if self.closed_ticks == self.open_ticks:
                raise ValueError(f"closed_ticks and open_ticks are both {self.open_ticks}; calibrate the gripper")
        elif None in turning or gripping != (None, None):
            raise ValueError('kind = "revolute" needs zero_ticks and direction, not closed_ticks, open_ticks')
        for limit in (self.lower, self.upper):
            ticks = self.zero + limit / self.scale
            if not -0.5 <= ticks < TICKS_PER_TURN - 0.5:
                raise ValueError(
                    f"the limit {limit} is at {ticks:.0f} ticks, outside [0, {TICKS_PER_TURN - 1}]; "
                    "narrow it, or centre the joint"
                )

    def check_servo(self, driver: str) -> None:
        """What a servo on a bus needs. Raises ValueError."""
        models = ", ".join(MODELS[driver])
        if self.id < 0:
            raise ValueError(f"joints: {self.name}: missing key id; add it: the servo's id on the bus")
        if self.model not in MODELS[driver]:
            raise ValueError(f'joints: {self.name}: model = "{self.model}": with driver = "{driver}" one of {models}')
        if self.max_torque <= 0:
            raise ValueError(f"joints: {self.name}: missing key max_torque; add it: a number in (0, 1]")
        if not self.ticked:
            keys = "closed_ticks and open_ticks" if self.kind == "gripper" else "zero_ticks and direction"
            raise ValueError(f'joints: {self.name}: kind = "{self.kind}" needs {keys}')
        if self.shadow_id is not None and driver != "dynamixel":
            raise ValueError(f"joints: {self.name}: shadow_id: only Dynamixel servos have a secondary id; leave it out")

    def check_elsewhere(self, where: str) -> None:
        """What a joint whose servo is none of a bus must not say. Raises ValueError."""
        said = {"id": self.id >= 0, "model": bool(self.model), "max_torque": self.max_torque > 0}
        said |= {"ticks": self.ticked, "shadow_id": self.shadow_id is not None}
        for key in (key for key, is_said in said.items() if is_said):
            raise ValueError(f"joints: {self.name}: {key}: {where} knows that itself; leave it out")

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


class Gripper(Section, frozen=True):
    """[arm.gripper]: the last joint on an adapter of its own. port: of it; slave: its Modbus address."""

    driver: Literal["modbus"]
    port: Text
    baud: Literal[9600, 19200, 38400, 57600, 115200] = 115200
    slave: Annotated[int, Meta(ge=1, le=247)] = 9


class Arm(Section, frozen=True):
    """[arm]. port: a serial device, or "sim"; rate_hz: of the control loop; calibration: optional file, or
    "lerobot:ID" for LeRobot's own of that id.

    park: pose to come to rest in before torque goes off [rad], gripper [1]. hold_ms, off_ms: of a microcontroller's
    watchdog: without a command for so long it holds, and switches torque off [ms].
    """

    driver: Literal["feetech", "dynamixel", "mcu"]
    port: Text
    baud: Annotated[int, Meta(ge=9600, le=4_000_000, description="[bit/s]")]
    rate_hz: Annotated[int, Meta(ge=10, le=500, description="[Hz]")]
    joints: Annotated[tuple[Joint, ...], Meta(min_length=1, max_length=16)]
    calibration: Text | None = None
    park: tuple[float, ...] | None = None
    hold_ms: Annotated[int, Meta(ge=20, le=1000, description="[ms]")] | None = None
    off_ms: Annotated[int, Meta(ge=21, le=60_000, description="[ms]")] | None = None
    gripper: Gripper | None = None

    def __post_init__(self) -> None:
        if any(joint.kind == "gripper" for joint in self.joints[:-1]):
            raise ValueError("joints: a gripper must be the last joint; move its table to the end")
        self._check_servos()
        self._check_names()
        self._check_link()
        self._check_watchdog()
        self._check_park()

    def _check_servos(self) -> None:
        if self.gripper is not None and (self.joints[-1].kind != "gripper" or len(self.joints) < 2):
            raise ValueError('gripper: the last joint must have kind = "gripper" and one must be before it')
        for joint in self.joints:
            if self.gripper is not None and joint is self.joints[-1]:
                joint.check_elsewhere("a Modbus gripper")
            elif self.driver == "mcu":
                joint.check_elsewhere("the microcontroller")
            else:
                joint.check_servo(self.driver)

    def _check_names(self) -> None:
        numbers = [number for joint in self.joints for number in (joint.id, joint.shadow_id)]
        ids = [str(number) for number in numbers if number not in (-1, None)]
        for key, values in (("name", [joint.name for joint in self.joints]), ("id", ids)):
            twice = sorted({value for value in values if values.count(value) > 1})
            if twice:
                raise ValueError(f"joints: {key} {', '.join(twice)} is used twice; each joint needs its own")

    def _check_link(self) -> None:
        rates = BAUD_RATES[self.driver]
        if self.baud not in rates:
            raise ValueError(f'baud = {self.baud}: with driver = "{self.driver}" one of {", ".join(map(str, rates))}')
        low, high = RATES[self.driver]
        if self.gripper is not None:
            low, high = RATES["mcu"]
        if not low <= self.rate_hz <= high:
            why = f'driver = "{self.driver}"' if self.gripper is None else "a Modbus gripper"
            raise ValueError(f"rate_hz = {self.rate_hz}: with {why} an integer in [{low}, {high}] [Hz]; change it")
        if self.simulated and (self.driver == "mcu" or self.gripper is not None):
            raise ValueError(f'port = "{SIM}": there is no simulated microcontroller or Modbus gripper; name a device')
        of_cycle, of_servo = WIRE_BYTES[self.driver]
        servos = len(self.joints) - (self.gripper is not None)
        wire = (of_cycle + of_servo * servos) * 10 / self.baud
        if wire * self.rate_hz > 0.9:
            raise ValueError(
                f"rate_hz = {self.rate_hz}: {servos} servos at {self.baud} baud need "
                f"{wire * 1e3:.2f} ms on the wire: at most {int(0.9 / wire)} Hz; lower rate_hz or raise baud"
            )

    def _check_watchdog(self) -> None:
        given = self.hold_ms is not None, self.off_ms is not None
        if self.driver == "mcu":
            if self.hold_ms is None or self.off_ms is None or self.hold_ms >= self.off_ms:
                raise ValueError(
                    f"hold_ms = {self.hold_ms}, off_ms = {self.off_ms}: a microcontroller's watchdog needs both, "
                    "hold_ms below off_ms; for example 200 and 10000"
                )
            if self.calibration is not None:
                raise ValueError("calibration: a microcontroller's lives in its sketch; leave it out")
        elif any(given):
            raise ValueError(f'hold_ms, off_ms: driver = "{self.driver}" has no such watchdog; leave them out')

    def _check_park(self) -> None:
        if self.park is None:
            return
        if len(self.park) != len(self.joints):
            raise ValueError(f"park = {list(self.park)} has {len(self.park)} positions for {len(self.joints)} joints")
        for joint, value in zip(self.joints, self.park, strict=True):
            if not joint.lower <= value <= joint.upper:
                raise ValueError(f"park: {joint.name} = {value} is outside [{joint.lower}, {joint.upper}]")

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
