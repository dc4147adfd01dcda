"""`sealed-experts keys`: your keys and the publishers that you trust."""

import argparse
import datetime
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from sealed_experts.cli import key_changes, key_list
from sealed_experts.cli.publishers import described, limits, print_fingerprints, signing_hint
from sealed_experts.errors import UserError
from sealed_experts.files.atomic import write_text

if TYPE_CHECKING:
    from sealed_experts.packages.keys.publisher import Publisher

# `packages` is imported by the functions that need it: other commands start without cryptography.
_Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
_NEVER = "never"


def add_parsers(subparsers: _Commands) -> None:
    """Register `keys` and its subcommands."""
    keys = subparsers.add_parser(
        "keys",
        help="create signing keys, and trust publishers",
        description="Keys are stored under ${SEALED_EXPERTS_HOME:-~/.config/sealed-experts}: your private keys in "
        "keys/ (mode 0600), the publishers whose packages you accept in trust/. To sign with another private key, set "
        "SEALED_EXPERTS_KEY to its file. SEALED_EXPERTS_PASSPHRASE holds a key's passphrase; if it is not set, the "
        "terminal asks for it.",
    )
    commands = keys.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for add in (_create, key_list.add_list, _export, key_changes.add_rotate, key_changes.add_revoke, _trust, _untrust):
        add(commands)


def _create(commands: _Commands) -> None:
    parser = commands.add_parser("create", help="create a key, test it, and trust its public half")
    parser.add_argument("--name", help="name of the key (default: publisher, the one that signs)")
    parser.add_argument(
        "--algorithm",
        action="append",
        metavar="NAME",
        help="ed25519 or ml-dsa-65; repeat for both (default: all that this machine supports)",
    )
    parser.add_argument("--passphrase", action="store_true", help="protect the file with a passphrase")
    parser.add_argument(
        "--recipient", action="store_true", help="create a key that opens encrypted packages, instead of one that signs"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=create)


def _export(commands: _Commands) -> None:
    parser = commands.add_parser("export", help="write the public half of a signing key, to give to others")
    parser.add_argument("--name", help="which key (default: the one that signs)")
    parser.add_argument("--output", type=Path, help="file to write (default: standard output)")
    parser.set_defaults(run=export)


