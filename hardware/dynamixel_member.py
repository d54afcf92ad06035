"""One servo of a Dynamixel arm: what is checked and set before it gets torque."""

from dataclasses import dataclass

from dzedge import config
from dzedge.hardware import calibration
from dzedge.hardware.control_table import HIGHEST_ID, NO_SECONDARY, ControlTable, explain_dynamixel_error
from dzedge.hardware.dynamixel_bus import DynamixelBus
from dzedge.hardware.transactions import Reply

POSITION, EXTENDED, CURRENT_POSITION = 3, 4, 5
"""Values of `mode`."""
OFFSET_SINGLE_TURN = 1024
"""A larger offset has no effect in mode POSITION."""
REVERSE = 1
"""The only bit of `drive_mode` that may be set: no dual joint, no profile by time, no torque on by a goal."""
FIRMWARE = 38
"""The first version with a bus watchdog."""
EEPROM_BYTES = 64
STATE_AT, STATE_BYTES = 126, 21
"""Present current or load to present temperature."""


@dataclass(frozen=True, slots=True)
class Allowed:
    """Bounds beyond which a servo gets no torque. voltage [V], beside the servo's own; temperature [deg C]; jump: how
    far a joint may move then [ticks]."""

    voltage: tuple[float, float]
    temperature: float
    jump: int


@dataclass(frozen=True, slots=True)
class Member:
    """A servo of a joint. shadow: it follows the joint's own servo by its secondary id."""

    id: int
    joint: calibration.JointCalibration
    limits: config.Joint
    table: ControlTable
    shadow: bool = False

    def __str__(self) -> str:
        return f"servo {self.id} ({self.joint.name}{', shadow' if self.shadow else ''})"

    # ---- set-up

    def configure(self, bus: DynamixelBus, watched: bool) -> list[str]:
        """Check the servo, then set what must be; what is wrong with it, in words. watched: it needs a bus watchdog.

        EEPROM is written only where it differs, read back, and never at the cost of torque: a held arm would drop.
        """
        reply = bus.read(self.id, 0, EEPROM_BYTES)
        if len(reply.data) != EEPROM_BYTES:
            return [f"{self} does not tell its registers: {bus.describe(reply)}"]
        now = {r.name: r.decode(reply.data[r.address : r.address + r.size]) for r in self.table.registers.values()
               if r.eeprom}  # fmt: skip
        problems = self._mismatches(now, watched)
        if complaint := bus.describe(reply):
            problems.append(complaint)
        if problems:
            return problems
        wanted = {"return_delay": 0, "drive_mode": now["drive_mode"] & REVERSE, "mode": self._mode(now)}
        if self.shadow:
            wanted["secondary_id"] = self.joint.id
        elif now["secondary_id"] <= HIGHEST_ID:
            wanted["secondary_id"] = NO_SECONDARY  # it would obey another joint's servo
        differing = {name: value for name, value in wanted.items() if now[name] != value}
        if differing and bus.get(self.id, "torque_enable") != 0:
            rows = ", ".join(f"{name} from {now[name]} to {value}" for name, value in differing.items())
            return [f"{self} holds its joint, and needs torque off to set {rows}: support the arm and release it"]
        bus.set(self.id, "status_level", 2)
        for name, value in differing.items():
            bus.set_eeprom(self.id, name, value)
        return []

    def _mismatches(self, now: dict[str, int], watched: bool) -> list[str]:
        joint = self.joint
        if now["model"] != self.table.number:
            known = f"a {self.table.model} has {self.table.number}"
            return [f"{self}: its model number is {now['model']}, {known}: correct `model`"]
        problems = []
        if watched and now["firmware"] < FIRMWARE:
            problems.append(f"{self}: firmware {now['firmware']} has no bus watchdog; update it to {FIRMWARE} or later")
        wanted = {} if joint.offset is None or self.shadow else {"offset": joint.offset}
        if joint.range_ticks is not None:
            wanted |= dict(zip(("min_position", "max_position"), joint.range_ticks, strict=True))
        foreign = {name: value for name, value in wanted.items() if now[name] != value}
        problems += [f"{self}: {name} is {now[name]}, must be {value}" for name, value in foreign.items()]
        if foreign:
            problems.append(f"{self} {calibration.FOREIGN}")
        low, high = now["min_position"], now["max_position"]
        if not foreign and self._mode(now) == POSITION and not (low <= joint.lower and joint.upper <= high):
            problems.append(
                f"{self}: allows [{low}, {high}] ticks, the robot file [{joint.lower}, {joint.upper}]; narrow lower "
                "and upper, or calibrate"
            )
        return problems

    def _mode(self, now: dict[str, int]) -> int:
        """A gripper is driven by current where it can be; a joint in one turn, unless its offset needs several."""
        if self.limits.kind == "gripper" and CURRENT_POSITION in self.table.modes:
            return CURRENT_POSITION
        several = abs(now["offset"]) > OFFSET_SINGLE_TURN or now["mode"] == EXTENDED
        return EXTENDED if several else POSITION

    # ---- before torque

    def unfit(self, bus: DynamixelBus, reply: Reply, allowed: Allowed) -> list[str]:
        """Why the servo must not get torque in the state that it told, in words."""
        if len(reply.data) != STATE_BYTES:
            return [f"{self} does not tell its state: {bus.describe(reply)}"]
        joint = self.joint
        ticks, volts = round(self.part(reply, "present_position")), self.part(reply, "present_voltage")
        heat = self.part(reply, "present_temperature")
        problems = []
        if not joint.lower <= ticks <= joint.upper:
            problems.append(
                f"{self} stands at {joint.position(ticks):.3f} ({ticks} ticks), outside "
                f"[{joint.lower}, {joint.upper}] ticks: move it inside by hand"
            )
        if self.shadow:
            apart = abs(ticks - bus.get(joint.id, "present_position"))
            if apart > allowed.jump:
                problems.append(f"{self} is {apart} ticks from servo {joint.id}, at most {allowed.jump}: level them")
        low, high = (bus.get(self.id, name) * self.table[name].scale for name in ("min_voltage", "max_voltage"))
        low, high = max(low, allowed.voltage[0]), min(high, allowed.voltage[1])
        if not low - 1e-9 <= volts <= high + 1e-9:
            problems.append(f"{self} has {volts:.1f} V, allowed {low:.1f} to {high:.1f} V: check the supply")
        if heat > allowed.temperature:
            problems.append(f"{self} has {heat:.0f} °C, allowed up to {allowed.temperature:.0f}: let it cool")
        if reply.error:
            problems.append(bus.describe(reply) or explain_dynamixel_error(reply.error))
        return problems

    def prepare(self, bus: DynamixelBus) -> None:
        """Clear the watchdog; no profile of the servo's own, which would lag behind the trajectory; and the torque
        limit: as current where the mode obeys it, else as PWM."""
        share = self.limits.max_torque
        by_current = bus.get(self.id, "mode") == CURRENT_POSITION
        bus.set(self.id, "bus_watchdog", 0)
        bus.set(self.id, "profile_acceleration", 0)
        bus.set(self.id, "profile_velocity", 0)
        bus.set(self.id, "goal_pwm", round((1.0 if by_current else share) * bus.get(self.id, "pwm_limit")))
        if by_current:
            bus.set(self.id, "goal_current", round(share * bus.get(self.id, "current_limit")))

    def part(self, reply: Reply, name: str) -> float:
        """A register out of a state, in its unit."""
        register = self.table[name]
        at = register.address - STATE_AT
        return register.decode(reply.data[at : at + register.size]) * register.scale
