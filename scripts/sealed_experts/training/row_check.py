"""Before a private run: find the shapes of passes in which a unit's gradient has bits of its own.

Made-up units go through the objective and the engine in every shape that a batch may have. Real ones would let the data
choose the mechanism. The model keeps only a few of its layers meanwhile, because layers of one kind run the same
kernels on the same shapes: so the check takes seconds.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from sealed_experts.errors import UserError
from sealed_experts.models.depth import shallow
from sealed_experts.privacy.engines import make_engine
from sealed_experts.privacy.engines.check import moved
from sealed_experts.privacy.streams import Stream
from sealed_experts.training.batches import Example, UnitShapes, unit_batch
from sealed_experts.training.objective import Objective
from sealed_experts.training.shapes import (
    ALONE,
    MULTIPLES,
    Grid,
    Shape,
    agreeing,
    bit_prints,
    row_counts,
    up_to_power_of_two,
)

FINENESS = 8
# Answers of made-up units, in tokens: enough that those of a batch fill more than one chunk of the output head.
_OWN_ANSWER, _LONGEST_ANSWER = 9, 80
Unit = list[Example]


def find_unit_shapes(
    *,
    model: Any,
    objective: Objective,
    engine: str,
    stream: Stream,
    longest: int,
    context: int | None,
    token_budget: int,
    most_units: int,
    sizes: Iterable[int],
    pad_id: int,
    dtype: torch.dtype,
    check: Callable[[], None] = lambda: None,
) -> UnitShapes:
    """Return the shapes for units of up to `longest` tokens a row.

    Args:
        context: the most tokens that the model takes; None if it states none.
        token_budget: of one physical batch, padding included. A single unit may exceed it.
        most_units: units that a step draws, about.
        sizes: how many rows a unit may have.
        check: called before each pass; may raise to stop.

    Raises:
        UserError: a unit's gradient changes with the passes before it, or, in bfloat16, with its neighbours.
    """
    probe = _Probe(model=model, objective=objective, engine=engine, pad_id=pad_id, check=check)
    sizes = sorted(set(sizes))
    tried: list[UnitShapes] = []
    with shallow(model), moved(model, stream), probe:
        for multiple in MULTIPLES:
            rounded = -(-longest // multiple) * multiple
            grid = Grid(multiple=multiple, fineness=FINENESS, longest=min(rounded, context or rounded))
            before = probe.alone(grid.widths()[0], sizes[0])
            shapes = {
                (width, size): probe.shapes(
                    width, size, most=min(up_to_power_of_two(most_units), max(1, token_budget // (width * size)))
                )
                for width in grid.widths()
                for size in sizes
            }
            if probe.alone(grid.widths()[0], sizes[0]) != before:
                raise UserError(_REMEMBERS)
            tried.append(UnitShapes(grid=grid, shapes=shapes))
            if all(shape.is_free for found in shapes.values() for shape in found):
                return tried[-1]
    _tell(tried[0], dtype=dtype)
    return tried[0]


_REMEMBERS = (
    "training under privacy is refused: the base's output for a record changes with the records that it saw before, so"
    " one record would change the contribution of another. Choose another base, or another stage.max_seq_len: a base"
    " with dynamic positions remembers the longest text"
)


def _tell(found: UnitShapes, *, dtype: torch.dtype) -> None:
    """Refuse bfloat16 if units must run alone, and say it otherwise."""
    alone = sum(shapes == ALONE for shapes in found.shapes.values())
    if not alone:
        return
    if dtype == torch.bfloat16:
        raise UserError(
            "training under privacy is refused: in bfloat16 a record's gradient changes with the other records of its "
            "batch on this device: set base.dtype: float32"
        )
    print(
        f"gradients of records in one batch depend on each other here (at {alone} of {len(found.shapes)} lengths):"
        " there, they are computed one at a time",
        flush=True,
    )


class _Probe:
    """Computes gradients of made-up units, and compares their bits."""

    def __init__(
        self,
        *,
        model: Any,
        objective: Objective,
        engine: str,
        pad_id: int,
        check: Callable[[], None],
    ) -> None:
        self._model, self._objective, self._engine_name = model, objective, engine
        self._pad_id, self._device, self._check = pad_id, next(model.parameters()).device, check
        self._vocabulary = model.get_input_embeddings().weight.shape[0]

    def __enter__(self) -> "_Probe":
        self._engine = make_engine(self._engine_name, model=self._model, objective=self._objective)
        return self

    def __exit__(self, *_: object) -> None:
        self._engine.close()

    def alone(self, width: int, size: int) -> int:
        """Return the print of the made-up unit in a pass of its own."""
        return self._prints([self._own(width, size)], width=width)[0]

    def shapes(self, width: int, size: int, *, most: int) -> tuple[Shape, ...]:
        """Return the shapes for this width, of at most `most` units.

        In every shape all units are equal; in one, the neighbours of each place differ too.
        """
        own, counts = self._own(width, size), row_counts(most)
        prints: dict[int, list[int | None]] = {
            count: list(self._prints([own] * count, width=width)) for count in counts
        }
        mixed = counts[min(2, len(counts) - 1)]
        among = self._among(own, mixed, width=width, turn=0)
        if among == prints[mixed] and len({value for found in prints.values() for value in found}) == 1:
            return agreeing(prints)
        # Some places differ. Use only those that do not change with their neighbours.
        for count in counts:
            others = zip(
                prints[count],
                self._among(own, count, width=width, turn=1),
                self._among(own, count, width=width, turn=3),
                strict=True,
            )
            prints[count] = [values[0] if len(set(values)) == 1 else None for values in others]
        return agreeing(prints)

    def _among(self, own: Unit, count: int, *, width: int, turn: int) -> list[int]:
        """Return the print of `own` at each place, its neighbours being others: first at even places, then at odd."""
        prints = [0] * count
        for parity in range(min(2, count)):
            units = [
                own if place % 2 == parity else self._neighbour(place + turn + parity, width, len(own))
                for place in range(count)
            ]
            found = self._prints(units, width=width)
            prints[parity::2] = found[parity::2]
        return prints

    def _prints(self, units: Sequence[Unit], *, width: int) -> list[int]:
        self._check()
        batch = unit_batch(units, shape=Shape.free(len(units)), width=width, pad_id=self._pad_id, device=self._device)
        found = self._engine.per_unit(batch)
        flat = torch.cat([gradient.flatten(1).to(torch.float32) for gradient in found.gradients], dim=1)
        return (bit_prints(flat) ^ bit_prints(found.losses[:, None].to(torch.float32))).tolist()

    def _own(self, width: int, size: int) -> Unit:
        return self._unit(0, [max(2, width - 3 - 2 * row) for row in range(size)], answer=_OWN_ANSWER)

    def _neighbour(self, number: int, width: int, size: int) -> Unit:
        """Return one of four other units: full, short, full with a long answer, and one without an answer."""
        lengths = [max(1, (width, width - 15, width, width - 7)[number % 4])] * size
        return self._unit(1 + number, lengths, answer=(1, 4, _LONGEST_ANSWER, 0)[number % 4])

    def _unit(self, number: int, lengths: Sequence[int], *, answer: int) -> Unit:
        chance = torch.Generator().manual_seed(number)
        rows = []
        for length in lengths:
            ids = torch.randint(self._vocabulary, (length,), generator=chance).tolist()
            prompt = max(1, length - answer) if answer else length
            rows.append(Example(ids=tuple(ids), prompt_length=prompt, unit=number))
        return self._objective.made_up(rows, vocabulary=self._vocabulary)
