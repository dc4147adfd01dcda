"""`sealed-experts keys rotate` and `revoke`: replace a signing key, or revoke one that is lost or leaked."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from sealed_experts.cli.publishers import described, print_fingerprints, signing_hint
from sealed_experts.errors import UserError

if TYPE_CHECKING:
    from sealed_experts.packages.keys.publisher import Publisher

_Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def add_rotate(commands: _Commands) -> None:
    """Register `rotate`."""
    parser = commands.add_parser(
        "rotate",
        help="replace your key with a new one",
        description="Make a new key in the place of the old one, keep the old one as a retired key, and write a "
        "statement that both keys sign. Everyone who trusts the old key uses it to trust the new one: "
        "`sealed-experts keys trust STATEMENT`.",
    )
    parser.add_argument("--name", help="which key (default: the one that signs)")
    parser.add_argument("--output", type=Path, required=True, metavar="STATEMENT", help="the statement to write")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=rotate)


def add_revoke(commands: _Commands) -> None:
    """Register `revoke`."""
    parser = commands.add_parser(
        "revoke",
        help="revoke your own key, or another publisher's key by its owner's statement",
        description="Revoke your own key (--reason, --output): it is refused here and moved away, and a signed "
        "statement is written for others. Or write this statement in advance, in case the key gets lost "
        "(--in-advance): this revokes nothing. Or revoke another publisher's key by its owner's statement "
        "(--statement). Everything that a revoked key ever signed is refused, because a package holds no trusted time.",
    )
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument(
        "--output", type=Path, metavar="STATEMENT", help="write the statement about your own key to this file"
    )
    which.add_argument("--statement", type=Path, metavar="STATEMENT", help="apply another publisher's statement")
    parser.add_argument("--reason", help="why, in one public line (with --output)")
    parser.add_argument("--name", help="which of your keys (default: the one that signs)")
    parser.add_argument(
        "--fingerprint", metavar="HEX", help="the key's fingerprint; required for a key that replaced another one"
    )
    parser.add_argument(
        "--in-advance",
        action="store_true",
        help="with --output: only write the statement and revoke nothing; keep it in a safe place",
    )
    parser.add_argument(
        "--with-introduced",
        action="store_true",
        help="with --statement: also revoke the keys that you trust through rotations of this key",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=revoke)


def rotate(args: argparse.Namespace) -> int:
    """Replace one of the user's keys with a new one; return 0."""
    from sealed_experts.packages.keys.key_changes import rotate_key
    from sealed_experts.packages.keys.retired_keys import revoking_command

    done = rotate_key(output=args.output, name=args.name)
    hint, revoking = signing_hint(done.path), revoking_command(done.retired)
    if args.json:
        paths = {"path": str(done.path), "retired": str(done.retired), "statement": str(args.output)}
        found = {"old": done.old.fingerprint, "new": described(done.new), "signs": hint is None}
        print(json.dumps({**paths, **found, "revoke_old": revoking}))
        return 0
    signs = "signs from now on and " if hint is None else ""
    print(f"{done.path} is a new key; it {signs}is trusted here as {done.new.name}")
    print_fingerprints(done.new)
    print(
        f"the old key ({done.old.fingerprint}) is kept as {done.retired}; packages that it signed are still accepted. "
        f"Seal your packages again, and give {args.output} to everyone who trusts the old key: "
        f"`sealed-experts keys trust {args.output.name}`"
    )
    print(f"revoke the old key when none of your packages needs it any more, or if it leaked: `{revoking}`")
    if hint is not None:
        print(hint)
    return 0


def revoke(args: argparse.Namespace) -> int:
    """Revoke a key, or only write the statement that revokes it; return 0."""
    if args.statement is not None:
        return _follow_revocation(args)
    from sealed_experts.packages.keys.key_changes import revoke_in_advance, revoke_key

    if args.reason is None:
        raise UserError("--reason is missing: say in one public line why the key is revoked")
    if args.with_introduced:
        raise UserError("--with-introduced goes with --statement")
    if args.in_advance:
        if args.fingerprint is not None:
            raise UserError("--fingerprint is for revoking at once: --in-advance revokes nothing")
        entry = revoke_in_advance(reason=args.reason, output=args.output, name=args.name)
    else:
        entry = revoke_key(reason=args.reason, output=args.output, name=args.name, fingerprint=args.fingerprint)
    if args.json:
        print(json.dumps({**described(entry), "introduced": []}))
    elif args.in_advance:
        print(f"nothing is revoked yet. Anyone who has {args.output} can revoke {entry.name}: keep it in a safe place")
        print_fingerprints(entry)
    else:
        _print_revoked(entry)
        print(
            f"give {args.output} to all who trust the key: `sealed-experts keys revoke --statement {args.output.name}`"
        )
    return 0


def _follow_revocation(args: argparse.Namespace) -> int:
    from sealed_experts.packages.keys.key_changes import follow_revocation

    if args.in_advance or any(given is not None for given in (args.reason, args.name, args.fingerprint)):
        raise UserError(
            "--reason, --name, --fingerprint and --in-advance are for your own key; a statement holds all of that"
        )
    entry, introduced = follow_revocation(args.statement, with_introduced=args.with_introduced)
    if args.json:
        print(json.dumps({**described(entry), "introduced": [other.name for other in introduced]}))
        return 0
    _print_revoked(entry)
    for other in introduced:
        if other.revoked is not None:
            print(f"revoked too: {other.name}, which was trusted through this key")
        else:
            print(
                f"still trusted: {other.name}, through a statement of this key; ask its owner whether it is really "
                "theirs, or run this again with --with-introduced"
            )
    return 0


def _print_revoked(entry: "Publisher") -> None:
    print(f"revoked: {entry.name} ({entry.revoked}); everything that it ever signed is refused here")
    print_fingerprints(entry)
