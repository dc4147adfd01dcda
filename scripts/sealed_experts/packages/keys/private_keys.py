"""Publishers' private keys: PEM files that only the user can read, one block of PKCS8 for each algorithm."""

import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sealed_experts.errors import UserError
from sealed_experts.files.atomic import write_bytes, write_text
from sealed_experts.files.home import expanded, home_folder, private_folder
from sealed_experts.files.locks import folder_lock
from sealed_experts.packages.keys import passphrase
from sealed_experts.packages.keys.leftovers import clear_leftovers
from sealed_experts.packages.keys.own_entry import DEFAULT_NAME, RETIRED, check_accepted, own_entry, refuse_unusable
from sealed_experts.packages.keys.pem import (
    is_encrypted,
    known_public,
    parse_private,
    private_pem,
    public_keys,
    read_public_keys,
)
from sealed_experts.packages.keys.private_file import read_private_file, refuse_project
from sealed_experts.packages.keys.publisher import Publisher, checked_name
from sealed_experts.packages.keys.signing import (
    ED25519,
    PrivateKey,
    available_algorithms,
    generate_key,
    self_test,
)
from sealed_experts.packages.keys.trust import trust_publisher

VARIABLE = "SEALED_EXPERTS_KEY"
NOT_MADE_YET = "made on first use"
MISSING = f"`sealed-experts keys create` makes one, or correct {VARIABLE}"


@dataclass(frozen=True, kw_only=True)
class PublisherKey:
    """A publisher's private keys, ready to sign. Their `repr` shows only the public halves."""

    public: Publisher
    private: Mapping[str, PrivateKey] = field(repr=False)

    @classmethod
    def of(cls, private: Mapping[str, PrivateKey], *, name: str) -> "PublisherKey":
        """Return the publisher with these private keys, by algorithm. One of them must be Ed25519."""
        return cls(public=Publisher(name=name, keys=public_keys(private)), private=private)

    def sign(self, message: bytes, *, algorithm: str = ED25519) -> bytes:
        """Return the signature of `message`: Ed25519 (RFC 8032, 64 bytes) or ML-DSA-65 (FIPS 204, 3309 bytes).

        Raises:
            UserError: there is no key of this algorithm.
        """
        if algorithm not in self.private:
            raise UserError(
                f"the publisher key {self.public.name} has no {algorithm!a} key, only "
                f"{' and '.join(self.private)}: `sealed-experts keys rotate` makes one with every algorithm"
            )
        return self.private[algorithm].sign(message)


def keys_folder() -> Path:
    """Return the folder of private keys. It may not exist yet."""
    return home_folder() / "keys"


def key_path(name: str | None = None) -> Path:
    """Return the path of the key `name`; without a name, ${SEALED_EXPERTS_KEY}, or else the key `publisher`.

    Raises:
        UserError: the name cannot name a key, or the variable's path begins with an unknown user's home folder.
    """
    chosen = os.environ.get(VARIABLE)
    if name is None and chosen:
        return expanded(chosen, variable=VARIABLE)
    return keys_folder() / f"{checked_name(name or DEFAULT_NAME)}.pem"


def create_key(
    *, name: str = DEFAULT_NAME, algorithms: Sequence[str] | None = None, secret: bytes | None = None
) -> Publisher:
    """Make a key of each algorithm, test them, and trust their public halves.

    Args:
        name: the key's name.
        algorithms: by default all that work here; one of them must be Ed25519.
        secret: passphrase of the file; by default ${SEALED_EXPERTS_PASSPHRASE}, or none.

    Returns:
        The public half.

    Raises:
        UserError: a key of this name exists, the name is reserved for retired keys, an algorithm does not work here, or
            the folder cannot be used.
    """
    if RETIRED in checked_name(name):
        raise UserError(f"{name!r} is reserved for retired keys, which sign nothing: choose a name without {RETIRED!r}")
    folder = private_folder(keys_folder())
    with folder_lock(folder):
        clear_leftovers(folder)
        path = folder / f"{name}.pem"
        if path.exists() or path.is_symlink():
            raise UserError(f"{path} exists: choose another --name, or move that key away first")
        key = new_key(name=name, algorithms=algorithms)
        return write_key(path, key, entry=own_entry(path, key.public, name=name), secret=secret)


def new_key(*, name: str, algorithms: Sequence[str] | None = None) -> PublisherKey:
    """Return new private keys that have passed a test. Nothing is written.

    Raises:
        UserError: an algorithm does not work here, or Ed25519 is missing.
    """
    chosen = available_algorithms() if algorithms is None else tuple(dict.fromkeys(algorithms))
    for algorithm in chosen:
        if algorithm not in available_algorithms():
            known = ", ".join(available_algorithms())
            raise UserError(f"no key of the algorithm {algorithm!r} can be made here; possible are {known}")
    if ED25519 not in chosen:
        raise UserError(f"a publisher's key needs {ED25519}: its fingerprint identifies the publisher")
    private = {algorithm: generate_key(algorithm) for algorithm in chosen}
    for key in private.values():
        self_test(key)
    return PublisherKey.of(private, name=name)


