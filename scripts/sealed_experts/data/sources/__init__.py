"""The sources of records. Each source is one module, named as in the configuration."""

import abc
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from sealed_experts.data.records import INSTRUCTION
from sealed_experts.data.rows import RECORD, BadRow, Row
from sealed_experts.features import Feature, Features
from sealed_experts.settings.choices import Choice
from sealed_experts.settings.fields import Group, setting
from sealed_experts.settings.messages import Mistake


class Source(Feature, Group):
    """A dataset: its settings, and how to read its rows. A subclass declares `source` as a literal of its own name."""

    source: str = setting("Where the rows come from.")
    public_evaluation: bool = setting(
        "Whether numbers measured on held-out records, and the plain digest of the records, may be published. Set true"
        " only if the records are not private.",
        default=False,
    )

    recipe: ClassVar[int] = 1  # raise it when the same settings give other records

    @abc.abstractmethod
    def read(self, *, parts: Sequence[Path] = ()) -> Iterator[Row | BadRow]:
        """Yield every row in a fixed order, usable or not.

        Args:
            parts: the folders of the prepared datasets that this one combines.

        Raises:
            UserError: the whole source cannot be read (a missing file or column, no network, …).
        """

    def count_upper_bound(self, datasets: Mapping[str, "Source"]) -> int | None:
        """Return quickly an upper bound of the number of records; None if only reading the records can give it.

        Args:
            datasets: all datasets by name.
        """
        return None

    def files(self) -> list[str]:
        """Return the files that the dataset is made from. An edit of one makes the dataset stale."""
        return []

    def parts(self) -> tuple[str, ...]:
        """Return the names of the prepared datasets that it combines."""
        return ()

    @abc.abstractmethod
    def places(self, root: Path) -> Iterator[tuple[str, str]]:
        """Yield each place that records are read from, as (identifier, name in the configuration).

        Two datasets that read the same place must read it in the same way; otherwise one record counts as two. There is
        no default, because a forgotten answer would go unnoticed.
        """

    def record_kind(self) -> str:
        """Return the kind of records that it holds; not called for a combination."""
        return INSTRUCTION

    def has_test_set(self) -> bool:
        """Return whether it yields rows of the side `test`; not called for a combination."""
        return False

    def reading(self) -> Mapping[str, object]:
        """Return the settings that decide which record a row becomes, and which unit it belongs to."""
        return {}

    def unit_scheme(self) -> str:
        """Return how units' ids are made: `record`, or `field:` with the field's name."""
        return RECORD

    def bad_share(self) -> float:
        """Return the largest share of unusable rows that is accepted; they are skipped and counted."""
        return 0.0

    def held_out_share(self) -> float:
        """Return the share of the groups that the split holds out; not called if every row has a given side."""
        return 0.0

    def mistakes(
        self, name: str, datasets: Mapping[str, "Source"], *, names: Sequence[str], root: Path
    ) -> Iterator[Mistake]:
        """Yield mistakes of the dataset called `name`, although each of its settings is valid alone.

        Args:
            datasets: all datasets without mistakes.
            names: names of all datasets in the configuration.
            root: folder that relative paths start from.
        """
        yield from ()


class SplitSource(Source):
    """Settings of the sources whose rows preparation splits into training and validation."""

    val_fraction: float = setting(
        "Share of the groups held out for validation; 1 for a dataset without training records.",
        default=0.1,
        gt=0,
        le=1,
    )
    max_bad_share: float = setting(
        "Largest accepted share of unusable rows. They are skipped and counted; more are an error.",
        default=0.01,
        ge=0,
        le=1,
    )

    def bad_share(self) -> float:
        """`max_bad_share`."""
        return self.max_bad_share

    def held_out_share(self) -> float:
        """`val_fraction`."""
        return self.val_fraction


SOURCES = Features(Source, noun="source of data")  # type: ignore[type-abstract]
DATASET = Choice(SOURCES, key="source")


def dataset_bounds(datasets: Mapping[str, Source]) -> dict[str, int]:
    """Return `count_upper_bound` of every dataset that has one."""
    bounds = {name: dataset.count_upper_bound(datasets) for name, dataset in datasets.items()}
    return {name: bound for name, bound in bounds.items() if bound is not None}
