"""What packages say of one another: which they require, and which they do not go together with.

Packages of different bases are never loaded together, so only those of the same base (by its digest) are compared.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from sealed_experts.sealing.content.versions import VersionPattern
from sealed_experts.sealing.errors import IncompatibleError

_Manifest = Mapping[str, Any]


def check_install(manifest: _Manifest, *, installed: Sequence[_Manifest]) -> None:
    """Hold a new package against those that will be beside it.

    Raises:
        IncompatibleError: it requires what is not there, it and another exclude each other, or another requires what
            would no longer be there. The message names both sides.
    """
    for pattern in _patterns(manifest, "requires"):
        _require(manifest, pattern, installed)
    for other in _on_same_base(manifest, installed):
        for one, two in ((manifest, other), (other, manifest)):
            for pattern in _patterns(one, "incompatible_with"):
                if _matches(pattern, two):
                    raise IncompatibleError(
                        f"{_title(manifest)} cannot be installed beside {_title(other)}: {_title(one)} is incompatible"
                        f" with {pattern.text}; uninstall {other['name']} first, or take another version"
                    )
        for pattern in _patterns(other, "requires"):
            if pattern.name == manifest["name"]:
                _require(other, pattern, [*installed, manifest])


def check_uninstall(manifest: _Manifest, *, installed: Sequence[_Manifest]) -> None:
    """Hold the packages that stay against the loss of one.

    Raises:
        IncompatibleError: one of them requires it. The message names both.
    """
    for other in _on_same_base(manifest, installed):
        for pattern in _patterns(other, "requires"):
            if _matches(pattern, manifest) and not any(_fits(pattern, other, each) for each in installed):
                raise IncompatibleError(
                    f"{_title(manifest)} cannot be uninstalled: {_title(other)} requires {pattern.text}; uninstall"
                    f" {other['name']} first"
                )


def _require(manifest: _Manifest, pattern: VersionPattern, installed: Sequence[_Manifest]) -> None:
    if any(_fits(pattern, manifest, each) for each in installed):
        return
    named = [each for each in installed if each["name"] == pattern.name]
    here = [each for each in named if each["base"]["digest"] == manifest["base"]["digest"]]
    if here:
        found = f"{_title(here[0])} is installed"
    elif named:
        found = f"{_title(named[0])} is installed for the base of digest {named[0]['base']['digest']} only"
    else:
        found = f"no {pattern.name} is installed"
    raise IncompatibleError(f"{_title(manifest)} requires {pattern.text}, but {found}: install what it requires first")


def _fits(pattern: VersionPattern, manifest: _Manifest, other: _Manifest) -> bool:
    return _matches(pattern, other) and other["base"]["digest"] == manifest["base"]["digest"]


def _on_same_base(manifest: _Manifest, installed: Sequence[_Manifest]) -> list[_Manifest]:
    return [each for each in installed if each["base"]["digest"] == manifest["base"]["digest"]]


def _matches(pattern: VersionPattern, manifest: _Manifest) -> bool:
    return pattern.matches(manifest["name"], manifest["version"])


def _patterns(manifest: _Manifest, field: str) -> list[VersionPattern]:
    return [VersionPattern.parse(text) for text in manifest["constraints"][field]]


def _title(manifest: _Manifest) -> str:
    return f"{manifest['name']} {manifest['version']}"
