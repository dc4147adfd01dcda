"""The settings that an expert inherits, and the layer that gives each of them.

The layers, from weakest to strongest: built-in defaults, `defaults`, the expert, `overrides`. A stronger layer always
wins. Within one layer, `sft.privacy` is stronger than `privacy`. So an expert's `privacy` wins over
`defaults.sft.privacy`, and `overrides.privacy` wins over everything except `overrides.sft.privacy`.
"""

import dataclasses
import functools
from collections.abc import Collection, Mapping
from typing import Any

from sealed_experts.settings.merging import ALTERNATIVES, merge, names_another, without_taken_back
from sealed_experts.settings.messages import KeyPath

OVERRIDES = "overrides"


@dataclasses.dataclass(frozen=True)
class Layers:
    """The layers of one expert, from the weakest to the strongest: (path in the configuration, settings)."""

    expert: str
    layers: tuple[tuple[KeyPath, Mapping[str, Any]], ...]

    @classmethod
    def of(cls, document: Mapping[str, Any], expert: str) -> "Layers":
        """Return the layers of the named expert."""
        return cls(
            expert=expert,
            layers=(
                (("defaults",), document.get("defaults", {})),
                (("experts", expert), document["experts"][expert]),
                ((OVERRIDES,), document.get(OVERRIDES, {})),
            ),
        )

    def value(self, name: str) -> dict[str, Any]:
        """Return {name: value} for a single setting of the expert, or {} if no layer gives it."""
        given = [layer[name] for _, layer in self.layers if name in layer]
        return {name: given[-1]} if given else {}

    def merged(self, name: str) -> dict[str, Any]:
        """Return a group of the expert's settings, merged from all layers, with the groups inside it."""
        return functools.reduce(merge, [layer.get(name, {}) for _, layer in self.layers], {})

    def chosen(self, name: str, *, key: str, default: str) -> tuple[str, dict[str, Any]]:
        """Return the choice that `key` makes for a group, and the group's settings.

        A layer that chooses another one drops the settings of the weaker layers.
        """
        settings: dict[str, Any] = {key: default}
        for _, layer in self.layers:
            given = layer.get(name, {})
            settings = dict(given) if names_another(settings, given) else {**settings, **given}
        return settings[key], settings

    def stage(self, name: str, *, skipped: Collection[str] = ()) -> dict[str, Any]:
        """Return a stage's settings with its privacy. The `skipped` keys in `overrides` belong to other stages."""
        settings: dict[str, Any] = {}
        privacy: dict[str, Any] = {}
        for prefix, layer in self.layers:
            given = layer.get(name, {})
            if prefix == (OVERRIDES,):
                given = {key: value for key, value in given.items() if key not in skipped}
            settings = without_taken_back(settings, given) | given
            privacy |= layer.get("privacy", {}) | given.get("privacy", {})
        return settings | {"privacy": privacy}

    def doubled(self, stage: str) -> list[tuple[KeyPath, list[str], list[str]]]:
        """Return the layers that give alternatives of a stage together: (path, keys of one, keys of the other)."""
        found = []
        for prefix, layer in self.layers:
            for pair in ALTERNATIVES:
                one, other = (sorted(key for key in keys if _stands(layer, (stage, key))) for keys in pair)
                if one and other:
                    found.append(((*prefix, stage), one, other))
        return found

    def gives(self, *path: str) -> bool:
        """Tell whether any layer gives a setting."""
        return any(_stands(layer, place) for _, layer in self.layers for place in _places(path))

    def locate(self, *path: str) -> KeyPath:
        """Return where the strongest layer gives a setting; the expert's own path if no layer gives it."""
        for prefix, layer in reversed(self.layers):
            for place in _places(path):
                if _stands(layer, place):
                    return (*prefix, *place)
        return ("experts", self.expert, *path)


def _places(path: tuple[str, ...]) -> list[tuple[str, ...]]:
    return [path, path[1:]] if len(path) == 3 and path[1] == "privacy" else [path]


def _stands(layer: Any, path: tuple[str, ...]) -> bool:
    for key in path:
        if not isinstance(layer, Mapping) or key not in layer:
            return False
        layer = layer[key]
    return True
