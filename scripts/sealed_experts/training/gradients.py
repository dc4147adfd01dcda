"""Where a step's gradient comes from: the plain mean, or the private mechanism. The loop does not know which."""

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
    """Adds up one logical batch, or this process's share of it, then gives the whole batch's gradient."""

    def add(self, batch: Batch) -> torch.Tensor:
        """Take one physical batch in; return its units' losses, [units]."""

    def release(self, *, step: int) -> Release:
        """Return the logical batch's gradient and its objective's queries, and start the next one."""

    def resume(self, *, step: int) -> None:
        """Be told that the run goes on after `step`."""

    def describe(self) -> dict[str, float]:
        """Return figures about the logical batch just released, for the private log."""


class PlainGradients:
    """The mean gradient of the logical batch's units."""

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
        """Add the batch's gradient to the parameters' own."""
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
        """Nothing beyond what the loop logs."""
        return {}


class PrivateGradients:
    """The noised mean of clipped per-unit gradients, each release written to the journal first."""

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
        """Of several processes, the first holds the journal; the others have None. `engine` is a name."""
        self._objective, self._plan, self._journal = objective, plan, journal
        self._processes = processes or Processes()
        self._engine = make_engine(engine, model=model, objective=objective)
        self._mechanism = GradientMechanism(plan=plan, parameters=parameters, stream=stream)
        self._norms: list[torch.Tensor] = []
        self._figures: dict[str, float] = {}

    def add(self, batch: Batch) -> torch.Tensor:
        """Clip the batch's units one by one and add them to the sum."""
        units = self._engine.per_unit(batch)
        self._objective.note(units.figures)
        self._norms.append(self._mechanism.add(units.gradients))
        answers = self._objective.queries(batch)
        if any(values.shape != units.losses.shape for values in answers.values()):
            raise ValueError("a query must give one value a unit: the noise is for no more")
        self._mechanism.ask(answers)
        return units.losses

    def release(self, *, step: int) -> Release:
        """Return the noised means. The journal holds the step before anything can come of it.

        Other processes get the first one's part of the sum only after that, and need it for any result.
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
        """Check that every step the resumed state has seen is on record.

        Raises:
            UserError: the journal holds fewer; without them the stated ε would be too small.
        """
        if self._journal is not None:
            self._journal.check_reaches(step)

    def describe(self) -> dict[str, float]:
        """Return norms before clipping: the median, the share that was clipped, and how many were not finite."""
        return self._figures
