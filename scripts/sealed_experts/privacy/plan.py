"""Plan a private stage: its noise, and how many steps its budget allows."""

import dataclasses
from collections.abc import Iterable, Mapping

from sealed_experts.data.schemes import MIXED
from sealed_experts.errors import UserError
from sealed_experts.privacy.ledger.accounting import BudgetCurve, epsilon
from sealed_experts.privacy.ledger.calibration import calibrate_noise_multiplier
from sealed_experts.privacy.ledger.events import GaussianEvent
from sealed_experts.privacy.ledger.private_stage import PrivacyPlan
from sealed_experts.privacy.settings import PrivacySettings


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
    """Decide a stage's noise and its number of steps before it starts.

    `noise_multiplier: auto` becomes the least noise for which `prior_events` and `max_steps` steps together stay within
    `target_epsilon`. A given noise is kept; then the stage ends before the step that would exceed the target.

    Args:
        prior_events: everything that the adapter has released about the same units before this stage.
        queries: noise multipliers of other queries on each step's draw, by name.

    Raises:
        UserError: there are units of several kinds; the expected batch is not smaller than the data; δ is not below
            1/units; the first step alone would exceed the target; `auto` cannot reach the target.
    """
    if not privacy.enabled:
        raise ValueError(f"stage {stage} trains without privacy: there is nothing to plan")
    prior = tuple(prior_events)
    if unit == MIXED:
        raise UserError(
            f"{stage} trains under privacy, but the parts of its data have different units of privacy, so one person"
            " could be several units: give all parts the same `unit`"
        )
    check_data_size(stage=stage, units=units, unit=unit, expected_batch_size=expected_batch_size, delta=privacy.delta)
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


def check_data_size(*, stage: str, units: int, unit: str, expected_batch_size: int, delta: float) -> None:
    """Check that a stage's data hold enough units for its batch and its δ.

    Raises:
        UserError: they do not.
    """
    if expected_batch_size >= units:
        raise UserError(
            f"{stage}: the logical batch is {expected_batch_size}, but the training data hold {units} units of privacy "
            f"({unit}): under privacy the expected batch must be smaller than the data, because the guarantee requires "
            f"that each step sees a random part of them; choose a batch below {units}, or use more data"
        )
    if delta >= 1 / units:
        raise UserError(
            f"{stage}.privacy.delta is {delta:g}, not below 1/{units} = {1 / units:.3g}: at such a δ, a method that "
            f"sometimes publishes a whole unit would count as private; choose a delta well below {1 / units:.3g}"
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
