"""The name that a package has where many lie side by side."""

import re
from collections.abc import Mapping
from typing import Any

from sealed_experts.packages.errors import PackageError

LONGEST = 200  # characters, all of them ASCII: with a suffix, or as a hidden draft, it is a file name everywhere
_UNUSUAL = re.compile(r"[^A-Za-z0-9._]+")
_LONGEST_BASE = 80


def long_name(manifest: Mapping[str, Any]) -> str:
    """Return `{name}-{base}.v{version}`, in which the base's name is made one that a file can have."""
    base = _UNUSUAL.sub("-", manifest["base"]["name"])[-_LONGEST_BASE:].strip("-.") or "base"
    return f"{manifest['name']}-{base}.v{manifest['version']}"


def check_long_name(manifest: Mapping[str, Any]) -> None:
    """Refuse a package whose long name could not be a file's.

    Raises:
        PackageError: it is too long.
    """
    found = long_name(manifest)
    if len(found) > LONGEST:
        raise PackageError(
            f"manifest: version: the long name {found[:40]}… ({{name}}-{{base}}.v{{version}}) has {len(found)} letters;"
            f" at most {LONGEST} are allowed: take a shorter version, or a shorter name"
        )
