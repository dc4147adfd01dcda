"""The logits of response positions, and the likelihood of what stands there."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from sealed_experts.training.batches import IGNORED, Batch


@dataclass(frozen=True)
class ResponseLogits:
    """What a model says at the response positions of a batch, row after row.

    Attributes:
        logits: float32 [positions, vocabulary].
        tokens: [positions], the token that stands there.
        row: [positions], the row each position belongs to.
        counts: [rows], how many positions each row has.
    """

    logits: torch.Tensor
    tokens: torch.Tensor
    row: torch.Tensor
    counts: torch.Tensor

    def losses(self) -> torch.Tensor:
        """Return the negative log-likelihood of each position's token in nats, [positions]."""
        # Not cross_entropy, which PyTorch does not promise to be deterministic on a GPU.
        return self.logits.logsumexp(1) - self.logits.gather(1, self.tokens[:, None])[:, 0]

    def row_sums(self, values: torch.Tensor) -> torch.Tensor:
        """Add up one value a position, [positions], to one a row, [rows]."""
        return torch.zeros(self.counts.shape[0], device=values.device).index_add(0, self.row, values)

    def row_means(self, values: torch.Tensor) -> torch.Tensor:
        """Return each row's mean over its own positions, [rows]; 0 for a row without any."""
        return self.row_sums(values) / self.counts.clamp(min=1)


def response_logits(model: torch.nn.Module, batch: Batch) -> ResponseLogits:
    """Run the model on a batch, its output head on response positions alone."""
    mask = batch.labels != IGNORED
    counts = mask.sum(1)
    if bool(mask.any()):
        with _head_on(model, mask):
            logits = model(input_ids=batch.input_ids).logits.float()
    else:
        # Nothing to predict: no positions, but still a gradient, so that the engine sees every parameter.
        logits = model(input_ids=batch.input_ids, logits_to_keep=1).logits.float()[:, 0][:0]
    return ResponseLogits(logits=logits, tokens=batch.labels[mask], row=mask.nonzero()[:, 0], counts=counts)


def mean_response_loss(
    model: torch.nn.Module, batches: Sequence[Batch], *, check: Callable[[], None] = lambda: None
) -> float:
    """Return the mean loss over all response tokens of `batches`, in nats; NaN when there are none.

    Args:
        check: called before each batch; may raise to give up.
    """
    total, tokens = 0.0, 0
    with torch.no_grad():
        for batch in batches:
            check()
            losses = response_logits(model, batch).losses()
            total += float(losses.to(torch.float64).sum())
            tokens += losses.numel()
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
