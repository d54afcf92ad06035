"""The `dzedge arm` commands as conversations: what is asked on a terminal, and what stands in for it without one."""

import os
import re
import signal
from collections.abc import Callable
from typing import Any

from rich.console import Console, Group
from rich.live import Live

from dzedge import console
from dzedge.arm_session import PATIENCE_NS, Choice, Site, named
from dzedge.arm_view import reading, servo_rows, state_rows
from dzedge.clock import NS
from dzedge.errors import DeviceError, PortError, SafetyError, UsageError
from dzedge.hardware import make_writable
from dzedge.hardware.serial_port import list_ports, reopen
from dzedge.hardware.servo_tool import PROTOCOLS, SCAN_ALLOWANCE_NS, Found, open_bus
from dzedge.hardware.set_up import Target, find_single, rates, scan, set_up, targets
from dzedge.prompt import ask, asks

NOTHING_FOUND = (
    "no servo answers: is the power on (USB alone drives none), the cable whole, the id within --ids? Two servos of "
    "one id answer over each other: connect one"
)
REFRESH_NS = NS // 10
SHADOW = ".shadow"


def parse_ids(text: str) -> tuple[int, ...]:
    """`1-30`, `1,2,11-16`. UsageError for anything else, or ids outside 0 to 252."""
    found: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,3})(?:-(\d{1,3}))?\s*", part)
        ends = [int(end) for end in match.groups(match[1])] if match else []
        if not ends or not 0 <= ends[0] <= ends[1] <= 252:
            raise UsageError(f"--ids {text}: must be ids from 0 to 252, like 1-30 or 1,2,11-16")
        found += range(ends[0], ends[1] + 1)
    return tuple(dict.fromkeys(found))


def scan_ports(
    port: str | None, protocol: str, ids: str, bauds: list[int] | None
) -> tuple[dict[str, list[Found]], dict[str, str]]:
    """Servos by port, and why ports could not be looked at. UsageError for a wrong option; PortError where there is no
    port, or the one that was asked for cannot be used."""
    wanted = parse_ids(ids)
    drivers = tuple(PROTOCOLS) if protocol == "both" else (protocol,)
    if not set(drivers) <= set(PROTOCOLS):
        raise UsageError(f"--protocol {protocol}: must be {', '.join(PROTOCOLS)} or both")
    ports = [port] if port else _each_once(list_ports())
    if not ports:
        raise PortError("this machine has no serial port: is the adapter plugged in, and its driver there?")
    found: dict[str, list[Found]] = {}
    troubles: dict[str, str] = {}
    for path in ports:
        looks = [(driver, bauds or rates(driver)) for driver in drivers]
        total = sum(len(those) for _, those in looks) * len(wanted)
        with console.progress(path, total) as advance:
            try:
                found[path] = [
                    servo
                    for driver, those in looks
                    for servo in scan(_quick(path), driver, those, wanted, advance)
                ]
            except PortError as error:
                if port:
                    raise
                found[path], troubles[path] = [], str(error)
    return found, troubles


def _each_once(paths: list[str]) -> list[str]:
    """The first name of each port: /dev/serial has up to two links to every tty."""
    first: dict[str, str] = {}
    for path in paths:
        first.setdefault(os.path.realpath(path), path)
    return list(first.values())


def _quick(path: str) -> Callable[[str, int], Any]:
    """An opener that does not wait long for servos that are not there."""
    return lambda driver, baud: open_bus(driver, path, baud, allowance_ns=SCAN_ALLOWANCE_NS)


