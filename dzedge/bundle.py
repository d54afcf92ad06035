"""The policy bundle: a signed folder `NAME.dzp` of graphs (carried as a file `NAME.dzb`), and the manifest that says
how to run them.

Order of opening: the signature over the manifest's raw bytes; then the manifest is parsed; then every file is read
once (no links, no extra file) and hashed; then the bytes of every graph are walked (`dzedge.onnx_check`). What ONNX
Runtime gets are those bytes. Nothing of an unverified bundle is ever parsed as a model.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import msgspec

from dzedge import __version__, minisign, strict
from dzedge.container import MANIFEST, SIGNATURE, Source, open_source
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
from dzedge.minisign import PublicKey, SecretKey, find_secret
from dzedge.onnx_check import read_model

__all__ = [
    "Bundle", "Entry", "Graph", "Image", "Language", "Manifest", "Section", "Statistics", "Variant", "Video", "Window",
    "open_bundle", "pack", "parse_manifest", "public_test_key", "read_entry", "sign", "verify",
]  # fmt: skip

TEST_KEY = "RWSX+pwRHoCak/PvVAx7c7bbsZlutxGjRKU+tC2Y0OF/HkM/aNN6ZVwz"
"""Public half of the repository's test key; its secret lies in the repository, so it proves nothing."""
OPERATORS = frozenset({"ai.onnx", "com.microsoft"})
"""Operator domains that ONNX Runtime has by itself; `pack` accepts others only where the section lists them."""
UNROLLED = "act.onnx"
"""One graph from pixels to actions, for other runtimes of `policy_package`; ours leaves it alone."""


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
    """Verify the bundle at `path`, folder or container, and read it. version_floor: the oldest version still accepted.

    Raises BundleError for whatever is not exactly as signed.
    """
    with open_source(path) as source:
        key, manifest = verify(source, trusted_keys, allow_test_key, version_floor)
        section = manifest.dzedge
        contents = {entry.path: read_entry(source, entry, section) for entry in section.files}
        return Bundle(source.name, manifest, key, hashlib.sha256(source.manifest).hexdigest(), contents)


def verify(
    source: Source, trusted_keys: tuple[PublicKey, ...], allow_test_key: bool = False, version_floor: int = 0
) -> tuple[PublicKey, Manifest]:
    """Who signed the manifest, and the manifest. Its files are as listed then, but not read. Raises BundleError."""
    keys = _keys(trusted_keys, allow_test_key)
    key, _ = minisign.verify(source.manifest, source.signature, keys, f"{source.name}/{SIGNATURE}")
    manifest = parse_manifest(source.manifest, f"{source.name}/{MANIFEST}")
    _check_versions(manifest.dzedge, source.name, version_floor)
    source.expect([(entry.path, entry.size) for entry in manifest.dzedge.files])
    return key, manifest


def read_entry(source: Source, entry: Entry, section: Section) -> bytes:
    """A listed file of a verified source: as signed and, if it is a graph, sound. Raises BundleError."""
    data, where = source.read(entry.path), f"{source.name}/{entry.path}"
    if hashlib.sha256(data).hexdigest() != entry.sha256:
        raise BundleError(f"{where}: its SHA-256 is not the signed one; fetch the bundle again")
    _check_operators(entry, data, section, where)
    return data


def public_test_key() -> PublicKey:
    """The repository's test key: trusted only for a simulated arm."""
    return PublicKey.decode(f"untrusted comment: test\n{TEST_KEY}\n", "test key")


def parse_manifest(raw: bytes, source: str) -> Manifest:
    """The manifest, strictly. Raises BundleError."""
    try:
        document = msgspec.json.decode(raw)
        json.loads(raw, object_pairs_hook=_named_once)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{source}: not JSON: {error}; export the bundle again") from error
    manifest = strict.convert(document, Manifest, source, BundleError)
    check_family(manifest.dzedge, source)
    _check_files(manifest.dzedge, source)
    return manifest


def pack(folder: str | Path, section: Section, secret: SecretKey, created: str, name: str) -> Manifest:
    """Write manifest and signature of the files lying in `folder`; `section.files` is filled in from them, and
    `section.opset` from its graphs.

    created: wall time for the record; name: of the policy. Raises BundleError.
    """
    root = Path(folder)
    graphs = {variant.file for graph in section.graphs.values() for variant in graph.variants}
    entries, opset = [], dict(section.opset)
    for file in _listed(root):
        data = _content(file, secret)
        entry = _entry(file, data, "graph" if file.name in graphs else None)
        for domain, version in _operators(entry, data, str(file)).items():
            if domain not in OPERATORS | set(section.opset):
                raise BundleError(f"{file}: has operators of {domain}; list it in dzedge.opset if that is intended")
            opset[domain] = max(version, opset.get(domain, 0))
        entries.append(entry)
    section = msgspec.structs.replace(section, files=tuple(entries), opset=opset)
    manifest = _manifest(section, created, name)
    raw = msgspec.json.format(msgspec.json.encode(manifest), indent=1) + b"\n"
    parse_manifest(raw, f"{root.name}/{MANIFEST}")
    (root / MANIFEST).write_bytes(raw)
    _sign(root, raw, section, secret)
    return manifest


