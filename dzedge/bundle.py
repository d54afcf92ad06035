"""The policy bundle: a signed folder `NAME.dzp` of graphs, and the manifest that says how to run them.

Order of opening: the signature over the manifest's raw bytes; then the manifest is parsed; then every file is
opened once (no links, no extra file), read and hashed from that descriptor. What ONNX Runtime gets are those
bytes. Nothing of an unverified bundle is ever parsed as a model.
"""

import hashlib
import os
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import msgspec

from dzedge import __version__, minisign, strict
from dzedge.errors import BundleError
from dzedge.manifest import (
    Entry,
    Graph,
    Image,
    Language,
    Manifest,
    Section,
    Statistics,
    Variant,
    Video,
    Window,
    check_family,
)
from dzedge.minisign import PublicKey, SecretKey

__all__ = [
    "Bundle", "Entry", "Graph", "Image", "Language", "Manifest", "Section", "Statistics", "Variant", "Video", "Window",
    "open_bundle", "pack", "parse_manifest", "public_test_key", "sign",
]  # fmt: skip

MANIFEST, SIGNATURE = "manifest.json", "manifest.json.minisig"
MANIFEST_BYTES, SIGNATURE_BYTES = 4 << 20, 4096
"""Largest manifest and signature that are read at all."""
TEST_KEY = "RWSX+pwRHoCak/PvVAx7c7bbsZlutxGjRKU+tC2Y0OF/HkM/aNN6ZVwz"
"""Public half of the repository's test key; its secret lies in the repository, so it proves nothing."""


@dataclass(frozen=True, slots=True)
class Bundle:
    """An opened bundle: everything in it was signed and hashed. key: who signed; digest: of the manifest."""

    name: str
    manifest: Manifest
    key: PublicKey
    digest: str
    _contents: Mapping[str, bytes] = field(repr=False)

    def read(self, file: str) -> bytes:
        """The verified bytes of one file. Raises BundleError."""
        if file not in self._contents:
            raise BundleError(f"{self.name}: no file {file!r}; it has: {', '.join(sorted(self._contents))}")
        return self._contents[file]


def open_bundle(
    path: str | Path,
    trusted_keys: tuple[PublicKey, ...] = (),
    allow_test_key: bool = False,
    version_floor: int = 0,
) -> Bundle:
    """Verify the bundle at `path` and read it. version_floor: the oldest version still accepted.

    Raises BundleError for whatever is not exactly as signed.
    """
    name = os.fspath(path)
    try:
        folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise BundleError(f"{name}: cannot open the bundle: {error.strerror}; check policy.bundle") from error
    try:
        raw = _read_once(folder, MANIFEST, name, lambda size: size <= MANIFEST_BYTES)
        signature = _read_once(folder, SIGNATURE, name, lambda size: size <= SIGNATURE_BYTES)
        key, _ = minisign.verify(raw, signature, _keys(trusted_keys, allow_test_key), f"{name}/{SIGNATURE}")
        manifest = parse_manifest(raw, f"{name}/{MANIFEST}")
        _check_versions(manifest.dzedge, name, version_floor)
        contents = _read_all(folder, manifest.dzedge, name)
    finally:
        os.close(folder)
    return Bundle(name, manifest, key, hashlib.sha256(raw).hexdigest(), contents)


def public_test_key() -> PublicKey:
    """The repository's test key: trusted only for a simulated arm."""
    return PublicKey.decode(f"untrusted comment: test\n{TEST_KEY}\n", "test key")


def parse_manifest(raw: bytes, source: str) -> Manifest:
    """The manifest, strictly. Raises BundleError."""
    try:
        document = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BundleError(f"{source}: not JSON: {error}; export the bundle again") from error
    manifest = strict.convert(document, Manifest, source, BundleError)
    check_family(manifest.dzedge, source)
    _check_files(manifest.dzedge, source)
    return manifest


def pack(folder: str | Path, section: Section, secret: SecretKey, created: str, name: str) -> Manifest:
    """Write manifest and signature of the files lying in `folder`; `section.files` is filled in from them.

    created: wall time for the record; name: of the policy. Raises BundleError.
    """
    root = Path(folder)
    graphs = {variant.file for graph in section.graphs.values() for variant in graph.variants}
    files = sorted(p for p in root.iterdir() if p.name not in (MANIFEST, SIGNATURE))
    entries = tuple(_entry(file, "graph" if file.name in graphs else None) for file in files)
    section = msgspec.structs.replace(section, files=entries)
    joints = {"shape": [len(section.joints)], "dtype": "float32", "order": list(section.joints)}
    first = {graph: entry.variants[0].file for graph, entry in section.graphs.items()}
    manifest = Manifest(
        format="policy_package",
        version="1.0",
        policy={"name": name, "source": {"class_path": f"dzedge.policies.{section.family}"}},
        model={
            "n_obs_steps": len(section.video.history_ns),
            "runner": {"type": section.family},
            "artifacts": first,
        },
        hardware={
            "robots": [{"name": section.robot, "type": section.robot, "state": joints, "action": joints}],
            "cameras": [{"name": "front", "shape": [3, section.image.height, section.image.width], "dtype": "float32"}],
        },
        metadata={"created_at": created, "created_by": f"dzedge {__version__}"},
        dzedge=section,
    )
    raw = msgspec.json.format(msgspec.json.encode(manifest), indent=1) + b"\n"
    parse_manifest(raw, f"{root.name}/{MANIFEST}")
    (root / MANIFEST).write_bytes(raw)
    sign(root, secret)
    return manifest


