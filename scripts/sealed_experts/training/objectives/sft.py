"""Supervised fine-tuning: the mean negative log-likelihood of each example's own response tokens."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from sealed_experts.errors import UserError
from sealed_experts.training.batches import Batch, Example
from sealed_experts.training.objectives.objective import Objective
from sealed_experts.training.objectives.response import mean_response_loss, response_logits


class SupervisedFineTuning(Objective):
    """Next-token prediction on responses; prompt and padding positions carry no loss."""

    name = "sft"

    def __init__(self, *, max_seq_len: int) -> None:
        self._max_seq_len = max_seq_len

    def check(self, examples: Sequence[Example], *, path: Path) -> None:
        """Refuse records that leave no answer to learn from; say how many there are among others."""
        silent = sum(example.response_tokens == 0 for example in examples)
        if silent == len(examples):
            raise UserError(
                f"{path}: no record's prompt leaves room for an answer within sft.max_seq_len {self._max_seq_len}: "
                "raise it"
            )
        if silent:
            print(f"WARNING: {silent} prompts fill max_seq_len and teach nothing", flush=True)

    def per_example_loss(
        self, model: torch.nn.Module, batch: Batch, constants: Mapping[str, Any]
    ) -> tuple[torch.Tensor, Mapping[str, torch.Tensor]]:
        """Return each row's mean loss over its own response tokens, 0 without any, added up by unit, [units].

        A mean over the batch's tokens, as the model's own `.loss` takes it, would make one example's gradient depend
        on another's length.
        """
        response = response_logits(model, batch)
        return batch.by_unit(response.row_means(response.losses())), {}

    def validate(
        self, model: torch.nn.Module, batches: Sequence[Batch], *, check: Callable[[], None] = lambda: None
    ) -> dict[str, Any]:
        """Return `val_loss`: the mean over all response tokens of `batches`, in nats; NaN when there are none."""
        return {"val_loss": mean_response_loss(model, batches, check=check)}
