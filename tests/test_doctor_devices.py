"""The doctor's device checks on machines built out of a few files."""

import io
import os
import re
import subprocess
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest
from rich.console import Console

from dzedge import config, doctor, doctor_cameras, doctor_serial
from dzedge.check import Check, document, script, table
from dzedge.errors import CameraError
from dzedge.hardware import udev
from dzedge.hardware.camera import CameraInfo
from dzedge.hardware.host import Host
from dzedge.hardware.usb import devices

RELEASE = "6.8.12-tegra"


class Machine:
    """A folder that stands for /: user "ann" (uid 1000), kernel RELEASE with all drivers, nothing attached."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.shut: set[str] = set()
        self.write("/proc/sys/kernel/osrelease", RELEASE)
        self.write("/proc/self/status", "Uid:\t1000\t1000\t1000\t1000\nGid:\t1000\t1000\nGroups:\t20 1000")
        self.write("/etc/passwd", "root:x:0:0::/root:/bin/sh\nann:x:1000:1000::/home/ann:/bin/sh")
        self.write("/etc/group", "root:x:0:\ndialout:x:20:ann\nvideo:x:44:\nann:x:1000:")
        self.write("/proc/modules", "usbcore 1 0 - Live 0x0")
        self.modules("ftdi_sio", "cdc-acm", "ch341", "cp210x", "uvcvideo")

    def write(self, name: str, text: str) -> None:
        path = self.root / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n", encoding="utf-8")

    def link(self, name: str, target: str) -> None:
        path = self.root / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(target)

    def modules(self, *names: str) -> None:
        folder = f"/lib/modules/{RELEASE}"
        self.write(f"{folder}/modules.dep", "\n".join(f"kernel/drivers/{n}.ko.zst: kernel/usb.ko" for n in names))
        self.write(f"{folder}/modules.builtin", "kernel/drivers/tty/pty.ko")

    def process(self, pid: int, name: str, *command: str, holds: str = "") -> None:
        self.write(f"/proc/{pid}/comm", name)
        (self.root / f"proc/{pid}/cmdline").write_bytes("\0".join(command).encode() + b"\0")
        if holds:
            self.link(f"/proc/{pid}/fd/7", holds)

    def usb(self, name: str, ids: str, title: str = "", serial: str = "", speed: str = "12") -> str:
        vendor, product = ids.split(":")
        folder = f"/sys/bus/usb/devices/{name}"
        told = {"idVendor": vendor, "idProduct": product, "product": title, "serial": serial, "speed": speed}
        for key, value in (told | {"bDeviceClass": "00"}).items():
            if value:
                self.write(f"{folder}/{key}", value)
        return folder

    def hub(self, name: str, title: str) -> None:
        self.write(f"{self.usb(name, '05e3:0626', title, speed='5000')}/bDeviceClass", "09")

    def adapter(self, name: str, ids: str, tty: str = "", serial: str = "", number: str = "188:0") -> None:
        folder = self.usb(name, ids, "USB Serial", serial)
        if tty:
            inside = f"{folder}/{name}:1.0/{tty if 'USB' in tty else f'tty/{tty}'}"
            self.write(f"{inside}/dev", number)
            self.write(f"/sys/class/tty/{tty}/dev", number)
            self.write(f"/dev/{tty}", "")

    def camera(self, name: str, speed: str = "5000", nodes: int = 4, serial: str = "1", metadata: bool = True) -> None:
        folder = self.usb(name, "8086:0b3a", "Intel(R) RealSense(TM) Depth Camera 435i", serial, speed)
        for index in range(nodes):
            video = f"video{index}"
            self.write(f"{folder}/{name}:1.0/video4linux/{video}/index", str(index))
            self.write(f"/sys/class/video4linux/{video}/index", str(index) if metadata else "0")
            self.write(f"/dev/{video}", "")

    @property
    def host(self) -> Host:
        return Host(self.root, lambda path, mode: str(path.relative_to(self.root)) not in self.shut)


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


def real_arm(port: str, cameras=()):
    """The packaged robot file, its arm on a real port."""
    whole = config.load(config.default_path())
    policy = msgspec.structs.replace(whole.policy, allow_test_key=False)
    arm = msgspec.structs.replace(whole.arm, port=port)
    cameras = cameras or (msgspec.structs.replace(whole.cameras[0], driver="realsense", serial="123"),)
    return msgspec.structs.replace(whole, policy=policy, arm=arm, cameras=tuple(cameras))


def by_name(checks: list[Check]) -> dict[str, Check]:
    assert len({check.name for check in checks}) == len(checks), [check.name for check in checks]
    return {check.name: check for check in checks}


def serial(machine: Machine, robot=None) -> dict[str, Check]:
    return by_name(doctor_serial.examine(machine.host, robot))


class TestNothingAttached:
    def test_is_well(self, machine):
        found = serial(machine)
        assert {check.status for check in found.values()} == {"ok"}
        assert found["serial adapters"].found == "none attached"

    def test_the_rules_are_recommended_before_anything_is(self, machine):
        for checks in (serial(machine), cameras(machine)):
            text = script(checks.values())
            assert udev.TEXT in text and "# recommended, udev rules" in text and document([*checks.values()])["ok"]
        machine.write(udev.PLACE, udev.TEXT)
        for checks in (serial(machine), cameras(machine)):
            assert "nothing" in script(checks.values()).lower()

    def test_rules_for_one_adapter_are_not_those_for_all(self, machine):
        machine.write("/etc/udev/rules.d/99-servo.rules", 'ATTRS{idVendor}=="1a86", MODE="0660"')
        assert serial(machine)["udev rules, serial"].fix == udev.INSTALL

    def test_an_empty_root_is_survived(self, tmp_path):
        checks = doctor_serial.examine(Host(tmp_path), real_arm("/dev/ttyACM0"))
        assert by_name(checks)["serial port"].status == "fail"
        doctor_cameras.examine(Host(tmp_path), None, live, lambda: __file__)


class TestLatencyTimer:
    FILE = "/sys/bus/usb-serial/devices/ttyUSB0/latency_timer"

    @pytest.mark.parametrize(("ms", "status"), [("16", "warn"), ("2", "warn"), ("1", "ok")])
    def test_more_than_one_is_too_much(self, machine, ms, status):
        machine.adapter("1-1", "0403:6014", "ttyUSB0", "FT1")
        machine.write(self.FILE, ms)
        check = serial(machine)["FTDI latency timer"]
        assert check.status == status and f"ttyUSB0: {ms} ms" == check.found
        assert (f"echo 1 | sudo tee {self.FILE}" in check.fix) is (status == "warn")

    def test_acm_boards_have_none(self, machine):
        machine.adapter("1-1", "1a86:55d3", "ttyACM0", "5A1", "166:0")
        assert "FTDI latency timer" not in serial(machine)


class TestModemManager:
    def attach(self, machine, *command):
        machine.adapter("1-1", "1a86:55d3", "ttyACM0", "5A1", "166:0")
        machine.process(77, "ModemManager", *command)

    @pytest.mark.parametrize(
        ("command", "status", "words"),
        [
            ((), "warn", "of its version"),
            (("--filter-policy=strict",), "warn", "strict policy"),
            (("--filter-policy=STRICT",), "warn", "strict policy"),
            (("--filter-policy", "allowlist-only"), "ok", "allowlist-only"),
            (("--filter-policy=whitelist-only",), "ok", "whitelist-only"),
        ],
    )
    def test_policies(self, machine, command, status, words):
        self.attach(machine, "/usr/sbin/ModemManager", *command)
        check = serial(machine)["ModemManager"]
        assert check.status == status and words in check.found
        assert ("ttyACM0" in check.why) is (status == "warn")
        assert (udev.INSTALL[0] in check.fix) is (status == "warn")

    def test_an_ignored_adapter_is_safe(self, machine):
        self.attach(machine, "/usr/sbin/ModemManager")
        machine.write("/run/udev/data/c166:0", "S:serial/by-id/x\nE:ID_MM_PORT_IGNORE=1")
        check = serial(machine)["ModemManager"]
        assert check.status == "ok" and "marked to be ignored" in check.found and "1.12" not in check.found

    def test_the_device_tag_alone_may_not_do_with_strict(self, machine):
        self.attach(machine, "/usr/sbin/ModemManager", "--filter-policy=strict")
        machine.write("/run/udev/data/c166:0", "E:ID_MM_DEVICE_IGNORE=1")
        assert "1.12" in serial(machine)["ModemManager"].found

    def test_a_rule_that_is_written_but_not_in_force_does_not_help(self, machine):
        self.attach(machine, "/usr/sbin/ModemManager")
        machine.write("/etc/udev/rules.d/60-dzedge.rules", udev.TEXT)
        found = serial(machine)
        assert found["ModemManager"].status == "warn" and found["udev rules, serial"].status == "ok"

    def test_without_adapter_it_disturbs_nobody(self, machine):
        machine.process(77, "ModemManager", "/usr/sbin/ModemManager")
        assert serial(machine)["ModemManager"].status == "ok"


class TestBrltty:
    RULES = 'ENV{PRODUCT}=="1a86/7523/*", ENV{BRLTTY_BRAILLE_DRIVER}="bm", GOTO="brltty_usb_run"'

    def test_steals_a_ch340(self, machine):
        machine.write("/usr/lib/udev/rules.d/85-brltty.rules", self.RULES)
        machine.adapter("1-1", "1a86:7523")
        check = serial(machine)["brltty"]
        assert check.status == "fail" and "85-brltty.rules" in check.found
        assert "sudo apt-get remove brltty" in check.fix

    def test_may_steal_one_that_still_has_its_tty(self, machine):
        machine.process(9, "brltty", "/bin/brltty")
        machine.adapter("1-1", "1a86:7523", "ttyUSB0")
        assert serial(machine)["brltty"].status == "warn"

    @pytest.mark.parametrize("masked", ["mask", "comment"])
    def test_masked_rules_do_nothing(self, machine, masked):
        machine.adapter("1-1", "1a86:7523", "ttyUSB0")
        machine.write("/usr/lib/udev/rules.d/85-brltty.rules", f"# {self.RULES}" if masked == "comment" else self.RULES)
        if masked == "mask":
            machine.link("/etc/udev/rules.d/85-brltty.rules", "/dev/null")
        assert serial(machine)["brltty"].status == "ok"

    def test_leaves_others_alone(self, machine):
        machine.write("/usr/lib/udev/rules.d/85-brltty.rules", self.RULES)
        machine.adapter("1-1", "0403:6014", "ttyUSB0", "FT1")
        assert serial(machine)["brltty"].status == "ok"


class TestDrivers:
    def test_ch341_is_missing_on_jetpack_7(self, machine):
        machine.modules("ftdi_sio", "cdc-acm")
        machine.adapter("1-1", "1a86:7523")
        check = serial(machine)["driver ch341"]
        assert check.status == "fail" and f"ch341 absent in kernel {RELEASE}" in check.found
        assert "CH343" in check.advice and not check.fix

    def test_says_so_before_one_is_bought(self, machine):
        machine.modules("ftdi_sio", "cdc-acm")
        check = serial(machine)["driver ch341"]
        assert check.status == "ok" and "JetPack 7" in check.found
        machine.modules("ch341")
        assert "driver ch341" not in serial(machine)

    def test_one_that_is_not_loaded_can_be(self, machine):
        machine.adapter("1-1", "1a86:7523")
        assert serial(machine)["driver ch341"].fix[0] == "sudo modprobe ch341"

    def test_one_that_is_loaded_and_made_no_tty_was_driven_out(self, machine):
        machine.write("/proc/modules", "ch341 24576 0 - Live 0x0")
        machine.adapter("1-1", "1a86:7523")
        check = serial(machine)["driver ch341"]
        assert check.status == "fail" and "brltty" in check.advice and not check.fix

    def test_a_container_without_modules_is_no_fault(self, machine):
        for file in (machine.root / "lib/modules" / RELEASE).iterdir():
            file.unlink()
        assert "driver ch341" not in serial(machine)


class TestDialout:
    def membership(self, machine, effective: str, listed: str) -> Check:
        machine.write("/proc/self/status", f"Uid:\t1000\t1000\t1000\t1000\nGid:\t1000\t1000\nGroups:\t{effective}\n")
        machine.write("/etc/group", f"dialout:x:20:{listed}\nann:x:1000:")
        return serial(machine)["dialout"]

    def test_member(self, machine):
        machine.adapter("1-1", "1a86:55d3", "ttyACM0")
        assert self.membership(machine, "20", "ann").status == "ok"

    def test_only_after_the_next_login(self, machine):
        machine.adapter("1-1", "1a86:55d3", "ttyACM0")
        check = self.membership(machine, "1000", "bob,ann")
        assert check.status == "warn" and "next login" in check.found and not check.fix

    def test_stranger(self, machine):
        machine.adapter("1-1", "1a86:55d3", "ttyACM0")
        check = self.membership(machine, "1000", "bob")
        assert check.status == "warn" and check.fix[0].startswith("sudo usermod -aG dialout ann")

    def test_stranger_without_adapter(self, machine):
        assert self.membership(machine, "1000", "bob").status == "ok"

    def test_root(self, machine):
        machine.write("/proc/self/status", "Uid:\t0\t0\t0\t0\nGid:\t0\t0\nGroups:\t\n")
        assert serial(machine)["dialout"].status == "ok"


class TestRules:
    @pytest.mark.parametrize(
        ("rule", "covered"),
        [
            ('ATTRS{idVendor}=="1a86", ATTRS{idProduct}=="55d3", MODE="0660"', True),
            ('ATTRS{idVendor}=="1A86", ATTRS{idProduct}=="55D3", MODE="0660"', True),
            ('ATTRS{idVendor}=="1a86", \\\n  ATTRS{idProduct}=="7523|55d?", MODE="0660"', True),
            ('ATTRS{idVendor}=="1a86", MODE="0660"', True),
            ('ATTRS{idVendor}=="1a86", ATTRS{idProduct}=="7523", MODE="0660"', False),
            ('#ATTRS{idVendor}=="1a86", MODE="0660"', False),
            ('ATTRS{idVendor}=="0403", MODE="0660"', False),
        ],
    )
    def test_that_name_the_device(self, machine, rule, covered):
        machine.adapter("1-1", "1a86:55d3", "ttyACM0")
        machine.write("/etc/udev/rules.d/99-servo.rules", rule)
        check = serial(machine)["udev rules, serial"]
        assert (check.status == "ok") is covered and (check.fix == udev.INSTALL) is not covered

    def test_ours_cover_all_that_we_know(self, machine):
        machine.write(udev.PLACE, udev.TEXT)
        known = "0403:6014 0403:6001 2f5d:2202 1a86:55d3 1a86:7523 10c4:ea60 2341:0043 2e8a:000a"
        for number, ids in enumerate(known.split()):
            machine.adapter(f"1-{number + 1}", ids, f"ttyUSB{number}", str(number))
        machine.camera("2-1")
        assert serial(machine)["udev rules, serial"].status == "ok"
        assert cameras(machine)["udev rules, cameras"].status == "ok"

    def test_ours_are_well_formed(self):
        for line in udev.TEXT.replace("\\\n", "").splitlines():
            if not line.startswith("#"):
                for field in line.split(","):
                    assert re.fullmatch(r'\s*[A-Za-z]+(\{\w+\})?(==|!=|\+=|=)"[^"]*"\s*', field), line


class TestNames:
    def test_two_boards_without_serial_number(self, machine):
        machine.adapter("1-1", "1a86:7523", "ttyUSB0")
        machine.adapter("1-2", "1a86:7523", "ttyUSB1", number="188:1")
        check = serial(machine)["serial names"]
        assert check.status == "warn" and "ttyUSB0, ttyUSB1" in check.found and "by-path" in check.advice
        robot = real_arm("/dev/serial/by-id/usb-1a86_USB_Serial-if00-port0")
        assert serial(machine, robot)["serial names"].status == "fail"

    def test_two_boards_with_their_own(self, machine):
        machine.adapter("1-1", "1a86:55d3", "ttyACM0", "A")
        machine.adapter("1-2", "1a86:55d3", "ttyACM1", "B")
        assert serial(machine)["serial names"].status == "ok"

    def test_a_number_in_the_robot_file(self, machine):
        machine.adapter("1-1", "1a86:55d3", "ttyACM0", "A")
        assert serial(machine, real_arm("/dev/ttyACM0"))["serial names"].status == "warn"


class TestModbus:
    @pytest.mark.parametrize(("installed", "gripper", "missed"), [(False, True, 1), (True, True, 0), (False, False, 0)])
    def test_its_library(self, machine, monkeypatch, installed, gripper, missed):
        monkeypatch.setattr(doctor_serial, "find_spec", lambda name: object() if installed else None)
        port = SimpleNamespace(port="/dev/ttyUSB9", baud=115200)
        arm = SimpleNamespace(simulated=False, port="/dev/ttyACM0", baud=1, gripper=port if gripper else None)
        found = [check.name for check in doctor_serial.examine(machine.host, SimpleNamespace(arm=arm))]
        assert found.count("minimalmodbus") == missed and found.count("serial port") == 1 + gripper


class TestPort:
    def plugged(self, machine):
        machine.adapter("1-1", "1a86:55d3", "ttyACM0", "A")
        machine.link("/dev/serial/by-path/pci-usb-0:1:1.0", "../../ttyACM0")
        return real_arm("/dev/serial/by-path/pci-usb-0:1:1.0")

    def test_free(self, machine):
        check = serial(machine, self.plugged(machine))["serial port"]
        assert check.status == "ok" and "= /dev/ttyACM0" in check.found and "1000000 baud" in check.found

    def test_a_simulated_arm_is_held_by_its_simulator(self, machine):
        machine.write("/dev/pts/4", "")
        machine.process(412, "dzedge", "dzedge", "sim", holds="/dev/pts/4")
        check = serial(machine, real_arm("/dev/pts/4"))["serial port"]
        assert check.status == "ok" and "pseudo-terminal" in check.found

    def test_absent(self, machine):
        self.plugged(machine)
        check = serial(machine, real_arm("/dev/ttyACM7"))["serial port"]
        assert check.status == "fail" and "by-path/pci-usb-0:1:1.0, /dev/ttyACM0" in check.found

    def test_no_permission(self, machine):
        robot = self.plugged(machine)
        machine.shut.add("dev/ttyACM0")
        check = serial(machine, robot)["serial port"]
        assert check.status == "fail" and "permission" in check.found and "usermod" in check.fix[0]

    def test_open_in_another_program(self, machine):
        robot = self.plugged(machine)
        machine.process(412, "screen", "screen", "/dev/ttyACM0", holds="/dev/ttyACM0")
        machine.process(413, "other", "other", holds="/dev/ttyACM1")
        check = serial(machine, robot)["serial port"]
        assert check.status == "fail" and "screen (412)" in check.found and "other" not in check.found
        assert check.fix == ("kill 412  # screen (412)",)

    def test_locked_by_somebody_whose_files_cannot_be_seen(self, machine):
        robot = self.plugged(machine)
        told = os.stat(machine.root / "dev/ttyACM0")
        place = f"{os.major(told.st_dev):02x}:{os.minor(told.st_dev):02x}:{told.st_ino}"
        locks = [f"1: {kind}  ADVISORY  WRITE {pid} {place} 0 EOF" for kind, pid in (("POSIX", 5), ("FLOCK", 414))]
        machine.write("/proc/locks", "\n".join(locks))
        machine.process(414, "dzedge")
        check = serial(machine, robot)["serial port"]
        assert check.status == "fail" and "locked by dzedge (414)" in check.found and "(5)" not in check.found


class Live:
    """Who finds RealSense cameras: each (serial, firmware, usb)."""

    def __init__(self, *infos: tuple[str, str, str], recommended: str = "5.17.0.10") -> None:
        self.infos, self.recommended, self.closed = infos, recommended, False

    def attached(self) -> list[CameraInfo]:
        return [CameraInfo("D435i", serial, firmware, usb, "2-1") for serial, firmware, usb in self.infos]

    def find(self, serial: str):
        del serial
        return self

    def info(self, key: str) -> str:
        return {"recommended": self.recommended}[key]

    def reset(self, device) -> None:
        raise AssertionError("a doctor resets nothing")

    def close(self) -> None:
        self.closed = True


def live() -> Live:
    return Live()


def cameras(machine: Machine, robot=None, provider: Live | None = None) -> dict[str, Check]:
    def sdk() -> str:
        machine.write("/usr/lib/sdk.so", "v4l_uvc_device")
        return str(machine.root / "usr/lib/sdk.so")

    return by_name(doctor_cameras.examine(machine.host, robot, lambda: provider or Live(), sdk))


class TestCameraLink:
    def test_usb_3(self, machine):
        machine.hub("2-1", "Hub of the desk")
        machine.camera("2-1.4")
        check = cameras(machine)["USB link"]
        assert check.status == "ok" and "5000 Mbit/s behind 2-1 Hub of the desk" in check.found

    def test_stepped_down(self, machine):
        machine.camera("1-2", speed="480")
        check = cameras(machine)["USB link"]
        assert check.status == "warn" and "480 Mbit/s" in check.found and "USB 2" in check.why

    def test_many_on_one_bus(self, machine):
        for port in (1, 2):
            machine.camera(f"2-{port}", serial=str(port))
        found = doctor_cameras.examine(machine.host, None, Live, lambda: __file__)
        assert "USB bandwidth" not in [check.name for check in found]
        machine.camera("2-3", serial="3")
        found = doctor_cameras.examine(machine.host, None, Live, lambda: __file__)
        assert [c.found for c in found if c.name == "USB bandwidth"] == ["3 RealSense cameras on USB bus 2"]


class TestMetadata:
    def test_nodes_there(self, machine):
        machine.write("/sys/module/uvcvideo/version", "1.1.2.realsense-1.3.28")
        machine.camera("2-1")
        check = cameras(machine)["camera metadata"]
        assert check.status == "ok" and "2 of 4" in check.found and "patched" in check.found

    def test_no_nodes(self, machine):
        machine.write("/sys/module/uvcvideo/version", "1.1.1")
        machine.camera("2-1", metadata=False)
        check = cameras(machine)["camera metadata"]
        assert check.status == "warn" and "0 of 4" in check.found and "patched" not in check.found

    def test_udev_knows_better_than_the_order(self, machine):
        machine.camera("2-1", nodes=2)
        for minor, kind in enumerate([":capture:", ":capture:"]):
            machine.write(f"/sys/class/video4linux/video{minor}/dev", f"81:{minor}")
            machine.write(f"/run/udev/data/c81:{minor}", f"E:ID_V4L_CAPABILITIES={kind}")
        assert cameras(machine)["camera metadata"].status == "warn"
        machine.write("/run/udev/data/c81:1", "E:ID_V4L_CAPABILITIES=:")
        assert cameras(machine)["camera metadata"].status == "ok"

    def test_no_video_devices_at_all(self, machine):
        machine.camera("2-1", nodes=0)
        check = cameras(machine)["video devices"]
        assert check.status == "fail" and check.fix == ("sudo modprobe uvcvideo",)


class TestBackend:
    @pytest.mark.parametrize(
        ("text", "status", "words"),
        [("v4l_uvc_device", "ok", "V4L2"), ("rs_uvc_device", "warn", "RSUSB"), ("nothing", "ok", "cannot be told")],
    )
    def test_is_read_from_the_library(self, machine, text, status, words):
        machine.write("/lib/x.so", text)
        found = by_name(doctor_cameras.examine(machine.host, None, Live, lambda: str(machine.root / "lib/x.so")))
        assert found["librealsense backend"].status == status and words in found["librealsense backend"].found

    def test_of_the_installed_wheel(self):
        from dzedge.hardware.librealsense import library

        assert doctor_cameras._backends(Path(library().path)) == (True, False)

    def test_missing_library(self, machine):
        def gone():
            raise CameraError("librealsense: not installed")

        assert by_name(doctor_cameras.examine(machine.host, None, gone, gone))["librealsense"].status == "fail"


class TestFirmware:
    @pytest.mark.parametrize(
        ("firmware", "recommended", "status"),
        [("5.9.13.0", "5.17.0.10", "warn"), ("5.17.0.10", "5.17.0.10", "ok"), ("5.17.1.1", "5.17.0.10", "ok"),
         ("5.16.0.1", "", "ok"), ("", "5.17.0.10", "ok")],
    )  # fmt: skip
    def test_older_than_recommended(self, machine, firmware, recommended, status):
        machine.camera("2-1")
        provider = Live(("123", firmware, "3.2"), recommended=recommended)
        check = cameras(machine, provider=provider)["camera firmware"]
        assert check.status == status and ("rs-fw-update -s 123" in check.advice) is (status == "warn")
        assert provider.closed


class TestCamerasOfTheRobot:
    @pytest.mark.parametrize(
        ("serial_number", "usb", "status", "words"),
        [("123", "3.2", "ok", "USB 3.2"), ("123", "2.1", "fail", "USB 2.1"), ("999", "3.2", "fail", "123 absent")],
    )
    def test_realsense(self, machine, serial_number, usb, status, words):
        machine.camera("2-1")
        found = cameras(machine, real_arm("/dev/ttyACM0"), Live((serial_number, "5.17.0.10", usb)))
        assert found["camera front"].status == status and words in found["camera front"].found

    @pytest.mark.parametrize(("allowed", "status"), [(True, "warn"), (False, "fail")])
    def test_usb_2_may_be_allowed(self, machine, allowed, status):
        machine.camera("1-1", speed="480")
        robot = real_arm("/dev/ttyACM0")
        robot = real_arm("/dev/ttyACM0", [msgspec.structs.replace(robot.cameras[0], allow_usb2=allowed)])
        check = cameras(machine, robot, Live(("123", "5.17.0.10", "2.1")))["camera front"]
        assert check.status == status and ("refuses" in check.why) is not allowed and "allow_usb2" in check.advice

    def test_one_that_librealsense_does_not_see(self, machine):
        machine.camera("2-1")
        assert "0 of 1" in cameras(machine, real_arm("/dev/ttyACM0"))["librealsense finds"].found

    def test_without_rights(self, machine):
        machine.camera("2-1")
        machine.shut.add("dev/video2")
        check = cameras(machine)["camera rights"]
        assert check.status == "fail" and "/dev/video2" in check.found and "/dev/video1" not in check.found

    def test_webcam_and_recording(self, machine):
        table = {"width": 640, "height": 480, "fps": 30}
        from dzedge.camera_config import Camera

        robot = real_arm("/dev/ttyACM0", [
            Camera(name="one", driver="v4l2", format="yuyv", serial="CAM9", **table),
            Camera(name="two", driver="v4l2", format="yuyv", path="/dev/v4l/by-path/x", **table),
            Camera(name="three", driver="playback", format="rgb8", path="/gone.db3", **table),
        ])  # fmt: skip
        folder = machine.usb("1-5", "046d:0825", "Webcam", "CAM9", "480")
        machine.write(f"{folder}/1-5:1.0/video4linux/video6/index", "0")
        machine.write("/dev/v4l/by-path/x", "")
        found = cameras(machine, robot)
        assert [found[f"camera {name}"].status for name in ("one", "two", "three")] == ["ok", "ok", "fail"]
        assert "/dev/video6" in found["camera one"].found

    def test_webcams_that_look_alike(self, machine):
        for number in (6, 8):
            folder = machine.usb(f"1-{number}", "046d:0825", "Webcam", "", "480")
            machine.write(f"{folder}/1-{number}:1.0/video4linux/video{number}/index", "0")
        check = cameras(machine)["camera names"]
        assert check.status == "warn" and "/dev/video6, /dev/video8" in check.found and "by-path" in check.advice


class TestReport:
    def found(self, machine) -> list[Check]:
        machine.adapter("1-1", "0403:6014", "ttyUSB0", "FT1")
        machine.write(TestLatencyTimer.FILE, "16")
        machine.process(77, "ModemManager", "/usr/sbin/ModemManager")
        return doctor_serial.examine(machine.host, None)

    def test_every_line_says_what_why_and_what_to_do(self, machine):
        for check in self.found(machine):
            assert check.name and check.found
            if check.status != "ok":
                assert check.why and check.advice, check

    def test_the_script_is_shell_and_says_each_command_once(self, machine, tmp_path):
        text = script(self.found(machine))
        assert text.count("sudo tee /etc/udev/rules.d/60-dzedge.rules") == 1
        assert "# ModemManager: running" in text and "echo 1 | sudo tee" in text
        file = tmp_path / "fix.sh"
        file.write_text(text)
        subprocess.run(["sh", "-n", str(file)], check=True)
        assert udev.TEXT in text

    def test_json_has_it_all(self, machine):
        told = document(self.found(machine))
        assert told["ok"] is True and "60-dzedge.rules" in told["fix"]
        assert set(told["checks"][0]) == {"name", "status", "found", "advice", "why", "fix"}

    def test_the_table_gives_reasons_of_what_is_not_well_only(self):
        console = Console(width=100, record=True, file=io.StringIO())
        well, ill = Check("a", "ok", "good", why="never said"), Check("b", "warn", "bad", "mend it", "it hurts")
        console.print(table([well, ill]))
        text = console.export_text()
        assert "never said" not in text and "it hurts" in text and "-> mend it" in text

    def test_the_whole_doctor_on_a_built_machine(self, machine):
        self.found(machine)
        names = [check.name for check in doctor._devices(None, machine.host)]
        assert {"FTDI latency timer", "librealsense backend", "udev rules, serial"} <= set(names)


def test_hubs_are_no_devices(machine):
    machine.hub("2-1", "Hub")
    machine.adapter("2-1.3", "1a86:55d3", "ttyACM0", "A")
    (device,) = devices(machine.host)
    assert device.hubs == ("2-1 Hub",) and device.ttys == ("ttyACM0",) and device.bus == "2"
