"""How commands show a publisher."""

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sealed_experts.packages.keys.publisher import Publisher


def described(publisher: "Publisher") -> dict[str, Any]:
    """Return the facts about a publisher, for --json."""
    return {
        "name": publisher.name,
        "fingerprint": publisher.fingerprint,
        "keys": {key.algorithm: key.fingerprint for key in publisher.keys},
        "scopes": list(publisher.scopes),
        "expires": None if publisher.expires is None else publisher.expires.isoformat(),
        "status": publisher.status(),
        "revoked": publisher.revoked,
        "certified_by": publisher.certified_by,
        "ancestors": list(publisher.ancestors),
    }


def limits(publisher: "Publisher") -> str:
    """Return the limits of the trust in a publisher, in brackets; empty if there are none."""
    found = [f"for {', '.join(publisher.scopes)}"] if publisher.scopes != ("*",) else []
    found += [f"until {publisher.expires}"] if publisher.expires else []
    found += [f"revoked: {publisher.revoked}"] if publisher.revoked else []
    return f" ({'; '.join(found)})" if found else ""


def print_fingerprints(publisher: "Publisher") -> None:
    """Print the fingerprint of every key, because the user must compare all of them before trusting them."""
    print(f"fingerprint {publisher.fingerprint}")
    for key in publisher.keys[1:]:
        print(f"fingerprint of its {key.algorithm} key {key.fingerprint}")


def signing_hint(path: Path) -> str | None:
    """Return how to sign with the private key in a file; None if it is the signing key already."""
    from sealed_experts.packages.keys.private_keys import VARIABLE, key_path

    signing = key_path()
    if os.path.realpath(path) == os.path.realpath(signing):
        return None
    chosen = shlex.quote(os.path.abspath(path))
    return f"packages are signed with {signing}, not with this key; to sign with it: export {VARIABLE}={chosen}"
