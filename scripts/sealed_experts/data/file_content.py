"""The lines of a text file as UTF-8, whatever its name says: also from gzip and UTF-16. Other content is named."""

import codecs
import gzip
import io
import itertools
import zlib
from collections.abc import Iterator
from typing import IO, Any

from sealed_experts.errors import UserError
from sealed_experts.files.canonical import strict_json, strict_json_values

_SNIFFED = 4096
_GZIP = b"\x1f\x8b"
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
# How other kinds of files begin, what they are called, and what to do.
_OTHERS = (
    (b"version https://git-lfs.github.com/spec/", "a Git LFS pointer, not the data", "run `git lfs pull`"),
    (b"PAR1", "a Parquet file", "give it a name that ends in .parquet"),
    (b"PK\x03\x04", "a ZIP archive or a spreadsheet", "unpack it, or export the sheet as CSV"),
    (b"\xd0\xcf\x11\xe0", "an old spreadsheet (.xls)", "export the sheet as CSV"),
    (b"SQLite format 3", "an SQLite database", "export the table as CSV"),
    (b"%PDF-", "a PDF", "extract its records into .jsonl or .csv"),
)


def utf8_lines(name: str) -> Iterator[bytes]:
    """Yield the lines of a file with their line ends, in UTF-8 and without a byte order mark.

    Bytes that are not UTF-8 are passed on: whoever reads a line reports it.

    Raises:
        UserError: the file is of another kind; the message names it and says what to do.
        OSError: it cannot be read.
    """
    with open(name, "rb") as file:
        stream: Any = file
        if _start(file).startswith(_GZIP):
            stream = gzip.open(file)  # noqa: SIM115  # closed with the file
        try:
            start = _start(stream)
            _refuse_others(name, start)
            if start.startswith(_UTF16) and not start.startswith(codecs.BOM_UTF32_LE):
                for text in io.TextIOWrapper(stream, encoding="utf-16", newline=""):
                    yield text.encode()
                return
            for number, line in enumerate(stream):
                yield line.removeprefix(codecs.BOM_UTF8) if number == 0 else line
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise UserError(f"{name} is gzip and damaged or cut short ({error}): get the file again") from error
        except UnicodeError as error:
            raise UserError(f"{name} begins like UTF-16 and is damaged ({error}): save it as UTF-8") from error


def json_values(name: str) -> Iterator[tuple[int, Any]]:
    """Yield the number and the value of each record of a JSON file; a ValueError in place of a line that is no JSON.

    The file holds one value a line (JSON Lines), or one array of records, or values over several lines. A file that is
    not JSON Lines is read into memory.

    Raises:
        UserError, OSError: as for `utf8_lines`.
    """
    lines = utf8_lines(name)
    first: list[bytes] = []  # up to the first line that is not blank
    while (not first or not first[-1].strip()) and (line := next(lines, None)) is not None:
        first.append(line)
    if first and not isinstance(_value(first[-1]), dict):
        first += lines
        found = _whole(b"".join(first))
        if found is not None:
            yield from enumerate(found, 1)
            return
    for number, line in enumerate(itertools.chain(first, lines), 1):
        if line.strip():
            yield number, _value(line)


def holds_lines(name: str) -> bool:
    """Return whether a file's own lines are an upper bound of its records: it is plain text, and no JSON array.

    Raises:
        OSError: it cannot be read.
    """
    with open(name, "rb") as stream:
        start = stream.read(_SNIFFED)
    return not start.startswith((_GZIP, *_UTF16)) and not start.removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"[")


def _start(stream: IO[bytes]) -> bytes:
    start = stream.read(_SNIFFED)
    stream.seek(0)
    return start


def _refuse_others(name: str, start: bytes) -> None:
    for magic, kind, remedy in _OTHERS:
        if start.startswith(magic):
            raise UserError(f"{name} is {kind}: {remedy}")
    head = start.removeprefix(codecs.BOM_UTF8).lstrip().lower()
    if head.startswith((b"<!doctype html", b"<html", b"<?xml")):
        raise UserError(f"{name} is a web page or XML, not the data: download the file itself")
    if b"\0" in start and not start.startswith(_UTF16):
        raise UserError(f"{name} holds zero bytes, so it is no text in UTF-8: save it as UTF-8")


def _value(line: bytes) -> Any:
    """Return a line's value, or the error: UnicodeDecodeError is a ValueError too."""
    try:
        return strict_json(line.decode())
    except ValueError as error:
        return error


def _whole(content: bytes) -> list[Any] | None:
    """Return the records of a file that is not JSON Lines; None if its lines are to be read one by one."""
    try:
        values = strict_json_values(content.decode())
    except ValueError:
        return None
    if len(values) == 1 and isinstance(values[0], list):
        return values[0]
    lines = sum(bool(line.strip()) for line in content.splitlines())
    return values if len(values) < lines and all(isinstance(value, dict) for value in values) else None
