"""The description of a private stage. The mechanism and the ledger both read it, so they cannot disagree."""

import dataclasses
import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar

from sealed_experts.privacy.ledger.events import GaussianEvent, combined_noise_multiplier

MODES = ("release", "reproducible")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrivacyPlan:
    """How one stage draws, clips and adds noise, and how many steps its budget allows.

    Attributes:
        stage: the stage's name.
        unit: what one unit of privacy is (`record`, or the field that names it).
        units: N, how many units the training data hold; treated as public.
        expected_batch_size: B; each step draws every unit with probability B/N and divides its sum by B.
        noise_multiplier: standard deviation of the gradient's noise, in units of `max_grad_norm`.
        queries: noise multipliers of further queries on the same draw, by name.
        max_grad_norm: clipping norm of each unit's gradient.
        delta: the δ for which ε is stated.
        target_epsilon: limit of the joint ε, earlier stages included.
        mode: `release` or `reproducible`.
        max_steps: steps that the configuration asks for.
        steps_within_budget: steps it may take, at most `max_steps`.
    """

    neighbouring: ClassVar[str] = "add_or_remove_one"
    sampling: ClassVar[str] = "poisson"

    stage: str
    unit: str
    units: int
    expected_batch_size: int
    noise_multiplier: float
    max_grad_norm: float
    delta: float
    target_epsilon: float
    mode: str
    max_steps: int
    steps_within_budget: int
    queries: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "queries", MappingProxyType(dict(self.queries)))
        positive = {
            "noise_multiplier": self.noise_multiplier,
            "max_grad_norm": self.max_grad_norm,
            "target_epsilon": self.target_epsilon,
            **{f"queries.{name}": noise for name, noise in self.queries.items()},
        }
        for name, value in positive.items():
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} must be a positive number, not {value}")
        if not 0 < self.delta < 1:
            raise ValueError(f"delta must lie inside (0, 1), not {self.delta}")
        if not 0 < self.expected_batch_size < self.units:
            raise ValueError(
                f"expected_batch_size {self.expected_batch_size} must lie between 0 and {self.units} units"
            )
        if not 0 <= self.steps_within_budget <= self.max_steps:
            raise ValueError(f"steps_within_budget {self.steps_within_budget} must lie in 0 … {self.max_steps}")
        if self.mode not in MODES:
            raise ValueError(f"mode must be one of {MODES}, not {self.mode!r}")
        if not self.stage or not self.unit:
            raise ValueError("a plan needs the names of its stage and of its unit")

    @property
    def sample_rate(self) -> float:
        """q, the probability that a step draws a unit."""
        return self.expected_batch_size / self.units

    @property
    def effective_noise_multiplier(self) -> float:
        """Noise multiplier of the gradient and the other queries together, as one Gaussian query on the draw."""
        if not self.queries:
            return self.noise_multiplier
        return combined_noise_multiplier([self.noise_multiplier, *self.queries.values()])

    @property
    def stopped_reason(self) -> str:
        """Why the stage ends after `steps_within_budget` steps: `max_steps` or `privacy_budget`."""
        return "max_steps" if self.steps_within_budget == self.max_steps else "privacy_budget"

    def describe(self) -> dict[str, Any]:
        """Return every field as plain data. Two runs with one key must have equal fields."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {**values, "queries": dict(self.queries)}

    def event(self, steps: int, *, key_id: str | None = None) -> GaussianEvent:
        """Return the ledger's event after `steps` steps of the stage."""
        return GaussianEvent(
            stage=self.stage,
            noise_multiplier=self.effective_noise_multiplier,
            sample_rate=self.sample_rate,
            steps=steps,
            key_id=key_id,
        )
