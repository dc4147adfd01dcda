"""How later configuration files change earlier ones."""

from collections.abc import Mapping
from typing import Any

_REPLACING_KEYS = ("source", "name")


def merge(first: Mapping[str, Any], later: Mapping[str, Any]) -> dict[str, Any]:
    """Return `later` over `first`: mappings deeply, lists replaced, None deletes its key.

    A mapping whose `source` or `name` changes is replaced whole: the old one's other settings belong to another thing.
    """
    merged = dict(first)
    for key, value in later.items():
        old = merged.get(key)
        if value is None:
            merged.pop(key, None)
        elif not isinstance(value, Mapping):
            merged[key] = value
        elif isinstance(old, Mapping) and not _has_become_another(old, value):
            merged[key] = merge(old, value)
        else:
            merged[key] = merge({}, value)
    return merged


def _has_become_another(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    pairs = [(old.get(key), new.get(key)) for key in _REPLACING_KEYS]
    return any(_is_scalar(before) and _is_scalar(after) and before != after for before, after in pairs)


def _is_scalar(value: Any) -> bool:
    # An expert or a dataset may itself be called `name` or `source`: that key then holds a mapping.
    return value is not None and not isinstance(value, Mapping | list | tuple)
