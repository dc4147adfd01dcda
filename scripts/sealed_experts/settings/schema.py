"""The JSON Schema (2020-12) of a group of settings, generated from its declarations."""

import functools
import inspect
from collections.abc import Mapping
from typing import Any

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from sealed_experts.settings.fields import Group

DIALECT = "https://json-schema.org/draft/2020-12/schema"


class _Plain(GenerateJsonSchema):
    """Write no titles, which pydantic makes from names, and no null: a user leaves a setting out instead."""

    def nullable_schema(self, schema: core_schema.NullableSchema) -> JsonSchemaValue:
        return self.generate_inner(schema["schema"])

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> JsonSchemaValue:
        if isinstance(schema.get("default"), Group | Mapping):  # the settings in it have their own defaults
            return self.generate_inner(schema["schema"])
        return super().default_schema(schema)

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def schema_of(group: type[Group]) -> dict[str, Any]:
    """Return the schema of a group. Groups inside it are under `$defs`, by the names of their classes."""
    key: Any = group  # type checkers do not see that classes are hashable
    return _schema_of(key)


@functools.cache
def _schema_of(group: Any) -> dict[str, Any]:
    schema = group.model_json_schema(schema_generator=_Plain)
    for part in (schema, *schema.get("$defs", {}).values()):
        part.pop("title", None)
        if "description" in part:
            part["description"] = inspect.cleandoc(part["description"]).split("\n\n")[0].replace("\n", " ")
        for mapping in (part, *part.get("properties", {}).values()):
            if "patternProperties" in mapping:
                mapping["additionalProperties"] = False
        for setting in part.get("properties", {}).values():
            setting.pop("operation", None)
            setting.pop("public", None)
            if setting.get("default", ...) is None:
                del setting["default"]
    return schema


def schema_at(group: type[Group], path: tuple[str | int, ...]) -> dict[str, Any]:
    """Return the schema of the value at a path of keys and indices in a group; {} if the schema says nothing of it."""
    whole = schema_of(group)
    part: dict[str, Any] = whole
    for key in path:
        part = _resolved(part, whole)
        inner = part.get("items", {}) if isinstance(key, int) else part.get("properties", {}).get(key)
        part = inner or _named(part)
    return _resolved(part, whole)


def _resolved(part: dict[str, Any], whole: dict[str, Any]) -> dict[str, Any]:
    if "$ref" not in part:
        return part
    target: dict[str, Any] = whole["$defs"][part["$ref"].rpartition("/")[2]]
    return target | {key: value for key, value in part.items() if key != "$ref"}


def _named(part: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of the values of a mapping whose keys the user chooses."""
    patterns = part.get("patternProperties", {})
    values = next(iter(patterns.values()), part.get("additionalProperties"))
    return values if isinstance(values, dict) else {}
