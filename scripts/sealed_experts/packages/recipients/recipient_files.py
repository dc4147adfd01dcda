"""Recipients' keys as files: two PEM blocks each, first ML-KEM-768, then X25519."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from sealed_experts.errors import UserError
from sealed_experts.files.atomic import write_bytes
from sealed_experts.files.home import home_folder, private_folder
from sealed_experts.files.locks import folder_lock
from sealed_experts.files.regular_file import read_regular
from sealed_experts.packages.keys.passphrase import read_passphrase
from sealed_experts.packages.keys.pem import is_encrypted, private_pem
from sealed_experts.packages.keys.private_file import LARGEST_FILE, read_private_file, refuse_project
from sealed_experts.packages.keys.publisher import checked_name
from sealed_experts.packages.recipients.encryption import Identity, Recipient, generate_identity

_BLOCK = re.compile(rb"-----BEGIN ([A-Z ]+)-----\n[A-Za-z0-9+/=\n]+-----END \1-----\n")


@dataclass(frozen=True, kw_only=True)
class RecipientFiles:
    """Paths of a new key's halves, and its fingerprint."""

    path: Path
    public: Path
    fingerprint: str


def recipients_folder() -> Path:
    """Return the folder of recipients' private keys. It may not exist yet."""
    return home_folder() / "recipients"


def create_recipient(*, name: str, secret: bytes | None) -> RecipientFiles:
    """Make a key. Its private half is written with mode 0600, and encrypted if a passphrase is given.

    Raises:
        UserError: a key of this name exists, the installed library cannot make one, or the folder cannot be used.
    """
    folder = private_folder(recipients_folder())
    with folder_lock(folder):
        path = folder / f"{checked_name(name)}.pem"
        if path.exists() or path.is_symlink():
            raise UserError(f"{path} exists: choose another --name, or move that key away first")
        identity = generate_identity()
        # Write the public half first: alone it is useless, and a private half always has its public half.
        save_recipient(path.with_suffix(".pub"), identity.recipient)
        save_identity(path, identity, passphrase=secret)
    return RecipientFiles(path=path, public=path.with_suffix(".pub"), fingerprint=identity.recipient.fingerprint)


def save_identity(path: Path, identity: Identity, *, passphrase: bytes | None = None) -> None:
    """Write a private key with mode 0600: two blocks of PKCS8, encrypted if a passphrase is given.

    Raises:
        UserError: the file exists, is in a project's folder, or cannot be written.
    """
    refuse_project(path)
    if path.exists() or path.is_symlink():
        raise UserError(f"{path} exists: choose another name, or move that key away first")
    write_bytes(path, private_pem(identity.halves(), passphrase=passphrase), mode=0o600)


def load_identity(path: Path, *, passphrase: bytes | None = None) -> Identity:
    """Read a private key. If it needs a passphrase and none is given, ask the environment or the terminal.

    Raises:
        UserError: as for `read_private_file`; the file is not a recipient's private key; or the passphrase is missing
            or wrong.
    """
    content = read_private_file(path)
    if passphrase is None and is_encrypted(content):
        passphrase = read_passphrase(path)
    try:
        keys: list[Any] = [
            load_pem_private_key(block, passphrase if is_encrypted(block) else None) for block in _blocks(content)
        ]
    except (ValueError, UnsupportedAlgorithm) as error:
        raise UserError(f"{path} does not open: the passphrase is wrong, or it is not a private key") from error
    if [isinstance(key, kind) for key, kind in zip(keys, _PRIVATE, strict=False)] != [True, True]:
        raise UserError(f"{path} is not a recipient's private key: it must hold one of ML-KEM-768, then one of X25519")
    return Identity(b"".join(key.private_bytes_raw() for key in keys))


def save_recipient(path: Path, recipient: Recipient) -> None:
    """Write a public key: two blocks of SubjectPublicKeyInfo."""
    pieces = [key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo) for key in recipient.halves()]
    write_bytes(path, b"".join(pieces))


def load_recipient(path: Path) -> Recipient:
    """Read a public key.

    Raises:
        UserError: the file is missing, or does not hold such a key.
    """
    content = read_regular(path, what="the public key", limit=LARGEST_FILE + 1)
    if b"PRIVATE KEY" in content:
        raise UserError(f"{path} holds a private key: give its owner's public half")
    try:
        keys: list[Any] = [load_pem_public_key(block) for block in _blocks(content)]
    except (ValueError, UnsupportedAlgorithm) as error:
        raise UserError(f"{path} is not a public key in PEM") from error
    if [isinstance(key, kind) for key, kind in zip(keys, _PUBLIC, strict=False)] != [True, True]:
        raise UserError(f"{path} is not a recipient's public key: it must hold one of ML-KEM-768, then one of X25519")
    try:
        return Recipient(b"".join(key.public_bytes_raw() for key in keys))
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


_PRIVATE = (MLKEM768PrivateKey, X25519PrivateKey)
_PUBLIC = (MLKEM768PublicKey, X25519PublicKey)


def _blocks(content: bytes) -> list[bytes]:
    """Return the two PEM blocks of a file; an empty list if it holds anything else."""
    blocks = [match.group() for match in _BLOCK.finditer(content)]
    return blocks if len(blocks) == 2 and b"".join(blocks) == content else []
