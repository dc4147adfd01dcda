"""Measured times in the files of a run: equal runs differ only in these."""

from typing import Any

MEASURED = frozenset({"total_time_seconds", "seconds", "tokens_per_second"})


def without_times(value: Any) -> Any:
    """Return a nested value without measured times."""
    if isinstance(value, dict):
        return {key: without_times(item) for key, item in value.items() if key not in MEASURED}
    return [without_times(item) for item in value] if isinstance(value, list | tuple) else value
