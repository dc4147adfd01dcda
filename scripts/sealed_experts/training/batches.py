"""From tokenized examples to physical batches: sorted by length, cut by a token budget."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from sealed_experts.data.templates import Encoded
from sealed_experts.privacy.mechanism import sum_by_unit

IGNORED = -100


@dataclass(frozen=True, kw_only=True)
class Example(Encoded):
    """One row of a record, tokenized, and the unit it belongs to.

    `prompt` is the record's question as text, without the template. A reward reads it.
    """

    unit: int
    prompt: str = ""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """A physical batch, padded on the right.

    Right padding needs no attention mask: under causal attention no real position sees a later one.
    """

    input_ids: torch.Tensor  # [rows, length]
    labels: torch.Tensor  # [rows, length]: the token each position must predict, or IGNORED
    unit: torch.Tensor  # [rows]: the unit of each row as 0, 1, … within this batch
    examples: tuple[Example, ...]  # the example of each row; empty inside `vmap`
    positions: torch.Tensor | None = None  # only in the padded form, [rows, most]: response positions of each row

    @property
    def lengths(self) -> tuple[int, ...]:
        """Real tokens of each row."""
        return tuple(len(example.ids) for example in self.examples)

    @property
    def real_tokens(self) -> int:
        """Tokens that are not padding."""
        return sum(self.lengths)

    def rows_by_unit(self) -> list[list[int]]:
        """Return the rows of each unit, the units in ascending order."""
        units: dict[int, list[int]] = {}
        for row, unit in enumerate(self.unit.tolist()):
            units.setdefault(unit, []).append(row)
        return [units[unit] for unit in sorted(units)]

    def by_unit(self, values: torch.Tensor) -> torch.Tensor:
        """Add up values per row, [rows], to values per unit, [units]."""
        return sum_by_unit([values], self.unit)[0]

    def units(self) -> Iterator["Batch"]:
        """Yield every unit as a separate batch, without padding."""
        for rows in self.rows_by_unit():
            length = max(self.lengths[row] for row in rows)
            yield Batch(
                input_ids=self.input_ids[rows, :length],
                labels=self.labels[rows, :length],
                unit=torch.zeros_like(self.unit[rows]),
                examples=tuple(self.examples[row] for row in rows),
            )

    def padded(self) -> "Batch":
        """Return the padded form of this batch, which lists the same number of positions for each row.

        A row's response positions come first, in order. If it has too few, positions without a label follow.
        """
        silent = (self.labels == IGNORED).to(torch.int8)
        most = max(1, int((1 - silent).sum(1).max()))
        return dataclasses.replace(self, positions=silent.argsort(dim=1, stable=True)[:, :most])

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the tensors that a loss reads, each [rows, …]. Call it on the padded form."""
        assert self.positions is not None, "call `padded` first"
        return {"input_ids": self.input_ids, "labels": self.labels, "positions": self.positions}

    def of_tensors(self, tensors: Mapping[str, torch.Tensor]) -> "Batch":
        """Return a batch of one unit, made from the unit's `tensors`, each [rows of the unit, …]; used in `vmap`."""
        unit = torch.zeros(tensors["input_ids"].shape[0], dtype=torch.long, device=self.unit.device)
        return dataclasses.replace(self, unit=unit, examples=(), **tensors)


def physical_batches(
    examples: Sequence[Example], *, token_budget: int, pad_id: int, device: torch.device
) -> list[Batch]:
    """Cut a logical batch into physical ones of at most `token_budget` tokens, padding included.

    Examples are sorted by length, longest first: there is little padding, and the largest allocation comes first. The
    rows of a unit stay together. A unit that alone exceeds the budget gets a batch of its own.
    """
    groups: list[list[list[Example]]] = []
    rows_held, width = 0, 0
    for rows in longest_first(examples):
        needed = max(len(row.ids) for row in rows)
        if not groups or (rows_held + len(rows)) * max(width, needed) > token_budget:
            groups.append([])
            rows_held, width = 0, needed
        groups[-1].append(rows)
        rows_held += len(rows)
    return [_collate(group, pad_id=pad_id, device=device) for group in groups]


def longest_first(examples: Sequence[Example]) -> list[list[Example]]:
    """Return the rows of each unit, the unit with the longest row first."""
    units: dict[int, list[Example]] = {}
    for example in examples:
        units.setdefault(example.unit, []).append(example)
    return sorted(units.values(), key=lambda rows: (-max(len(row.ids) for row in rows), rows[0].unit))


def _collate(units: Sequence[Sequence[Example]], *, pad_id: int, device: torch.device) -> Batch:
    rows = [row for unit in units for row in unit]
    width = max(len(row.ids) for row in rows)
    input_ids = torch.full((len(rows), width), pad_id, dtype=torch.long)
    labels = torch.full((len(rows), width), IGNORED, dtype=torch.long)
    for index, row in enumerate(rows):
        ids = torch.tensor(row.ids, dtype=torch.long)
        input_ids[index, : len(ids)] = ids
        for start, end in row.learned:
            # The position before a token predicts it.
            first = max(start, 1)
            labels[index, first - 1 : end - 1] = ids[first:end]
    unit = [index for index, unit_rows in enumerate(units) for _ in unit_rows]
    return Batch(
        input_ids=input_ids.to(device),
        labels=labels.to(device),
        unit=torch.tensor(unit, dtype=torch.long, device=device),
        examples=tuple(rows),
    )
