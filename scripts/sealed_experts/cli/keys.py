"""`sealed-experts keys`: publishers' keys and whom this machine trusts."""

import argparse
import json
from pathlib import Path

from sealed_experts.errors import UserError
from sealed_experts.files.atomic import write_text

# `sealing` is imported by the functions that need it: other commands start without cryptography.


def add_parsers(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Register `keys` and its own commands."""
    keys = subparsers.add_parser(
        "keys",
        help="make and trust publishers' keys",
        description="Keys live under ${SEALED_EXPERTS_HOME:-~/.config/sealed-experts}: private ones in keys/ (mode "
        "0600), the public keys whose packages are accepted in trust/. SEALED_EXPERTS_KEY names another private key "
        "to sign with.",
    )
    commands = keys.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _create(commands)
    _list(commands)
    _trust(commands)
    _untrust(commands)
    _export(commands)


def _create(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser("create", help="make a key and trust its public half")
    parser.add_argument("--name", default="publisher", help="what to call it (default: publisher, the one that signs)")
    parser.set_defaults(run=create)


def _list(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser("list", help="show the signing key and the trusted keys")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=list_keys)


def _trust(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser("trust", help="accept packages signed with a key")
    parser.add_argument("file", type=Path, metavar="KEY.pub", help="public key in PEM, from its owner")
    parser.add_argument("--name", help="what to call it (default: the file's name)")
    parser.set_defaults(run=trust)


def _untrust(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser("untrust", help="no longer accept a key, whatever its names")
    parser.add_argument("key", metavar="KEY", help="its name, or its whole fingerprint")
    parser.set_defaults(run=untrust)


def _export(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser("export", help="write the public half of a signing key, for others to trust")
    parser.add_argument("--name", help="which key (default: the one that signs)")
    parser.add_argument("--output", type=Path, help="file to write (default: standard output)")
    parser.set_defaults(run=export)


def create(args: argparse.Namespace) -> int:
    """Make a key pair; return 0."""
    from sealed_experts.sealing.keys import create_key, key_path

    key = create_key(name=args.name)
    print(f"made {key_path(args.name)}; its public half is trusted here\nfingerprint {key.fingerprint}")
    return 0


def list_keys(args: argparse.Namespace) -> int:
    """Show what signs and what is trusted; return 0."""
    from sealed_experts.sealing.keys import key_path, load_key
    from sealed_experts.sealing.trust import load_trust

    path, store = key_path(), load_trust()
    signing = load_key(path).public.fingerprint if path.exists() else None
    if args.json:
        trusted = [{"name": key.name, "fingerprint": key.fingerprint} for key in store]
        print(json.dumps({"signing_key": {"path": str(path), "fingerprint": signing}, "trusted": trusted}))
        return 0
    print(
        f"signs:   {path} {signing}" if signing else f"signs:   no key yet (`sealed-experts keys create` makes {path})"
    )
    for key in store:
        print(f"trusted: {key.name} {key.fingerprint}")
    if not len(store):
        print("trusted: nobody yet")
    return 0


def trust(args: argparse.Namespace) -> int:
    """Add a public key to the trust store; return 0."""
    from sealed_experts.sealing.trust import load_trust, read_public_key, trust_key

    raw = read_public_key(args.file)
    known = next((key for key in load_trust() if key.raw == raw), None)
    if known and args.name in (None, known.name):
        print(f"already trusted: {known.name}\nfingerprint {known.fingerprint}")
        return 0
    key = trust_key(raw, name=args.name or args.file.stem.lower())
    print(f"trusted: {key.name}\nfingerprint {key.fingerprint} (compare it with what its owner tells you)")
    return 0


def untrust(args: argparse.Namespace) -> int:
    """Remove a public key from the trust store, under every name that it has there; return 0."""
    from sealed_experts.sealing.trust import untrust_key

    removed = untrust_key(args.key)
    print(f"no longer trusted: {', '.join(key.name for key in removed)}")
    for fingerprint in dict.fromkeys(key.fingerprint for key in removed):
        print(f"fingerprint {fingerprint}")
    return 0


def export(args: argparse.Namespace) -> int:
    """Write the public half of a private key as PEM; return 0."""
    from sealed_experts.sealing.keys import key_path, load_key

    key = load_key(key_path(args.name)).public
    if args.output is None:
        print(key.pem, end="")
        return 0
    if args.output.exists():
        raise UserError(f"{args.output} exists: name a new file")
    write_text(args.output, key.pem)
    print(f"wrote {args.output}\nfingerprint {key.fingerprint}")
    return 0
