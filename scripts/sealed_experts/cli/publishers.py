"""How commands show a publisher."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sealed_experts.sealing.keys.publisher import Publisher


def described(publisher: "Publisher") -> dict[str, Any]:
    """Return a publisher for programs."""
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
    """Return what limits the trust in a publisher, in brackets, or nothing."""
    found = [f"for {', '.join(publisher.scopes)}"] if publisher.scopes != ("*",) else []
    found += [f"until {publisher.expires}"] if publisher.expires else []
    found += [f"revoked: {publisher.revoked}"] if publisher.revoked else []
    return f" ({'; '.join(found)})" if found else ""


def print_fingerprints(publisher: "Publisher") -> None:
    """Print the fingerprint of each key: whoever compares only the first trusts the others unseen."""
    print(f"fingerprint {publisher.fingerprint}")
    for key in publisher.keys[1:]:
        print(f"fingerprint of its {key.algorithm} key {key.fingerprint}")
