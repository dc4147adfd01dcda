"""Training records: one module a kind, named as in the configuration; and the prepared files that hold them."""

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

INSTRUCTION = "instruction"  # the kind that is meant where none is named


class Columns(Group):
    """Which columns of a source's row hold the parts of a record. Each kind of record has its own."""

    def optional(self) -> list[str]:
        """Return the columns that a table may lack."""
        return []


@dataclasses.dataclass(frozen=True)
class Record(Feature):
    """One record. A subclass adds its content as fields that are given by name.

    Attributes:
        id: SHA-256 of the content, before any template.
        unit: whom it belongs to, the unit of privacy; where nobody is named, the record itself.
        metadata: further columns. They stay on the trainer's side and decide nothing.
    """

    id: str
    unit: str
    metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict, kw_only=True, compare=False)

    columns: ClassVar[type[Columns]]  # what a dataset's `fields` may say
    parts: ClassVar[tuple[str, ...]] = ()  # texts that stats.json describes one by one, not only all together

    def __init_subclass__(cls) -> None:
        """Name a kind as its module, also where it is imported without `RECORDS`."""
        cls.feature = cls.__module__.rpartition(".")[2]

    @classmethod
    def of(cls, *, unit: str | None = None, metadata: Mapping[str, Any] | None = None, **content: Any) -> Self:
        """Make a record from its content; without `unit` it is its own unit of privacy."""
        record = cls("", "", metadata=dict(metadata or {}), **content)
        identity = digest_of(record.named_by())
        return dataclasses.replace(record, id=identity, unit=identity if unit is None else unit)

    @classmethod
    def read(cls, values: Mapping[str, Any], columns: Any) -> dict[str, Any]:
        """Return the content that a source's row holds, for `of`.

        Args:
            values: {column: value}.
            columns: which columns to look at, settings of the class `columns`.

        Raises:
            Unusable: a value is missing or wrong.
        """
        raise NotImplementedError

    def content(self) -> dict[str, Any]:
        """Return the content as plain data, as a prepared file holds it."""
        return {name: getattr(self, name) for name in content_names(type(self))}

    @classmethod
    def restored(cls, content: Mapping[str, Any]) -> dict[str, Any]:
        """Return the content for `of` from what `content` returned.

        Raises:
            ValueError: it is something else.
        """
        if not all(isinstance(value, str) for value in content.values()):
            raise ValueError("a field is not text")
        return dict(content)

    def named_by(self) -> Any:
        """Return the plain data whose canonical JSON the id is the SHA-256 of."""
        return self.content()

    @property
    def is_own_unit(self) -> bool:
        """Whether nobody is named whom it belongs to."""
        return self.unit == self.id

    @property
    def question(self) -> str:
        """What is asked, without any template: what a reward reads."""
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
    def kin(self) -> str:
        """What it has in common with records that belong on its side of the split, where no group or unit is named."""
        return self.question

    def texts(self) -> Sequence[tuple[str, str]]:
        """Return what stats.json measures: (part, text)."""
        raise NotImplementedError

    def encoded(self, *, template: str, tokenizer: Any, max_seq_len: int) -> "list[Encoded]":
        """Return the rows of tokens that a model is trained on, the parts of one comparison as several.

        Raises:
            UserError: the template cannot say this record.
        """
        raise NotImplementedError

    @classmethod
    def figures(cls, records: Sequence[Any]) -> dict[str, Any]:
        """Return what stats.json says about records of this kind besides their number and lengths.

        A list of numbers, one a record, is described by its percentiles there.
        """
        return {}


RECORDS = Features(Record, noun="kind of records")


def content_names(kind: type[Record]) -> list[str]:
    """Return the names of what a kind of record adds."""
    common = {field.name for field in dataclasses.fields(Record)}
    return [field.name for field in dataclasses.fields(kind) if field.name not in common]


def sayings(record: Record) -> set[str]:
    """Return what must not be held out where it is trained on.

    Records that are their own units are split by their questions, so these are not torn apart. Units such as customers
    may well ask the same.
    """
    said = {f"record:{record.id}"}
    return said | {f"question:{record.question}"} if record.is_own_unit else said


def write_records(path: str | Path, records: Iterable[Record]) -> None:
    """Write records as JSON Lines, one canonical JSON object a line; atomic and durable."""
    with atomic_writer(path) as stream:
        for record in records:
            stream.write(_line(record, metadata=record.metadata))


def records_digest(records: Iterable[Record]) -> str:
    """Return the SHA-256 of the records' file as it would be without metadata, which never leave."""
    digest = hashlib.sha256()
    for record in records:
        digest.update(_line(record, metadata={}))
    return digest.hexdigest()


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
        raise UserError(problem(f"a record of a kind that is not known; known are {', '.join(RECORDS)}"))
    kind, metadata = RECORDS[named], value.pop("metadata", {})
    names = ["id", "unit", *content_names(kind)]
    if value.keys() != set(names) or not isinstance(metadata, dict):
        raise UserError(problem(f"not a prepared record, which has exactly the fields {', '.join(names)}"))
    identity, unit = value.pop("id"), value.pop("unit")
    if not isinstance(identity, str) or not isinstance(unit, str):
        raise UserError(problem("a field is not text"))
    try:
        record = kind.of(unit=unit, metadata=metadata, **kind.restored(value))
    except (ValueError, Unusable) as error:
        raise UserError(problem(str(error))) from error
    if record.id != identity:
        raise UserError(problem("the id does not belong to the text"))
    return record
