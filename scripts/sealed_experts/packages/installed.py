"""The packages in a registry's folder, and whether they can be used."""

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

    A refused package cannot be used, so it provides nothing that others require. Its own constraints still hold: its
    file is there, and another command, or another day, may trust its publisher.

    Attributes:
        report: the facts in its manifest; None if no publisher signed the manifest.
        refusal: why it cannot be used; None if it can.
    """

    path: Path
    report: PackageReport | None
    refusal: str | None

    @property
    def known(self) -> PackageReport:
        """The report. Do not ask for it if there is none."""
        assert self.report is not None, "there is no report on this file"
        return self.report

    @property
    def manifest(self) -> dict[str, Any]:
        """What the package says about itself."""
        return self.known.manifest

    @property
    def names(self) -> set[str]:
        """All names by which a user may refer to it."""
        names = {self.path.name, self.path.stem}
        if self.report is not None:
            names |= {self.manifest["name"], f"{self.manifest['name']}@{self.manifest['version']}"}
        return names


def read_installed(path: Path, *, verify: Callable[[Path], PackageReport]) -> Installed:
    """Verify a file in a registry. This never raises: an error becomes the refusal."""
    report = None
    try:
        if path.is_symlink():  # its target can change unnoticed
            raise PackageError(f"{path}: it is a symbolic link; a registry holds plain files only: remove it")
        report = verify(path)
        _check_name(path, report.manifest)
    except SignatureError as error:
        return Installed(path=path, report=signed_by_its_own_key(path), refusal=str(error))
    except UserError as error:  # also if the file is encrypted or unreadable
        return Installed(path=path, report=report, refusal=str(error))
    return Installed(path=path, report=report, refusal=None)


def signed_by_its_own_key(path: Path) -> PackageReport | None:
    """Return the report on a package that its own key signed, trusted or not; None if the file was altered."""
    try:
        return opening.verify_manifest(path, trust=opening.own_publisher(path), policy=ANY_SIGNATURE)
    except UserError:
        return None


def users_trust_and(trust: TrustStore) -> TrustStore:
    """Return the user's trust store, with the publishers in `trust` whose keys it does not have.

    Raises:
        UserError: the user's trust store cannot be read.
    """
    known = list(load_trust())
    keys = {key for publisher in known for key in publisher.keys}
    return TrustStore([*known, *(publisher for publisher in trust if keys.isdisjoint(publisher.keys))])


def refuse_unknown(installed: Sequence[Installed], *, doing: str) -> None:
    """Refuse a change while the registry contains a file with unknown constraints.

    Raises:
        UserError: there is such a file. The message names it and says what to do.
    """
    unknown = next((each for each in installed if each.report is None), None)
    if unknown is not None:
        raise UserError(
            f"nothing is {doing} while {unknown.path.name} is in the registry: it is unknown what this file requires"
            f" or excludes ({unknown.refusal}); run `sealed-experts uninstall {unknown.path.name}`, or put the right"
            " file back"
        )


def _check_name(path: Path, manifest: dict[str, Any]) -> None:
    """Compare a file's name with its package: lists show the file's name, so it must not mislead."""
    expected = f"{long_name(manifest)}.{opening.container_of(path)}"
    if path.name != expected:
        raise PackageError(f"{path}: it holds {expected}: somebody renamed it; uninstall it, and install the package")
