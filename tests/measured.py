"""What a clock measured, in the files that a run leaves: two runs differ in nothing else."""

from typing import Any

MEASURED = frozenset({"total_time_seconds", "seconds", "tokens_per_second"})


def without_times(value: Any) -> Any:
    """Return a nested value without what was measured by a clock."""
    if isinstance(value, dict):
        return {key: without_times(item) for key, item in value.items() if key not in MEASURED}
    return [without_times(item) for item in value] if isinstance(value, list | tuple) else value
