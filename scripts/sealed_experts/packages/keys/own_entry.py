"""The user's own key in the trust store: its entry, and the check that its packages are accepted here."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from sealed_experts.errors import UserError
from sealed_experts.packages.errors import SignatureError
from sealed_experts.packages.keys.publisher import NAME, Publisher, check_scope
from sealed_experts.packages.keys.trust import free_name, is_taken, load_trust

DEFAULT_NAME = "publisher"
RETIRED = ".retired-"
_TRUST = "run `sealed-experts keys export --output publisher.pub` and `sealed-experts keys trust publisher.pub`"


def own_entry(path: Path, public: Publisher, *, name: str | None = None) -> Publisher:
    """Return the trust store's entry of the user's own key. It has the name of its file, if that name is free."""
    if name is None:
        name = path.stem if NAME.fullmatch(path.stem) else DEFAULT_NAME
        if is_taken(name):
            name = free_name(name, public.fingerprint)
    return Publisher(name=name, keys=public.keys)


def following_entry(path: Path, *, old: Publisher, new: Publisher) -> Publisher:
    """Return the entry of the key that replaces `old`, with the same scopes and expiry.

    Raises:
        UserError: the old key expired here, so the new one would be expired too.
    """
    entry, known = own_entry(path, new), load_trust().find(old.fingerprint) or old
    if known.status() == "expired":
        raise UserError(
            f"the publisher key {path} expired here on {known.expires}, and a new key would have the same expiry: "
            f"first {_TRUST} with a later --expires"
        )
    ancestors = (old.fingerprint, *known.ancestors)
    return replace(entry, scopes=known.scopes, expires=known.expires, ancestors=ancestors)


def refuse_unusable(path: Path, public: Publisher) -> None:
    """Refuse to sign with a retired or revoked key.

    Raises:
        UserError: the key is retired or revoked.
    """
    if RETIRED in path.stem:
        raise UserError(f"the publisher key {path} was retired: sign with the key that replaced it")
    known = load_trust().find(public.fingerprint)
    if known is not None and known.revoked is not None:
        raise UserError(
            f"the publisher key {path} was revoked ({known.revoked}), so its packages would be refused: sign with "
            "another key (SEALED_EXPERTS_KEY), or move it away and run `sealed-experts keys create`"
        )


def check_accepted(path: Path, public: Publisher, *, experts: Iterable[str] = ()) -> None:
    """Check that this machine would accept the packages that the user's own key signs.

    Args:
        path: the private file.
        public: its public half.
        experts: names of the experts whose packages it will sign.

    Raises:
        UserError: the key is retired, revoked, expired or not trusted; the trust store has other keys of this
            publisher; or the key may not sign an expert of this name.
    """
    refuse_unusable(path, public)
    known = load_trust().find(public.fingerprint)
    if known is None:
        raise UserError(
            f"the publisher key {path} is not trusted on this machine, so its packages would be refused: {_TRUST}"
        )
    if known.status() != "trusted":
        raise UserError(
            f"the publisher key {path} expired here on {known.expires}, so its packages would be refused: {_TRUST} "
            "with a later --expires"
        )
    if known.keys != public.keys:
        raise UserError(
            f"the publisher key {path} has {' and '.join(public.algorithms)} keys, but {known.name} is trusted here "
            f"with other keys, so its packages would be refused: run `sealed-experts keys untrust {known.name}`, then "
            f"{_TRUST.removeprefix('run ')}"
        )
    for expert in experts:
        try:
            check_scope(known, expert)
        except SignatureError as error:
            raise UserError(f"the publisher key {path} cannot seal the expert {expert}: {error}") from error
