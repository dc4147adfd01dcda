"""The message that a publisher signs for an `.expert` file, and the manifest's field `integrity`."""

import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sealed_experts.errors import UserError
from sealed_experts.files.canonical import canonical_json
from sealed_experts.files.digests import sha256_bytes
from sealed_experts.packages.errors import PackageError, SignatureError
from sealed_experts.packages.keys.publisher import PublicKey
from sealed_experts.packages.keys.signing import ALGORITHMS, ED25519
from sealed_experts.text import is_one_line

CONTEXT = "sealed-experts/expert/v1\n"
MANIFEST = "manifest.json"
# The member that holds each algorithm's signature. Other readers of the format know only the first one.
SIGNATURES = {name: f"signature.{name}.sig" for name in ALGORITHMS} | {ED25519: "signature.sig"}
SIGNATURE = SIGNATURES[ED25519]
SIGNATURE_LENGTHS = {SIGNATURES[name]: 2 * known.signature_size for name, known in ALGORITHMS.items()}  # in hex digits
_COMPUTED = ("signature", "files")
_FIELDS = {"created_at", "files", "further_keys", "pubkey", "publisher", "signature", "signature_algorithm"}
_PUBLIC_KEY = re.compile(r"ed25519:([0-9a-f]{64})")
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
        entries: the members that this signature covers, by their names in the archive, without the manifest. Ed25519
            covers all members except its own signature, and the other algorithms cover all except signatures.
    """
    reduced = canonical_json({**manifest, "integrity": signed_fields(manifest["integrity"])}).encode()
    listed = {**entries, MANIFEST: Entry(size=len(reduced), sha256=sha256_bytes(reduced))}
    lines = sorted(f"{path}:{entry.size}:{entry.sha256}\n" for path, entry in listed.items())
    return (CONTEXT + "".join(lines)).encode("ascii")


def signed_fields(integrity: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of `integrity` that are signed: all except those that follow from the rest."""
    return {field: value for field, value in integrity.items() if field not in _COMPUTED}


def signed_integrity(*, keys: Sequence[PublicKey], publisher: str | None) -> dict[str, Any]:
    """Return the fields of `integrity` that are signed. Without a publisher's name, it is the key's fingerprint.

    Args:
        keys: the keys that will sign, Ed25519 first.

    Raises:
        UserError: the publisher's name is not allowed, or SOURCE_DATE_EPOCH is not a time.
    """
    first, *further = keys
    name = first.fingerprint if publisher is None else publisher
    if not _is_publisher(name):
        raise UserError(f"{name[:100]!a} cannot name a publisher: use 1 to {_LONGEST_PUBLISHER} printable letters")
    return {
        "created_at": created_at(),
        "further_keys": {key.algorithm: key.raw.hex() for key in further},
        "pubkey": f"{ED25519}:{first.raw.hex()}",
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


def claimed_keys(manifest: Mapping[str, Any]) -> tuple[PublicKey, ...]:
    """Return the keys that the manifest names, Ed25519 first: each must have signed.

    They prove nothing until a trust store has them.

    Raises:
        PackageError: `integrity` is missing or malformed.
        SignatureError: it names another algorithm.
    """
    integrity = manifest.get("integrity")
    if not isinstance(integrity, Mapping) or integrity.keys() != _FIELDS:
        raise PackageError(f"{MANIFEST}: integrity must hold exactly {', '.join(sorted(_FIELDS))}")
    if integrity["signature_algorithm"] != ED25519:
        raise SignatureError(
            f"{MANIFEST}: integrity.signature_algorithm is {ascii(integrity['signature_algorithm'])[:40]}; {SIGNATURE}"
            f" holds a signature by {ED25519}"
        )
    key = integrity["pubkey"]
    match = _PUBLIC_KEY.fullmatch(key) if isinstance(key, str) else None
    if match is None:
        raise PackageError(f"{MANIFEST}: integrity.pubkey must be `ed25519:` and 64 hexadecimal digits in lower case")
    return (PublicKey(raw=bytes.fromhex(match[1])), *_further_keys(integrity["further_keys"]))


def _further_keys(stated: Any) -> Iterator[PublicKey]:
    if not isinstance(stated, Mapping):
        raise PackageError(f"{MANIFEST}: integrity.further_keys must hold a key for each further algorithm")
    for algorithm, key in stated.items():
        if algorithm not in ALGORITHMS or algorithm == ED25519:
            raise SignatureError(
                f"{MANIFEST}: integrity.further_keys names the algorithm {ascii(algorithm)[:40]}; known are"
                f" {', '.join(sorted(set(ALGORITHMS) - {ED25519}))}"
            )
        size = ALGORITHMS[algorithm].public_key_size
        if not isinstance(key, str) or not _is_hex(key, digits=2 * size):
            raise PackageError(
                f"{MANIFEST}: integrity.further_keys.{algorithm} must hold {2 * size} hexadecimal digits in lower case"
            )
        yield PublicKey(raw=bytes.fromhex(key), algorithm=algorithm)


def signature_value(member: str, content: bytes) -> bytes:
    """Return the signature in a member.

    Raises:
        PackageError: the member does not hold a signature.
    """
    text = content.decode("ascii", errors="replace")
    if not _is_hex(text, digits=SIGNATURE_LENGTHS[member]):
        raise PackageError(
            f"{member}: it must hold {SIGNATURE_LENGTHS[member]} hexadecimal digits in lower case, no more"
        )
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
    if integrity["files"] != files_field(entries):
        raise PackageError(f"{MANIFEST}: integrity.files does not state the members' SHA-256: the file was altered")


def files_field(entries: Mapping[str, Entry]) -> dict[str, str]:
    """Return `integrity.files` for these members."""
    return {name: entry.sha256 for name, entry in entries.items()}


def _is_publisher(value: Any) -> bool:
    return isinstance(value, str) and is_one_line(value, most=_LONGEST_PUBLISHER)


def _is_hex(text: str, *, digits: int) -> bool:
    return re.fullmatch(rf"[0-9a-f]{{{digits}}}", text) is not None
