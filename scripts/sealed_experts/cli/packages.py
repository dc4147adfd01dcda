"""`sealed-experts verify`, `inspect` and `unpack`: packages through their one door."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sealed_experts.sealing.package import VerifiedPackage
    from sealed_experts.sealing.trust import TrustStore

# `sealing` is imported by the functions that need it: other commands start without cryptography and numpy.


def add_parsers(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Register `verify`, `inspect` and `unpack`."""
    verify_parser = _parser(
        subparsers,
        "verify",
        "check a package",
        "Check a package: signature by a trusted key, every byte, every member. Exit code 0 only when all of it holds; "
        "5 for the signature, 11 for the content, 4 for another version of the format.",
    )
    verify_parser.add_argument("--json", action="store_true", help="print one JSON object")
    verify_parser.set_defaults(run=verify)
    inspect_parser = _parser(
        subparsers,
        "inspect",
        "show what a package says about itself",
        "Show what a package says about itself, and whether that is verified. Exit code 0 only when it is.",
    )
    inspect_parser.set_defaults(run=inspect)
    unpack_parser = _parser(
        subparsers,
        "unpack",
        "write a verified package's members into a new folder",
        "Verify a package and write its members into a new folder, which appears when it is complete.",
    )
    unpack_parser.add_argument("folder", type=Path, metavar="FOLDER", help="the new folder")
    unpack_parser.set_defaults(run=unpack)


def _parser(
    subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]", name: str, short: str, description: str
) -> argparse.ArgumentParser:
    parser = subparsers.add_parser(name, help=short, description=description)
    parser.add_argument("path", type=Path, metavar="PATH", help="the .tgsp file")
    parser.add_argument(
        "--trust", type=Path, metavar="KEY.pub", help="trust this public key alone (default: the trust store)"
    )
    return parser


def verify(args: argparse.Namespace) -> int:
    """Verify a package; return 0.

    Raises:
        PackageError: it does not verify.
    """
    from sealed_experts.sealing.package import open_package

    package = open_package(args.path, trust=_trust(args.trust))
    if args.json:
        print(json.dumps({"ok": True, "path": str(args.path), **_facts(package)}))
    else:
        name = f"{package.manifest['name']} {package.manifest['version']}"
        print(f"{args.path}: verified: {name}, signed by {package.publisher_name} ({package.publisher})")
    return 0


def inspect(args: argparse.Namespace) -> int:
    """Print what a package says about itself; return 0 when it is verified, else the code of what it is refused for."""
    from sealed_experts.sealing.inspection import inspect_package

    inspection = inspect_package(args.path, trust=_trust(args.trust))
    print("\n".join(inspection.lines))
    return inspection.exit_code


def unpack(args: argparse.Namespace) -> int:
    """Verify a package and write its members; return 0.

    Raises:
        PackageError: it does not verify; nothing is written then.
    """
    from sealed_experts.sealing import package as packages

    package = packages.open_package(args.path, trust=_trust(args.trust))
    packages.unpack(package, args.folder)
    print(f"wrote {len(package.members)} verified members and manifest.json to {args.folder}")
    return 0


def _trust(file: Path | None) -> "TrustStore":
    from sealed_experts.sealing.trust import PublicKey, TrustStore, load_trust, read_public_key

    return load_trust() if file is None else TrustStore([PublicKey(name=file.stem, raw=read_public_key(file))])


def _facts(package: "VerifiedPackage") -> dict[str, Any]:
    manifest = package.manifest
    return {
        "name": manifest["name"],
        "version": manifest["version"],
        "publisher": package.publisher,
        "publisher_name": package.publisher_name,
        "digest": package.digest,
        "size": package.size,
        "base": manifest["base"],
        "adapter": manifest["adapter"],
        "privacy": manifest["privacy"],
        "members": manifest["members"],
    }
