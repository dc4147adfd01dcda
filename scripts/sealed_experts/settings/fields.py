"""How a setting is declared: its default, its meaning and its bounds in one place.

The JSON Schema, the README's table and the checks are all generated from these declarations.
"""

import dataclasses
import functools
import typing
from typing import Any

COMMIT = r"^[0-9a-f]{40}$"  # of a hub repository: a branch or tag may move, a commit does not
KNOWN_ENDING = r"\.([jJ][sS][oO][nN][lL]|[cC][sS][vV]|[pP][aA][rR][qQ][uU][eE][tT])$"
# Semantic Versioning 2.0.0, the regular expression of semver.org.
_NUMBER, _IDENTIFIER = r"(0|[1-9][0-9]*)", r"(?:0|[1-9][0-9]*|[0-9]*[A-Za-z-][0-9A-Za-z-]*)"
_PRE_RELEASE = rf"(?:-({_IDENTIFIER}(?:\.{_IDENTIFIER})*))?"
_VERSION = rf"{_NUMBER}\.{_NUMBER}\.{_NUMBER}{_PRE_RELEASE}(?:\+([0-9A-Za-z-]+(?:\.[0-9A-Za-z-]+)*))?"
VERSION = rf"^{_VERSION}$"
# `name@*`, or `name@` and conditions joined by commas; what they mean stands in packages/content/versions.py.
_CONDITION = rf"(?:(?:>=|<=|>|<)?{_VERSION}|\^{_NUMBER}(?:\.{_NUMBER}(?:\.{_NUMBER}{_PRE_RELEASE})?)?)"
VERSION_PATTERN = rf"^[a-z0-9][a-z0-9_-]{{0,99}}@(?:\*|{_CONDITION}(?:,{_CONDITION})*)$"
LICENCE = r"^[A-Za-z0-9(][A-Za-z0-9.+() -]*$"  # an SPDX expression; which names there are is checked beside
CAPABILITY = r"^[a-z0-9]+([._-][a-z0-9]+)*$"
TIME = r"^[0-9]{4}-(0[1-9]|1[0-2])-([0-2][0-9]|3[01])T([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]Z$"
MODULE = r"^[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*$"
BASE_KEY = r"^[a-z0-9][a-z0-9._-]*$"


def setting(
    description: str,
    *,
    default: Any = dataclasses.MISSING,
    default_factory: Any = dataclasses.MISSING,
    operation: bool = False,
    **schema: Any,
) -> Any:
    """Declare one setting as a dataclass field.

    `schema` holds JSON Schema keywords (`minimum`, `exclusiveMinimum`, `enum`, `pattern`, …). A setting marked
    `operation` says how a stage is run, not what it computes: changing it makes no finished artifact stale.
    """
    metadata = {"description": description, "operation": operation, "schema": schema}
    return dataclasses.field(default=default, default_factory=default_factory, metadata=metadata)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Group:
    """A mapping of settings."""

    def part(self, *, operation: bool) -> dict[str, Any]:
        """Return as plain data either the operational settings or those that change the numbers."""
        return {
            field.name: plain(getattr(self, field.name))
            for field in dataclasses.fields(self)
            if field.metadata.get("operation", False) == operation
        }


def declared(group: type[Group]) -> dict[str, tuple[dataclasses.Field[Any], Any]]:
    """Return {name: (field, type)} of every setting that a configuration may give in this group.

    Fields without a description (an expert's name, which is its key) are not settings.
    """
    key: Any = group  # type checkers do not see that classes are hashable
    return _declared(key)


@functools.cache
def _declared(group: Any) -> dict[str, tuple[dataclasses.Field[Any], Any]]:
    hints = typing.get_type_hints(group)
    return {
        field.name: (field, hints[field.name]) for field in dataclasses.fields(group) if "description" in field.metadata
    }


def as_group(annotation: Any) -> type[Group] | None:
    """Return the annotation when it is a group of settings, else None."""
    return annotation if isinstance(annotation, type) and issubclass(annotation, Group) else None


def is_required(field: dataclasses.Field[Any]) -> bool:
    """Tell whether a setting has no default."""
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def plain(value: Any) -> Any:
    """Return a setting's value as what JSON can carry."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return value
