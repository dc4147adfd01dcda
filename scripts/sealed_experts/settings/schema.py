"""The JSON Schema (2020-12) of a configuration, generated from the typed settings.

`python -m sealed_experts.settings.schema > config/schemas/config.schema.json` writes the committed copy.
"""

import dataclasses
import functools
import inspect
import json
import sys
import types
import typing
from typing import Any

from sealed_experts.settings.fields import Group, as_group, declared, is_required, plain
from sealed_experts.settings.types import (
    DATASET_SOURCES,
    INHERITED,
    STAGES,
    AdapterSettings,
    BaseSettings,
    DatasetSettings,
    ExpertSettings,
    PrivacySettings,
    Settings,
)

DIALECT = "https://json-schema.org/draft/2020-12/schema"
NAME = r"^[a-z0-9][a-z0-9_-]*$"  # part of paths and of Snakemake's wildcards
_JSON_TYPES = {int: "integer", float: "number", str: "string", bool: "boolean"}


@functools.cache
def document_schema() -> dict[str, Any]:
    """Return the schema of a whole configuration file after merging."""
    properties = _properties(Settings)
    properties["datasets"] = _named("The data, by name.", "Dataset")
    properties["defaults"] = {"$ref": "#/$defs/Layer", "description": "What every expert inherits."}
    properties["experts"] = _named("The experts, by name; their order decides the router's ties.", "ExpertSettings")
    properties["experts"]["minProperties"] = 1
    properties["overrides"] = {"$ref": "#/$defs/Overrides", "description": "Applied last, over every expert."}
    return {
        "$schema": DIALECT,
        "title": "Sealed Experts configuration",
        "type": "object",
        "additionalProperties": False,
        "required": ["datasets", "experts"],
        "properties": properties,
        "$defs": _definitions(),
    }


def group_schema(group: type[Group]) -> dict[str, Any]:
    """Return the schema of one group of settings; other groups inside it are references."""
    unused = group.unused if issubclass(group, DatasetSettings) else frozenset()
    names = [name for name in declared(group) if name not in unused]
    key: Any = group  # type checkers do not see that classes are hashable
    schema: dict[str, Any] = {
        "type": "object",
        "description": inspect.cleandoc(group.__doc__ or "").split("\n\n")[0].replace("\n", " "),
        "additionalProperties": False,
    }
    required = [name for name in names if is_required(declared(group)[name][0]) or "const" in _keywords(group, name)]
    if required:
        schema["required"] = required
    return schema | {"properties": {name: _properties(key)[name] for name in names}}


def _keywords(group: type[Group], name: str) -> dict[str, Any]:
    return declared(group)[name][0].metadata["schema"]


@functools.cache
def _properties(group: Any) -> dict[str, Any]:
    return {name: _setting_schema(field, annotation) for name, (field, annotation) in declared(group).items()}


def _setting_schema(field: dataclasses.Field[Any], annotation: Any) -> dict[str, Any]:
    description = {"description": field.metadata["description"]}
    keywords = dict(field.metadata["schema"])
    group = as_group(annotation)
    if group is not None:
        return {"$ref": f"#/$defs/{group.__name__}"} | description
    schema = _type_schema(annotation)
    if "items" in schema:
        schema["items"] |= keywords.pop("items", {})
    if field.name == "stages":
        schema["items"]["enum"] = list(STAGES)
    schema |= description | keywords
    if field.default not in (dataclasses.MISSING, None) and "const" not in keywords:
        schema["default"] = plain(field.default)
    return schema


def _type_schema(annotation: Any) -> dict[str, Any]:
    group = as_group(annotation)
    if group is not None:
        return {"$ref": f"#/$defs/{group.__name__}"}
    if typing.get_origin(annotation) is tuple:
        return {"type": "array", "items": _type_schema(typing.get_args(annotation)[0])}
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        kinds = [_JSON_TYPES[kind] for kind in typing.get_args(annotation) if kind is not type(None)]
        return {"type": kinds[0] if len(kinds) == 1 else kinds}
    return {"type": _JSON_TYPES[annotation]}


def _named(description: str, definition: str) -> dict[str, Any]:
    return {
        "type": "object",
        "description": description,
        "propertyNames": {"pattern": NAME, "maxLength": 64},
        "additionalProperties": {"$ref": f"#/$defs/{definition}"},
    }


def _definitions() -> dict[str, Any]:
    definitions: dict[str, Any] = {}

    def add(group: type[Group]) -> None:
        if group.__name__ not in definitions:
            definitions[group.__name__] = group_schema(group)
            for _, annotation in declared(group).values():
                inner = as_group(annotation) or _item_group(annotation)
                if inner is not None:
                    add(inner)

    for group in (BaseSettings, AdapterSettings, PrivacySettings, ExpertSettings, *DATASET_SOURCES.values()):
        add(group)
    for _, annotation in declared(Settings).values():
        inner = as_group(annotation)
        if inner is not None:
            add(inner)
    privacy = {"$ref": "#/$defs/PrivacySettings", "description": "Privacy of every stage that does not say otherwise."}
    expert = definitions["ExpertSettings"]["properties"]
    expert["privacy"] = privacy
    layer = {name: expert[name] for name in (*INHERITED, "adapter", *STAGES, "package")} | {"privacy": privacy}
    definitions["Layer"] = _closed(layer)
    definitions["Dataset"] = _dataset()
    definitions["PartOfDataset"] = _closed(_dataset_properties())
    overrides = {
        "base": {"$ref": "#/$defs/BaseSettings", "description": "Laid over the base."},
        "datasets": _named("Laid over the datasets.", "PartOfDataset"),
    }
    definitions["Overrides"] = _closed(layer | overrides)
    return definitions


def _item_group(annotation: Any) -> type[Group] | None:
    return as_group(typing.get_args(annotation)[0]) if typing.get_origin(annotation) is tuple else None


def _closed(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": False, "properties": properties}


def _dataset() -> dict[str, Any]:
    """One variant a source, chosen by `source`, so that a mistake is reported by the variant that was meant."""
    variants = [
        {
            "if": {"required": ["source"], "properties": {"source": {"const": source}}},
            "then": {"$ref": f"#/$defs/{group.__name__}"},
        }
        for source, group in DATASET_SOURCES.items()
    ]
    source = {"type": "string", "enum": list(DATASET_SOURCES), "description": "Where the rows come from."}
    return {"type": "object", "required": ["source"], "properties": {"source": source}, "allOf": variants}


def _dataset_properties() -> dict[str, Any]:
    """Settings of any source: what an override may change without naming the source again."""
    properties: dict[str, Any] = {}
    groups: list[type[Group]] = [DatasetSettings, *DATASET_SOURCES.values()]
    for group in groups:
        for name, schema in group_schema(group)["properties"].items():
            properties.setdefault(
                name, {key: value for key, value in schema.items() if key not in ("default", "const")}
            )
    return properties | {"source": _dataset()["properties"]["source"]}


if __name__ == "__main__":
    json.dump(document_schema(), sys.stdout, indent=2, ensure_ascii=False)
    sys.stdout.write("\n")
