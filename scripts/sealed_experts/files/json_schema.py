"""JSON Schema (2020-12): the parts of our schemas, and the check of objects from untrusted files."""

import functools
import json
from collections.abc import Iterator, Mapping
from typing import Any

from sealed_experts.text import one_line


class JsonSchema:
    """One JSON Schema, and the check of objects against it.

    jsonschema is imported at the first check, because that takes a fifth of a second.

    The time is linear in the size of the object, which may come from an attacker. jsonschema itself compares each item
    of a list with every other, and checks every item of a list or mapping that is too long.
    """

    def __init__(self, schema: Mapping[str, Any]) -> None:
        self._schema = schema

    def mistake_in(self, value: Mapping[str, Any]) -> str | None:
        """Return the first mistake in an object as one line, `field: what is wrong`; None if there is none."""
        try:
            first = next(self._validator.iter_errors(dict(value)), None)
        except RecursionError:
            return "it is nested too deeply"
        if first is None:
            return None
        place = ".".join(str(part) for part in first.absolute_path) or "its fields"
        return f"{one_line(place)}: {one_line(first.message)}"

    @functools.cached_property
    def _validator(self) -> Any:
        import jsonschema

        draft = jsonschema.Draft202012Validator
        short = {
            keyword: functools.partial(_unless_too_long, draft.VALIDATORS[keyword], most)
            for keyword, most in (
                ("items", "maxItems"),
                ("additionalProperties", "maxProperties"),
                ("propertyNames", "maxProperties"),
            )
        }
        return jsonschema.validators.extend(draft, {**short, "uniqueItems": _unique_items})(self._schema)


def _unless_too_long(check: Any, most: str, validator: Any, value: Any, instance: Any, schema: Any) -> Iterator[Any]:
    """Yield a keyword's errors, but none for a list or mapping that is too long: the `most` keyword refuses it."""
    if most in schema and isinstance(instance, list | dict) and len(instance) > schema[most]:
        return
    yield from check(validator, value, instance, schema)


def _unique_items(validator: Any, unique: bool, instance: Any, schema: Any) -> Iterator[Any]:
    if not unique or not isinstance(instance, list) or len(instance) > schema.get("maxItems", len(instance)):
        return
    import jsonschema

    if len({json.dumps(item, sort_keys=True) for item in instance}) < len(instance):
        yield jsonschema.ValidationError(f"{instance!r} has non-unique elements")


def mapping(description: str, properties: dict[str, Any], optional: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return the schema of an object with these fields and no others."""
    return {
        "description": description,
        "type": "object",
        "additionalProperties": False,
        "required": sorted(set(properties) - set(optional)),
        "properties": properties,
    }


def text(description: str, *, least: int = 1, most: int = 1000) -> dict[str, Any]:
    """Return the schema of a text."""
    return {"description": description, "type": "string", "minLength": least, "maxLength": most}


def matching(description: str, pattern: str) -> dict[str, Any]:
    """Return the schema of a text of up to 200 characters that matches a pattern."""
    return {"description": description, "type": "string", "pattern": pattern, "maxLength": 200}


def whole(description: str, *, least: int, most: int = 2**53 - 1) -> dict[str, Any]:
    """Return the schema of a whole number that every JSON reader stores exactly."""
    return {"description": description, "type": "integer", "minimum": least, "maximum": most}


def number(description: str, **bounds: float) -> dict[str, Any]:
    """Return the schema of a number; `bounds` are keywords of JSON Schema."""
    return {"description": description, "type": "number", **bounds}


def texts(description: str, *, least: int, most: int) -> dict[str, Any]:
    """Return the schema of a list of distinct texts."""
    items = {"type": "string", "minLength": 1, "maxLength": 200}
    return {
        "description": description,
        "type": "array",
        "items": items,
        "minItems": least,
        "maxItems": most,
        "uniqueItems": True,
    }


def or_null(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a schema that also allows null."""
    return {**schema, "type": [schema["type"], "null"]}
