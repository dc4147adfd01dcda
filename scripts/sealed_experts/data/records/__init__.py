"""Training records, and the prepared files that hold them. Each kind is one module, named as in the configuration."""

import dataclasses
import functools
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from sealed_experts.data.values import Unusable
from sealed_experts.errors import UserError
from sealed_experts.features import Feature, Features
from sealed_experts.files.atomic import atomic_writer
from sealed_experts.files.canonical import canonical_json, strict_json
from sealed_experts.files.digests import digest_of
from sealed_experts.settings.fields import Group

if TYPE_CHECKING:
    from sealed_experts.data.templates import Encoded

INSTRUCTION = "instruction"  # the default kind


class Columns(Group):
    """Which columns of a source's row hold the parts of a record. Each kind of record has a subclass."""

    def optional(self) -> list[str]:
        """Return the columns that a table may lack."""
        return []


@dataclasses.dataclass(frozen=True)
class Record(Feature):
    """One record. A subclass adds its content as keyword-only fields.

    Attributes:
        id: SHA-256 of the content, before any template.
        unit: the unit of privacy that the record belongs to; by default the record itself.
        metadata: further columns. They stay on the trainer's side and have no effect.
    """

    id: str
    unit: str
    metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict, kw_only=True, compare=False)

    columns: ClassVar[type[Columns]]  # the class of a dataset's `fields`
    parts: ClassVar[tuple[str, ...]] = ()  # texts that stats.json describes separately, besides all together

    @classmethod
    def of(cls, *, unit: str | None = None, metadata: Mapping[str, Any] | None = None, **content: Any) -> Self:
        """Make a record from its content; without `unit` the record itself is the unit of privacy."""
        record = cls("", "", metadata=dict(metadata or {}), **content)
        identity = digest_of(record.id_content())
        return dataclasses.replace(record, id=identity, unit=identity if unit is None else unit)

    @classmethod
    def read(cls, values: Mapping[str, Any], columns: Any) -> dict[str, Any]:
        """Return the content of a source's row, as the arguments for `of`.

        Args:
            values: {column: value}.
            columns: which columns to read; an object of the class `columns`.

        Raises:
            Unusable: a value is missing or wrong.
        """
        raise NotImplementedError

    def content(self) -> dict[str, Any]:
        """Return the content as plain data, for a prepared file."""
        return {name: getattr(self, name) for name in content_names(type(self))}

    @classmethod
    def restored(cls, content: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments for `of` from the data that `content` returned.

        Raises:
            ValueError: `content` did not return such data.
        """
        if not all(isinstance(value, str) for value in content.values()):
            raise ValueError("a field is not text")
        return dict(content)

    def id_content(self) -> Any:
        """Return the plain data that decides the id. The id is the SHA-256 of its canonical JSON."""
        return self.content()

    @property
    def is_own_unit(self) -> bool:
        """Whether the record itself is the unit of privacy."""
        return self.unit == self.id

    @property
    def question(self) -> str:
        """The question, without any template. Rewards read it."""
        raise NotImplementedError

    @property
    def asked(self) -> tuple[str, str]:
        """The two parts of `question`: what is asked, and the text that it is asked about, if that stands apart."""
        return self.question, ""

    @property
    def answer(self) -> str:
        """The right answer, without any template."""
        raise NotImplementedError

    @property
    def related_by(self) -> str:
        """Records with the same value here stay on one side of the split, if neither group nor unit is given."""
        return self.question

    def texts(self) -> Sequence[tuple[str, str]]:
        """Return the texts that stats.json measures, as (part, text)."""
        raise NotImplementedError

    def encoded(self, *, template: str, tokenizer: Any, max_seq_len: int) -> "list[Encoded]":
        """Return the rows of tokens that a model is trained on: several for a comparison, otherwise one.

        Raises:
            UserError: the template cannot express this record.
        """
        raise NotImplementedError

    @classmethod
    def figures(cls, records: Sequence[Any]) -> dict[str, Any]:
        """Return further figures about records of this kind for stats.json, besides their number and lengths.

        For a list of numbers, one per record, stats.json holds percentiles.
        """
        return {}


RECORDS = Features(Record, noun="kind of records")


def content_names(kind: type[Record]) -> list[str]:
    """Return the names of the fields that a kind of record adds."""
    common = {field.name for field in dataclasses.fields(Record)}
    return [field.name for field in dataclasses.fields(kind) if field.name not in common]


def overlap_keys(record: Record) -> set[str]:
    """Return keys of a record. A record must not be held out if a training record has one of its keys.

    Records that are their own units are split by their questions, so the question is a key. Different units, such as
    customers, may ask the same question.
    """
    keys = {f"record:{record.id}"}
    return keys | {f"question:{record.question}"} if record.is_own_unit else keys


def write_records(path: str | Path, records: Iterable[Record]) -> None:
    """Write records as JSON Lines, one canonical JSON object per line; atomic and durable."""
    with atomic_writer(path) as stream:
        for record in records:
            stream.write(_line(record, metadata=record.metadata))


def records_digest(records: Iterable[Record]) -> str:
    """Return the SHA-256 of the records' file without metadata, which never leave this machine."""
    digest = hashlib.sha256()
    for record in records:
        digest.update(_line(record, metadata={}))
    return digest.hexdigest()


def read_records(path: str | Path) -> list[Record]:
    """Read the records of a prepared file.

    Raises:
        UserError: the file is missing or cannot be read, or a line is not a prepared record; the message names the file
            and the line.
    """
    try:
        lines = Path(path).read_bytes().split(b"\n")
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist: prepare the dataset first") from error
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}): make it a readable file") from error
    return [_parse(line, f"{path}:{number}") for number, line in enumerate(lines, 1) if line]


def _line(record: Record, *, metadata: Mapping[str, Any]) -> bytes:
    line = {"id": record.id, "unit": record.unit, **record.content()}
    if record.feature != INSTRUCTION:
        line["kind"] = record.feature
    if metadata:
        line["metadata"] = dict(metadata)
    return canonical_json(line).encode() + b"\n"


def _parse(line: bytes, where: str) -> Record:
    problem = functools.partial("{}: {}; the file is made by the pipeline: delete it and run again".format, where)
    try:
        value = strict_json(line)
    except ValueError as error:
        raise UserError(problem(f"not JSON ({error})")) from error
    if not isinstance(value, dict):
        raise UserError(problem("not a prepared record"))
    named = value.pop("kind", INSTRUCTION)
    if not isinstance(named, str) or named not in RECORDS:
        raise UserError(problem(f"a record of an unknown kind; known are {', '.join(RECORDS)}"))
    kind, metadata = RECORDS[named], value.pop("metadata", {})
    names = ["id", "unit", *content_names(kind)]
    if value.keys() != set(names) or not isinstance(metadata, dict):
        raise UserError(problem(f"not a prepared record, which has exactly the fields {', '.join(names)}"))
    identity, unit = value.pop("id"), value.pop("unit")
    if not isinstance(identity, str) or not isinstance(unit, str):
        raise UserError(problem("a field is not text"))
    try:
        record = kind.of(unit=unit, metadata=metadata, **kind.restored(value))
    except Unusable as error:
        raise UserError(problem(error.detail)) from error
    except ValueError as error:
        raise UserError(problem(str(error))) from error
    if record.id != identity:
        raise UserError(problem("the id does not belong to the text"))
    return record
