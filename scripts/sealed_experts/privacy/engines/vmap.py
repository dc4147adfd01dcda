"""Per-unit gradients of the whole model at once: `vmap` over units of `grad` of the loss as a function of the weights.

It knows nothing about layers, so it works with every kind of adapter. But no shape in the loss may depend on values:
a batch is padded to one shape, each row's response positions are indices, and units with different numbers of rows are
differentiated one after another. A physical batch is within the token budget, so each of these passes is too.
"""

import warnings
from collections.abc import Mapping
from typing import Any

import torch

from sealed_experts.errors import UserError
from sealed_experts.privacy.engines import Engine, UnitGradients, UnitLoss, constants_of


class Chosen(Engine):
    """`vmap(grad(functional_call))`."""

    def __init__(self, *, model: Any, objective: UnitLoss) -> None:
        super().__init__(model=model, objective=objective)
        if any(getattr(module, "gradient_checkpointing", False) for module in model.modules()):
            raise UserError(
                "this adapter's per-example gradients cannot be computed while activations are recomputed: set "
                "`gradient_checkpointing: off`, and a lower `token_budget` if memory is short"
            )
        self._bound = _Bound(model, objective)

    def per_unit(self, batch: Any) -> UnitGradients:
        """Differentiate a physical batch: all units with the same number of rows at once."""
        batch = batch.padded()
        constants = constants_of(self._objective, self._model, batch)
        by_size: dict[int, list[list[int]]] = {}
        for rows in batch.rows_by_unit():
            by_size.setdefault(len(rows), []).append(rows)
        parts = [
            self._together(batch, constants, torch.tensor(units, device=batch.unit.device))
            for units in by_size.values()
        ]
        if len(parts) == 1:
            return parts[0]
        # Restore the order of the units.
        order = batch.unit[[rows[0] for units in by_size.values() for rows in units]].argsort()
        return UnitGradients(
            [torch.cat(pieces)[order] for pieces in zip(*(part.gradients for part in parts), strict=True)],
            torch.cat([part.losses for part in parts])[order],
            {name: torch.cat([part.figures[name] for part in parts])[order] for name in parts[0].figures},
        )

    def _together(self, batch: Any, constants: Mapping[str, Any], rows: torch.Tensor) -> UnitGradients:
        """Differentiate units that all have the same number of rows; `rows` is [units, rows of each]."""

        def loss(
            weights: dict[str, torch.Tensor], tensors: dict[str, torch.Tensor], own: dict[str, torch.Tensor]
        ) -> tuple[torch.Tensor, tuple[torch.Tensor, Mapping[str, torch.Tensor]]]:
            arguments = (batch.of_tensors(tensors), {**constants, **own})
            losses, figures = torch.func.functional_call(self._bound, weights, arguments)
            return losses.sum(), (losses, figures)

        weights = {f"model.{name}": weight.detach() for name, weight in self._trainable.items()}
        tensors = {name: value[rows] for name, value in batch.tensors().items()}
        own = {name: value[rows] for name, value in constants.items() if isinstance(value, torch.Tensor)}
        together = torch.vmap(torch.func.grad(loss, has_aux=True), in_dims=(None, 0, 0), randomness="different")
        with warnings.catch_warnings():
            # vmap runs two operations unit by unit: fused attention on a CPU (still faster than the alternative, as
            # measured), and a part of the policy's divergence.
            warnings.filterwarnings("ignore", message="There is a performance drop")
            gradients, (losses, figures) = together(weights, tensors, own)
        return UnitGradients(
            [gradients[name] for name in weights],
            losses.flatten(),
            {name: values.flatten() for name, values in figures.items()},
        )


class _Bound(torch.nn.Module):
    """An objective's loss as a module, so that functional_call can replace the model's weights."""

    def __init__(self, model: torch.nn.Module, objective: UnitLoss) -> None:
        super().__init__()
        self.model, self._objective = model, objective

    def forward(self, batch: Any, constants: Mapping[str, Any]) -> tuple[torch.Tensor, Mapping[str, torch.Tensor]]:
        return self._objective.per_example_loss(self.model, batch, constants)
