"""Before a private run: find the shapes of passes in which a unit's gradient has bits of its own.

Made-up units go through the objective and the engine in every shape that a batch may have. Real ones would let the data
choose the mechanism. The model keeps only a few of its layers meanwhile, because layers of one kind run the same
kernels on the same shapes: so the check takes seconds.
"""

import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch

from sealed_experts.errors import UserError
from sealed_experts.models.depth import narrow, shallow
from sealed_experts.models.positions import shared_positions_beyond
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
_TOKENS = 1024  # of the part of the output head
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
    tried: list[tuple[UnitShapes, int]] = []
    with shallow(model), moved(model, stream), probe:
        for multiple in MULTIPLES:
            rounded = -(-longest // multiple) * multiple
            grid = Grid(multiple=multiple, fineness=FINENESS, longest=min(rounded, context or rounded))
            probe.narrowest = grid.widths()[0]
            counts = {
                (width, size): row_counts(min(up_to_power_of_two(most_units), token_budget // (width * size)))
                for width in grid.widths()
                for size in sizes
            }
            shapes = {(width, size): probe.shapes(width, size, counts=found) for (width, size), found in counts.items()}
            probe.check_memory()
            alone = sum(shapes[key] == ALONE and counts[key] != [1] for key in counts)
            tried.append((UnitShapes(grid=grid, shapes=shapes), alone))
            if all(shapes[key] == tuple(map(Shape.free, counts[key])) for key in counts):
                return tried[-1][0]
    chosen, alone = min(tried, key=lambda found: found[1])
    if alone:
        _tell(alone, of=len(chosen.shapes), dtype=dtype)
    return chosen


def _tell(alone: int, *, of: int, dtype: torch.dtype) -> None:
    """Say that units of some lengths must run alone, or refuse it in bfloat16."""
    if dtype == torch.bfloat16:
        raise UserError(
            "training under privacy is refused: in bfloat16 a record's gradient changes with the other records of its "
            "batch on this device; set base.dtype: float32"
        )
    print(
        f"gradients of the records of a batch depend on each other here (at {alone} of {of} lengths): there, they are"
        " computed one at a time",
        flush=True,
    )


def check_positions(config: Any, *, longest: int, stage: str) -> None:
    """Check that a base's rotary positions do not depend on the longest row of a batch.

    Args:
        config: the base's configuration.
        longest: the stage's `max_seq_len`.
        stage: its name, for the message.

    Raises:
        UserError: they do.
    """
    limit = shared_positions_beyond(config)
    if limit is None:
        return
    # No row is padded beyond this width.
    widest = Grid(multiple=MULTIPLES[-1], fineness=1, longest=config.max_position_embeddings).width(longest)
    if widest > limit:
        raise UserError(
            "training under privacy is refused: the base's rotary positions change for all records of a batch if one "
            f"has more than {limit} tokens; set {stage}.max_seq_len to at most {limit}"
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
        self._alone: dict[tuple[int, int], int | None] = {}  # in the order in which they were computed
        self.narrowest = 0

    def __enter__(self) -> "_Probe":
        self._engine = make_engine(self._engine_name, model=self._model, objective=self._objective)
        return self

    def __exit__(self, *_: object) -> None:
        self._engine.close()

    def shapes(self, width: int, size: int, *, counts: Sequence[int]) -> tuple[Shape, ...]:
        """Return the safe shapes for this width, among passes with these numbers of units; the first number is 1.

        In every shape all units are equal; in one, the neighbours of each place differ too.
        """
        with self._head(width):
            own = self._own(width, size)
            prints: dict[int, list[int | None]] = {
                count: list(self._prints([own] * count, width=width)) for count in counts
            }
            self._alone[width, size] = prints[1][0]
            mixed = counts[min(2, len(counts) - 1)]
            # Two or more neighbours are of all four kinds in one turn.
            among = [self._among(own, mixed, width=width, turn=turn) for turn in ((0, 2) if mixed < 4 else (0,))]
            equal = len({value for found in prints.values() for value in found}) == 1
            if equal and all(found == prints[mixed] for found in among):
                return agreeing(prints)
            # Some places differ. Do they change with their neighbours?
            for count in counts:
                seen = [prints[count], *(self._among(own, count, width=width, turn=turn) for turn in range(4))]
                prints[count] = [each[0] if len(set(each)) == 1 else None for each in zip(*seen, strict=True)]
            return agreeing(prints)

    def check_memory(self) -> None:
        """Check that a unit alone gets the same bits again after all other passes, the widest first.

        Raises:
            UserError: it gets others.
        """
        for (width, size), before in reversed(self._alone.items()):
            with self._head(width):
                (again,) = self._prints([self._own(width, size)], width=width)
            if again != before:
                raise UserError(
                    "training under privacy is refused: the base's output for a record changes with the records that "
                    "it saw before, so one record would change what another contributes; choose another base"
                )
        self._alone.clear()

    @contextlib.contextmanager
    def _head(self, width: int) -> Iterator[None]:
        """Keep the whole output head for the narrowest passes, and a part of it for the others.

        The head runs on chunks of one size, whatever the width, and would take most of the time.
        """
        with narrow(self._model, tokens=_TOKENS if width > self.narrowest else sys.maxsize) as self._vocabulary:
            yield

    def _among(self, own: Unit, count: int, *, width: int, turn: int) -> list[int]:
        """Return the print of `own` at each place, its neighbours being others: first at even places, then at odd."""
        prints = [0] * count
        for parity in range(min(2, count)):
            units = [
                own if place % 2 == parity else self._neighbour(place // 2 * 2 + parity + turn, width, len(own))
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
