"""Publishers' private keys: Ed25519 in PKCS8 PEM files that nobody else can read."""

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key

from sealed_experts.errors import UserError
from sealed_experts.files.atomic import write_bytes
from sealed_experts.files.locks import folder_lock
from sealed_experts.sealing.home import checked_name, home_folder, private_folder, refuse_foreign, refuse_shared
from sealed_experts.sealing.regular_file import open_regular
from sealed_experts.sealing.trust import PublicKey, fingerprint, is_taken, load_trust, trust_key

DEFAULT_NAME = "publisher"
NOT_MADE_YET = "made on first use"
_LARGEST_FILE = 16_384


@dataclass(frozen=True, kw_only=True)
class PublisherKey:
    """A private key in use. Its representation shows the public half only."""

    public: PublicKey
    _private: Ed25519PrivateKey = field(repr=False)

    def sign(self, message: bytes) -> bytes:
        """Return the Ed25519 signature (RFC 8032, 64 bytes) of `message`."""
        return self._private.sign(message)


def keys_folder() -> Path:
    """Return the folder of private keys. It may not exist yet."""
    return home_folder() / "keys"


def key_path(name: str | None = None) -> Path:
    """Return the private key's path: of `name`, or else ${SEALED_EXPERTS_KEY}, or else the key `publisher`."""
    chosen = os.environ.get("SEALED_EXPERTS_KEY")
    if name is None and chosen:
        return Path(chosen).expanduser()
    return keys_folder() / f"{checked_name(name or DEFAULT_NAME)}.pem"


def create_key(*, name: str = DEFAULT_NAME) -> PublicKey:
    """Make a key pair, trust its public half, and return that.

    Raises:
        UserError: a key of this name exists, or the folder cannot be used.
    """
    folder = private_folder(keys_folder())
    with folder_lock(folder):
        path = folder / f"{checked_name(name)}.pem"
        if path.exists():
            raise UserError(f"{path} exists: choose another --name, or move that key away first")
        return _write_new_key(path, trusted_as=name)


def load_key(path: Path | None = None) -> PublisherKey:
    """Read a private key, by default the one that `key_path` chooses.

    Raises:
        UserError: the key is missing, is no Ed25519 key, has a passphrase, or others can read or replace it.
    """
    path = path or key_path()
    refuse_shared(path.resolve().parent)
    content = _read_private_file(path)
    try:
        private = load_pem_private_key(content, password=None)
    except TypeError as error:
        raise UserError(f"{path} has a passphrase: give a key without one, of mode 0600") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise UserError(f"{path} is not a private key in PEM: `sealed-experts keys create` makes one") from error
    if not isinstance(private, Ed25519PrivateKey):
        raise UserError(f"{path} is not an Ed25519 key: `sealed-experts keys create` makes one")
    return PublisherKey(public=PublicKey(name=path.stem, raw=private.public_key().public_bytes_raw()), _private=private)


def publisher_fingerprint() -> str:
    """Return the fingerprint of the key that packages are signed with. Raises as `load_key`."""
    return load_key().public.fingerprint


def ensure_publisher_key(*, create: bool = True) -> str:
    """Return the publisher key's fingerprint; make the key on first use and say so on standard error.

    A path given by SEALED_EXPERTS_KEY is never filled by us. Without `create`, an absent key gives `NOT_MADE_YET`.

    Raises:
        UserError: as `load_key`; or the key's public half is not trusted, so that every package that it signs
            would be refused.
    """
    path = key_path()
    if path == key_path(DEFAULT_NAME) and not path.exists():
        if not create:
            return NOT_MADE_YET
        with folder_lock(private_folder(path.parent)):
            if not path.exists():  # else another process has made it meanwhile
                key = _write_new_key(path, trusted_as=None)
                print(
                    f"made a publisher key: {path} (fingerprint {key.fingerprint}); it signs your packages and is "
                    "trusted on this machine. Keep a copy of it in a safe place.",
                    file=sys.stderr,
                )
    key = load_key(path).public
    if load_trust().find(key.fingerprint) is None:
        raise UserError(
            f"the publisher key {path} is not trusted on this machine, so its packages would be refused: run "
            "`sealed-experts keys export --output publisher.pub` and `sealed-experts keys trust publisher.pub`"
        )
    return key.fingerprint


def _write_new_key(path: Path, *, trusted_as: str | None) -> PublicKey:
    private = Ed25519PrivateKey.generate()
    raw = private.public_key().public_bytes_raw()
    if trusted_as is None:
        trusted_as = f"{path.stem}-{fingerprint(raw)[:8]}" if is_taken(path.stem) else path.stem
    # Trust first: a crash in between leaves trust in a key that nobody has, not a key whose packages are refused.
    public = trust_key(raw, name=trusted_as)
    write_bytes(path, private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), mode=0o600)
    return public


def _read_private_file(path: Path) -> bytes:
    try:
        with open_regular(path) as (stream, status):
            if status.st_mode & 0o077:
                mode = f"{status.st_mode & 0o777:04o}"
                raise UserError(f"other users can use the private key {path} (mode {mode}): chmod 600 it")
            refuse_foreign(path, status)
            return stream.read(_LARGEST_FILE)
    except FileNotFoundError as error:
        raise UserError(
            f"the private key {path} does not exist: `sealed-experts keys create` makes one, or correct "
            "SEALED_EXPERTS_KEY"
        ) from error
    except OSError as error:
        raise UserError(f"cannot read the private key {path}: {error.strerror}") from error
