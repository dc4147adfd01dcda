"""`sealed-experts publish` and `sign`: prepare packages and folders for others."""

import argparse
from pathlib import Path
from typing import TypeAlias

from sealed_experts.text import printable

# `packages` is imported by the functions that need it: other commands start without cryptography and numpy.
_Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def add_parsers(subparsers: _Commands) -> None:
    """Register the commands."""
    _publish(subparsers)
    _sign(subparsers)


def _publish(subparsers: _Commands) -> None:
    parser = subparsers.add_parser(
        "publish",
        help="write a package as an .expert file under its long name",
        description="Write a package as an .expert file, signed with your Ed25519 key. The file's name is"
        " {name}-{base}.v{version}.expert. If SOURCE_DATE_EPOCH is set, it is the package's time.",
    )
    parser.add_argument(
        "path", type=Path, metavar="PATH", help="a .tgsp or .expert that you signed, or a folder that `unpack` wrote"
    )
    parser.add_argument(
        "--output", type=Path, default=Path(), metavar="FOLDER", help="folder to write to (default: this one)"
    )
    parser.add_argument("--publisher", metavar="NAME", help="your name in the package (default: the manifest's author)")
    parser.set_defaults(run=publish)


def _sign(subparsers: _Commands) -> None:
    parser = subparsers.add_parser(
        "sign",
        help="write an OpenSSF model signature for a PEFT folder",
        description="Sign every file of a PEFT folder with an ECDSA P-256 key, as `model_signing sign key` does."
        " `sealed-experts verify` and `model_signing verify key` check it.",
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="folder with adapter_config.json and the weights")
    parser.add_argument("--key", type=Path, required=True, metavar="KEY.pem", help="ECDSA P-256 private key")
    parser.add_argument("--output", type=Path, metavar="FILE", help="file to write (default: FOLDER.sig)")
    parser.set_defaults(run=sign)


def publish(args: argparse.Namespace) -> int:
    """Write a package as an `.expert` file; return 0."""
    from sealed_experts.packages.publishing import publish_expert

    path, digest = publish_expert(args.path, output=args.output, publisher=args.publisher)
    print(f"published {printable(str(path))}: digest {digest}")
    return 0


def sign(args: argparse.Namespace) -> int:
    """Write a model signature; return 0."""
    from sealed_experts.packages.signed_folder import sign_folder

    signature = sign_folder(args.folder, key=args.key, output=args.output)
    print(f"signed {printable(str(args.folder))}: {printable(str(signature))}")
    return 0
