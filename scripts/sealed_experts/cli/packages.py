"""`sealed-experts verify`, `inspect` and `unpack`, for packages and signed PEFT folders."""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from sealed_experts.errors import UsageError, UserError, shown
from sealed_experts.text import printable

if TYPE_CHECKING:
    from sealed_experts.packages.base_modules import BaseModules
    from sealed_experts.packages.keys.policy import Policy
    from sealed_experts.packages.keys.trust import TrustStore
    from sealed_experts.packages.recipients.encryption import Identity
    from sealed_experts.packages.report import PackageReport
    from sealed_experts.privacy.ledger.second_accountant import Bounds

# `packages` is imported by the functions that need it: other commands start without cryptography and numpy.
_Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
_UNTRUSTED = """\
WARNING: {path} was checked only with the key that it contains itself.
WARNING: Anyone can make such a file. Nobody that you trust confirms who made it or what it is. Do not load it.
"""


def add_parsers(subparsers: _Commands) -> None:
    """Register `verify`, `inspect` and `unpack`."""
    _verify(subparsers)
    inspect_parser = _parser(
        subparsers,
        "inspect",
        "show what a package says about itself",
        "Show what a package says about itself, and whether it is verified. Exit code 0: everything is verified. Exit "
        "code 1: the package is encrypted for others, so only its manifest is verified. Other codes are those of "
        "`verify`.",
    )
    inspect_parser.add_argument(
        "--json", action="store_true", help="print one JSON object with the complete manifest and privacy receipt"
    )
    inspect_parser.set_defaults(run=inspect)
    unpack_parser = _parser(
        subparsers,
        "unpack",
        "write the files of a verified package into a new folder",
        "Verify a package and write its files into a new folder. The folder appears only when it is complete.",
    )
    unpack_parser.add_argument("folder", type=Path, metavar="FOLDER", help="the new folder")
    _add_allow_untrusted(unpack_parser)
    unpack_parser.set_defaults(run=unpack)


def _verify(subparsers: _Commands) -> None:
    parser = _parser(
        subparsers,
        "verify",
        "verify a package",
        "Verify a package, or a PEFT folder that has a model signature: the signature by a trusted key, every byte and "
        "every file. Exit code 0: all is correct; 5: the signature is wrong or not trusted; 11: the content is wrong; "
        "4: this version cannot use the package. With --allow-untrusted, 0 means only that the package is intact by "
        'the key that it contains itself: --json then prints "ok": true and "trusted": false.',
    )
    parser.add_argument(
        "--recompute-privacy",
        action="store_true",
        help="recompute the receipt's ε with a second accountant; takes seconds",
    )
    parser.add_argument(
        "--signature", type=Path, metavar="FILE", help="the folder's model signature (default: FOLDER.sig)"
    )
    _add_allow_untrusted(parser)
    add_base(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=verify)


def _parser(subparsers: _Commands, name: str, short: str, description: str) -> argparse.ArgumentParser:
    parser = subparsers.add_parser(name, help=short, description=description)
    parser.add_argument("path", type=Path, metavar="PATH", help="the .tgsp or .expert file")
    add_trust(parser)
    add_identity(parser)
    return parser


def add_trust(parser: argparse.ArgumentParser) -> None:
    """Add the options that say which publishers to trust, and for what."""
    parser.add_argument(
        "--trust", type=Path, metavar="KEY.pub", help="trust only this public key (default: the trust store)"
    )
    parser.add_argument("--policy", type=Path, metavar="FILE", help="file of extra requirements (docs/keys.md)")


def add_identity(parser: argparse.ArgumentParser) -> None:
    """Add the option for the private key that opens encrypted packages."""
    parser.add_argument(
        "--identity",
        type=Path,
        metavar="KEY",
        help="your private key, for encrypted packages (default: ${SEALED_EXPERTS_IDENTITY})",
    )


def add_base(parser: argparse.ArgumentParser) -> None:
    """Add the option for the base model that a package must fit."""
    parser.add_argument(
        "--base",
        type=Path,
        metavar="BASE",
        help="check that the package fits this base: its folder (checks the adapter's tensors too), or its base.json",
    )


