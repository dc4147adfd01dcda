"""A folder of installed packages, each under its long name. `docs/registry.md` describes it.

Nothing but the packages is stored: what they say about themselves is read from them, verified, whenever it is asked.
"""

import os
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sealed_experts.errors import UserError
from sealed_experts.files.atomic import atomic_writer, sync_folder
from sealed_experts.files.digests import sha256_file
from sealed_experts.files.locks import folder_lock
from sealed_experts.sealing import opening
from sealed_experts.sealing.constraints import check_install, check_uninstall
from sealed_experts.sealing.errors import IncompatibleError, PackageError
from sealed_experts.sealing.keys.home import home_folder
from sealed_experts.sealing.keys.policy import Policy
from sealed_experts.sealing.keys.trust import TrustStore
from sealed_experts.sealing.recipients.encryption import EncryptedError, Identity
from sealed_experts.sealing.regular_file import open_regular
from sealed_experts.sealing.tgsp.examination import ANY, PackageReport

SUFFIXES = (".expert", ".tgsp")
_UNUSUAL = re.compile(r"[^A-Za-z0-9._]+")
_LONGEST_BASE = 80
_PIECE = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Installed:
    """A file of the registry: verified, or refused."""

    path: Path
    report: PackageReport | None
    refusal: str | None

    @property
    def verified(self) -> PackageReport:
        """What is known of a verified package."""
        assert self.report is not None, "a refused package says nothing"
        return self.report

    @property
    def manifest(self) -> dict[str, Any]:
        """What a verified package says about itself."""
        return self.verified.manifest


@dataclass(frozen=True, kw_only=True)
class Registry:
    """A registry's folder, and whom it accepts packages from.

    Attributes:
        folder: where the packages are; it may not exist yet.
        trust: the publishers whose packages may be installed.
        policy: what is required beyond that.
        identity: the private key of a recipient, for encrypted packages.
    """

    folder: Path
    trust: TrustStore
    policy: Policy = ANY
    identity: Identity | None = None

    def packages(self) -> list[Installed]:
        """Verify every package of the registry and return them, by file name.

        Raises:
            UserError: the folder cannot be read.
        """
        try:
            names = sorted(name for name in os.listdir(self.folder) if _is_package(name))
        except FileNotFoundError:
            return []
        except OSError as error:
            raise UserError(f"cannot read the registry {self.folder}: {error.strerror}") from error
        return [self._installed(self.folder / name) for name in names]

    def install(self, path: Path, *, base_digest: str | None = None, upgrade: bool = False) -> Installed:
        """Verify a package, hold its constraints against what is installed, and put it there, all at once.

        Args:
            path: the package.
            base_digest: digest of the base that it is to be used with, where that is known.
            upgrade: whether it replaces another version of the same expert on the same base.

        Raises:
            UserError: a file cannot be read or written, or this version is installed with other content.
            PackageError: the package does not verify.
            IncompatibleError: its base is another, or its constraints or an installed package's do not hold. The
                message names both sides.
        """
        with folder_lock(self.folder):
            draft = self.folder / f".{secrets.token_hex(8)}.draft"
            try:
                _copy(path, draft)
                try:
                    # The copy, because nobody else changes that: what is installed is what was verified.
                    report = self._verified(draft)
                except (PackageError, EncryptedError) as error:
                    raise type(error)(str(error).replace(f"{draft}", f"{path}", 1)) from error
                _check_base(path, report.manifest, base_digest)
                target = self.folder / f"{long_name(report.manifest)}.{opening.container_of(draft)}"
                self._place(draft, target, report, upgrade=upgrade)
            finally:
                draft.unlink(missing_ok=True)
        return Installed(path=target, report=report, refusal=None)

    def uninstall(self, name: str) -> Path:
        """Remove a package, by its name, `name@version` or its file's name, and return its path.

        Raises:
            UserError: nothing, or more than one package, is meant.
            IncompatibleError: another installed package requires it.
        """
        with folder_lock(self.folder):
            packages = self.packages()
            meant = [package for package in packages if name in _names(package)]
            if len(meant) != 1:
                raise UserError(_not_one(name, [package.path.name for package in meant or packages], found=bool(meant)))
            if meant[0].report is not None:
                rest = [package.manifest for package in packages if package.report and package is not meant[0]]
                check_uninstall(meant[0].manifest, installed=rest)
            meant[0].path.unlink()
            sync_folder(self.folder)
        return meant[0].path

    def _place(self, draft: Path, target: Path, report: PackageReport, *, upgrade: bool) -> None:
        """Check a verified draft against what is installed, and give it its name."""
        installed = [package for package in self.packages() if package.report is not None]
        same = [package for package in installed if _is_same_expert(package.manifest, report.manifest)]
        if any(package.path == target for package in same) or target.exists():
            _refuse_other_content(target, report)
            return
        if same and not upgrade:
            raise IncompatibleError(
                f"{_title(report.manifest)} cannot be installed beside {_title(same[0].manifest)} on the same base:"
                " give --upgrade to replace that, or uninstall it first"
            )
        check_install(report.manifest, installed=[each.manifest for each in installed if each not in same])
        os.replace(draft, target)
        for package in same:
            package.path.unlink()
        sync_folder(self.folder)

    def _installed(self, path: Path) -> Installed:
        try:
            return Installed(path=path, report=self._verified(path), refusal=None)
        except UserError as error:  # what it is refused for, an encrypted or unreadable one too
            return Installed(path=path, report=None, refusal=str(error))

    def _verified(self, path: Path) -> PackageReport:
        return opening.verify_any(path, trust=self.trust, policy=self.policy, identity=self.identity)


