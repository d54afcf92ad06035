"""One emulated Feetech STS servo: its registers, its locks, its ERR byte, its faults."""

from functools import cache

from dzedge.hardware.control_table import EEPROM_END, TICKS_PER_TURN, ControlTable, table
from dzedge.hardware.sim.emulated_servo import EmulatedServo
from dzedge.hardware.sim.faults import DELAYED_NS, FAULTS, SLOW_NS
from dzedge.kernels import codec

__all__ = ["DELAYED_NS", "FACTORY", "FAULTS", "SLOW_NS", "Servo"]

FACTORY = {
    "firmware_major": 3, "firmware_minor": 10, "return_delay": 250, "status_level": 1,
    "max_position": 4095, "max_temperature": 70, "max_voltage": 80, "min_voltage": 40, "max_torque": 1000,
    "unload_condition": 44, "p_gain": 32, "d_gain": 32, "startup_force": 16, "protection_current": 310,
    "protective_torque": 20, "protection_time": 200, "overload_torque": 80, "torque_limit": 1000, "lock": 1,
}  # fmt: skip
"""Registers of a new servo where they are not 0. Return delay 250 (0.5 ms) as it ships."""
REG_WRITE, ACTION, RESET = 0x04, 0x05, 0x06
OVERHEATED, OVERLOADED = 4, 32
"""Bits of the ERR byte, and of `unload_condition`: what takes the torque away."""
VELOCITY_MODE = 1
MULTI_TURN = 16
"""Bit of `phase`."""
GOAL, TORQUE = 42, 40
PRESENT_END = 71
FULL_CURRENT = 400
"""Counts of present current at stall torque."""


