"""A stage's records, tokenized and gathered by unit of privacy."""

from collections.abc import Sequence

import numpy as np
from transformers import PreTrainedTokenizerBase

from sealed_experts.data.records import Record
from sealed_experts.data.templates import encode_example
from sealed_experts.files.digests import digest_of
from sealed_experts.privacy.streams import Stream
from sealed_experts.training.batches import Example


class UnitDataset:
    """Units in the order of their first line; each holds one or more tokenized rows."""

    def __init__(self, units: Sequence[Sequence[Example]]) -> None:
        self._units = [tuple(rows) for rows in units]
        self._single = all(len(rows) == 1 for rows in self._units)

    @classmethod
    def from_records(
        cls, records: Sequence[Record], *, template: str, tokenizer: PreTrainedTokenizerBase, max_seq_len: int
    ) -> "UnitDataset":
        """Tokenize records. A record whose prompt fills `max_seq_len` stays, without any loss of its own."""
        index: dict[str, int] = {}
        units: list[list[Example]] = []
        for record in records:
            unit = index.setdefault(record.unit, len(index))
            if unit == len(units):
                units.append([])
            encoded = encode_example(template=template, record=record, tokenizer=tokenizer, max_seq_len=max_seq_len)
            units[unit].append(
                Example(ids=tuple(encoded.ids), prompt_length=encoded.prompt_length, unit=unit, prompt=record.question)
            )
        return cls(units)

    def __len__(self) -> int:
        """Return the number of units."""
        return len(self._units)

    def digest(self) -> str:
        """Return a SHA-256 over every row's tokens: what the model is really shown, whatever made it."""
        return digest_of([[[list(row.ids), row.prompt_length] for row in rows] for rows in self._units])

    def rows(self) -> list[Example]:
        """Return every row of every unit."""
        return [row for rows in self._units for row in rows]

    def examples(self, drawn: np.ndarray, *, step: int, stream: Stream) -> list[Example]:
        """Return one row of each drawn unit, chosen by (key, step, unit), so that a unit is one contribution."""
        if self._single:
            return [self._units[unit][0] for unit in drawn]
        choice = stream.integers("row", step, len(self._units))
        return [self._units[unit][int(choice[unit]) % len(self._units[unit])] for unit in drawn]
