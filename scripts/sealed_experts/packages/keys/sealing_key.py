"""The key that seals a run's packages: check that it can be used and has the algorithms of the configuration.

Readers require a signature by each key of a publisher, so that nobody can remove a signature. A package without one of
them would be refused everywhere, so the key is checked before the training starts.
"""

from collections.abc import Mapping, Sequence

from sealed_experts.errors import UserError
from sealed_experts.packages.keys.passphrase import require_variable
from sealed_experts.packages.keys.pem import is_encrypted
from sealed_experts.packages.keys.private_file import read_private_file
from sealed_experts.packages.keys.private_keys import (
    ensure_publisher_key,
    key_path,
    load_key,
    public_half,
    restore_public,
)


def settle_publisher(wanted: Mapping[str, Sequence[str]], *, create: bool) -> str:
    """Return the fingerprint of the publisher that seals the packages. Its key is made on first use.

    Args:
        wanted: each expert's `package.signatures`; an empty list means all algorithms of the key.
        create: whether jobs will run. Then a missing key is made (with the algorithms that the experts ask for, if all
            ask for the same), and a key with a passphrase is opened.

    Raises:
        UserError: as for `ensure_publisher_key`; or an expert asks for other algorithms than the key has; or jobs could
            not open the key.
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
        restore_public(path, opened)
        if opened.fingerprint != fingerprint:  # the .pub file belongs to another key
            raise UserError(f"{path.with_suffix('.pub')} is not the public half of {path}: remove it, or correct it")
    return fingerprint


def check_signatures(wanted: Mapping[str, Sequence[str]], *, has: Sequence[str]) -> None:
    """Compare the algorithms that experts ask for with those of the publisher's key.

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
                f"experts.{expert}.package.signatures leaves out {left_out[0]}, which the publisher's key has: everyone"
                " who trusts that key would refuse the package; list all of its algorithms, or none, or set"
                f" SEALED_EXPERTS_KEY to a key of {' and '.join(algorithms)} alone"
            )
