"""The logits at response positions, and the likelihood of the response tokens."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from sealed_experts.training.batches import IGNORED, Batch

# The output head runs on this many positions at a time, so the shape of its products does not depend on the batch.
_CHUNK = 64


@dataclass(frozen=True)
class ResponseLogits:
    """A model's output at the response positions of a batch, row by row, then at fillers up to a whole chunk.

    Attributes:
        logits: float32 [positions, vocabulary]; those of a filler are finite and have no meaning.
        tokens: [positions], the token at that position.
        real: [positions], False for fillers.
        row: [positions], the row each position belongs to; fillers belong to a row after the last.
        counts: [rows], how many positions each row has.
    """

    logits: torch.Tensor
    tokens: torch.Tensor
    real: torch.Tensor
    row: torch.Tensor
    counts: torch.Tensor

    def losses(self) -> torch.Tensor:
        """Return the negative log-likelihood of each position's token in nats, [positions]."""
        losses: torch.Tensor = _TokenLosses.apply(self.logits, self.tokens)[0]
        return losses

    def row_sums(self, values: torch.Tensor) -> torch.Tensor:
        """Add up values per position, [positions], to values per row, [rows]."""
        return torch.zeros(self.counts.shape[0] + 1, device=values.device).index_add(0, self.row, values)[:-1]

    def row_means(self, values: torch.Tensor) -> torch.Tensor:
        """Return each row's mean over its own positions, [rows]; 0 for a row without any."""
        return self.row_sums(values) / self.counts.clamp(min=1)


class _TokenLosses(torch.autograd.Function):
    """Cross entropy with an explicit gradient: autograd would hold three more tensors as wide as the vocabulary.

    PyTorch does not promise that its own `cross_entropy` is deterministic on a GPU.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(logits: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        normalizers = logits.logsumexp(-1)
        return normalizers - logits.gather(-1, tokens[..., None])[..., 0], normalizers

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[torch.Tensor, ...], output: tuple[torch.Tensor, ...]) -> None:
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(*inputs, output[1])

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        logits, tokens, normalizers = ctx.saved_tensors
        of_losses = gradients[0][..., None]
        result = (logits - normalizers[..., None]).exp_().mul_(of_losses)
        return result.scatter_add_(-1, tokens[..., None], -of_losses), None


@dataclass(frozen=True)
class PaddedResponseLogits(ResponseLogits):
    """`ResponseLogits` of a padded batch: every [positions] there is [rows, width] here, and the fillers are in it."""

    def row_sums(self, values: torch.Tensor) -> torch.Tensor:
        """Add up values per position, [rows, width], to values per row, [rows]."""
        return torch.where(self.real, values, 0.0).sum(1)


def response_logits(model: torch.nn.Module, batch: Batch) -> ResponseLogits:
    """Run the model on a batch, but its output head only on response positions."""
    if batch.positions is not None:
        return _padded_logits(model, batch, batch.positions)
    mask = batch.labels != IGNORED
    counts = mask.sum(1)
    fillers = _fillers(int(counts.sum()))

    def chosen(hidden: torch.Tensor) -> torch.Tensor:
        found = hidden[:, -mask.shape[1] :][mask]
        # Without any response the model still runs, so that every parameter has a gradient for the engine.
        return torch.cat([found, found.new_zeros(fillers, found.shape[1])])

    with _head_on(model, chosen, chunk=_CHUNK):
        logits = model(input_ids=batch.input_ids).logits.float()
    pad = torch.nn.functional.pad
    return ResponseLogits(
        logits=logits,
        tokens=pad(batch.labels[mask], (0, fillers)),
        real=pad(torch.ones_like(batch.labels[mask], dtype=torch.bool), (0, fillers)),
        row=pad(mask.nonzero()[:, 0], (0, fillers), value=mask.shape[0]),
        counts=counts,
    )


def _fillers(positions: int) -> int:
    """Return how many fillers complete the last chunk; there is at least one chunk."""
    return max(1, -(-positions // _CHUNK)) * _CHUNK - positions


def _padded_logits(model: torch.nn.Module, batch: Batch, positions: torch.Tensor) -> PaddedResponseLogits:
    rows, width = batch.input_ids.shape

    def chosen(hidden: torch.Tensor) -> torch.Tensor:
        return hidden[:, -width:].gather(1, positions[:, :, None].expand(-1, -1, hidden.shape[2]))

    with _head_on(model, chosen):
        logits = model(input_ids=batch.input_ids).logits.float()
    labels = batch.labels.gather(1, positions)
    real = labels != IGNORED
    row = torch.arange(rows, device=labels.device)[:, None].expand(labels.shape)
    return PaddedResponseLogits(logits=logits, tokens=labels.clamp(min=0), real=real, row=row, counts=real.sum(1))


def at_responses(batch: Batch, values: torch.Tensor, *, elsewhere: float) -> torch.Tensor:
    """Arrange values per response position, [positions], in the same shape as `response_logits` of this batch.

    Args:
        batch: the batch.
        values: one per response position, row by row.
        elsewhere: value for fillers.
    """
    if batch.positions is None:
        return torch.nn.functional.pad(values, (0, _fillers(values.numel())), value=elsewhere)
    real = batch.labels.gather(1, batch.positions) != IGNORED
    return torch.full(real.shape, elsewhere, dtype=values.dtype, device=values.device).masked_scatter(real, values)


def mean_response_loss(
    model: torch.nn.Module, batches: Sequence[Batch], *, check: Callable[[], None] = lambda: None
) -> float:
    """Return the mean loss over all response tokens of `batches`, in nats; NaN when there are none.

    Args:
        check: called before each batch; may raise to stop.
    """
    total, tokens = 0.0, 0
    with torch.no_grad():
        for batch in batches:
            check()
            response = response_logits(model, batch)
            losses = response.losses()[response.real]
            total += float(losses.to(torch.float64).sum())
            tokens += losses.numel()
    return total / tokens if tokens else float("nan")


@contextlib.contextmanager
def _head_on(
    model: torch.nn.Module, chosen: Callable[[torch.Tensor], torch.Tensor], *, chunk: int | None = None
) -> Iterator[None]:
    """Run the output head only on the positions that `chosen` takes from [rows, length, hidden units].

    The head is the widest layer of a small model, and most positions are prompt or padding. A soft prompt's virtual
    tokens come before the tokens of the batch, so `chosen` counts positions from the end.

    Args:
        chunk: run the head on this many of the chosen positions at a time.
    """
    head = model.get_output_embeddings()  # type: ignore[operator]
    forward = head.forward

    def forwarded(hidden: torch.Tensor) -> torch.Tensor:
        found = chosen(hidden)
        return torch.cat([forward(piece) for piece in found.split(chunk or found.shape[0])])

    head.forward = forwarded
    try:
        yield
    finally:
        del head.forward  # the class's own method is behind it
