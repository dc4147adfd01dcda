"""The gradient of a step: the plain mean, or the result of the private mechanism. The loop treats both alike."""

from collections.abc import Sequence
from typing import Protocol

import torch

from sealed_experts.privacy.engines import constants_of, detached, make_engine
from sealed_experts.privacy.ledger.journal import Journal
from sealed_experts.privacy.mechanism import GradientMechanism, Release
from sealed_experts.privacy.plan import PrivacyPlan
from sealed_experts.privacy.streams import Stream
from sealed_experts.training.batches import Batch
from sealed_experts.training.objective import Objective
from sealed_experts.training.processes import Processes


class GradientSource(Protocol):
    """Adds up one logical batch, or this process's share of it, and returns the gradient of the whole batch."""

    def add(self, batch: Batch) -> torch.Tensor:
        """Add one physical batch; return the losses of its units, [units]."""

    def release(self, *, step: int) -> Release:
        """Return the logical batch's gradient and the answers to the objective's queries, and start the next batch."""

    def resume(self, *, step: int) -> None:
        """Prepare to continue a run after `step`."""

    def describe(self) -> dict[str, float]:
        """Return figures about the logical batch that was released last, for the private log."""


class PlainGradients:
    """The mean gradient over the units of the logical batch."""

    def __init__(
        self,
        *,
        model: torch.nn.Module,
        objective: Objective,
        parameters: Sequence[torch.nn.Parameter],
        processes: Processes | None = None,
    ) -> None:
        self._model, self._objective, self._parameters = model, objective, parameters
        self._processes = processes or Processes()
        self._units = 0
        self._answers: dict[str, float] = {}

    def add(self, batch: Batch) -> torch.Tensor:
        """Add the gradient of the batch to `grad` of the parameters."""
        constants = constants_of(self._objective, self._model, batch)
        losses, figures = self._objective.per_example_loss(self._model, batch, constants)
        losses.sum().backward()
        losses, figures = detached(losses, figures)
        self._objective.note(figures)
        self._units += losses.numel()
        for name, values in self._objective.queries(batch).items():
            self._answers[name] = self._answers.get(name, 0.0) + float(values.double().sum())
        return losses

    def release(self, *, step: int) -> Release:
        """Return the means over the units that were added."""
        shares = self._processes.exchange((self._units, self._answers))
        units = max(1, sum(count for count, _ in shares))
        sums = self._processes.sum([self._taken(parameter) for parameter in self._parameters])
        names = dict.fromkeys(name for _, answers in shares for name in answers)
        totals = {name: sum(answers.get(name, 0.0) for _, answers in shares) for name in names}
        self._units, self._answers = 0, {}
        return Release(
            [(total / units).to(torch.float32) for total in sums],
            {name: total / units for name, total in totals.items()},
        )

    @staticmethod
    def _taken(parameter: torch.nn.Parameter) -> torch.Tensor:
        gradient, parameter.grad = parameter.grad, None
        return torch.zeros_like(parameter, dtype=torch.float64) if gradient is None else gradient.to(torch.float64)

    def resume(self, *, step: int) -> None:
        """Nothing to check."""

    def describe(self) -> dict[str, float]:
        """Return no figures: the loop logs everything itself."""
        return {}


class PrivateGradients:
    """The noised mean of clipped per-unit gradients. The journal records each release before it happens."""

    def __init__(
        self,
        *,
        model: torch.nn.Module,
        objective: Objective,
        parameters: Sequence[torch.nn.Parameter],
        plan: PrivacyPlan,
        stream: Stream,
        journal: Journal | None,
        engine: str,
        processes: Processes | None = None,
    ) -> None:
        """`engine` is the engine's name. Of several processes, only the first has a journal; the others pass None."""
        self._objective, self._plan, self._journal = objective, plan, journal
        self._processes = processes or Processes()
        self._engine = make_engine(engine, model=model, objective=objective)
        self._mechanism = GradientMechanism(plan=plan, parameters=parameters, stream=stream)
        self._norms: list[torch.Tensor] = []
        self._figures: dict[str, float] = {}

    def add(self, batch: Batch) -> torch.Tensor:
        """Clip the units of the batch that count one by one, and add them to the sum."""
        units = self._engine.per_unit(batch).of(batch.counted)
        self._objective.note(units.figures)
        self._norms.append(self._mechanism.add(units.gradients))
        answers = self._objective.queries(batch)
        if batch.counted is not None:
            answers = {name: values[list(batch.counted)] for name, values in answers.items()}
        if any(values.shape != units.losses.shape for values in answers.values()):
            raise ValueError("a query must give one value per unit: the noise covers no more")
        self._mechanism.ask(answers)
        return units.losses

    def release(self, *, step: int) -> Release:
        """Return the noised means. The journal records the step before any process can compute a result.

        Every result needs the first process's part of the sum, and that process writes the journal before it sends it.
        """
        if self._journal is not None:
            self._journal.record(step)
        own = torch.cat(self._norms).tolist() if self._norms else []
        norms = torch.tensor([norm for share in self._processes.exchange(own) for norm in share], dtype=torch.float64)
        self._norms = []
        self._mechanism.pool(self._processes.sum)
        clipped = norms > self._plan.max_grad_norm
        self._figures = {
            "norm_median": float(norms.median()) if norms.numel() else 0.0,
            "clipped_share": float(clipped.double().mean()) if norms.numel() else 0.0,
            "non_finite": int((~torch.isfinite(norms)).sum()),
        }
        return self._mechanism.release(step=step)

    def resume(self, *, step: int) -> None:
        """Check that the journal records every step of the resumed state.

        Raises:
            UserError: the journal holds fewer steps, so the stated ε would be too small.
        """
        if self._journal is not None:
            self._journal.check_reaches(step)

    def describe(self) -> dict[str, float]:
        """Return figures on norms before clipping: the median, the clipped share, and how many were not finite."""
        return self._figures
