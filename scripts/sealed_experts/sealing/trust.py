"""Public keys of publishers, and the store of those that this machine's user trusts."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

from sealed_experts.errors import UserError
from sealed_experts.files.atomic import write_text
from sealed_experts.files.canonical import canonical_json, strict_json
from sealed_experts.sealing.home import (
    NAME,
    checked_name,
    home_folder,
    private_folder,
    refuse_foreign,
    refuse_shared,
)
from sealed_experts.sealing.regular_file import open_regular

ALGORITHM = "ed25519"
_FIELDS = {"algorithm", "fingerprint", "name", "public_key"}
_LARGEST_FILE = 16_384
# The points whose order divides 8, without the sign bit, canonical or not. Whoever sends a signature with such a key
# needs no private half: for the neutral point, one constant signs everything. RFC 8032 leaves it to us to refuse them,
# and so does the library. The list is libsodium's (ed25519_ref10.c, `ge25519_has_small_order`).
_SMALL_ORDER = frozenset(
    (
        "0000000000000000000000000000000000000000000000000000000000000000",
        "0100000000000000000000000000000000000000000000000000000000000000",
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
        "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    )
)


@dataclass(frozen=True, kw_only=True)
class PublicKey:
    """An Ed25519 public key (RFC 8032) under the name that the trust store gives it.

    Attributes:
        name: for people; it proves nothing.
        raw: the key's 32 bytes.
    """

    name: str
    raw: bytes

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the raw key, lower-case hex."""
        return fingerprint(self.raw)

    @property
    def pem(self) -> str:
        """The key as SubjectPublicKeyInfo in PEM."""
        key = Ed25519PublicKey.from_public_bytes(self.raw)
        return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


class TrustStore:
    """An unchangeable set of trusted public keys."""

    def __init__(self, keys: Iterable[PublicKey]) -> None:
        self._by_fingerprint = {key.fingerprint: key for key in keys}

    def find(self, key_fingerprint: str) -> PublicKey | None:
        """Return the trusted key of this fingerprint, or None."""
        return self._by_fingerprint.get(key_fingerprint)

    def __iter__(self) -> Iterator[PublicKey]:
        return iter(sorted(self._by_fingerprint.values(), key=lambda key: key.name))

    def __len__(self) -> int:
        return len(self._by_fingerprint)


def fingerprint(raw: bytes) -> str:
    """Return a raw public key's fingerprint: its SHA-256, lower-case hex."""
    return hashlib.sha256(raw).hexdigest()


def is_weak(raw: bytes) -> bool:
    """Tell whether a raw public key is a point of small order, under which anybody can sign."""
    return (raw[:31] + bytes([raw[31] & 0x7F])).hex() in _SMALL_ORDER


def trust_folder() -> Path:
    """Return the folder of trusted keys. It may not exist yet."""
    return home_folder() / "trust"


def load_trust(folder: Path | None = None) -> TrustStore:
    """Read the trust store; an absent one trusts nobody.

    Raises:
        UserError: other users can change the store, a file in it or the folder that it lies in; or a file in it is not
            a trusted key's.
    """
    folder = folder or trust_folder()
    if not folder.is_dir():
        return TrustStore([])
    for each in (folder.parent, folder):
        refuse_shared(each)
    # Backwards, because later ones win: of a key with two names, the alphabetically first is shown.
    return TrustStore(_read_entry(path) for path in sorted(folder.glob("*.json"), reverse=True))


def trust_key(raw: bytes, *, name: str) -> PublicKey:
    """Add a public key to the trust store under `name`, and return it.

    Raises:
        UserError: the name stands for another key, or anybody can sign under this one.
    """
    _refuse_weak(raw, "this public key")
    key = PublicKey(name=checked_name(name), raw=raw)
    path = private_folder(trust_folder()) / f"{name}.json"
    if path.exists() and _read_entry(path).raw != raw:
        raise UserError(f"{name} is already the name of another trusted key ({path}): choose another --name")
    entry = {
        "algorithm": ALGORITHM,
        "fingerprint": key.fingerprint,
        "name": key.name,
        "public_key": key.raw.hex(),
    }
    write_text(path, canonical_json(entry) + "\n")
    return key


def is_taken(name: str) -> bool:
    """Tell whether a trusted key has this name."""
    return (trust_folder() / f"{name}.json").exists()


def untrust_key(name_or_fingerprint: str) -> tuple[PublicKey, ...]:
    """Remove a key from the trust store, by name or by its whole fingerprint, under every name that it has there.

    Returns:
        what was removed, by name.

    Raises:
        UserError: the store has no such key.
    """
    entries = {path: _read_entry(path) for path in sorted(trust_folder().glob("*.json"))}
    meant = {key.fingerprint for key in entries.values() if name_or_fingerprint in (key.name, key.fingerprint)}
    if not meant:
        known = ", ".join(key.name for key in load_trust()) or "none"
        raise UserError(f"no trusted key is called {name_or_fingerprint!r}; trusted are: {known}")
    removed = {path: key for path, key in entries.items() if key.fingerprint in meant}
    for path in removed:
        path.unlink()
    return tuple(removed.values())


def read_public_key(path: Path) -> bytes:
    """Read an Ed25519 public key from a PEM file (SubjectPublicKeyInfo) and return its 32 bytes.

    Raises:
        UserError: the file is missing or holds something else, or a key under which anybody can sign.
    """
    try:
        with open(path, "rb") as stream:
            content = stream.read(_LARGEST_FILE)
    except OSError as error:
        raise UserError(f"cannot read the public key {path}: {error.strerror}") from error
    if b"PRIVATE KEY" in content:
        raise UserError(f"{path} holds a private key: give the public half (`sealed-experts keys export`)")
    try:
        key = load_pem_public_key(content)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise UserError(f"{path} is not a public key in PEM: give a file from `sealed-experts keys export`") from error
    if not isinstance(key, Ed25519PublicKey):
        raise UserError(f"{path} holds a {type(key).__name__}: publishers' keys are Ed25519")
    raw = key.public_bytes_raw()
    _refuse_weak(raw, str(path))
    return raw


def _refuse_weak(raw: bytes, where: str, *, remedy: str = "ask its owner for another key") -> None:
    if is_weak(raw):
        raise UserError(f"{where} is a point of small order, under which anybody can sign: {remedy}")


def _read_entry(path: Path) -> PublicKey:
    try:
        with open_regular(path) as (stream, status):
            refuse_foreign(path, status)
            entry = strict_json(stream.read(_LARGEST_FILE))
    except OSError as error:
        raise UserError(f"cannot read the trusted key {path}: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON: {error}; delete it") from error
    if not isinstance(entry, dict) or set(entry) != _FIELDS or not all(isinstance(v, str) for v in entry.values()):
        raise UserError(f"{path} is not a trusted key's file: it must hold {', '.join(sorted(_FIELDS))}; delete it")
    try:
        raw = bytes.fromhex(entry["public_key"])
    except ValueError:
        raw = b""
    if entry["algorithm"] != ALGORITHM or len(raw) != 32 or fingerprint(raw) != entry["fingerprint"]:
        raise UserError(f"{path} is damaged: its key and its fingerprint do not belong together; delete it")
    _refuse_weak(raw, f"the key in {path}", remedy="delete it")
    if entry["name"] != path.stem or not NAME.fullmatch(entry["name"]):
        raise UserError(f"{path} is damaged: it names {entry['name']!r} instead of {path.stem!r}; delete it")
    return PublicKey(name=entry["name"], raw=raw)
