"""An entry of the trust store: one publisher as a JSON file. It is checked when it is read."""

import datetime
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sealed_experts.errors import UserError
from sealed_experts.files.canonical import strict_json
from sealed_experts.files.home import refuse_foreign
from sealed_experts.files.regular_file import open_regular
from sealed_experts.packages.keys.publisher import NAME, PublicKey, Publisher
from sealed_experts.packages.keys.signing import ALGORITHMS, ED25519, is_weak
from sealed_experts.text import is_one_line

_SCOPE = re.compile(r"[a-z0-9_*?.-]{1,64}")
_FIELDS = {"ancestors", "expires", "fingerprint", "keys", "name", "revoked", "scopes"}
_LARGEST_FILE = 65_536
_FINGERPRINT = re.compile(r"[0-9a-f]{64}")


def entry_of(publisher: Publisher) -> dict[str, Any]:
    """Return a publisher as plain data for its file."""
    return {
        "ancestors": list(publisher.ancestors),
        "expires": None if publisher.expires is None else publisher.expires.isoformat(),
        "fingerprint": publisher.fingerprint,
        "keys": {key.algorithm: key.raw.hex() for key in publisher.keys},
        "name": publisher.name,
        "revoked": publisher.revoked,
        "scopes": list(publisher.scopes),
    }


def read_entry(path: Path) -> Publisher:
    """Read a publisher's file.

    Raises:
        UserError: other users can change the file, or this program did not write it.
    """
    try:
        with open_regular(path) as (stream, status):
            refuse_foreign(path, status)
            content = stream.read(_LARGEST_FILE)
    except OSError as error:
        raise UserError(f"cannot read the trusted key {path}: {error.strerror}") from error
    remedy = _remedy(content)
    try:
        publisher = _publisher(strict_json(content))
    except (TypeError, ValueError, UserError) as error:
        raise UserError(f"{path} is damaged: {error}; {remedy}") from error
    for key in publisher.keys:
        refuse_weak(key, f"the key in {path}", remedy=remedy)
    if publisher.name != path.stem or not NAME.fullmatch(publisher.name):
        raise UserError(f"{path} is damaged: it names {publisher.name!r} instead of {path.stem!r}; {remedy}")
    return publisher


def raw_keys(stated: Any) -> tuple[PublicKey, ...]:
    """Return the public keys in a JSON object {algorithm: hexadecimal digits}, Ed25519 first.

    Raises:
        ValueError: they are not the keys of a publisher.
    """
    if not isinstance(stated, Mapping) or ED25519 not in stated or not set(stated) <= set(ALGORITHMS):
        raise ValueError(f"its keys must be of {' and '.join(ALGORITHMS)}, at least of {ED25519}")
    keys = []
    for algorithm, known in ALGORITHMS.items():
        if algorithm in stated:
            digits = stated[algorithm]
            if not isinstance(digits, str) or not re.fullmatch(rf"[0-9a-f]{{{2 * known.public_key_size}}}", digits):
                raise ValueError(f"its {algorithm} key is not {known.public_key_size} bytes as hexadecimal digits")
            keys.append(PublicKey(algorithm=algorithm, raw=bytes.fromhex(digits)))
    return tuple(keys)


def check_scopes(scopes: Sequence[str]) -> None:
    """Check patterns of the names of experts.

    Raises:
        UserError: there is no scope, or one is not a pattern.
    """
    for scope in scopes or ("",):
        if not _SCOPE.fullmatch(scope):
            raise UserError(f"the scope {scope!r} is not a pattern of names: use a-z, 0-9, '_', '.', '-', '*' and '?'")


def check_reason(reason: str) -> None:
    """Check the reason of a revocation.

    Raises:
        UserError: the reason is not one line of text.
    """
    if not reason.strip() or not is_one_line(reason, most=200):
        raise UserError(f"the reason {reason[:200]!r} must be one line of visible text, up to 200 characters")


def refuse_weak(key: PublicKey, where: str, *, remedy: str = "ask its owner for another key") -> None:
    """Refuse a weak key: anyone can make signatures for it.

    Raises:
        UserError: the key is weak.
    """
    if key.algorithm == ED25519 and is_weak(key.raw):
        raise UserError(f"{where} is a point of small order, for which anyone can make signatures: {remedy}")


def _remedy(content: bytes) -> str:
    """Return what to do about a damaged entry. One that may hold a revocation must not be deleted."""
    if b'"revoked":null' in content.replace(b" ", b""):
        return "delete it, and trust its publisher again"
    return "restore it from a copy: it may hold a revocation, and without it a revoked key could be trusted again"


def _publisher(entry: Any) -> Publisher:
    if not isinstance(entry, dict) or set(entry) != _FIELDS:
        raise ValueError(f"it must hold {', '.join(sorted(_FIELDS))}, and nothing else")
    keys = raw_keys(entry["keys"])
    if keys[0].fingerprint != entry["fingerprint"]:
        raise ValueError("its key and its fingerprint do not belong together")
    if not isinstance(entry["name"], str):
        raise ValueError("its name must be text")
    scopes, expires, revoked = entry["scopes"], entry["expires"], entry["revoked"]
    if not isinstance(scopes, list) or not all(isinstance(scope, str) for scope in scopes):
        raise ValueError("its scopes must be a list of patterns")
    check_scopes(scopes)
    if revoked is not None and not isinstance(revoked, str):
        raise ValueError("its revoked must be a reason or null")
    if revoked is not None:
        check_reason(revoked)
    ancestors = entry["ancestors"]
    if not isinstance(ancestors, list) or not all(_FINGERPRINT.fullmatch(ancestor) for ancestor in ancestors):
        raise ValueError("its ancestors must be a list of fingerprints")
    return Publisher(
        name=entry["name"],
        keys=keys,
        scopes=tuple(scopes),
        expires=None if expires is None else datetime.date.fromisoformat(expires),
        revoked=revoked,
        ancestors=tuple(ancestors),
    )
