"""The units of privacy that the settings declare, and what must hold for them under privacy.

Only the ids of units show that two records belong to one person, and ids of different schemes cannot be compared.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from sealed_experts.data.parts import leaves
from sealed_experts.data.schemes import common_scheme
from sealed_experts.data.sources import Source
from sealed_experts.settings.messages import Mistake, listed, shown


def unit_scheme(name: str, datasets: Mapping[str, Source]) -> str:
    """Return the scheme of a dataset and all its parts."""
    return common_scheme(datasets[leaf].unit_scheme() for leaf in leaves(name, datasets))


def unit_mistakes(
    private: Iterable[str], datasets: Mapping[str, Source], *, others: Iterable[str] = (), root: Path
) -> Iterator[Mistake]:
    """Yield settings that would count one unit as several: mixed schemes, and one source that is read in two ways.

    Args:
        private: names of the datasets that an expert is trained on under privacy, also through other adapters.
        others: names of datasets whose records must be known as the same ones where they are: those that such an expert
            is validated on, and those behind adapters that are declared public.
        root: folder that relative paths start from.
    """
    names = list(dict.fromkeys(private))
    for name in names:
        yield from _scheme_mistakes(name, datasets)
    read = {leaf for name in (*names, *others) for leaf in leaves(name, datasets)}
    yield from _reading_mistakes({name: datasets[name] for name in datasets if name in read}, root)


def _scheme_mistakes(name: str, datasets: Mapping[str, Source]) -> Iterator[Mistake]:
    """Yield a combination of several schemes: it would count one record several times, for different units."""
    schemes = {leaf: datasets[leaf].unit_scheme() for leaf in leaves(name, datasets)}
    if len(set(schemes.values())) > 1:
        kinds = ", ".join(f"`{leaf}`: {scheme}" for leaf, scheme in schemes.items())
        yield Mistake(
            ("datasets", name, "of"),
            f"its parts protect units of different kinds ({kinds}), so none of them could be promised anything; give"
            " them the same `unit`, or train on it without privacy",
            involves=tuple(("datasets", leaf, "unit") for leaf in schemes),
        )


def _reading_mistakes(datasets: Mapping[str, Source], root: Path) -> Iterator[Mistake]:
    """Yield a source that is read in two ways: each row becomes two records that look unrelated."""
    first: dict[str, tuple[str, Source]] = {}
    said: set[tuple[str, str]] = set()
    for name, dataset in datasets.items():
        for place, source in dataset.places(root):
            other, before = first.setdefault(place, (name, dataset))
            for key, value in dataset.reading().items():
                if before.reading().get(key) != value and (name, key) not in said:
                    said.add((name, key))
                    yield Mistake(
                        ("datasets", name, key),
                        f"{listed([other])} reads {shown(source)} too, with another `{key}`; under privacy, a record"
                        " that is read in two ways could not be known as the same one: give both the same `fields` and"
                        " `unit`",
                        involves=(("datasets", other, key),),
                    )
