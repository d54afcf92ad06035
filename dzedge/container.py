"""What a bundle lies in: a folder `NAME.dzp`, or one file `NAME.dzb` for transport. Both give bytes, which
`dzedge.bundle` judges.

A `.dzb` has no list of its own: 16 bytes of magic, the sizes of signature and manifest (little-endian uint32), both of
these, and then the files one after another in the order in which the signed manifest lists them, to the last byte. So
there are no names, links, owners or compression to trust, nothing but two bounded sizes is read before the signature
is checked, and of a bundle there is exactly one container.
"""

import os
import stat
import struct
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import BinaryIO

from dzedge.errors import BundleError

MANIFEST, SIGNATURE = "manifest.json", "manifest.json.minisig"
MANIFEST_BYTES, SIGNATURE_BYTES = 4 << 20, 4096
"""Largest manifest and signature that are read at all."""
MAGIC = b"DZEDGE-BUNDLE-1\n"
HEADER = struct.Struct("<16sII")
"""Magic, bytes of the signature, bytes of the manifest."""
AGAIN = "fetch the bundle again"


class Source(ABC):
    """Where the bytes of a bundle come from, open until it is left; whatever is wrong is a BundleError.

    name: for errors; manifest, signature: read at once, and not judged here.
    """

    manifest: bytes
    signature: bytes

    def __init__(self, descriptor: int, name: str) -> None:
        self.name = name
        self._descriptor = descriptor
        self._sizes: dict[str, int] = {}

    @abstractmethod
    def expect(self, files: Sequence[tuple[str, int]]) -> None:
        """What the signed manifest lists, as (name, size) in its order: nothing else may be there."""

    @abstractmethod
    def read(self, file: str) -> bytes:
        """One of the expected files, whole and of the expected size."""

    def __enter__(self) -> "Source":
        return self

    def __exit__(self, *raised: object) -> None:
        os.close(self._descriptor)


def open_source(path: str | Path) -> Source:
    """The folder or container at `path`, its manifest and signature read and nothing else. Raises BundleError."""
    name = os.fspath(path)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise BundleError(f"{name}: cannot open the bundle: {error.strerror}; check policy.bundle") from error
    try:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            return Folder(descriptor, name)
        if stat.S_ISREG(mode):
            return Container(descriptor, name)
        raise BundleError(f"{name}: neither a folder nor a file; check policy.bundle")
    except BaseException:
        os.close(descriptor)
        raise


class Folder(Source):
    """A bundle as it is run: every file is opened once, without following links, and read from that descriptor."""

    def __init__(self, descriptor: int, name: str) -> None:
        super().__init__(descriptor, name)
        self.manifest = self._read(MANIFEST, range(MANIFEST_BYTES + 1))
        self.signature = self._read(SIGNATURE, range(SIGNATURE_BYTES + 1))

    def expect(self, files: Sequence[tuple[str, int]]) -> None:
        self._sizes = dict(files)
        extra = sorted(set(os.listdir(self._descriptor)) - {*self._sizes, MANIFEST, SIGNATURE})
        if extra:
            raise BundleError(f"{self.name}: {extra[0]!r} is not in the manifest; remove it, or {AGAIN}")

    def read(self, file: str) -> bytes:
        return self._read(file, range(self._sizes[file], self._sizes[file] + 1))

    def _read(self, file: str, sizes: range) -> bytes:
        """A regular file of one link, whole. O_NONBLOCK: a FIFO would wait for ever."""
        where = f"{self.name}/{file}"
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            descriptor = os.open(file, flags, dir_fd=self._descriptor)
        except OSError as error:
            raise BundleError(f"{where}: cannot open: {error.strerror}; {AGAIN}") from error
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
                raise BundleError(f"{where}: must be a regular file with one link; {AGAIN}")
            if status.st_size not in sizes:
                raise BundleError(f"{where}: {status.st_size} bytes is not its size; {AGAIN}")
            return _exactly(descriptor, status.st_size, where, more=False)
        finally:
            os.close(descriptor)


class Container(Source):
    """A bundle as it is carried. Links to it are followed: what is read is judged, not where it lies."""

    def __init__(self, descriptor: int, name: str) -> None:
        super().__init__(descriptor, name)
        self._size = os.fstat(descriptor).st_size
        header = _exactly(descriptor, min(HEADER.size, self._size), name)
        magic, signature, manifest = HEADER.unpack(header) if len(header) == HEADER.size else (b"", 0, 0)
        if magic != MAGIC:
            raise BundleError(f"{name}: not a bundle: neither a folder NAME.dzp nor a container NAME.dzb; {AGAIN}")
        self._first = HEADER.size + signature + manifest
        if not (0 < signature <= SIGNATURE_BYTES and 0 < manifest <= MANIFEST_BYTES and self._first <= self._size):
            raise BundleError(f"{name}: signature of {signature} and manifest of {manifest} bytes do not fit; {AGAIN}")
        self.signature = _exactly(descriptor, signature, name)
        self.manifest = _exactly(descriptor, manifest, name)
        self._places: dict[str, int] = {}

    def expect(self, files: Sequence[tuple[str, int]]) -> None:
        place = self._first
        for file, size in files:
            self._sizes[file], self._places[file] = size, place
            place += size
        if place != self._size:
            raise BundleError(f"{self.name}: has {self._size} bytes, its manifest makes {place}; {AGAIN}")

    def read(self, file: str) -> bytes:
        os.lseek(self._descriptor, self._places[file], os.SEEK_SET)
        return _exactly(self._descriptor, self._sizes[file], f"{self.name}/{file}")


def write_container(stream: BinaryIO, source: Source, contents: Iterable[bytes]) -> None:
    """The bundle of `source` as a container. contents: of its files, as the manifest lists them."""
    stream.write(HEADER.pack(MAGIC, len(source.signature), len(source.manifest)))
    stream.writelines((source.signature, source.manifest))
    stream.writelines(contents)


def _exactly(descriptor: int, size: int, where: str, more: bool = True) -> bytes:
    """So many bytes from where the descriptor is. more: whether others may follow."""
    data, filled = bytearray(size if more else size + 1), 0
    try:
        while count := os.readv(descriptor, [memoryview(data)[filled:]]):
            filled += count
    except OSError as error:
        raise BundleError(f"{where}: cannot be read: {error.strerror}; {AGAIN}") from error
    if filled != size:
        raise BundleError(f"{where}: changed while it was read; {AGAIN}")
    return bytes(memoryview(data)[:filled])
