"""What every emulated servo has, whatever its protocol: registers by name, faults, and the coupling to physics.

Coupling: physics reads `torque_enabled`, `goal_ticks`, `goal_speed`, `acceleration`, `wheel_speed`, `torque_share` and
calls `set_present`, then `protect`; where `pushed` is set, it puts the joint there first. Positions there are the
encoder's own ticks: a servo applies offset and direction.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import cache
from random import Random

from dzedge.clock import NS
from dzedge.hardware.control_table import TICKS_PER_TURN, table
from dzedge.hardware.sim.faults import RATES, SERVO_VERBS
from dzedge.kernels import codec

TWOS_COMPLEMENT = -1
"""Instead of a sign bit: the register is signed as integers are."""
BOOT_NS = NS // 10
"""How long a servo is silent after power came back or it was told to reboot."""
SUPPLY_V = 7.5
"""Voltage at rest of the supply that a servo is meant for [V]; a Dynamixel's is in the middle of its limits."""
Place = tuple[int, int, int | None]
"""Address, size [bytes], sign bit; low byte first."""


@cache
def places(model: str) -> dict[str, Place]:
    """Where each register of a model lies, by name: 130 are looked up each control tick."""
    return {
        name: (register.address, register.size, TWOS_COMPLEMENT if register.signed else register.sign_bit)
        for name, register in table(model).registers.items()
    }


