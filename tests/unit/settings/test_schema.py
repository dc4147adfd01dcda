"""The committed JSON Schema is the generated one, is valid, and says what the typed settings say."""

import json
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from sealed_experts.settings.fields import Group, as_group, declared, plain
from sealed_experts.settings.reading import read_file
from sealed_experts.settings.schema import DIALECT, document_schema
from sealed_experts.settings.types import DATASET_SOURCES, AdapterSettings, PrivacySettings, Settings, SftSettings

ROOT = Path(__file__).parents[3]
SCHEMA = document_schema()


def groups() -> dict[str, type[Group]]:
    """Return every group that stands below a configuration's top, by its name in the schema."""
    found: dict[str, type[Group]] = {}

    def add(group: type[Group]) -> None:
        found[group.__name__] = group
        for _, annotation in declared(group).values():
            inner = as_group(annotation)
            if inner is not None:
                add(inner)

    for group in (*DATASET_SOURCES.values(), AdapterSettings, PrivacySettings, SftSettings):
        add(group)
    for _, annotation in declared(Settings).values():
        inner = as_group(annotation)
        if inner is not None:
            add(inner)
    return found


def objects(schema: Any, path: str = "") -> list[tuple[str, dict[str, Any]]]:
    """Return every part of the schema that describes a mapping of settings."""
    if isinstance(schema, list):
        return [found for item in schema for found in objects(item, path)]
    if not isinstance(schema, dict):
        return []
    here = [(path, schema)] if schema.get("type") == "object" else []
    return here + [found for key, value in schema.items() for found in objects(value, f"{path}/{key}")]


def test_the_committed_schema_is_the_generated_one() -> None:
    committed = (ROOT / "config" / "schemas" / "config.schema.json").read_text(encoding="utf-8")
    assert committed == json.dumps(SCHEMA, indent=2, ensure_ascii=False) + "\n"


def test_the_schema_is_valid_2020_12() -> None:
    assert SCHEMA["$schema"] == DIALECT
    Draft202012Validator.check_schema(SCHEMA)


def test_every_mapping_is_closed() -> None:
    # A dataset is closed by the variant that its source chooses.
    assert len(objects(SCHEMA)) > 15
    for path, schema in objects(SCHEMA):
        if path != "/$defs/Dataset":
            assert "additionalProperties" in schema, path
            assert schema["additionalProperties"] is False or "$ref" in schema["additionalProperties"], path


@pytest.mark.parametrize("name", sorted(groups()))
def test_defaults_and_descriptions_are_those_of_the_settings(name: str) -> None:
    group = groups()[name]
    properties = SCHEMA["$defs"][name]["properties"]
    unused = getattr(group, "unused", frozenset())
    assert properties.keys() == declared(group).keys() - unused
    given = {key: properties[key]["default"] for key in properties if "default" in properties[key]}
    if not SCHEMA["$defs"][name].get("required"):
        built_in = {
            key: value for key, value in plain(group()).items() if value is not None and not isinstance(value, dict)
        }
        assert given == built_in
    for key in properties:
        assert properties[key]["description"] == declared(group)[key][0].metadata["description"]


@pytest.mark.parametrize("name", sorted(groups()))
def test_defaults_keep_their_own_bounds(name: str) -> None:
    for schema in SCHEMA["$defs"][name]["properties"].values():
        if "default" in schema:
            Draft202012Validator(schema).validate(schema["default"])


@pytest.mark.parametrize("name", ["config.yaml", "finance-qwen2.5-1.5b.yaml"])
def test_the_shipped_configurations_pass_with_the_plain_validator(name: str) -> None:
    # Ours follows references in its own way: an editor's must agree with it.
    Draft202012Validator(SCHEMA).validate(read_file(ROOT / "config" / name))


def test_the_overlays_part_passes_with_the_plain_validator() -> None:
    overrides = {"$ref": "#/$defs/Overrides", "$defs": SCHEMA["$defs"]}
    Draft202012Validator(overrides).validate(read_file(ROOT / "config" / "demo.yaml")["overrides"])
