"""What a file of rows really is: decided by its first bytes, because names often say something else.

Only what has one meaning is read: gzip, text with a byte order mark, a JSON list, JSON objects over several lines.
Everything else is refused with one line that names what the file is and what to do.
"""

import codecs
import contextlib
import gzip
import io
import json
import os
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from sealed_experts.data.csv_records import DELIMITERS
from sealed_experts.errors import UserError

HEAD_BYTES = 65_536
JSONL, CSV, PARQUET = ".jsonl", ".csv", ".parquet"
LINES, LIST, VALUES = "lines", "list", "values"
# So many lines with bytes that are not UTF-8, and no character that is: the whole file has another encoding. A few such
# lines in a large file are bad rows.
WRONG_LINES, WRONG_SHARE = 3, 0.01
_WRONG_BYTE = re.compile("[\udc80-\udcff]")  # as Python reads a byte that is not UTF-8
_GZIP = b"\x1f\x8b"
_UNPACK = "unpack it, and give the file inside"
_MAGIC = (
    (b"PAR1", "a Parquet file", "rename it to end in .parquet"),
    (b"PK\x03\x04", "a ZIP archive", _UNPACK),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an Excel workbook", 'save it in Excel as "CSV UTF-8"'),
    (b"BZh", "compressed with bzip2", _UNPACK),
    (b"\xfd7zXZ\0", "compressed with xz", _UNPACK),
    (b"\x28\xb5\x2f\xfd", "compressed with Zstandard", _UNPACK),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive", _UNPACK),
    (b"%PDF-", "a PDF document", "give the rows as .jsonl or .csv"),
    (b"SQLite format 3\0", "an SQLite database", "export the table as .csv"),
    (b"ARROW1\0\0", "an Arrow file", "write it as .parquet"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file", "write it as .parquet"),
    (b"\x93NUMPY", "a NumPy array", "write the rows as .jsonl"),
    (b"\x80\x04\x95", "a Python pickle", "write the rows as .jsonl"),
)
_JSON_STARTS = ('{"', "[{", "[\n", "{\n", "[\r\n", "{\r\n")
_EXCEL_PARTS = (b"xl/", b"[Content_Types].xml")
_TEXTS = (
    (
        "version https://git-lfs.github.com/spec/",
        "a Git LFS pointer, not the data",
        "fetch the data with `git lfs pull`",
    ),
    ("/annex/objects/", "a git-annex pointer, not the data", "fetch the data with `git annex get`"),
    ("<!doctype html", "an HTML page (perhaps of a login or an error)", "download the data file itself"),
    ("<html", "an HTML page (perhaps of a login or an error)", "download the data file itself"),
    ("<?xml", "an XML file", "give the rows as .jsonl or .csv"),
)
_BYTE_ORDER_MARKS = (  # UTF-32 first: its mark begins with that of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


@dataclass(frozen=True, kw_only=True)
class Content:
    """How to read a file.

    Attributes:
        compressed: whether it is compressed with gzip.
        encoding: of its text; a byte order mark is no part of the text.
        shape: of JSON: `LINES`, `LIST` (one list of objects) or `VALUES` (objects over several lines).
        first_line: the beginning of the text, to find the delimiter of CSV.
    """

    compressed: bool = False
    encoding: str = "utf-8-sig"
    shape: str = LINES
    first_line: str = ""

    @property
    def is_plain(self) -> bool:
        """Whether no file of such lines holds more records than lines."""
        return self.shape == LINES and not self.compressed and self.encoding == "utf-8-sig"


def format_of(name: str) -> str:
    """Return the format that a file's name states: JSONL, CSV or PARQUET."""
    suffix = Path(name.lower().removesuffix(".gz")).suffix
    return JSONL if suffix == ".json" else suffix


def examine(path: str | os.PathLike[str], *, name: str) -> Content:
    """Return how to read a file. Reads only its beginning.

    Args:
        name: the file's name in the configuration; its ending states the format.

    Raises:
        UserError: it has another format than its name says, is empty, or is no file of rows.
        OSError: it cannot be read.
    """
    form = format_of(name)
    with open(path, "rb") as stream:
        head = stream.read(HEAD_BYTES)
        compressed = head.startswith(_GZIP)
        if compressed:
            if form == PARQUET:
                raise _refused(name, "compressed with gzip", "unpack it with gunzip")
            stream.seek(0)
            with _plain_messages(name), gzip.GzipFile(fileobj=stream) as unpacked:
                head = unpacked.read(HEAD_BYTES)
            if head.startswith(_GZIP):
                raise _refused(name, "compressed twice with gzip", "unpack it once with gunzip")
    if form == PARQUET and head.startswith(b"PAR1"):
        return Content()
    _check_magic(head, name)
    encoding = next((encoding for mark, encoding in _BYTE_ORDER_MARKS if head.startswith(mark)), "utf-8-sig")
    text = _decoded(head, encoding)
    _check_known_text(text, name)
    if form != JSONL and text.lstrip().startswith(_JSON_STARTS):
        raise _refused(name, f"JSON, not {form.removeprefix('.')}", "rename it to end in .jsonl")
    if form == PARQUET:
        return Content()  # its reader says what is wrong
    if encoding == "utf-8-sig":
        _check_encoding(head, text, name)
    shape = _json_shape(text, name) if form == JSONL else LINES
    first = text.lstrip("\r\n").partition("\n")[0]
    return Content(compressed=compressed, encoding=encoding, shape=shape, first_line=first)


@contextlib.contextmanager
def open_text(path: str | os.PathLike[str], content: Content, *, name: str) -> Iterator[IO[str]]:
    """Open a file that `examine` accepted, as text. Only `\\n` ends a line; bytes that are not UTF-8 become surrogates.

    Raises:
        UserError: raised while reading, if the file is damaged.
    """
    with _plain_messages(name), contextlib.ExitStack() as stack:
        stream: Any = stack.enter_context(open(path, "rb"))
        if content.compressed:
            stream = stack.enter_context(gzip.open(stream, "rb"))
        errors = "surrogateescape" if content.encoding == "utf-8-sig" else "strict"
        yield stack.enter_context(io.TextIOWrapper(stream, encoding=content.encoding, errors=errors, newline="\n"))


@contextlib.contextmanager
def _plain_messages(name: str) -> Iterator[None]:
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(
            f"{name} is a gzip file that is cut off or damaged ({error}): copy or download it again"
        ) from error
    except UnicodeDecodeError as error:
        raise UserError(
            f"{name} is damaged {error.encoding.upper()} text ({error.reason}): save it as UTF-8"
        ) from error


def _refused(name: str, what: str, remedy: str) -> UserError:
    return UserError(f"{name} is {what}: {remedy}")


def _check_magic(head: bytes, name: str) -> None:
    for magic, what, remedy in _MAGIC:
        if head.startswith(magic):
            if what == "a ZIP archive" and any(part in head for part in _EXCEL_PARTS):
                what, remedy = "an Excel workbook", 'save it in Excel as "CSV UTF-8"'
            raise _refused(name, what, remedy)


def _decoded(head: bytes, encoding: str) -> str:
    """Return the text of the first bytes; a character that is cut off at their end is left out."""
    errors = "surrogateescape" if encoding == "utf-8-sig" else "replace"
    return codecs.getincrementaldecoder(encoding)(errors).decode(head, final=len(head) < HEAD_BYTES)


def _check_known_text(text: str, name: str) -> None:
    start = text.lstrip()[:200].lower()
    for beginning, what, remedy in _TEXTS:
        if start.startswith(beginning):
            raise _refused(name, what, remedy)


def _check_encoding(head: bytes, text: str, name: str) -> None:
    """Refuse text without a byte order mark that is not UTF-8."""
    if "\0" in text:
        even, odd = (head[place::2].count(0) / max(1, len(head[place::2])) for place in (0, 1))
        for order, zero, other in (("LE", odd, even), ("BE", even, odd)):
            if zero > 0.8 and other < 0.2:  # Latin letters have a zero byte each
                raise _refused(name, "UTF-16 text without a byte order mark", _convert(f"UTF-16{order}"))
        line = text[: text.index("\0")].count("\n") + 1
        raise UserError(f"{name}:{line}: a NUL byte: this is no text file, or it is damaged; write it again")
    lines = text.split("\n")
    wrong = [(number, found[0]) for number, line in enumerate(lines, 1) if (found := _WRONG_BYTE.search(line))]
    other = any("\x80" <= letter < "\udc80" or letter > "\udcff" for letter in text)
    if len(wrong) >= max(WRONG_LINES, WRONG_SHARE * len(lines)) and not other:
        number, byte = wrong[0][0], ord(wrong[0][1]) - 0xDC00
        letter = bytes([byte]).decode("cp1252", errors="replace")
        raise UserError(
            f"{name}:{number}: the byte 0x{byte:02X} is not UTF-8 (it is {letter!r} in Windows-1252). The file may be"
            f" Windows-1252: save the file as UTF-8 ({_convert('WINDOWS-1252')})"
        )


def _convert(encoding: str) -> str:
    return f'choose "CSV UTF-8" in Excel, or use `iconv -f {encoding} -t UTF-8`'


def _json_shape(text: str, name: str) -> str:
    """Return how a file of JSON is to be read, from its beginning."""
    start = text.lstrip()
    first, _, rest = start.partition("\n")
    is_row = _is_json(first)
    if start.startswith("["):
        return LINES if is_row and rest.strip() else LIST
    if is_row or not start.startswith("{"):
        if not is_row and any(sign in first for sign in DELIMITERS) and "\n{" not in text:
            raise UserError(
                f"{name} is not JSON Lines: no row begins with {{ (the first one is {first.strip()[:40]!r}); if it is"
                " CSV, rename it to end in .csv"
            )
        return LINES
    try:
        _, end = json.JSONDecoder().raw_decode(start)
    except RecursionError:
        return LINES
    except json.JSONDecodeError:
        # A row that is cut off does not end so. An object over several lines may end after these first bytes.
        return VALUES if rest and (first.strip() == "{" or first.rstrip().endswith("[")) else LINES
    return VALUES if "\n" in start[:end] else LINES


def _is_json(line: str) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True
