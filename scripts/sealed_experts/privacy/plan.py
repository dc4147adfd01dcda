"""The one description of a private stage that both the mechanism and the ledger read, so they cannot disagree."""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, ClassVar

from sealed_experts.data.units import MIXED
from sealed_experts.errors import UserError
from sealed_experts.privacy.ledger.accounting import BudgetCurve, epsilon
from sealed_experts.privacy.ledger.calibration import calibrate_noise_multiplier
from sealed_experts.privacy.ledger.events import GaussianEvent, combined_noise_multiplier
from sealed_experts.privacy.settings import PrivacySettings

MODES = ("release", "reproducible")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrivacyPlan:
    """How one stage draws, clips and noises, and how far its budget reaches.

    Attributes:
        stage: the stage's name.
        unit: what one unit of privacy is (`record`, or the field that names it).
        units: N, how many units the training data hold; treated as public.
        expected_batch_size: B; each step draws every unit with probability B/N and divides its sum by B.
        noise_multiplier: standard deviation of the gradient's noise, in units of `max_grad_norm`.
        queries: noise multipliers of what else a step asks of the same draw, by name.
        max_grad_norm: clipping norm of each unit's gradient.
        delta: the δ at which ε is stated.
        target_epsilon: cap on the joint ε, earlier stages included.
        mode: `release` or `reproducible`.
        max_steps: steps the stage was asked for.
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
        """q, the probability with which a step draws each unit."""
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
        """Return every field as plain data: two runs with one key must agree in all of them."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {**values, "queries": dict(self.queries)}

    def event(self, steps: int, *, key_id: str | None = None) -> GaussianEvent:
        """Return what the ledger holds once the stage has taken `steps` steps."""
        return GaussianEvent(
            stage=self.stage,
            noise_multiplier=self.effective_noise_multiplier,
            sample_rate=self.sample_rate,
            steps=steps,
            key_id=key_id,
        )


def plan_stage(
    privacy: PrivacySettings,
    *,
    stage: str,
    units: int,
    unit: str,
    expected_batch_size: int,
    max_steps: int,
    prior_events: Iterable[GaussianEvent] = (),
    queries: Mapping[str, float] | None = None,
) -> PrivacyPlan:
    """Settle a stage's noise and its number of steps before it starts.

    `noise_multiplier: auto` becomes the least noise with which `max_steps` steps end within `target_epsilon`, jointly
    with `prior_events`. A given one stands, and the stage ends where its next step would exceed the target.

    Args:
        prior_events: everything the adapter that the stage starts from has already released about the same units.
        queries: noise multipliers of further queries on each step's draw, by name.

    Raises:
        UserError: units of several kinds; the expected batch is not smaller than the data; δ is not below 1/units;
            the first step would already exceed the target; `auto` cannot reach it.
    """
    if not privacy.enabled:
        raise ValueError(f"stage {stage} trains without privacy: there is nothing to plan")
    prior = tuple(prior_events)
    if unit == MIXED:
        raise UserError(
            f"{stage} is to train under privacy on data whose parts have different units of privacy, so that one"
            " person may stand behind several: give all parts the same `unit`"
        )
    _check_data(stage=stage, units=units, unit=unit, expected_batch_size=expected_batch_size, delta=privacy.delta)
    noise = privacy.noise_multiplier
    if isinstance(noise, str):
        noise = calibrate_noise_multiplier(
            stage=stage,
            sample_rate=expected_batch_size / units,
            steps=max_steps,
            delta=privacy.delta,
            target_epsilon=privacy.target_epsilon,
            prior_events=prior,
            queries=queries,
        )
    plan = PrivacyPlan(
        stage=stage,
        unit=unit,
        units=units,
        expected_batch_size=expected_batch_size,
        noise_multiplier=float(noise),
        max_grad_norm=privacy.max_grad_norm,
        delta=privacy.delta,
        target_epsilon=privacy.target_epsilon,
        mode=privacy.mode,
        max_steps=max_steps,
        steps_within_budget=max_steps,
        queries=queries or {},
    )
    steps = BudgetCurve(prior, plan).steps_within()
    if steps == 0:
        raise UserError(_no_room(plan, prior))
    return dataclasses.replace(plan, steps_within_budget=steps)


def _check_data(*, stage: str, units: int, unit: str, expected_batch_size: int, delta: float) -> None:
    if expected_batch_size >= units:
        raise UserError(
            f"{stage}: the logical batch is {expected_batch_size}, but the training data hold {units} units of privacy "
            f"({unit}): under privacy the expected batch must be smaller than the data, because the guarantee rests on "
            f"each step seeing a random part of them; choose a batch below {units}, or more data"
        )
    if delta >= 1 / units:
        raise UserError(
            f"{stage}.privacy.delta is {delta:g}, not below 1/{units} = {1 / units:.3g}: at such a δ a method that "
            f"publishes a unit outright now and then would pass for private; choose a delta well below {1 / units:.3g}"
        )


def _no_room(plan: PrivacyPlan, prior: tuple[GaussianEvent, ...]) -> str:
    spent = epsilon(prior, delta=plan.delta)
    first = epsilon([*prior, plan.event(1)], delta=plan.delta)
    before = f" (the stages before it have spent {spent:.4g})" if prior else ""
    return (
        f"{plan.stage}.privacy: the first step would bring ε to {first:.4g}, above target_epsilon "
        f"{plan.target_epsilon:g}{before}; raise target_epsilon or noise_multiplier, take a smaller batch, or use "
        "noise_multiplier: auto"
    )
