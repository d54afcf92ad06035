"""The policy bundle: what is signed opens; whatever is changed, added, moved or linked does not."""

import base64
import hashlib
import os
import re
import shutil
from pathlib import Path

import msgspec
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dzedge import bundle, console
from dzedge.bundle import open_bundle
from dzedge.container import MANIFEST, MANIFEST_BYTES, SIGNATURE
from dzedge.errors import BundleError
from dzedge.export import stub
from dzedge.manifest import FAMILIES, check_family
from dzedge.minisign import PublicKey, SecretKey

ROOT = Path(__file__).parents[1]
KEY = SecretKey(id=bytes(range(8)), seed=bytes(range(32)))
HEADER = '<ir_version: 10, opset_import: ["": 20]> g'
MODEL = onnx.parser.parse_model(HEADER + "(float[1] x) => (float[1] y) { y = Neg(x) }").SerializeToString()


def small_section() -> bundle.Section:
    variant = bundle.Variant(file="a.onnx", precision="fp32", ep="any", isa="any")
    graphs = {name: bundle.Graph(variants=(variant,)) for name in stub.GRAPHS}
    return msgspec.structs.replace(stub.section(), graphs=graphs)


def write_small(folder: Path, secret: SecretKey = KEY) -> Path:
    """A bundle of two tiny files."""
    folder.mkdir()
    (folder / "a.onnx").write_bytes(MODEL)
    (folder / "notes.md").write_bytes(b"what this is")
    bundle.pack(folder, small_section(), secret, created="20261122T000000Z", name="small")
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_small(tmp_path / "small.dzp")


def opened(folder: Path) -> bundle.Bundle:
    return open_bundle(folder, (KEY.public,))


def resign(folder: Path, section: bundle.Section) -> None:
    """Replace the section of a manifest and sign it well: what a careless owner of the key could do."""
    manifest = bundle.parse_manifest((folder / MANIFEST).read_bytes(), "test")
    raw = msgspec.json.encode(msgspec.structs.replace(manifest, dzedge=section))
    (folder / MANIFEST).write_bytes(raw)
    (folder / SIGNATURE).write_bytes(KEY.sign(raw, "test"))


def listed(folder: Path) -> tuple[bundle.Entry, ...]:
    return bundle.parse_manifest((folder / MANIFEST).read_bytes(), "test").dzedge.files


def refused(folder: Path, words: str) -> None:
    with pytest.raises(BundleError, match=words):
        opened(folder)


class TestOpen:
    def test_signed_bundle_gives_its_bytes(self, folder: Path) -> None:
        found = opened(folder)
        assert found.read("a.onnx") == MODEL
        assert found.manifest.dzedge.model_id == "stub"
        assert found.key == KEY.public
        assert found.digest == hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest()
        assert [entry.role for entry in found.manifest.dzedge.files] == ["graph", "document"]

    def test_manifest_is_a_policy_package(self, folder: Path) -> None:
        manifest = msgspec.json.decode((folder / MANIFEST).read_bytes())
        assert (manifest["format"], manifest["version"]) == ("policy_package", "1.0")
        assert manifest["hardware"]["robots"][0]["action"]["order"] == list(stub.JOINTS)

    def test_an_imagination_has_so_many_numbers(self, folder: Path) -> None:
        assert opened(folder).manifest.dzedge.latents == 4 * 7 * 10

    def test_packing_twice_gives_the_same_bytes(self, tmp_path: Path) -> None:
        first, second = write_small(tmp_path / "one.dzp"), write_small(tmp_path / "two.dzp")
        for name in (MANIFEST, SIGNATURE):
            assert (first / name).read_bytes() == (second / name).read_bytes()

    def test_unknown_file_is_named(self, folder: Path) -> None:
        with pytest.raises(BundleError, match=r"no file 'b.onnx'.*a.onnx"):
            opened(folder).read("b.onnx")

    def test_missing_folder(self, tmp_path: Path) -> None:
        refused(tmp_path / "nothing.dzp", "cannot open the bundle")

    def test_a_file_is_not_a_bundle(self, tmp_path: Path) -> None:
        for data in (b"", b"PK\3\4" + bytes(1000)):
            (tmp_path / "file.dzp").write_bytes(data)
            refused(tmp_path / "file.dzp", "not a bundle")

    def test_neither_file_nor_folder(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "pipe.dzp")
        refused(tmp_path / "pipe.dzp", "neither a folder nor a file")

    def test_later_changes_do_not_reach_an_open_bundle(self, folder: Path) -> None:
        found = opened(folder)
        (folder / "a.onnx").write_bytes(MODEL[::-1])
        assert found.read("a.onnx") == MODEL

    def test_a_linked_folder_is_a_slot(self, folder: Path) -> None:
        link = folder.with_name("current.dzp")
        link.symlink_to(folder)
        assert opened(link).read("notes.md") == b"what this is"


