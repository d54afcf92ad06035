"""Bundles as files: keys to sign them with, containers to carry them in, and out of those again."""

import os
import shutil
import tempfile
from pathlib import Path

import msgspec

from dzedge import bundle, strict
from dzedge.bundle import Manifest, Section
from dzedge.container import MANIFEST, SIGNATURE, open_source, write_container
from dzedge.errors import UsageError
from dzedge.minisign import PublicKey, SecretKey


def keygen(stem: Path) -> tuple[PublicKey, Path, Path]:
    """A new key pair in `STEM.key` (of its owner alone, 0600) and `STEM.pub`. Raises UsageError, also where one of
    them exists: a lost key cannot be made again."""
    secret, files = SecretKey.generate(), (stem.with_name(f"{stem.name}.key"), stem.with_name(f"{stem.name}.pub"))
    if any(part.suffix in (".dzp", ".dzb") for part in files[0].absolute().parents):
        raise UsageError(f"{files[0]}: lies in a bundle, where no secret key may be; choose another --out")
    made: list[Path] = []
    try:
        for file, text, mode in zip(files, (secret.encode(), secret.public.encode()), (0o600, 0o644), strict=True):
            descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
            made.append(file)
            with open(descriptor, "w", encoding="ascii") as stream:
                stream.write(text)
                stream.flush()
                os.fsync(stream.fileno())
    except OSError as error:
        for file in made:
            file.unlink()
        raise UsageError(f"{error.filename}: cannot be made: {error.strerror}; choose another --out") from error
    return secret.public, *files


def load_secret(path: Path) -> SecretKey:
    """A secret key file. Raises UsageError where it cannot be read, BundleError where it is none."""
    try:
        text = path.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot read the secret key: {error}; check --key") from error
    return SecretKey.decode(text, str(path))


def draft(path: Path, version: int | None = None) -> Section:
    """The section to pack by. path: a manifest, or its `dzedge` section alone, as JSON; what it says of files is not
    looked at. version: another than the draft's. Raises UsageError."""
    try:
        document = msgspec.json.decode(path.read_bytes())
    except (OSError, msgspec.DecodeError) as error:
        raise UsageError(f"{path}: no draft of a manifest: {error}; name one with --section") from error
    table = document.get("dzedge", document) if isinstance(document, dict) else document
    if isinstance(table, dict):
        table = {key: value for key, value in table.items() if key != "files"}
        table |= {} if version is None else {"version": version}
    return strict.convert(table, Section, str(path), UsageError)


def contain(folder: Path, out: Path, keys: tuple[PublicKey, ...], allow_test_key: bool) -> Manifest:
    """A verified bundle as the container `out`. Raises BundleError, UsageError.

    It is written beside its place and then renamed: there is never half a container.
    """
    with open_source(folder) as source:
        _, manifest = bundle.verify(source, keys, allow_test_key)
        section, staging = manifest.dzedge, out.with_name(f".{out.name}.{os.getpid()}")
        try:
            with staging.open("xb") as stream:
                write_container(stream, source, (bundle.read_entry(source, entry, section) for entry in section.files))
                stream.flush()
                os.fsync(stream.fileno())
            staging.rename(out)
        except OSError as error:
            raise UsageError(f"{out}: cannot be written: {error.strerror}; choose another place") from error
        finally:
            staging.unlink(missing_ok=True)
    return manifest


def unpack(path: Path, out: Path, keys: tuple[PublicKey, ...], allow_test_key: bool) -> Manifest:
    """A verified container (or folder) as the new folder `out`. Raises BundleError, UsageError.

    Until every byte is verified it lies in a private folder (0700) beside `out`, which goes away if it is not; one
    file at a time is held in memory.
    """
    if os.path.lexists(out):
        raise UsageError(f"{out}: exists; choose another --out, or remove it")
    with open_source(path) as source:
        _, manifest = bundle.verify(source, keys, allow_test_key)
        try:
            staging = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.absolute().parent))
        except OSError as error:
            raise UsageError(f"{out}: cannot be made: {error.strerror}; choose another --out") from error
        try:
            (staging / MANIFEST).write_bytes(source.manifest)
            (staging / SIGNATURE).write_bytes(source.signature)
            for entry in manifest.dzedge.files:
                (staging / entry.path).write_bytes(bundle.read_entry(source, entry, manifest.dzedge))
            staging.chmod(0o755)
            staging.rename(out)
        except OSError as error:
            raise UsageError(f"{out}: cannot be written: {error.strerror}; choose another --out") from error
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    return manifest
