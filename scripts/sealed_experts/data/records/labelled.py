"""A text and its class."""

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from sealed_experts.data.records import Columns, Record
from sealed_experts.data.templates import Encoded, encode_text
from sealed_experts.data.values import identity, text
from sealed_experts.settings.fields import setting


class LabelledColumns(Columns):
    """Which fields of a row hold the text and its label."""

    input: str = setting("Field of the text.", default="input", min_length=1)
    label: str = setting("Field of its label: text, a whole number, true or false.", default="label", min_length=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Labelled(Record):
    """A text with its label."""

    input: str
    label: str

    columns: ClassVar[type[Columns]] = LabelledColumns

    @classmethod
    def read(cls, values: Mapping[str, Any], columns: LabelledColumns) -> dict[str, Any]:
        """Return the text, and the label as text."""
        label = values.get(columns.label)
        named = {columns.label: str(label).lower() if isinstance(label, bool) else label}
        return {"input": text(values, columns.input), "label": identity(named, columns.label)}

    @property
    def question(self) -> str:
        """The text."""
        return self.input

    @property
    def answer(self) -> str:
        """The label."""
        return self.label

    def texts(self) -> Sequence[tuple[str, str]]:
        """Return the text."""
        return [("input", self.input)]

    def encoded(self, *, template: str, tokenizer: Any, max_seq_len: int) -> list[Encoded]:
        """Return one row with only the text: a classifier reads it without a prompt."""
        ids = encode_text(self.input, tokenizer=tokenizer)[:max_seq_len]
        return [Encoded(ids=tuple(ids), prompt_length=len(ids), label=self.label)]

    @classmethod
    def figures(cls, records: Sequence["Labelled"]) -> dict[str, Any]:
        """Return how many records each label has."""
        return {"labels": dict(sorted(collections.Counter(record.label for record in records).items()))}
