"""Exact per-unit gradients of an adapter: three engines with one interface, chosen by name.

| Engine | How | Cost | Silently wrong or impossible where |
|---|---|---|---|
| `hooks` | Opacus' hooks on the trainable layers | lowest | a layer's rows are not the batch's rows: prompt tuning |
| `vmap` | the whole model, differentiated for many units at once | medium | quantised bases, recomputed activations |
| `one_by_one` | each unit alone | highest | nowhere |

Whichever is chosen, `check.check_unit_gradients` compares it with the last one before a private run.
"""

import importlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch

NAMES = ("hooks", "vmap", "one_by_one")
RECOMPUTING = ("hooks", "one_by_one")  # those that differentiate a model whose activations are recomputed


class GradientMismatch(Exception):
    """Per-unit gradients differ from the truth: training under privacy would be unsound."""


class UnitBatch(Protocol):
    """What engines ask of a physical batch: whole units of one or more rows each."""

    @property
    def unit(self) -> "torch.Tensor":
        """The unit of each row, [rows], as 0, 1, … in ascending order."""

    def rows_by_unit(self) -> list[list[int]]:
        """Return the rows of each unit."""

    def units(self) -> "Iterator[UnitBatch]":
        """Yield each unit alone, without padding."""

    def padded(self) -> "UnitBatch":
        """Return the same batch in a form whose shapes do not depend on a row's content."""

    def tensors(self) -> "dict[str, torch.Tensor]":
        """Return what a loss reads of the padded form, each [rows, …]."""

    def of_tensors(self, tensors: "Mapping[str, torch.Tensor]") -> "UnitBatch":
        """Return one unit with these tensors of its rows, in the padded form."""


class UnitLoss(Protocol):
    """What engines ask of an objective; see `Objective` for the contract."""

    def constants(self, model: Any, batch: Any) -> Mapping[str, Any]:
        """Return what the loss needs without gradient: tensors are [rows, …] where the batch is padded."""

    def per_example_loss(
        self, model: Any, batch: Any, constants: Mapping[str, Any]
    ) -> "tuple[torch.Tensor, Mapping[str, torch.Tensor]]":
        """Return each unit's loss, [units], and figures for the log by name, each [units]."""


@dataclass(frozen=True)
class UnitGradients:
    """What an engine returns, without gradient.

    Attributes:
        gradients: per trainable parameter in the model's own order, [units, *shape].
        losses: [units].
        figures: the objective's figures by name, each [units].
    """

    gradients: "list[torch.Tensor]"
    losses: "torch.Tensor"
    figures: "Mapping[str, torch.Tensor]"


class Engine:
    """Computes the gradient of each unit's loss with respect to the trainable parameters of a model."""

    def __init__(self, *, model: Any, objective: UnitLoss) -> None:
        self._model, self._objective = model, objective
        self._trainable = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}

    def per_unit(self, batch: Any) -> UnitGradients:
        """Differentiate one physical batch."""
        raise NotImplementedError

    def close(self) -> None:
        """Leave the model as it was before."""


def make_engine(name: str, *, model: Any, objective: UnitLoss) -> Engine:
    """Return the engine of this name.

    Raises:
        ValueError: there is none.
        UserError: it cannot serve this model.
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
    """Return what an objective's loss returned, without the graph behind it."""
    return losses.detach(), {name: values.detach() for name, values in figures.items()}
