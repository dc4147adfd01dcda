"""Schemes of units: how the ids of a dataset's units are made. Ids of different schemes are never compared."""

from collections.abc import Iterable

MIXED = "mixed"  # no scheme: ids of several kinds come together, and one record may have two of them


def common_scheme(schemes: Iterable[str]) -> str:
    """Return the scheme of parts that agree, else `mixed`."""
    distinct = set(schemes)
    return distinct.pop() if len(distinct) == 1 else MIXED
