"""A training record: one question and its answer, and the prepared files that hold them."""

import dataclasses
import functools
from collections.abc import Iterable
from pathlib import Path

from sealed_experts.errors import UserError
from sealed_experts.files.atomic import atomic_writer
from sealed_experts.files.canonical import canonical_json, strict_json
from sealed_experts.files.digests import digest_of


@dataclasses.dataclass(frozen=True)
class Record:
    """One record. `id` names its content, `unit` names whom it belongs to (the unit of privacy)."""

    id: str
    unit: str
    instruction: str
    input: str
    output: str

    @property
    def question(self) -> str:
        """The instruction and, under it, the input: what is asked, without any template."""
        return f"{self.instruction}\n{self.input}" if self.input else self.instruction

    @classmethod
    def from_text(cls, *, instruction: str, input: str = "", output: str, unit: str | None = None) -> "Record":
        """Make a record from its text; without `unit` it is its own unit of privacy.

        The id is the SHA-256 of the canonical JSON of [instruction, input, output]: the source before any template.
        """
        identity = digest_of([instruction, input, output])
        return cls(
            id=identity, unit=identity if unit is None else unit, instruction=instruction, input=input, output=output
        )


FIELDS = tuple(field.name for field in dataclasses.fields(Record))


def write_records(path: str | Path, records: Iterable[Record]) -> None:
    """Write records as JSON Lines, one canonical JSON object a line; atomic and durable."""
    with atomic_writer(path) as stream:
        for record in records:
            stream.write(canonical_json({name: getattr(record, name) for name in FIELDS}).encode() + b"\n")


def read_records(path: str | Path) -> list[Record]:
    """Read the records of a prepared file.

    Raises:
        UserError: the file is missing or cannot be read, or a line is not a prepared record; the message names file
            and line.
    """
    try:
        lines = Path(path).read_bytes().split(b"\n")
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist: prepare the dataset first") from error
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}): make it a readable file") from error
    return [_parse(line, f"{path}:{number}") for number, line in enumerate(lines, 1) if line]


def _parse(line: bytes, where: str) -> Record:
    problem = functools.partial("{}: {}; the file is made by the pipeline: delete it and run again".format, where)
    try:
        value = strict_json(line)
    except ValueError as error:
        raise UserError(problem(f"not JSON ({error})")) from error
    if not isinstance(value, dict) or value.keys() != set(FIELDS):
        raise UserError(problem(f"not a prepared record, which has exactly the fields {', '.join(FIELDS)}"))
    if not all(isinstance(text, str) for text in value.values()):
        raise UserError(problem("a field is not text"))
    record = Record(**value)
    if record.id != digest_of([record.instruction, record.input, record.output]):
        raise UserError(problem("the id does not belong to the text"))
    return record
