"""Calibrating an arm by hand: middle, ranges, registers; and comparing a calibration file with the servos.

As LeRobot does it, so that the files are each other's: every joint stands in the middle of its way, and its offset
register makes that MIDDLE ticks; then every joint is moved through its whole way and the ends are noted. Torque is off
all the while.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

from dzedge.arm_config import Arm
from dzedge.errors import BusError, DzedgeError
from dzedge.hardware.control_table import NO_SECONDARY, TICKS_PER_TURN, table
from dzedge.hardware.lerobot import MIDDLE, RESOLUTION, LeRobotJoint
from dzedge.hardware.servo_tool import ServoTool, ToolBus

EXTENDED = 4
"""Operating mode of a Dynamixel in which an offset of more than a quarter turn has an effect."""
MULTI_TURN = 16
"""Bit of a Feetech's `phase` that makes it count turns."""
FEETECH_OFFSET = 2047
"""An STS servo's largest offset: its register has 11 bits and a sign."""
NEAR_TICKS = 24
"""A joint that is held by hand moves by this much between two reads."""
NARROW_TICKS = 200
"""A range of less than 18 degrees: the joint was hardly moved."""


@dataclass(frozen=True, slots=True)
class Span:
    """How far a joint was moved [ticks]."""

    low: int
    high: int


class Calibrator:
    """The servos of an arm on an open bus. A joint's shadow servo, which follows it by its secondary id, gets the same
    middle and range; its offset is its own, and in no file."""

    def __init__(self, bus: ToolBus, arm: Arm) -> None:
        self.driver = arm.driver
        self.servos = {
            joint.name: ServoTool(bus, joint.id, table(joint.model)) for joint in arm.joints if joint.id >= 0
        }
        self.shadows = {
            joint.name: ServoTool(bus, joint.shadow_id, table(joint.model))
            for joint in arm.joints
            if joint.shadow_id is not None
        }

    @property
    def everything(self) -> tuple[ServoTool, ...]:
        """Every servo, shadows first."""
        return (*self.shadows.values(), *self.servos.values())

    def torque_off(self) -> None:
        """Every servo without torque, a shadow too. BusError names all that did not obey."""
        failed = []
        for servo in self.everything:
            try:
                servo.set("torque_enable", 0)
            except BusError as error:
                failed.append(str(error))
        if failed:
            raise BusError("torque may still be on, cut the power: " + "; ".join(failed))

    def positions(self, joints: Iterable[str]) -> dict[str, int]:
        """[ticks], offsets applied by the servos; of a Dynamixel within half a turn of MIDDLE: one that counts turns
        may begin with any of them when it is switched on."""
        return {name: self._position(self.servos[name]) for name in joints}

    def _position(self, servo: ServoTool) -> int:
        ticks = servo.get("present_position")
        return ticks if servo.feetech else nearest_turn(ticks, MIDDLE)

    # ---- step 1: the middle

    def centre(self) -> dict[str, int]:
        """Make MIDDLE of where the joints stand; their offsets [ticks]. Limits are opened, or a servo could not leave
        them. BusError where a servo does not then say MIDDLE."""
        with self._apart():
            for shadow in self.shadows.values():
                self._centre(shadow)
            return {name: self._centre(servo) for name, servo in self.servos.items()}

    @contextmanager
    def _apart(self) -> Iterator[None]:
        """Shadows by their own ids alone: what is written to a joint's servo, its offset too, they would take over."""
        try:
            for shadow in self.shadows.values():
                shadow.set_eeprom("secondary_id", NO_SECONDARY)
            yield
        finally:
            for name, shadow in self.shadows.items():
                shadow.set_eeprom("secondary_id", self.servos[name].id)

    def _centre(self, servo: ServoTool) -> int:
        if servo.feetech:
            servo.set_eeprom("mode", 0)
            servo.set_eeprom("phase", servo.get("phase") & ~MULTI_TURN)
        elif EXTENDED in servo.table.modes:
            servo.set_eeprom("mode", EXTENDED)
        servo.set_eeprom("offset", 0)
        servo.set_eeprom("min_position", 0)
        servo.set_eeprom("max_position", RESOLUTION)
        encoder = servo.get("present_position")
        offset = encoder - MIDDLE if servo.feetech else MIDDLE - encoder
        if servo.feetech:
            offset = max(-FEETECH_OFFSET, min(FEETECH_OFFSET, offset))
        servo.set_eeprom("offset", offset)
        now = self._position(servo)
        if abs(now - MIDDLE) > NEAR_TICKS:
            raise BusError(
                f"{servo} says {now} ticks instead of {MIDDLE} with offset {offset}: hold the arm still and do it again"
            )
        return offset

    # ---- step 3: registers

    def entries(
        self, offsets: Mapping[str, int], spans: Mapping[str, Span], full_turn: Sequence[str]
    ) -> dict[str, LeRobotJoint]:
        """What goes into the file. full_turn: joints without ends. DzedgeError names joints that were hardly moved."""
        idle = hardly_moved([name for name in self.servos if name not in full_turn], spans)
        if idle:
            raise DzedgeError(idle)  # a person's doing, of which no device is to blame
        result = {}
        for name, servo in self.servos.items():
            span = Span(0, RESOLUTION) if name in full_turn else spans[name]
            low, high = max(0, span.low), min(RESOLUTION, span.high)
            result[name] = LeRobotJoint(name, servo.id, 0, offsets[name], low, high)
        return result

    def write(self, entries: Mapping[str, LeRobotJoint]) -> dict[str, list[str]]:
        """Offsets and ranges into the servos, where they differ, verified; by joint, what was written."""
        # only of an offset must a shadow not hear, and its own secondary id is EEPROM as well
        deaf = any(self.servos[name].get("offset") != entries[name].homing_offset for name in self.shadows)
        with self._apart() if deaf else nullcontext():
            return self._write(entries)

    def _write(self, entries: Mapping[str, LeRobotJoint]) -> dict[str, list[str]]:
        written = {}
        for name, servo in self.servos.items():
            rows = _registers(entries[name])
            done = [f"{row} {value}" for row, value in rows.items() if servo.set_eeprom(row, value)]
            if name in self.shadows:
                ranges = {row: value for row, value in rows.items() if row != "offset"}
                done += [f"{row} {value} (shadow)" for row, value in ranges.items() if self._follow(name, row, value)]
            if done:
                written[name] = done
        return written

    def _follow(self, name: str, register: str, value: int) -> bool:
        return self.shadows[name].set_eeprom(register, value)

    def mismatches(self, entries: Mapping[str, LeRobotJoint]) -> list[str]:
        """What the servos hold otherwise than the file says, in words."""
        found = []
        for name, servo in self.servos.items():
            if name not in entries:
                found.append(f"{name} is not in the file")
                continue
            if entries[name].id != servo.id:
                found.append(f"{name}: id {servo.id}, the file says {entries[name].id}")
            for register, value in _registers(entries[name]).items():
                now = servo.get(register)
                if now != value:
                    found.append(f"{name} ({servo}): {register} is {now}, the file says {value}")
        return found


