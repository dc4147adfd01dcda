"""CSV as records with the lines they span, strict about quotes.

A quote at the wrong place can make one record of hundreds of rows, which would then belong to whoever stands in the
last of them. So:

- What is no CSV (an open quote, text after a closing one) fails the file: where the next record begins cannot be known.
- A record of several lines that each would be a whole row by themselves is told from a text by nothing but its length:
  from `SUSPICIOUS_LINES` lines on it is taken for swallowed rows, not for a record.
"""

import csv
import dataclasses
from collections.abc import Iterable, Iterator

from sealed_experts.errors import UserError

SUSPICIOUS_LINES = 4  # a text of four lines, each with as many commas as a row has, is rare; one of two is not
SHARE_OF_ROWS = 0.9  # a swallowed region may hold a few rows that are themselves wrong
LONGEST_FIELD = 2**31 - 1  # the csv module's own limit is 131,072 characters


@dataclasses.dataclass(frozen=True, kw_only=True)
class CsvRecord:
    """One record: its fields, its first and last line, and the delimiters in each line that is not blank."""

    fields: list[str]
    first: int
    last: int
    delimiters: tuple[int, ...]

    def swallowed_rows(self, *, columns: int) -> bool:
        """Say whether the record's lines look like rows of `columns` fields between two stray quotes."""
        if len(self.delimiters) < SUSPICIOUS_LINES or columns < 2:
            return False
        rows = sum(count == columns - 1 for count in self.delimiters)
        return rows >= SHARE_OF_ROWS * len(self.delimiters)


def csv_records(lines: Iterable[str], *, name: str) -> Iterator[CsvRecord]:
    """Yield the records of a file's lines, which keep their ends; empty lines are no records.

    Raises:
        UserError: the quotes do not fit, from some line on.
    """
    csv.field_size_limit(LONGEST_FIELD)
    delimiters: list[int] = []
    reader = csv.reader(_counted(lines, delimiters), strict=True)
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
                f"{name}:{first}: this is not CSV ({error}), and where its next record begins cannot be known (lines"
                f" {first} to {last} were read as one); put fields with quotes, commas or line breaks in double"
                " quotes and double the quotes inside, or give the rows as .jsonl"
            ) from error
        if fields:
            yield CsvRecord(fields=fields, first=first, last=reader.line_num, delimiters=tuple(delimiters))


def _counted(lines: Iterable[str], delimiters: list[int]) -> Iterator[str]:
    for line in lines:
        if line.strip():
            delimiters.append(line.count(","))
        yield line
