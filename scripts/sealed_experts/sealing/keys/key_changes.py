"""Rotating and revoking keys: one's own, and those of publishers that one trusts."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sealed_experts.errors import UserError
from sealed_experts.files.atomic import sync_folder, write_bytes, write_text
from sealed_experts.files.canonical import write_json
from sealed_experts.files.locks import folder_lock
from sealed_experts.sealing.keys.home import refuse_shared
from sealed_experts.sealing.keys.private_keys import (
    RETIRED,
    key_path,
    new_key,
    own_entry,
    read_private_file,
    refuse_unusable,
    unlocked,
    write_key,
)
from sealed_experts.sealing.keys.publisher import PublicKey, Publisher, check_usable
from sealed_experts.sealing.keys.statements import (
    Revocation,
    Rotation,
    read_statement,
    revocation_statement,
    rotation_statement,
)
from sealed_experts.sealing.keys.trust import load_trust, mark_revoked, trust_publisher


@dataclass(frozen=True, kw_only=True)
class Rotated:
    """What a rotation did.

    Attributes:
        old: public half of the key that signed until now.
        new: the trust store's entry of the key that signs from now on.
        path: where the new key is.
        retired: where the old key is kept.
    """

    old: Publisher
    new: Publisher
    path: Path
    retired: Path


def rotate_key(*, output: Path, name: str | None = None) -> Rotated:
    """Put a new key in the place of one's own, and write the statement by which others can follow.

    The new key has every algorithm that works here and the old one's passphrase. The old key stays trusted, so that
    what it signed can still be used, and is kept beside the new one; nothing is signed with it any more.

    Raises:
        UserError: as `load_key`; or the output exists.
    """
    path = key_path(name).resolve()
    refuse_existing(output)
    refuse_shared(path.parent)
    with folder_lock(path.parent):
        old, secret = unlocked(path)
        refuse_unusable(path, old.public)
        new = new_key(name=path.stem)
        statement = rotation_statement(old=old, new=new)
        retired = _retired(path, old.public)
        # The old key and the statement first: whenever this is cut short, a key to sign with is in place.
        write_bytes(retired, read_private_file(path), mode=0o600)
        write_text(retired.with_suffix(".pub"), old.public.pem)
        write_json(retired.with_suffix(".rotation.json"), statement)
        entry = replace(own_entry(path, new.public), certified_by=old.public.fingerprint)
        trusted = write_key(path, new, entry=entry, secret=secret)
        write_json(output, statement)
    return Rotated(old=old.public, new=trusted, path=path, retired=retired)


def revoke_key(*, reason: str, output: Path, name: str | None = None) -> Publisher:
    """Revoke one's own key here, put it aside, and write the statement by which others refuse it.

    Returns:
        the trust store's entry of it, which stays there as revoked.

    Raises:
        UserError: as `unlocked`; or the output exists, or the reason is not one line of text.
    """
    path = key_path(name).resolve()
    refuse_existing(output)
    refuse_shared(path.parent)
    with folder_lock(path.parent):
        key, _ = unlocked(path)
        write_json(output, revocation_statement(key=key, reason=reason))
        entry = mark_revoked(own_entry(path, key.public), reason=reason)
        if RETIRED not in path.stem:
            aside = _retired(path, key.public)
            for suffix in (".pub", ".pem"):
                if path.with_suffix(suffix).exists():
                    os.replace(path.with_suffix(suffix), aside.with_suffix(suffix))
            sync_folder(path.parent)
    return entry


def follow_rotation(path: Path, *, name: str | None = None) -> Publisher:
    """Trust the key that follows a trusted one, with its scopes and its expiry, by a rotation statement.

    Raises:
        UserError: the statement is none of a rotation, or about a key that is not trusted here; as `trust_publisher`.
        SignatureError: the former key is revoked or expired here, or a signature does not match.
    """
    statement = read_statement(path)
    if not isinstance(statement, Rotation):
        raise UserError(f"{path} revokes a key: give it to `sealed-experts keys revoke --statement`")
    former = _known(statement.old, path)
    check_usable(former)
    fingerprint = statement.new[0].fingerprint
    known = load_trust().find(fingerprint)
    if known is not None:  # with scopes and an expiry of its own by now
        check_usable(known)
        return known
    name = name or f"{former.name[:55]}-{fingerprint[:8]}"
    return trust_publisher(replace(former, name=name, keys=statement.new, certified_by=former.fingerprint))


def follow_revocation(path: Path) -> tuple[Publisher, tuple[Publisher, ...]]:
    """Refuse a trusted key from now on, by its holder's revocation statement.

    Returns:
        the entry of the revoked key, and the entries that rest on a rotation statement of that key: whoever had the
        key could write one too.

    Raises:
        UserError: the statement is none of a revocation, or about a key that is not trusted here.
        SignatureError: a signature does not match.
    """
    statement = read_statement(path)
    if not isinstance(statement, Revocation):
        raise UserError(f"{path} introduces a new key: give it to `sealed-experts keys trust`")
    entry = mark_revoked(_known(statement.key, path), reason=statement.reason)
    return entry, tuple(other for other in load_trust() if other.certified_by == entry.fingerprint)


def refuse_existing(output: Path) -> None:
    """Refuse to write over a file.

    Raises:
        UserError: it exists.
    """
    if output.exists() or output.is_symlink():
        raise UserError(f"{output} exists: name a new file")


def _known(keys: Sequence[PublicKey], path: Path) -> Publisher:
    """Return the trusted publisher all of whose keys are among those that signed a statement."""
    entry = load_trust().find(keys[0].fingerprint)
    if entry is None:
        raise UserError(
            f"{path} is signed by the key {keys[0].fingerprint}, which is not trusted here: nothing is to be done"
        )
    if not all(key in keys for key in entry.keys):
        raise UserError(f"{path} is not signed with every key that {entry.name} is trusted with here: it is refused")
    return entry


def _retired(path: Path, public: Publisher) -> Path:
    return path.with_name(f"{path.stem[:46]}{RETIRED}{public.fingerprint[:8]}.pem")
