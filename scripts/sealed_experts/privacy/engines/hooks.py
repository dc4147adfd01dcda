"""Per-unit gradients through Opacus' hooks.

A hook on each trainable layer keeps its input and the gradient of its output. Their outer product, summed over a row's
positions, is the gradient of this layer for this row. Then the rows of each unit are added up. This is exact if each
row of a layer's input belongs to one row of the batch, as in LoRA's linear layers.
"""

from typing import Any

import torch
from opacus.grad_sample.grad_sample_module import GradSampleHooks

from sealed_experts.privacy.engines import Engine, GradientMismatch, UnitGradients, UnitLoss, constants_of, detached
from sealed_experts.privacy.mechanism import sum_by_unit


class Chosen(Engine):
    """Opacus' hooks."""

    def __init__(self, *, model: Any, objective: UnitLoss) -> None:
        super().__init__(model=model, objective=objective)
        self._hooks = GradSampleHooks(model, loss_reduction="sum")

    def per_unit(self, batch: Any) -> UnitGradients:
        """Differentiate a physical batch in one pass. The loss must run the model with gradient only once."""
        constants = constants_of(self._objective, self._model, batch)
        losses, figures = self._objective.per_example_loss(self._model, batch, constants)
        losses.sum().backward()
        rows = [self._taken(parameter, rows=batch.unit.numel()) for parameter in self._trainable.values()]
        for parameter in self._trainable.values():
            parameter.grad = None
        return UnitGradients(sum_by_unit(rows, batch.unit), *detached(losses, figures))

    def close(self) -> None:
        """Remove the hooks from the model."""
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