def _add_allow_untrusted(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--allow-untrusted",
        action="store_true",
        help="check only that the file is intact; this says nothing about who made it",
    )


def verify(args: argparse.Namespace) -> int:
    """Verify a package or a signed folder; return 0.

    Raises:
        PackageError: it does not verify.
    """
    try:
        return _verify_folder(args) if os.path.isdir(args.path) else _verify_package(args)
    except UserError as error:
        if args.json:
            failure = {"ok": False, "path": str(args.path), "error": shown(error), "exit_code": error.exit_code}
            print(json.dumps(failure))
        raise


def _verify_package(args: argparse.Namespace) -> int:
    from sealed_experts.packages import opening
    from sealed_experts.packages.base_modules import check_fits, read_base

    if args.signature is not None:
        raise UsageError("--signature is for folders: a package carries its own")
    trusted, policy = _trust(args)
    base = None if args.base is None else read_base(args.base)
    report = opening.verify_any(args.path, trust=trusted, policy=policy, identity=identity_of(args.identity))
    check_fits(report, base, where=args.path)
    bounds = _recomputed(args.path, report) if args.recompute_privacy else None
    if args.json:
        verdict = {"ok": True, "path": str(args.path), "trusted": not args.allow_untrusted}
        print(json.dumps({**verdict, **facts(report), **_further_facts(report, base=base, bounds=bounds)}))
        return 0
    _print_verdict(args, report)
    path = printable(str(args.path))
    if base is not None:
        compared = "only its digest" if base.shapes is None else "its digest and every tensor"
        print(f"{path}: fits the base {printable(report.manifest['base']['name'])} (compared {compared})")
    if bounds is not None:
        claim = report.manifest["privacy"]
        print(
            f"{path}: the second accountant agrees: ε = {claim['epsilon']:.4g} at δ = {claim['delta']:g}; "
            f"it finds {bounds.low:.4g} to {bounds.high:.4g}"
        )
    elif args.recompute_privacy:
        print(f"{path}: the package claims no ε, so there is none to recompute")
    return 0


def _recomputed(path: Path, report: "PackageReport") -> "Bounds | None":
    from sealed_experts.packages.content.receipt import RECEIPT, recompute_receipt
    from sealed_experts.packages.errors import named

    with named(path):
        return recompute_receipt(report.members[RECEIPT])


def _further_facts(report: "PackageReport", *, base: "BaseModules | None", bounds: "Bounds | None") -> dict[str, Any]:
    """Return the results of the optional checks of `verify`, for --json; null if a check was not asked for."""
    privacy = report.manifest["privacy"]
    recomputed = bounds and {"delta": privacy["delta"], "lowest_epsilon": bounds.low, "highest_epsilon": bounds.high}
    fits = base and {"name": report.manifest["base"]["name"], "tensors_compared": base.shapes is not None}
    return {"fits_base": fits, "privacy_recomputed": bounds is not None, "recomputed": recomputed}


def _print_verdict(args: argparse.Namespace, report: "PackageReport") -> None:
    path, name = printable(str(args.path)), f"{report.manifest['name']} {report.manifest['version']}"
    signers = " and ".join(report.signatures)
    if args.allow_untrusted:
        print(
            f"{path}: NOT verified: nobody you trust signed it; intact by the key that it contains: {name} ({signers})"
        )
    else:
        publisher = f"{printable(report.publisher_name)} ({report.publisher})"
        print(f"{path}: verified: {name}, signed by {publisher} with {signers}")


def inspect(args: argparse.Namespace) -> int:
    """Print what a package says about itself; return 0 if it is verified, otherwise the exit code of its error."""
    from sealed_experts.packages.inspection import describe

    trusted, policy = trust_of(args)
    description = describe(args.path, trust=trusted, policy=policy, identity=identity_of(args.identity))
    print(json.dumps({"path": str(args.path), **description.facts()}) if args.json else "\n".join(description.lines))
    return description.exit_code


