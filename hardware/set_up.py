"""Finding servos on a line and giving them their ids and rates, one servo at a time.

Servos ship with id 1 (and Dynamixels at 57600 baud): two new ones on a line both answer, and nobody is understood. So
set-up takes one servo at a time, looks for it at every rate, and writes EEPROM only where it differs.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from dzedge.arm_config import Arm
from dzedge.clock import NS, MonotonicClock
from dzedge.errors import BusError, DeviceError
from dzedge.hardware.control_table import HIGHEST_ID, NO_SECONDARY, table
from dzedge.hardware.servo_tool import Found, ServoTool, ToolBus, generic, identify

Opener = Callable[[str, int], ToolBus]
"""(driver, baud) -> an open bus: `servo_tool.open_bus` with a port."""
SETTLE_NS = NS // 5
"""After a new rate, before the servo is asked at it."""


@dataclass(frozen=True, slots=True)
class Target:
    """What a servo is to become. joint: whose servo it is; shadow: the second one of its joint, which obeys the id
    `leader` besides its own."""

    joint: str
    id: int
    model: str
    baud: int
    driver: str
    shadow: bool = False
    leader: int = -1

    @property
    def name(self) -> str:
        return f"{self.joint} (shadow)" if self.shadow else self.joint


def targets(arm: Arm) -> tuple[Target, ...]:
    """Every servo of an arm, from the base outwards; none for what is no servo on a bus."""
    found = []
    for joint in arm.joints:
        if joint.id < 0:
            continue
        found.append(Target(joint.name, joint.id, joint.model, arm.baud, arm.driver))
        if joint.shadow_id is not None:
            found.append(
                Target(joint.name, joint.shadow_id, joint.model, arm.baud, arm.driver, shadow=True, leader=joint.id)
            )
    return tuple(found)


def rates(driver: str) -> tuple[int, ...]:
    """Rates to look at [bit/s]: first those that servos are found at, then all others of the protocol."""
    known = generic(driver).baud_rates
    likely = (1_000_000, 57_600, 115_200)
    return (*(rate for rate in likely if rate in known), *(rate for rate in known if rate not in likely))


def scan(
    opener: Opener,
    driver: str,
    bauds: Sequence[int],
    ids: Iterable[int],
    advance: Callable[[str], None] = lambda where: None,
) -> Iterator[Found]:
    """Servos that answer, rate by rate. advance: told where it looks. PortError where the port cannot be used; a rate
    that the adapter does not know is passed over."""
    wanted, unusable = tuple(ids), 0
    for baud in bauds:
        try:
            bus = opener(driver, baud)
        except DeviceError:
            unusable += 1
            if unusable == len(bauds) or baud == bauds[0]:
                raise
            continue
        try:
            for servo in wanted:
                advance(f"{driver} {baud} baud, id {servo}")
                found = identify(bus, driver, servo)
                if found is not None:
                    yield found
        finally:
            bus.port.close()


def find_single(
    opener: Opener, target: Target, ids: Iterable[int], advance: Callable[[str], None] = lambda where: None
) -> Found:
    """The one servo on the line, at the target's rate or any other. BusError: none, several, or another model."""
    order = (target.baud, *(rate for rate in rates(target.driver) if rate != target.baud))
    for baud in order:
        found = list(scan(opener, target.driver, (baud,), ids, advance))
        if len(found) > 1:
            ids_found = ", ".join(str(one.id) for one in found)
            raise BusError(
                f"{len(found)} servos answer at {baud} baud (ids {ids_found}): connect only that of {target.name}"
            )
        if found:
            _check_model(found[0], target)
            return found[0]
    raise BusError(
        f"no servo answers at {', '.join(map(str, order))} baud: connect that of {target.name}, check its cable and "
        "power (two new servos at once answer over each other)"
    )


def _check_model(found: Found, target: Target) -> None:
    if found.number != table(target.model).number:
        what = found.model or f"a servo of model number {found.number}"
        raise BusError(
            f"servo {found.id} at {found.baud} baud is {what}, {target.name} needs a {target.model}: take the other "
            "servo, or change model in the robot file"
        )


def set_up(opener: Opener, found: Found, target: Target, clock: MonotonicClock | None = None) -> list[str]:
    """Make the servo that was found the target's; what was written, in words, [] where all was right already.

    Everything is verified under the new id and rate. BusError where it did not take.
    """
    clock = clock or MonotonicClock()
    done = []
    bus = opener(found.driver, found.baud)
    try:
        tool = ServoTool(bus, found.id, table(target.model))
        leader = target.leader if target.shadow else NO_SECONDARY
        none = HIGHEST_ID + 1  # and all above
        if "secondary_id" in tool.table and min(tool.get("secondary_id"), none) != min(leader, none):
            tool.set_eeprom("secondary_id", leader)
            done.append(f"secondary_id {leader}")
        if found.id != target.id:
            if bus.ping(target.id) is not None:
                raise BusError(f"id {target.id} is taken by another servo on the line: connect only one")
            tool.move_to("id", target.id)
            tool = ServoTool(bus, target.id, tool.table)
            _verify(tool, "id", target.id)
            done.append(f"id {found.id} -> {target.id}")
        if found.baud != target.baud:
            tool.move_to("baud_rate", tool.table.baud_rates.index(target.baud))
            done.append(f"baud {found.baud} -> {target.baud}")
    finally:
        bus.port.close()
    clock.sleep_until_ns(clock.now_ns() + (SETTLE_NS if found.baud != target.baud else 0))
    _confirm(opener, target)
    return done


def _verify(tool: ServoTool, name: str, value: int) -> None:
    now = tool.get(name)
    if now != value:
        raise BusError(f"{tool}: {name} is {now} instead of {value} after it was written; do it again")


def _confirm(opener: Opener, target: Target) -> None:
    """As the target, at its rate: does it answer, and is its EEPROM protected again?"""
    bus = opener(target.driver, target.baud)
    try:
        tool = ServoTool(bus, target.id, table(target.model))
        _verify(tool, "id", target.id)
        _verify(tool, "baud_rate", tool.table.baud_rates.index(target.baud))
        tool.lock()
    finally:
        bus.port.close()
