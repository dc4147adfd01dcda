"""The packages in a registry's folder: what each of them is, and whether it can be used."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sealed_experts.errors import UserError
from sealed_experts.packages import opening
from sealed_experts.packages.content.manifest import long_name
from sealed_experts.packages.errors import PackageError, SignatureError
from sealed_experts.packages.keys.policy import ANY_SIGNATURE
from sealed_experts.packages.keys.trust import TrustStore, load_trust
from sealed_experts.packages.report import PackageReport


@dataclass(frozen=True, kw_only=True)
class Installed:
    """A package in a registry.

    A refused package cannot be used, so it provides nothing that others require. What it requires and excludes still
    holds: its file is there, and another command, or another day, may trust its publisher.

    Attributes:
        report: what its manifest says; None if the manifest is not signed by its publisher.
        refusal: why it cannot be used; None if it can.
    """

    path: Path
    report: PackageReport | None
    refusal: str | None

    @property
    def known(self) -> PackageReport:
        """The report, where there is one."""
        assert self.report is not None, "nothing is known of this file"
        return self.report

    @property
    def manifest(self) -> dict[str, Any]:
        """What the package says about itself."""
        return self.known.manifest

    @property
    def names(self) -> set[str]:
        """Everything that a user may call it."""
        names = {self.path.name, self.path.stem}
        if self.report is not None:
            names |= {self.manifest["name"], f"{self.manifest['name']}@{self.manifest['version']}"}
        return names


def read_installed(path: Path, *, verify: Callable[[Path], PackageReport]) -> Installed:
    """Verify a file of a registry. It never raises: what is wrong is the refusal."""
    report = None
    try:
        if path.is_symlink():  # its target can change without the registry
            raise PackageError(f"{path}: it is a symbolic link; a registry holds plain files only: remove it")
        report = verify(path)
        _check_name(path, report.manifest)
    except SignatureError as error:
        return Installed(path=path, report=signed_by_its_own_key(path), refusal=str(error))
    except UserError as error:  # also of an encrypted or unreadable file
        return Installed(path=path, report=report, refusal=str(error))
    return Installed(path=path, report=report, refusal=None)


def signed_by_its_own_key(path: Path) -> PackageReport | None:
    """Return what a package says that its own key signed, trusted or not; None for a file that was altered."""
    try:
        return opening.verify_manifest(path, trust=opening.own_publisher(path), policy=ANY_SIGNATURE)
    except UserError:
        return None


def users_trust_and(trust: TrustStore) -> TrustStore:
    """Return the user's trust store, and from `trust` the publishers whose keys it does not have.

    Raises:
        UserError: as `load_trust`.
    """
    known = list(load_trust())
    keys = {key for publisher in known for key in publisher.keys}
    return TrustStore([*known, *(publisher for publisher in trust if keys.isdisjoint(publisher.keys))])


def refuse_unknown(installed: Sequence[Installed], *, doing: str) -> None:
    """Refuse a change while the registry holds a file whose requirements and exclusions are unknown.

    Raises:
        UserError: there is one. The message names it and says what to do.
    """
    unknown = next((each for each in installed if each.report is None), None)
    if unknown is not None:
        raise UserError(
            f"nothing is {doing} while {unknown.path.name} is in the registry: it is unknown what this file requires"
            f" or excludes ({unknown.refusal}); run `sealed-experts uninstall {unknown.path.name}`, or put the right"
            " file back"
        )


def _check_name(path: Path, manifest: dict[str, Any]) -> None:
    """Compare a file's name with its package: lists show the name, which states name, base and version."""
    expected = f"{long_name(manifest)}.{opening.container_of(path)}"
    if path.name != expected:
        raise PackageError(f"{path}: it holds {expected}: somebody renamed it; uninstall it, and install the package")