def _trust(commands: _Commands) -> None:
    parser = commands.add_parser(
        "trust",
        help="trust a publisher: accept the packages that its key signs",
        description="Accept a publisher's packages, or change the limits of a publisher that you trust already.",
    )
    parser.add_argument(
        "file", type=Path, metavar="FILE", help="a publisher's public key (PEM), or a rotation statement"
    )
    parser.add_argument("--name", help="name of the publisher here (default: the file's name)")
    parser.add_argument(
        "--scope",
        action="append",
        metavar="PATTERN",
        help="pattern (* and ?) of the experts that it may sign; repeat for several (default: all)",
    )
    parser.add_argument(
        "--expires", metavar="DATE", help="last day of trust, for example 2030-12-31, or never (default)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=trust)


def _untrust(commands: _Commands) -> None:
    parser = commands.add_parser("untrust", help="stop trusting a publisher")
    parser.add_argument("key", metavar="KEY", help="the publisher's name, or its complete fingerprint")
    parser.set_defaults(run=untrust)


def create(args: argparse.Namespace) -> int:
    """Create a key; return 0."""
    from sealed_experts.packages.keys import passphrase
    from sealed_experts.packages.keys.own_entry import DEFAULT_NAME
    from sealed_experts.packages.keys.private_keys import create_key, key_path
    from sealed_experts.packages.keys.signing import ALGORITHMS

    if args.recipient:
        return _create_recipient(args)
    name = args.name or DEFAULT_NAME
    secret = passphrase.new_passphrase() if args.passphrase else None
    key = create_key(name=name, algorithms=args.algorithm, secret=secret)
    available = {algorithm: known.available() for algorithm, known in ALGORITHMS.items()}
    hint = signing_hint(key_path(name))
    if args.json:
        found = {**described(key), "available_algorithms": available, "signs": hint is None}
        print(json.dumps({"path": str(key_path(name)), **found}))
        return 0
    print(f"made {key_path(name)}; its public half is trusted here")
    print_fingerprints(key)
    print(f"tested: {' and '.join(key.algorithms)} sign and verify here")
    for algorithm in (algorithm for algorithm, works in available.items() if not works):
        print(
            f"not available: {algorithm}: this machine's OpenSSL lacks it; install cryptography>=50, which includes it"
        )
    if hint is not None:
        print(hint)
    return 0


def export(args: argparse.Namespace) -> int:
    """Write the public half of a private key as PEM; return 0."""
    from sealed_experts.packages.keys.key_changes import refuse_existing
    from sealed_experts.packages.keys.private_keys import key_path, public_half

    path = key_path(args.name)
    if args.name is not None and not os.path.lexists(path):
        _refuse_recipient(args.name)
    key = public_half(path)
    if args.output is None:
        print(key.pem, end="")
        return 0
    refuse_existing(args.output)
    write_text(args.output, key.pem)
    print(f"wrote {args.output}")
    print_fingerprints(key)
    return 0


def trust(args: argparse.Namespace) -> int:
    """Accept a publisher's packages; return 0."""
    from sealed_experts.packages.keys.key_changes import follow_rotation

    if args.file.suffix == ".json":
        if args.scope or args.expires:
            raise UserError(
                "leave out --scope and --expires: a rotation statement keeps the scopes and the expiry of the old key"
            )
        publisher = follow_rotation(args.file, name=args.name)
        if args.json:
            print(json.dumps(described(publisher)))
            return 0
        if publisher.certified_by is None:
            print(f"already trusted: {publisher.name}, by its own key{limits(publisher)}")
        else:
            print(f"trusted: {publisher.name}, certified by the key {publisher.certified_by}{limits(publisher)}")
        print_fingerprints(publisher)
        return 0
    former, publisher = _trusted(args)
    if args.json:
        print(json.dumps(described(publisher)))
        return 0
    if former == publisher:
        print(f"already trusted: {publisher.name}{limits(publisher)}")
        print_fingerprints(publisher)
        return 0
    print(f"trusted: {publisher.name}{limits(publisher)}; compare this with the fingerprint that its owner tells you:")
    print_fingerprints(publisher)
    return 0


def untrust(args: argparse.Namespace) -> int:
    """Remove a publisher from the trust store; return 0."""
    from sealed_experts.packages.keys.trust import untrust_key

    removed = untrust_key(args.key)
    print(f"no longer trusted: {', '.join(publisher.name for publisher in removed)}")
    print_fingerprints(removed[0])
    return 0


def _refuse_recipient(name: str) -> None:
    from sealed_experts.packages.recipients.recipient_files import recipients_folder

    public = recipients_folder() / f"{name}.pub"
    if public.exists():
        raise UserError(
            f"the key {name} opens packages and signs none: give {public} to everyone who encrypts packages for you"
        )


def _create_recipient(args: argparse.Namespace) -> int:
    from sealed_experts.packages.keys import passphrase
    from sealed_experts.packages.recipients.own_identity import VARIABLE
    from sealed_experts.packages.recipients.recipient_files import create_recipient

    if args.algorithm:
        raise UserError("leave out --algorithm: it is for keys that sign, and a recipient's key has one algorithm only")
    secret = passphrase.new_passphrase() if args.passphrase or passphrase.wanted() else None
    made = create_recipient(name=args.name or "recipient", secret=secret)
    if args.json:
        print(json.dumps({"path": str(made.path), "public": str(made.public), "fingerprint": made.fingerprint}))
        return 0
    print(f"made {made.path}; give {made.public} to everyone who encrypts packages for you")
    print(f"fingerprint {made.fingerprint}")
    print(f"to open such packages: --identity {made.path}, or export {VARIABLE}={made.path}")
    return 0


def _trusted(args: argparse.Namespace) -> "tuple[Publisher | None, Publisher]":
    """Return a publisher's entry in the trust store, before and after. Options that are not given change nothing."""
    from sealed_experts.packages.keys.pem import read_public_keys
    from sealed_experts.packages.keys.publisher import ANYTHING, Publisher
    from sealed_experts.packages.keys.trust import load_trust, trust_publisher

    keys = read_public_keys(args.file)
    former = load_trust().find(keys[0].fingerprint)
    publisher = Publisher(
        name=args.name or (former.name if former else args.file.stem.lower()),
        keys=keys,
        scopes=tuple(args.scope) if args.scope else (former.scopes if former else ANYTHING),
        expires=_day(args.expires) if args.expires else (former.expires if former else None),
        ancestors=former.ancestors if former else (),
    )
    return former, trust_publisher(publisher)


def _day(text: str) -> datetime.date | None:
    from sealed_experts.packages.keys.publisher import today

    if text == _NEVER:
        return None
    try:
        day = datetime.date.fromisoformat(text)
    except ValueError as error:
        raise UserError(f"--expires {text}: this is not a date: write it as 2030-12-31, or {_NEVER}") from error
    if day < today():
        raise UserError(f"--expires {text}: that day is in the past: give a later one, or use `keys untrust`")
    return day
