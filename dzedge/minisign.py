"""Ed25519 signatures in minisign's container, so that a release can be checked without dzedge.

Only the prehashed form ("ED": the signature covers BLAKE2b-512 of the data) is read or written. A container
is parsed, encoded again and compared byte for byte: of one signature there is exactly one file.
Format: https://jedisct1.github.io/minisign/ (section "Minisign format").
"""

import base64
import binascii
import hashlib
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from dzedge.errors import BundleError

ED25519, PREHASHED = b"Ed", b"ED"
NO_KDF, BLAKE2B = b"\0\0", b"B2"
SIGNATURE_COMMENT = "untrusted comment: signature of a dzedge policy bundle"
PUBLIC_COMMENT = "untrusted comment: minisign public key "
SECRET_COMMENT = "untrusted comment: minisign secret key, not encrypted: keep it out of every bundle and image"
TRUSTED_COMMENT = "trusted comment: "
SECRETS = {
    "a private key": rb"-----BEGIN [A-Z ]*PRIVATE KEY-----",
    "a minisign secret key": rb"untrusted comment: [^\n]{0,200}secret key|RW(?:QAAEIy|RTY0Iy)[A-Za-z0-9+/]{200}",
    "an access token": rb"\b(?:hf_[A-Za-z0-9]{34}|gh[opsu]_[A-Za-z0-9]{36}|github_pat_[A-Za-z0-9_]{60}|AKIA[0-9A-Z]{16}"
    rb"|xox[abprs]-[0-9A-Za-z-]{24})",
}  # fmt: skip
"""Shapes of what must not be given away; the second of minisign's is base64 of "Ed", a kind of password, "B2"."""


@dataclass(frozen=True, slots=True)
class PublicKey:
    """Who may sign. id: 8 bytes that name the key; raw: its 32 bytes."""

    id: bytes
    raw: bytes

    @property
    def name(self) -> str:
        """The key's id as minisign prints it."""
        return self.id[::-1].hex().upper()

    def encode(self) -> str:
        line = base64.b64encode(ED25519 + self.id + self.raw).decode()
        return f"{PUBLIC_COMMENT}{self.name}\n{line}\n"

    @classmethod
    def decode(cls, text: str, source: str) -> "PublicKey":
        """A minisign public key file. Raises BundleError; `source` names it there."""
        raw = _payload(text, source, "public key", 42)
        if raw[:2] != ED25519:
            found = f"it starts with {raw[:2]!r}"
            raise BundleError(f"{source}: not an Ed25519 key ({found}); make one with `minisign -G -W`")
        return cls(id=raw[2:10], raw=raw[10:42])


@dataclass(frozen=True, slots=True)
class SecretKey:
    """A signing key. seed: 32 bytes, never printed."""

    id: bytes
    seed: bytes = field(repr=False)

    @classmethod
    def generate(cls) -> "SecretKey":
        return cls(id=os.urandom(8), seed=os.urandom(32))

    @property
    def public(self) -> PublicKey:
        return PublicKey(self.id, Ed25519PrivateKey.from_private_bytes(self.seed).public_key().public_bytes_raw())

    def encode(self) -> str:
        """minisign's secret key file without a password."""
        body = self.id + self.seed + self.public.raw
        check = hashlib.blake2b(ED25519 + body, digest_size=32).digest()
        raw = ED25519 + NO_KDF + BLAKE2B + bytes(32 + 8 + 8) + body + check
        return f"{SECRET_COMMENT}\n{base64.b64encode(raw).decode()}\n"

    @classmethod
    def decode(cls, text: str, source: str) -> "SecretKey":
        """A minisign secret key file without a password (`minisign -G -W`). Raises BundleError."""
        raw = _payload(text, source, "secret key", 158)
        if raw[:2] != ED25519 or raw[4:6] != BLAKE2B:
            raise BundleError(f"{source}: not a minisign secret key; make one with `minisign -G -W`")
        if raw[2:4] != NO_KDF:
            raise BundleError(f"{source}: the key has a password; remove it with `minisign -C -W`")
        body, check = raw[54:126], raw[126:158]
        key = cls(id=body[:8], seed=body[8:40])
        # minisign leaves the checksum of a key without a password empty.
        whole = check in (bytes(32), hashlib.blake2b(ED25519 + body, digest_size=32).digest())
        if not whole or key.public.raw != body[40:]:
            raise BundleError(f"{source}: damaged secret key (checksum); restore it from its backup")
        return key

    def sign(self, data: bytes, comment: str) -> bytes:
        """The signature file over `data`; `comment` is signed too.

        Raises BundleError for a comment that is not up to 200 printable ASCII characters.
        """
        if not (comment.isascii() and comment.isprintable() and len(comment) <= 200):
            raise BundleError(f"comment {comment[:40]!r}: must be up to 200 printable ASCII characters; shorten it")
        private = Ed25519PrivateKey.from_private_bytes(self.seed)
        signature = private.sign(hashlib.blake2b(data).digest())
        return _encode(self.id, signature, comment, private.sign(signature + comment.encode("ascii")))


