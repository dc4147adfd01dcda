"""From tokenized examples to physical batches: sorted by length, cut by a token budget or into shapes that are safe."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from sealed_experts.data.templates import Encoded
from sealed_experts.privacy.mechanism import sum_by_unit
from sealed_experts.training.shapes import ALONE, Grid, Shape, pieces

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
    positions: torch.Tensor | None = None  # only in the padded form, [rows, length]: response positions come first
    # The units that count; the others are copies of one of these, which fill the batch. None: all count.
    counted: tuple[int, ...] | None = None

    @property
    def lengths(self) -> tuple[int, ...]:
        """Real tokens of each row."""
        return tuple(len(example.ids) for example in self.examples)

    @property
    def real_tokens(self) -> int:
        """Tokens that are neither padding nor a filler's."""
        if self.counted is None:
            return sum(self.lengths)
        rows = self.rows_by_unit()
        return sum(self.lengths[row] for unit in self.counted for row in rows[unit])

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
        """Yield every unit as a separate batch of the same width."""
        for rows in self.rows_by_unit():
            yield Batch(
                input_ids=self.input_ids[rows],
                labels=self.labels[rows],
                unit=torch.zeros_like(self.unit[rows]),
                examples=tuple(self.examples[row] for row in rows),
            )

    def padded(self) -> "Batch":
        """Return the padded form of this batch, which lists all positions of each row, and so no one else's number.

        A row's response positions come first, in order. Positions without a label follow.
        """
        silent = (self.labels == IGNORED).to(torch.int8)
        return dataclasses.replace(self, positions=silent.argsort(dim=1, stable=True))

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the tensors that a loss reads, each [rows, …]. Call it on the padded form."""
        assert self.positions is not None, "call `padded` first"
        return {"input_ids": self.input_ids, "labels": self.labels, "positions": self.positions}

    def of_tensors(self, tensors: Mapping[str, torch.Tensor]) -> "Batch":
        """Return a batch of one unit, made from the unit's `tensors`, each [rows of the unit, …]; used in `vmap`."""
        unit = torch.zeros(tensors["input_ids"].shape[0], dtype=torch.long, device=self.unit.device)
        ids, labels, positions = (tensors[name] for name in ("input_ids", "labels", "positions"))
        return Batch(input_ids=ids, labels=labels, positions=positions, unit=unit, examples=())


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
    return [
        _collate(group, width=max(len(row.ids) for rows in group for row in rows), pad_id=pad_id, device=device)
        for group in groups
    ]


@dataclass(frozen=True)
class UnitShapes:
    """The shapes of training passes in which a unit's bits are its own.

    Attributes:
        grid: the widths.
        shapes: for (width, rows of a unit), the numbers of units of a pass.
    """

    grid: Grid
    shapes: Mapping[tuple[int, int], tuple[Shape, ...]]

    def of(self, width: int, rows: int) -> tuple[Shape, ...]:
        """Return the shapes for units of `rows` rows, the longest of which has this width."""
        return self.shapes.get((width, rows), ALONE)

    def describe(self) -> list[Any]:
        """Return them as plain data, to compare those of several processes."""
        found = [[*key, [[shape.rows, list(shape.places)] for shape in made]] for key, made in self.shapes.items()]
        return [self.grid.multiple, found]


def unit_batches(examples: Sequence[Example], *, shapes: UnitShapes, pad_id: int, device: torch.device) -> list[Batch]:
    """Cut a logical batch into physical ones in which a unit's bits are its own, the widest first.

    All units of a batch have the same width, and the same number of rows.
    """
    groups: dict[tuple[int, int], list[list[Example]]] = {}
    for rows in longest_first(examples):
        width = shapes.grid.width(max(len(row.ids) for row in rows))
        groups.setdefault((width, len(rows)), []).append(rows)
    batches = []
    for (width, size), units in groups.items():
        for shape in pieces(shapes.of(width, size), len(units)):
            taken, units = units[: len(shape.places)], units[len(shape.places) :]
            batches.append(unit_batch(taken, shape=shape, width=width, pad_id=pad_id, device=device))
    return batches


def unit_batch(
    units: Sequence[Sequence[Example]], *, shape: Shape, width: int, pad_id: int, device: torch.device
) -> Batch:
    """Return one physical batch of this shape and width. Copies of the first unit fill it."""
    filled = [units[0]] * shape.rows
    counted = shape.places[: len(units)]
    for place, rows in zip(counted, units, strict=True):
        filled[place] = rows
    batch = _collate(filled, width=width, pad_id=pad_id, device=device)
    return batch if len(units) == shape.rows else dataclasses.replace(batch, counted=counted)


def longest_first(examples: Sequence[Example]) -> list[list[Example]]:
    """Return the rows of each unit, the unit with the longest row first."""
    units: dict[int, list[Example]] = {}
    for example in examples:
        units.setdefault(example.unit, []).append(example)
    return sorted(units.values(), key=lambda rows: (-max(len(row.ids) for row in rows), rows[0].unit))


def _collate(units: Sequence[Sequence[Example]], *, width: int, pad_id: int, device: torch.device) -> Batch:
    rows = [row for unit in units for row in unit]
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
