"""Where records come from: one module a source, named as in the configuration."""

import abc
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from sealed_experts.data.records import INSTRUCTION
from sealed_experts.data.rows import BadRow, Row
from sealed_experts.features import Feature, Features
from sealed_experts.settings.choices import Choice
from sealed_experts.settings.fields import Group, setting
from sealed_experts.settings.messages import Mistake

RECORD = "record"  # each distinct record is a unit of privacy


class Source(Feature, Group):
    """A dataset: its settings, and how its rows are read. A subclass declares `source`, a literal of its own name."""

    source: str = setting("Where the rows come from.")
    public_evaluation: bool = setting(
        "Whether numbers measured on held-out records, and the plain digest of the records, may be published; true only"
        " where the records are not private.",
        default=False,
    )

    recipe: ClassVar[int] = 1  # raised when the same settings come to mean other records

    @abc.abstractmethod
    def read(self, *, parts: Sequence[Path] = ()) -> Iterator[Row | BadRow]:
        """Yield every row in a fixed order, usable or not.

        Args:
            parts: the folders of the prepared datasets that this one combines.

        Raises:
            UserError: the source as a whole cannot be read (a missing file or column, no network, …).
        """

    def count_upper_bound(self, datasets: Mapping[str, "Source"]) -> int | None:
        """Return, cheaply, a number of records that the dataset cannot exceed; None if only reading would tell.

        Args:
            datasets: all datasets by name.
        """
        return None

    def files(self) -> list[str]:
        """Return the files that it is made from: an edited one makes the dataset stale."""
        return []

    def parts(self) -> tuple[str, ...]:
        """Return the names of the prepared datasets that it combines."""
        return ()

    @abc.abstractmethod
    def places(self, root: Path) -> Iterator[tuple[str, str]]:
        """Yield what identifies each place that records are read from, and how the configuration calls it.

        Two datasets that read one place must read it alike, or one record would pass for two. There is no default:
        without an answer nobody would notice.
        """

    def record_kind(self) -> str:
        """Return which kind of records it holds; not asked where it combines others."""
        return INSTRUCTION

    def has_test_set(self) -> bool:
        """Return whether it yields rows of the side `test`; not asked where it combines others."""
        return False

    def reading(self) -> Mapping[str, object]:
        """Return the settings that decide which record a row becomes, and whose it is."""
        return {}

    def unit_scheme(self) -> str:
        """Return how units' ids are made: `record`, or `field:` and the field's name."""
        return RECORD

    def bad_share(self) -> float:
        """Return the largest share of unusable rows that is skipped and counted."""
        return 0.0

    def held_out_share(self) -> float:
        """Return the share of the groups that is held out; not asked where every row brings its own side."""
        return 0.0

    def mistakes(
        self, name: str, datasets: Mapping[str, "Source"], *, names: Sequence[str], root: Path
    ) -> Iterator[Mistake]:
        """Yield what is wrong with the dataset called `name`, whose single settings are right.

        Args:
            datasets: all datasets that have no mistake.
            names: of all that the configuration declares.
            root: folder that relative paths start from.
        """
        yield from ()


class SplitSource(Source):
    """What the sources share whose rows are split here into training and validation."""

    val_fraction: float = setting(
        "Share of the groups held out for validation; 1 for a dataset that nobody learns from.", default=0.1, gt=0, le=1
    )
    max_bad_share: float = setting(
        "Largest share of unusable rows that is skipped and counted; more is an error.", default=0.01, ge=0, le=1
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
    """Return `count_upper_bound` of every dataset for which it is known."""
    bounds = {name: dataset.count_upper_bound(datasets) for name, dataset in datasets.items()}
    return {name: bound for name, bound in bounds.items() if bound is not None}
