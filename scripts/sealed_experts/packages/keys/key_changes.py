"""Rotate and revoke keys: the user's own, and those of trusted publishers."""

import contextlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sealed_experts.errors import UserError
from sealed_experts.files.atomic import atomic_writer, sync_folder, write_bytes, write_text
from sealed_experts.files.locks import folder_lock
from sealed_experts.packages.keys.leftovers import clear_leftovers, show_statement, stage_statement
from sealed_experts.packages.keys.own_entry import RETIRED, following_entry, own_entry, refuse_unusable
from sealed_experts.packages.keys.private_file import read_private_file, refuse_place
from sealed_experts.packages.keys.private_keys import MISSING, key_path, new_key, unlocked, write_key
from sealed_experts.packages.keys.publisher import PublicKey, Publisher, check_usable
from sealed_experts.packages.keys.retired_keys import refuse_rotated_in, retired_path
from sealed_experts.packages.keys.statements import (
    Revocation,
    Rotation,
    read_statement,
    revocation_statement,
    rotation_statement,
)
from sealed_experts.packages.keys.trust import TrustStore, load_trust, mark_revoked, trust_publisher


@dataclass(frozen=True, kw_only=True)
class Rotated:
    """The result of a rotation.

    Attributes:
        old: public half of the key that signed until now.
        new: the trust store's entry of the key that signs from now on.
        path: path of the new key.
        retired: path of the old key.
    """

    old: Publisher
    new: Publisher
    path: Path
    retired: Path


def rotate_key(*, output: Path, name: str | None = None) -> Rotated:
    """Replace the user's key by a new one, and write the statement by which others can trust it.

    The new key has every algorithm that works here, and the old key's passphrase, scopes and expiry. The old key is
    kept next to the new one and stays trusted, so packages that it signed can still be used. It signs nothing new.

    Raises:
        UserError: as for `load_key`; or the old key has expired; or the output exists or cannot be written. Then
            nothing is changed.
    """
    path = _own_path(name)
    refuse_existing(output)
    with folder_lock(path.parent):
        clear_leftovers(path.parent)
        old, secret = unlocked(path)
        refuse_unusable(path, old.public)
        new = new_key(name=path.stem)
        entry = following_entry(path, old=old.public, new=new.public)
        statement = rotation_statement(old=old, new=new)
        retired = retired_path(path, old.public)
        with _statement_file(output, statement):
            # Copy the old key first: after an interruption there is always a key to sign with. The statement gets its
            # name only when its new key is in place.
            write_bytes(retired, read_private_file(path), mode=0o600)
            write_text(retired.with_suffix(".pub"), old.public.pem)
            staged = stage_statement(retired, statement)
            trusted = write_key(path, new, entry=entry, secret=secret)
            show_statement(staged)
    return Rotated(old=old.public, new=trusted, path=path, retired=retired)


def revoke_key(*, reason: str, output: Path, name: str | None = None, fingerprint: str | None = None) -> Publisher:
    """Revoke the user's own key here, move it away, and write the statement by which others can refuse it.

    Args:
        reason: why; it is public.
        output: the statement to write.
        name: which key; by default the one that signs.
        fingerprint: the key's fingerprint; required for a key that replaced another one.

    Returns:
        The trust store's entry of the key, which stays there as revoked.

    Raises:
        UserError: as for `unlocked` and `refuse_rotated_in`; or the output exists or cannot be written; or the reason
            is not one line of text.
    """
    path = _own_path(name)
    refuse_existing(output)
    with folder_lock(path.parent):
        clear_leftovers(path.parent)
        key, _ = unlocked(path)
        refuse_rotated_in(path, key.public, fingerprint=fingerprint)
        with _statement_file(output, revocation_statement(key=key, reason=reason)):
            pass
        entry = mark_revoked(own_entry(path, key.public), reason=reason)
        if RETIRED not in path.stem:
            aside = retired_path(path, key.public)
            for suffix in (".pub", ".pem"):
                if path.with_suffix(suffix).exists():
                    os.replace(path.with_suffix(suffix), aside.with_suffix(suffix))
            sync_folder(path.parent)
    return entry


def revoke_in_advance(*, reason: str, output: Path, name: str | None = None) -> Publisher:
    """Write a statement that can revoke the user's own key later, if it gets lost. Nothing is revoked now.

    The file has mode 0600: anyone who has it can revoke the key.

    Returns:
        The public half of the key.

    Raises:
        UserError: as for `revoke_key`.
    """
    refuse_existing(output)
    key, _ = unlocked(key_path(name))
    with _statement_file(output, revocation_statement(key=key, reason=reason), mode=0o600):
        pass
    return key.public


