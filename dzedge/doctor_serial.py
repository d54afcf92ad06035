"""Serial adapters and the robot's port: drivers, rights, other programs, latency. Reads files, opens nothing."""

import os
import re
import stat
from collections import Counter
from collections.abc import Iterator, Mapping
from importlib.util import find_spec

from dzedge.check import Check, Status
from dzedge.config import RobotConfig
from dzedge.hardware import udev
from dzedge.hardware.host import Host
from dzedge.hardware.serial_port import holders
from dzedge.hardware.usb import UsbDevice, devices

FTDI_LATENCY_MS = 1
POLICIES_WITHOUT_PROBING = ("allowlist-only", "whitelist-only")
LOGIN = "then log out and in again"
RULES_FIRST = f"recommended before one is plugged in: write {udev.PLACE}, as `dzedge doctor --fix` prints it"


def examine(host: Host, config: RobotConfig | None) -> list[Check]:
    """All checks of serial lines. config: the robot's, None where there is none to be read."""
    adapters = [device for device in devices(host) if device.adapter is not None]
    ports = _ports(config)
    return [
        _adapters(adapters),
        *_drivers(host, adapters),
        *_braille(host, adapters),
        *_modem_manager(host, adapters),
        *_rules(host, adapters),
        *_latency(host, adapters),
        *_names(adapters, ports),
        *_dialout(host, adapters, ports),
        *_modbus(config),
        *(check for port, baud in ports.items() for check in _port(host, port, baud, adapters)),
    ]


def _ports(config: RobotConfig | None) -> dict[str, int]:
    """The serial ports that a robot file names, with their rates [bit/s]."""
    if config is None or config.arm.simulated:
        return {}
    arm = config.arm
    return {arm.port: arm.baud} | ({arm.gripper.port: arm.gripper.baud} if arm.gripper is not None else {})


def _called(device: UsbDevice) -> str:
    assert device.adapter is not None
    where = ", ".join(device.ttys) or f"USB {device.name}, without a tty"
    return f"{device.adapter.title} {device.ids} ({where}; {device.serial or 'no serial number'})"


def _adapters(adapters: list[UsbDevice]) -> Check:
    return Check("serial adapters", "ok", "; ".join(map(_called, adapters)) or "none attached")


def _drivers(host: Host, adapters: list[UsbDevice]) -> Iterator[Check]:
    """Adapters on USB for which the kernel made no tty, and a kernel that could not for a CH340."""
    missing = [device for device in adapters if not device.ttys]
    for driver in sorted({device.adapter.driver for device in missing if device.adapter is not None}):
        names = ", ".join(_called(d) for d in missing if d.adapter is not None and d.adapter.driver == driver)
        there = host.module(driver)
        found = f"{names}; {driver} {there} in kernel {host.release}"
        why = "without a tty nothing can talk to it"
        if there == "absent":
            yield Check(f"driver {driver}", "fail", found, _without(driver), why)
        elif there == "there":
            load = (f"sudo modprobe {driver}", f"echo {driver} | sudo tee /etc/modules-load.d/{driver}.conf")
            yield Check(f"driver {driver}", "fail", found, "load it", why, load)
        else:
            advice = "another driver or brltty holds it: see `lsusb -t` and `dmesg`, then unplug it and plug it in"
            yield Check(f"driver {driver}", "fail", found, advice, why)
    if not missing and host.module("ch341") == "absent":
        found = f"not in kernel {host.release}: a CH340 board would get no tty (JetPack 7 is built so)"
        yield Check("driver ch341", "ok", found, why="many low-cost servo boards have a CH340")


def _without(driver: str) -> str:
    if driver == "ch341":
        return "build ch341 for this kernel, or take a board with CH343, FTDI or an OpenRB-150, whose drivers are there"
    return f"build {driver} for this kernel, or take another adapter"


def _braille(host: Host, adapters: list[UsbDevice]) -> Iterator[Check]:
    """brltty takes a CH34x or CP210x for a braille display."""
    rules = [name for name, text in host.rules().items() if "brltty" in name and "1a86" in text.lower()]
    running = any(process.name == "brltty" for process in host.processes())
    if not rules and not running:
        yield Check("brltty", "ok", "not here")
        return
    found = " and ".join(["running"] * running + [f"rules in {', '.join(rules)}"] * bool(rules))
    taken = [d for d in adapters if d.vendor in ("1a86", "10c4")]
    if not taken:
        yield Check("brltty", "ok", f"{found}, but no adapter that it would take is attached")
        return
    status: Status = "warn" if all(device.ttys for device in taken) else "fail"
    fix = ("sudo apt-get remove brltty", *(f"sudo ln -sf /dev/null /etc/udev/rules.d/{name}" for name in rules))
    why = f"it takes {', '.join(map(_called, taken))} for a braille display, and the tty vanishes"
    advice = "remove it, or mask its rules where somebody needs it; then unplug the adapter and plug it in"
    yield Check("brltty", status, found, advice, why, (*fix, "sudo udevadm control --reload-rules"))


