"""The Feetech STS3215's registers as data.

Sources: Feetech's STS3215 memory table (wiki.aifitlab.com), its `ftservo-python-sdk` 2.0.1, LeRobot's tables;
where they differ (baud index 5 to 7) the vendor's. One count of a register is `scale` of its `unit`.
"""

from dataclasses import dataclass

TICKS_PER_TURN = 4096
MODEL_STS3215 = 777
BAUD_RATES = (1_000_000, 500_000, 250_000, 128_000, 115_200, 76_800, 57_600, 38_400)
"""[bit/s], by the value of `baud_rate`."""


@dataclass(frozen=True, slots=True)
class Register:
    """One register. size: [bytes], little-endian; sign_bit: of sign-and-magnitude values, None: unsigned;
    eeprom: survives power-off and is written only while `lock` is 0; writable: by the host."""

    name: str
    address: int
    size: int = 1
    unit: str = ""
    scale: float = 1.0
    sign_bit: int | None = None
    eeprom: bool = False
    writable: bool = True


_RAM = (
    Register("torque_enable", 40),  # 1: on, 0: off, 128: make the present position the middle
    Register("acceleration", 41, 1, "ticks/s^2", 100.0),
    Register("goal_position", 42, 2, "ticks", sign_bit=15),  # writing it also switches torque on
    Register("goal_time", 44, 2, "ms"),
    Register("goal_speed", 46, 2, "ticks/s", sign_bit=15),  # 0: as fast as it can
    Register("torque_limit", 48, 2, "1", 0.001),
    Register("lock", 55),
    Register("present_position", 56, 2, "ticks", sign_bit=15, writable=False),
    Register("present_speed", 58, 2, "ticks/s", sign_bit=15, writable=False),
    Register("present_load", 60, 2, "1", 0.001, sign_bit=10, writable=False),
    Register("present_voltage", 62, 1, "V", 0.1, writable=False),
    Register("present_temperature", 63, 1, "deg C", writable=False),
    Register("status", 65, writable=False),
    Register("moving", 66, writable=False),
    Register("present_current", 69, 2, "A", 0.0065, sign_bit=15, writable=False),
)


def _eeprom() -> tuple[Register, ...]:
    """Name, address, size, unit, scale, sign bit, host may write."""
    rows: tuple[tuple[str, int, int, str, float, int | None, bool], ...] = (
        ("firmware_major", 0, 1, "", 1.0, None, False),
        ("firmware_minor", 1, 1, "", 1.0, None, False),
        ("model", 3, 2, "", 1.0, None, False),
        ("id", 5, 1, "", 1.0, None, True),
        ("baud_rate", 6, 1, "", 1.0, None, True),
        ("return_delay", 7, 1, "us", 2.0, None, True),
        ("status_level", 8, 1, "", 1.0, None, True),  # 0: answers ping and read only, 1: everything
        ("min_position", 9, 2, "ticks", 1.0, None, True),
        ("max_position", 11, 2, "ticks", 1.0, None, True),
        ("max_temperature", 13, 1, "deg C", 1.0, None, True),
        ("max_voltage", 14, 1, "V", 0.1, None, True),
        ("min_voltage", 15, 1, "V", 0.1, None, True),
        ("max_torque", 16, 2, "1", 0.001, None, True),
        ("phase", 18, 1, "", 1.0, None, True),  # bit 4: multi-turn; positions then exceed 0..4095
        ("unload_condition", 19, 1, "", 1.0, None, True),
        ("p_gain", 21, 1, "", 1.0, None, True),
        ("d_gain", 22, 1, "", 1.0, None, True),
        ("i_gain", 23, 1, "", 1.0, None, True),
        ("startup_force", 24, 2, "1", 0.001, None, True),
        ("dead_zone_cw", 26, 1, "ticks", 1.0, None, True),
        ("dead_zone_ccw", 27, 1, "ticks", 1.0, None, True),
        ("protection_current", 28, 2, "A", 0.0065, None, True),
        ("offset", 31, 2, "ticks", 1.0, 11, True),  # present = encoder - offset
        ("mode", 33, 1, "", 1.0, None, True),  # 0 position, 1 velocity, 2 PWM, 3 step
        ("protective_torque", 34, 1, "1", 0.01, None, True),
        ("protection_time", 35, 1, "s", 0.01, None, True),
        ("overload_torque", 36, 1, "1", 0.01, None, True),
    )
    return tuple(Register(n, a, s, u, f, sign, True, w) for n, a, s, u, f, sign, w in rows)


STS3215: dict[str, Register] = {register.name: register for register in (*_eeprom(), *_RAM)}
"""Register by name."""

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
"""Bits of the ERR byte that comes with every reply."""


def explain_error(error: int) -> str:
    """An ERR byte in words; empty for 0."""
    known = [text for bit, text in ERROR_BITS.items() if error & bit]
    rest = error & ~sum(ERROR_BITS)
    return ", ".join([*known, *([f"unknown bits 0x{rest:02x}"] if rest else [])])


def firmware(major: int, minor: int) -> str:
    """Firmware version as Feetech writes it, e.g. 3.10."""
    return f"{major}.{minor}"