class TestSignature:
    @pytest.mark.parametrize("name", [SIGNATURE, MANIFEST])
    def test_flipped_and_missing_bytes_are_refused(self, folder: Path, name: str) -> None:
        """In a folder, here and there; test_attacks.py does it to every byte, and at every length."""
        good = (folder / name).read_bytes()
        for position in range(0, len(good), 37 if name == SIGNATURE else 331):
            for bad in (good[:position], good[:position] + bytes([good[position] ^ 1]) + good[position + 1 :]):
                (folder / name).write_bytes(bad)
                refused(folder, "does not match|not a signature file|signed by key")
        (folder / name).write_bytes(good)
        assert opened(folder)

    @pytest.mark.parametrize("extra", [b"\n", b" ", b"\0", b"trusted comment: x\n"])
    def test_appended_bytes_are_refused(self, folder: Path, extra: bytes) -> None:
        for name in (SIGNATURE, MANIFEST):
            good = (folder / name).read_bytes()
            (folder / name).write_bytes(good + extra)
            with pytest.raises(BundleError):
                opened(folder)
            (folder / name).write_bytes(good)

    def test_windows_line_ends_are_refused(self, folder: Path) -> None:
        path = folder / SIGNATURE
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
        refused(folder, "not a signature file")

    def test_foreign_key_is_named(self, tmp_path: Path) -> None:
        other = SecretKey(id=b"stranger", seed=bytes(32))
        write_small(tmp_path / "foreign.dzp", other)
        refused(tmp_path / "foreign.dzp", f"signed by key {other.public.name}, trusted here: {KEY.public.name}")

    def test_another_key_under_a_trusted_id_is_refused(self, tmp_path: Path) -> None:
        write_small(tmp_path / "fake.dzp", SecretKey(id=KEY.id, seed=bytes(32)))
        refused(tmp_path / "fake.dzp", "does not match")

    def test_signature_of_another_bundle_is_refused(self, folder: Path, tmp_path: Path) -> None:
        (folder / SIGNATURE).write_bytes(KEY.sign(b"something else", "stub version 1"))
        refused(folder, "does not match")

    def test_a_changed_comment_is_refused(self, folder: Path) -> None:
        path = folder / SIGNATURE
        path.write_bytes(path.read_bytes().replace(b"version 1", b"version 2"))
        refused(folder, "does not match")

    @pytest.mark.parametrize("name", [SIGNATURE, MANIFEST])
    def test_missing_signature_or_manifest(self, folder: Path, name: str) -> None:
        (folder / name).unlink()
        refused(folder, "cannot open")

    def test_oversized_manifest_is_not_read(self, folder: Path) -> None:
        with (folder / MANIFEST).open("r+b") as stream:
            stream.truncate(MANIFEST_BYTES + 1)
        refused(folder, "is not its size")


class TestTestKey:
    @pytest.fixture
    def test_signed(self, tmp_path: Path) -> Path:
        secret = SecretKey.decode(stub.TEST_SECRET.read_text(encoding="ascii"), "test")
        return write_small(tmp_path / "test.dzp", secret)

    def test_published_key_is_the_built_in_one(self) -> None:
        text = (ROOT / "bundles" / "test.pub").read_text(encoding="ascii")
        assert PublicKey.decode(text, "test.pub") == bundle.public_test_key()

    def test_secret_declares_itself_a_test_key(self) -> None:
        assert "TEST secret key, public on purpose" in stub.TEST_SECRET.read_text(encoding="ascii")

    def test_trusted_only_where_allowed(self, test_signed: Path) -> None:
        assert open_bundle(test_signed, (), allow_test_key=True).key == bundle.public_test_key()
        with pytest.raises(BundleError, match="trusted here: none"):
            open_bundle(test_signed, ())

    def test_listing_it_as_trusted_does_not_help(self, test_signed: Path) -> None:
        with pytest.raises(BundleError, match="trusted here: none"):
            open_bundle(test_signed, (bundle.public_test_key(),))