def load_key(path: Path | None = None) -> PublisherKey:
    """Read the private key to sign with, by default the one at `key_path()`.

    Raises:
        UserError: as for `unlocked`; or the key was retired or revoked.
    """
    path = path or key_path()
    key, _ = unlocked(path)
    refuse_unusable(path, key.public)
    return key


def unlocked(path: Path) -> tuple[PublisherKey, bytes | None]:
    """Read a private key, even a retired or revoked one. Return it and its passphrase, if it has one.

    Raises:
        UserError: the file is missing or does not hold a publisher's key, its passphrase is missing or wrong, or other
            users can read or replace it.
    """
    content = read_private_file(path, remedy=MISSING)
    secret = passphrase.read_passphrase(path) if is_encrypted(content) else None
    return PublisherKey.of(parse_private(content, where=str(path), secret=secret), name=path.stem), secret


def public_half(path: Path) -> Publisher:
    """Return the public half of a private key, without its passphrase if possible.

    A file from another program may not hold the public half unencrypted. Then the .pub file next to it is read.

    Raises:
        UserError: as for `unlocked`.
    """
    content, beside = read_private_file(path, remedy=MISSING), path.with_suffix(".pub")
    keys = known_public(content, where=str(path))
    if keys is None and beside.exists():
        keys = read_public_keys(beside)
    return unlocked(path)[0].public if keys is None else Publisher(name=path.stem, keys=keys)


def ensure_publisher_key(
    *, create: bool = True, algorithms: Sequence[str] | None = None, experts: Iterable[str] = ()
) -> str:
    """Return the publisher key's fingerprint. On first use make the key, with a message on standard error.

    No key is made at a path given by SEALED_EXPERTS_KEY.

    Args:
        create: whether to make a missing key; if not, the result is `NOT_MADE_YET`.
        algorithms: algorithms of a new key; by default all that work here.
        experts: names of the experts that it will seal.

    Raises:
        UserError: as for `public_half`; or as for `check_accepted`: the key's packages would be refused.
    """
    path = key_path()
    if path.absolute() == key_path(DEFAULT_NAME).absolute() and not path.exists():
        if not create:
            return NOT_MADE_YET
        _make_first(path, algorithms)
    public = public_half(path)
    check_accepted(path, public, experts=experts)
    return public.fingerprint


def restore_public(path: Path, public: Publisher) -> None:
    """Write the .pub file of a key in the folder of keys, if a killed command left none or an outdated one."""
    beside = path.with_suffix(".pub")
    whole = beside.is_file() and beside.read_bytes() == public.pem.encode()
    if whole or path.absolute().parent != keys_folder().absolute():
        return
    with folder_lock(path.parent):
        if known_public(read_private_file(path), where=str(path)) in (None, public.keys):
            write_text(beside, public.pem)


def write_key(path: Path, key: PublisherKey, *, entry: Publisher, secret: bytes | None) -> Publisher:
    """Trust a new key's public half, then write both halves; return the entry in the trust store.

    Args:
        path: the private file; the public half is written next to it.
        key: the new key.
        entry: its public half, as it will be trusted here.
        secret: passphrase of the file; by default ${SEALED_EXPERTS_PASSPHRASE}, or none.
    """
    refuse_project(path)
    if secret is None and passphrase.wanted():
        secret = passphrase.new_passphrase()
    # Trust first: a crash then leaves trust in a key that nobody has, which is better than a key that is not trusted.
    trusted = trust_publisher(entry)
    # A file with a passphrase also holds the public half, so the two match after any interruption.
    content = private_pem(key.private.values(), passphrase=secret)
    write_bytes(path, content + (b"" if secret is None else key.public.pem.encode()), mode=0o600)
    write_text(path.with_suffix(".pub"), key.public.pem)
    return trusted


def _make_first(path: Path, algorithms: Sequence[str] | None) -> None:
    with folder_lock(private_folder(path.parent)):
        clear_leftovers(path.parent)
        if path.exists():  # another process has just made it
            return
        key = new_key(name=path.stem, algorithms=algorithms)
        write_key(path, key, entry=own_entry(path, key.public), secret=None)
        print(
            f"made a publisher key: {path} (fingerprint {key.public.fingerprint}); it signs your packages and is "
            "trusted on this machine. Keep a copy of it in a safe place.",
            file=sys.stderr,
        )
