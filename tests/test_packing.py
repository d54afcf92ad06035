"""Bundles as files: key pairs, containers made and unpacked, and what is left where something is refused."""

import os
import stat
from pathlib import Path

import msgspec
import onnx
import pytest

from dzedge import bundle, packing
from dzedge.bundle import open_bundle
from dzedge.container import MANIFEST, SIGNATURE
from dzedge.errors import BundleError, UsageError
from dzedge.export import stub
from dzedge.minisign import SecretKey, load_keys

KEY = SecretKey(id=bytes(range(8)), seed=bytes(range(32)))
OTHER = SecretKey(id=b"stranger", seed=bytes(32))
MODEL = onnx.parser.parse_model(
    '<ir_version: 10, opset_import: ["": 20]> g (float[1] x) => (float[1] y) { y = Neg(x) }'
).SerializeToString()


def section(family: str = "dual_vla") -> bundle.Section:
    made = stub.section(family)
    graphs = {name: bundle.Graph(variants=(bundle.Variant(file="a.onnx", precision="fp32", ep="any", isa="any"),))
              for name in made.graphs}  # fmt: skip
    return msgspec.structs.replace(made, graphs=graphs)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "small.dzp"
    root.mkdir()
    (root / "a.onnx").write_bytes(MODEL)
    (root / "notes.md").write_bytes(b"what this is")
    bundle.pack(root, section(), KEY, "20261124T000000Z", "small")
    return root


@pytest.fixture
def file(folder: Path) -> Path:
    packing.contain(folder, folder.with_suffix(".dzb"), (KEY.public,), False)
    return folder.with_suffix(".dzb")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


class TestKeygen:
    def test_writes_a_pair_that_signs_and_verifies(self, tmp_path: Path) -> None:
        public, secret_file, public_file = packing.keygen(tmp_path / "mine")
        assert [path.name for path in (secret_file, public_file)] == ["mine.key", "mine.pub"]
        assert packing.load_secret(secret_file).public == public == load_keys((str(public_file),))[0]

    @pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
    def test_the_secret_half_is_of_its_owner_alone(self, tmp_path: Path, umask: int) -> None:
        before = os.umask(umask)
        try:
            _, secret_file, public_file = packing.keygen(tmp_path / "mine")
        finally:
            os.umask(before)
        assert stat.S_IMODE(secret_file.stat().st_mode) == 0o600
        assert stat.S_IMODE(public_file.stat().st_mode) == 0o644 & ~umask

    def test_two_pairs_differ(self, tmp_path: Path) -> None:
        assert packing.keygen(tmp_path / "a")[0] != packing.keygen(tmp_path / "b")[0]

    @pytest.mark.parametrize("name", ["mine.key", "mine.pub"])
    def test_never_overwrites_and_leaves_no_half(self, tmp_path: Path, name: str) -> None:
        (tmp_path / name).write_text("precious")
        with pytest.raises(UsageError, match=f"{name}: cannot be made: File exists"):
            packing.keygen(tmp_path / "mine")
        assert contents(tmp_path) == {name: b"precious"}

    def test_follows_no_link(self, tmp_path: Path) -> None:
        (tmp_path / "mine.key").symlink_to(tmp_path / "elsewhere")
        with pytest.raises(UsageError):
            packing.keygen(tmp_path / "mine")
        assert not (tmp_path / "elsewhere").exists()

    def test_not_into_a_bundle(self, folder: Path) -> None:
        with pytest.raises(UsageError, match="lies in a bundle"):
            packing.keygen(folder / "mine")
        assert open_bundle(folder, (KEY.public,))

    def test_a_folder_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="No such file"):
            packing.keygen(tmp_path / "absent" / "mine")

    def test_a_secret_key_that_is_none(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="cannot read the secret key"):
            packing.load_secret(tmp_path / "absent.key")
        (tmp_path / "bad.key").write_text("no key")
        with pytest.raises(BundleError, match="not a minisign secret key"):
            packing.load_secret(tmp_path / "bad.key")


class TestDraft:
    def test_of_a_manifest_or_its_section(self, folder: Path, tmp_path: Path) -> None:
        whole = open_bundle(folder, (KEY.public,)).manifest
        (tmp_path / "part.json").write_bytes(msgspec.json.encode(whole.dzedge))
        wanted = msgspec.structs.replace(whole.dzedge, files=())
        assert packing.draft(folder / MANIFEST) == packing.draft(tmp_path / "part.json") == wanted
        assert packing.draft(folder / MANIFEST, version=7).version == 7 != wanted.version

    @pytest.mark.parametrize("text", ["", "[]", "3", '{"dzedge": 3}', '{"family": "wam"}', '{"dzedge": {"x": 1}}'])
    def test_what_is_none(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "draft.json").write_text(text)
        with pytest.raises(UsageError, match=r"draft\.json"):
            packing.draft(tmp_path / "draft.json")

    def test_what_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="name one with --section"):
            packing.draft(tmp_path / "draft.json")


