"""Rotary positions that depend on the longest row of a batch."""

from typing import Any

# Kinds that transformers adapts to the longest row; `dynamic` also remembers it.
_KINDS = ("dynamic", "longrope")


def shared_positions_beyond(config: Any) -> int | None:
    """Return the length in tokens beyond which one row changes the positions of all rows; None if none does.

    Args:
        config: the configuration of a base.
    """
    rope = getattr(config, "rope_parameters", None) or {}
    parts = [rope, *(value for value in rope.values() if isinstance(value, dict))]
    lengths = [
        part.get("original_max_position_embeddings") or config.max_position_embeddings
        for part in parts
        if part.get("rope_type") in _KINDS
    ]
    return min(lengths, default=None)
