"""Publishers' private keys: PKCS8 in PEM files that nobody else can read, one block an algorithm."""

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sealed_experts.errors import UserError
from sealed_experts.files.atomic import write_bytes, write_text
from sealed_experts.files.locks import folder_lock
from sealed_experts.sealing.keys import passphrase
from sealed_experts.sealing.keys.home import (
    NAME,
    checked_name,
    home_folder,
    private_folder,
    refuse_foreign,
    refuse_project,
    refuse_shared,
)
from sealed_experts.sealing.keys.pem import LARGEST_FILE, is_encrypted, parse_private, private_pem, read_public_keys
from sealed_experts.sealing.keys.publisher import PublicKey, Publisher
from sealed_experts.sealing.keys.signing import (
    ALGORITHMS,
    ED25519,
    PrivateKey,
    available_algorithms,
    generate_key,
    self_test,
)
from sealed_experts.sealing.keys.trust import is_taken, load_trust, trust_publisher
from sealed_experts.sealing.regular_file import open_regular

DEFAULT_NAME = "publisher"
NOT_MADE_YET = "made on first use"
RETIRED = ".retired-"


@dataclass(frozen=True, kw_only=True)
class PublisherKey:
    """A publisher's private keys in use. Their representation shows the public halves only."""

    public: Publisher
    _private: Mapping[str, PrivateKey] = field(repr=False)

    @classmethod
    def of(cls, private: Mapping[str, PrivateKey], *, name: str) -> "PublisherKey":
        """Return the publisher of these private keys by algorithm, Ed25519 among them."""
        keys = tuple(
            PublicKey(algorithm=algorithm, raw=private[algorithm].public_key().public_bytes_raw())
            for algorithm in ALGORITHMS
            if algorithm in private
        )
        return cls(public=Publisher(name=name, keys=keys), _private=private)

    def sign(self, message: bytes, *, algorithm: str = ED25519) -> bytes:
        """Return the signature of `message`: Ed25519 (RFC 8032, 64 bytes) or ML-DSA-65 (FIPS 204, 3309 bytes).

        Raises:
            UserError: there is no key of this algorithm.
        """
        if algorithm not in self._private:
            raise UserError(
                f"the publisher key {self.public.name} has no {algorithm!a} key, only "
                f"{' and '.join(self._private)}: `sealed-experts keys rotate` makes one with every algorithm"
            )
        return self._private[algorithm].sign(message)


def keys_folder() -> Path:
    """Return the folder of private keys. It may not exist yet."""
    return home_folder() / "keys"


def key_path(name: str | None = None) -> Path:
    """Return the private key's path: of `name`, or else ${SEALED_EXPERTS_KEY}, or else the key `publisher`."""
    chosen = os.environ.get("SEALED_EXPERTS_KEY")
    if name is None and chosen:
        return Path(chosen).expanduser()
    return keys_folder() / f"{checked_name(name or DEFAULT_NAME)}.pem"


def create_key(
    *, name: str = DEFAULT_NAME, algorithms: Sequence[str] | None = None, secret: bytes | None = None
) -> Publisher:
    """Make a key of each algorithm, by default of all that work here, test them, trust their public halves.

    Args:
        name: what to call it.
        algorithms: which ones; Ed25519 must be among them.
        secret: passphrase of the file; by default ${SEALED_EXPERTS_PASSPHRASE}, or none.

    Returns:
        the public half.

    Raises:
        UserError: a key of this name exists, an algorithm does not work here, or the folder cannot be used.
    """
    folder = private_folder(keys_folder())
    with folder_lock(folder):
        path = folder / f"{checked_name(name)}.pem"
        if path.exists():
            raise UserError(f"{path} exists: choose another --name, or move that key away first")
        key = new_key(name=name, algorithms=algorithms)
        return write_key(path, key, entry=own_entry(path, key.public, name=name), secret=secret)


def new_key(*, name: str, algorithms: Sequence[str] | None = None) -> PublisherKey:
    """Return new private keys that have passed a test. Nothing is written. Raises as `create_key`."""
    chosen = available_algorithms() if algorithms is None else tuple(dict.fromkeys(algorithms))
    for algorithm in chosen:
        if algorithm not in available_algorithms():
            known = ", ".join(available_algorithms())
            raise UserError(f"no key of the algorithm {algorithm!r} can be made here; possible are {known}")
    if ED25519 not in chosen:
        raise UserError(f"a publisher's key needs {ED25519}: it is the one that names the publisher")
    private = {algorithm: generate_key(algorithm) for algorithm in chosen}
    for key in private.values():
        self_test(key)
    return PublisherKey.of(private, name=name)


def load_key(path: Path | None = None) -> PublisherKey:
    """Read the private key to sign with, by default the one that `key_path` chooses.

    Raises:
        UserError: as `unlocked`; or the key was rotated or revoked.
    """
    path = path or key_path()
    key, _ = unlocked(path)
    refuse_unusable(path, key.public)
    return key


def unlocked(path: Path) -> tuple[PublisherKey, bytes | None]:
    """Read a private key, retired and revoked ones too, and its passphrase if it has one.

    Raises:
        UserError: the key is missing, is not a publisher's, its passphrase is missing or wrong, or others can read or
            replace it.
    """
    content = read_private_file(path)
    secret = passphrase.read_passphrase(path) if is_encrypted(content) else None
    return PublisherKey.of(parse_private(content, where=str(path), secret=secret), name=path.stem), secret


