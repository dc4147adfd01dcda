"""Constraints between packages: which others a package requires, and which it excludes.

Only packages for the same base (by its digest) are compared. Others are never loaded together.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from sealed_experts.packages.content.versions import VersionPattern
from sealed_experts.packages.errors import IncompatibleError

_Manifest = Mapping[str, Any]


def check_install(manifest: _Manifest, *, installed: Sequence[_Manifest], refused: Sequence[_Manifest] = ()) -> None:
    """Check a new package's constraints and those of the packages that are installed.

    Args:
        installed: packages that can be used.
        refused: installed packages that cannot be used. They provide nothing, but their own constraints still hold.

    Raises:
        IncompatibleError: the new package requires a missing one, one package excludes the other, or an installed
            package requires a version that the new one replaces. The message names both packages.
    """
    for pattern in _patterns(manifest, "requires"):
        _require(manifest, pattern, installed, refused)
    for other in _on_same_base(manifest, [*installed, *refused]):
        found = _exclusion(manifest, other)
        if found is not None:
            raise IncompatibleError(
                f"{title(manifest)} cannot be installed together with {title(other)}: {found}; uninstall"
                f" {other['name']} first, or use another version"
            )
        for pattern in _patterns(other, "requires"):
            if pattern.name == manifest["name"]:
                _require(other, pattern, [*installed, manifest], refused)


def check_uninstall(manifest: _Manifest, *, installed: Sequence[_Manifest], refused: Sequence[_Manifest] = ()) -> None:
    """Check that no other package requires the one to remove. Arguments as for `check_install`.

    Raises:
        IncompatibleError: a package requires it. The message names both.
    """
    for other in _on_same_base(manifest, [*installed, *refused]):
        for pattern in _patterns(other, "requires"):
            if _matches(pattern, manifest) and not any(_fits(pattern, other, each) for each in installed):
                raise IncompatibleError(
                    f"{title(manifest)} cannot be uninstalled: {title(other)} requires {pattern.text}; uninstall"
                    f" {other['name']} first"
                )


def check_together(manifests: Sequence[_Manifest], *, active: int) -> None:
    """Check the constraints of packages of one base that are loaded together.

    Args:
        active: the largest number of adapters that can be active at the same time.

    Raises:
        IncompatibleError: a package requires one that is missing, two exclude each other, or one allows fewer active
            adapters. The message names the packages.
    """
    for index, manifest in enumerate(manifests):
        for pattern in _patterns(manifest, "requires"):
            if not any(_fits(pattern, manifest, each) for each in manifests):
                raise IncompatibleError(
                    f"{title(manifest)} requires {pattern.text}, which is not in this mixture: add it, or leave"
                    f" {manifest['name']} out"
                )
        for other in manifests[index + 1 :]:
            found = _exclusion(manifest, other)
            if found is not None:
                raise IncompatibleError(
                    f"{title(manifest)} cannot be loaded together with {title(other)}: {found}; leave one of them out,"
                    " or use another version"
                )
        most = manifest["constraints"]["max_chain"]
        if most is not None and active > most:
            raise IncompatibleError(
                f"{title(manifest)} allows at most {most} active adapters (constraints.max_chain), but {active} of"
                " these can be active together (all always-active ones and one called by keywords): leave it out, or"
                " make fewer always active"
            )


def title(manifest: _Manifest) -> str:
    """Return a package's name and version, for messages."""
    return f"{manifest['name']} {manifest['version']}"


def _exclusion(manifest: _Manifest, other: _Manifest) -> str | None:
    """Return in words which of two packages excludes the other, and by which pattern; None if neither does."""
    for one, two in ((manifest, other), (other, manifest)):
        for pattern in _patterns(one, "incompatible_with"):
            if _matches(pattern, two):
                return f"{title(one)} is incompatible with {pattern.text}"
    return None


def _require(
    manifest: _Manifest, pattern: VersionPattern, installed: Sequence[_Manifest], refused: Sequence[_Manifest]
) -> None:
    if any(_fits(pattern, manifest, each) for each in installed):
        return
    named = [each for each in installed if each["name"] == pattern.name]
    here = [each for each in named if each["base"]["digest"] == manifest["base"]["digest"]]
    unusable = [each for each in refused if _fits(pattern, manifest, each)]
    if here:
        found = f"{title(here[0])} is installed"
    elif unusable:
        found = f"{title(unusable[0])} is refused here (`sealed-experts list` says why)"
    elif named:
        found = f"{title(named[0])} is installed for the base of digest {named[0]['base']['digest']} only"
    else:
        found = f"no {pattern.name} is installed"
    raise IncompatibleError(f"{title(manifest)} requires {pattern.text}, but {found}: install what it requires first")


def _fits(pattern: VersionPattern, manifest: _Manifest, other: _Manifest) -> bool:
    return _matches(pattern, other) and other["base"]["digest"] == manifest["base"]["digest"]


def _on_same_base(manifest: _Manifest, installed: Sequence[_Manifest]) -> list[_Manifest]:
    return [each for each in installed if each["base"]["digest"] == manifest["base"]["digest"]]


def _matches(pattern: VersionPattern, manifest: _Manifest) -> bool:
    return pattern.matches(manifest["name"], manifest["version"])


def _patterns(manifest: _Manifest, field: str) -> list[VersionPattern]:
    return [VersionPattern.parse(text) for text in manifest["constraints"][field]]
