"""Checked access to the values of a source's row."""

import re
import unicodedata
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from sealed_experts.settings.checking import LARGEST_INTEGER

# Texts that stand for a missing name, in lower case. As a unit, they would join the rows of many people.
PLACEHOLDERS = frozenset(
    [
        "",
        "nan",
        "<na>",
        "n/a",
        "#n/a",
        "na",
        "nat",
        "null",
        "<null>",
        "none",
        "nil",
        "undefined",
        "unknown",
        "missing",
        "-",
        "--",
        "?",
        ".",
    ]
)
_WHOLE_WITH_POINT = re.compile(r"-?(0|[1-9][0-9]*)\.0")  # as pandas writes a whole number


class Unusable(Exception):
    """A value that cannot be used. `reason` is a class, which is counted; `detail` says exactly what is wrong."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


def present(values: Mapping[str, Any], name: str) -> Any:
    """Return a value that must be there.

    Raises:
        Unusable: it is absent or null.
    """
    if values.get(name) is None:
        raise Unusable("missing field", f"`{name}` is missing or null")
    return values[name]


def text(values: Mapping[str, Any], name: str) -> str:
    """Return a text that must be there.

    Raises:
        Unusable: it is absent, not text, or blank.
    """
    found = whole_text(present(values, name), name)
    if not found.strip():
        raise Unusable("empty field", f"`{name}` holds no text")
    return found


def optional_text(values: Mapping[str, Any], name: str | None) -> str:
    """Return a text that may be absent, null or blank; then return an empty text.

    Raises:
        Unusable: it is not text.
    """
    if name is None or values.get(name) is None:
        return ""
    found = whole_text(values[name], name)
    return found if found.strip() else ""


def identity(values: Mapping[str, Any], name: str) -> str:
    """Return the name of a unit, a group or a class: text, or a whole number.

    One name must not become two: then one customer would be two units of privacy, and each would protect only half of
    the customer's records. So the value 1001 has the same name as a number in JSON, as text in CSV, and as `1001.0`,
    which pandas writes for a column of whole numbers with gaps. White space and invisible characters around a name, and
    different Unicode forms of one letter, do not count either. Other texts stay different: `007` is not `7`.

    Raises:
        Unusable: it is absent, blank, or neither text nor a whole number.
    """
    value = values.get(name)
    if isinstance(value, int | float | Decimal) and not isinstance(value, bool):
        value = _digits(value, name)
    found = unicodedata.normalize("NFC", _stripped(text({name: value}, name)))
    if not found:
        raise Unusable("empty field", f"`{name}` holds no text")
    return _digits(Decimal(found), name) if _WHOLE_WITH_POINT.fullmatch(found) else found


def unit_name(values: Mapping[str, Any], name: str, *, own: bool) -> str | None:
    """Return the name of a row's unit of privacy; None if the row names nobody and is then a unit of its own.

    Args:
        name: the field.
        own: whether a row may name nobody.

    Raises:
        Unusable: the row names nobody although it must, or as for `identity`.
    """
    value = values.get(name)
    if isinstance(value, str) and _stripped(value).casefold() in PLACEHOLDERS:
        problem = f"`{name}` is {value[:40]!r}, which names no unit"
    elif value is None or (isinstance(value, float | Decimal) and value != value):
        problem = f"`{name}` is missing or null"
    else:
        return identity(values, name)
    if own:
        return None
    raise Unusable("no unit", f"{problem}: correct it, or write `missing_unit: own` to make each such row a unit")


def whole_text(value: Any, name: str) -> str:
    """Return a value that must be text without half characters (lone surrogates).

    Raises:
        Unusable: it is something else.
    """
    if not isinstance(value, str):
        raise Unusable("wrong type", f"`{name}` is {type(value).__name__}, not text")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise Unusable("not UTF-8", f"`{name}` holds half a character at position {error.start}") from error
    return value


def _digits(value: float | Decimal, name: str) -> str:
    if isinstance(value, int):
        try:
            return str(value)
        except ValueError as error:  # Python refuses to print a number of several thousand digits
            raise Unusable("wrong type", f"`{name}` is a number with too many digits") from error
    number = Decimal(value)
    if number.is_nan():
        raise Unusable("missing field", f"`{name}` is missing or null")
    if abs(number) > LARGEST_INTEGER:
        raise Unusable("wrong type", f"`{name}` is {type(value).__name__} and may have lost digits: write it as text")
    if number != int(number):
        raise Unusable(
            "wrong type", f"`{name}` is {type(value).__name__} {str(value)[:40]}, not text or a whole number"
        )
    return str(int(number))


def _stripped(name: str) -> str:
    """Remove white space and invisible characters (Unicode's Cf) at both ends."""
    start, end = 0, len(name)
    while start < end and _is_blank(name[start]):
        start += 1
    while end > start and _is_blank(name[end - 1]):
        end -= 1
    return name[start:end]


def _is_blank(character: str) -> bool:
    return character.isspace() or unicodedata.category(character) == "Cf"
