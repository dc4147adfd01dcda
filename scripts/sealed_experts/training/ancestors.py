"""The adapters that a stage learns from: the one that it starts from, and frozen ones; and what they cost already."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from sealed_experts.errors import UserError
from sealed_experts.models.adapters import ADAPTER
from sealed_experts.models.loading import Base
from sealed_experts.privacy.ledger.events import GaussianEvent, events_from_json
from sealed_experts.privacy.ledger.receipt import check_same_units, joined_receipts
from sealed_experts.training.checkpoints import load_state, tensors_digest
from sealed_experts.training.frozen_models import frozen_model
from sealed_experts.training.job import StageJob
from sealed_experts.training.refusals import check_made_with, check_start


@dataclass(frozen=True)
class Ancestors:
    """The content of the adapter files that a stage of `job` learns from.

    Attributes:
        start: that of the stage before, if there is one.
        models: those of the frozen models, by the setting that names each.
    """

    job: StageJob
    start: Mapping[str, Any] | None
    models: Mapping[str, Mapping[str, Any]]

    @classmethod
    def read(cls, job: StageJob) -> "Ancestors":
        """Read the adapter files.

        Raises:
            UserError: one cannot be read.
        """
        start = load_state(job.start) if job.start else None
        return cls(job, start, {name: load_state(path) for name, path in job.models.items()})

    def check(self, *, base_digest: str, unit: str) -> None:
        """Check that all were made with this base, and that their privacy can be composed with this stage's.

        Args:
            base_digest: of the base at hand.
            unit: what this stage counts.

        Raises:
            UserError: a file was made with something else, counts other units, or has a lower δ.
        """
        if self.start is not None:
            check_start(self.job, self.start, base_digest=base_digest)
        for name, state in self.models.items():
            chosen = self.job.settings.models()[name]
            check_made_with(
                self.job.models[name],
                state,
                needed=f"{self.job.stage}.{name} is to be an adapter of {{}}",
                remedy="run again the stage that makes it",
                adapter_name=chosen.expert,
                stage=chosen.stage,
                base_digest=base_digest,
            )
        if self.job.settings.privacy.enabled:
            check_same_units(self.receipt, stage=self.job.stage, unit=unit)
            self._check_delta()

    def frozen(self, base: Base) -> dict[str, torch.nn.Module]:
        """Return the frozen models. Call it before an adapter is attached to the base."""
        return {name: frozen_model(base, state, seed=self.job.seed) for name, state in self.models.items()}

    @functools.cached_property
    def receipt(self) -> dict[str, Any] | None:
        """The privacy of all of them together; None where nothing counts."""
        counted = [state for name, state in self.models.items() if not self.job.settings.models()[name].public]
        start = [self.start] if self.start is not None else []
        return joined_receipts([state["privacy"] for state in (*start, *counted)])

    @property
    def events(self) -> tuple[GaussianEvent, ...]:
        """What they have already spent."""
        return events_from_json(self.receipt["events"]) if self.receipt else ()

    @property
    def public(self) -> list[str]:
        """What the receipt says of models that are declared public."""
        return [
            f"{self.job.stage}.{name}: all that the adapter of {model.expert}.{model.stage} learned is declared public"
            for name, model in self.job.settings.models().items()
            if model.public
        ]

    @property
    def kinds(self) -> list[type]:
        """The adapter kinds of the frozen models."""
        return [type(ADAPTER.parse(state["adapter"])) for state in self.models.values()]

    def digests(self) -> dict[str, Any]:
        """Return digests of their weights, with those of the frozen models of the stages before."""
        own = {
            f"{self.job.stage}.{name}": tensors_digest(state["model_state_dict"]) for name, state in self.models.items()
        }
        return {
            "start_digest": tensors_digest(self.start["model_state_dict"]) if self.start else None,
            "models": {**(self.start["subject"]["models"] if self.start else {}), **own},
        }

    def _check_delta(self) -> None:
        """Check that δ is no higher than that of a model that counts: it is below 1/N of all data behind the model."""
        counted = {name: model for name, model in self.job.settings.models().items() if not model.public}
        known = {f"{model.expert}.{model.stage}": self.models[name] for name, model in counted.items()}
        if self.start is not None and self.start["subject"]["models"]:
            known[self.start["subject"]["stage"]] = self.start
        own = self.job.settings.privacy.delta
        for name, state in known.items():
            delta = state["privacy"]["delta"]
            if delta is not None and own > delta:
                raise UserError(
                    f"{self.job.stage}.privacy.delta is {own:g}, above the {delta:g} of {name}, from which it learns:"
                    " lower it to that"
                )
