"""Signatures in minisign's container, against files that minisign 0.11 itself wrote."""

import base64
import hashlib
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from dzedge import minisign
from dzedge.errors import BundleError
from dzedge.minisign import PublicKey, SecretKey

KEY = SecretKey(id=bytes(range(8)), seed=bytes(range(32)))
THEIR_PUBLIC = """untrusted comment: minisign public key FEEDF9AB3C3B0C46
RWRGDDs8q/nt/vnYF+zzlLiOwtlIQlrg7nI3ZvMK0mMmA5gehuidIlJh
"""
THEIR_SIGNATURE = """untrusted comment: signature of a dzedge policy bundle
RURGDDs8q/nt/rBt1Gnb+dqXtgQORpvtx/YcfiKJ1ctDY3zAMUUDHi3rQvW05VwqNOgNA2nvpMNDJKmp+GwXyxexS0/1LuvCGw0=
trusted comment: timestamp:1795346875	file:m	hashed
tEmDHOTVD+LwqSNFFcxpEr2sVyTVeU5XGaK7i9OtHu5RuNQXM0ZF41iMdQ36/475CnKMz1p/wpVODnIrU8dcBw==
"""
THEIR_FILE = b"hi\n"


class TestKeys:
    def test_round_trip(self) -> None:
        assert PublicKey.decode(KEY.public.encode(), "x") == KEY.public
        assert SecretKey.decode(KEY.encode(), "x") == KEY

    def test_generated_keys_differ(self) -> None:
        assert SecretKey.generate() != SecretKey.generate()

    def test_secret_is_not_printed(self) -> None:
        assert repr(KEY.seed) not in repr(KEY)
        assert KEY.seed.hex() not in repr(KEY)

    def test_damaged_secret_key(self) -> None:
        lines = KEY.encode().splitlines()
        broken = lines[1][:100] + ("A" if lines[1][100] != "A" else "B") + lines[1][101:]
        with pytest.raises(BundleError, match="checksum"):
            SecretKey.decode(f"{lines[0]}\n{broken}\n", "x")

    @pytest.mark.parametrize("text", ["", "untrusted comment: x\n", "a\nb\n", "untrusted comment: x\n!!!!\n"])
    def test_junk_keys(self, text: str) -> None:
        with pytest.raises(BundleError, match="not a minisign"):
            PublicKey.decode(text, "x")
        with pytest.raises(BundleError, match="not a minisign"):
            SecretKey.decode(text, "x")

    def test_keys_of_another_kind(self) -> None:
        for text, decode, words in (
            (KEY.public.encode(), PublicKey.decode, "not an Ed25519 key"),
            (KEY.encode(), SecretKey.decode, "not a minisign secret key"),
        ):
            comment, line = text.splitlines()
            other = base64.b64encode(b"Xx" + base64.b64decode(line)[2:]).decode()
            with pytest.raises(BundleError, match=words):
                decode(f"{comment}\n{other}\n", "x")

    def test_keys_from_files(self, tmp_path: Path) -> None:
        path = tmp_path / "mine.pub"
        path.write_text(KEY.public.encode())
        assert minisign.load_keys((str(path),)) == (KEY.public,)
        with pytest.raises(BundleError, match="cannot read"):
            minisign.load_keys((str(tmp_path / "none.pub"),))

    def test_key_file_of_minisign_itself(self) -> None:
        """Without a password minisign writes no checksum; the public half is then the check."""
        comment, line = KEY.encode().splitlines()
        raw = base64.b64decode(line)
        theirs = base64.b64encode(raw[:126] + bytes(32)).decode()
        assert SecretKey.decode(f"{comment}\n{theirs}\n", "x") == KEY
        flipped = base64.b64encode(raw[:70] + bytes([raw[70] ^ 1]) + raw[71:126] + bytes(32)).decode()
        with pytest.raises(BundleError, match="checksum"):
            SecretKey.decode(f"{comment}\n{flipped}\n", "x")

    def test_key_with_a_password(self) -> None:
        comment, line = KEY.encode().splitlines()
        raw = base64.b64decode(line)
        locked = base64.b64encode(raw[:2] + b"Sc" + raw[4:]).decode()
        with pytest.raises(BundleError, match="has a password"):
            SecretKey.decode(f"{comment}\n{locked}\n", "x")

    def test_signature_of_minisign_itself(self) -> None:
        key = PublicKey.decode(THEIR_PUBLIC, "theirs")
        signer, comment = minisign.verify(THEIR_FILE, THEIR_SIGNATURE.encode(), (key,), "theirs")
        assert signer == key
        assert comment.endswith("file:m\thashed")
        with pytest.raises(BundleError, match="does not match"):
            minisign.verify(b"ho\n", THEIR_SIGNATURE.encode(), (key,), "theirs")

    def test_signature_is_minisigns(self) -> None:
        """The layout of minisign's own files: algorithm, key id, signature; comment, signature over both."""
        lines = KEY.sign(b"data", "a comment").decode().splitlines()
        raw, whole = base64.b64decode(lines[1]), base64.b64decode(lines[3])
        assert lines[0].startswith("untrusted comment: ")
        assert lines[2] == "trusted comment: a comment"
        assert (raw[:2], raw[2:10], len(raw), len(whole)) == (b"ED", KEY.id, 74, 64)
        public = Ed25519PublicKey.from_public_bytes(KEY.public.raw)
        public.verify(raw[10:], hashlib.blake2b(b"data", digest_size=64).digest())
        public.verify(whole, raw[10:] + b"a comment")

    @pytest.mark.parametrize("comment", ["two\nlines", "ünsigned", "x" * 201])
    def test_comment_is_printable_ascii(self, comment: str) -> None:
        with pytest.raises(BundleError, match="printable"):
            KEY.sign(b"data", comment)
