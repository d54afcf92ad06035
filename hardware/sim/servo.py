"""One emulated Feetech STS3215: its registers, its locks, its ERR byte, its faults.

Coupling to physics: read `torque_enabled`, `goal_ticks`, `goal_speed`, `acceleration`; call `set_present`.
Positions there are the encoder's own ticks: the servo applies its `offset` register in both directions.
"""

from random import Random

from dzedge.hardware.control_table import EEPROM_END, MODEL_STS3215, STS3215, TICKS_PER_TURN
from dzedge.kernels import codec

FAULTS = ("ok", "off", "stuck", "garbage", "wrong", "slow", "delayed", "intermittent")
"""off: dead; stuck: answers but does not move; garbage: random bytes; wrong: valid frames of wrong values;
slow: answers after SLOW_NS; delayed: after DELAYED_NS, in a later cycle; intermittent: a third is lost."""
SLOW_NS = 1_500_000
DELAYED_NS = 12_000_000

FACTORY = {
    "firmware_major": 3, "firmware_minor": 10, "model": MODEL_STS3215, "return_delay": 250, "status_level": 1,
    "max_position": 4095, "max_temperature": 70, "max_voltage": 80, "min_voltage": 40, "max_torque": 1000,
    "unload_condition": 44, "p_gain": 32, "d_gain": 32, "startup_force": 16, "protection_current": 310,
    "protective_torque": 20, "protection_time": 200, "overload_torque": 80, "torque_limit": 1000, "lock": 1,
}  # fmt: skip
"""Registers of a new servo where they are not 0. Return delay 250 (0.5 ms) as it ships."""



