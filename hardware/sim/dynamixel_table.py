"""Where everything lies in a Dynamixel's memory, worked out once a model from its control table."""

from dataclasses import dataclass
from functools import cache

from dzedge.hardware.control_table import Register, table

INDIRECT = "indirect_address"


@dataclass(frozen=True)
class Layout:
    """size: of the memory [bytes]; initial: its content as it ships; pointers: for each indirect data
    byte the address of its pointer; starts: registers by their first address."""

    size: int
    initial: bytes
    pointers: dict[int, int]
    starts: dict[int, Register]

    def indirect(self, address: int, count: int) -> bool:
        """Whether any of these bytes is an indirect one."""
        return address + count > self.first_pointer and any(
            at in self.pointers for at in range(address, address + count)
        )

    @property
    def first_pointer(self) -> int:
        return min(self.pointers, default=self.size)

    def touched(self, address: int, count: int) -> list[Register] | None:
        """The registers that these bytes are of; None where a byte is of none, or one is met in its middle."""
        found = []
        at = address
        while at < address + count:
            register = self.starts.get(at)
            if register is None:
                return None
            found.append(register)
            at += register.size
        return found


@cache
def layout(model: str) -> Layout:
    """The layout of a model."""
    control = table(model)
    registers = list(control.registers.values())
    pointers: dict[int, int] = {}
    for first, data, count in control.indirect:
        registers += [Register(f"{INDIRECT}_{data + i}", first + 2 * i, 2, initial=data + i) for i in range(count)]
        pointers |= {data + i: first + 2 * i for i in range(count)}
    size = max([register.address + register.size for register in registers] + [at + 1 for at in pointers])
    initial = bytearray(size)
    for register in registers:
        if register.initial is not None:
            initial[register.address : register.address + register.size] = register.encode(register.initial)
    starts = {register.address: register for register in registers}
    # an indirect byte may point anywhere; its pointer is what is checked
    return Layout(size, bytes(initial), pointers, starts)