def sign(folder: str | Path, secret: SecretKey) -> Manifest:
    """Sign the manifest that lies in `folder`, anew or again.

    Raises BundleError where it is not a valid one, or the files are not those that it lists: what a signature vouches
    for has been looked at.
    """
    root = Path(folder)
    raw = _content(root / MANIFEST, secret)
    manifest = parse_manifest(raw, f"{root.name}/{MANIFEST}")
    found = {file.name: file for file in _listed(root)}
    entries = {entry.path: entry for entry in manifest.dzedge.files}
    for name in sorted(found.keys() ^ entries.keys()):
        lost = "is missing" if name in entries else "is not in the manifest"
        raise BundleError(f"{root / name}: {lost}; pack the bundle again")
    for name, entry in entries.items():
        data = _content(found[name], secret)
        _check_operators(entry, data, manifest.dzedge, str(found[name]))
        if _entry(found[name], data, entry.role) != entry:
            raise BundleError(f"{found[name]}: was changed since it was packed; pack the bundle again")
    _sign(root, raw, manifest.dzedge, secret)
    return manifest


def _manifest(section: Section, created: str, name: str) -> Manifest:
    """With what other readers of `policy_package` want; physicalai 0.3.0 runs POLICY.onnx, whatever the artifacts."""
    joints = {"shape": [len(section.joints)], "dtype": "float32", "order": list(section.joints)}
    unrolled = any(entry.path == UNROLLED for entry in section.files)
    first = {graph: entry.variants[0].file for graph, entry in section.graphs.items()}
    return Manifest(
        format="policy_package",
        version="1.0",
        policy={
            "name": UNROLLED.removesuffix(".onnx") if unrolled else name,
            "source": {"class_path": f"dzedge.policies.{section.family}"},
        },
        model={
            "n_obs_steps": len(section.video.history_ns),
            "runner": {"type": "single_pass" if unrolled else section.family},
            "artifacts": {"onnx": UNROLLED} if unrolled else first,
        },
        hardware={
            "robots": [{"name": section.robot, "type": section.robot, "state": joints, "action": joints}],
            "cameras": [{"name": "front", "shape": [3, section.image.height, section.image.width], "dtype": "float32"}],
        },
        metadata={"created_at": created, "created_by": f"dzedge {__version__}"},
        dzedge=section,
    )


def _sign(root: Path, raw: bytes, section: Section, secret: SecretKey) -> None:
    comment = f"{section.model_id} version {section.version}"
    (root / SIGNATURE).write_bytes(secret.sign(raw, comment))


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
    roles = {entry.path: entry.role for entry in section.files}
    for graph, entry in section.graphs.items():
        for variant in entry.variants:
            if variant.file not in roles:
                raise BundleError(f"{source}: graph {graph}: file {variant.file!r} is not in dzedge.files")
            if roles[variant.file] != "graph":
                raise BundleError(f"{source}: graph {graph}: file {variant.file!r} has role {roles[variant.file]!r}")


def _named_once(pairs: list[tuple[str, Any]]) -> None:
    """For a JSON object: the last of two equal keys wins in one reader, the first in another."""
    names = [name for name, _ in pairs]
    if len(set(names)) != len(names):
        raise ValueError(f"key {max(names, key=names.count)!r} stands there twice")


def _operators(entry: Entry, data: bytes, where: str) -> dict[str, int]:
    """The operator sets of a graph that is sound, of any other file none. Raises BundleError."""
    graph = entry.role == "graph" or entry.path.lower().endswith(".onnx")
    return read_model(data, where) if graph else {}


def _check_operators(entry: Entry, data: bytes, section: Section, where: str) -> None:
    for domain, version in _operators(entry, data, where).items():
        if version > section.opset.get(domain, 0):
            listed = section.opset.get(domain, "none of them")
            raise BundleError(
                f"{where}: has operators of {domain} {version}, dzedge.opset lists {listed}; export the bundle again"
            )


def _listed(root: Path) -> list[Path]:
    return sorted(file for file in root.iterdir() if file.name not in (MANIFEST, SIGNATURE))


def _content(file: Path, secret: SecretKey) -> bytes:
    """What a file holds that may be signed."""
    if file.is_symlink() or not file.is_file() or file.stat().st_nlink != 1:
        raise BundleError(f"{file}: a bundle holds regular files of one link only; remove it")
    data = file.read_bytes()
    if found := find_secret(data, secret):
        raise BundleError(f"{file}: holds {found}; it must not travel in a bundle")
    return data


def _entry(file: Path, data: bytes, role: Literal["graph", "data", "document"] | None) -> Entry:
    guessed: Literal["data", "document"] = "document" if file.suffix in (".md", ".txt") else "data"
    return Entry(path=file.name, size=len(data), sha256=hashlib.sha256(data).hexdigest(), role=role or guessed)