class Servo:
    """A servo with this id, standing at `ticks` of its encoder.

    faults: `fault` takes one of FAULTS; `alerts` are ERR bits from the physics; random ones follow `seed`.
    """

    def __init__(self, servo_id: int, ticks: int = 2048, seed: int = 0) -> None:
        self.registers = bytearray(256)
        self.alerts = 0
        self.fault = "ok"
        self.random = Random(seed * 1000 + servo_id)
        self._staged: tuple[int, bytes] | None = None
        self._frozen: int | None = None
        for name, value in FACTORY.items():
            self.set(name, value)
        self.set("id", servo_id)
        self.set_present(ticks, 0.0, 0.0, 7.4, 30.0)
        self.set("goal_position", self.get("present_position"))

    def __repr__(self) -> str:
        state = f"{self.get('present_position')} ticks, torque {self.get('torque_enable')}, {self.fault}"
        return f"Servo({self.id}, {state})"

    # ---- registers by name, as the servo itself sees them: no lock applies

    def get(self, name: str) -> int:
        """A register's value, signed where it has a sign bit."""
        address, size, sign_bit = _PLACES[name]
        raw = self.registers[address]
        if size == 2:
            raw |= self.registers[address + 1] << 8
        return raw if sign_bit is None else codec.decode_signed(raw, sign_bit)

    def set(self, name: str, value: int) -> None:
        """Set a register, whatever the locks say; ValueError where the value does not fit."""
        address, size, sign_bit = _PLACES[name]
        raw = value if sign_bit is None else codec.encode_signed(value, sign_bit)
        if not 0 <= raw < 1 << 8 * size:
            raise ValueError(f"{name} = {value} does not fit in {size} bytes of it")
        self.registers[address] = raw & 0xFF
        if size == 2:
            self.registers[address + 1] = raw >> 8

    @property
    def id(self) -> int:
        return self.registers[5]

    # ---- coupling to physics

    @property
    def torque_enabled(self) -> bool:
        """Whether the servo drives its joint. A dead servo does not."""
        return self.get("torque_enable") == 1 and self.fault != "off"

    @property
    def goal_ticks(self) -> int:
        """Where it drives to [encoder ticks]: inside its limits; the register keeps what was written."""
        if self.fault == "stuck" and self._frozen is not None:
            return self._frozen
        low, high = self.get("min_position"), self.get("max_position")
        return min(max(self.get("goal_position"), low), high) + self.get("offset")

    @property
    def goal_speed(self) -> int:
        """Speed limit of the motion [ticks/s]; 0: none."""
        return abs(self.get("goal_speed"))

    @property
    def acceleration(self) -> int:
        """Acceleration limit of the motion [ticks/s^2]; 0: none."""
        return self.get("acceleration") * 100

    def set_present(
        self, ticks: float, speed: float, load: float, voltage: float, temperature: float
    ) -> None:
        """What is measured now. ticks: of the encoder; speed [ticks/s]; load -1..1; voltage [V]; [deg C]."""
        self._encoder = round(ticks)
        self.set("present_position", (self._encoder - self.get("offset")) % TICKS_PER_TURN)
        self.set("present_speed", round(max(min(speed, 32767.0), -32767.0)))
        self.set("present_load", round(max(min(load, 1.0), -1.0) * 1000))
        self.set("present_voltage", round(max(min(voltage, 25.5), 0.0) * 10))
        self.set("present_temperature", round(max(min(temperature, 255.0), 0.0)))
        self.set("present_current", round(max(min(load, 1.0), -1.0) * 400))
        self.set("moving", int(abs(speed) > 10.0))
        self.set("status", self.error)

    def set_fault(self, verb: str) -> None:
        """One of FAULTS; ValueError for anything else."""
        if verb not in FAULTS:
            raise ValueError(f"servo fault {verb!r}: one of {', '.join(FAULTS)}")
        self.fault = verb
        self._frozen = self._encoder if verb == "stuck" else None

    def power_cycle(self) -> None:
        """Brown-out: RAM is lost, so torque is off and the goal is forgotten; EEPROM stays."""
        present = self.registers[56:71]
        self.registers[EEPROM_END:] = bytes(256 - EEPROM_END)
        self.registers[56:71] = present
        self.set("torque_limit", self.get("max_torque"))
        self.set("lock", 1)
        self.alerts = 0

    # ---- the bus side

    @property
    def error(self) -> int:
        """The ERR byte: voltage and temperature against their limits, and `alerts`."""
        voltage, hot = self.get("present_voltage"), self.get("present_temperature")
        bad_voltage = not self.get("min_voltage") <= voltage <= self.get("max_voltage")
        return self.alerts | int(bad_voltage) | (4 if hot > self.get("max_temperature") else 0)

    @property
    def return_delay_ns(self) -> int:
        return self.get("return_delay") * 2000

    def execute(self, instruction: int, parameters: bytes) -> bytes | None:
        """Obey one unicast instruction; the data of the reply, or None where the servo stays silent."""
        if instruction == codec.PING:
            return b""
        if instruction == codec.READ and len(parameters) == 2:
            return self.read(parameters[0], parameters[1])
        if instruction == codec.WRITE and len(parameters) >= 2:
            self.write(parameters[0], parameters[1:])
        elif instruction == 0x04 and len(parameters) >= 2:
            self._staged = parameters[0], parameters[1:]
        elif instruction == 0x05:
            if self._staged is not None:
                self.write(*self._staged)
            self._staged = None
        else:
            return None
        return b"" if self.get("status_level") else None

    def read(self, address: int, count: int) -> bytes:
        """The registers as the host sees them."""
        image = bytearray(self.registers)
        if self.fault == "wrong":
            image[56:58] = self.random.randrange(TICKS_PER_TURN).to_bytes(2, "little")
        return bytes(image[address : address + count].ljust(count, b"\0"))

    def write(self, address: int, data: bytes) -> None:
        """Write from `address` on. EEPROM under lock 1 and read-only registers silently keep theirs."""
        if address <= 42 < address + len(data):
            self.registers[40] = 1  # the goal itself energises
        unlocked = self.get("lock") == 0
        for at, value in enumerate(data, address):
            if at in _WRITABLE and (at >= EEPROM_END or unlocked):
                self.registers[at] = value
        if self.registers[40] == 128:
            self.set("offset", max(min(self._encoder - TICKS_PER_TURN // 2, 2047), -2047))
            self.registers[40] = 0


_PLACES = {name: (register.address, register.size, register.sign_bit) for name, register in STS3215.items()}
"""Address, size (1 or 2 bytes, low byte first) and sign bit of each register: 130 are looked up each control tick."""
_WRITABLE = frozenset(
    address
    for register in STS3215.values()
    if register.writable
    for address in range(register.address, register.address + register.size)
)
