"""Per-unit gradients by one plain backward pass per unit: slow, and correct for every adapter and base."""

from typing import Any

import torch

from sealed_experts.privacy.engines import Engine, UnitGradients, constants_of, detached


class Chosen(Engine):
    """One unit at a time."""

    def per_unit(self, batch: Any) -> UnitGradients:
        """Differentiate a physical batch unit by unit."""
        units = [self._alone(unit) for unit in batch.units()]
        return UnitGradients(
            [torch.stack(parts) for parts in zip(*(unit.gradients for unit in units), strict=True)],
            torch.cat([unit.losses for unit in units]),
            {name: torch.cat([unit.figures[name] for unit in units]) for name in units[0].figures},
        )

    def _alone(self, unit: Any) -> UnitGradients:
        constants = constants_of(self._objective, self._model, unit)
        losses, figures = self._objective.per_example_loss(self._model, unit, constants)
        # Not autograd.grad: recomputed activations (reentrant checkpointing) support only backward().
        losses.sum().backward()
        parameters = self._trainable.values()
        gradients = [torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in parameters]
        for weight in parameters:
            weight.grad = None
        return UnitGradients(gradients, *detached(losses, figures))
