# ruff: noqa: RUF009 (`setting` is dataclasses.field with a description)
"""Settings of the datasets: one class a source, named as the module of `data/sources` that reads it."""

import dataclasses
from typing import ClassVar

from sealed_experts.settings.fields import COMMIT, KNOWN_ENDING, Group, setting
from sealed_experts.text import PRINTABLE


@dataclasses.dataclass(frozen=True, kw_only=True)
class FieldMap(Group):
    """Which fields of a row hold the instruction, the input and the output."""

    instruction: str = setting("Field of the instruction (the question).", default="instruction", minLength=1)
    input: str | None = setting(
        "Field of the optional input (the context); a row without it has none.", default="input", minLength=1
    )
    output: str = setting("Field of the output (the answer).", default="output", minLength=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DatasetSettings(Group):
    """What every dataset has, whatever its source."""

    source: str = setting("Where the rows come from.")
    val_fraction: float = setting(
        "Share of the groups held out for validation.", default=0.1, exclusiveMinimum=0, exclusiveMaximum=1
    )
    max_bad_share: float = setting(
        "Largest share of unusable rows that is skipped and counted; more is an error.",
        default=0.01,
        minimum=0,
        maximum=1,
    )
    public_evaluation: bool = setting(
        "Whether numbers measured on held-out records, and the plain digest of the records, may be published; true only"
        " where the records are not private.",
        default=False,
    )

    unused: ClassVar[frozenset[str]] = frozenset()  # shared settings that mean nothing for this source: refused
    recipe: ClassVar[int] = 1  # raised when the same settings come to mean other records


@dataclasses.dataclass(frozen=True, kw_only=True)
class RowsSettings(DatasetSettings):
    """What the sources that read the user's own rows share."""

    fields: FieldMap = setting("Names of the fields.", default_factory=FieldMap)
    unit: str | None = setting(
        "Field that names the unit of privacy (a customer, a document); absent, each distinct record is a unit.",
        default=None,
        minLength=1,
        maxLength=190,
        pattern=PRINTABLE,
    )
    group: str | None = setting(
        "Field that keeps related rows on one side of the split; absent, the unit, or else the instruction.",
        default=None,
        minLength=1,
    )

    recipe: ClassVar[int] = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class DemoSource(DatasetSettings):
    """Finance questions and answers made on the spot from the glossary and facts in config/demo/."""

    source: str = setting("Made on the spot.", default="demo", const="demo")
    domain: str = setting("Which half of the demo data.", default="banking", enum=["banking", "investment"])
    records: int = setting("How many records to make at most.", default=2500, minimum=50)
    public_evaluation: bool = setting("The demo's records are not private.", default=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FilesSource(RowsSettings):
    """JSONL, CSV or Parquet files."""

    source: str = setting("Files.", default="files", const="files")
    paths: tuple[str, ...] = setting(
        "The files, read in this order; the ending decides the format: .jsonl, .csv or .parquet.",
        minItems=1,
        uniqueItems=True,
        items={"pattern": KNOWN_ENDING},
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class HubSource(RowsSettings):
    """A dataset on the Hugging Face hub."""

    source: str = setting("The hub.", default="hub", const="hub")
    path: str = setting("The dataset's id.", minLength=1)
    revision: str = setting("The dataset's commit (40 hexadecimal digits).", pattern=COMMIT)
    name: str | None = setting("The dataset's configuration, where it has several.", default=None, minLength=1)
    split: str = setting("Which of its splits to read.", default="train", minLength=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CombinedSource(DatasetSettings):
    """Several other datasets together; each record stays on the side of the split it has there."""

    source: str = setting("Other datasets.", default="combined", const="combined")
    of: tuple[str, ...] = setting("The datasets to combine.", minItems=1, uniqueItems=True)

    unused: ClassVar[frozenset[str]] = frozenset({"val_fraction", "max_bad_share"})
    recipe: ClassVar[int] = 2


DATASET_SOURCES: dict[str, type[DatasetSettings]] = {
    "demo": DemoSource,
    "files": FilesSource,
    "hub": HubSource,
    "combined": CombinedSource,
}
