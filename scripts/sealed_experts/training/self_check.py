"""Before a private run: its per-example gradients, on its own examples, against one-at-a-time truth."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch

from sealed_experts.errors import UserError
from sealed_experts.privacy.gradients import GradientMismatch, check_per_example_gradients
from sealed_experts.privacy.streams import Stream
from sealed_experts.training.batches import Batch, Example, physical_batches
from sealed_experts.training.dataset import UnitDataset
from sealed_experts.training.objectives.objective import Objective

EXAMPLES = 8


def check_gradients(
    *,
    model: torch.nn.Module,
    objective: Objective,
    dataset: UnitDataset,
    stream: Stream,
    dtype: torch.dtype,
    pad_id: int,
) -> None:
    """Check the engine on examples from the shortest to the longest, in two padded batches.

    Raises:
        UserError: the gradients differ: training under privacy would be unsound, and is refused.
    """
    device = next(model.parameters()).device
    rows = sorted(dataset.rows(), key=lambda row: (len(row.ids), row.ids))
    rows = [row for row in rows if row.response_tokens] or rows
    chosen = [rows[int(index)] for index in np.linspace(0, len(rows) - 1, min(EXAMPLES, len(rows)))]
    # Short and long examples side by side, so that padding is there to be wrong about.
    halves = [half for half in (chosen[0::2], chosen[1::2]) if half]
    batches = [_one_batch(half, pad_id=pad_id, device=device) for half in halves]
    try:
        worst = check_per_example_gradients(
            model=model,
            loss=lambda batch: objective.per_example_loss(model, batch),
            batches=[made for batch in batches for made in objective.prepare(model, [batch], step=0, stream=stream)],
            alone=lambda batch: list(batch.rows()),
            stream=stream,
            dtype=dtype,
        )
    except GradientMismatch as error:
        raise UserError(
            f"training under privacy is refused: {error}. The base or the adapter has a layer that mixes examples; "
            "choose other adapter.target_modules"
        ) from error
    print(f"per-example gradients agree with one-at-a-time truth within {worst:.1e}", flush=True)


def _one_batch(rows: Sequence[Example], *, pad_id: int, device: torch.device) -> Batch:
    numbered = [dataclasses.replace(row, unit=index) for index, row in enumerate(rows)]
    whole = max(len(row.ids) for row in rows) * len(rows)
    return physical_batches(numbered, token_budget=whole, pad_id=pad_id, device=device)[0]
