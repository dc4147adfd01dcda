"""Groups of settings that depend on a name in them: an adapter's on its `kind`, a dataset's on its `source`."""

from collections.abc import Mapping
from typing import Any

from pydantic import GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from sealed_experts.features import Features
from sealed_experts.settings.checking import mistakes_in, parse_group
from sealed_experts.settings.fields import Group
from sealed_experts.settings.messages import KeyPath, Mistake, expected, shown, suggestion
from sealed_experts.settings.schema import schema_at


class OptionsOf:
    """Annotation that gives the schema of the settings of all these groups. Another setting names the group."""

    def __init__(self, groups: Mapping[str, type[Group]]) -> None:
        self._groups = groups

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Tell pydantic the schema of a setting that is annotated with this."""
        return {"type": "object", "additionalProperties": False, "properties": _properties(self._groups)}


class Choice:
    """A mapping whose `key` names the feature that it configures. As an annotation it gives the mapping's schema."""

    def __init__(self, features: Features[Any], *, key: str, default: str | None = None) -> None:
        """Take the features to choose from, and the default: the one that is used when the key is absent."""
        self.features, self.key, self._default = features, key, default

    def mistakes(self, data: Mapping[str, Any], *, at: KeyPath) -> list[Mistake]:
        """Return every mistake in such a mapping."""
        name = data.get(self.key, self._default)
        names = {"enum": list(self.features)}
        if name is None:
            return [Mistake((*at, self.key), f"it is missing; give {expected(names)}")]
        if not isinstance(name, str) or name not in self.features:
            near = suggestion(name, list(self.features)) if isinstance(name, str) else ""
            hint = f"; {near}" if near.startswith("did") else ""
            wrong = Mistake((*at, self.key), f"{shown(name)} is not {expected(names)}{hint}")
            return [wrong, *self._mistakes_of_default(data, at)]
        return mistakes_in(self._group(name, data), data, at=at)

    def _mistakes_of_default(self, data: Mapping[str, Any], at: KeyPath) -> list[Mistake]:
        """Return the mistakes for the default feature, which shares its settings' names with many others."""
        if self._default is None:
            return []
        group = self.features[self._default]
        return mistakes_in(
            group, {key: data[key] for key in data if key in group.model_fields and key != self.key}, at=at
        )

    def parse(self, data: Mapping[str, Any]) -> Any:
        """Return the settings of the feature that such a mapping names.

        Raises:
            UserError: it has mistakes.
        """
        return parse_group(self._group(data.get(self.key, self._default), data), data)

    def _group(self, name: str, data: Mapping[str, Any]) -> type[Group]:
        group: type[Group] = self.features[name]
        return group.variant(data)

    def others_that_know(self, key: str) -> list[str]:
        """Return the names of all features that have a setting of this name."""
        return [name for name, group in self.features.items() if key in group.model_fields]

    def schema(self) -> dict[str, Any]:
        """Return the schema of such a mapping: the key, and the settings of all features."""
        properties = _properties(self.features)
        chosen = {"type": "string", "enum": list(self.features)}
        properties[self.key] = {**chosen, "description": f"Which {self.features.noun} it is."}
        return {"type": "object", "additionalProperties": False, "properties": properties}

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Tell pydantic the schema of a setting that is annotated with this choice."""
        return self.schema()


def _properties(groups: Mapping[str, type[Group]]) -> dict[str, Any]:
    """Return the schemas of all groups' settings by name. If several share a name, the first one counts."""
    properties: dict[str, Any] = {}
    for group in groups.values():
        for name in group.model_fields:
            part = schema_at(group, (name,))
            kept = {word: value for word, value in part.items() if word not in ("default", "const")}
            properties.setdefault(name, kept)
    return properties
