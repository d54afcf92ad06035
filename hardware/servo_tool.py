"""One servo as set-up and tools see it, of either protocol: registers by name, EEPROM with care, its state in words.

What differs between the protocols (locks, offsets, alerts) and is no transaction is here. Nothing of this runs in a
control cycle.
"""

from dataclasses import dataclass
from typing import Protocol

from dzedge.clock import NS
from dzedge.errors import BusError, DeviceError
from dzedge.hardware.control_table import (
    ControlTable,
    Register,
    by_number,
    explain_dynamixel_error,
    explain_error,
    firmware,
    models,
    table,
)
from dzedge.hardware.feetech_bus import FeetechBus
from dzedge.hardware.serial_port import SerialPort
from dzedge.hardware.transactions import ALLOWANCE_NS, Clock, Port

PROTOCOLS = {"feetech": "feetech", "dynamixel": "dynamixel2"}
"""A control table's protocol, by the arm's driver."""
SCAN_ALLOWANCE_NS = 20 * NS // 1000
"""For the adapter while scanning: an FTDI's latency timer takes 16 ms."""
STATE = (
    "torque_enable", "goal_position", "present_position", "present_speed", "present_velocity", "present_load",
    "present_current", "present_voltage", "present_temperature", "hardware_error",
)  # fmt: skip
"""Registers of a state; a model has most of them."""
RPM_TICKS = 4096 / 60
"""[ticks/s] of a revolution a minute."""


class Answer(Protocol):
    """A servo's reply. error: its ERR byte; data: what was read."""

    @property
    def error(self) -> int: ...

    @property
    def data(self) -> bytes: ...


class ToolBus(Protocol):
    """Transactions with single servos, by name too; BusError where one does not answer or does not take a value."""

    @property
    def port(self) -> Port: ...

    def ping(self, servo: int) -> Answer | None: ...

    def read(self, servo: int, address: int, count: int) -> Answer: ...

    def write(self, servo: int, address: int, data: bytes) -> Answer: ...

    def get(self, servo: int, name: str) -> int: ...

    def set(self, servo: int, name: str, value: int) -> None: ...

    def set_eeprom(self, servo: int, name: str, value: int) -> bool: ...


def open_bus(
    driver: str,
    where: "str | Port",
    baud: int,
    *,
    clock: Clock | None = None,
    allowance_ns: int = ALLOWANCE_NS,
    first: int = 1,
) -> ToolBus:
    """The servo bus of a driver on a port that is opened for it. first: a servo that may be asked for an echo.

    Raises PortError.
    """
    port = SerialPort(where, baud) if isinstance(where, str) else where
    try:
        if driver == "dynamixel":
            from dzedge.hardware.dynamixel_bus import DynamixelBus

            return DynamixelBus(port, clock=clock, allowance_ns=allowance_ns)
        bus = FeetechBus(port, clock=clock, allowance_ns=allowance_ns)
        bus.detect_echo(first)
        return bus
    except BaseException:
        port.close()
        raise


@dataclass(frozen=True, slots=True)
class ServoState:
    """What a servo says of itself. position, goal: [ticks]; speed: [ticks/s]; load: fraction of its torque; current:
    [A]; None: it does not measure that; voltage [V]; temperature [deg C]; alerts: in words, "" without any."""

    torque: bool
    position: int
    goal: int
    speed: float
    load: float | None
    current: float | None
    voltage: float
    temperature: float
    alerts: str


