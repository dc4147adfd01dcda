"""Names for private data: HMAC-SHA-256 under a key that only the owner has.

With a plain digest, anyone could test a guess at the data. The owner can compute a name again, and so find the data of
a package. Without the key, names show at most that two packages were made from the same data.
"""

import hashlib
import hmac
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sealed_experts.errors import UserError
from sealed_experts.files.atomic import write_bytes
from sealed_experts.files.canonical import canonical_json
from sealed_experts.files.home import home_folder, private_folder, refuse_foreign
from sealed_experts.files.locks import folder_lock


@dataclass(frozen=True)
class OwnerNames:
    """Names under one owner's key. The key is never shown."""

    _key: bytes = field(repr=False)

    def of_data(self, digest: str) -> str:
        """Return the name of data with this SHA-256."""
        return private_name(self._key, "data", digest)

    def of_configuration(self, configuration: Mapping[str, Any]) -> str:
        """Return the name of settings: they may contain the owner's own text."""
        return private_name(self._key, "configuration", canonical_json(dict(configuration)))


def owner_names() -> OwnerNames:
    """Return the names under the key ${SEALED_EXPERTS_HOME}/owner.key.

    Raises:
        UserError: the key is damaged, or other users can read or replace it.
    """
    return OwnerNames(owner_key(home_folder()))


def owner_key(home: Path) -> bytes:
    """Return the owner's 32-byte key for naming private data. It is created in `home` on first use (mode 0600).

    Raises:
        UserError: the file is damaged, or other users can read or replace it.
    """
    path = private_folder(home, home=home) / "owner.key"
    if not path.exists():
        with folder_lock(home):
            if not path.exists():  # otherwise another process has just made it
                write_bytes(path, secrets.token_hex(32).encode() + b"\n", mode=0o600)
    status = path.stat()
    if status.st_mode & 0o077:
        raise UserError(f"others can read the owner's key {path}: chmod 600 it")
    refuse_foreign(path, status)
    text = path.read_bytes().strip()
    if not re.fullmatch(rb"[0-9a-f]{64}", text):
        raise UserError(
            f"{path} must hold 64 hexadecimal digits: restore it from a copy; without it, past releases "
            "cannot be matched with the data that they were made from"
        )
    return bytes.fromhex(text.decode())


def private_name(key: bytes, *parts: str) -> str:
    """Return the HMAC-SHA-256 of the parts under the owner's key, as hex. Different parts give different messages."""
    message = b"sealed-experts/private-name/v1"
    for part in parts:
        encoded = part.encode()
        message += len(encoded).to_bytes(8, "big") + encoded
    return hmac.new(key, message, hashlib.sha256).hexdigest()