def _modem_manager(host: Host, adapters: list[UsbDevice]) -> Iterator[Check]:
    running = [process for process in host.processes() if process.name == "ModemManager"]
    if not running:
        yield Check("ModemManager", "ok", "not running")
        return
    policy = _policy(" ".join(running[0].command))
    found = f"running, {policy + ' policy' if policy else 'policy of its version'}"
    if policy in POLICIES_WITHOUT_PROBING:
        yield Check("ModemManager", "ok", found)
        return
    open_to_it = [d for d in adapters if d.ttys and not udev.ignored_by_modem_manager(host, d)]
    if not open_to_it:
        told = "; every adapter here is marked to be ignored" if any(d.ttys for d in adapters) else "; no adapter here"
        half = [d for d in adapters if d.ttys and not udev.ignored_by_modem_manager(host, d, port_only=True)]
        if policy == "strict" and half:
            told += ", by ID_MM_DEVICE_IGNORE alone, which versions before 1.12 do not obey with this policy"
        yield Check("ModemManager", "ok", found + told)
        return
    names = ", ".join(tty for device in open_to_it for tty in device.ttys)
    why = f"it sends modem commands to {names} for seconds after plugging in"
    if policy == "strict":
        why = f"the strict policy still probes ttyACM; {why}"
    advice = "install the udev rules that make it ignore servo adapters, or remove it from a robot"
    yield Check("ModemManager", "warn", found, advice, why, udev.INSTALL)


def _policy(command: str) -> str:
    match = re.search(r"--filter-policy[= ]([\w-]+)", command)
    return match[1].lower() if match else ""


def _rules(host: Host, adapters: list[UsbDevice]) -> Iterator[Check]:
    if not adapters:
        if not udev.cover_adapters(host):
            found = "none for all adapters that dzedge knows; none is attached now"
            yield Check("udev rules, serial", "ok", found, RULES_FIRST, fix=udev.INSTALL)
        return
    missing = [device for device in adapters if not udev.covers(host, device)]
    if not missing:
        yield Check("udev rules, serial", "ok", f"there for {', '.join(d.ids for d in adapters)}")
        return
    why = "rights, ModemManager and the latency timer are then left to chance"
    found = f"none for {', '.join(map(_called, missing))}"
    yield Check("udev rules, serial", "warn", found, f"write {udev.PLACE}", why, udev.INSTALL)


def _latency(host: Host, adapters: list[UsbDevice]) -> Iterator[Check]:
    for tty in (tty for device in adapters for tty in device.ttys):
        file = f"/sys/bus/usb-serial/devices/{tty}/latency_timer"
        told = host.read(file)
        if not told.isdigit():
            continue  # only FTDI chips have one
        if int(told) <= FTDI_LATENCY_MS:
            yield Check("FTDI latency timer", "ok", f"{tty}: {told} ms")
            continue
        why = "a reply waits so long in the chip; dzedge asks for 1 ms itself, other programs do not"
        fix = (f"echo {FTDI_LATENCY_MS} | sudo tee {file}", *udev.INSTALL)
        advice = f"set it to {FTDI_LATENCY_MS} now, and by udev rules for good"
        yield Check("FTDI latency timer", "warn", f"{tty}: {told} ms", advice, why, fix)


