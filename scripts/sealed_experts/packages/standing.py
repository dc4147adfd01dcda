"""What lies in a registry, judged for what it says of others: by the manifest that its publisher signed.

A package that is refused cannot be used, and so gives others nothing that they require. What it says about others still
holds: whom to trust may be narrower for one command, or other today, and its file is there.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sealed_experts.errors import UserError
from sealed_experts.packages import opening
from sealed_experts.packages.content.long_name import long_name
from sealed_experts.packages.errors import PackageError, SignatureError
from sealed_experts.packages.keys.policy import ANY_SIGNATURE
from sealed_experts.packages.keys.trust import TrustStore, load_trust
from sealed_experts.packages.report import PackageReport


@dataclass(frozen=True, kw_only=True)
class Standing:
    """A file of a registry.

    Attributes:
        report: what its manifest says, or None where no signature vouches for that.
        refusal: why it cannot be used, or None.
    """

    path: Path
    report: PackageReport | None
    refusal: str | None

    @property
    def manifest(self) -> dict[str, Any]:
        """What it says about itself."""
        assert self.report is not None, "nothing is known of it"
        return self.report.manifest


def with_known(trust: TrustStore) -> TrustStore:
    """Return the user's trust store, and of `trust` those publishers whose keys it does not have.

    Raises:
        UserError: as `load_trust`.
    """
    known = list(load_trust())
    keys = {key for publisher in known for key in publisher.keys}
    return TrustStore([*known, *(publisher for publisher in trust if keys.isdisjoint(publisher.keys))])


def judged(path: Path, *, trust: TrustStore) -> Standing:
    """Judge a file by its signatures and manifest. Of its content nothing is read: it may be encrypted for others."""
    try:
        check_plain(path)
        report = _signed_manifest(path, trust)
    except SignatureError as error:
        return Standing(path=path, report=signed_by_its_own_key(path), refusal=str(error))
    except UserError as error:
        return Standing(path=path, report=None, refusal=str(error))
    try:
        check_name(path, report.manifest)
    except PackageError as error:
        return Standing(path=path, report=report, refusal=str(error))
    return Standing(path=path, report=report, refusal=None)


def check_plain(path: Path) -> None:
    """Refuse a link: what it shows can change without the registry.

    Raises:
        PackageError: the path is a symbolic link.
    """
    if path.is_symlink():
        raise PackageError(f"{path}: it is a symbolic link; a registry holds plain files only: remove it")


def check_name(path: Path, manifest: dict[str, Any]) -> None:
    """Hold a file's name against the package: its long name stands for name, base and version wherever it is listed.

    Raises:
        PackageError: the file is called something else.
    """
    expected = f"{long_name(manifest)}.{opening.container_of(path)}"
    if path.name != expected:
        raise PackageError(f"{path}: it holds {expected}: somebody renamed it; uninstall it, and install the package")


def refuse_unjudged(standing: Sequence[Standing], *, doing: str) -> None:
    """Refuse a change beside a file of which nobody knows what it requires or excludes.

    Raises:
        UserError: there is one. The message names it and says what to do.
    """
    unknown = next((each for each in standing if each.report is None), None)
    if unknown is not None:
        raise UserError(
            f"nothing is {doing} while {unknown.path.name} lies in the registry, of which nobody can tell what it"
            f" requires or excludes ({unknown.refusal}): `sealed-experts uninstall` that, or put the sound file back"
        )


def signed_by_its_own_key(path: Path) -> PackageReport | None:
    """Return what a package says whose publisher may not be trusted; None unless it is whole by the key it carries."""
    try:
        return _signed_manifest(path, opening.own_publisher(path))
    except UserError:
        return None


def _signed_manifest(path: Path, trust: TrustStore) -> PackageReport:
    return opening.verify_manifest(path, trust=trust, policy=ANY_SIGNATURE)
