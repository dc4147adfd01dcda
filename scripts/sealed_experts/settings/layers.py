"""What an expert inherits, and where a setting of its was given.

From weakest to strongest: what is built in, `defaults`, the expert, `overrides`. The layer decides first. Within one
layer a stage's own `privacy` (`sft.privacy`) beats the `privacy` beside the stage; an expert's `privacy` therefore
beats `defaults.sft.privacy`, and `overrides.privacy` beats everything but `overrides.sft.privacy`.

The logical batch has two spellings, `batch_size` and `micro_batch_size` with `gradient_accumulation`. A layer that
gives one of them replaces the other one if it was inherited.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

from sealed_experts.settings.merging import merge
from sealed_experts.settings.messages import KeyPath

PRODUCT = ("micro_batch_size", "gradient_accumulation")


@dataclasses.dataclass(frozen=True)
class Layers:
    """The layers of one expert, from the weakest to the strongest: (where it stands, its settings)."""

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
                (("overrides",), document.get("overrides", {})),
            ),
        )

    def value(self, name: str) -> dict[str, Any]:
        """Return {name: value} of a single setting of the expert, {} when no layer gives it."""
        given = [layer[name] for _, layer in self.layers if name in layer]
        return {name: given[-1]} if given else {}

    def group(self, name: str) -> dict[str, Any]:
        """Return a group of the expert's settings that is not a stage."""
        return {key: value for _, layer in self.layers for key, value in layer.get(name, {}).items()}

    def merged(self, name: str) -> dict[str, Any]:
        """Return a group of the expert's settings whose inner groups are merged too."""
        return functools.reduce(merge, [layer.get(name, {}) for _, layer in self.layers], {})

    def stage(self, name: str) -> dict[str, Any]:
        """Return a stage's settings with its privacy."""
        settings: dict[str, Any] = {}
        privacy: dict[str, Any] = {}
        for _, layer in self.layers:
            given = layer.get(name, {})
            if "batch_size" in given:
                settings = {key: value for key, value in settings.items() if key not in PRODUCT}
            elif any(key in given for key in PRODUCT):
                settings.pop("batch_size", None)
            settings |= given
            privacy |= layer.get("privacy", {}) | given.get("privacy", {})
        return settings | {"privacy": privacy}

    def doubled(self, stage: str) -> list[KeyPath]:
        """Return the layers that give the logical batch in both spellings."""
        return [
            prefix
            for prefix, layer in self.layers
            if _stands(layer, (stage, "batch_size")) and any(_stands(layer, (stage, key)) for key in PRODUCT)
        ]

    def locate(self, *path: str) -> KeyPath:
        """Return where the strongest layer gives a setting; the expert's own place when only the built-in holds."""
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
