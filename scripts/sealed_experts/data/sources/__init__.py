"""Where records come from. Each module here is one source, named as in the configuration, with the same two functions:

- `read(settings, *, parts) -> Iterator[Row | BadRow]`: every row in a fixed order, usable or not. `parts` are the
  folders of prepared datasets, for the source that combines them.
- `count_upper_bound(settings, *, datasets) -> int | None`: cheaply, and without torch, a number of records that the
  dataset cannot exceed, or None when that is not known before reading. `datasets` are all datasets by name.
"""

import importlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType

from sealed_experts.data.sources.rows import BadRow, Row
from sealed_experts.settings.sources import DATASET_SOURCES, DatasetSettings


def read_rows(settings: DatasetSettings, *, parts: Sequence[Path] = ()) -> Iterator[Row | BadRow]:
    """Yield every row of a dataset's source.

    Raises:
        UserError: the source as a whole cannot be read (a missing file or column, no network, …).
    """
    return _module(settings).read(settings, parts=parts)


def count_upper_bound(
    settings: DatasetSettings, *, datasets: Mapping[str, DatasetSettings] | None = None
) -> int | None:
    """Return a number of records that the dataset cannot exceed, or None when only reading it would tell."""
    return _module(settings).count_upper_bound(settings, datasets=datasets or {})


def dataset_bounds(datasets: Mapping[str, DatasetSettings]) -> dict[str, int]:
    """Return `count_upper_bound` of every dataset for which it is known."""
    bounds = {name: count_upper_bound(settings, datasets=datasets) for name, settings in datasets.items()}
    return {name: bound for name, bound in bounds.items() if bound is not None}


def _module(settings: DatasetSettings) -> ModuleType:
    if settings.source not in DATASET_SOURCES:
        raise KeyError(f"no source is called {settings.source!r}")
    return importlib.import_module(f"{__name__}.{settings.source}")
