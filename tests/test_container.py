"""What a bundle lies in: a container gives what its folder gives, there is exactly one, and nothing else is one."""

import io
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dzedge import container
from dzedge.container import HEADER, MAGIC, MANIFEST, SIGNATURE, open_source, write_container
from dzedge.errors import BundleError

FILES = {"a.onnx": b"graph", "b.md": b"words", "weights.bin": bytes(range(256)) * 8}
LISTED = [(name, len(data)) for name, data in FILES.items()]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "small.dzp"
    root.mkdir()
    for name, data in {MANIFEST: b"{}", SIGNATURE: b"signed", **FILES}.items():
        (root / name).write_bytes(data)
    return root


def packed(folder: Path) -> bytes:
    stream = io.BytesIO()
    with open_source(folder) as source:
        source.expect(LISTED)
        write_container(stream, source, map(source.read, FILES))
    return stream.getvalue()


@pytest.fixture
def file(folder: Path) -> Path:
    path = folder.with_suffix(".dzb")
    path.write_bytes(packed(folder))
    return path


@pytest.fixture(autouse=True)
def nothing_is_left_open() -> Iterator[None]:
    before = len(os.listdir("/proc/self/fd"))
    yield
    assert len(os.listdir("/proc/self/fd")) == before


def read(path: Path, listed: list[tuple[str, int]] = LISTED) -> dict[str, bytes]:
    with open_source(path) as source:
        source.expect(listed)
        files = {name: source.read(name) for name, _ in listed}
        return {MANIFEST: source.manifest, SIGNATURE: source.signature, **files}


def refused(path: Path, words: str) -> None:
    with pytest.raises(BundleError, match=words):
        read(path)


class TestContainer:
    def test_gives_what_the_folder_gives(self, folder: Path, file: Path) -> None:
        assert read(file) == read(folder) == {MANIFEST: b"{}", SIGNATURE: b"signed", **FILES}

    def test_its_layout_is_the_documented_one(self, file: Path) -> None:
        head = b"DZEDGE-BUNDLE-1\n" + struct.pack("<II", 6, 2) + b"signed" + b"{}"
        assert file.read_bytes() == head + b"".join(FILES.values())

    def test_of_a_bundle_there_is_exactly_one(self, folder: Path, file: Path) -> None:
        os.utime(folder / "b.md", (1, 1))
        (folder / "b.md").chmod(0o600)
        assert packed(folder) == file.read_bytes()

    def test_files_are_read_in_any_order_and_again(self, file: Path) -> None:
        with open_source(file) as source:
            source.expect(LISTED)
            for name in (*reversed(FILES), *FILES):
                assert source.read(name) == FILES[name]

    def test_a_link_to_a_container_is_a_slot(self, file: Path) -> None:
        link = file.with_name("current.dzb")
        link.symlink_to(file)
        assert read(link) == read(file)

    def test_nothing_behind_the_manifest_is_read_before_it_is_asked_for(self, file: Path) -> None:
        """The signature is judged on bounded bytes, however long the file is."""
        os.truncate(file, 1 << 40)
        with open_source(file) as source:
            assert (source.manifest, source.signature) == (b"{}", b"signed")
            with pytest.raises(BundleError, match=f"has {1 << 40} bytes, its manifest makes"):
                source.expect(LISTED)

    def test_every_truncation_is_refused(self, file: Path) -> None:
        for length in range(file.stat().st_size - 1, -1, -1):
            os.truncate(file, length)
            refused(file, "not a bundle|do not fit|its manifest makes")

    @pytest.mark.parametrize("extra", [b"\0", b"PK", bytes(4096)])
    def test_bytes_behind_the_last_file_are_refused(self, file: Path, extra: bytes) -> None:
        file.write_bytes(file.read_bytes() + extra)
        refused(file, "its manifest makes")

    @pytest.mark.parametrize(
        ("signature", "manifest"),
        [(0, 2), (6, 0), (container.SIGNATURE_BYTES + 1, 2), (6, container.MANIFEST_BYTES + 1), (2**32 - 1, 2**32 - 1)],
    )
    def test_sizes_out_of_bounds_are_refused(self, file: Path, signature: int, manifest: int) -> None:
        file.write_bytes(HEADER.pack(MAGIC, signature, manifest) + bytes(5 << 20))
        refused(file, f"signature of {signature} and manifest of {manifest} bytes do not fit")

    @pytest.mark.parametrize("magic", [b"PK\3\4", b"ustar", b"\x1f\x8b", b"DZEDGE-BUNDLE-2\n", b"dzedge-bundle-1\n"])
    def test_other_formats_are_no_containers(self, file: Path, magic: bytes) -> None:
        file.write_bytes(magic + file.read_bytes()[len(magic) :])
        refused(file, "not a bundle: neither a folder NAME.dzp nor a container NAME.dzb")

    @given(data=st.binary(max_size=300), headed=st.booleans())
    @settings(max_examples=150, deadline=None)
    def test_junk_is_refused_not_crashed_on(
        self, tmp_path_factory: pytest.TempPathFactory, data: bytes, headed: bool
    ) -> None:
        path = tmp_path_factory.getbasetemp() / "junk.dzb"
        path.unlink(missing_ok=True)
        path.write_bytes(MAGIC + data if headed else data)
        with pytest.raises(BundleError):
            read(path)


class TestPlaces:
    @pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/null"), lambda path: None])
    def test_what_is_no_file_or_folder(self, tmp_path: Path, make) -> None:
        make(tmp_path / "odd.dzb")
        refused(tmp_path / "odd.dzb", "neither a folder nor a file|cannot open the bundle")

    def test_a_file_that_cannot_be_read(self, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def broken(descriptor: int, buffers: list[memoryview]) -> int:
            raise OSError(5, "Input/output error")

        monkeypatch.setattr(os, "readv", broken)
        refused(file, "cannot be read: Input/output error")

    def test_a_container_that_shrinks_while_it_is_read(self, file: Path) -> None:
        with open_source(file) as source:
            source.expect(LISTED)
            os.truncate(file, 40)
            with pytest.raises(BundleError, match=r"weights\.bin: changed while it was read"):
                source.read("weights.bin")
