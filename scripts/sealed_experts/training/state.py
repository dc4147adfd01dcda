"""The state that training changes, and how checkpoints hold it."""

from dataclasses import dataclass, field
from typing import Any

import torch

from sealed_experts.models.attachment import adapter_state, load_adapter_state, trainable_parameters
from sealed_experts.training.checkpoints import state_digest
from sealed_experts.training.objective import Objective


@dataclass(kw_only=True)
class TrainingState:
    """Counters and history of a run.

    `best` holds the adapter's weights at the best validation, if the settings keep them.
    """

    step: int = 0
    examples_seen: int = 0
    tokens_seen: int = 0
    seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, torch.Tensor] | None = None


class Trained:
    """The adapter's weights, with the state of the optimizer and of the objective."""

    def __init__(self, *, model: Any, objective: Objective, learning_rate: float, weight_decay: float) -> None:
        self.model, self.objective = model, objective
        self.parameters = trainable_parameters(model)
        self.optimizer = torch.optim.AdamW(self.parameters, lr=learning_rate, weight_decay=weight_decay)

    def snapshot(self, state: TrainingState) -> dict[str, Any]:
        """Return everything that a resumed run needs."""
        return {
            "model_state_dict": adapter_state(self.model),
            "optimizer": self.optimizer.state_dict(),
            "objective": self.objective.state_dict(),
            **vars(state),
            "history": list(state.history),
        }

    def restore(self, saved: dict[str, Any]) -> TrainingState:
        """Restore what `snapshot` returned; return its training state."""
        load_adapter_state(self.model, saved["model_state_dict"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.objective.load_state_dict(saved["objective"])
        return TrainingState(
            **{name: saved[name] for name in vars(TrainingState())} | {"history": list(saved["history"])}
        )

    def digest(self) -> str:
        """Return a digest of the weights, the optimizer's state and the objective's state."""
        return state_digest(
            {
                "weights": {str(index): weight.detach() for index, weight in enumerate(self.parameters)},
                "optimizer": self.optimizer.state_dict(),
                "objective": self.objective.state_dict(),
            }
        )
