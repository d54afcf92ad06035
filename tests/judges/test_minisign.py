"""Debian's minisign, opt-in: it verifies what we sign, we verify what it signs, and each refuses what the other does.

    apt-get install minisign
"""

import shutil
import subprocess
from pathlib import Path

import pytest

from dzedge import bundle, packing
from dzedge.bundle import open_bundle
from dzedge.container import MANIFEST, SIGNATURE
from dzedge.errors import BundleError
from dzedge.minisign import SIGNATURE_COMMENT, PublicKey, load_keys, verify

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = ROOT / "bundles" / "flow-vla.dzp"
MINISIGN = shutil.which("minisign")
pytestmark = pytest.mark.skipif(MINISIGN is None, reason="minisign is not installed: apt-get install minisign")
COMMENT = SIGNATURE_COMMENT.removeprefix("untrusted comment: ")


def minisign(*arguments: str | Path, fine: bool = True) -> str:
    found = subprocess.run(
        [str(MINISIGN), *map(str, arguments)], capture_output=True, text=True, timeout=30, stdin=subprocess.DEVNULL
    )
    assert (found.returncode == 0) is fine, found.stdout + found.stderr
    return found.stdout + found.stderr


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(SHIPPED, tmp_path / "mine.dzp"))


@pytest.fixture
def theirs(tmp_path: Path) -> tuple[Path, Path]:
    """(secret key, public key) that minisign made, without a password."""
    secret, public = tmp_path / "theirs.key", tmp_path / "theirs.pub"
    minisign("-G", "-W", "-f", "-p", public, "-s", secret)
    return secret, public


def check(folder: Path, public: Path, fine: bool = True) -> str:
    """As its manual has it; -x because of the name, -H would refuse any other than the prehashed form."""
    return minisign("-V", "-H", "-p", public, "-m", folder / MANIFEST, "-x", folder / SIGNATURE, fine=fine)


class TestTheyVerifyOurs:
    def test_the_shipped_bundles_by_the_published_key(self) -> None:
        for shipped in sorted((ROOT / "bundles").glob("*.dzp")):
            assert "Signature and comment signature verified" in check(shipped, ROOT / "bundles" / "test.pub")

    def test_a_key_pair_and_a_signature_of_ours(self, folder: Path, tmp_path: Path) -> None:
        public, secret_file, public_file = packing.keygen(tmp_path / "ours")
        bundle.sign(folder, packing.load_secret(secret_file))
        told = check(folder, public_file)
        section = open_bundle(folder, (public,)).manifest.dzedge
        assert f"Trusted comment: {section.model_id} version {section.version}" in told

    @pytest.mark.parametrize("name", [MANIFEST, SIGNATURE])
    def test_and_refuse_what_was_changed(self, folder: Path, name: str) -> None:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[:-9] + bytes([data[-9] ^ 1]) + data[-8:])
        assert check(folder, ROOT / "bundles" / "test.pub", fine=False)

    def test_and_sign_with_a_key_of_ours(self, folder: Path, tmp_path: Path) -> None:
        public, secret_file, _ = packing.keygen(tmp_path / "ours")
        (folder / SIGNATURE).unlink()
        minisign("-S", "-W", "-H", "-s", secret_file, "-m", folder / MANIFEST, "-c", COMMENT, "-t", "by minisign")
        assert open_bundle(folder, (public,)).key == public

    def test_they_know_the_public_half_of_our_secret_key(self, tmp_path: Path) -> None:
        public, secret_file, _ = packing.keygen(tmp_path / "ours")
        minisign("-R", "-f", "-s", secret_file, "-p", tmp_path / "again.pub")
        assert PublicKey.decode((tmp_path / "again.pub").read_text(), "again") == public


class TestWeVerifyTheirs:
    def test_a_bundle_signed_by_them_opens(self, folder: Path, theirs: tuple[Path, Path]) -> None:
        secret, public = theirs
        (folder / SIGNATURE).unlink()
        minisign("-S", "-H", "-s", secret, "-m", folder / MANIFEST, "-c", COMMENT, "-t", "release of today")
        keys = load_keys((str(public),))
        assert open_bundle(folder, keys).key == keys[0]
        _, comment = verify((folder / MANIFEST).read_bytes(), (folder / SIGNATURE).read_bytes(), keys, "theirs")
        assert comment == "release of today"
        (folder / MANIFEST).write_bytes((folder / MANIFEST).read_bytes() + b"\n")
        with pytest.raises(BundleError, match="does not match"):
            open_bundle(folder, keys)

    def test_we_sign_with_a_key_of_theirs(self, folder: Path, theirs: tuple[Path, Path]) -> None:
        secret, public = theirs
        bundle.sign(folder, packing.load_secret(secret))
        assert "verified" in check(folder, public)
        assert open_bundle(folder, load_keys((str(public),)))

    def test_another_untrusted_comment_is_another_file(self, folder: Path, theirs: tuple[Path, Path]) -> None:
        """Of one signature there is one file: they take any first line, we only ours."""
        secret, public = theirs
        minisign("-S", "-H", "-s", secret, "-m", folder / MANIFEST, "-x", folder / SIGNATURE)
        assert "verified" in check(folder, public)
        with pytest.raises(BundleError, match="not a signature file of dzedge"):
            open_bundle(folder, load_keys((str(public),)))
