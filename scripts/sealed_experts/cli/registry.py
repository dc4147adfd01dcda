"""`sealed-experts install`, `list` and `uninstall`: the registry of installed packages."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from sealed_experts.cli.packages import add_base, add_identity, add_trust, facts, identity_of, trust_of
from sealed_experts.errors import UsageError
from sealed_experts.text import printable

if TYPE_CHECKING:
    from sealed_experts.packages.registry import Installed, Registry

# `packages` is imported by the functions that need it: other commands start without cryptography and numpy.
_Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def add_parsers(subparsers: _Commands) -> None:
    """Register the commands."""
    _install(subparsers)
    _list(subparsers)
    _uninstall(subparsers)


def _install(subparsers: _Commands) -> None:
    parser = subparsers.add_parser(
        "install",
        help="install a package in the registry",
        description="Verify a package, check that it fits its base and the packages installed already, and install it"
        " in the registry.",
    )
    parser.add_argument("path", type=Path, metavar="PATH", help="the .tgsp or .expert file")
    add_base(parser)
    parser.add_argument("--upgrade", action="store_true", help="replace a lower version of the same expert")
    parser.add_argument(
        "--change-publisher",
        action="store_true",
        help="with --upgrade: also if another publisher made the installed one",
    )
    _judging(parser)
    _registry(parser)
    parser.set_defaults(run=install)


def _list(subparsers: _Commands) -> None:
    parser = subparsers.add_parser(
        "list",
        help="show the installed packages",
        description="Verify every package in the registry and show it. Exit code 0 only if all are verified.",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    _judging(parser)
    _registry(parser)
    parser.set_defaults(run=list_packages)


def _uninstall(subparsers: _Commands) -> None:
    parser = subparsers.add_parser(
        "uninstall",
        help="remove a package from the registry",
        description="Remove an installed package from the registry. The file that it was installed from is kept.",
    )
    parser.add_argument("name", metavar="NAME", help="name, name@version, or file name of the package")
    _registry(parser)
    parser.set_defaults(run=uninstall)


def _judging(parser: argparse.ArgumentParser) -> None:
    add_trust(parser)
    add_identity(parser)


def _registry(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--registry",
        type=Path,
        metavar="FOLDER",
        help="the registry (default: ${SEALED_EXPERTS_HOME:-~/.config/sealed-experts}/registry)",
    )


def install(args: argparse.Namespace) -> int:
    """Install a package; return 0."""
    from sealed_experts.packages.base_modules import read_base

    if args.change_publisher and not args.upgrade:
        raise UsageError("--change-publisher goes with --upgrade: give both")
    base = None if args.base is None else read_base(args.base)
    installed = _open(args).install(args.path, base=base, upgrade=args.upgrade, change_publisher=args.change_publisher)
    publisher = printable(installed.known.publisher_name)
    print(f"installed {printable(str(installed.path))}, signed by {publisher}")
    return 0


def list_packages(args: argparse.Namespace) -> int:
    """Show the installed packages; return 0 if all are verified, otherwise 1."""
    registry = _open(args)
    packages = registry.packages()
    if args.json:
        entries = [_entry(package) for package in packages]
        print(json.dumps({"registry": str(registry.folder), "packages": entries}))
    else:
        for package in packages:
            print(_line(package))
        if not packages:
            print(f"{printable(str(registry.folder))} holds no packages yet (`sealed-experts install PATH`)")
    return 0 if not any(package.refusal for package in packages) else 1


def uninstall(args: argparse.Namespace) -> int:
    """Remove a package; return 0."""
    from sealed_experts.packages.keys.trust import load_trust
    from sealed_experts.packages.registry import Registry, registry_folder

    # Verified with the whole trust store: with fewer publishers, requirements of other packages would be missed.
    registry = Registry(folder=registry_folder(args.registry), trust=load_trust())
    print(f"uninstalled {printable(str(registry.uninstall(args.name)))}")
    return 0


def _open(args: argparse.Namespace) -> "Registry":
    from sealed_experts.packages.installed import users_trust_and
    from sealed_experts.packages.registry import Registry, registry_folder

    trust, policy = trust_of(args)
    return Registry(
        folder=registry_folder(args.registry),
        trust=trust,
        policy=policy,
        identity=identity_of(args.identity),
        installed_trust=users_trust_and(trust),
    )


def _entry(package: "Installed") -> dict[str, object]:
    if package.refusal is not None:
        return {"path": str(package.path), "ok": False, "refusal": package.refusal}
    return {"path": str(package.path), "ok": True, **facts(package.known)}


def _line(package: "Installed") -> str:
    if package.refusal is not None:
        return f"REFUSED  {printable(package.path.name)}: {printable(package.refusal)}"
    manifest, report = package.manifest, package.known
    epsilon = manifest["privacy"]["epsilon"]
    privacy = "no ε claimed" if epsilon is None else f"ε {epsilon:.3g}"
    return (
        f"verified {manifest['name']} {manifest['version']} on {printable(manifest['base']['name'])}, {privacy},"
        f" by {printable(report.publisher_name)} ({printable(package.path.name)})"
    )
