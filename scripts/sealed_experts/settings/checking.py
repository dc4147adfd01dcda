"""Checking plain data against a group of settings: every mistake at once, each as one plain line."""

import copy
import json
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from sealed_experts.errors import UserError
from sealed_experts.files.canonical import strict_json
from sealed_experts.settings.fields import Group
from sealed_experts.settings.messages import KeyPath, Mistake, expected, shown, suggestion, type_hint, unknown_key
from sealed_experts.settings.schema import schema_at

LARGEST_INTEGER = 2**53 - 1  # JSON readers store larger ones inexactly

_HALF_CHARACTER = "it holds half a character (a lone surrogate); write it again"

SomeGroup = TypeVar("SomeGroup", bound=Group)


def mistakes_in(group: type[Group], data: Any, *, at: KeyPath = (), partial: bool = False) -> list[Mistake]:
    """Return every mistake in the plain data of a group of settings, in pydantic's order.

    Args:
        at: the path of the data in the configuration.
        partial: the data are one layer of several: no setting has to be there.
    """
    found = {path: Mistake(path, _HALF_CHARACTER) for path in _half_characters(data)}
    try:
        group.model_validate_json(_json(data))
    except ValidationError as error:
        for details in error.errors(include_url=False, include_context=True):
            path = _without_tags(details, data)
            if partial and details["type"] == "missing":
                continue
            mistake = _EXPLANATIONS.get(details["type"], _wrong_value)(group, data, path, details)
            # pydantic drops a list that has a wrong item, and then reports the list as empty.
            if not any(known[: len(path)] == path for known in found):
                found.setdefault(mistake.path, mistake)
    return [Mistake((*at, *mistake.path), mistake.text) for mistake in found.values()]


def parse_group(group: type[SomeGroup], data: Mapping[str, Any] | str) -> SomeGroup:
    """Return plain data, or its JSON text, as settings. Absent settings get their defaults.

    Raises:
        UserError: the text is not a JSON object, or a setting is unknown, missing or wrong.
    """
    if isinstance(data, str):
        data = parse_object(data)
    mistakes = mistakes_in(group, data)
    if mistakes:
        raise UserError(f"{group.__name__}: {'; '.join(map(str, mistakes))}")
    return group.model_validate_json(_json(data))


def parse_object(text: str) -> dict[str, Any]:
    """Return the mapping that a JSON text holds.

    Raises:
        UserError: the text is not strict JSON, or not a mapping.
    """
    try:
        data = strict_json(text)
    except ValueError as error:
        raise UserError(f"these settings are not JSON: {error}") from error
    if not isinstance(data, dict):
        raise UserError("these settings are not a JSON object")
    return data


def without(document: Mapping[str, Any], mistakes: list[Mistake]) -> dict[str, Any]:
    """Return a copy of the document without the wrong values, so that the rest can be checked further."""
    sound = copy.deepcopy(dict(document))
    for mistake in mistakes:
        _delete(sound, mistake.path)
    return sound


def _delete(document: dict[str, Any], path: KeyPath) -> None:
    # Delete the whole list of a wrong item: a list without this item would be another value.
    keys = path[: next((place for place, key in enumerate(path) if isinstance(key, int)), len(path))]
    parent: Any = document
    for key in keys[:-1]:
        parent = parent.get(key) if isinstance(parent, dict) else None
    if isinstance(parent, dict) and keys:
        parent.pop(keys[-1], None)


def _json(data: Any) -> str:
    return json.dumps(_readable(data), default=str)


def _readable(value: Any) -> Any:
    """Return data in the form that pydantic's strict mode accepts.

    `60.0` becomes a whole number, `1e400` becomes infinite, and lone surrogates are replaced.
    """
    if isinstance(value, str):
        return value.encode(errors="replace").decode()
    if isinstance(value, bool) or not isinstance(value, int | float | Mapping | list | tuple):
        return value
    if isinstance(value, Mapping):
        return {_readable(str(key)): _readable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_readable(item) for item in value]
    if isinstance(value, float):
        return int(value) if value.is_integer() and abs(value) <= LARGEST_INTEGER else value
    try:
        return value if abs(value) <= LARGEST_INTEGER else float(value)
    except OverflowError:  # a whole number too large for a float
        return math.inf


