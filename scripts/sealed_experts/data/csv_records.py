"""Read CSV as records, each with the lines that it spans. The reader is strict about quotes.

A wrong quote can turn hundreds of rows into one record, which then belongs to the unit of the last row. So:

- Invalid CSV (an open quote, text after a closing quote) fails the file: nobody knows where the next record begins.
- If each line of a long record could be a row, the record may be a text or may be swallowed rows. From
  `SUSPICIOUS_LINES` lines on, it counts as swallowed rows.
"""

import csv
import dataclasses
from collections.abc import Callable, Iterable, Iterator

from sealed_experts.errors import UserError

SUSPICIOUS_LINES = 4  # a text of four lines with as many commas as a row in each is rare; a text of two is not
SHARE_OF_ROWS = 0.9  # a few of the swallowed rows may be wrong themselves
DELIMITERS = (",", ";", "\t")  # spreadsheets write semicolons where a comma is the decimal sign
LONGEST_FIELD = 2**31 - 1  # the csv module's own limit is 131,072 characters


@dataclasses.dataclass(frozen=True, kw_only=True)
class CsvRecord:
    """One record: its fields, its first and last line, and the number of delimiters in each line that is not blank."""

    fields: list[str]
    first: int
    last: int
    delimiters: tuple[int, ...]

    def swallowed_rows(self, *, columns: int) -> bool:
        """Return whether the record's lines look like rows of `columns` fields between two stray quotes."""
        if len(self.delimiters) < SUSPICIOUS_LINES or columns < 2:
            return False
        rows = sum(count == columns - 1 for count in self.delimiters)
        return rows >= SHARE_OF_ROWS * len(self.delimiters)


def delimiter_of(first_line: str, *, fits: Callable[[list[str]], bool]) -> str:
    """Return the delimiter of a file: a comma, or the delimiter with which alone the header fits.

    Args:
        fits: whether a header has all columns that it must have.
    """
    for delimiter in DELIMITERS:
        try:
            header = next(csv.reader([first_line], delimiter=delimiter), [])
        except csv.Error:
            continue
        if fits(header):
            return delimiter
    return DELIMITERS[0]


def csv_records(lines: Iterable[str], *, name: str, delimiter: str = ",") -> Iterator[CsvRecord]:
    """Yield the records of a file's lines; empty lines are skipped.

    Args:
        lines: the lines with their line ends.
        name: the file's name for messages.

    Raises:
        UserError: the quotes are wrong from some line on.
    """
    csv.field_size_limit(LONGEST_FIELD)
    delimiters: list[int] = []
    reader = csv.reader(_counted(lines, delimiters, delimiter), delimiter=delimiter, strict=True)
    while True:
        delimiters.clear()
        first = reader.line_num + 1
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            last = reader.line_num
            raise UserError(
                f"{name}:{first}: this is not CSV ({error}): lines {first} to {last} were read as one record, and"
                " nobody knows where the next record begins; put fields with quotes, commas or line breaks in double"
                " quotes and double the quotes inside, or give the rows as .jsonl"
            ) from error
        if fields:
            yield CsvRecord(fields=fields, first=first, last=reader.line_num, delimiters=tuple(delimiters))


def _counted(lines: Iterable[str], counts: list[int], delimiter: str) -> Iterator[str]:
    for line in lines:
        if line.strip():
            counts.append(line.count(delimiter))
        yield line