class SetUp:
    """`dzedge arm setup`."""

    def __init__(self, site: Site, ids: tuple[int, ...], yes: bool, as_json: bool) -> None:
        site.need_servos("setup")
        self.site, self.ids, self.yes, self.as_json = site, ids, yes, as_json

    def run(self, joints: list[str], restart: bool) -> dict[str, Any]:
        """Servo after servo; what each became. Raises as `set_up.find_single` and `set_up.set_up`."""
        progress = self.site.progress
        if restart:
            progress.setup = {}
        chosen = self._choose(joints)
        if len(chosen) > 1 and not asks(self.as_json):
            raise UsageError(f"without a terminal one servo at a time: --joint {_key(chosen[0])} --yes")
        for target in chosen:
            if not joints and _key(target) in progress.setup:
                self._say(f"{target.name}: was set up already (id {target.id}, {target.baud} baud); --restart: again")
                continue
            done = self._ask_and_do(target)
            if done is None:
                break
            progress.setup[_key(target)] = {"id": target.id, "baud": target.baud, "written": done}
            progress.save()
            self._say(f"{target.name}: id {target.id} at {target.baud} baud; " + (", ".join(done) or "was so already"))
        left = [_key(target) for target in targets(self.site.config.arm) if _key(target) not in progress.setup]
        if not left:
            self._say("all servos are set up: connect them in a chain, then `dzedge arm calibrate`")
        return {"servos": progress.setup, "left": left}

    def _choose(self, joints: list[str]) -> list[Target]:
        """From the gripper to the base, as LeRobot has it: what is assembled last is the easiest to reach."""
        known = {_key(target): target for target in reversed(targets(self.site.config.arm))}
        for joint in joints:
            if joint not in known:
                raise UsageError(f"--joint {joint}: must be of {', '.join(known)}")
        return [known[joint] for joint in joints] or list(known.values())

    def _ask_and_do(self, target: Target) -> list[str] | None:
        """What was written; None where the user wants to stop. On a terminal a failure is told and tried again."""
        while True:
            if not self.yes:
                if not asks(self.as_json):
                    raise SafetyError(f"is only {target.name}'s servo connected? Say so with --yes; nothing was done")
                if ask(f"Connect only the servo of [bold]{target.name}[/] ({target.model}); Enter, q stops") == "q":
                    return None
            try:
                with console.progress(target.name, len(self.ids)) as advance:
                    found = find_single(_quick(self.site.port), target, self.ids, advance)
                return set_up(self.site.opener, found, target)
            except DeviceError as error:
                if self.yes or not asks(self.as_json):
                    raise
                Console(stderr=True, markup=False).print(str(error), style="red")

    def _say(self, words: str) -> None:
        if not self.as_json:
            console.tell(words)


def _key(target: Target) -> str:
    return target.joint + (SHADOW if target.shadow else "")


# ---- reading


def gripper_name(site: Site) -> str | None:
    """The joint whose position is no angle."""
    last = site.config.arm.joints[-1]
    return last.name if last.kind == "gripper" else None


def read_once(site: Site) -> list[dict[str, Any]]:
    """One row a joint; a servo that is silent has a row that says so. PortError, or DeviceError of other arms."""
    joints = site.joints()
    if joints is None or site.config.arm.gripper is not None:
        arm = make_writable(site.config, site.port, site.clock)
        arm.open()
        try:
            return state_rows(arm.names, arm.read())
        finally:
            arm.close()
    with site.servos() as servos:
        return servo_rows(servos, joints)


def watch(site: Site, gripper: str | None) -> None:
    """The table again and again until Ctrl-C. An adapter that was unplugged is waited for; nothing is ever written."""
    terminal = Console(markup=False)
    rows = read_once(site)  # a port that cannot be used from the first is told at once
    pressed: list[int] = []

    def press(number: int, frame: object) -> None:
        pressed.append(number)  # an exception is lost where it meets a finalizer; this is not
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, press)
    try:
        with Live(console=terminal, auto_refresh=False) as live:
            while not pressed:
                live.update(Group(*reading(rows, gripper, site.port, "Ctrl-C ends it")), refresh=True)
                try:
                    rows = read_once(site)
                except PortError as error:
                    live.update(str(error), refresh=True)
                    reopen(site.port, site.config.arm.baud, PATIENCE_NS).close()
                site.clock.sleep_until_ns(site.clock.now_ns() + REFRESH_NS)
    except KeyboardInterrupt:
        return
    finally:
        signal.signal(signal.SIGINT, before)


# ---- moving


def drive(site: Site, choose: Choice, speed: float, *, release: bool, as_json: bool) -> None:
    """Move, see `Site.drive`, and tell where to."""
    command, arrived = site.drive(choose, speed, release=release)
    names = site.config.arm.names
    measured = named(names, arrived.positions)
    if as_json:
        console.emit({"command": named(names, command), "measured": measured, "torque": not release})
        return
    console.tell("  ".join(f"{name} {value:+.3f}" for name, value in measured.items()))
    console.tell("torque is off" if release else "the arm holds; `dzedge arm park` or `release` lets it go")
