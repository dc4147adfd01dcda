"""Statements that a publisher signs about its own keys: a new key replaces an old one, or a key is revoked.

`docs/keys.md` specifies them. `read_statement` checks that the keys in a statement signed it. Whether these keys are
trusted is a question for the trust store.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sealed_experts.errors import UserError
from sealed_experts.files.canonical import canonical_json, strict_json
from sealed_experts.files.regular_file import read_regular
from sealed_experts.packages.errors import SignatureError
from sealed_experts.packages.keys.private_keys import PublisherKey
from sealed_experts.packages.keys.publisher import PublicKey
from sealed_experts.packages.keys.signing import ALGORITHMS, verify_signature
from sealed_experts.packages.keys.trust_entry import check_reason, raw_keys

ROTATION = "sealed-experts/rotation/v1"
REVOCATION = "sealed-experts/revocation/v1"
# For each kind, the fields that hold the signers' keys, and the other fields.
_SIGNERS = {ROTATION: ("new", "old"), REVOCATION: ("key",)}
_OTHERS: Mapping[str, tuple[str, ...]] = {ROTATION: (), REVOCATION: ("reason",)}
_LARGEST_FILE = 65_536


@dataclass(frozen=True, kw_only=True)
class Rotation:
    """The owner of the keys `old` states: the keys `new` are mine too. Both sets of keys signed it."""

    old: tuple[PublicKey, ...]
    new: tuple[PublicKey, ...]


@dataclass(frozen=True, kw_only=True)
class Revocation:
    """The owner of the keys `key` states: do not accept anything that these keys ever signed."""

    key: tuple[PublicKey, ...]
    reason: str


def rotation_statement(*, old: PublisherKey, new: PublisherKey) -> dict[str, Any]:
    """Return the statement that `new` replaces `old`, signed by both with all their algorithms."""
    return _signed({"format": ROTATION}, {"new": new, "old": old})


def revocation_statement(*, key: PublisherKey, reason: str) -> dict[str, Any]:
    """Return the statement that `key` is revoked, signed by `key`.

    Raises:
        UserError: the reason is not one line of text.
    """
    check_reason(reason)
    return _signed({"format": REVOCATION, "reason": reason}, {"key": key})


def read_statement(path: Path) -> Rotation | Revocation:
    """Read a statement and check every signature in it.

    Raises:
        UserError: the file cannot be read, or is not a statement.
        SignatureError: a signature is missing or does not match.
    """
    content = read_regular(path, what="the statement", limit=_LARGEST_FILE + 1)
    try:
        statement = strict_json(content)
    except ValueError as error:
        raise UserError(f"{path} is not a statement: it is not valid JSON ({error})") from error
    try:
        return _checked(statement)
    except SignatureError as error:
        raise SignatureError(f"{path}: {error}; get it again from its publisher") from error
    except (ValueError, UserError) as error:
        raise UserError(f"{path} is not a statement of this program: {error}") from error


def _signed(statement: Mapping[str, Any], signers: Mapping[str, PublisherKey]) -> dict[str, Any]:
    keys = {role: {key.algorithm: key.raw.hex() for key in signer.public.keys} for role, signer in signers.items()}
    unsigned = {**statement, **keys}
    message = _message(unsigned)
    signatures = {
        role: {name: signer.sign(message, algorithm=name).hex() for name in signer.public.algorithms}
        for role, signer in signers.items()
    }
    return {**unsigned, "signatures": signatures}


def _message(unsigned: Mapping[str, Any]) -> bytes:
    return f"{unsigned['format']}\n{canonical_json(unsigned)}".encode()


def _checked(statement: Any) -> Rotation | Revocation:
    kind = statement.get("format") if isinstance(statement, dict) else None
    if kind not in (ROTATION, REVOCATION):
        raise ValueError(f"its format must be {ROTATION} or {REVOCATION}")
    fields = {"format", "signatures", *_SIGNERS[kind], *_OTHERS[kind]}
    if set(statement) != fields:
        raise ValueError(f"its fields must be {', '.join(sorted(fields))}")
    unsigned = {field: value for field, value in statement.items() if field != "signatures"}
    keys = {role: raw_keys(statement[role]) for role in _SIGNERS[kind]}
    signatures = statement["signatures"]
    if not isinstance(signatures, dict) or set(signatures) != set(keys):
        raise ValueError(f"it must have the signatures of {' and '.join(keys)}")
    for role, signers in keys.items():
        _check_signatures(signatures[role], signers, role=role, message=_message(unsigned))
    if kind == REVOCATION:
        if not isinstance(statement["reason"], str):
            raise ValueError("its reason must be text")
        check_reason(statement["reason"])
        return Revocation(key=keys["key"], reason=statement["reason"])
    if {key.raw for key in keys["old"]} & {key.raw for key in keys["new"]}:
        raise ValueError("one of its old keys is also one of its new keys")
    return Rotation(old=keys["old"], new=keys["new"])


def _check_signatures(stated: Any, signers: Sequence[PublicKey], *, role: str, message: bytes) -> None:
    if not isinstance(stated, dict) or set(stated) != {key.algorithm for key in signers}:
        raise SignatureError(f"it must be signed with every key under {role!r}")
    for key in signers:
        value, size = stated[key.algorithm], ALGORITHMS[key.algorithm].signature_size
        if not isinstance(value, str) or not re.fullmatch(rf"[0-9a-f]{{{2 * size}}}", value):
            raise SignatureError(f"the {key.algorithm} signature under {role!r} is not {size} bytes as hex digits")
        verify_signature(algorithm=key.algorithm, public_key=key.raw, value=bytes.fromhex(value), message=message)
