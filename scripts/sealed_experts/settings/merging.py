"""Merge configuration files, and the layers of an expert: the later one changes the earlier one."""

from collections.abc import Mapping
from typing import Any

# If one of these keys changes, the mapping describes another thing.
NAMING_KEYS = ("source", "name", "kind")
# Two ways to say the same thing: giving one of them removes the other.
ALTERNATIVES = (
    (frozenset({"batch_size"}), frozenset({"micro_batch_size", "gradient_accumulation"})),
    (frozenset({"max_steps", "total_steps"}), frozenset({"epochs"})),
)


def merge(first: Mapping[str, Any], later: Mapping[str, Any]) -> dict[str, Any]:
    """Return `first` changed by `later`. Mappings are merged deeply, lists are replaced, None deletes its key.

    A mapping whose `source`, `name` or `kind` changes is replaced completely: its old settings belong to another thing.
    Of two ways to say the same thing (ALTERNATIVES), the one that `later` uses replaces the other.
    """
    merged = without_taken_back(first, later)
    for key, value in later.items():
        old = merged.get(key)
        if value is None:
            merged.pop(key, None)
        elif not isinstance(value, Mapping):
            merged[key] = value
        elif isinstance(old, Mapping) and not names_another(old, value):
            merged[key] = merge(old, value)
        else:
            merged[key] = merge({}, value)
    return merged


def names_another(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Say whether `new` describes another thing than `old`."""
    pairs = [(old.get(key), new.get(key)) for key in NAMING_KEYS]
    return any(_is_scalar(before) and _is_scalar(after) and before != after for before, after in pairs)


def without_taken_back(first: Mapping[str, Any], later: Mapping[str, Any]) -> dict[str, Any]:
    """Return `first` without the keys that `later` replaces by their alternatives."""
    taken_back: set[str] = set()
    for one, other in (*ALTERNATIVES, *(pair[::-1] for pair in ALTERNATIVES)):
        if any(_is_scalar(later.get(key)) for key in one):
            taken_back |= other
    return {key: value for key, value in first.items() if key not in taken_back or not _is_scalar(value)}


def _is_scalar(value: Any) -> bool:
    # An expert or a dataset may itself be called `name` or `epochs`. Then that key holds a mapping.
    return value is not None and not isinstance(value, Mapping | list | tuple)
