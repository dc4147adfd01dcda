"""The records of a stage, tokenized and grouped by unit of privacy."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from sealed_experts.data.records import Record
from sealed_experts.data.templates import Encoded
from sealed_experts.files.digests import digest_of
from sealed_experts.privacy.streams import Stream
from sealed_experts.training.batches import Example

Rows = tuple[Example, ...]  # the rows of one record: several for a comparison, one for any other record


class UnitDataset:
    """Units in the order of their first line. A unit holds one or more records, a record one or more rows."""

    def __init__(self, units: Iterable[Iterable[Iterable[Example]]]) -> None:
        self._units = [[tuple(rows) for rows in records] for records in units]
        self._single = all(len(records) == 1 for records in self._units)

    @classmethod
    def of(cls, records: Iterable[tuple[Record, Sequence[Encoded]]]) -> "UnitDataset":
        """Group records, each with its rows of tokens, by unit."""
        index: dict[str, int] = {}
        units: list[list[Rows]] = []
        for record, encoded in records:
            unit = index.setdefault(record.unit, len(index))
            if unit == len(units):
                units.append([])
            units[unit].append(tuple(Example(**vars(row), unit=unit, prompt=record.question) for row in encoded))
        return cls(units)

    @classmethod
    def from_records(
        cls, records: Sequence[Record], *, template: str, tokenizer: PreTrainedTokenizerBase, max_seq_len: int
    ) -> "UnitDataset":
        """Tokenize records and cut them to `max_seq_len`. A record whose prompt fills it is kept; its loss is 0.

        Raises:
            UserError: the template cannot express a record.
        """
        return cls.of(
            (record, record.encoded(template=template, tokenizer=tokenizer, max_seq_len=max_seq_len))
            for record in records
        )

    def __len__(self) -> int:
        """Return the number of units."""
        return len(self._units)

    def digest(self) -> str:
        """Return a SHA-256 over the tokens of every row: exactly what the model sees."""
        return digest_of([[_described(rows) for rows in records] for records in self._units])

    def records(self) -> list[Rows]:
        """Return the rows of every record, unit by unit."""
        return [rows for records in self._units for rows in records]

    def rows(self) -> list[Example]:
        """Return every row of every unit."""
        return [row for rows in self.records() for row in rows]

    def examples(self, drawn: np.ndarray, *, step: int, stream: Stream) -> list[Example]:
        """Return the rows of one record of each drawn unit: each unit contributes once. (key, step, unit) choose it."""
        if self._single:
            return [row for unit in drawn for row in self._units[unit][0]]
        choice = stream.integers("row", step, len(self._units))
        return [row for unit in drawn for row in self._units[unit][int(choice[unit]) % len(self._units[unit])]]


def one_unit_per_record(records: Iterable[Rows]) -> list[Example]:
    """Return the rows of these records, where each record is a separate unit: 0, 1, …"""
    return [dataclasses.replace(row, unit=unit) for unit, rows in enumerate(records) for row in rows]


def _described(rows: Rows) -> Any:
    """Return the part of `digest` for one record: for a plain row, its tokens and where the answer starts."""
    described = [
        [list(row.ids), row.prompt_length]
        if (row.spans, row.part, row.label) == (None, None, None)
        else [list(row.ids), row.prompt_length, [list(span) for span in row.learned], row.part, row.label]
        for row in rows
    ]
    return described[0] if len(described) == 1 else described