class TestFiles:
    def test_every_flipped_byte_of_a_file_is_refused(self, folder: Path) -> None:
        path = folder / "a.onnx"
        good = path.read_bytes()
        for position in range(len(good)):
            bad = bytearray(good)
            bad[position] ^= 1 << position % 8
            path.write_bytes(bad)
            refused(folder, "a.onnx: its SHA-256")

    @pytest.mark.parametrize("data", [b"", MODEL[:-1], MODEL + b"\0"])
    def test_another_size_is_refused(self, folder: Path, data: bytes) -> None:
        (folder / "a.onnx").write_bytes(data)
        refused(folder, "bytes is not its size")

    def test_missing_file(self, folder: Path) -> None:
        (folder / "a.onnx").unlink()
        refused(folder, "a.onnx: cannot open")

    @pytest.mark.parametrize("name", ["extra.onnx", ".hidden", "weights.bin"])
    def test_extra_file(self, folder: Path, name: str) -> None:
        (folder / name).write_bytes(b"x")
        refused(folder, f"{name}' is not in the manifest")

    def test_extra_folder(self, folder: Path) -> None:
        (folder / "sub").mkdir()
        refused(folder, "is not in the manifest")

    def test_symlink_to_the_same_bytes(self, folder: Path, tmp_path: Path) -> None:
        shutil.move(folder / "a.onnx", tmp_path / "outside.onnx")
        (folder / "a.onnx").symlink_to(tmp_path / "outside.onnx")
        refused(folder, "a.onnx: cannot open")

    def test_hardlink_to_the_same_bytes(self, folder: Path, tmp_path: Path) -> None:
        os.link(folder / "a.onnx", tmp_path / "second-name.onnx")
        refused(folder, "one link")

    @pytest.mark.parametrize("name", [MANIFEST, SIGNATURE])
    def test_linked_manifest_or_signature(self, folder: Path, tmp_path: Path, name: str) -> None:
        shutil.move(folder / name, tmp_path / name)
        (folder / name).symlink_to(tmp_path / name)
        refused(folder, "cannot open")

    @pytest.mark.parametrize("change", [-5, 5])
    def test_file_that_changes_while_it_is_read(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch, change: int
    ) -> None:
        """Between looking at the size and reading the bytes: the size that was looked at decides."""
        size, real = (folder / "a.onnx").stat().st_size, os.readv

        def readv(descriptor: int, buffers: list[memoryview]) -> int:
            if os.fstat(descriptor).st_size == size:
                os.truncate(folder / "a.onnx", size + change)
            return real(descriptor, buffers)

        monkeypatch.setattr(os, "readv", readv)
        refused(folder, "changed while it was read")

    def test_fifo_does_not_hang(self, folder: Path) -> None:
        (folder / "a.onnx").unlink()
        os.mkfifo(folder / "a.onnx")
        refused(folder, "regular file")

    def test_folder_in_place_of_a_file(self, folder: Path) -> None:
        (folder / "a.onnx").unlink()
        (folder / "a.onnx").mkdir()
        refused(folder, "regular file")


PIECES = [
    b"1e999", b"-1", b"9" * 30, b"9" * 5000, b"null", b"{}", b"[]", b'"', b"true", b"0.5", b",",
    b'"\\u0000"', b'"\\ud800"'
]  # fmt: skip
SMALL = msgspec.json.encode(bundle._manifest(
    msgspec.structs.replace(
        small_section(),
        files=(bundle.Entry(path="a.onnx", size=1, sha256="0" * 64, role="graph"),),
    ), "x", "small",
))  # fmt: skip


