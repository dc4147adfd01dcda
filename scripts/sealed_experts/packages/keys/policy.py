"""Policies: what is required of a package besides a trusted publisher. `docs/keys.md` describes the file."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from sealed_experts.errors import UserError
from sealed_experts.packages.errors import PackageError, SignatureError
from sealed_experts.packages.keys.publisher import ANYTHING, NAME, Publisher, check_required, check_scope
from sealed_experts.packages.keys.signing import ALGORITHMS

_PATTERN = re.compile(r"[a-z0-9_*?.-]{1,64}")
_KEYS = ("signatures", "publishers", "experts", "max_epsilon", "max_delta")
_LARGEST_DELTA = 1e-3  # with a large δ, any ε can be claimed


@dataclass(frozen=True, kw_only=True)
class Policy:
    """What is required of a package. The default requires a signature by every key of its publisher.

    Attributes:
        signatures: the algorithms that must have signed; None: those of all keys of the publisher.
        publishers: names or fingerprints of the accepted publishers; None: all trusted ones.
        experts: patterns of accepted names of experts.
        max_epsilon: the largest accepted joint ε; None accepts any, also packages without privacy.
        max_delta: the largest δ for which that ε may be stated.
    """

    signatures: tuple[str, ...] | None = None
    publishers: tuple[str, ...] | None = None
    experts: tuple[str, ...] = ANYTHING
    max_epsilon: float | None = None
    max_delta: float = _LARGEST_DELTA

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> "Policy":
        """Read a policy file: strict YAML.

        Raises:
            UserError: the file cannot be read or is not a policy; the message names the place.
        """
        from sealed_experts.settings.reading import read_file

        document = read_file(path)
        where = os.fspath(path)
        for key in document:
            if key not in _KEYS:
                raise UserError(f"{where}: `{key!s}` is not part of a policy: it can hold {', '.join(_KEYS)}")
        signatures = _list(document, "signatures", where, valid=lambda text: text in ALGORITHMS, of=_or(ALGORITHMS))
        experts = _list(
            document, "experts", where, valid=lambda text: _PATTERN.fullmatch(text) is not None, of="patterns of names"
        )
        publishers = _list(
            document, "publishers", where, valid=lambda text: NAME.fullmatch(text) is not None, of="names, fingerprints"
        )
        if "max_delta" in document and "max_epsilon" not in document:
            raise UserError(f"{where}: max_delta: it has no meaning without max_epsilon: give that too")
        return cls(
            signatures=signatures,
            publishers=publishers,
            experts=ANYTHING if experts is None else experts,
            max_epsilon=_positive(document, "max_epsilon", where),
            max_delta=_positive(document, "max_delta", where) or _LARGEST_DELTA,
        )

    def check(self, publisher: Publisher, signers: Sequence[tuple[str, bytes]], manifest: Mapping[str, Any]) -> None:
        """Check a package with verified signatures against this policy and its publisher's scopes.

        Args:
            publisher: the publisher that signed.
            signers: algorithm and raw public key of each signature.
            manifest: the package's checked manifest.

        Raises:
            SignatureError: a required signature is missing, or the publisher is not accepted for this expert.
            PackageError: the expert itself is not accepted.
        """
        check_required(publisher, signed=[algorithm for algorithm, _ in signers], required=self.signatures)
        names = {publisher.name, *(key.fingerprint for key in publisher.keys)}
        if self.publishers is not None and not names & set(self.publishers):
            raise SignatureError(
                f"the policy accepts packages of {', '.join(self.publishers)} only; this one is by {publisher.name} "
                f"({publisher.fingerprint})"
            )
        expert = str(manifest["name"])
        check_scope(publisher, expert)
        if not any(fnmatchcase(expert, pattern) for pattern in self.experts):
            raise PackageError(f"the policy accepts experts called {', '.join(self.experts)}; this is {expert[:80]!a}")
        if self.max_epsilon is not None:
            _check_privacy(manifest["privacy"], epsilon=self.max_epsilon, delta=self.max_delta)


DEFAULT = Policy()
ANY_SIGNATURE = Policy(signatures=())


def _check_privacy(stated: Mapping[str, Any], *, epsilon: float, delta: float) -> None:
    if stated["epsilon"] is None:
        raise PackageError(f"the policy accepts ε up to {epsilon:g}; this package claims no privacy")
    if not stated["epsilon"] <= epsilon:
        raise PackageError(f"the policy accepts ε up to {epsilon:g}; this package's is {stated['epsilon']:g}")
    if stated["delta"] is None or not stated["delta"] <= delta:
        raise PackageError(f"the policy accepts δ up to {delta:g}; this package states its ε for δ = {stated['delta']}")


def _list(document: Mapping[str, Any], key: str, where: str, *, valid: Any, of: str) -> tuple[str, ...] | None:
    if key not in document:
        return None
    values = document[key]
    if not isinstance(values, list) or not values:
        raise UserError(f"{where}: {key}: must be a list of {of}, with at least one; leave it out to require none")
    for index, value in enumerate(values):
        if not isinstance(value, str) or not valid(value):
            raise UserError(f"{where}: {key}[{index}]: {str(value)[:80]!r} is none of {of}")
        if value in values[:index]:
            raise UserError(f"{where}: {key}[{index}]: {value} is listed twice")
    return tuple(values)


def _positive(document: Mapping[str, Any], key: str, where: str) -> float | None:
    value = document.get(key)
    if key not in document:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise UserError(f"{where}: {key}: {str(value)[:80]!r} must be a number above 0")
    return float(value)


def _or(names: Mapping[str, Any]) -> str:
    return " and ".join(names)
