"""The committed JSON Schema is the generated one, is valid, and says what the typed settings say."""

import json
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from pydantic_core import PydanticUndefined

from sealed_experts.configuration.schema import document_schema
from sealed_experts.data.sources import SOURCES
from sealed_experts.models.settings import BaseSettings
from sealed_experts.moe.settings import MoeSettings
from sealed_experts.privacy.settings import PrivacySettings
from sealed_experts.settings.fields import Group, plain
from sealed_experts.settings.reading import read_file
from sealed_experts.settings.schema import DIALECT
from sealed_experts.training.objectives import STAGES

ROOT = Path(__file__).parents[3]
SCHEMA = document_schema()


def groups() -> dict[str, type[Group]]:
    """Return every group that stands below a configuration's top, by its name in the schema."""
    found: dict[str, type[Group]] = {f"source_{name}": source for name, source in SOURCES.items()}

    def add(group: type[Group]) -> None:
        found[group.__name__] = group
        for field in group.model_fields.values():
            if isinstance(field.annotation, type) and issubclass(field.annotation, Group):
                add(field.annotation)

    for group in (*STAGES.values(), PrivacySettings, BaseSettings, MoeSettings):
        add(group)
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
    expected = json.dumps(SCHEMA, indent=2, ensure_ascii=False) + "\n"
    assert committed == expected, (
        "run: python -m sealed_experts.configuration.schema > config/schemas/config.schema.json"
    )


def test_the_schema_is_valid_2020_12() -> None:
    assert SCHEMA["$schema"] == DIALECT
    Draft202012Validator.check_schema(SCHEMA)


def test_every_mapping_is_closed() -> None:
    # A dataset is closed by the variant that its source chooses, a part of a composite by its reward.
    assert len(objects(SCHEMA)) > 15
    for path, schema in objects(SCHEMA):
        if path != "/$defs/Dataset" and not path.endswith("/parts/items"):
            assert schema.get("additionalProperties") is False, path


@pytest.mark.parametrize("name", sorted(groups()))
def test_defaults_and_descriptions_are_those_of_the_settings(name: str) -> None:
    fields = groups()[name].model_fields
    properties = SCHEMA["$defs"][name]["properties"]
    assert properties.keys() == fields.keys()
    for key, schema in properties.items():
        default = plain(fields[key].default)
        if "default" in schema:
            assert schema["default"] == default
        else:
            assert default is None or default is PydanticUndefined or isinstance(default, dict)
        assert schema.get("description", fields[key].description) == fields[key].description


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
