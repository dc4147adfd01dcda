"""Before a private run: compare per-unit gradients with gradients computed one unit at a time, on its own examples."""

from collections.abc import Sequence

import numpy as np
import torch

from sealed_experts.errors import UserError
from sealed_experts.privacy.engines import GradientMismatch
from sealed_experts.privacy.engines.check import check_unit_gradients
from sealed_experts.privacy.streams import Stream
from sealed_experts.training.batches import Batch, Example, longest_first, unit_batch
from sealed_experts.training.dataset import UnitDataset
from sealed_experts.training.objective import Objective
from sealed_experts.training.shapes import MULTIPLES, Shape

UNITS = 8


def check_gradients(
    *,
    model: torch.nn.Module,
    objective: Objective,
    dataset: UnitDataset,
    stream: Stream,
    dtype: torch.dtype,
    pad_id: int,
    engine: str,
    token_budget: int,
) -> None:
    """Check the engine of this name on units from the shortest to the longest, in two padded batches.

    Args:
        token_budget: of a physical batch. A batch of the check has two units at least, whatever they need.

    Raises:
        UserError: the gradients differ, so training under privacy would be unsound.
    """
    device = next(model.parameters()).device
    # All rows that each unit would contribute to a step.
    units = longest_first(dataset.examples(np.arange(len(dataset)), step=0, stream=stream))
    units = [rows for rows in units if any(row.response_tokens for row in rows)] or units
    units = sorted(units, key=lambda rows: max((len(row.ids), row.ids) for row in rows))
    chosen = [units[int(index)] for index in np.linspace(0, len(units) - 1, min(UNITS, len(units)))]
    # Each batch mixes short and long units, so that it has padding: errors with padding would show.
    halves = [_fitting(half, token_budget) for half in (chosen[0::2], chosen[1::2]) if half]
    batches = [
        _one_batch(
            objective.prepare(model, [row for rows in half for row in rows], step=0, stream=stream),
            pad_id=pad_id,
            device=device,
        )
        for half in halves
    ]
    try:
        worst = check_unit_gradients(
            engine=engine,
            model=model,
            objective=objective,
            batches=batches,
            stream=stream,
            dtype=dtype,
        )
    except GradientMismatch as error:
        raise UserError(
            f"training under privacy is refused: {error}. A layer of the base or the adapter mixes examples, or the "
            f"gradient engine `{engine}` cannot serve it; choose another adapter.kind or other settings of it"
        ) from error
    print(f"per-example gradients agree with one-at-a-time truth within {worst:.1e}", flush=True)


def _fitting(units: list[list[Example]], token_budget: int) -> list[list[Example]]:
    """Leave out units from the middle until the batch fits; the shortest and the longest stay."""
    while len(units) > 2 and sum(map(len, units)) * _width(units[-1]) > token_budget:
        units = units[: len(units) // 2] + units[len(units) // 2 + 1 :]
    return units


def _width(unit: list[Example]) -> int:
    """Return the length of a unit's longest row, rounded up: in bfloat16, other widths move the gradients."""
    return -(-max(len(row.ids) for row in unit) // MULTIPLES[0]) * MULTIPLES[0]


def _one_batch(examples: Sequence[Example], *, pad_id: int, device: torch.device) -> Batch:
    units = longest_first(examples)
    return unit_batch(units, shape=Shape.free(len(units)), width=_width(units[0]), pad_id=pad_id, device=device)