def hardly_moved(joints: Iterable[str], spans: Mapping[str, Span]) -> str:
    """Names those of `joints` whose range is too small to be one; "" where all were moved."""
    widths = {name: spans[name].high - spans[name].low if name in spans else 0 for name in joints}
    idle = [f"{name} ({width} ticks)" for name, width in widths.items() if width < NARROW_TICKS]
    if not idle:
        return ""
    return f"hardly moved: {', '.join(idle)}; at least {NARROW_TICKS} ticks: move each joint from end to end"


def _registers(entry: LeRobotJoint) -> dict[str, int]:
    return {"offset": entry.homing_offset, "min_position": entry.range_min, "max_position": entry.range_max}


def nearest_turn(ticks: int, middle: float) -> int:
    """`ticks` and whole turns, within half a turn of `middle`."""
    return ticks - round((ticks - middle) / TICKS_PER_TURN) * TICKS_PER_TURN


class RangeRecorder:
    """Step 2: notes how far joints are moved. spans: from an earlier session, to go on from."""

    def __init__(self, spans: Mapping[str, Span] | None = None) -> None:
        self.spans = dict(spans or {})
        self._last: dict[str, int] = {}

    def update(self, positions: Mapping[str, int]) -> None:
        """Note positions [ticks]. BusError: a joint went through the end of the encoder's turn, where ticks jump."""
        for name, ticks in positions.items():
            last = self._last.get(name, ticks)
            if abs(ticks - last) > TICKS_PER_TURN // 2 or not 0 <= ticks <= RESOLUTION:
                raise BusError(
                    f"{name} went over the end of its encoder ({last} to {ticks} ticks): it was not in the middle of "
                    "its way; begin again with the middle, or name it with --full-turn if it turns without end"
                )
            span = self.spans.get(name, Span(ticks, ticks))
            self.spans[name] = Span(min(span.low, ticks), max(span.high, ticks))
        self._last.update(positions)