def registry_folder(chosen: Path | None = None) -> Path:
    """Return the registry's folder: `chosen`, or ${SEALED_EXPERTS_HOME}/registry."""
    return home_folder() / "registry" if chosen is None else chosen


def long_name(manifest: dict[str, Any]) -> str:
    """Return the name that a package has where many lie side by side: `{name}-{base}.v{version}`."""
    base = _UNUSUAL.sub("-", manifest["base"]["name"])[-_LONGEST_BASE:].strip("-.") or "base"
    return f"{manifest['name']}-{base}.v{manifest['version']}"


def _is_package(name: str) -> bool:
    return name.endswith(SUFFIXES) and not name.startswith(".")


def _copy(source: Path, target: Path) -> None:
    opening.container_of(source)  # so that nothing else is copied
    try:
        with open_regular(source) as (stream, status), atomic_writer(target) as copy:
            left = status.st_size
            if left > opening.LARGEST:
                raise PackageError(f"{source}: {left} bytes; a package has at most {opening.LARGEST}")
            while left and (piece := stream.read(min(left, _PIECE))):
                copy.write(piece)
                left -= len(piece)
    except OSError as error:
        raise UserError(f"cannot copy {source} to {target.parent}: {error.strerror}") from error


def _check_base(path: Path, manifest: dict[str, Any], digest: str | None) -> None:
    stated = manifest["base"]["digest"]
    if digest is not None and digest != stated:
        raise IncompatibleError(
            f"{path}: {_title(manifest)} belongs to the base {manifest['base']['name'][:100]!a} of digest {stated};"
            f" the given base has {digest}: take the package that was made for it"
        )


def _refuse_other_content(target: Path, report: PackageReport) -> None:
    found = sha256_file(target)
    if found != report.digest:
        raise UserError(
            f"{target} is installed with other content (SHA-256 {found}; this one has {report.digest}): a version never"
            " changes, so raise the version, or uninstall that one first"
        )


def _is_same_expert(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one["name"] == other["name"] and one["base"]["digest"] == other["base"]["digest"]


def _names(package: Installed) -> set[str]:
    names = {package.path.name, package.path.stem}
    if package.report is not None:
        names |= {package.manifest["name"], f"{package.manifest['name']}@{package.manifest['version']}"}
    return names


def _not_one(name: str, files: Iterable[str], *, found: bool) -> str:
    listed = ", ".join(files) or "nothing"
    if found:
        return f"{name} means several packages: name one of the files {listed}"
    return f"no installed package is called {name!r}; installed are: {listed}"


def _title(manifest: dict[str, Any]) -> str:
    return f"{manifest['name']} {manifest['version']}"
