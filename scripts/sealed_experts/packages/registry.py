"""The registry: a folder of installed packages. `docs/registry.md` describes it.

It stores only the packages, each with its long name as the file name. Every query verifies them again.
"""

import os
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sealed_experts.errors import UserError
from sealed_experts.files.atomic import atomic_writer, sync_folder
from sealed_experts.files.home import home_folder
from sealed_experts.files.locks import folder_lock
from sealed_experts.files.new_file import digest_at, discard, place
from sealed_experts.files.regular_file import open_regular
from sealed_experts.packages import opening
from sealed_experts.packages.base_modules import BaseModules, check_base, check_fits
from sealed_experts.packages.constraints import check_install, check_uninstall, title
from sealed_experts.packages.content.manifest import long_name
from sealed_experts.packages.content.versions import Version
from sealed_experts.packages.errors import EncryptedError, IncompatibleError, PackageError
from sealed_experts.packages.installed import Installed, read_installed, refuse_unknown, signed_by_its_own_key
from sealed_experts.packages.keys.policy import ANY_SIGNATURE, DEFAULT, Policy
from sealed_experts.packages.keys.trust import TrustStore
from sealed_experts.packages.recipients.encryption import Identity
from sealed_experts.packages.report import PackageReport
from sealed_experts.text import printable

SUFFIXES = (".expert", ".tgsp")
_PIECE = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Registry:
    """A registry's folder, and the publishers whose packages it accepts.

    Attributes:
        folder: folder of the packages; it may not exist yet.
        trust: the publishers whose packages may be installed.
        policy: what is required of a package besides a trusted publisher.
        identity: a recipient's private key, for encrypted packages.
        installed_trust: publishers accepted for packages that are already installed; defaults to `trust`.
    """

    folder: Path
    trust: TrustStore
    policy: Policy = DEFAULT
    identity: Identity | None = None
    installed_trust: TrustStore | None = None

    def packages(self) -> list[Installed]:
        """Verify every package of the registry and return them, sorted by file name.

        Raises:
            UserError: the folder cannot be read.
        """
        return [read_installed(path, verify=self._verified) for path in self._paths()]

    def install(
        self,
        path: Path,
        *,
        base: BaseModules | None = None,
        upgrade: bool = False,
        change_publisher: bool = False,
    ) -> Installed:
        """Verify a package, check its constraints, and install it in one step.

        Args:
            path: the package.
            base: the base that it will be used with, if known.
            upgrade: whether it may replace a lower version of the same expert on the same base.
            change_publisher: whether it may replace a version of another publisher.

        Raises:
            UserError: a file cannot be read or written, this version is installed with other content, or a file in the
                registry has unknown constraints.
            PackageError: the package does not verify.
            IncompatibleError: it was made for another base, or its constraints or those of an installed package are
                not met. The message names both packages.
        """
        # Check the signature first: do not copy a file that no trusted publisher signed.
        report = opening.verify_manifest(path, trust=self.trust, policy=self.policy)
        check_base(report, base, where=path)
        with folder_lock(self.folder):
            draft = self.folder / f".{secrets.token_hex(8)}.draft"
            try:
                copy_package(path, draft)
                try:
                    # Verify the copy: nobody else changes it, so exactly the verified bytes get installed.
                    report = self._verified(draft)
                except (PackageError, EncryptedError) as error:
                    raise type(error)(str(error).replace(f"{draft}", f"{path}", 1)) from error
                check_fits(report, base, where=path)
                target = self.folder / f"{long_name(report.manifest)}.{opening.container_of(draft)}"
                self._place(draft, target, report, upgrade=upgrade, change_publisher=change_publisher)
            finally:
                discard(draft)
        return Installed(path=target, report=report, refusal=None)

    def uninstall(self, name: str) -> Path:
        """Remove a package by its name, `name@version` or file name, and return the path that it had.

        Raises:
            UserError: no package, or more than one, has this name; it cannot be removed; or another file in the
                registry has unknown constraints.
            IncompatibleError: another installed package requires it.
        """
        with folder_lock(self.folder):
            installed = self._installed()
            meant = [each for each in installed if name in each.names]
            if len(meant) != 1:
                raise UserError(_not_one(name, [each.path.name for each in meant or installed], found=bool(meant)))
            gone = meant[0]
            rest = [each for each in installed if each is not gone]
            if gone.report is not None:
                refuse_unknown(rest, doing="uninstalled")
                check_uninstall(gone.manifest, installed=_usable(rest), refused=_refused(rest))
            try:
                gone.path.unlink()
            except OSError as error:
                raise UserError(f"cannot remove {gone.path} ({error.strerror}): remove it yourself") from error
            sync_folder(self.folder)
        return gone.path

    def _place(
        self, draft: Path, target: Path, report: PackageReport, *, upgrade: bool, change_publisher: bool
    ) -> None:
        """Check a verified draft against the installed packages, then give it its final name."""
        if os.path.lexists(target):
            _refuse_other_content(target, report)
            return
        installed = self._installed()
        refuse_unknown(installed, doing="installed")
        same = [each for each in installed if _is_same_expert(each.manifest, report.manifest)]
        for former in same:
            self._check_upgrade(former, report, upgrade=upgrade, change_publisher=change_publisher)
        rest = [each for each in installed if each not in same]
        check_install(report.manifest, installed=_usable(rest), refused=_refused(rest))
        if not place(draft, target):
            raise UserError(
                f"{target} appeared while the package was installed: find out which program made it, and run again"
            )
        for former in same:
            former.path.unlink()
        sync_folder(self.folder)

    def _check_upgrade(
        self, former: Installed, report: PackageReport, *, upgrade: bool, change_publisher: bool
    ) -> None:
        """Check that a package may replace an installed one of the same expert."""
        new, old = title(report.manifest), title(former.manifest)
        version, installed = (Version.parse(each["version"]) for each in (report.manifest, former.manifest))
        if version == installed:
            raise UserError(
                f"{old} is installed as {former.path.name}, and {new} is another file with the same version: a version"
                " never changes, so raise the version, or uninstall the installed one first"
            )
        if not upgrade:
            raise IncompatibleError(
                f"{new} cannot be installed together with {old} on the same base: give --upgrade to replace it, or"
                " uninstall it first"
            )
        if version < installed:
            raise IncompatibleError(
                f"{new} does not replace {old}, which is higher: if this is intended, uninstall the higher one first"
            )
        publisher = self.trust.find(report.publisher)
        known = {report.publisher, *(publisher.ancestors if publisher else ())}
        if former.known.publisher not in known and not change_publisher:
            raise IncompatibleError(
                f"{new} is signed by {report.publisher_name} ({report.publisher}), but {old} by the key"
                f" {former.known.publisher}: give --change-publisher if another publisher may replace it"
            )

    def _paths(self) -> list[Path]:
        try:
            return [self.folder / name for name in sorted(os.listdir(self.folder)) if _is_package(name)]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise UserError(f"cannot read the registry {self.folder}: {error.strerror}") from error

    def _installed(self) -> list[Installed]:
        """Read only the manifests: content may be encrypted for others. One signature of the publisher is enough."""
        trust = self.installed_trust or self.trust
        return [
            read_installed(path, verify=lambda each: opening.verify_manifest(each, trust=trust, policy=ANY_SIGNATURE))
            for path in self._paths()
        ]

    def _verified(self, path: Path) -> PackageReport:
        return opening.verify_any(path, trust=self.trust, policy=self.policy, identity=self.identity)


