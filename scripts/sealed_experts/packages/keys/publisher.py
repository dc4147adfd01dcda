"""A publisher: public keys of several algorithms under one name, and what it may sign."""

import datetime
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from sealed_experts.errors import UserError
from sealed_experts.packages.errors import SignatureError
from sealed_experts.packages.keys.signing import ED25519, encode_public, fingerprint

ANYTHING = ("*",)
NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_FINGERPRINT = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class PublicKey:
    """A raw public key of one algorithm."""

    raw: bytes
    algorithm: str = ED25519

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the raw key, lower-case hex."""
        return fingerprint(self.raw)

    @property
    def pem(self) -> str:
        """The key as SubjectPublicKeyInfo in PEM."""
        return encode_public(algorithm=self.algorithm, public_key=self.raw).decode()


@dataclass(frozen=True, kw_only=True)
class Publisher:
    """A signer of packages, as the trust store knows it.

    Attributes:
        name: a name to show; it proves nothing.
        keys: its public keys, one for each algorithm, Ed25519 first.
        scopes: patterns of the names of experts that it may sign (`*` and `?` as in file names).
        expires: the last day (UTC) on which its signatures are accepted, or None.
        revoked: why its signatures are no longer accepted, or None.
        ancestors: fingerprints of the older keys that it replaced, the newest first. The owner of one of them could
            have made all keys after it.
    """

    name: str
    keys: tuple[PublicKey, ...]
    scopes: tuple[str, ...] = ANYTHING
    expires: datetime.date | None = None
    revoked: str | None = None
    ancestors: tuple[str, ...] = ()

    @property
    def certified_by(self) -> str | None:
        """Fingerprint of the key that this one replaced, or None."""
        return self.ancestors[0] if self.ancestors else None

    @property
    def algorithms(self) -> tuple[str, ...]:
        """The algorithms of its keys."""
        return tuple(key.algorithm for key in self.keys)

    @property
    def raw(self) -> bytes:
        """Its raw Ed25519 public key."""
        return self.keys[0].raw

    @property
    def fingerprint(self) -> str:
        """The publisher's fingerprint, which is that of its Ed25519 key."""
        return self.keys[0].fingerprint

    @property
    def pem(self) -> str:
        """Content of its public file: one block for each algorithm."""
        return "".join(key.pem for key in self.keys)

    def status(self) -> str:
        """Return `revoked`, `expired` or `trusted` on this day, by this machine's clock."""
        if self.revoked is not None:
            return "revoked"
        return "expired" if self.expires is not None and today() > self.expires else "trusted"


def checked_name(name: str) -> str:
    """Return `name` if it can name a key.

    Raises:
        UserError: it cannot name a key.
    """
    if not NAME.fullmatch(name) or _FINGERPRINT.fullmatch(name):  # a name must not look like another key's fingerprint
        raise UserError(
            f"{name!r} cannot name a key: use up to 64 of a-z, 0-9, '.', '_', '-', starting with a letter or digit, and"
            " not a fingerprint"
        )
    return name


def today() -> datetime.date:
    """Return today's date in UTC."""
    return datetime.datetime.now(datetime.UTC).date()


def check_usable(publisher: Publisher) -> None:
    """Refuse every package of a revoked or expired publisher: a package holds no trusted time of its signature.

    Raises:
        SignatureError: the publisher is revoked or expired.
    """
    who = f"the key of {publisher.name} ({publisher.fingerprint})"
    if publisher.revoked is not None:
        raise SignatureError(
            f"{who} was revoked ({publisher.revoked}): everything that it ever signed is refused; get the package "
            "sealed with its publisher's present key"
        )
    if publisher.status() == "expired":
        raise SignatureError(
            f"{who} expired here on {publisher.expires}: everything that it ever signed is refused; if you still "
            f"trust it, run `sealed-experts keys trust` with --name {publisher.name} and a later --expires"
        )


def check_required(publisher: Publisher, *, signed: Sequence[str], required: Sequence[str] | None) -> None:
    """Refuse a package that lacks a required signature. By default each key of the publisher must have signed.

    Raises:
        SignatureError: a required signature is missing.
    """
    for algorithm in publisher.algorithms if required is None else required:
        if algorithm not in publisher.algorithms:
            raise SignatureError(
                f"an {algorithm} signature is required, but no {algorithm} key of {publisher.name} is known here: get "
                "its present public file and run `sealed-experts keys trust`"
            )
        if algorithm not in signed:
            raise SignatureError(
                f"the {algorithm} signature of {publisher.name} is missing: it signs with "
                f"{' and '.join(publisher.algorithms)}, and the package has only {' and '.join(signed)}; get the "
                "package again, or accept it by a policy that requires only these signatures"
            )


def check_scope(publisher: Publisher, package_name: str) -> None:
    """Refuse an expert if its name is outside the publisher's scopes.

    Raises:
        SignatureError: no scope covers the name.
    """
    if not any(fnmatchcase(package_name, scope) for scope in publisher.scopes):
        raise SignatureError(
            f"{publisher.name} may not sign an expert called {ascii(package_name)[:80]}: it is trusted for "
            f"{', '.join(publisher.scopes)} only (`sealed-experts keys trust` with --scope changes that)"
        )