def unpack(args: argparse.Namespace) -> int:
    """Verify a package and write its files; return 0.

    Raises:
        PackageError: it does not verify. Nothing is written then.
    """
    from sealed_experts.packages import opening

    trusted, policy = _trust(args)
    identity = identity_of(args.identity)
    report = opening.unpack_any(args.path, args.folder, trust=trusted, policy=policy, identity=identity)
    checked = "intact but NOT verified" if args.allow_untrusted else "verified"
    members = len(report.manifest["members"])
    print(f"wrote {members} {checked} members and manifest.json to {printable(str(args.folder))}")
    return 0


def trust_of(args: argparse.Namespace) -> "tuple[TrustStore, Policy]":
    """Return the publishers that the options trust, and the policy.

    Raises:
        UserError: a file that the options name cannot be read.
    """
    from sealed_experts.packages.keys.policy import Policy
    from sealed_experts.packages.keys.trust import load_trust
    from sealed_experts.packages.opening import trust_in_file

    policy = Policy() if args.policy is None else Policy.read(args.policy)
    return load_trust() if args.trust is None else trust_in_file(args.trust), policy


def facts(report: "PackageReport") -> dict[str, Any]:
    """Return the facts about a verified package, for --json."""
    from sealed_experts.packages.opening import EXPERT, TGSP

    manifest = report.manifest
    return {
        "name": manifest["name"],
        "version": manifest["version"],
        "container": TGSP if report.integrity is None else EXPERT,
        "publisher": report.publisher,
        "publisher_name": report.publisher_name,
        "signatures": list(report.signatures),
        "recipients": list(report.recipients),
        "digest": report.digest,
        "size": report.size,
        "base": manifest["base"],
        "adapter": manifest["adapter"],
        "privacy": manifest["privacy"],
        "members": manifest["members"],
    }


def _trust(args: argparse.Namespace) -> "tuple[TrustStore, Policy]":
    """Do as `trust_of`, but allow --allow-untrusted, with a warning. It cannot be combined with --trust."""
    if not args.allow_untrusted:
        return trust_of(args)
    if args.trust is not None:
        raise UsageError("--trust and --allow-untrusted contradict each other: give one of them")
    from sealed_experts.packages.keys.policy import Policy
    from sealed_experts.packages.opening import own_publisher

    print(_UNTRUSTED.format(path=printable(str(args.path))), end="", file=sys.stderr)
    return own_publisher(args.path), Policy() if args.policy is None else Policy.read(args.policy)


def identity_of(path: Path | None) -> "Identity | None":
    """Return the recipient's private key in `path`; by default the one that ${SEALED_EXPERTS_IDENTITY} names, if set.

    Raises:
        UserError: the file cannot be read, or its passphrase is missing.
    """
    from sealed_experts.packages.recipients.own_identity import own_identity
    from sealed_experts.packages.recipients.recipient_files import load_identity

    return own_identity() if path is None else load_identity(path)


def _verify_folder(args: argparse.Namespace) -> int:
    from sealed_experts.packages.signed_folder import verify_folder

    if args.trust is None:
        raise UsageError(f"{args.path} is a folder: give its signer's ECDSA P-256 public key with --trust KEY.pub")
    refused = {
        "--allow-untrusted": args.allow_untrusted,
        "--policy": args.policy,
        "--recompute-privacy": args.recompute_privacy,
        "--identity": args.identity,
        "--base": args.base,
    }
    for option, given in refused.items():
        if given:
            raise UsageError(f"{option} is for packages: {args.path} is a folder")
    folder = verify_folder(args.path, key=args.trust, signature=args.signature)
    if args.json:
        stated = folder.facts.adapter
        adapter = {"kind": stated.kind, "settings": stated.facts(), "parameters": folder.facts.parameters}
        found = {"container": "folder", "members": folder.digests, "adapter": adapter}
        print(json.dumps({"ok": True, "path": str(args.path), "trusted": True, **found}))
        return 0
    path, key = printable(str(args.path)), printable(str(args.trust))
    print(f"{path}: verified: {len(folder.digests)} files, signed with {key}")
    return 0
