"""From tokenized examples to physical batches: sorted by length, cut by a token budget."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

IGNORED = -100


@dataclass(frozen=True, kw_only=True)
class Example:
    """One tokenized record: prompt and response ids, where the response starts, and the unit it belongs to.

    `prompt` is the record's question as text, without its template: what a reward reads.
    """

    ids: tuple[int, ...]
    prompt_length: int
    unit: int
    prompt: str = ""

    @property
    def response_tokens(self) -> int:
        """How many positions carry loss."""
        return len(self.ids) - self.prompt_length


@dataclass(frozen=True, kw_only=True)
class Batch:
    """A physical batch, padded on the right.

    Right padding needs no attention mask: under causal attention no real position sees a later one.
    """

    input_ids: torch.Tensor  # [rows, length]
    labels: torch.Tensor  # [rows, length]: the token each position must predict, or IGNORED
    unit: torch.Tensor  # [rows]: the unit of each row as 0, 1, … within this batch
    examples: tuple[Example, ...]  # what each row was made from

    @property
    def lengths(self) -> tuple[int, ...]:
        """Real tokens of each row."""
        return tuple(len(example.ids) for example in self.examples)

    @property
    def real_tokens(self) -> int:
        """Tokens that are not padding."""
        return sum(self.lengths)

    def rows(self) -> Iterator["Batch"]:
        """Yield every row as a batch of its own, without padding."""
        for row, example in enumerate(self.examples):
            length = len(example.ids)
            yield Batch(
                input_ids=self.input_ids[row : row + 1, :length],
                labels=self.labels[row : row + 1, :length],
                unit=torch.zeros_like(self.unit[:1]),
                examples=(example,),
            )


def physical_batches(
    examples: Sequence[Example], *, token_budget: int, pad_id: int, device: torch.device
) -> list[Batch]:
    """Cut a logical batch into physical ones of at most `token_budget` tokens, padding included.

    Examples are sorted by length, longest first, so that little is padded and the largest allocation comes first. A
    unit's rows stay together. A single unit longer than the budget gets a batch of its own.
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
        # The position before a token predicts it.
        first = max(row.prompt_length, 1)
        labels[index, first - 1 : len(ids) - 1] = ids[first:]
    unit = [index for index, unit_rows in enumerate(units) for _ in unit_rows]
    return Batch(
        input_ids=input_ids.to(device),
        labels=labels.to(device),
        unit=torch.tensor(unit, dtype=torch.long, device=device),
        examples=tuple(rows),
    )
