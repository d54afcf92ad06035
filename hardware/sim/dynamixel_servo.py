"""One emulated Dynamixel X servo: the control table of its model, locks, limits, alerts, bus watchdog, turns.

Sources: ROBOTIS e-manual, control tables and protocol2. What it leaves open, and what is chosen here: torque that is
asked for while a shutdown is latched stays off without an error number; a watchdog is fed by packets to this servo and
by broadcasts, not by others' traffic; overload is 90 % of stall torque for a second.
"""

from dzedge.clock import NS
from dzedge.hardware.control_table import DYNAMIXEL_ALERT
from dzedge.hardware.sim.dynamixel_memory import (
    INSTRUCTION,
    LENGTH,
    POSITION,
    RESULT_FAIL,
    TRIPPED,
    Answer,
    DynamixelMemory,
    word,
)

PING, READ, WRITE, REG_WRITE, ACTION, FACTORY_RESET, REBOOT, CLEAR = 1, 2, 3, 4, 5, 6, 8, 0x10
VOLTAGE, OVERHEATED, OVERLOADED = 1, 4, 32
"""Bits of `hardware_error`."""
RAM = 64
CURRENT, VELOCITY, EXTENDED, CURRENT_POSITION = 0, 1, 4, 5
REVERSE = 1
"""Bit of `drive_mode`."""
CLEAR_TURNS = bytes((1, 0x44, 0x58, 0x4C, 0x22))
WATCHDOG_NS = 20_000_000
OVERLOAD_SHARE, OVERLOAD_S = 0.9, 1.0
VELOCITY_TICKS_S = 0.229 * 4096 / 60
"""[ticks/s] in a count of velocity."""
ACCELERATION_TICKS_S2 = 214.577 * 4096 / 3600
FULL_CURRENT_A, STALL_LOAD = 1.4, 1000
"""Current at stall torque [A]; present load there."""


