"""What this machine keeps of graphs between starts: optimized models and TensorRT's engines, as trusted as the bundle.

A private folder (this user's, 0700). Every file in it carries, or is listed under, an HMAC-SHA256 with a secret that
never leaves the folder (0600) and over the name it was kept by; what does not agree is deleted and made again. ONNX
Runtime gets the very bytes that were checked.
"""

import contextlib
import fcntl
import hashlib
import hmac
import os
import secrets
import shutil
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path

from dzedge.errors import PolicyError

FOLDER = "graphs"
SECRET, TAG = "secret", 32
"""Name of the secret's file; bytes of it, and of the tag in front of a kept model."""
KEPT = 64
"""Kept models, and kept folders of engines; those that were not used for the longest time go first."""
LARGEST = 1 << 30
"""Largest model that is kept [bytes]: ONNX Runtime writes no file above 2 GiB in one piece."""


def state_folder(environment: Mapping[str, str] = os.environ) -> Path:
    """Where this machine keeps what is its own: systemd's StateDirectory=, else the user's state folder.

    Raises PolicyError for a user without a home.
    """
    if given := environment.get("STATE_DIRECTORY"):
        return Path(given.split(":")[0])
    if given := environment.get("XDG_STATE_HOME"):
        return Path(given) / "dzedge"
    try:
        return Path.home() / ".local" / "state" / "dzedge"
    except RuntimeError as error:
        raise PolicyError(f"state folder: {error}; set XDG_STATE_HOME, or policy.cache = false") from error


class GraphCache:
    """The private folder. root: made where it is missing.

    Raises PolicyError where it cannot be made, or is not this user's alone.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        try:
            root.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileExistsError):
                root.mkdir(mode=0o700)
            status = root.lstat()
            if not stat.S_ISDIR(status.st_mode) or not _private(status):
                raise PolicyError(
                    f"graph cache {root}: must be a folder of this user with mode 700, has owner {status.st_uid} and "
                    f"mode {stat.S_IMODE(status.st_mode):03o}; remove it, or set policy.cache = false"
                )
            self._secret = self._load_secret()
        except OSError as error:
            raise PolicyError(
                f"graph cache {root}: {error.strerror}; make it writable, or set policy.cache = false"
            ) from error

    @classmethod
    def of_this_machine(cls) -> "GraphCache":
        """The one in `state_folder`."""
        return cls(state_folder() / FOLDER)

    # ------------------------------------------------------------------ models

    def read(self, key: str) -> bytes | None:
        """The model that was kept by a key, or None; one that was altered is deleted."""
        file = self.root / f"{key}.kept"
        data = _read(file)
        if data is None:
            return None
        tag, model = data[:TAG], data[TAG:]
        if not hmac.compare_digest(tag, self._tag(key, model)):
            self.drop(key)
            return None
        os.utime(file)
        return model

    def write(self, key: str, model: bytes) -> None:
        """Keep a model; the old one, or the new, but never a part of it is there at any moment."""
        self._replace(f"{key}.kept", self._tag(key, model) + model)
        self._tidy()

    def drop(self, key: str) -> None:
        """Forget a model."""
        (self.root / f"{key}.kept").unlink(missing_ok=True)

    @contextlib.contextmanager
    def scratch(self) -> Iterator[Path]:
        """A path in the folder for ONNX Runtime to write a model to; gone afterwards."""
        file = self.root / f".{os.getpid()}-{secrets.token_hex(8)}"
        try:
            yield file
        finally:
            file.unlink(missing_ok=True)

    # ----------------------------------------------------------------- engines

    @contextlib.contextmanager
    def engines(self, key: str) -> Iterator[Path]:
        """A folder that TensorRT reads its engines from and writes them to. One process at a time.

        Emptied first unless all in it is as it was left; sealed when the block ends without an exception.
        """
        folder, seal = self.root / key, f"{key}.seal"
        with self._locked():
            if not hmac.compare_digest(_read(self.root / seal) or b"", self._tag(key, _listing(folder))):
                shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(mode=0o700, exist_ok=True)
            yield folder
            self._replace(seal, self._tag(key, _listing(folder)))
            self._tidy()

    # ------------------------------------------------------------------ within

    def _tag(self, key: str, data: bytes) -> bytes:
        return hmac.digest(self._secret, key.encode() + b"\0" + data, hashlib.sha256)

    def _load_secret(self) -> bytes:
        """32 bytes of chance, made by whoever comes first. A new secret disowns all that is there."""
        file = self.root / SECRET
        if len(found := _read(file) or b"") == TAG:
            return found
        with self._locked():
            if len(found := _read(file) or b"") != TAG:
                found = secrets.token_bytes(TAG)
                self._replace(SECRET, found)
        return found

    def _tidy(self) -> None:
        """Drop what is too much, and what processes left behind that were killed while they wrote."""
        for file in sorted(self.root.glob("*.kept"), key=_last_used)[:-KEPT]:
            file.unlink(missing_ok=True)
        for seal in sorted(self.root.glob("*.seal"), key=_last_used)[:-KEPT]:
            shutil.rmtree(seal.with_suffix(""), ignore_errors=True)
            seal.unlink(missing_ok=True)
        for file in self.root.glob(".*-*"):
            if not Path(f"/proc/{file.name[1:].partition('-')[0]}").exists():
                file.unlink(missing_ok=True)

    def _replace(self, name: str, data: bytes) -> None:
        with self.scratch() as new:
            _write(new, data)
            new.replace(self.root / name)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        descriptor = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def _private(status: os.stat_result) -> bool:
    return status.st_uid == os.geteuid() and not status.st_mode & 0o077


def _read(file: Path) -> bytes | None:
    """A private regular file, whole; None for anything else."""
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    with open(descriptor, "rb") as stream:
        status = os.fstat(descriptor)
        return stream.read() if stat.S_ISREG(status.st_mode) and _private(status) else None


def _write(file: Path, data: bytes) -> None:
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with open(descriptor, "wb") as stream:
        stream.write(data)


def _listing(folder: Path) -> bytes:
    """Names and hashes of all that lies in a folder, for its seal; of nothing, and of a link, likewise."""
    if folder.is_symlink() or not folder.is_dir():
        return b"nothing"
    lines = []
    for file in sorted(folder.rglob("*")):
        regular = file.is_file() and not file.is_symlink()
        digest = hashlib.sha256(file.read_bytes()).hexdigest() if regular else "not a file"
        lines.append(f"{file.relative_to(folder)}\0{digest}")
    return "\n".join(lines).encode()


def _last_used(file: Path) -> int:
    try:
        return file.stat().st_mtime_ns
    except FileNotFoundError:
        return 0
