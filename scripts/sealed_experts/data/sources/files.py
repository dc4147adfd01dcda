"""JSON Lines, CSV and Parquet files.

JSONL and CSV are read line by line, not through a table library. So a bad row is reported with its line, and the rows
after it are still read.
"""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from sealed_experts.data.contents import CSV, JSONL, LINES, LIST, PARQUET, examine, format_of, open_text
from sealed_experts.data.csv_records import CsvRecord, csv_records, delimiter_of
from sealed_experts.data.json_values import json_values
from sealed_experts.data.rows import (
    TEST,
    TRAIN,
    VAL,
    BadRow,
    Mapped,
    Row,
    check_columns,
    map_row,
    mapped_columns,
    missing_columns,
)
from sealed_experts.data.sources import Source, SplitSource
from sealed_experts.errors import UserError
from sealed_experts.files.canonical import strict_json
from sealed_experts.settings.fields import Distinct, setting, text
from sealed_experts.settings.messages import KeyPath, Mistake, shown

COUNTED_BYTES = 64_000_000  # counting the lines of a larger file would delay every start
UNKNOWN = None
KnownFile = Annotated[
    str,
    text(
        r"\.(([jJ][sS][oO][nN][lL]|[cC][sS][vV])(\.[gG][zZ])?|[pP][aA][rR][qQ][uU][eE][tT])$",
        "a file that ends in .jsonl, .csv or .parquet",
    ),
]


class Files(Mapped, SplitSource):
    """JSONL, CSV or Parquet files."""

    source: Literal["files"] = setting("Files.", default="files")
    paths: Distinct[KnownFile] = setting(
        "The files, read in this order; the ending decides the format: .jsonl, .csv or .parquet.", min_length=1
    )
    val_paths: Distinct[KnownFile] = setting(
        "Files of validation records; then no record of `paths` is held out.", default=()
    )
    test_paths: Distinct[KnownFile] = setting(
        "Files of test records for the evaluation; without them it uses the validation records.", default=()
    )

    recipe: ClassVar[int] = 4

    def read(self, *, parts: Sequence[Path] = ()) -> Iterator[Row | BadRow]:
        """Yield the rows of every file in order; `line` is the line in the file (Parquet: the row, from 1).

        Raises:
            UserError: a file is missing or has another format, or a column is missing.
        """
        for setting_of_it, paths, side in self._sets():
            for name in paths:
                try:
                    yield from _on_side(READERS[format_of(name)](name, self), side)
                except FileNotFoundError as error:
                    raise UserError(f"{name} does not exist: correct `{setting_of_it}`") from error
                except OSError as error:
                    reason = error.strerror or str(error).splitlines()[0]
                    raise UserError(
                        f"{name} cannot be read ({reason}): give a readable file in `{setting_of_it}`"
                    ) from error

    def count_upper_bound(self, datasets: Mapping[str, Source]) -> int | None:
        """Return the number of lines (Parquet: rows) in `paths`; None if a file is missing, unreadable or large."""
        counts = [_count(Path(name)) for name in self.paths]
        known = [count for count in counts if count is not None]
        return sum(known) if len(known) == len(counts) else None

    def files(self) -> list[str]:
        """Return all files."""
        return [path for _, paths, _ in self._sets() for path in paths]

    def places(self, root: Path) -> Iterator[tuple[str, str]]:
        """Yield every file, with links resolved."""
        for path in self.files():
            yield f"file {_real(root / path)}", path

    def has_test_set(self) -> bool:
        """Whether `test_paths` are given."""
        return bool(self.test_paths)

    def held_out_share(self) -> float:
        """`val_fraction`, or 0 if the validation records come from separate files."""
        return 0.0 if self.val_paths else self.val_fraction

    def mistakes(
        self, name: str, datasets: Mapping[str, Source], *, names: Sequence[str], root: Path
    ) -> Iterator[Mistake]:
        """Yield files that do not exist, occur twice, or have a name that Snakemake refuses; and a second split."""
        if self.val_paths and "val_fraction" in self.model_fields_set:
            yield Mistake(
                ("datasets", name, "val_fraction"),
                "the validation records are given twice; keep val_fraction or val_paths",
                involves=(("datasets", name, "val_paths"),),
            )
        first: dict[str, str] = {}
        for setting_of_it, paths, _ in self._sets():
            for place, path in enumerate(paths):
                here = ("datasets", name, setting_of_it, place)
                yield from _path_mistakes(here, path, root=root, first=first, settings=self)

    def _sets(self) -> list[tuple[str, Sequence[str], str | None]]:
        """Return (setting, files, side) of the sets of files that are given."""
        sets = (
            ("paths", self.paths, TRAIN if self.val_paths else None),
            ("val_paths", self.val_paths, VAL),
            ("test_paths", self.test_paths, TEST),
        )
        return [of for of in sets if of[1]]


