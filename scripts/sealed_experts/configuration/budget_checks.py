"""Check what the settings alone say about privacy: the least ε of a private stage, and how much data it needs.

The trainer's plan decides later, with the true number of units. It would refuse everything that is refused here, but
only after the base is fetched and the data are prepared.
"""

import math
from collections.abc import Iterator, Mapping, Sequence

from sealed_experts.configuration.document import ExpertSettings, Settings
from sealed_experts.errors import UserError
from sealed_experts.privacy.ledger.first_steps import Steps, least_epsilon
from sealed_experts.settings.layers import Layers
from sealed_experts.settings.messages import Mistake
from sealed_experts.training.objectives import Stage

_GRADIENT_IS_DEAR = "raise target_epsilon or noise_multiplier, lower the batch, or use noise_multiplier: auto"
_QUERIES_ARE_DEAR = (
    "the noised mean reward alone would; raise baseline_noise_multiplier or target_epsilon, or lower the batch"
)


def check_dataset_sizes(settings: Settings, counts: Mapping[str, int], *, exact: bool = True) -> None:
    """Check what depends on the number of privacy units in the datasets' training split.

    Args:
        settings: the run.
        counts: {dataset: units}; datasets that are not listed are not checked.
        exact: whether the counts are the true ones, or upper bounds. An upper bound can show that a batch is too large,
            but not that δ is: δ must be below 1/N, and the true N may be smaller.

    Raises:
        UserError: an expected batch is not smaller than its dataset, δ is not below 1/N, or a stage's first step must
            exceed its target_epsilon; all of them, one a line.
    """
    lines = [
        f"experts.{expert.name}.{stage}: {problem}"
        for expert in settings.experts
        if expert.dataset in counts
        for stage, settings_of_it in expert.training.items()
        for problem in _size_problems(expert, settings_of_it, counts[expert.dataset], exact=exact)
    ] + [
        f"experts.{expert.name}.{stage}: {problem}"
        for expert in settings.experts
        if expert.dataset in counts
        for stage, problem in budget_problems(expert, units=counts[expert.dataset])
    ]
    if lines:
        raise UserError("\n  ".join(["these settings do not fit the size of the data:", *lines]))


def _size_problems(expert: ExpertSettings, stage: Stage, units: int, *, exact: bool) -> Iterator[str]:
    size = f"dataset `{expert.dataset}` has {'' if exact else 'at most '}{units} units to train on"
    if not stage.privacy.enabled:
        return
    if stage.logical_batch >= units:
        yield (
            f"the logical batch is {stage.logical_batch}, but {size}; under privacy the expected batch must be smaller"
            f" than the dataset: lower {stage.batch_setting}, or add data"
        )
    if exact and stage.privacy.delta * units >= 1:
        yield (
            f"privacy.delta is {stage.privacy.delta}, but {size}; it must be below 1/{units}, or publishing one whole"
            " record would count as private"
        )


def budget_problems(expert: ExpertSettings, *, units: int) -> Iterator[tuple[str, str]]:
    """Yield (stage, problem) where a stage has no room for its first step, with at most `units` units to draw from.

    With fewer units each one is drawn more often, so the true ε is larger. Every stage before it counts with one step:
    a stage without room for one step is refused itself. If the noise is not calibrated yet, only the stage's other
    queries count.
    """
    before: Steps = ()
    counted: list[str] = []
    for name in expert.stages:
        stage = expert.stage(name)
        privacy = stage.privacy
        gradient = [] if isinstance(privacy.noise_multiplier, str) else [privacy.noise_multiplier]
        queries = list(stage.query_noise().values())
        if not privacy.enabled or not (gradient or queries) or stage.logical_batch >= units:
            continue
        rate, target = stage.logical_batch / units, privacy.target_epsilon * (1 + 1e-9)
        steps = (*before, (rate, _together([*gradient, *queries])))
        least = least_epsilon(steps, delta=privacy.delta)
        if least > target:
            by_queries = (
                bool(queries) and least_epsilon((*before, (rate, _together(queries))), delta=privacy.delta) > target
            )
            spent = f" (with a step of {' and '.join(counted)} before it)" if before else ""
            yield (
                name,
                f"the first step would bring ε to at least {least:.4g}, above target_epsilon"
                f" {privacy.target_epsilon:g}{spent}: dataset `{expert.dataset}` has at most {units} units to train on;"
                f" {_QUERIES_ARE_DEAR if by_queries else _GRADIENT_IS_DEAR}",
            )
        before = steps
        counted.append(name)


def delta_mistakes(expert: ExpertSettings, layers: Layers) -> Iterator[Mistake]:
    """Yield a δ that promises nothing for any data that this batch can be drawn from.

    δ must be below 1/N, and the expected batch below N.
    """
    for name in expert.stages:
        stage = expert.stage(name)
        least = stage.logical_batch + 1
        if stage.privacy.enabled and stage.privacy.delta * least >= 1:
            yield Mistake(
                layers.locate(name, "privacy", "delta"),
                f"{stage.privacy.delta} is not below 1/{least}: a logical batch of {stage.logical_batch} needs at least"
                f" {least} units, and at such a δ a method that publishes one of them whole now and then would pass for"
                " private; 1.0e-5 is usual",
                involves=(("experts", expert.name, name),),
            )


def _together(noise_multipliers: Sequence[float]) -> float:
    """Return the noise multiplier of queries on one draw: they are one Gaussian query, σ = (Σ σᵢ⁻²)^(-1/2)."""
    return 1.0 / math.hypot(*(1.0 / noise for noise in noise_multipliers))