def _half_characters(value: Any, path: KeyPath = ()) -> Iterator[KeyPath]:
    """Yield the paths of texts that contain a lone surrogate: UTF-8 cannot encode it."""
    if isinstance(value, str) and value != value.encode(errors="replace").decode():
        yield path
    items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from _half_characters(item, (*path, key))


def _without_tags(details: ErrorDetails, data: Any) -> KeyPath:
    """Return the path of an error, without the names that pydantic inserts for the members of a union."""
    path: list[str | int] = []
    for place, key in enumerate(details["loc"]):
        last = place == len(details["loc"]) - 1
        known = key in data if isinstance(data, Mapping) else isinstance(data, list | tuple) and isinstance(key, int)
        if known:
            data = data[key]
        elif not (last and details["type"] == "missing"):
            continue
        path.append(key)
    return tuple(path)


def _value(data: Any, path: KeyPath) -> Any:
    for key in path:
        data = data[key]
    return data


def _unknown(group: type[Group], data: Any, path: KeyPath, details: ErrorDetails) -> Mistake:
    return Mistake(path, unknown_key(str(path[-1]), schema_at(group, path[:-1]), schema_at(group, ())))


def _missing(group: type[Group], data: Any, path: KeyPath, details: ErrorDetails) -> Mistake:
    return Mistake(path, f"it is missing; give {expected(schema_at(group, path))}")


def _repeated(group: type[Group], data: Any, path: KeyPath, details: ErrorDetails) -> Mistake:
    return Mistake(path, f"{shown(details['ctx']['item'])} stands twice in the list; name each once")


def _too_few(group: type[Group], data: Any, path: KeyPath, details: ErrorDetails) -> Mistake:
    return Mistake(path, "nothing is listed; give at least one")


def _too_many(group: type[Group], data: Any, path: KeyPath, details: ErrorDetails) -> Mistake:
    count, most = len(_value(data, path)), details["ctx"]["max_length"]
    return Mistake(path, f"the list has {count} items; at most {most} are allowed")


def _too_long(group: type[Group], data: Any, path: KeyPath, details: ErrorDetails) -> Mistake:
    if details["loc"][-1] == "[key]":
        return Mistake(
            path, f"this name becomes part of paths: it must be at most {details['ctx']['max_length']} characters"
        )
    count, most = len(_value(data, path)), details["ctx"]["max_length"]
    return Mistake(path, f"the text has {count} characters; at most {most} are allowed")


def _wrong_value(group: type[Group], data: Any, path: KeyPath, details: ErrorDetails) -> Mistake:
    if details["loc"] and details["loc"][-1] == "[key]":
        names = schema_at(group, path[:-1])["propertyNames"]
        return Mistake(path, f"this name becomes part of paths: it must be {names['patternErrorMessage']}")
    value, schema = _value(data, path), schema_at(group, path)
    hint = type_hint(value, schema)
    if not hint and "enum" in schema and isinstance(value, str):
        near = suggestion(value, [str(choice) for choice in schema["enum"]])
        hint = near if near.startswith("did") else ""
    return Mistake(path, f"{shown(value)} is not {expected(schema)}" + (f"; {hint}" if hint else ""))


_EXPLANATIONS: dict[str, Callable[[type[Group], Any, KeyPath, ErrorDetails], Mistake]] = {
    "extra_forbidden": _unknown,
    "missing": _missing,
    "repeated": _repeated,
    "too_short": _too_few,
    "too_long": _too_many,
    "string_too_long": _too_long,
}
