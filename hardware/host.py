"""The machine as its own files tell it: processes, modules, groups, udev's rules and what they did.

Everything is read below a root, so that a test may build a machine out of a few files. Nothing is opened but
ordinary files: to open a serial port raises DTR, which resets an Arduino.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

RULES = tuple(f"{folder}/udev/rules.d" for folder in ("/etc", "/run", "/usr/local/lib", "/usr/lib", "/lib"))
"""Folders of udev's rules; a file hides those of its name in later ones (udev(7))."""


@dataclass(frozen=True, slots=True)
class Process:
    """A running process. command: its arguments, [] where they are not told."""

    pid: int
    name: str
    command: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class User:
    """Whose rights count. uid 0 may everything; groups: ids in force; listed: names in /etc/group, which are in force
    only after the next login."""

    name: str
    uid: int
    groups: frozenset[int]
    listed: frozenset[str]


@dataclass(frozen=True, slots=True)
class Host:
    """A machine. root: folder that stands for /; access: as os.access."""

    root: Path = Path("/")
    access: Callable[[Path, int], bool] = os.access

    def path(self, name: str) -> Path:
        """Where the machine's file `name` lies."""
        return self.root / name.lstrip("/")

    def read(self, name: str) -> str:
        """The stripped text of a file; "" where it is absent or may not be read."""
        try:
            return self.path(name).read_text(encoding="utf-8", errors="replace").strip()
        except OSError:
            return ""

    def exists(self, name: str) -> bool:
        return self.path(name).exists()

    def names(self, pattern: str) -> list[str]:
        """Files that match a glob pattern, sorted, named as on the machine."""
        return sorted("/" + str(path.relative_to(self.root)) for path in self.root.glob(pattern.lstrip("/")))

    def resolve(self, name: str) -> str:
        """`name` with its links followed; as it is where it does not exist."""
        real = os.path.realpath(self.path(name))
        root = os.path.realpath(self.root).rstrip("/")
        return real[len(root) :] if real.startswith(root + "/") else real

    @property
    def release(self) -> str:
        """The kernel's."""
        return self.read("/proc/sys/kernel/osrelease")

    def processes(self) -> Iterator[Process]:
        """Those that run."""
        for folder in self.names("/proc/[0-9]*"):
            name = self.read(f"{folder}/comm")
            if name:
                command = self.read(f"{folder}/cmdline").strip("\0")
                yield Process(int(Path(folder).name), name, tuple(command.split("\0")) if command else ())

    def lockers(self, name: str) -> list[str]:
        """Processes with an flock on the file `name`, as "name (pid)"; /proc/locks tells of other users', too."""
        try:
            told = self.path(name).stat()
        except OSError:
            return []
        place = f"{os.major(told.st_dev):02x}:{os.minor(told.st_dev):02x}:{told.st_ino}"
        found = []
        for line in self.read("/proc/locks").splitlines():
            fields = line.split()
            if len(fields) >= 6 and fields[1] == "FLOCK" and fields[5] == place:
                found.append(f"{self.read(f'/proc/{fields[4]}/comm') or 'a process'} ({fields[4]})")
        return sorted(set(found))

    def module(self, name: str) -> str:
        """Of a kernel module: "loaded", "built in", "there" (may be loaded), "absent", or "unknown" in a container."""
        if any(line.split()[0] == name for line in self.read("/proc/modules").splitlines() if line):
            return "loaded"
        folder = f"/lib/modules/{self.release}"
        for listed, words in ("modules.builtin", "built in"), ("modules.dep", "there"):
            files = [line.partition(":")[0] for line in self.read(f"{folder}/{listed}").splitlines()]
            if any(Path(file).name.partition(".")[0].replace("-", "_") == name for file in files):
                return words
        if self.exists(f"/sys/module/{name}"):
            return "built in"
        return "absent" if self.exists(f"{folder}/modules.dep") else "unknown"

    def user(self) -> User:
        """The one who asks."""
        fields = dict(line.partition(":")[::2] for line in self.read("/proc/self/status").splitlines())
        uid = int((fields.get("Uid") or "0 0").split()[1])
        gids = (fields.get("Groups") or "").split() + (fields.get("Gid") or "").split()[1:2]
        people = [line.split(":") for line in self.read("/etc/passwd").splitlines()]
        name = next((line[0] for line in people if len(line) > 2 and line[2] == str(uid)), str(uid))
        listed = frozenset(group for group, _, members in self._groups() if name in members)
        return User(name, uid, frozenset(map(int, gids)), listed)

    def group(self, gid: int) -> str:
        """A group's name, its number where it has none."""
        return next((name for name, number, _ in self._groups() if number == gid), str(gid))

    def group_number(self, name: str) -> int:
        """-1 for a group that does not exist."""
        return next((number for group, number, _ in self._groups() if group == name), -1)

    def _groups(self) -> Iterator[tuple[str, int, list[str]]]:
        for line in self.read("/etc/group").splitlines():
            fields = line.split(":")
            if len(fields) >= 4 and fields[2].isdigit():
                yield fields[0], int(fields[2]), fields[3].split(",")

    def rules(self) -> dict[str, str]:
        """udev's rules by file name, without comments, lines joined; masked files are empty."""
        found: dict[str, str] = {}
        for folder in RULES:
            for name in self.names(f"{folder}/*.rules"):
                text = self.read(name).replace("\\\n", " ")
                lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
                found.setdefault(Path(name).name, "\n".join(lines))
        return found

    def properties(self, number: str) -> dict[str, str]:
        """What udev's rules said of the character device "MAJOR:MINOR"."""
        lines = self.read(f"/run/udev/data/c{number}").splitlines()
        pairs = (line[2:].partition("=") for line in lines if line.startswith("E:"))
        return {key: value for key, _, value in pairs}
