"""Which key seals, that it can be used, and that it has exactly the algorithms that the configuration asks for.

Whoever trusts a publisher requires a signature by each of its keys, so that none can be stripped. A package that leaves
one out would be refused everywhere: this is found before anything is trained.
"""

from collections.abc import Mapping, Sequence

from sealed_experts.errors import UserError
from sealed_experts.packages.keys.passphrase import require_variable
from sealed_experts.packages.keys.pem import is_encrypted
from sealed_experts.packages.keys.private_file import read_private_file
from sealed_experts.packages.keys.private_keys import ensure_publisher_key, key_path, load_key, mend_public, public_half


def settle_publisher(wanted: Mapping[str, Sequence[str]], *, create: bool) -> str:
    """Return the fingerprint of the publisher that seals; its key is made on first use.

    Args:
        wanted: each expert's `package.signatures`; an empty one stands for all that the key has.
        create: whether jobs follow: then an absent key is made, with the algorithms that all experts ask for, if they
            agree, and a key under a passphrase is opened.

    Raises:
        UserError: as `ensure_publisher_key`; or an expert asks for other algorithms than the key has; or jobs could not
            open the key.
    """
    asked = {frozenset(algorithms) for algorithms in wanted.values()}
    agreed = sorted(next(iter(asked))) if len(asked) == 1 and all(asked) else None
    fingerprint = ensure_publisher_key(create=create, algorithms=agreed, experts=wanted)
    path = key_path()
    if path.exists():
        check_signatures(wanted, has=public_half(path).algorithms)
    if create:
        if is_encrypted(read_private_file(path)):
            require_variable(path)
        opened = load_key(path).public
        mend_public(path, opened)
        if opened.fingerprint != fingerprint:  # where a .pub file of the user's own stands for it
            raise UserError(f"{path.with_suffix('.pub')} is not the public half of {path}: remove it, or put it right")
    return fingerprint


def check_signatures(wanted: Mapping[str, Sequence[str]], *, has: Sequence[str]) -> None:
    """Hold what experts ask for against the algorithms of the publisher's key.

    Raises:
        UserError: an expert asks for one that the key lacks, or leaves out one that it has.
    """
    for expert, algorithms in wanted.items():
        missing, left_out = sorted(set(algorithms) - set(has)), sorted(set(has) - set(algorithms))
        if missing:
            raise UserError(
                f"experts.{expert}.package.signatures asks for {missing[0]}, but the publisher's key has only"
                f" {', '.join(has)}: make a key that has it (`sealed-experts keys create`), or leave it out"
            )
        if algorithms and left_out:
            raise UserError(
                f"experts.{expert}.package.signatures leaves out {left_out[0]}, which the publisher's key has: whoever"
                " trusts that key would refuse the package; list all of its algorithms, or none, or set"
                f" SEALED_EXPERTS_KEY to a key of {' and '.join(algorithms)} alone"
            )
