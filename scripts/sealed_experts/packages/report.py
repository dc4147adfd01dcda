"""The facts about a verified package, the same for both containers."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class PackageReport:
    """The facts about a package that was verified without keeping its weights.

    Attributes:
        manifest: what the package says about itself.
        members: content of its small members, by name.
        publisher: fingerprint of the publisher that signed it.
        publisher_name: the publisher's name in the trust store.
        digest: SHA-256 of the whole file; None if it was not asked for.
        size: bytes of the whole file.
        signatures: the algorithms that signed, each checked.
        recipients: fingerprints of the recipients that can decrypt it.
        shapes: shapes of the adapter's tensors, by name; empty if the content was not read.
        integrity: the field `integrity` of an `.expert` file's manifest, left out of `manifest`; None for a `.tgsp`.
    """

    manifest: dict[str, Any]
    members: dict[str, bytes]
    publisher: str
    publisher_name: str
    digest: str | None
    size: int
    signatures: tuple[str, ...] = ()
    recipients: tuple[str, ...] = ()
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    integrity: dict[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class VerifiedPackage(PackageReport):
    """A package in memory. A trusted publisher signed every byte, and all checks passed. `members` has all members."""

    digest: str
