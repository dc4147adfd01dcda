"""Schemes of units: how the ids of a dataset's units are made. Ids of different schemes are never compared."""

from collections.abc import Iterable

MIXED = "mixed"  # no common scheme: one record may have two different ids


def common_scheme(schemes: Iterable[str]) -> str:
    """Return the scheme that all parts have, or `mixed` if they differ."""
    distinct = set(schemes)
    return distinct.pop() if len(distinct) == 1 else MIXED
