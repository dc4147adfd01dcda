"""Versions by Semantic Versioning 2.0.0 (semver.org), and the patterns by which a package names others.

A pattern is `name@` and one or more conditions, joined by commas. All of them must be true:

- `name@*`: any version.
- `name@1.2.3`: that version.
- `name@>=1.0.0`, `name@>1.0.0`, `name@<=1.0.0`, `name@<1.0.0`: by semver's precedence, so 2.0.0-rc.1 is above 1.9.0
  and below 2.0.0.
- `name@^1.2`: at least 1.2.0, and below 2.0.0 and its pre-releases: the compatible versions. The first number that is
  not 0 must stay the same: `^0.2` ends below 0.3.0, `^0.0.3` below 0.0.4.
"""

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sealed_experts.packages.errors import PackageError
from sealed_experts.packages.settings import VERSION_PATTERN
from sealed_experts.settings.texts import VERSION

LONGEST = 200  # characters of a version, and of a pattern


@functools.total_ordering
@dataclass(frozen=True)
class Version:
    """A version, ordered by semver's precedence, which ignores the build metadata."""

    major: int
    minor: int
    patch: int
    pre_release: tuple[str, ...] = ()
    build: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> "Version":
        """Read a version.

        Raises:
            PackageError: the text is not a version.
        """
        match = re.fullmatch(VERSION, text) if len(text) <= LONGEST else None
        if match is None:
            raise PackageError(f"{text[:LONGEST]!a} is not a version: write it as 1.0.0, or 1.0.0-rc.1 (semver.org)")
        major, minor, patch, pre_release, build = match.groups()
        return cls(int(major), int(minor), int(patch), _identifiers(pre_release), _identifiers(build))

    def __str__(self) -> str:
        text = f"{self.major}.{self.minor}.{self.patch}"
        text += f"-{'.'.join(self.pre_release)}" if self.pre_release else ""
        return text + (f"+{'.'.join(self.build)}" if self.build else "")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Version) and self._precedence == other._precedence

    def __hash__(self) -> int:
        return hash(self._precedence)

    def __lt__(self, other: "Version") -> bool:
        return self._precedence < other._precedence

    @property
    def _precedence(self) -> tuple[Any, ...]:
        """Semver, section 11: a pre-release is below its version; numbers are below words, and compare as numbers."""
        parts = tuple((0, int(part), "") if part.isdigit() else (1, 0, part) for part in self.pre_release)
        return (self.major, self.minor, self.patch, not self.pre_release, parts)


@dataclass(frozen=True)
class VersionPattern:
    """A pattern that matches versions of another package."""

    name: str
    text: str
    _conditions: tuple[Callable[[Version], bool], ...]

    @classmethod
    def parse(cls, text: str) -> "VersionPattern":
        """Read a pattern such as `name@>=1.0.0`.

        Raises:
            PackageError: the text is not a pattern.
        """
        if len(text) > LONGEST or not re.fullmatch(VERSION_PATTERN, text):
            raise PackageError(
                f"{text[:LONGEST]!a} is not a version pattern: write name@*, name@1.2.3, name@>=1.0.0 or name@^1.2"
            )
        name, _, conditions = text.partition("@")
        return cls(name, text, tuple(_condition(condition) for condition in conditions.split(",")))

    def matches(self, name: str, version: str) -> bool:
        """Say whether the pattern matches this version of this package.

        Raises:
            PackageError: `version` is not a version.
        """
        found = Version.parse(version)
        return name == self.name and all(holds(found) for holds in self._conditions)


def _identifiers(text: str | None) -> tuple[str, ...]:
    return tuple(text.split(".")) if text else ()


def _condition(text: str) -> Callable[[Version], bool]:
    if text == "*":
        return lambda version: True
    if text.startswith("^"):
        return _compatible(text[1:])
    operator = text[: len(text) - len(text.lstrip("<>="))]
    bound = Version.parse(text[len(operator) :])
    return {
        "": lambda version: version == bound,
        ">=": lambda version: version >= bound,
        ">": lambda version: version > bound,
        "<=": lambda version: version <= bound,
        "<": lambda version: version < bound,
    }[operator]


def _compatible(text: str) -> Callable[[Version], bool]:
    core, _, pre_release = text.partition("-")
    given = [int(number) for number in core.split(".")]
    major, minor, patch = [*given, 0, 0][:3]
    low = Version(major, minor, patch, _identifiers(pre_release))
    # The first number that is not 0 stays the same; if all are 0, the last given one does.
    place = next((place for place, number in enumerate(given) if number), len(given) - 1)
    above = [*given[:place], given[place] + 1, 0, 0][:3]
    end = Version(above[0], above[1], above[2], ("0",))  # the lowest pre-release of the next version
    return lambda version: low <= version < end