class TestManifest:
    """Manifests that are signed well and say something wrong."""

    @pytest.mark.parametrize("path", ["../a.onnx", "/etc/passwd", "sub/a.onnx", ".hidden", "", "a\0b", MANIFEST])
    def test_paths_must_be_plain_names(self, folder: Path, path: str) -> None:
        section = opened(folder).manifest.dzedge
        files = (msgspec.structs.replace(section.files[0], path=path), *section.files[1:])
        resign(folder, msgspec.structs.replace(section, files=files))
        with pytest.raises(BundleError):
            opened(folder)

    def test_a_file_listed_twice(self, folder: Path) -> None:
        section = opened(folder).manifest.dzedge
        resign(folder, msgspec.structs.replace(section, files=section.files + section.files[:1]))
        refused(folder, "lists a file twice")

    def test_a_key_given_twice(self, folder: Path) -> None:
        """One reader takes the first, another the last; whoever reviewed one has not seen the other."""
        raw = (folder / MANIFEST).read_bytes().replace(b'"horizon": 8', b'"horizon": 80, "horizon": 8')
        (folder / MANIFEST).write_bytes(raw)
        (folder / SIGNATURE).write_bytes(KEY.sign(raw, "test"))
        refused(folder, "key 'horizon' stands there twice")

    def test_a_graph_that_is_listed_as_something_else(self, folder: Path) -> None:
        section = opened(folder).manifest.dzedge
        files = (msgspec.structs.replace(section.files[0], role="document"), *section.files[1:])
        resign(folder, msgspec.structs.replace(section, files=files))
        refused(folder, "file 'a.onnx' has role 'document'")

    def test_a_graph_without_its_file(self, folder: Path) -> None:
        section = opened(folder).manifest.dzedge
        resign(folder, msgspec.structs.replace(section, files=section.files[1:]))
        refused(folder, "not in dzedge.files")

    def test_newer_runtime_is_asked_for(self, folder: Path) -> None:
        section = opened(folder).manifest.dzedge
        resign(folder, msgspec.structs.replace(section, min_runtime="99.0.0"))
        refused(folder, "needs dzedge >= 99.0.0")

    def test_downgrade_is_refused(self, folder: Path) -> None:
        with pytest.raises(BundleError, match="version 1 is older than 2"):
            open_bundle(folder, (KEY.public,), version_floor=2)

    @pytest.mark.parametrize(
        ("old", "new", "words"),
        [
            (b'"horizon": 8', b'"horizon": 0', r"dzedge.horizon = 0: must be an integer in \[1, 4096\]"),
            (b'"horizon": 8', b'"horizon": "8"', "dzedge.horizon"),
            (b'"horizon": 8', b'"horizont": 8', "did you mean `horizon`"),
            (b'"family": "wam"', b'"family": "vla"', 'must be one of "wam"'),
            (b'"horizon": 8', b'"horizon": ' + b"9" * 400, "dzedge.horizon|not JSON"),
            (b'"horizon": 8', b'"horizon": ' + b"9" * 4999, "not JSON"),
            (b'"horizon": 8', b'"horizon": 18446744073709551624', "dzedge.horizon"),
            (b'"horizon": 8', b'"horizon": -Infinity', "not JSON"),
            (b'"version": 1,', b'"version": 1e999,', "not JSON"),
            (b'"1.0"', b'"2.0"', 'version = "2.0": must be one of "1.0"'),
            (b'"policy_package"', b'"zip"', "format"),
            (b"{", b"[", "not JSON"),
            (b"0.02", b"1e999", "not JSON|finite"),
            (b"0.02", b"NaN", "not JSON"),
        ],
    )
    def test_wrong_values_are_named(self, folder: Path, old: bytes, new: bytes, words: str) -> None:
        raw = (folder / MANIFEST).read_bytes()
        assert old in raw
        raw = raw.replace(old, new, 1)
        (folder / MANIFEST).write_bytes(raw)
        (folder / SIGNATURE).write_bytes(KEY.sign(raw, "test"))
        refused(folder, words)

    @given(junk=st.binary(max_size=200))
    @settings(max_examples=300, deadline=None)
    def test_junk_is_refused_not_crashed_on(self, junk: bytes) -> None:
        with pytest.raises(BundleError):
            bundle.parse_manifest(junk, "junk")

    @given(
        edits=st.lists(
            st.tuples(st.integers(0, 2**20), st.sampled_from(PIECES) | st.binary(max_size=4), st.integers(0, 8)),
            min_size=1, max_size=3,
        )
    )  # fmt: skip
    @settings(max_examples=400, deadline=None)
    def test_splices_are_refused_or_a_manifest(self, edits: list[tuple[int, bytes, int]]) -> None:
        """Anything that is signed by mistake ends in a BundleError, or in a manifest that packs to itself."""
        raw = SMALL
        for place, piece, cut in edits:
            place %= len(raw)
            raw = raw[:place] + piece + raw[place + cut :]
        try:
            manifest = bundle.parse_manifest(raw, "spliced")
            bundle._check_versions(manifest.dzedge, "spliced", 0)
        except BundleError:
            return
        assert bundle.parse_manifest(msgspec.json.encode(manifest), "again") == manifest

    def test_deep_nesting_is_refused(self) -> None:
        with pytest.raises(BundleError):
            bundle.parse_manifest(b"[" * 100_000, "deep")