class DynamixelServo(DynamixelMemory):
    """A servo with this id, standing at `ticks` of its encoder; model: of a control table; baud: what it is set to
    (as it ships: 57600)."""

    def __init__(
        self, servo_id: int, ticks: int = 2048, seed: int = 0, model: str = "xl330-m288", baud: int = 1_000_000
    ) -> None:
        super().__init__(servo_id, seed, model)
        self._base = 0
        self._fed_ns = 0
        self.reset()
        self.set("id", servo_id)
        self.set("baud_rate", self.table.baud_rates.index(baud))
        self.supply_v = 0.05 * (self.get("min_voltage") + self.get("max_voltage"))
        self.set_present(ticks, 0.0, 0.0, self.supply_v, 30.0)
        self.set("goal_position", self.get("present_position"))

    def reset(self, keep: tuple[str, ...] = ()) -> None:
        """Factory settings, but for the registers named in `keep`."""
        kept = {name: self.get(name) for name in keep}
        self.registers[:] = self.layout.initial
        self.set("model", self.table.number)
        for name, value in kept.items():
            self.set(name, value)

    @property
    def id(self) -> int:
        return self.registers[7]

    @property
    def shadow_id(self) -> int | None:
        """Another id that it obeys, without a reply; None without one."""
        second = self.registers[12]
        return second if second < 253 and second != self.id else None

    @property
    def baud(self) -> int:
        rates = self.table.baud_rates
        return rates[min(self.registers[8], len(rates) - 1)]

    @property
    def return_delay_ns(self) -> int:
        return self.registers[9] * 2000

    @property
    def error(self) -> int:
        """The alert bit of the ERR byte."""
        return DYNAMIXEL_ALERT if self.registers[70] else 0

    # ---- coupling to physics

    @property
    def _direction(self) -> int:
        return -1 if self.registers[10] & REVERSE else 1

    @property
    def multi_turn(self) -> bool:
        return self.registers[11] in (EXTENDED, CURRENT_POSITION)

    @property
    def goal_ticks(self) -> int:
        if self.fault == "stuck" and self._frozen is not None:
            return self._frozen
        goal = self.get("goal_position")
        if not self.multi_turn:
            goal = min(max(goal, self.get("min_position")), self.get("max_position"))
        return self._direction * (goal - self._offset) - self._base

    @property
    def _offset(self) -> int:
        offset = self.get("offset")
        return min(max(offset, -1024), 1024) if self.registers[11] == POSITION else offset

    @property
    def goal_speed(self) -> int:
        return round(self.get("profile_velocity") * VELOCITY_TICKS_S)

    @property
    def acceleration(self) -> int:
        return round(self.get("profile_acceleration") * ACCELERATION_TICKS_S2)

    @property
    def wheel_speed(self) -> float | None:
        mode = self.registers[11]
        if mode in (POSITION, EXTENDED, CURRENT_POSITION):
            return None
        if self.fault == "stuck" or mode != VELOCITY or self.tripped:
            return 0.0
        return self._direction * self.get("goal_velocity") * VELOCITY_TICKS_S

    @property
    def torque_share(self) -> float:
        share = abs(self.get("goal_pwm")) / 885
        if self.registers[11] in (CURRENT, CURRENT_POSITION):
            amperes = abs(self.get("goal_current")) * self.table["goal_current"].scale
            share = min(share, amperes / FULL_CURRENT_A)
        return min(share, 1.0)

    def set_present(self, ticks: float, speed: float, load: float, voltage: float, temperature: float) -> None:
        direction = self._direction
        self._encoder = round(ticks)
        self._measure_position()
        counts = direction * speed / VELOCITY_TICKS_S
        self.set("present_velocity", round(max(min(counts, 1e6), -1e6)))
        load = direction * max(min(load, 1.0), -1.0)
        self.set("present_pwm", round(load * 885))
        if "present_load" in self.places:
            self.set("present_load", round(load * STALL_LOAD))
        else:
            self.set("present_current", round(load * FULL_CURRENT_A / self.table["present_current"].scale))
        if self.fault == "undervolt":
            voltage = self.get("min_voltage") * 0.1 - 0.5
        elif self.fault == "overheat":
            temperature = self.get("max_temperature") + 10.0
        self.set("present_voltage", round(max(voltage, 0.0) * 10))
        self.set("present_temperature", round(max(min(temperature, 255.0), 0.0)))
        self.registers[122] = int(abs(counts) > self.get("moving_threshold"))

    def _measure_position(self) -> None:
        position = self._direction * (self._encoder + self._base) + self._offset
        self.set("present_position", position)
        self.set("position_trajectory", position)

    def _forget_turns(self) -> None:
        """Positions start within one turn again."""
        self._base -= self._direction * (self._direction * (self._encoder + self._base) // 4096 * 4096)
        self._measure_position()

    def protect(self, elapsed_s: float) -> None:
        load = abs(self.get("present_pwm")) / 885
        self.overload_s = self.overload_s + elapsed_s if load >= OVERLOAD_SHARE else 0.0
        low, volts, high = self.get("min_voltage"), self.get("present_voltage"), self.get("max_voltage")
        found = self.alerts | (0 if low <= volts <= high else VOLTAGE)
        if self.get("present_temperature") > self.get("max_temperature"):
            found |= OVERHEATED
        if self.overload_s > OVERLOAD_S:
            found |= OVERLOADED
        self._raise(found)

    def _raise(self, found: int) -> None:
        """Errors that hold now; those that shut down latch."""
        shutdown = self.get("shutdown")
        self.alerts |= found & ~VOLTAGE | found & shutdown
        self.registers[70] = found | self.alerts
        if self.registers[70] & shutdown:
            self.registers[64] = 0

    def alert(self) -> None:
        self._raise(self.registers[70] | OVERLOADED)

    def power_cycle(self) -> None:
        measured = self.registers[122:147]
        self.registers[RAM:] = self.layout.initial[RAM:]
        self.registers[122:147] = measured
        self.alerts, self.overload_s, self._staged = 0, 0.0, None
        self._forget_turns()
        self.set("goal_position", self.get("present_position"))
        self.registers[64] = self.get("startup") & 1

    # ---- time

    def elapse(self, now_ns: int) -> None:
        """Watch the bus: without a packet for too long, with torque on, it stops where it is."""
        patience = self.get("bus_watchdog")
        if patience > 0 and self.registers[64] and now_ns - self._fed_ns > patience * WATCHDOG_NS:
            self.set("bus_watchdog", TRIPPED)
            self.set("goal_position", self.get("present_position"))

    def feed(self, now_ns: int) -> None:
        """A packet for this servo has come."""
        self.elapse(now_ns)
        self._fed_ns = now_ns
        self.set("realtime_tick", now_ns // (NS // 1000) & 0x7FFF)

    # ---- the bus side

    def execute(self, instruction: int, parameters: bytes) -> Answer | None:
        level = self.registers[68]
        if instruction == PING:
            return self.error, bytes(self.registers[0:2] + self.registers[6:7])
        if instruction == READ:
            number, data = LENGTH, b""
            if len(parameters) == 4:
                number, data = self.read(word(parameters, 0), word(parameters, 2))
            return (number | self.error, data) if level else None
        alert = self.error  # it answers before it reboots
        number = self._obey(instruction, parameters)
        return (number | alert, b"") if level == 2 else None

    def _obey(self, instruction: int, parameters: bytes) -> int:
        """An instruction that changes something; its error number."""
        if instruction == WRITE and len(parameters) >= 3:
            return self.write(word(parameters, 0), parameters[2:])
        if instruction == REG_WRITE and len(parameters) >= 3:
            error = self._refused(word(parameters, 0), parameters[2:])
            if not error:
                self._staged = word(parameters, 0), parameters[2:]
                self.registers[69] = 1
            return error
        if instruction == ACTION:
            if self._staged is None:
                return INSTRUCTION
            staged, self._staged, self.registers[69] = self._staged, None, 0
            return self.write(*staged)
        if instruction == FACTORY_RESET and len(parameters) == 1:
            if self.registers[64]:
                return RESULT_FAIL
            self.reset({1: ("id",), 2: ("id", "baud_rate")}.get(parameters[0], ()))
            self.power_cycle()
            return 0
        if instruction == REBOOT:
            self.power_cycle()
            return 0
        if instruction == CLEAR and parameters == CLEAR_TURNS:
            if self.registers[122]:
                return RESULT_FAIL
            self._forget_turns()
            return 0
        return INSTRUCTION

    def _take_effect(self, names: set[str]) -> None:
        if "torque_enable" in names and self.registers[64]:
            if self.registers[70] & self.get("shutdown"):
                self.registers[64] = 0
            elif not self.multi_turn:
                self._forget_turns()
        if names & {"mode", "offset", "drive_mode"}:
            if "mode" in names and not self.multi_turn:
                self._forget_turns()
            self._measure_position()
            self.set("goal_position", self.get("present_position"))
