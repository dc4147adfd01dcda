"""Encryption of a payload for recipients: HPKE (RFC 9180) wraps a content key, which encrypts the payload in chunks.

The key encapsulation combines X25519 and ML-KEM-768. An attacker must break both to open a package.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from cryptography.exceptions import InvalidTag, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hpke import (
    AEAD,
    KDF,
    KEM,
    MLKEM768X25519PrivateKey,
    MLKEM768X25519PublicKey,
    Suite,
)

from sealed_experts.errors import UserError
from sealed_experts.packages.errors import EncryptedError, PackageError
from sealed_experts.packages.keys.signing import fingerprint
from sealed_experts.packages.source import Buffer

ENCRYPTION = "hpke-mlkem768-x25519"  # its name in the manifest
PUBLIC_HALVES = (1184, 32)  # bytes of the raw public key: ML-KEM-768's, then X25519's
PRIVATE_HALVES = (64, 32)  # bytes of the raw private key: ML-KEM-768's seed, then X25519's scalar
CONTENT_KEY = 32
WRAPPED_KEY = 1168  # encapsulation (1088 + 32), content key (32), tag (16)
CHUNK = 1 << 16  # bytes of a payload's chunk, without its tag
TAG = 16
MAX_RECIPIENTS = 50
KEY_CONTEXT = b"sealed-experts/tgsp/v1/key"
CHUNK_CONTEXT = b"sealed-experts/tgsp/v1/chunk"
_ENTRY = 32 + WRAPPED_KEY
_PROBE = X25519PrivateKey.from_private_bytes(
    bytes([1]) * 32
)  # with any key, an exchange shows whether a point has small order


@dataclass(frozen=True)
class Recipient:
    """The public half of a recipient's key.

    Attributes:
        raw: ML-KEM-768's encapsulation key (FIPS 203, 1184 bytes), then X25519's public key (RFC 7748, 32 bytes).
    """

    raw: bytes

    def __post_init__(self) -> None:
        """Refuse bytes that are not such a key, and a point of small order: nothing can be encrypted for it."""
        try:
            _, curve = self.halves()
            _PROBE.exchange(curve)
        except (ValueError, UnsupportedAlgorithm) as error:
            raise UserError(f"this is not a recipient's public key of {sum(PUBLIC_HALVES)} bytes: {error}") from error

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the raw key, lower-case hex."""
        return fingerprint(self.raw)

    def halves(self) -> tuple[MLKEM768PublicKey, X25519PublicKey]:
        """Return the two halves."""
        lattice, curve = _halves(self.raw, PUBLIC_HALVES)
        return MLKEM768PublicKey.from_public_bytes(lattice), X25519PublicKey.from_public_bytes(curve)


@dataclass(frozen=True)
class Identity:
    """The private half of a recipient's key. Its `repr` shows nothing of it.

    Attributes:
        raw: ML-KEM-768's seed (FIPS 203's d and z, 64 bytes), then X25519's private key (32 bytes).
    """

    raw: bytes = field(repr=False)

    def __post_init__(self) -> None:
        """Refuse bytes that are not such a key."""
        try:
            self.halves()
        except (ValueError, UnsupportedAlgorithm) as error:
            raise UserError(f"this is not a recipient's private key of {sum(PRIVATE_HALVES)} bytes") from error

    @property
    def recipient(self) -> Recipient:
        """The public half."""
        lattice, curve = self.halves()
        return Recipient(lattice.public_key().public_bytes_raw() + curve.public_key().public_bytes_raw())

    def halves(self) -> tuple[MLKEM768PrivateKey, X25519PrivateKey]:
        """Return the two halves."""
        lattice, curve = _halves(self.raw, PRIVATE_HALVES)
        return MLKEM768PrivateKey.from_seed_bytes(lattice), X25519PrivateKey.from_private_bytes(curve)


def generate_identity() -> Identity:
    """Return a new private key from the operating system's generator.

    Raises:
        UserError: the OpenSSL of `cryptography` has no ML-KEM.
    """
    try:
        lattice = MLKEM768PrivateKey.generate()
    except UnsupportedAlgorithm as error:
        raise UserError("the installed `cryptography` has no ML-KEM-768: install cryptography>=50") from error
    return Identity(lattice.private_bytes_raw() + X25519PrivateKey.generate().private_bytes_raw())


def wrap_key(content_key: bytes, *, recipients: Iterable[Recipient], manifest: bytes) -> bytes:
    """Return the recipients part of a package: the content key, encrypted for each recipient and for this manifest.

    Raises:
        UserError: there are too many recipients.
    """
    ordered = sorted(set(recipients), key=lambda recipient: recipient.fingerprint)
    if not 1 <= len(ordered) <= MAX_RECIPIENTS:
        raise UserError(f"a package is encrypted for 1 to {MAX_RECIPIENTS} recipients, not {len(ordered)}")
    pieces = [bytes([len(ordered)])]
    for recipient in ordered:
        info = _info(recipient.fingerprint, manifest)
        pieces += [
            bytes.fromhex(recipient.fingerprint),
            _suite().encrypt(content_key, MLKEM768X25519PublicKey(*recipient.halves()), info=info),
        ]
    return b"".join(pieces)