class Servo(EmulatedServo):
    """A servo with this id, standing at `ticks` of its encoder; model: of a Feetech control table.

    After an overload it gives `protective_torque` at most until it loses power; how a real one ends it is not
    documented, users report "until power cycle".
    """

    def __init__(self, servo_id: int, ticks: int = 2048, seed: int = 0, model: str = "sts3215") -> None:
        super().__init__(servo_id, seed, model, 256)
        self.table: ControlTable = table(model)
        self._factory()
        self.set("id", servo_id)
        self.set_present(ticks, 0.0, 0.0, 7.4, 30.0)
        self.set("goal_position", self.get("present_position"))

    def _factory(self) -> None:
        self.registers[:EEPROM_END] = bytes(EEPROM_END)
        for name, value in FACTORY.items():
            self.set(name, value)
        self.set("model", self.table.number)

    @property
    def id(self) -> int:
        return self.registers[5]

    @property
    def baud(self) -> int:
        rates = self.table.baud_rates
        return rates[self.registers[6] % len(rates)]

    # ---- coupling to physics

    @property
    def goal_ticks(self) -> int:
        if self.fault == "stuck" and self._frozen is not None:
            return self._frozen
        low, high = self.get("min_position"), self.get("max_position")
        goal = self.get("goal_position")
        if (low, high) != (0, 0):
            goal = min(max(goal, low), high)
        return goal + self.get("offset")

    @property
    def goal_speed(self) -> int:
        return abs(self.get("goal_speed"))

    @property
    def acceleration(self) -> int:
        return self.get("acceleration") * 100

    @property
    def wheel_speed(self) -> float | None:
        if self.get("mode") != VELOCITY_MODE:
            return None
        return 0.0 if self.fault == "stuck" else float(self.get("goal_speed"))

    @property
    def torque_share(self) -> float:
        share = self.get("torque_limit") / 1000
        return min(share, self.get("protective_torque") / 100) if self.alerts & OVERLOADED else share

    @property
    def multi_turn(self) -> bool:
        return bool(self.get("phase") & MULTI_TURN)

    def set_present(self, ticks: float, speed: float, load: float, voltage: float, temperature: float) -> None:
        self._encoder = round(ticks)
        position = self._encoder - self.get("offset")
        if self.get("phase") & MULTI_TURN:
            position = max(min(position, 32767), -32767)
        else:
            position %= TICKS_PER_TURN
        self.set("present_position", position)
        self.set("present_speed", round(max(min(speed, 32767.0), -32767.0)))
        self.set("present_load", round(max(min(load, 1.0), -1.0) * 1000))
        if self.fault == "undervolt":
            voltage = (self.get("min_voltage") - 5) * 0.1
        elif self.fault == "overheat":
            temperature = self.get("max_temperature") + 10.0
        self.set("present_voltage", round(max(min(voltage, 25.5), 0.0) * 10))
        self.set("present_temperature", round(max(min(temperature, 255.0), 0.0)))
        self.set("present_current", round(max(min(load, 1.0), -1.0) * FULL_CURRENT))
        self.set("moving", int(abs(speed) > 10.0))
        self.set("status", self.error)

    def elapse(self, now_ns: int) -> None:
        """Nothing: it has no bus watchdog, a dead host leaves it holding."""

    def protect(self, elapsed_s: float) -> None:
        loaded = abs(self.get("present_load")) >= 10 * self.get("overload_torque")
        self.overload_s = self.overload_s + elapsed_s if loaded else 0.0
        if self.overload_s > self.get("protection_time") * 0.01:
            self.alert()
        if self.error & OVERHEATED & self.get("unload_condition"):
            self.registers[TORQUE] = 0

    def alert(self) -> None:
        if self.get("unload_condition") & OVERLOADED:
            self.alerts |= OVERLOADED

    def power_cycle(self) -> None:
        present = self.registers[56:PRESENT_END]
        self.registers[EEPROM_END:] = bytes(256 - EEPROM_END)
        self.registers[56:PRESENT_END] = present
        self.set("torque_limit", self.get("max_torque"))
        self.set("lock", 1)
        self.alerts, self.overload_s, self._staged = 0, 0.0, None

    # ---- the bus side

    @property
    def error(self) -> int:
        """The ERR byte: voltage and temperature against their limits, and `alerts`."""
        voltage, hot = self.get("present_voltage"), self.get("present_temperature")
        bad_voltage = not self.get("min_voltage") <= voltage <= self.get("max_voltage")
        return self.alerts | int(bad_voltage) | (OVERHEATED if hot > self.get("max_temperature") else 0)

    @property
    def return_delay_ns(self) -> int:
        return self.registers[7] * 2000

    def execute(self, instruction: int, parameters: bytes) -> tuple[int, bytes] | None:
        if instruction == codec.PING:
            return self.error, b""
        if instruction == codec.READ and len(parameters) == 2:
            return self.error, self.read(parameters[0], parameters[1])
        if instruction == codec.WRITE and len(parameters) >= 2:
            self.write(parameters[0], parameters[1:])
        elif instruction == REG_WRITE and len(parameters) >= 2:
            self._staged = parameters[0], parameters[1:]
        elif instruction == ACTION:
            if self._staged is not None:
                self.write(*self._staged)
            self._staged = None
        elif instruction == RESET:
            keep = self.id
            self._factory()
            self.set("id", keep)
        else:
            return None
        return (self.error, b"") if self.get("status_level") else None

    def read(self, address: int, count: int) -> bytes:
        """The registers as the host sees them."""
        if self.fault == "wrong" and self.random.random() < self.rate:
            image = bytearray(self.registers)
            image[56:58] = self.random.randrange(TICKS_PER_TURN).to_bytes(2, "little")
            return bytes(image[address : address + count].ljust(count, b"\0"))
        return bytes(self.registers[address : address + count].ljust(count, b"\0"))

    def write(self, address: int, data: bytes) -> int:
        """Write from `address` on. EEPROM under lock 1 and read-only registers silently keep theirs."""
        if address <= GOAL < address + len(data):
            self.registers[TORQUE] = 1  # the goal itself energises
        unlocked = self.get("lock") == 0
        writable = _writable(self.model)
        for at, value in enumerate(data, address):
            if at in writable and (at >= EEPROM_END or unlocked):
                self.registers[at] = value
        if self.registers[TORQUE] == 128:
            self.set("offset", max(min(self._encoder - TICKS_PER_TURN // 2, 2047), -2047))
            self.registers[TORQUE] = 0
        return 0


@cache
def _writable(model: str) -> frozenset[int]:
    """Addresses that a host may write."""
    return frozenset(
        address
        for register in table(model).registers.values()
        if register.writable
        for address in range(register.address, register.address + register.size)
    )
