"""Whose the records are, as far as the settings tell it, and what must hold of that under privacy.

Two records can be known to be one person's only by their units' ids, and ids of different schemes cannot be compared.
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from sealed_experts.settings.messages import Mistake, listed, shown
from sealed_experts.settings.sources import CombinedSource, DatasetSettings, FilesSource, HubSource, RowsSettings
from sealed_experts.settings.types import Settings

RECORD = "record"
MIXED = "mixed"  # no scheme: ids of several kinds stand side by side, and one record may have two of them


def own_scheme(dataset: DatasetSettings) -> str:
    """Return how a dataset that is not combined makes its units' ids: `record`, or `field:` and the field's name."""
    unit = getattr(dataset, "unit", None)
    return RECORD if unit is None else f"field:{unit}"


def common_scheme(schemes: Iterable[str]) -> str:
    """Return the scheme of parts that agree, else `mixed`."""
    distinct = set(schemes)
    return distinct.pop() if len(distinct) == 1 else MIXED


def unit_scheme(name: str, datasets: Mapping[str, DatasetSettings]) -> str:
    """Return a dataset's scheme, through all its parts."""
    return common_scheme(own_scheme(datasets[leaf]) for leaf in leaves(name, datasets))


def leaves(name: str, datasets: Mapping[str, DatasetSettings]) -> list[str]:
    """Return the datasets that a dataset is made of and that are not combined themselves, each once."""
    found: dict[str, None] = {}  # keeps the order
    waiting, seen = [name], set()
    while waiting:
        current = waiting.pop()
        dataset = datasets.get(current)
        if dataset is None or current in seen:
            continue  # an unknown part, or a circle: told elsewhere
        seen.add(current)
        if isinstance(dataset, CombinedSource):
            waiting += reversed(dataset.of)
        else:
            found[current] = None
    return list(found)


def data_mistakes(settings: Settings, *, root: Path) -> Iterator[Mistake]:
    """Yield what is wrong with files, with units, and with one source read in two ways."""
    for name, dataset in settings.datasets.items():
        if isinstance(dataset, FilesSource):
            yield from _path_mistakes(name, dataset, root)
    # A dictionary, for the order: the configuration's.
    private = {
        expert.dataset: None
        for expert in settings.experts
        if any(expert.stage(stage).privacy.enabled for stage in expert.stages)
    }
    for name in private:
        yield from _scheme_mistakes(name, settings.datasets)
    trained = {leaf for name in private for leaf in leaves(name, settings.datasets)}
    yield from _reading_mistakes({name: settings.datasets[name] for name in settings.datasets if name in trained}, root)


def _path_mistakes(name: str, dataset: FilesSource, root: Path) -> Iterator[Mistake]:
    first: dict[str, str] = {}
    for place, path in enumerate(dataset.paths):
        here = ("datasets", name, "paths", place)
        if "{" in path or "}" in path:
            yield Mistake(here, f"{shown(path)} holds a brace, which Snakemake takes for a wildcard: rename the file")
        real = _real(root / path)
        if real in first:
            yield Mistake(here, f"{shown(path)} is the same file as {shown(first[real])}; name each once")
        first.setdefault(real, path)


def _scheme_mistakes(name: str, datasets: Mapping[str, DatasetSettings]) -> Iterator[Mistake]:
    """Ids of several schemes would count one record several times, each time as somebody else's."""
    schemes = {leaf: own_scheme(datasets[leaf]) for leaf in leaves(name, datasets)}
    if len(set(schemes.values())) > 1:
        kinds = ", ".join(f"`{leaf}`: {scheme}" for leaf, scheme in schemes.items())
        yield Mistake(
            ("datasets", name, "of"),
            f"its parts protect units of different kinds ({kinds}), so none of them could be promised anything; give"
            " them the same `unit`, or train on it without privacy",
            involves=tuple(("datasets", leaf, "unit") for leaf in schemes),
        )


def _reading_mistakes(datasets: Mapping[str, DatasetSettings], root: Path) -> Iterator[Mistake]:
    """A row whose fields are mapped in two ways becomes two records that look unrelated."""
    first: dict[str, tuple[str, RowsSettings]] = {}
    told: set[tuple[str, str]] = set()
    for name, dataset in datasets.items():
        if not isinstance(dataset, RowsSettings):
            continue
        for place, source in _places(dataset, root):
            other, reading = first.setdefault(place, (name, dataset))
            for key in ("fields", "unit"):
                if getattr(reading, key) != getattr(dataset, key) and (name, key) not in told:
                    told.add((name, key))
                    yield Mistake(
                        ("datasets", name, key),
                        f"{listed([other])} reads {shown(source)} too, with another `{key}`; under privacy, a record"
                        " that is read in two ways could not be known as the same one: give both the same `fields` and"
                        " `unit`",
                        involves=(("datasets", other, key),),
                    )


def _places(dataset: RowsSettings, root: Path) -> Iterator[tuple[str, str]]:
    """Yield what identifies each place that a dataset reads, and how the configuration calls it."""
    if isinstance(dataset, FilesSource):
        for path in dataset.paths:
            yield f"file {_real(root / path)}", path
    elif isinstance(dataset, HubSource):
        yield f"hub {dataset.path} {dataset.name}", dataset.path


def _real(path: Path) -> str:
    try:
        return os.path.realpath(path)
    except (OSError, ValueError):
        return str(path)  # no such file can exist: told elsewhere
