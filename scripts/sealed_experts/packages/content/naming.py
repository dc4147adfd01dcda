"""Names for private data: HMAC-SHA-256 under a key that only the owner holds.

A plain digest would confirm a guess at what it names. The owner can compute the name again and find the data that a
package was made from; whoever has no key learns at most that two packages were made from the same data.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sealed_experts.files.canonical import canonical_json
from sealed_experts.packages.keys.home import home_folder, private_folder, refuse_foreign
from sealed_experts.privacy.ledger.releases import owner_key, private_name


@dataclass(frozen=True)
class OwnerNames:
    """Names under one owner's key, which is never shown."""

    _key: bytes = field(repr=False)

    def of_data(self, digest: str) -> str:
        """Return the name of data that have this SHA-256."""
        return private_name(self._key, "data", digest)

    def of_configuration(self, configuration: Mapping[str, Any]) -> str:
        """Return the name of settings, which may hold the owner's words."""
        return private_name(self._key, "configuration", canonical_json(dict(configuration)))


def owner_names() -> OwnerNames:
    """Return the names under this owner's key, ${SEALED_EXPERTS_HOME}/owner.key, which is made on first use.

    Raises:
        UserError: the key is damaged, or others can read or replace it.
    """
    home = private_folder(home_folder())
    key = owner_key(home)
    refuse_foreign(home / "owner.key", (home / "owner.key").stat())
    return OwnerNames(key)