def parse_recipients(part: bytes) -> dict[str, bytes]:
    """Return the wrapped keys in a recipients part, by the recipients' fingerprints.

    Raises:
        PackageError: `wrap_key` did not write this part.
    """
    count = part[0] if part else 0
    if not 1 <= count <= MAX_RECIPIENTS or len(part) != 1 + count * _ENTRY:
        raise PackageError(
            f"the recipients part has {len(part)} bytes for {count} recipients; it must have 1 to {MAX_RECIPIENTS} of "
            f"{_ENTRY} bytes each"
        )
    entries = [part[start : start + _ENTRY] for start in range(1, len(part), _ENTRY)]
    names = [entry[:32].hex() for entry in entries]
    if names != sorted(set(names)):
        raise PackageError("the recipients must be sorted by fingerprint, each once")
    return {name: entry[32:] for name, entry in zip(names, entries, strict=True)}


def unwrap_key(part: bytes, *, identity: Identity | None, manifest: bytes) -> bytes:
    """Return the content key.

    Raises:
        EncryptedError: no key is given, or the package is not encrypted for this key.
        PackageError: the recipients part is damaged.
    """
    wrapped = parse_recipients(part)
    known = f"it is encrypted for {', '.join(wrapped)}"
    if identity is None:
        raise EncryptedError(
            f"{known}: give the private key of one of these recipients with --identity KEY, or name its file in"
            " SEALED_EXPERTS_IDENTITY"
        )
    name = identity.recipient.fingerprint
    if name not in wrapped:
        raise EncryptedError(
            f"{known}, and not for {name}, whose private key was given (--identity, SEALED_EXPERTS_IDENTITY)"
        )
    try:
        content_key = _suite().decrypt(
            wrapped[name], MLKEM768X25519PrivateKey(*identity.halves()), info=_info(name, manifest)
        )
    except InvalidTag as error:
        raise PackageError(
            f"the content key for the recipient {name} does not open: it was not encrypted for this key"
        ) from error
    return content_key


def encrypt_chunks(plain: Iterable[Buffer], *, content_key: bytes, manifest: bytes) -> Iterator[bytes]:
    """Yield the encrypted payload in chunks of 64 KiB, each with its tag. Only the last one is shorter."""
    cipher, bound = ChaCha20Poly1305(content_key), CHUNK_CONTEXT + hashlib.sha256(manifest).digest()
    index, kept = 0, bytearray()
    for block in plain:
        kept += block
        # Keep the last bytes back: a chunk is not the last one only if more bytes follow it.
        whole = max(0, (len(kept) - 1) // CHUNK)
        for _ in range(whole):
            yield cipher.encrypt(_nonce(index, final=False), bytes(kept[:CHUNK]), bound)
            del kept[:CHUNK]
            index += 1
    yield cipher.encrypt(_nonce(index, final=True), bytes(kept), bound)


def decrypt_chunks(stored: Iterable[Buffer], *, size: int, content_key: bytes, manifest: bytes) -> Iterator[bytes]:
    """Yield the plain payload.

    Args:
        stored: the encrypted payload in pieces of one chunk (`CHUNK + TAG`); the last one is shorter.
        size: bytes of the whole encrypted payload.

    Raises:
        PackageError: a chunk was altered, or is from another package or another place, or chunks are missing.
    """
    cipher, bound = ChaCha20Poly1305(content_key), CHUNK_CONTEXT + hashlib.sha256(manifest).digest()
    last = max(0, (size - 1) // (CHUNK + TAG))
    if size < TAG:
        raise PackageError(f"the encrypted payload has {size} bytes: not even one chunk's tag of {TAG}")
    for index, chunk in enumerate(stored):
        if index and len(chunk) <= TAG:
            raise PackageError(
                f"chunk {index} of the encrypted payload has no content: only a single chunk may be empty"
            )
        try:
            yield cipher.decrypt(_nonce(index, final=index == last), chunk, bound)
        except InvalidTag as error:
            raise PackageError(
                f"chunk {index} of the encrypted payload does not open: it does not belong to this package and place"
            ) from error


def _nonce(index: int, *, final: bool) -> bytes:
    """Return a chunk's nonce: its index and whether it is the last. A key encrypts one payload, so no nonce repeats."""
    return index.to_bytes(11, "big") + bytes([final])


def _info(recipient: str, manifest: bytes) -> bytes:
    return KEY_CONTEXT + bytes.fromhex(recipient) + hashlib.sha256(manifest).digest()


def _suite() -> Suite:
    return Suite(KEM.MLKEM768_X25519, KDF.HKDF_SHA256, AEAD.CHACHA20_POLY1305)


def _halves(raw: bytes, sizes: Sequence[int]) -> tuple[bytes, bytes]:
    if len(raw) != sum(sizes):
        raise ValueError(f"it has {len(raw)} bytes")
    return raw[: sizes[0]], raw[sizes[0] :]