def registry_folder(chosen: Path | None = None) -> Path:
    """Return the registry's folder: `chosen`, or ${SEALED_EXPERTS_HOME}/registry."""
    return home_folder() / "registry" if chosen is None else chosen


def _is_package(name: str) -> bool:
    return name.endswith(SUFFIXES) and not name.startswith(".")


def _usable(installed: Iterable[Installed]) -> list[dict[str, Any]]:
    return [each.manifest for each in installed if each.refusal is None]


def _refused(installed: Iterable[Installed]) -> list[dict[str, Any]]:
    return [each.manifest for each in installed if each.refusal is not None and each.report is not None]


def copy_package(source: Path, target: Path) -> None:
    """Copy a package, atomically.

    Raises:
        UserError: it cannot be read or written.
        PackageError: it is larger than any package.
    """
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


def _refuse_other_content(target: Path, report: PackageReport) -> None:
    """Refuse if another content has the package's file name.

    Two experts can have the same long name: it joins the names of expert and base by a hyphen, which both may contain,
    and it shortens the base's name.
    """
    found = digest_at(target)
    if found == report.digest:
        return
    there = signed_by_its_own_key(target)
    if there is not None and not _is_same_expert(there.manifest, report.manifest):
        base = there.manifest["base"]
        raise IncompatibleError(
            f"{target.name} is also the long name of {title(there.manifest)} on the base {base['name'][:100]!a} of"
            f" digest {base['digest']}, which is installed: uninstall that package first, or use another --registry"
        )
    raise UserError(
        f"{target} is installed with other content (SHA-256 {found}; this one has {report.digest}): a version"
        " never changes, so raise the version, or uninstall the installed one first"
    )


def _is_same_expert(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one["name"] == other["name"] and one["base"]["digest"] == other["base"]["digest"]


def _not_one(name: str, files: Iterable[str], *, found: bool) -> str:
    listed = ", ".join(printable(file) for file in files) or "nothing"
    if found:
        return f"{printable(name)} means several packages: name one of the files {listed}"
    return f"no installed package is called {name!r}; installed are: {listed}"
