"""What every source yields: rows with the place they stand at, usable or not."""

import dataclasses
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from sealed_experts.errors import UserError
from sealed_experts.settings.fields import Group, setting, text
from sealed_experts.settings.texts import PRINTABLE

TRAIN, VAL = "train", "val"
UnitField = Annotated[
    str,
    text(PRINTABLE, "text without control characters or signs that turn its direction", min_length=1, max_length=190),
]


@dataclasses.dataclass(frozen=True)
class Row:
    """A usable row. `unit` and `group` are None where the source names none; `side` is set where it is inherited."""

    file: str
    line: int
    instruction: str
    output: str
    input: str = ""
    unit: str | None = None
    group: str | None = None
    side: str | None = None


@dataclasses.dataclass(frozen=True)
class BadRow:
    """A row that cannot be used: `reason` is its class (counted), `detail` says what exactly is wrong."""

    file: str
    line: int
    reason: str
    detail: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.reason}: {self.detail}"


class FieldMap(Group):
    """Which fields of a row hold the instruction, the input and the output."""

    instruction: str = setting("Field of the instruction (the question).", default="instruction", min_length=1)
    input: str | None = setting(
        "Field of the optional input (the context); a row without it has none.", default="input", min_length=1
    )
    output: str = setting("Field of the output (the answer).", default="output", min_length=1)


class Mapped(Group):
    """Settings of the sources that read the user's own rows."""

    fields: FieldMap = setting("Names of the fields.", default=FieldMap())
    unit: UnitField | None = setting(
        "Field that names the unit of privacy (a customer, a document); absent, each distinct record is a unit.",
        default=None,
    )
    group: str | None = setting(
        "Field that keeps related rows on one side of the split; absent, the unit, or else the instruction.",
        default=None,
        min_length=1,
    )

    def reading(self) -> Mapping[str, object]:
        """Return the settings that decide which record a row becomes, and whose it is."""
        return {"fields": self.fields, "unit": self.unit}

    def unit_scheme(self) -> str:
        """Return how units' ids are made: `record`, or `field:` and the field's name."""
        return "record" if self.unit is None else f"field:{self.unit}"


class _Unusable(Exception):
    """A field that cannot be used: reason and detail."""


def map_row(values: Mapping[str, Any], *, settings: Mapped, file: str, line: int) -> Row | BadRow:
    """Pick instruction, input, output, unit and group out of a source's row."""
    names = settings.fields
    try:
        return Row(
            file=file,
            line=line,
            instruction=_text(values, names.instruction),
            output=_text(values, names.output),
            input=_optional(values, names.input),
            unit=None if settings.unit is None else _identity(values, settings.unit),
            group=None if settings.group is None else _identity(values, settings.group),
        )
    except _Unusable as problem:
        return BadRow(file, line, *problem.args)


def mapped_columns(settings: Mapped) -> list[str]:
    """Return the names of a table's columns that `settings` asks for."""
    fields = settings.fields
    names = [fields.instruction, fields.input, fields.output, settings.unit, settings.group]
    return list(dict.fromkeys(name for name in names if name is not None))


def check_columns(place: str, header: Sequence[str], settings: Mapped) -> None:
    """Refuse a table without a column that is asked for; only the default `input` may be absent.

    Raises:
        UserError: a column is missing, or one that is used stands twice.
    """
    asked = mapped_columns(settings)
    missing = [column for column in asked if column not in header and not column == settings.fields.input == "input"]
    if missing:
        raise UserError(
            f"{place} has no column {', '.join(map(repr, missing))} (it has {', '.join(map(repr, header)) or 'none'}): "
            "correct `fields`, `unit` or `group`"
        )
    twice = [column for column in asked if list(header).count(column) > 1]
    if twice:
        raise UserError(f"{place}: the column {twice[0]!r} stands twice in the header: rename one")


def _text(values: Mapping[str, Any], name: str) -> str:
    if values.get(name) is None:
        raise _Unusable("missing field", f"`{name}` is not there or null")
    text = _checked(values[name], name)
    if not text.strip():
        raise _Unusable("empty field", f"`{name}` holds no text")
    return text


def _optional(values: Mapping[str, Any], name: str | None) -> str:
    if name is None or values.get(name) is None:
        return ""
    text = _checked(values[name], name)
    return text if text.strip() else ""


def _identity(values: Mapping[str, Any], name: str) -> str:
    """Return a unit's or group's name: text, or a whole number, which CSV would give as text too.

    Blanks around it and Unicode's several ways to write one letter make no other name: one customer with two names
    would be two units of privacy, each protected for a half.
    """
    value = values.get(name)
    if isinstance(value, int) and not isinstance(value, bool):
        value = _digits(value, name)
    return unicodedata.normalize("NFC", _text({name: value}, name).strip())


def _digits(value: int, name: str) -> str:
    try:
        return str(value)
    except ValueError as error:  # Python writes no number of more than some thousand digits
        raise _Unusable("wrong type", f"`{name}` is a number of too many digits") from error


def _checked(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise _Unusable("wrong type", f"`{name}` is {type(value).__name__}, not text")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise _Unusable("not UTF-8", f"`{name}` holds half a character at position {error.start}") from error
    return value
