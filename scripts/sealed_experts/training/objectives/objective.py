"""What the loop asks of an objective."""

from collections.abc import Sequence
from typing import Any

import torch

from sealed_experts.privacy.streams import Stream
from sealed_experts.training.batches import Batch


class Objective:
    """A training objective: a loss per example, and whatever it needs around it.

    Subclasses override the two losses; the rest has defaults that do nothing. An objective calls the wrapped model,
    never its inner decoder.
    """

    name: str

    def per_example_loss(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """Return each row's loss, float32 [rows], depending on that row alone."""
        raise NotImplementedError

    def validation_loss(self, model: torch.nn.Module, batches: Sequence[Batch]) -> float:
        """Return the loss over held-out batches, without gradient; NaN when there are none."""
        raise NotImplementedError

    def prepare(self, model: torch.nn.Module, batches: Sequence[Batch], *, step: int, stream: Stream) -> list[Batch]:
        """Do what comes before the gradient of step `step` (generate, score) and return the batches to train on."""
        return list(batches)

    def regulariser(self, parameters: Sequence[torch.Tensor]) -> list[torch.Tensor] | None:
        """Return a gradient that depends on no record, added after the noise; None for none."""
        return None

    def state_dict(self) -> dict[str, Any]:
        """Return the objective's own state, to be kept in checkpoints."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` returned."""
        if state:
            raise ValueError(f"the objective {self.name} keeps no state, but the checkpoint holds some")
