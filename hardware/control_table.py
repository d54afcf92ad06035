"""Control tables: what stands in a servo's registers. One data file for each model lies in `tables/`, with its source.

One count of a register is `scale` of its `unit`. Names are the same for both protocols where the meaning is:
`id baud_rate return_delay mode offset min_position max_position torque_enable goal_position present_position
present_voltage present_temperature ...`; mind that `offset` is subtracted by a Feetech and added by a Dynamixel.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any

from dzedge.errors import BusError, ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

TICKS_PER_TURN = 4096


@dataclass(frozen=True, slots=True)
class Register:
    """One register. size: [bytes], little-endian; sign_bit: of sign-and-magnitude values (Feetech), signed: two's
    complement (Dynamixel), neither: unsigned; eeprom: survives power-off and is written only while unlocked (Feetech:
    `lock` is 0, Dynamixel: `torque_enable` is 0); writable: by the host; initial: as shipped or after a reset, None:
    not known; low, high: the counts that the servo accepts."""

    name: str
    address: int
    size: int = 1
    unit: str = ""
    scale: float = 1.0
    sign_bit: int | None = None
    eeprom: bool = False
    writable: bool = True
    signed: bool = False
    initial: int | None = None
    low: int | None = None
    high: int | None = None

    def decode(self, data: bytes) -> int:
        """The value, in counts, of `size` bytes."""
        raw = int.from_bytes(data, "little", signed=self.signed)
        if self.sign_bit is None:
            return raw
        magnitude = raw & (1 << self.sign_bit) - 1
        return -magnitude if raw >> self.sign_bit & 1 else magnitude

    def encode(self, value: int) -> bytes:
        """The bytes of a value in counts; BusError where it does not fit."""
        bits = 8 * self.size
        low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if self.signed else (0, (1 << bits) - 1)
        raw = value
        if self.sign_bit is not None:
            high = (1 << self.sign_bit) - 1
            low, raw = -high, -value | 1 << self.sign_bit if value < 0 else value
        if not low <= value <= high:
            raise BusError(f"{self.name} = {value} does not fit in its {self.size} bytes: [{low}, {high}]")
        return raw.to_bytes(self.size, "little", signed=self.signed)


@dataclass(frozen=True, slots=True)
class ControlTable:
    """A servo model. number: what its `model` register holds; protocol: "feetech" or "dynamixel2"; baud_rates: [bit/s]
    by the value of `baud_rate`; modes: the values of `mode` that it has; indirect: for each indirect area the first
    address register (2 bytes each), the first data byte and their count."""

    model: str
    number: int
    protocol: str
    ticks_per_turn: int
    baud_rates: tuple[int, ...]
    modes: tuple[int, ...]
    registers: Mapping[str, Register]
    indirect: tuple[tuple[int, int, int], ...] = field(default=())

    def __getitem__(self, name: str) -> Register:
        """A register by name; BusError names the model where it has none of that name."""
        try:
            return self.registers[name]
        except KeyError:
            raise BusError(f"a {self.model} has no register {name!r}: its data file names those it has") from None

    def __contains__(self, name: str) -> bool:
        return name in self.registers


def _document(model: str) -> dict[str, Any]:
    """A data file laid over its base."""
    own = tomllib.loads(files("dzedge.hardware").joinpath("tables", f"{model}.toml").read_text(encoding="utf-8"))
    if "base" not in own:
        return own
    base = _document(own.pop("base"))
    without = own.pop("without", [])
    for area in ("eeprom", "ram"):
        registers = {**base.get(area, {}), **own.pop(area, {})}
        base[area] = {name: rest for name, rest in registers.items() if name not in without}
    return base | own


def _registers(document: dict[str, Any]) -> dict[str, Register]:
    """By name, in the order of their addresses."""
    rows = [
        Register(name, row["at"], eeprom=area == "eeprom", **{key: row[key] for key in row if key != "at"})
        for area in ("eeprom", "ram")
        for name, row in document[area].items()
    ]
    return {register.name: register for register in sorted(rows, key=lambda register: register.address)}


@cache
def models() -> tuple[str, ...]:
    """Names of the models that have a data file, e.g. "sts3215", "xl330-m288"."""
    names = (entry.name for entry in files("dzedge.hardware").joinpath("tables").iterdir())
    found = sorted(name.removesuffix(".toml") for name in names if name.endswith(".toml"))
    return tuple(name for name in found if "number" in _document(name))


@cache
def table(model: str) -> ControlTable:
    """The control table of a model by name; ConfigError where there is none."""
    if model not in models():
        raise ConfigError(f"no control table of a servo model {model!r}; there is {', '.join(models())}")
    document = _document(model)
    return ControlTable(
        model=model,
        number=document["number"],
        protocol=document["protocol"],
        ticks_per_turn=document["ticks_per_turn"],
        baud_rates=tuple(document["baud_rates"]),
        modes=tuple(document["modes"]),
        registers=_registers(document),
        indirect=tuple((first, data, count) for first, data, count in document.get("indirect", ())),
    )


@cache
def by_number(protocol: str, number: int) -> ControlTable | None:
    """The control table of the model that says `number` of itself; None where it is not known."""
    known = (table(model) for model in models())
    return next((found for found in known if (found.protocol, found.number) == (protocol, number)), None)


STS3215: Mapping[str, Register] = table("sts3215").registers
"""Register by name."""
MODEL_STS3215 = table("sts3215").number
BAUD_RATES = table("sts3215").baud_rates
"""[bit/s], by the value of `baud_rate`."""

EEPROM_END = 40
"""Addresses below it are EEPROM."""

PRESENT = STS3215["present_position"].address
"""Where a state is read from: position, speed, load, voltage, temperature, ..., current."""
STATE_BYTES = 15
"""Present position (56) to present current (70)."""

ERROR_BITS = {
    1: "voltage outside the servo's limits",
    2: "angle sensor",
    4: "overheated",
    8: "overcurrent",
    32: "overloaded",
}
"""Bits of the ERR byte that comes with every reply of a Feetech."""


def explain_error(error: int) -> str:
    """An ERR byte in words; empty for 0."""
    return _bits(error, ERROR_BITS)


def firmware(major: int, minor: int) -> str:
    """Firmware version as Feetech writes it, e.g. 3.10."""
    return f"{major}.{minor}"


HIGHEST_ID = 252
"""Of a Dynamixel."""
NO_SECONDARY = 255
"""What `secondary_id` ships with; every value above HIGHEST_ID means that there is none."""
DYNAMIXEL_ALERT = 0x80
"""Bit of a Dynamixel's ERR byte: read `hardware_error`. The others are a number, see DYNAMIXEL_ERRORS."""
DYNAMIXEL_ERRORS = {
    1: "failed to do it",
    2: "unknown instruction, or action without reg write",
    3: "received a damaged instruction",
    4: "value outside the register's range, or its bus watchdog has tripped",
    5: "fewer bytes than the register has",
    6: "value outside the servo's own limits",
    7: "read-only or unknown register, or EEPROM while torque is on",
}
"""Source: ROBOTIS e-manual, protocol2, status packet."""
HARDWARE_ERROR_BITS = {
    1: "input voltage outside the servo's limits",
    4: "overheated",
    8: "motor encoder",
    16: "electrical shock, or too little power for the motor",
    32: "overloaded",
}
"""Bits of a Dynamixel's `hardware_error`. Source: ROBOTIS e-manual, shutdown(63)."""
REBOOT_CURE = "torque is off until it is rebooted: support the arm, then cycle its power (a reboot clears it, too)"


def explain_dynamixel_error(error: int, hardware: int | None = None) -> str:
    """A Dynamixel's ERR byte, and its `hardware_error` where that was read, in words; empty for 0."""
    number = error & ~DYNAMIXEL_ALERT
    texts = [DYNAMIXEL_ERRORS.get(number, f"unknown error number {number}")] if number else []
    if hardware:
        texts.append(f"{_bits(hardware, HARDWARE_ERROR_BITS)} ({REBOOT_CURE})")
    elif error & DYNAMIXEL_ALERT:
        texts.append("alert: read hardware_error")
    return ", ".join(texts)


def _bits(value: int, names: Mapping[int, str]) -> str:
    known = [text for bit, text in names.items() if value & bit]
    rest = value & ~sum(names)
    return ", ".join([*known, *([f"unknown bits 0x{rest:02x}"] if rest else [])])