class TestContain:
    def test_a_container_opens_as_its_folder_does(self, folder: Path, file: Path) -> None:
        one, two = open_bundle(folder, (KEY.public,)), open_bundle(file, (KEY.public,))
        assert (one.digest, one.key, one.manifest) == (two.digest, two.key, two.manifest)
        assert one.read("a.onnx") == two.read("a.onnx") == MODEL
        with pytest.raises(BundleError, match="signed by key"):
            open_bundle(file, (OTHER.public,))

    @pytest.mark.parametrize("spoil", ["a.onnx", MANIFEST, SIGNATURE])
    def test_none_is_made_of_what_is_not_as_signed(self, folder: Path, spoil: str) -> None:
        data = (folder / spoil).read_bytes()
        (folder / spoil).write_bytes(data[:-2] + b"xx")
        with pytest.raises(BundleError):
            packing.contain(folder, folder.with_suffix(".dzb"), (KEY.public,), False)
        assert os.listdir(folder.parent) == [folder.name]

    def test_a_broken_one_does_not_replace_a_good_one(self, folder: Path, file: Path) -> None:
        good = file.read_bytes()
        (folder / "a.onnx").write_bytes(MODEL[::-1])
        with pytest.raises(BundleError):
            packing.contain(folder, file, (KEY.public,), False)
        assert file.read_bytes() == good

    def test_where_nothing_can_be_written(self, folder: Path) -> None:
        with pytest.raises(UsageError, match="cannot be written"):
            packing.contain(folder, folder.parent / "absent" / "a.dzb", (KEY.public,), False)


class TestUnpack:
    def test_gives_the_folder_again(self, folder: Path, file: Path) -> None:
        out = folder.with_name("again.dzp")
        packing.unpack(file, out, (KEY.public,), False)
        assert contents(out) == contents(folder)
        assert open_bundle(out, (KEY.public,)).digest == open_bundle(folder, (KEY.public,)).digest
        assert stat.S_IMODE(out.stat().st_mode) == 0o755
        assert sorted(os.listdir(out.parent)) == ["again.dzp", "small.dzb", "small.dzp"]

    def test_a_flipped_byte_writes_nothing(self, file: Path, tmp_path: Path) -> None:
        """Every byte of the header and of the files; of the manifest some, test_attacks.py has them all."""
        good, place = file.read_bytes(), tmp_path / "out"
        place.mkdir()
        files = len(good) - len(MODEL) - len(b"what this is")
        for position in [*range(24), *range(24, files, 61), *range(files, len(good))]:
            file.write_bytes(good[:position] + bytes([good[position] ^ (1 << position % 8)]) + good[position + 1 :])
            with pytest.raises(BundleError):
                packing.unpack(file, place / "again.dzp", (KEY.public,), False)
        assert os.listdir(place) == []
        file.write_bytes(good)
        packing.unpack(file, place / "again.dzp", (KEY.public,), False)

    def test_until_all_is_verified_only_its_owner_sees_it(self, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        seen, read = [], bundle.read_entry

        def spy(source, entry, section):
            (staging,) = (path for path in file.parent.iterdir() if path.name.startswith(".again.dzp."))
            seen.append((stat.S_IMODE(staging.stat().st_mode), (file.parent / "again.dzp").exists()))
            return read(source, entry, section)

        monkeypatch.setattr(bundle, "read_entry", spy)
        packing.unpack(file, file.parent / "again.dzp", (KEY.public,), False)
        assert seen == [(0o700, False)] * 2

    def test_over_nothing_that_exists(self, file: Path, tmp_path: Path) -> None:
        for name in ("empty", "link"):
            (tmp_path / "empty").mkdir() if name == "empty" else (tmp_path / "link").symlink_to("nowhere")
            with pytest.raises(UsageError, match="exists; choose another --out"):
                packing.unpack(file, tmp_path / name, (KEY.public,), False)
        with pytest.raises(UsageError, match="cannot be made"):
            packing.unpack(file, tmp_path / "absent" / "again.dzp", (KEY.public,), False)

    def test_a_foreign_key_and_the_test_key(self, folder: Path, file: Path, tmp_path: Path) -> None:
        with pytest.raises(BundleError, match="signed by key"):
            packing.unpack(file, tmp_path / "out.dzp", (OTHER.public,), True)
        secret = packing.load_secret(stub.TEST_SECRET)
        bundle.sign(folder, secret)
        packing.contain(folder, file, (), True)
        with pytest.raises(BundleError, match="trusted here: none"):
            packing.unpack(file, tmp_path / "out.dzp", (secret.public,), False)
        assert not (tmp_path / "out.dzp").exists()
        packing.unpack(file, tmp_path / "out.dzp", (), True)