def public_half(path: Path) -> Publisher:
    """Return the public half of a private key; for one with a passphrase from the .pub file beside it.

    Raises:
        UserError: as `unlocked`.
    """
    beside = path.with_suffix(".pub")
    if is_encrypted(read_private_file(path)) and beside.exists():
        return Publisher(name=path.stem, keys=read_public_keys(beside))
    return unlocked(path)[0].public


def publisher_fingerprint() -> str:
    """Return the fingerprint of the key that packages are signed with. Raises as `public_half`."""
    return public_half(key_path()).fingerprint


def ensure_publisher_key(*, create: bool = True, algorithms: Sequence[str] | None = None) -> str:
    """Return the publisher key's fingerprint; make the key on first use and say so on standard error.

    Another path, given by SEALED_EXPERTS_KEY, is never filled by us.

    Args:
        create: whether an absent key is made; if not, its fingerprint is `NOT_MADE_YET`.
        algorithms: those of a key that is made, by default all that work here.

    Raises:
        UserError: as `public_half`; or the key's public half is not trusted, revoked or expired, so that every package
            that it signs would be refused.
    """
    path = key_path()
    if path == key_path(DEFAULT_NAME) and not path.exists():
        if not create:
            return NOT_MADE_YET
        with folder_lock(private_folder(path.parent)):
            if not path.exists():  # else another process has made it meanwhile
                key = new_key(name=path.stem, algorithms=algorithms)
                write_key(path, key, entry=own_entry(path, key.public), secret=None)
                print(
                    f"made a publisher key: {path} (fingerprint {key.public.fingerprint}); it signs your packages and "
                    "is trusted on this machine. Keep a copy of it in a safe place.",
                    file=sys.stderr,
                )
    public = public_half(path)
    refuse_unusable(path, public)
    known = load_trust().find(public.fingerprint)
    if known is None:
        raise UserError(
            f"the publisher key {path} is not trusted on this machine, so its packages would be refused: run "
            "`sealed-experts keys export --output publisher.pub` and `sealed-experts keys trust publisher.pub`"
        )
    if known.status() != "trusted":
        raise UserError(
            f"the publisher key {path} expired here on {known.expires}, so its packages would be refused: run "
            "`sealed-experts keys rotate`, or trust it anew with a later --expires"
        )
    return public.fingerprint


def own_entry(path: Path, public: Publisher, *, name: str | None = None) -> Publisher:
    """Return the trust store's entry of one's own key: by default named as its file, if that name is free."""
    if name is None:
        name = path.stem if NAME.fullmatch(path.stem) else DEFAULT_NAME
        if is_taken(name):
            name = f"{name[:55]}-{public.fingerprint[:8]}"
    return Publisher(name=name, keys=public.keys)


def write_key(path: Path, key: PublisherKey, *, entry: Publisher, secret: bytes | None) -> Publisher:
    """Trust a new key's public half, then write both halves; return its entry of the trust store.

    Args:
        path: the private file; the public half lies beside it.
        key: the new key.
        entry: its public half, as it is to be trusted here.
        secret: passphrase of the file; by default ${SEALED_EXPERTS_PASSPHRASE}, or none.
    """
    refuse_project(path)
    if secret is None and passphrase.wanted():
        secret = passphrase.new_passphrase()
    # Trust first: a crash in between leaves trust in a key that nobody has, not a key whose packages are refused.
    trusted = trust_publisher(entry)
    write_text(path.with_suffix(".pub"), key.public.pem)
    write_bytes(path, private_pem(key._private.values(), passphrase=secret), mode=0o600)
    return trusted


def read_private_file(path: Path) -> bytes:
    """Return the content of a private file that only this user can read.

    Raises:
        UserError: it is missing, no regular file, in a project's folder, or others can read or replace it.
    """
    refuse_project(path)
    refuse_shared(path.resolve().parent)
    try:
        with open_regular(path) as (stream, status):
            if status.st_mode & 0o077:
                mode = f"{status.st_mode & 0o777:04o}"
                raise UserError(f"other users can use the private key {path} (mode {mode}): chmod 600 it")
            refuse_foreign(path, status)
            return stream.read(LARGEST_FILE)
    except FileNotFoundError as error:
        raise UserError(
            f"the private key {path} does not exist: `sealed-experts keys create` makes one, or correct "
            "SEALED_EXPERTS_KEY"
        ) from error
    except OSError as error:
        raise UserError(f"cannot read the private key {path}: {error.strerror}") from error


def refuse_unusable(path: Path, public: Publisher) -> None:
    """Refuse to sign with a key that was retired or revoked.

    Raises:
        UserError: it was.
    """
    if RETIRED in path.stem:
        raise UserError(f"the publisher key {path} was retired: sign with the one that took its place")
    known = load_trust().find(public.fingerprint)
    if known is not None and known.revoked is not None:
        raise UserError(
            f"the publisher key {path} was revoked ({known.revoked}), so its packages would be refused: sign with "
            "another key (SEALED_EXPERTS_KEY), or move it away and run `sealed-experts keys create`"
        )