def verify(data: bytes, signature_file: bytes, keys: tuple[PublicKey, ...], source: str) -> tuple[PublicKey, str]:
    """The key that signed `data`, and the signed comment. Raises BundleError."""
    key_id, signature, comment, whole = _decode(signature_file, source)
    key = next((key for key in keys if key.id == key_id), None)
    if key is None:
        names = ", ".join(key.name for key in keys) or "none"
        raise BundleError(
            f"{source}: signed by key {key_id[::-1].hex().upper()}, trusted here: {names}; "
            "add its public key to policy.trusted_keys if you trust its owner"
        )
    public = Ed25519PublicKey.from_public_bytes(key.raw)
    try:
        public.verify(signature, hashlib.blake2b(data).digest())
        public.verify(whole, signature + comment.encode("ascii"))
    except InvalidSignature as error:
        raise BundleError(f"{source}: the signature does not match; fetch the bundle again") from error
    return key, comment


def find_secret(data: bytes, own: SecretKey) -> str:
    """What secret there is in a file that is to be published, in words; "" for none. own: the key that signs it."""
    half = own.id + own.seed  # base64 of the key file begins 54 bytes before, a multiple of three
    for spelled in (own.seed, own.seed.hex().encode(), base64.b64encode(own.seed)[:-2], base64.b64encode(half)[:-3]):
        if spelled in data:
            return "the key that signs it"
    return next((name for name, shape in SECRETS.items() if re.search(shape, data)), "")


def load_keys(paths: tuple[str, ...]) -> tuple[PublicKey, ...]:
    """Public keys from minisign files. Raises BundleError."""
    keys = []
    for path in paths:
        try:
            text = Path(path).read_text(encoding="ascii")
        except (OSError, UnicodeDecodeError) as error:
            raise BundleError(f"{path}: cannot read the public key: {error}; check policy.trusted_keys") from error
        keys.append(PublicKey.decode(text, path))
    return tuple(keys)


def _payload(text: str, source: str, what: str, size: int) -> bytes:
    lines = text.splitlines()
    try:
        raw = base64.b64decode(lines[1], validate=True)
    except (IndexError, binascii.Error, ValueError):
        raw = b""
    if len(lines) != 2 or not lines[0].startswith("untrusted comment: ") or len(raw) != size:
        raise BundleError(f"{source}: not a minisign {what} (two lines, {size} bytes); make one with `minisign -G -W`")
    return raw


def _encode(key_id: bytes, signature: bytes, comment: str, whole: bytes) -> bytes:
    first = base64.b64encode(PREHASHED + key_id + signature).decode()
    second = base64.b64encode(whole).decode()
    return f"{SIGNATURE_COMMENT}\n{first}\n{TRUSTED_COMMENT}{comment}\n{second}\n".encode("ascii")


def _decode(raw: bytes, source: str) -> tuple[bytes, bytes, str, bytes]:
    """Key id, signature, comment, signature over both; refuses every other spelling of the same."""
    try:
        lines = raw.decode("ascii").split("\n")
        first = base64.b64decode(lines[1], validate=True)
        comment = lines[2][len(TRUSTED_COMMENT) :]
        whole = base64.b64decode(lines[3], validate=True)
        same = _encode(first[2:10], first[10:], comment, whole) == raw
    except (IndexError, ValueError):
        same = False
    if not same or len(first) != 74 or len(whole) != 64:
        raise BundleError(f"{source}: not a signature file of dzedge; fetch the bundle again")
    return first[2:10], first[10:], comment, whole