def sign(folder: str | Path, secret: SecretKey) -> None:
    """Sign the manifest that lies in `folder`. Raises BundleError where it is not a valid one."""
    raw = (Path(folder) / MANIFEST).read_bytes()
    section = parse_manifest(raw, str(folder)).dzedge
    comment = f"{section.model_id} version {section.version}"
    (Path(folder) / SIGNATURE).write_bytes(secret.sign(raw, comment))


def _keys(trusted: tuple[PublicKey, ...], allow_test_key: bool) -> tuple[PublicKey, ...]:
    test = public_test_key()
    others = tuple(key for key in trusted if key.raw != test.raw and key.id != test.id)
    return (*others, test) if allow_test_key else others


def _check_versions(section: Section, name: str, floor: int) -> None:
    def numbers(version: str) -> tuple[int, ...]:
        return tuple(int(part) for part in version.split(".")[:3])

    if numbers(section.min_runtime) > numbers(__version__):
        raise BundleError(f"{name}: needs dzedge >= {section.min_runtime}, this is {__version__}; update dzedge")
    if section.version < floor:
        raise BundleError(f"{name}: version {section.version} is older than {floor}, installed before; keep the newer")


def _check_files(section: Section, source: str) -> None:
    names = [entry.path for entry in section.files]
    if len(set(names)) != len(names) or {MANIFEST, SIGNATURE} & set(names):
        raise BundleError(f"{source}: dzedge.files lists a file twice, or the manifest; export the bundle again")
    for graph, entry in section.graphs.items():
        for variant in entry.variants:
            if variant.file not in names:
                raise BundleError(f"{source}: graph {graph}: file {variant.file!r} is not in dzedge.files")


def _read_all(folder: int, section: Section, name: str) -> dict[str, bytes]:
    listed = {entry.path for entry in section.files} | {MANIFEST, SIGNATURE}
    extra = sorted(set(os.listdir(folder)) - listed)
    if extra:
        raise BundleError(f"{name}: {extra[0]!r} is not in the manifest; remove it, or fetch the bundle again")
    return {entry.path: _read_entry(folder, entry, name) for entry in section.files}


def _read_entry(folder: int, entry: Entry, name: str) -> bytes:
    data = _read_once(folder, entry.path, name, lambda size: size == entry.size)
    if hashlib.sha256(data).hexdigest() != entry.sha256:
        raise BundleError(f"{name}/{entry.path}: its SHA-256 is not the signed one; fetch the bundle again")
    return data


def _read_once(folder: int, file: str, name: str, fits: Callable[[int], bool]) -> bytes:
    """A regular file of one link, whole, from one descriptor. O_NONBLOCK: a FIFO would wait for ever."""
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    except OSError as error:
        raise BundleError(f"{name}/{file}: cannot open: {error.strerror}; fetch the bundle again") from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
            raise BundleError(f"{name}/{file}: must be a regular file with one link; fetch the bundle again")
        if not fits(status.st_size):
            raise BundleError(f"{name}/{file}: {status.st_size} bytes is not its size; fetch the bundle again")
        data, filled = bytearray(status.st_size + 1), 0
        while count := os.readv(descriptor, [memoryview(data)[filled:]]):
            filled += count
        if filled != status.st_size:
            raise BundleError(f"{name}/{file}: changed while it was read; fetch the bundle again")
        return bytes(memoryview(data)[:filled])
    finally:
        os.close(descriptor)


def _entry(file: Path, role: Literal["graph"] | None) -> Entry:
    if file.is_symlink() or not file.is_file():
        raise BundleError(f"{file}: a bundle holds regular files only; remove it")
    data = file.read_bytes()
    if b"secret key" in data[:200] or b"PRIVATE KEY" in data[:200]:
        raise BundleError(f"{file}: looks like a secret key; it must not travel in a bundle")
    guessed: Literal["graph", "data", "document"] = "document" if file.suffix in (".md", ".txt") else "data"
    return Entry(path=file.name, size=len(data), sha256=hashlib.sha256(data).hexdigest(), role=role or guessed)
