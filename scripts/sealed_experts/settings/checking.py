"""Checking a configuration against its schema: every mistake at once, each as one plain line."""

import copy
import functools
import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from sealed_experts.settings.messages import KeyPath, Mistake, expected, shown, suggestion, type_hint
from sealed_experts.settings.schema import document_schema
from sealed_experts.settings.types import LARGEST_INTEGER

# jsonschema takes 0.15 s to import, and only who checks a configuration pays for it: hence its errors and validators
# are `Any` here.


def schema_mistakes(document: Mapping[str, Any]) -> list[Mistake]:
    """Return every place where the document differs from the schema, in the document's order of keys.

    Nothing is filled in: a default of the schema must never beat the user's `defaults`.
    """
    found: dict[KeyPath, Mistake] = {}
    for error in _validator().iter_errors(document):
        for mistake in _explain(error):
            found.setdefault(mistake.path, mistake)  # a wrong type says more than the ranges it also misses
    return list(found.values())


def without(document: Mapping[str, Any], mistakes: list[Mistake]) -> dict[str, Any]:
    """Return a copy of the document without the values that are mistaken, so that the rest can be checked further."""
    sound = copy.deepcopy(dict(document))
    for mistake in mistakes:
        _delete(sound, mistake.path)
    return sound


def _delete(document: dict[str, Any], path: KeyPath) -> None:
    # An item of a list takes the whole list with it: a list with a hole would be another value.
    keys = path[: next((place for place, key in enumerate(path) if isinstance(key, int)), len(path))]
    parent: Any = document
    for key in keys[:-1]:
        parent = parent.get(key) if isinstance(parent, dict) else None
    if isinstance(parent, dict) and keys:
        parent.pop(keys[-1], None)


@functools.cache
def _validator() -> Any:
    import jsonschema

    checker = jsonschema.Draft202012Validator.TYPE_CHECKER.redefine_many(
        {"integer": lambda _, value: _is_whole(value), "number": lambda _, value: _is_number(value)}
    )
    validators = {"pattern": _pattern, "$ref": _inlined_reference}
    kind = jsonschema.validators.extend(jsonschema.Draft202012Validator, validators=validators, type_checker=checker)
    return kind(document_schema())


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number that no float holds
        return False


def _is_whole(value: Any) -> bool:
    return _is_number(value) and value == math.floor(value) and abs(value) <= LARGEST_INTEGER


def _pattern(validator: Any, pattern: str, instance: object, schema: Mapping[str, Any]) -> Iterator[Any]:
    """As the standard says it: `$` is the very end, whereas Python's also stands before a final line break."""
    from jsonschema import ValidationError

    if isinstance(instance, str) and not re.search(pattern.replace("$", r"\Z"), instance):
        yield ValidationError(f"{instance!r} does not match {pattern!r}")


def _inlined_reference(validator: Any, reference: str, instance: object, schema: Any) -> Iterator[Any]:
    """All our references are `#/$defs/NAME`: following them directly is several times faster than resolving URIs."""
    yield from validator.descend(instance, document_schema()["$defs"][reference.rpartition("/")[2]])


def _explain(error: Any) -> Iterator[Mistake]:
    path: KeyPath = tuple(error.absolute_path)
    explain = _EXPLANATIONS.get(str(error.validator), _wrong_value)
    yield from explain(error, path)


def _unknown_keys(error: Any, path: KeyPath) -> Iterator[Mistake]:
    known = error.schema["properties"]
    for key in error.instance:
        if key not in known:
            yield Mistake((*path, key), f"no such setting; {_deeper(key, known) or suggestion(str(key), known)}")


def _deeper(key: str, known: Mapping[str, Any]) -> str:
    """Say where the key belongs when a group right below knows it."""
    for name, schema in known.items():
        group = document_schema()["$defs"].get(schema.get("$ref", "").rpartition("/")[2], {})
        if key in group.get("properties", {}):
            return f"did you mean `{name}.{key}`?"
    return ""


def _missing_key(error: Any, path: KeyPath) -> Iterator[Mistake]:
    # jsonschema reports each missing key as an error of its own, and names it only inside its message.
    key = next(key for key in error.validator_value if error.message.startswith(repr(key)))
    yield Mistake((*path, key), f"it is missing; give {expected(error.schema['properties'][key])}")


def _bad_name(error: Any, path: KeyPath) -> Iterator[Mistake]:
    rule = "at most 64 characters" if error.validator == "maxLength" else expected({"type": "string", **error.schema})
    yield Mistake((*path, str(error.instance)), f"this name becomes part of paths: it must be {rule}")


def _wrong_value(error: Any, path: KeyPath) -> Iterator[Mistake]:
    if "propertyNames" in error.absolute_schema_path:
        yield from _bad_name(error, path)
        return
    hint = type_hint(error.instance, error.schema.get("type", "object"))
    if not hint and "enum" in error.schema and isinstance(error.instance, str):
        hint = suggestion(error.instance, [str(value) for value in error.schema["enum"]])
        hint = hint if hint.startswith("did") else ""
    yield Mistake(path, f"{shown(error.instance)} is not {expected(error.schema)}" + (f"; {hint}" if hint else ""))


def _repeated(error: Any, path: KeyPath) -> Iterator[Mistake]:
    twice = next(item for place, item in enumerate(error.instance) if item in error.instance[:place])
    yield Mistake(path, f"{shown(twice)} stands twice in the list; name each once")


def _too_few(error: Any, path: KeyPath) -> Iterator[Mistake]:
    yield Mistake(path, "nothing is listed; give at least one")


def _too_many(error: Any, path: KeyPath) -> Iterator[Mistake]:
    yield Mistake(path, f"the list has {len(error.instance)} items; at most {error.validator_value} are allowed")


def _too_long(error: Any, path: KeyPath) -> Iterator[Mistake]:
    if "propertyNames" in error.absolute_schema_path:
        yield from _bad_name(error, path)
    else:
        yield Mistake(
            path, f"the text has {len(error.instance)} characters; at most {error.validator_value} are allowed"
        )


_EXPLANATIONS: dict[str, Callable[[Any, KeyPath], Iterator[Mistake]]] = {
    "additionalProperties": _unknown_keys,
    "required": _missing_key,
    "uniqueItems": _repeated,
    "minItems": _too_few,
    "minProperties": _too_few,
    "maxItems": _too_many,
    "maxLength": _too_long,
}