class EmulatedServo(ABC):
    """A servo's memory and what can happen to it.

    model: of a control table; places: its registers by name; size: of the memory [bytes].
    fault: one of SERVO_VERBS; rate: share of the replies that it spoils; `alerts` are latched error bits; random ones
    follow `seed`.
    """

    model: str
    places: Mapping[str, Place]

    def __init__(self, servo_id: int, seed: int, model: str, size: int) -> None:
        self.model = model
        self.places = places(model)
        self.registers = bytearray(size)
        self.alerts = 0
        self.fault = "ok"
        self.rate = 1.0
        self.random = Random(seed * 1000 + servo_id)
        self.silent_until_ns = 0
        self.supply_v = SUPPLY_V
        self.overload_s = 0.0
        self.pushed: float | None = None
        self._encoder = 0
        self._frozen: int | None = None
        self._staged: tuple[int, bytes] | None = None

    def __repr__(self) -> str:
        state = f"{self.get('present_position')} ticks, torque {self.get('torque_enable')}, {self.fault}"
        return f"{type(self).__name__}({self.id}, {state})"

    # ---- registers by name, as the servo itself sees them: no lock applies

    def get(self, name: str) -> int:
        """A register's value, signed where it has a sign."""
        address, size, sign_bit = self.places[name]
        registers = self.registers
        raw = registers[address]
        if size > 1:
            raw = int.from_bytes(registers[address : address + size], "little")
        if sign_bit is None:
            return raw
        if sign_bit == TWOS_COMPLEMENT:
            return raw - (1 << 8 * size) if raw >> 8 * size - 1 else raw
        return codec.decode_signed(raw, sign_bit)

    def set(self, name: str, value: int) -> None:
        """Set a register, whatever the locks say; ValueError where the value does not fit."""
        address, size, sign_bit = self.places[name]
        if sign_bit == TWOS_COMPLEMENT:
            raw = value & (1 << 8 * size) - 1 if -1 << 8 * size - 1 <= value < 1 << 8 * size - 1 else -1
        else:
            raw = value if sign_bit is None else codec.encode_signed(value, sign_bit)
        if not 0 <= raw < 1 << 8 * size:
            raise ValueError(f"{name} = {value} does not fit in {size} bytes of it")
        if size == 1:
            self.registers[address] = raw
        else:
            self.registers[address : address + size] = raw.to_bytes(size, "little")

    @property
    @abstractmethod
    def id(self) -> int: ...

    @property
    @abstractmethod
    def baud(self) -> int:
        """Rate at which it listens [bit/s]."""

    @property
    @abstractmethod
    def error(self) -> int:
        """What its replies complain of: the ERR byte of a Feetech, the alert bit of a Dynamixel."""

    @property
    @abstractmethod
    def return_delay_ns(self) -> int: ...

    @abstractmethod
    def execute(self, instruction: int, parameters: bytes) -> tuple[int, bytes] | None:
        """Obey one instruction. Returns the ERR byte and data of the reply, or None where it stays silent."""

    @abstractmethod
    def write(self, address: int, data: bytes) -> int:
        """Write as the host does; returns an error number, 0 where that protocol has none."""

    def hears(self, baud: int, now_ns: int) -> bool:
        """Whether it understands what is said at that rate and moment."""
        return baud == self.baud and self.fault not in ("off", "silent") and now_ns >= self.silent_until_ns

    # ---- coupling to physics

    @property
    def torque_enabled(self) -> bool:
        """Whether the servo drives its joint. A dead servo does not."""
        return self.get("torque_enable") == 1 and self.fault != "off"

    @property
    @abstractmethod
    def goal_ticks(self) -> int:
        """Where it drives to [encoder ticks]: inside its limits; the register keeps what was written."""

    @property
    @abstractmethod
    def goal_speed(self) -> int:
        """Speed limit of the motion [ticks/s]; 0: none."""

    @property
    @abstractmethod
    def acceleration(self) -> int:
        """Acceleration limit of the motion [ticks/s^2]; 0: none."""

    @property
    @abstractmethod
    def wheel_speed(self) -> float | None:
        """Speed to turn at [encoder ticks/s] in a mode that has no goal position; None in the others."""

    @property
    @abstractmethod
    def torque_share(self) -> float:
        """Share of the stall torque that it may give, 0..1."""

    @property
    @abstractmethod
    def multi_turn(self) -> bool:
        """Whether positions count turns."""

    @abstractmethod
    def set_present(self, ticks: float, speed: float, load: float, voltage: float, temperature: float) -> None:
        """What is measured now. ticks: of the encoder; speed [ticks/s]; load -1..1; voltage [V]; [deg C]."""

    @abstractmethod
    def protect(self, elapsed_s: float) -> None:
        """Watch load, heat and supply, as measured last, for so long; latch an alert and take torque as the registers
        say."""

    @abstractmethod
    def alert(self) -> None:
        """Overloaded, now."""

    @abstractmethod
    def power_cycle(self) -> None:
        """Brown-out or reboot: RAM is lost, so torque is off and the goal is forgotten; EEPROM stays."""

    @abstractmethod
    def elapse(self, now_ns: int) -> None:
        """Time has come to now_ns: what a servo does by itself then."""

    @property
    def blocked(self) -> bool:
        """Whether something holds the joint."""
        return self.fault == "stall"

    @property
    def encoder(self) -> int:
        """Where the joint is [encoder ticks]."""
        return self._encoder

    @property
    def _direction(self) -> int:
        """1, or -1 where positions fall as the encoder's ticks rise."""
        return 1

    def push(self, position: int) -> None:
        """As a hand does: the joint, without torque, stands at a `present_position` from now on. ValueError where it
        has torque, or for a position that there is not."""
        if self.torque_enabled:
            raise ValueError(f"push: servo {self.id} has torque and holds its joint; release the arm first")
        if not self.multi_turn and not 0 <= position < TICKS_PER_TURN:
            raise ValueError(f"push = {position}: must be in [0, {TICKS_PER_TURN - 1}] ticks")
        moved = self._direction * (position - self.get("present_position"))
        volts, celsius = self.get("present_voltage") * 0.1, float(self.get("present_temperature"))
        self.pushed = float(self._encoder + moved)
        self.set_present(self.pushed, 0.0, 0.0, volts, celsius)

    def set_fault(self, verb: str, rate: float | None = None) -> None:
        """One of SERVO_VERBS; ValueError for anything else. `alert` and `brownout` happen once, the others last."""
        if verb not in SERVO_VERBS:
            raise ValueError(f"servo fault {verb!r}: one of {', '.join(SERVO_VERBS)}")
        if verb == "alert":
            self.alert()
        elif verb == "brownout":
            self.power_cycle()
        else:
            self.fault = verb
            self.rate = RATES.get(verb, 1.0) if rate is None else rate
            self._frozen = self._encoder if verb == "stuck" else None
