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
    return any(key in old and key in new and old[key] != new[key] for key in _REPLACING_KEYS)