def _on_side(rows: Iterable[Row | BadRow], side: str | None) -> Iterator[Row | BadRow]:
    for row in rows:
        yield dataclasses.replace(row, side=side) if isinstance(row, Row) and side else row


def _path_mistakes(
    here: KeyPath, path: str, *, root: Path, first: dict[str, str], settings: Mapped
) -> Iterator[Mistake]:
    """Yield mistakes of one file. `first` maps the real path of each earlier file to its name."""
    if not os.path.isfile(root / path):  # unlike Path.is_file, it accepts any text
        yield Mistake(
            here,
            f"{shown(path)} is not an existing file; put the data there or correct the path"
            " (relative paths start in the repository's folder)",
        )
    else:
        yield from _content_mistakes(here, path, root=root, settings=settings)
    if "{" in path or "}" in path:
        yield Mistake(here, f"{shown(path)} holds a brace, which Snakemake takes for a wildcard: rename the file")
    real = _real(root / path)
    if real in first:
        yield Mistake(here, f"{shown(path)} is the same file as {shown(first[real])}; name each once")
    first.setdefault(real, path)


def _content_mistakes(here: KeyPath, path: str, *, root: Path, settings: Mapped) -> Iterator[Mistake]:
    """Yield what is wrong with a file's form or with its columns. No row is read."""
    try:
        if format_of(path) == CSV:
            with _csv_table(root / path, settings, name=path):
                pass
        elif format_of(path) == PARQUET:
            _parquet_table(root / path, settings, name=path)
        else:
            examine(root / path, name=path)
    except UserError as error:
        yield Mistake(here, str(error))
    except OSError:
        return  # reading the file reports it


def _real(path: Path) -> str:
    try:
        return os.path.realpath(path)
    except (OSError, ValueError):
        return str(path)  # no such file can exist: other checks report it


def _count(path: Path) -> int | None:
    try:
        if format_of(path.name) == PARQUET:
            return _open_parquet(path, name=path.name).metadata.num_rows
        if path.stat().st_size > COUNTED_BYTES or not examine(path, name=path.name).is_plain:
            return UNKNOWN
        content = path.read_bytes()
        return sum(1 for line in content.split(b"\n") if line.strip())
    except (OSError, ValueError, UserError):
        return UNKNOWN  # reading the file reports the error


def _read_jsonl(name: str, settings: Mapped) -> Iterator[Row | BadRow]:
    content = examine(name, name=name)
    with open_text(name, content, name=name) as stream:
        if content.shape == LINES:
            values = _json_lines(stream)
        else:
            values = json_values(stream, name=name, in_list=content.shape == LIST)
        for number, value in values:
            if isinstance(value, UnicodeDecodeError):
                yield BadRow(name, number, "not UTF-8", f"byte {value.start + 1} of the line")
            elif isinstance(value, ValueError):
                yield BadRow(name, number, "not JSON", str(value))
            elif isinstance(value, dict):
                yield map_row(value, settings=settings, file=name, line=number)
            else:
                yield BadRow(name, number, "wrong type", f"the row is {type(value).__name__}, not an object")


def _json_lines(stream: Iterable[str]) -> Iterator[tuple[int, Any]]:
    """Yield each line's number with its value, or with its error; UnicodeDecodeError is a ValueError too."""
    for number, line in enumerate(stream, 1):
        if not line.strip():
            continue
        try:
            yield number, strict_json(line.encode(errors="surrogateescape").decode())
        except ValueError as error:
            yield number, error