FAMILY = ("wam", "flow_vla", "token_vla", "dual_vla")


def without(section: bundle.Section, piece: str) -> bundle.Section:
    """A section that lacks a piece, named as in dzedge.manifest.FAMILIES."""
    table, _, name = piece.rpartition(".")
    if table == "graphs":
        return msgspec.structs.replace(section, graphs={k: v for k, v in section.graphs.items() if k != name})
    empty = 0 if piece in ("video.frames", "window.slots") else None
    if not table:
        return msgspec.structs.replace(section, **{name: empty})
    changed = msgspec.structs.replace(getattr(section, table), **{name: empty})
    return msgspec.structs.replace(section, **{table: changed})


def with_(section: bundle.Section, piece: str) -> bundle.Section:
    """A section that has one piece more."""
    table, _, name = piece.rpartition(".")
    if table == "graphs":
        return msgspec.structs.replace(section, graphs={**section.graphs, name: next(iter(section.graphs.values()))})
    cell = ((0.1,) * stub.J,) * stub.H
    more = {
        "video.frames": 4,
        "window": bundle.Window(layers=1, heads=1, head_dim=3),
        "window.slots": 2,
        "slow_ns": 1,
        "statistics.residual_std": (cell,),
    }.get(piece, cell)
    if not table:
        return msgspec.structs.replace(section, **{name: more})
    changed = msgspec.structs.replace(getattr(section, table), **{name: more})
    return msgspec.structs.replace(section, **{table: changed})


class TestFamilies:
    """A section holds what its family reads: neither less nor more."""

    @pytest.mark.parametrize("family", FAMILY)
    def test_of_each_a_bundle_opens(self, tmp_path: Path, family: str) -> None:
        found = open_bundle(stub.write(tmp_path / "f.dzp", stub.section(family)), allow_test_key=True).manifest
        assert found.dzedge.family == found.model["runner"]["type"] == family
        assert found.dzedge.latents == (280 if family == "wam" else 0)

    @pytest.mark.parametrize(
        ("family", "piece"), [(name, piece) for name in FAMILY for piece in sorted(FAMILIES[name].needs)]
    )
    def test_a_missing_piece_is_named(self, family: str, piece: str) -> None:
        section = without(stub.section(family), piece)
        with pytest.raises(BundleError, match=rf"here: family {family} needs dzedge\.{piece}"):
            check_family(section, "here")

    @pytest.mark.parametrize(
        ("family", "piece"),
        [
            ("wam", "slow_ns"),
            ("wam", "statistics.action_low"),
            ("wam", "graphs.features"),
            ("flow_vla", "video.frames"),
            ("flow_vla", "window.slots"),
            ("flow_vla", "slow_ns"),
            ("flow_vla", "statistics.residual_std"),
            ("flow_vla", "graphs.frame_decoder"),
            ("token_vla", "statistics.action_mean"),
            ("token_vla", "graphs.action_step"),
            ("dual_vla", "window"),
            ("dual_vla", "statistics.action_high"),
            ("dual_vla", "graphs.context"),
        ],
    )
    def test_a_superfluous_piece_is_named(self, family: str, piece: str) -> None:
        section = with_(stub.section(family), piece)
        with pytest.raises(BundleError, match=rf"family {family} has no use for dzedge\.{piece}; leave it out"):
            check_family(section, "here")

    @pytest.mark.parametrize(
        ("family", "piece"),
        [("wam", "graphs.frame_decoder"), ("flow_vla", "statistics.action_mean"), ("dual_vla", "slow_ns")],
    )
    def test_an_optional_piece_may_be_there_or_not(self, family: str, piece: str) -> None:
        section = with_(stub.section(family), piece)
        check_family(section, "here")
        check_family(without(section, piece), "here")

    @pytest.mark.parametrize(
        ("family", "sampler"),
        [("wam", "euler(4)"), ("flow_vla", "joint(4)"), ("token_vla", "euler(4)"), ("dual_vla", "greedy")],
    )
    def test_a_sampler_of_another_family_is_refused(self, family: str, sampler: str) -> None:
        section = msgspec.structs.replace(stub.section(family), samplers=(sampler,))
        with pytest.raises(BundleError, match=rf"sampler '{re.escape(sampler)}': family {family} has "):
            check_family(section, "here")

    @pytest.mark.parametrize(
        ("sampler", "known"),
        [
            ("euler(1)", True),
            ("euler(99)", True),
            ("greedy", True),
            ("sample(0.1)", True),
            ("sample(2.0)", True),
            ("video_first(1,4)", True),
            ("euler(0)", False),
            ("euler", False),
            ("greedy(1)", False),
            ("sample(0)", False),
            ("sample(0.09)", False),
            ("sample(2.1)", False),
            ("sample(nan)", False),
        ],
    )
    def test_how_samplers_are_written(self, folder: Path, sampler: str, known: bool) -> None:
        raw = (folder / MANIFEST).read_bytes().replace(b'"flash(1)"', f'"{sampler}"'.encode())
        with pytest.raises(BundleError, match="family wam has" if known else r"samplers.*must be"):
            bundle.parse_manifest(raw.replace(b'"joint(4)"', b'"greedy"'), "here")

    def test_missing_pieces_are_found_when_opening_and_when_packing(self, folder: Path) -> None:
        section = without(opened(folder).manifest.dzedge, "graphs.prefill")
        resign(folder, section)
        refused(folder, r"family wam needs dzedge\.graphs\.prefill; export again")
        with pytest.raises(BundleError, match=r"needs dzedge\.graphs\.prefill"):
            bundle.pack(folder, section, KEY, created="x", name="small")

    def test_the_shipped_bundle_still_opens(self) -> None:
        shipped = open_bundle(ROOT / "bundles" / "wam-nano.dzp", allow_test_key=True).manifest.dzedge
        assert (shipped.family, shipped.latents) == ("wam", 280)


