"""Exact per-unit gradients of an adapter: three engines with one interface, chosen by name.

| Engine | How | Cost | Wrong or impossible for |
|---|---|---|---|
| `hooks` | Opacus' hooks on the trainable layers | lowest | layers whose rows are not the batch's: prompt tuning |
| `vmap` | the whole model, differentiated for many units at once | medium | quantised bases, recomputed activations |
| `one_by_one` | each unit alone | highest | nothing |

Before a private run, `check.check_unit_gradients` compares the chosen engine with `one_by_one`.
"""

import importlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch

NAMES = ("hooks", "vmap", "one_by_one")
RECOMPUTING = ("hooks", "one_by_one")  # engines that work with recomputed activations


class GradientMismatch(Exception):
    """Per-unit gradients are wrong, so the promised ε would not hold."""


class UnitBatch(Protocol):
    """What engines need of a physical batch. It holds whole units, each of one or more rows."""

    @property
    def unit(self) -> "torch.Tensor":
        """The unit of each row, [rows], as 0, 1, … in ascending order."""

    def rows_by_unit(self) -> list[list[int]]:
        """Return the rows of each unit."""

    def units(self) -> "Iterator[UnitBatch]":
        """Yield each unit alone, in the batch's width."""

    def padded(self) -> "UnitBatch":
        """Return the same batch in padded form: its shapes do not depend on the content of a row."""

    def tensors(self) -> "dict[str, torch.Tensor]":
        """Return the tensors of the padded form that a loss reads, each [rows, …]."""

    def of_tensors(self, tensors: "Mapping[str, torch.Tensor]") -> "UnitBatch":
        """Return one unit in the padded form, made of these tensors of its rows."""


class UnitLoss(Protocol):
    """What engines need of an objective. `Objective` describes the contract."""

    def constants(self, model: Any, batch: Any) -> Mapping[str, Any]:
        """Return what the loss needs but does not differentiate. For a padded batch, tensors are [rows, …]."""

    def per_example_loss(
        self, model: Any, batch: Any, constants: Mapping[str, Any]
    ) -> "tuple[torch.Tensor, Mapping[str, torch.Tensor]]":
        """Return each unit's loss, [units], and figures for the log by name, each [units]."""


@dataclass(frozen=True)
class UnitGradients:
    """The result of an engine, without a graph.

    Attributes:
        gradients: per trainable parameter in the model's own order, [units, *shape].
        losses: [units].
        figures: the objective's figures by name, each [units].
    """

    gradients: "list[torch.Tensor]"
    losses: "torch.Tensor"
    figures: "Mapping[str, torch.Tensor]"

    def of(self, units: Sequence[int] | None) -> "UnitGradients":
        """Return the part of these units; None for all of them."""
        if units is None:
            return self
        chosen = list(units)
        return UnitGradients(
            [gradient[chosen] for gradient in self.gradients],
            self.losses[chosen],
            {name: values[chosen] for name, values in self.figures.items()},
        )


class Engine:
    """Computes the gradient of each unit's loss with respect to the trainable parameters of a model."""

    def __init__(self, *, model: Any, objective: UnitLoss) -> None:
        self._model, self._objective = model, objective
        self._trainable = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}

    def per_unit(self, batch: Any) -> UnitGradients:
        """Differentiate one physical batch."""
        raise NotImplementedError

    def close(self) -> None:
        """Restore the model to its state before."""


def make_engine(name: str, *, model: Any, objective: UnitLoss) -> Engine:
    """Return the engine of this name.

    Raises:
        ValueError: no engine has this name.
        UserError: the engine cannot be used with this model.
    """
    if name not in NAMES:
        raise ValueError(f"no engine is called {name!r}; there are {', '.join(NAMES)}")
    chosen: Engine = importlib.import_module(f"{__name__}.{name}").Chosen(model=model, objective=objective)
    return chosen


def constants_of(objective: UnitLoss, model: Any, batch: Any) -> Mapping[str, Any]:
    """Return the objective's constants for a batch, computed without gradient."""
    import torch

    with torch.no_grad():
        return objective.constants(model, batch)


def detached(
    losses: "torch.Tensor", figures: "Mapping[str, torch.Tensor]"
) -> "tuple[torch.Tensor, dict[str, torch.Tensor]]":
    """Return an objective's losses and figures, detached from the graph."""
    return losses.detach(), {name: values.detach() for name, values in figures.items()}
