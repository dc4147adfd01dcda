"""The adapters that a stage learns from (its start and frozen models), and the privacy that they have already spent."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from sealed_experts.errors import UserError
from sealed_experts.models.adapters import ADAPTER
from sealed_experts.models.attachment import attach_adapter, load_adapter_state
from sealed_experts.models.loading import Base
from sealed_experts.privacy.ledger.events import GaussianEvent, events_from_json
from sealed_experts.privacy.ledger.receipt import check_same_units, joined_receipts
from sealed_experts.training.checkpoints import load_state, tensors_digest
from sealed_experts.training.job import StageJob
from sealed_experts.training.objectives import stage_of
from sealed_experts.training.refusals import check_made_with, check_start


@dataclass(frozen=True)
class Ancestors:
    """The content of the adapter files that a stage of `job` learns from.

    Attributes:
        start: the adapter file of the previous stage, if there is one.
        models: the adapter files of the frozen models, by the setting that names each.
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
            base_digest: digest of the base that this stage uses.
            unit: the unit of privacy of this stage.

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
                needed=f"{self.job.stage}.{name} needs an adapter of {{}}",
                remedy="run that stage again",
                adapter_name=chosen.expert,
                stage=chosen.stage,
                base_digest=base_digest,
                template=self.job.template,
            )
        if self.job.settings.privacy.enabled:
            check_same_units(self.receipt, stage=self.job.stage, unit=unit)
            self._check_delta()

    def frozen(self, base: Base) -> dict[str, torch.nn.Module]:
        """Return the frozen models. Call it before an adapter is attached to the base.

        They share the base's weights, unless they were trained as another class of model.

        Raises:
            UserError: the weights do not fit the base.
        """
        return {name: self._frozen(base, state) for name, state in self.models.items()}

    @functools.cached_property
    def receipt(self) -> dict[str, Any] | None:
        """The joint privacy receipt of all adapters that count; None if none of them counts."""
        counted = [state for name, state in self.models.items() if not self.job.settings.models()[name].public]
        start = [self.start] if self.start is not None else []
        return joined_receipts([state["privacy"] for state in (*start, *counted)])

    @property
    def events(self) -> tuple[GaussianEvent, ...]:
        """The privacy events that these adapters have already spent."""
        return events_from_json(self.receipt["events"]) if self.receipt else ()

    @property
    def public(self) -> list[str]:
        """The receipt's lines about models that are declared public."""
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
        """Return digests of the adapters' weights, and of the frozen models of earlier stages."""
        own = {
            f"{self.job.stage}.{name}": tensors_digest(state["model_state_dict"]) for name, state in self.models.items()
        }
        return {
            "start_digest": tensors_digest(self.start["model_state_dict"]) if self.start else None,
            "models": {**(self.start["subject"]["models"] if self.start else {}), **own},
        }

    def _check_delta(self) -> None:
        """Check that δ is not above the δ of any model that counts.

        The δ of a model is below 1/N for all data that the model has learned from.
        """
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

    def _frozen(self, base: Base, state: Mapping[str, Any]) -> torch.nn.Module:
        stage = stage_of(state)
        body = base.another(model_class=stage.model_class, options=stage.model_options())
        adapter = ADAPTER.parse(state["adapter"])
        model = attach_adapter(body, adapter, seed=self.job.seed, model_class=stage.model_class)
        load_adapter_state(model, state["model_state_dict"])
        model.requires_grad_(False)
        return model.eval()
