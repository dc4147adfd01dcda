"""The JSON Schema (2020-12) of a configuration file, generated from the typed settings; for editors, and for people.

`python -m sealed_experts.configuration.schema > config/schemas/config.schema.json` writes the committed copy.
"""

import copy
import functools
import json
import sys
from typing import Any

from sealed_experts.configuration.document import Document
from sealed_experts.data.sources import DATASET
from sealed_experts.models.adapters import ADAPTER
from sealed_experts.settings.choices import Choice
from sealed_experts.settings.schema import DIALECT, schema_of

_CHOICES = {"Adapter": ADAPTER, "PartOfDataset": DATASET}


@functools.cache
def document_schema() -> dict[str, Any]:
    """Return the schema of a whole configuration file after merging."""
    schema = copy.deepcopy(schema_of(Document))
    definitions: dict[str, Any] = schema.pop("$defs")
    for part in (schema, *definitions.values()):
        part.update(_with_references(part))
    definitions |= {name: choice.schema() for name, choice in _CHOICES.items()}
    definitions["Dataset"] = _dataset(definitions)
    datasets = schema["properties"]["datasets"]
    datasets["patternProperties"] = {name: {"$ref": "#/$defs/Dataset"} for name in datasets["patternProperties"]}
    return {"$schema": DIALECT, "title": "Sealed Experts configuration", **schema, "$defs": definitions}


def _with_references(part: Any) -> Any:
    """Define the schema of each choice once, and refer to it everywhere else."""
    if isinstance(part, list):
        return [_with_references(item) for item in part]
    if not isinstance(part, dict):
        return part
    for name, choice in _CHOICES.items():
        if part.get("properties") == choice.schema()["properties"]:
            kept = {key: part[key] for key in ("description",) if key in part}
            return {"$ref": f"#/$defs/{name}"} | kept
    return {key: _with_references(value) for key, value in part.items()}


def _dataset(definitions: dict[str, Any]) -> dict[str, Any]:
    """Return one variant for each source, chosen by `source`, so that messages are about the right variant."""
    variants = [
        {
            "if": {"required": [DATASET.key], "properties": {DATASET.key: {"const": name}}},
            "then": {"$ref": f"#/$defs/{_defined(name, DATASET, definitions)}"},
        }
        for name in DATASET.features
    ]
    chosen = DATASET.schema()["properties"][DATASET.key]
    return {"type": "object", "required": [DATASET.key], "properties": {DATASET.key: chosen}, "allOf": variants}


def _defined(name: str, choice: Choice, definitions: dict[str, Any]) -> str:
    schema = copy.deepcopy(schema_of(choice.features[name]))
    definitions.update(schema.pop("$defs", {}))
    schema["required"] = [choice.key, *schema.get("required", [])]
    definitions[f"{choice.key}_{name}"] = schema
    return f"{choice.key}_{name}"


if __name__ == "__main__":
    json.dump(document_schema(), sys.stdout, indent=2, ensure_ascii=False)
    sys.stdout.write("\n")