def _read_csv(name: str, settings: Mapped) -> Iterator[Row | BadRow]:
    with _csv_table(Path(name), settings, name=name) as (columns, records):
        for record in records:
            if len(record.fields) != len(columns):
                detail = f"{len(record.fields)} fields where the header has {len(columns)}"
                yield from _bad_lines(name, record, "wrong number of fields", detail)
            elif record.swallowed_rows(columns=len(columns)):
                detail = (
                    f"lines {record.first} to {record.last} are one record because of quotes, but each looks like a"
                    " row; correct the quotes, or give the rows as .jsonl if it is one text"
                )
                yield from _bad_lines(name, record, "rows inside quotes", detail)
            else:
                values = dict(zip(columns, record.fields, strict=True))
                yield map_row(values, settings=settings, file=name, line=record.first)


@contextlib.contextmanager
def _csv_table(path: Path, settings: Mapped, *, name: str) -> Iterator[tuple[list[str], Iterator[CsvRecord]]]:
    """Open a CSV file that has the columns of `settings`; yield its columns and the records after the header."""
    content = examine(path, name=name)
    delimiter = delimiter_of(content.first_line, fits=lambda header: not missing_columns(header, settings))
    with open_text(path, content, name=name) as stream:
        # Bytes that are not UTF-8 became surrogates, which `map_row` reports for their row.
        records = csv_records(stream, name=name, delimiter=delimiter)
        header = next(records, None)
        if header is None:
            raise UserError(f"{name} is empty: the first line of a CSV file names its columns")
        _check_delimiter(name, header.fields)
        check_columns(name, header.fields, settings)
        yield header.fields, records


def _check_delimiter(name: str, header: Sequence[str]) -> None:
    """Refuse a table whose header has other signs between its fields."""
    for sign, called in ((";", "semicolons"), ("\t", "tabs"), ("|", "vertical bars")):
        if len(header) == 1 and sign in header[0]:
            raise UserError(f"{name} is separated by {called}: save it with commas between the fields")


def _bad_lines(name: str, record: CsvRecord, reason: str, detail: str) -> Iterator[BadRow]:
    """Count every line of the record: any of them may have been a row."""
    for line in range(record.first, record.last + 1):
        yield BadRow(name, line, reason, detail)


def _read_parquet(name: str, settings: Mapped) -> Iterator[Row | BadRow]:
    file = _parquet_table(Path(name), settings, name=name)
    wanted = [column for column in mapped_columns(settings) if column in file.schema_arrow.names]
    for number, (batch, index) in enumerate(_parquet_rows(file, wanted, name), 1):
        try:
            values: dict[str, Any] = {column: batch.column(column)[index].as_py() for column in wanted}
        except UnicodeDecodeError as error:
            yield BadRow(name, number, "not UTF-8", f"byte {error.start + 1} of a field")
        else:
            yield map_row(values, settings=settings, file=name, line=number)


def _parquet_table(path: Path, settings: Mapped, *, name: str) -> Any:
    """Open a Parquet file that has the columns of `settings`."""
    examine(path, name=name)
    file = _open_parquet(path, name=name)
    check_columns(name, file.schema_arrow.names, settings)
    return file


def _parquet_rows(file: Any, columns: list[str], name: str) -> Iterator[tuple[Any, int]]:
    import pyarrow

    try:
        for batch in file.iter_batches(columns=columns):
            for index in range(batch.num_rows):
                yield batch, index
    except (pyarrow.ArrowException, OSError) as error:
        raise _damaged(name, error) from error


def _open_parquet(path: Path, *, name: str) -> Any:
    import pyarrow
    import pyarrow.parquet

    try:
        with open(path, "rb"):  # so that a missing or unreadable file gives the same error as in other formats
            pass
        return pyarrow.parquet.ParquetFile(path)
    except pyarrow.ArrowException as error:
        raise _damaged(name, error) from error
    except OSError as error:
        if error.errno is not None:
            raise
        raise _damaged(name, error) from error


def _damaged(name: str, error: Exception) -> UserError:
    return UserError(
        f"{name} is not a Parquet file, or is damaged ({str(error).splitlines()[0]}): write it again, or give another"
    )


READERS: dict[str, Callable[[str, Mapped], Iterator[Row | BadRow]]] = {
    JSONL: _read_jsonl,
    CSV: _read_csv,
    PARQUET: _read_parquet,
}
