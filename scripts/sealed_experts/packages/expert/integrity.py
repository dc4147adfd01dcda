"""The message that a publisher signs for an `.expert` file, and the manifest's field `integrity`."""

import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sealed_experts.errors import UserError
from sealed_experts.files.canonical import canonical_json
from sealed_experts.files.digests import sha256_bytes
from sealed_experts.packages.errors import PackageError, SignatureError
from sealed_experts.packages.keys.signing import ED25519, fingerprint
from sealed_experts.text import is_one_line

CONTEXT = "sealed-experts/expert/v1\n"
MANIFEST, SIGNATURE = "manifest.json", "signature.sig"
SIGNATURE_LENGTH = 128  # hexadecimal digits
_COMPUTED = ("signature", "files")
_FIELDS = {"created_at", "files", "pubkey", "publisher", "signature", "signature_algorithm"}
_PUBLIC_KEY = re.compile(r"ed25519:([0-9a-f]{64})")
_SIGNATURE = re.compile(r"[0-9a-f]{128}")
_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z")
_LONGEST_PUBLISHER = 200
_LAST_SECOND = 253_402_300_799  # of the year 9999


@dataclass(frozen=True, kw_only=True)
class Entry:
    """Size and SHA-256 of a member."""

    size: int
    sha256: str


def signed_message(*, manifest: Mapping[str, Any], entries: Mapping[str, Entry]) -> bytes:
    """Return the message that the publisher signs.

    It contains the manifest without the fields that are computed later: `integrity.signature` and `integrity.files`.

    Args:
        manifest: the whole manifest, with `integrity`.
        entries: every member of the archive except manifest and signature, by its name in the archive.
    """
    integrity = {field: value for field, value in manifest["integrity"].items() if field not in _COMPUTED}
    reduced = canonical_json({**manifest, "integrity": integrity}).encode()
    listed = {**entries, MANIFEST: Entry(size=len(reduced), sha256=sha256_bytes(reduced))}
    lines = sorted(f"{path}:{entry.size}:{entry.sha256}\n" for path, entry in listed.items())
    return (CONTEXT + "".join(lines)).encode("ascii")


def unsigned_integrity(*, public_key: bytes, publisher: str | None, entries: Mapping[str, Entry]) -> dict[str, Any]:
    """Return `integrity` without its signature. Without a publisher's name, it states the key's fingerprint.

    Raises:
        UserError: the publisher's name is not allowed, or SOURCE_DATE_EPOCH is not a time.
    """
    name = fingerprint(public_key) if publisher is None else publisher
    if not _is_publisher(name):
        raise UserError(f"{name[:100]!a} cannot name a publisher: use 1 to {_LONGEST_PUBLISHER} printable letters")
    return {
        "created_at": created_at(),
        "files": _files(entries),
        "pubkey": f"{ED25519}:{public_key.hex()}",
        "publisher": name,
        "signature_algorithm": ED25519,
    }


def created_at() -> str | None:
    """Return SOURCE_DATE_EPOCH as an RFC 3339 time in UTC; None if it is not set. The clock is never used.

    Raises:
        UserError: SOURCE_DATE_EPOCH is not a number of seconds.
    """
    text = os.environ.get("SOURCE_DATE_EPOCH")
    if not text:
        return None
    if not re.fullmatch(r"[0-9]{1,12}", text) or int(text) > _LAST_SECOND:
        raise UserError(f"SOURCE_DATE_EPOCH is {text[:40]!a}: it must be whole seconds since 1970-01-01, or unset")
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(int(text)))


def claimed_key(manifest: Mapping[str, Any]) -> bytes:
    """Return the raw Ed25519 key that the manifest names. It proves nothing until a trust store has it.

    Raises:
        PackageError: `integrity` is missing or malformed.
        SignatureError: it names another algorithm.
    """
    integrity = manifest.get("integrity")
    if not isinstance(integrity, Mapping) or integrity.keys() != _FIELDS:
        raise PackageError(f"{MANIFEST}: integrity must hold exactly {', '.join(sorted(_FIELDS))}")
    if integrity["signature_algorithm"] != ED25519:
        raise SignatureError(
            f"{MANIFEST}: integrity.signature_algorithm is {ascii(integrity['signature_algorithm'])[:40]}; an .expert"
            f" package is signed with {ED25519}"
        )
    key = integrity["pubkey"]
    match = _PUBLIC_KEY.fullmatch(key) if isinstance(key, str) else None
    if match is None:
        raise PackageError(f"{MANIFEST}: integrity.pubkey must be `ed25519:` and 64 hexadecimal digits in lower case")
    return bytes.fromhex(match[1])


def signature_value(content: bytes) -> bytes:
    """Return the signature in signature.sig.

    Raises:
        PackageError: the file does not hold a signature.
    """
    text = content.decode("ascii", errors="replace")
    if not _SIGNATURE.fullmatch(text):
        raise PackageError(f"{SIGNATURE}: it must hold {SIGNATURE_LENGTH} hexadecimal digits in lower case, no more")
    return bytes.fromhex(text)


def check_integrity(manifest: Mapping[str, Any], *, signature: bytes, entries: Mapping[str, Entry]) -> None:
    """Compare `integrity` with the archive. Call it after the check of the signature.

    Raises:
        PackageError: a field does not match the archive.
    """
    integrity = manifest["integrity"]
    created = integrity["created_at"]
    if created is not None and not (isinstance(created, str) and _TIME.fullmatch(created)):
        raise PackageError(f"{MANIFEST}: integrity.created_at must be a time such as 2026-01-31T00:00:00Z, or null")
    if not _is_publisher(integrity["publisher"]):
        raise PackageError(
            f"{MANIFEST}: integrity.publisher must be a text of 1 to {_LONGEST_PUBLISHER} printable letters"
        )
    if integrity["signature"] != signature.hex():
        raise PackageError(f"{MANIFEST}: integrity.signature is not what {SIGNATURE} holds: the file was altered")
    if integrity["files"] != _files(entries):
        raise PackageError(f"{MANIFEST}: integrity.files does not state the members' SHA-256: the file was altered")


def _files(entries: Mapping[str, Entry]) -> dict[str, str]:
    return {name: entry.sha256 for name, entry in entries.items()}


def _is_publisher(value: Any) -> bool:
    return isinstance(value, str) and is_one_line(value, most=_LONGEST_PUBLISHER)
