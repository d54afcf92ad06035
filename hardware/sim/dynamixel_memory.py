"""The memory of an emulated Dynamixel as the host sees it: what may be read, what may be written, and why not."""

from abc import abstractmethod

from dzedge.hardware.control_table import Register, table
from dzedge.hardware.sim.dynamixel_table import Layout, layout
from dzedge.hardware.sim.emulated_servo import EmulatedServo

RESULT_FAIL, INSTRUCTION, RANGE, LENGTH, LIMIT, ACCESS = 1, 2, 4, 5, 6, 7
"""Error numbers of a status packet. Source: ROBOTIS e-manual, protocol2."""
Answer = tuple[int, bytes]
"""ERR byte, data."""
POSITION = 3
"""The operating mode in which goals have limits."""
TRIPPED = -1
"""What `bus_watchdog` holds once it has run out."""
GOALS = ("goal_pwm", "goal_current", "goal_velocity", "goal_position")
"""Read-only while the bus watchdog has tripped."""
LIMITS = {"goal_pwm": "pwm_limit", "goal_current": "current_limit", "goal_velocity": "velocity_limit"}


class DynamixelMemory(EmulatedServo):
    """A servo's registers with their rules; model: of a control table."""

    def __init__(self, servo_id: int, seed: int, model: str) -> None:
        self.layout: Layout = layout(model)
        self.table = table(model)
        super().__init__(servo_id, seed, model, self.layout.size)

    @property
    def tripped(self) -> bool:
        """Whether the bus watchdog has run out."""
        return self.get("bus_watchdog") == TRIPPED

    @abstractmethod
    def _take_effect(self, names: set[str]) -> None:
        """What follows from new values of these registers."""

    def read(self, address: int, count: int) -> Answer:
        """Registers as the host sees them; an access error beyond the table."""
        if address + count > self.layout.size:
            return ACCESS, b""
        image = self.registers
        if self.fault == "wrong" and self.random.random() < self.rate:
            image = bytearray(image)
            image[132:136] = self.random.randrange(4096).to_bytes(4, "little")
        if self.layout.indirect(address, count):
            return 0, bytes(image[at] for at in self._aims(address, count))
        return 0, bytes(image[address : address + count])

    def _aims(self, address: int, count: int) -> list[int]:
        """Where bytes really lie, once indirect addresses are followed."""
        aims = []
        for at in range(address, address + count):
            pointer = self.layout.pointers.get(at)
            aims.append(at if pointer is None else word(self.registers, pointer))
        return aims

    def write(self, address: int, data: bytes) -> int:
        """Write from `address` on, all or nothing; its error number."""
        if self.layout.indirect(address, len(data)):
            return self._write_indirect(address, data)
        error = self._refused(address, data)
        if not error:
            touched = self.layout.touched(address, len(data))
            assert touched is not None
            self.registers[address : address + len(data)] = data
            self._take_effect({register.name for register in touched})
        return error

    def _write_indirect(self, address: int, data: bytes) -> int:
        """Bytes go where their pointers say, in runs."""
        aims = self._aims(address, len(data))
        start = 0
        for i in range(1, len(aims) + 1):
            if i == len(aims) or aims[i] != aims[i - 1] + 1:
                error = self.write(aims[start], data[start:i])
                if error:
                    return error
                start = i
        return 0

    def _refused(self, address: int, data: bytes) -> int:
        """Why these bytes are not taken; 0: they are."""
        touched = self.layout.touched(address, len(data))
        if touched is None:
            return ACCESS
        if sum(register.size for register in touched) != len(data):
            return LENGTH
        for register in touched:
            at = register.address - address
            value = register.decode(data[at : at + register.size])
            if not register.writable or (register.eeprom and self.registers[64]):
                return ACCESS
            error = self._beyond(register, value)
            if error:
                return error
        return 0

    def _beyond(self, register: Register, value: int) -> int:
        """Error of a value outside what register, model or the servo's own limits allow."""
        name = register.name
        if self.tripped and name in GOALS:
            return RANGE
        low, high = register.low, register.high
        if (low is not None and value < low) or (high is not None and value > high):
            return RANGE
        if name == "mode" and value not in self.table.modes:
            return RANGE
        if name == "goal_position" and self.registers[11] == POSITION:
            return 0 if self.get("min_position") <= value <= self.get("max_position") else LIMIT
        if name in LIMITS and abs(value) > self.get(LIMITS[name]):
            return LIMIT
        return 0


def word(data: bytes | bytearray, at: int) -> int:
    """The 16-bit word at `at`."""
    return data[at] | data[at + 1] << 8
