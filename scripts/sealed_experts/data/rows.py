"""The rows that every source yields, usable or not, each with its file and line."""

import dataclasses
import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import Field, create_model

from sealed_experts.data.records import INSTRUCTION, RECORDS, Record
from sealed_experts.data.records.chat import CHAT, CHAT_FIELDS
from sealed_experts.data.records.instruction import InstructionColumns
from sealed_experts.data.values import Unusable, identity, unit_name, whole_text
from sealed_experts.errors import UserError
from sealed_experts.settings.checking import LARGEST_INTEGER
from sealed_experts.settings.choices import OptionsOf
from sealed_experts.settings.fields import Distinct, Group, Open, setting, text
from sealed_experts.settings.messages import listed
from sealed_experts.settings.texts import PRINTABLE

RECORD = "record"  # each distinct record is a unit of privacy
TRAIN, VAL, TEST = "train", "val", "test"
UnitField = Annotated[
    str,
    text(PRINTABLE, "text without control characters or signs that turn its direction", min_length=1, max_length=190),
]


@dataclasses.dataclass(frozen=True)
class Row:
    """A usable row.

    Attributes:
        file: the file that it comes from.
        line: the line in that file.
        record: its record.
        group: rows of the same group stay on one side of the split; None if no group is given.
        side: the side that it belongs to; None if the split decides.
    """

    file: str
    line: int
    record: Record
    group: str | None = None
    side: str | None = None


@dataclasses.dataclass(frozen=True)
class BadRow:
    """A row that cannot be used. `reason` is a class, which is counted; `detail` says exactly what is wrong."""

    file: str
    line: int
    reason: str
    detail: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.reason}: {self.detail}"


_Kind: Any = Literal[tuple(RECORDS)]
_COLUMNS = {name: kind.columns for name, kind in RECORDS.items()}


class Mapped(Group):
    """Settings of the sources that read the user's own rows."""

    kind: _Kind = setting("What a row holds (docs/data.md).", default=INSTRUCTION)
    # `kind` decides which fields these are: see `variant`.
    fields: Annotated[InstructionColumns, OptionsOf(_COLUMNS)] = setting(
        "Names of the fields.", default=InstructionColumns()
    )
    unit: UnitField | None = setting(
        "Field that names the unit of privacy (a customer, a document). Without it, each distinct record is a unit.",
        default=None,
    )
    missing_unit: Literal["refuse", "own"] = setting(
        "For a row whose `unit` is absent or a placeholder (`nan`, `NULL`, `unknown`, `-`, …): `refuse` counts it as"
        " unusable, `own` makes it a unit.",
        default="refuse",
    )
    group: str | None = setting(
        "Field that keeps related rows on one side of the split. Without it, the unit does, or else the question.",
        default=None,
        min_length=1,
    )
    metadata: Distinct[Annotated[str, Field(min_length=1)]] = setting(
        "Further fields to keep with each record. They stay on this machine and have no effect.", default=()
    )

    @classmethod
    def variant(cls, data: Mapping[str, Any]) -> type[Self]:
        """Return this class with the `fields` of the given kind of records."""
        kind = data.get("kind", INSTRUCTION)
        return _with_fields(cls, kind if isinstance(kind, str) and kind in RECORDS else None)

    def record_kind(self) -> str:
        """`kind`."""
        return str(self.kind)

    def reading(self) -> Mapping[str, object]:
        """Return the settings that decide which record a row becomes, and which unit it belongs to."""
        return {"kind": self.kind, "fields": self.fields, "unit": self.unit, "missing_unit": self.missing_unit}

    def unit_scheme(self) -> str:
        """Return how units' ids are made: `record`, `field:` with the field's name, or that with `or record`."""
        if self.unit is None:
            return RECORD
        return f"field:{self.unit}" + (f" or {RECORD}" if self.missing_unit == "own" else "")


@functools.cache
def _with_fields(source: Any, kind: str | None) -> Any:
    """Return a source's settings with the fields of a kind, or with any fields if the kind is invalid."""
    columns: Any = _COLUMNS[kind] if kind else Open
    fields = (columns, setting("Names of the fields.", default=columns() if kind else {}))
    return create_model(source.__name__, __base__=source, __module__=source.__module__, fields=fields)


def map_row(values: Mapping[str, Any], *, settings: Mapped, file: str, line: int) -> Row | BadRow:
    """Make a record from a source's row: its content, its unit and group, its metadata."""
    kind = RECORDS[settings.kind]
    try:
        content = kind.read(values, settings.fields)
        unit = settings.unit and unit_name(values, settings.unit, own=settings.missing_unit == "own")
        group = None if settings.group is None else identity(values, settings.group)
        metadata = {name: _kept(values[name], name) for name in settings.metadata if values.get(name) is not None}
        record = kind.of(unit=unit, metadata=metadata, **content)
    except Unusable as problem:
        return BadRow(file, line, problem.reason, problem.detail + _hint(values, settings))
    return Row(file, line, record, group=group)


def mapped_columns(settings: Mapped) -> dict[str, str]:
    """Return the table columns that `settings` uses, each with the first setting that names it."""
    parts = {f"fields.{name}": getattr(settings.fields, name) for name in type(settings.fields).model_fields}
    named = [*parts.items(), ("unit", settings.unit), ("group", settings.group)]
    named += [("metadata", column) for column in settings.metadata]
    found: dict[str, str] = {}
    for setting_of_it, column in named:
        if column is not None:
            found.setdefault(column, setting_of_it)
    return found


def missing_columns(header: Sequence[str], settings: Mapped) -> list[str]:
    """Return the columns that the settings need and a table with this header lacks."""
    optional = settings.fields.optional()
    return [column for column in mapped_columns(settings) if column not in header and column not in optional]


def check_columns(place: str, header: Sequence[str], settings: Mapped) -> None:
    """Check that a table has the columns that the settings use.

    Raises:
        UserError: a column is missing, or the header has it twice.
    """
    missing, named = missing_columns(header, settings), mapped_columns(settings)
    if missing:
        raise UserError(
            f"{place} has no column {', '.join(map(repr, missing))} (it has {', '.join(map(repr, header)) or 'none'}): "
            f"correct {listed(dict.fromkeys(named[column] for column in missing))}{_hint(header, settings)}"
        )
    twice = [column for column in mapped_columns(settings) if list(header).count(column) > 1]
    if twice:
        raise UserError(f"{place}: the column {twice[0]!r} is twice in the header: rename one")


def _hint(columns: Iterable[str], settings: Mapped) -> str:
    """Return what to set if rows that hold conversations are read as another kind."""
    found = next((name for name in CHAT_FIELDS if name in columns), None)
    return "" if settings.kind == CHAT or found is None else f"; if `{found}` holds conversations, write `kind: chat`"


def _kept(value: Any, name: str) -> Any:
    """Return metadata as JSON values; a value that JSON does not have (a time, NaN) becomes text."""
    if isinstance(value, Mapping):
        return {whole_text(str(key), name): _kept(item, name) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_kept(item, name) for item in value]
    carried = isinstance(value, bool) or value is None
    carried |= isinstance(value, int) and abs(value) <= LARGEST_INTEGER
    carried |= isinstance(value, float) and math.isfinite(value)
    return value if carried else whole_text(str(value), name)
