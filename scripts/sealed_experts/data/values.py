"""Checked access to the values of a source's row."""

import unicodedata
from collections.abc import Mapping
from typing import Any


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
    """Return the name of a unit, a group or a class: text, or a whole number (which CSV gives as text).

    White space around a name, and different Unicode forms of one letter, do not make a different name. Otherwise one
    customer could become two units of privacy, and each would protect only half of the customer's records.

    Raises:
        Unusable: it is absent, blank, or neither text nor a whole number.
    """
    value = values.get(name)
    if isinstance(value, int) and not isinstance(value, bool):
        value = _digits(value, name)
    return unicodedata.normalize("NFC", text({name: value}, name).strip())


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
        if "\udc80" <= value[error.start] <= "\udcff":  # this is how a file's byte is read that is not UTF-8
            byte = in_windows(ord(value[error.start]) - 0xDC00)
            raise Unusable("not UTF-8", f"`{name}` at position {error.start}: {byte}") from error
        raise Unusable("not UTF-8", f"`{name}` holds half a character at position {error.start}") from error
    return value


def in_windows(byte: int) -> str:
    """Return a sentence about a byte that is not UTF-8."""
    letter = bytes([byte]).decode("cp1252", errors="replace")
    return f"the byte 0x{byte:02X} is not UTF-8 (it is {letter!r} in Windows-1252): save the file as UTF-8"


def _digits(value: int, name: str) -> str:
    try:
        return str(value)
    except ValueError as error:  # Python refuses to print a number of several thousand digits
        raise Unusable("wrong type", f"`{name}` is a number with too many digits") from error
