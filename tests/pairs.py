"""Units of several rows, and an objective whose loss couples them."""

import torch

from sealed_experts.training.batches import Example, physical_batches
from sealed_experts.training.objective import Objective
from sealed_experts.training.response import response_logits
from tests.kinds import VOCABULARY

BETA = 0.01  # small, because a larger β would saturate sums over many tokens


class Preference(Objective):
    """A loss that couples a unit's rows: -log sigmoid of β (first row's log-likelihood - those of the others)."""

    name = "preference"

    def constants(self, model, batch):
        signs = [sign for rows in batch.rows_by_unit() for sign in (1.0, *[-1.0] * (len(rows) - 1))]
        return {"signs": torch.tensor(signs)}

    def per_example_loss(self, model, batch, constants):
        response = response_logits(model, batch)
        margins = batch.by_unit(constants["signs"] * response.row_sums(-response.losses()))
        return -torch.nn.functional.logsigmoid(BETA * margins), {"margin": margins}


def units(sizes=(1, 2, 3, 2, 1), seed=0):
    """Return rows of mixed lengths, `sizes` of them in each unit."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for unit, size in enumerate(sizes):
        for place in range(size):
            ids = torch.randint(1, VOCABULARY, (6 + 3 * len(rows) - 2 * place,), generator=generator).tolist()
            rows.append(Example(ids=tuple(ids), prompt_length=(len(rows) % 4) + 1, unit=unit))
    return rows


def batch_of(rows):
    """Return one physical batch."""
    (batch,) = physical_batches(rows, token_budget=100_000, pad_id=0, device=torch.device("cpu"))
    return batch