def follow_rotation(path: Path, *, name: str | None = None) -> Publisher:
    """Trust the key that replaces a trusted one, with the same scopes and expiry, by a rotation statement.

    If the new key is already trusted, it keeps its limits and gains the keys that the statement adds.

    Raises:
        UserError: this is not a rotation statement; its old key is not trusted here; it lacks a key that the trust
            store has for its publisher; or as for `trust_publisher`.
        SignatureError: the old key is revoked or expired here, or a signature does not match.
    """
    statement = read_statement(path)
    if not isinstance(statement, Rotation):
        raise UserError(f"{path} revokes a key: give it to `sealed-experts keys revoke --statement`")
    store = load_trust()
    former = _known(store, statement.old, path)
    if former is None:
        raise UserError(
            f"{path} is signed by the key {statement.old[0].fingerprint}, which is not trusted here: there is nothing "
            "to do"
        )
    check_usable(former)
    fingerprint = statement.new[0].fingerprint
    known = store.find(fingerprint)
    if known is not None:
        check_usable(known)
        if name not in (None, known.name):
            raise UserError(f"this key is already trusted as {known.name}: leave --name out, or untrust it first")
        return trust_publisher(replace(known, keys=statement.new))
    name = name or f"{former.name[:55]}-{fingerprint[:8]}"
    ancestors = (former.fingerprint, *former.ancestors)
    return trust_publisher(replace(former, name=name, keys=statement.new, ancestors=ancestors))


def follow_revocation(path: Path, *, with_introduced: bool = False) -> tuple[Publisher, tuple[Publisher, ...]]:
    """Revoke a key here by its owner's revocation statement, even if it was never trusted here.

    Args:
        path: the statement.
        with_introduced: whether to revoke also the keys that are trusted through its rotation statements.

    Returns:
        The entry of the revoked key, and the entries of all keys that are trusted, directly or not, through its
        rotation statements and were not revoked before: a thief of the key could write such statements.

    Raises:
        UserError: this is not a revocation statement, or it lacks a key that the trust store has for its publisher.
        SignatureError: a signature does not match.
    """
    statement = read_statement(path)
    if not isinstance(statement, Revocation):
        raise UserError(f"{path} introduces a new key: give it to `sealed-experts keys trust`")
    first = statement.key[0].fingerprint
    # Enter an unknown key as revoked too: its public file may still be trusted later.
    unknown = Publisher(name=f"revoked-{first[:8]}", keys=statement.key)
    entry = mark_revoked(_known(load_trust(), statement.key, path) or unknown, reason=statement.reason)
    introduced = tuple(_introduced_by(entry.fingerprint, load_trust()))
    if with_introduced:
        reason = f"introduced by the revoked key {entry.fingerprint[:16]}: {statement.reason}"[:200]
        introduced = tuple(mark_revoked(other, reason=reason) for other in introduced)
    return entry, introduced


def refuse_existing(output: Path) -> None:
    """Refuse to overwrite a file.

    Raises:
        UserError: the file exists.
    """
    if os.path.lexists(output):
        raise UserError(f"{output} exists: give the name of a new file")


def _own_path(name: str | None) -> Path:
    """Return the real path of the user's own key. Others cannot write to its folder, because a lock is made there."""
    chosen = key_path(name)
    refuse_place(chosen, remedy=MISSING)
    return Path(os.path.realpath(chosen))


@contextlib.contextmanager
def _statement_file(output: Path, statement: dict[str, Any], *, mode: int = 0o644) -> Iterator[None]:
    """Write a statement before the block, or fail if this is impossible. Give it its name after the block."""
    text = json.dumps(statement, indent=2, sort_keys=True) + "\n"
    try:
        with atomic_writer(output, mode=mode) as stream:
            stream.write(text.encode())
            stream.flush()
            os.fsync(stream.fileno())
            yield
    except OSError as error:
        raise UserError(f"cannot write {output} ({error.strerror}): choose a file in a folder of your own") from error


def _known(store: TrustStore, keys: Sequence[PublicKey], path: Path) -> Publisher | None:
    """Return the publisher that signed a statement, or None. All its keys in the trust store must have signed."""
    entry = store.find(keys[0].fingerprint)
    if entry is not None and not all(key in keys for key in entry.keys):
        raise UserError(f"{path} is not signed with every key that {entry.name} is trusted with here: it is refused")
    return entry


def _introduced_by(key_fingerprint: str, store: TrustStore) -> Iterator[Publisher]:
    """Yield the publishers that are trusted, directly or not, through a key's rotation statements; no revoked ones."""
    resting = {key_fingerprint}
    while more := {each.fingerprint for each in store if resting & set(each.ancestors)} - resting:
        resting |= more
    yield from (each for each in store if each.fingerprint in resting - {key_fingerprint} and each.revoked is None)
