"""Exact per-example gradients of an adapter, and the check that they are exact.

LoRA's matrices are plain linear layers, for which Opacus' hooks are exact: a hook on each layer keeps its input and
the gradient of its output, and their outer product, summed over an example's positions, is that example's gradient.
"""

import functools
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from opacus.grad_sample.grad_sample_module import GradSampleHooks

from sealed_experts.privacy.streams import Stream

# Largest relative difference between an example's gradient from a physical batch and the one computed alone. Padding
# alone moves float32 logits by up to 2e-6, and bfloat16 carries 8 bits.
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 6e-2}


BatchT = TypeVar("BatchT")


class GradientMismatch(Exception):
    """Per-example gradients differ from the truth: training under privacy would be unsound."""


class HookGradients:
    """Per-example gradients through Opacus' hooks on the trainable linear layers."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._hooks = GradSampleHooks(model, loss_reduction="sum")

    def per_example(self, losses: Callable[[], torch.Tensor]) -> list[torch.Tensor]:
        """Return each row's gradient, per parameter [rows, *shape].

        Args:
            losses: computes the rows' losses, [rows], with the hooks on; each depends on its own row alone.
        """
        rows = losses()
        rows.sum().backward()
        gradients = [self._taken(parameter, rows=rows.numel()) for parameter in self._parameters]
        for parameter in self._parameters:
            parameter.grad = None
        return gradients

    def close(self) -> None:
        """Take the hooks off the model."""
        self._hooks.remove_hooks()

    @staticmethod
    def _taken(parameter: torch.nn.Parameter, *, rows: int) -> torch.Tensor:
        gradient = vars(parameter).get("grad_sample")
        vars(parameter)["grad_sample"] = None
        if not isinstance(gradient, torch.Tensor):
            raise GradientMismatch("a trainable parameter got no per-example gradient, or several")
        if gradient.shape[0] != rows:
            raise GradientMismatch(f"a trainable parameter got {gradient.shape[0]} gradients for {rows} examples")
        return gradient


def check_per_example_gradients(
    *,
    model: torch.nn.Module,
    loss: Callable[[BatchT], torch.Tensor],
    batches: Sequence[BatchT],
    alone: Callable[[BatchT], Sequence[BatchT]],
    stream: Stream,
    dtype: torch.dtype,
) -> float:
    """Compare per-example gradients with one-example-at-a-time truth, and refuse a mismatch.

    The adapter's weights are randomised for the check and restored: at LoRA's start every gradient of A is exactly
    zero, and a comparison there would see nothing.

    Args:
        loss: the objective's per-example loss, [rows].
        batches: physical batches of real examples of mixed lengths.
        alone: cuts a batch into batches of one row each, without padding.
        dtype: the base's number format, which decides the tolerance.

    Returns:
        The largest relative difference found.

    Raises:
        GradientMismatch: it exceeds the tolerance of `dtype`, or no gradient flows at all.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    saved = [parameter.detach().clone() for parameter in parameters]
    _randomise(parameters, stream)
    try:
        measured = _measured(model, loss, batches)
        # The truth comes after the hooks are gone: it must not depend on them.
        truth = [_alone(loss, row, parameters) for batch in batches for row in alone(batch)]
    finally:
        with torch.no_grad():
            for parameter, value in zip(parameters, saved, strict=True):
                parameter.copy_(value)
    return _largest_difference(measured, truth, tolerance=TOLERANCE[dtype])


def _measured(model: torch.nn.Module, loss: Callable, batches: Sequence) -> list[torch.Tensor]:
    engine = HookGradients(model)
    try:
        rows: list[torch.Tensor] = []
        for batch in batches:
            gradients = engine.per_example(functools.partial(loss, batch))
            flat = torch.cat([gradient.flatten(1) for gradient in gradients], dim=1)
            rows.extend(flat.to(torch.float64))
        return rows
    finally:
        engine.close()


def _alone(
    loss: Callable[[BatchT], torch.Tensor], row: BatchT, parameters: Sequence[torch.nn.Parameter]
) -> torch.Tensor:
    # Not autograd.grad: recomputed activations (reentrant checkpointing) only know backward().
    loss(row).sum().backward()
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    for parameter in parameters:
        parameter.grad = None
    return torch.cat([gradient.flatten() for gradient in gradients]).to(torch.float64)


def _largest_difference(measured: list[torch.Tensor], truth: list[torch.Tensor], *, tolerance: float) -> float:
    if len(measured) != len(truth):
        raise GradientMismatch(f"{len(truth)} examples gave {len(measured)} gradients")
    worst, compared = 0.0, False
    for row, (got, expected) in enumerate(zip(measured, truth, strict=True)):
        norm, gap = float(expected.norm()), float((got - expected).norm())
        if norm == gap == 0.0:
            continue  # this example teaches nothing; another one must
        difference = gap / norm if norm else float("inf")
        if not difference <= tolerance:
            raise GradientMismatch(
                f"example {row}: its gradient from a batch differs from the one computed alone by {difference:.2g} "
                f"of its norm {norm:.2g}; at most {tolerance:.0e} is numerical noise"
            )
        worst = max(worst, difference)
        compared = True
    if not compared:
        raise GradientMismatch("no example has a gradient: there is nothing to compare")
    return worst


def _randomise(parameters: Sequence[torch.nn.Parameter], stream: Stream) -> None:
    with torch.no_grad():
        for index, parameter in enumerate(parameters):
            values = torch.from_numpy(stream.normals("self-check", index, parameter.numel()))
            parameter.copy_((0.02 * values).reshape(parameter.shape))