class TestPack:
    @pytest.mark.parametrize(
        ("data", "words"),
        [
            (KEY.encode().encode(), "the key that signs it"),
            (b"# notes\n" + base64.b64encode(KEY.seed), "the key that signs it"),
            (bytes(50) + KEY.seed + bytes(50), "the key that signs it"),
            (KEY.seed.hex().encode(), "the key that signs it"),
            (SecretKey(id=b"stranger", seed=bytes(32)).encode().encode(), "a minisign secret key"),
            (SecretKey(id=b"stranger", seed=bytes(32)).encode().splitlines()[1].encode(), "a minisign secret key"),
            (bytes(9000) + b"-----BEGIN OPENSSH PRIVATE KEY-----\n", "a private key"),
            (b"token = hf_" + b"aB3" * 12, "an access token"),
        ],
    )
    def test_secrets_must_not_travel(self, folder: Path, data: bytes, words: str) -> None:
        (folder / "notes.md").write_bytes(data)
        with pytest.raises(BundleError, match=f"notes.md: holds {words}; it must not travel"):
            bundle.pack(folder, small_section(), KEY, created="x", name="small")
        with pytest.raises(BundleError, match=r"must not travel|was changed"):
            bundle.sign(folder, KEY)

    def test_public_keys_may_travel(self, folder: Path) -> None:
        (folder / "signer.pub").write_text(KEY.public.encode())
        bundle.pack(folder, small_section(), KEY, created="x", name="small")
        assert opened(folder).read("signer.pub") == KEY.public.encode().encode()

    def test_links_are_not_packed(self, folder: Path, tmp_path: Path) -> None:
        for link in (Path.symlink_to, Path.hardlink_to):
            link(folder / "b.onnx", folder / "a.onnx")
            with pytest.raises(BundleError, match="regular files of one link only"):
                bundle.pack(folder, small_section(), KEY, created="x", name="small")
            (folder / "b.onnx").unlink()

    def test_unsound_graphs_are_not_packed(self, folder: Path) -> None:
        (folder / "a.onnx").write_bytes(MODEL.replace(b"Neg", b"\xff\xff\xff"))
        with pytest.raises(BundleError, match="not a graph that is run here"):
            bundle.pack(folder, small_section(), KEY, created="x", name="small")

    def test_operators_are_listed_from_the_graphs(self, folder: Path) -> None:
        header = '<ir_version: 10, opset_import: ["": 21, "com.microsoft": 1]> g'
        body = "(float[1] x) => (float[1] y) { y = com.microsoft.Gelu(x) }"
        (folder / "a.onnx").write_bytes(onnx.parser.parse_model(header + body).SerializeToString())
        packed = bundle.pack(folder, small_section(), KEY, created="x", name="small").dzedge
        assert packed.opset == {"ai.onnx": 21, "com.microsoft": 1}
        assert opened(folder).manifest.dzedge == packed

    def test_operators_of_others_only_by_intent(self, folder: Path) -> None:
        header = '<ir_version: 10, opset_import: ["": 20, "custom": 1]> g'
        model = onnx.parser.parse_model(header + "(float[1] x) => (float[1] y) { y = custom.Run(x) }")
        (folder / "a.onnx").write_bytes(model.SerializeToString())
        with pytest.raises(BundleError, match=r"operators of custom; list it in dzedge\.opset"):
            bundle.pack(folder, small_section(), KEY, created="x", name="small")
        meant = msgspec.structs.replace(small_section(), opset={"ai.onnx": 20, "custom": 1})
        bundle.pack(folder, meant, KEY, created="x", name="small")
        assert opened(folder)
        resign(folder, msgspec.structs.replace(opened(folder).manifest.dzedge, opset={"ai.onnx": 20}))
        refused(folder, r"a\.onnx: has operators of custom 1, dzedge\.opset lists none of them")
        resign(folder, msgspec.structs.replace(meant, opset={"ai.onnx": 19, "custom": 1}, files=listed(folder)))
        refused(folder, "has operators of ai.onnx 20, dzedge.opset lists 19")

    def test_an_unrolled_graph_is_for_other_runtimes(self, folder: Path) -> None:
        plain = opened(folder).manifest
        assert plain.policy["name"] == "small" and "onnx" not in plain.model["artifacts"]
        (folder / "act.onnx").write_bytes(MODEL)
        manifest = bundle.pack(folder, small_section(), KEY, created="x", name="small")
        assert manifest.policy["name"] == "act" and manifest.model["artifacts"] == {"onnx": "act.onnx"}
        assert manifest.model["runner"] == {"type": "single_pass"}
        assert {entry.path: entry.role for entry in manifest.dzedge.files}["act.onnx"] == "data"
        facts = console.bundle_facts(opened(folder))
        assert facts["act.onnx_bytes"] == len(MODEL) and facts["bytes"] == len(MODEL) + len(b"what this is")
        (folder / "act.onnx").write_bytes(MODEL.replace(b"Neg", b"\xff\xff\xff"))
        with pytest.raises(BundleError, match=r"act\.onnx: not a graph"):
            bundle.pack(folder, small_section(), KEY, created="x", name="small")

    def test_graph_files_must_be_there(self, folder: Path) -> None:
        (folder / "a.onnx").unlink()
        with pytest.raises(BundleError, match=r"not in dzedge\.files"):
            bundle.pack(folder, small_section(), KEY, created="x", name="small")

    def test_signing_again_with_another_key(self, folder: Path) -> None:
        other = SecretKey(id=b"stranger", seed=bytes(32))
        bundle.sign(folder, other)
        assert open_bundle(folder, (other.public,)).key == other.public
        refused(folder, "signed by key")

    @pytest.mark.parametrize("change", ["flip", "add", "remove", "grow"])
    def test_what_is_signed_has_been_looked_at(self, folder: Path, change: str) -> None:
        """A signature vouches for files, not for a list of them that may be old."""
        if change == "remove":
            (folder / "notes.md").unlink()
        else:
            path = folder / ("more.md" if change == "add" else "notes.md")
            path.write_bytes(b"WHAT THIS IS" + b"!" * (change == "grow"))
        before = (folder / SIGNATURE).read_bytes()
        with pytest.raises(BundleError, match="pack the bundle again"):
            bundle.sign(folder, SecretKey(id=b"stranger", seed=bytes(32)))
        assert (folder / SIGNATURE).read_bytes() == before