def _names(adapters: list[UsbDevice], ports: Mapping[str, int]) -> Iterator[Check]:
    """Two boards that /dev/serial/by-id cannot tell apart."""
    with_tty = [device for device in adapters if device.ttys]
    twice = Counter((d.vendor, d.product, d.serial) for d in with_tty)
    alike = [d for d in with_tty if twice[d.vendor, d.product, d.serial] > 1]
    if alike:
        status: Status = "fail" if any("by-id" in port for port in ports) else "warn"
        words = "no serial number" if not alike[0].serial else f"the same serial number {alike[0].serial}"
        found = f"{', '.join(tty for d in alike for tty in d.ttys)}: {len(alike)} boards with {words}"
        why = "/dev/serial/by-id has one name for both, and ttyUSB and ttyACM numbers change from boot to boot"
        advice = "name each by /dev/serial/by-path/..., and keep it in its socket"
        yield Check("serial names", status, found, advice, why)
        return
    unstable = [port for port in ports if re.fullmatch(r"/dev/tty(USB|ACM)\d+", port)]
    if unstable:
        advice = "write its name in /dev/serial/by-path (or by-id) into the robot file"
        why = "the number changes with the order of plugging in"
        yield Check("serial names", "warn", ", ".join(unstable), advice, why)
    elif with_tty:
        yield Check("serial names", "ok", "every board can be told apart")


def _dialout(host: Host, adapters: list[UsbDevice], ports: Mapping[str, int]) -> Iterator[Check]:
    """Whether the user is in the group that owns serial ports."""
    user = host.user()
    if user.uid == 0:
        yield Check("dialout", "ok", "root may open every port")
        return
    group = _owning_group(host, [*ports, *(f"/dev/{tty}" for d in adapters for tty in d.ttys)])
    number = host.group_number(group)
    if number in user.groups:
        yield Check("dialout", "ok", f"{user.name} is in group {group}")
        return
    needed = bool(ports or any(d.ttys for d in adapters))
    status: Status = "warn" if needed else "ok"
    why = "serial ports belong to that group"
    if group in user.listed:
        yield Check("dialout", status, f"{user.name} is in group {group} from the next login on", "log out and in", why)
        return
    found = f"{user.name} is not in group {group}"
    fix = (f"sudo usermod -aG {group} {user.name}  # {LOGIN}",)
    advice = f"sudo usermod -aG {group} {user.name}, {LOGIN}" if needed else ""
    yield Check("dialout", status, found, advice, why, fix)


def _owning_group(host: Host, ports: list[str]) -> str:
    """That of the first port that is there; "dialout" where none is, as on Debian."""
    for port in ports:
        try:
            told = host.path(host.resolve(port)).stat()
        except OSError:
            continue
        if told.st_mode & stat.S_IRGRP and told.st_gid:
            return host.group(told.st_gid)
    return "dialout"


def _modbus(config: RobotConfig | None) -> Iterator[Check]:
    """The optional library of a Modbus gripper."""
    if config is not None and config.arm.gripper is not None and find_spec("minimalmodbus") is None:
        why = "the robot file's Modbus gripper is spoken to by it"
        install = "pip install 'dzedge[modbus]'"
        yield Check("minimalmodbus", "fail", "not installed", install, why, (install,))


def _port(host: Host, port: str, baud: int, adapters: list[UsbDevice]) -> Iterator[Check]:
    """A port of the robot file: is it there, may it be opened, does somebody else have it."""
    if not host.exists(port):
        ttys = [f"/dev/{tty}" for device in adapters for tty in device.ttys]
        there = ", ".join(host.names("/dev/serial/by-path/*") + ttys) or "none"
        advice = "plug the arm in, switch it on, and name it by /dev/serial/by-path/... (or by-id) in the robot file"
        yield Check("serial port", "fail", f"{port} absent; found: {there}", advice, "the arm hangs on it")
        return
    real = host.resolve(port)
    if not host.access(host.path(real), os.R_OK | os.W_OK):
        user, group = host.user(), _owning_group(host, [port])
        fix = (f"sudo usermod -aG {group} {user.name}  # {LOGIN}",)
        advice = f"sudo usermod -aG {group} $USER, {LOGIN}"
        yield Check("serial port", "fail", f"{port}: no permission", advice, "it cannot be opened", fix)
        return
    held, locked = holders(real, host.path("/proc")), host.lockers(real)
    if real.startswith("/dev/pts/"):
        yield Check("serial port", "ok", f"{port} = {real}, a pseudo-terminal: something simulates the arm")
        return
    if held or locked:
        both = sorted({*held, *locked})
        found = f"{port} is open in {', '.join(both)}" + (f", locked by {', '.join(locked)}" if locked else "")
        ends = tuple(f"kill {_pid(who)}  # {who}" for who in both)
        why = "two programs on one line read each other's answers; dzedge locks the port and refuses"
        yield Check("serial port", "fail", found, "end it first", why, ends)
        return
    yield Check("serial port", "ok", f"{port}{f' = {real}' if real != port else ''} at {baud} baud, free")


def _pid(who: str) -> str:
    return who.rpartition("(")[2].rstrip(")")
