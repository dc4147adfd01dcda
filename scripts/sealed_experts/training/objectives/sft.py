"""Supervised fine-tuning: the mean negative log-likelihood of each example's own response tokens."""

import contextlib
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F

from sealed_experts.training.batches import IGNORED, Batch
from sealed_experts.training.objectives.objective import Objective


class SupervisedFineTuning(Objective):
    """Next-token prediction on responses; prompt and padding positions carry no loss."""

    name = "sft"

    def per_example_loss(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """Return each row's mean loss over its own response tokens, float32 [rows]; 0 for a row without any.

        A mean over the batch's tokens, as the model's own `.loss` takes it, would make one example's gradient depend
        on another's length.
        """
        losses, counts = response_losses(model, batch)
        return losses / counts.clamp(min=1)

    def validation_loss(self, model: torch.nn.Module, batches: Sequence[Batch]) -> float:
        """Return the mean over all response tokens of `batches`, in nats; NaN when there are none."""
        return mean_response_loss(model, batches)


def response_losses(model: torch.nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Return each row's summed negative log-likelihood (nats, float32 [rows]) and its number of response tokens."""
    mask = batch.labels != IGNORED
    counts = mask.sum(1)
    if not bool(mask.any()):
        # Nothing to predict: a zero that still has a gradient, so that the engine sees every parameter.
        return model(input_ids=batch.input_ids, logits_to_keep=1).logits.float().sum((1, 2)) * 0.0, counts
    with _head_on(model, mask):
        logits = model(input_ids=batch.input_ids).logits
    token_losses = F.cross_entropy(logits.float(), batch.labels[mask], reduction="none")
    row = mask.nonzero()[:, 0]
    return torch.zeros(mask.shape[0], device=mask.device).index_add(0, row, token_losses), counts


def mean_response_loss(model: torch.nn.Module, batches: Sequence[Batch]) -> float:
    """Return the mean loss over all response tokens of `batches`, in nats; NaN when there are none."""
    total, tokens = 0.0, 0
    with torch.no_grad():
        for batch in batches:
            losses, counts = response_losses(model, batch)
            total += float(losses.to(torch.float64).sum())
            tokens += int(counts.sum())
    return total / tokens if tokens else float("nan")


@contextlib.contextmanager
def _head_on(model: torch.nn.Module, mask: torch.Tensor) -> Iterator[None]:
    """Let the output head see only the positions in `mask`, [rows, length]: it returns [positions, vocabulary].

    The head is the widest layer of a small model, and most positions of an example are prompt or padding.
    """
    head = model.get_output_embeddings()  # type: ignore[operator]
    handle = head.register_forward_pre_hook(lambda module, inputs: (inputs[0][mask],))
    try:
        yield
    finally:
        handle.remove()