class ServoTool:
    """Servo `id` of a known model on `bus`."""

    def __init__(self, bus: ToolBus, id: int, model: ControlTable) -> None:
        self.bus, self.id, self.table = bus, id, model

    def __repr__(self) -> str:
        return f"servo {self.id} ({self.table.model})"

    @property
    def feetech(self) -> bool:
        return self.table.protocol == "feetech"

    # ---- registers

    def get(self, name: str) -> int:
        """A register by name, in counts."""
        return self.bus.get(self.id, name)

    def set(self, name: str, value: int) -> None:
        """Write a register by name and read it back; BusError where it did not take the value."""
        self.bus.set(self.id, name, value)

    def set_eeprom(self, name: str, value: int) -> bool:
        """Set an EEPROM register where it differs, for it wears; returns whether it was written. Torque goes off."""
        if self.get(name) == value:
            return False
        self._torque_off()
        return self.bus.set_eeprom(self.id, name, value)

    def _torque_off(self) -> None:
        if self.get("torque_enable") != 0:
            self.set("torque_enable", 0)

    def unlock(self) -> None:
        """Let EEPROM be written: torque off (both), lock 0 (Feetech)."""
        self._torque_off()
        if self.feetech:
            self.set("lock", 0)

    def lock(self) -> None:
        """Protect EEPROM again; a Dynamixel's is while torque is on."""
        if self.feetech:
            self.set("lock", 1)

    def move_to(self, name: str, value: int) -> None:
        """Write `id` or `baud_rate`, after which the servo listens elsewhere: an answer is not waited for in vain, and
        who calls must verify there."""
        register = self.table[name]
        self.unlock()
        try:
            self.bus.write(self.id, register.address, register.encode(value))
        except BusError:
            pass  # it may acknowledge as whom it was, as whom it is, or not at all

    # ---- state

    def state(self) -> ServoState:
        """One read of all that lies between torque_enable and the last present value."""
        known = [self.table[name] for name in STATE if name in self.table]
        first = min(register.address for register in known)
        count = max(register.address + register.size for register in known) - first
        answer = self.bus.read(self.id, first, count)
        if len(answer.data) != count:
            raise BusError(f"{self.bus.port.path}: {self} refuses a read: {self._complaint(answer.error)}")
        raw = {register.name: _part(register, answer.data, first) for register in known}

        def scaled(name: str) -> float | None:
            return raw[name] * self.table[name].scale if name in raw else None

        speed = scaled("present_speed")
        if speed is None:
            speed = (scaled("present_velocity") or 0.0) * RPM_TICKS
        return ServoState(
            torque=raw["torque_enable"] == 1,
            position=raw["present_position"],
            goal=raw["goal_position"],
            speed=speed,
            load=scaled("present_load"),
            current=scaled("present_current"),
            voltage=scaled("present_voltage") or 0.0,
            temperature=scaled("present_temperature") or 0.0,
            alerts=self._complaint(answer.error, raw.get("hardware_error", 0)),
        )

    def _complaint(self, error: int, hardware: int = 0) -> str:
        return explain_error(error) if self.feetech else explain_dynamixel_error(error, hardware)


def _part(register: Register, data: bytes, first: int) -> int:
    at = register.address - first
    return register.decode(data[at : at + register.size])


@dataclass(frozen=True, slots=True)
class Found:
    """A servo that answered. number: its model number; model: its name, "" where it is not known; firmware: version;
    baud: at which it was heard; alerts: in words."""

    driver: str
    id: int
    baud: int
    number: int
    model: str
    firmware: str
    alerts: str


def identify(bus: ToolBus, driver: str, servo: int) -> Found | None:
    """Who answers as `servo`, or None. A servo that answers a ping and no read is reported as of no known model."""
    if bus.ping(servo) is None:
        return None
    any_model = generic(driver)
    tool = ServoTool(bus, servo, any_model)
    try:
        number = tool.get("model")
        known = by_number(PROTOCOLS[driver], number)
        if driver == "feetech":
            version = firmware(tool.get("firmware_major"), tool.get("firmware_minor"))
        else:
            version = str(tool.get("firmware"))
        alerts = ServoTool(bus, servo, known or any_model).state().alerts
    except DeviceError as error:
        return Found(driver, servo, bus.port.baud, 0, "", "", f"answers a ping, but: {error}")
    return Found(driver, servo, bus.port.baud, number, known.model if known else "", version, alerts)


def generic(driver: str) -> ControlTable:
    """Some table of a driver's protocol: where all its models agree (model, firmware, id, baud_rate)."""
    return next(known for known in map(table, models()) if known.protocol == PROTOCOLS[driver])
