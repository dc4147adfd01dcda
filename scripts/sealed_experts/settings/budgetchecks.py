"""What a private stage must cost at least, as far as the settings tell it: no torch, and no accountant.

The trainer's plan decides with the true number of units. What is refused here, it would refuse as well, after the base
is fetched and the data are prepared.
"""

import functools
import math
from collections.abc import Iterator, Sequence

from sealed_experts.settings.layers import Layers
from sealed_experts.settings.messages import Mistake
from sealed_experts.settings.types import ExpertSettings, ReinforceSettings

# One step of one stage: (sample rate, noise multiplier).
Steps = tuple[tuple[float, float], ...]

_LEAST_NOISE, _MOST_NOISE = 1e-3, 1e100
_GRADIENT_IS_DEAR = "raise target_epsilon or noise_multiplier, lower the batch, or use noise_multiplier: auto"
_QUERIES_ARE_DEAR = (
    "the noised mean reward alone would; raise baseline_noise_multiplier or target_epsilon, or lower the batch"
)
_THRESHOLDS = [number / 8 for number in range(-4 * 8, 38 * 8)]
_FINER = [number / 160 for number in range(-20, 21)]


@functools.lru_cache(maxsize=4096)
def least_epsilon(steps: Steps, *, delta: float) -> float:
    """Return a number that the joint ε of single steps cannot be below.

    Add up what the steps release, each weighted by 1/σ². Without a unit the sum is N(0, v), v = Σ 1/σ²; with it, it is
    shifted by 1/σ² for each step that drew the unit, which happens with probability q. Any (ε, δ) guarantee must hold
    for the test "the sum exceeds t", for every t: P(S > t) <= e^ε Q(S > t) + δ. For one step this is the
    likelihood-ratio test, so that the bound is the exact ε of a unit removed.
    """
    # Noise beyond any use costs all or nothing; its squares would leave the range of a float.
    steps = tuple((rate, max(noise, _LEAST_NOISE)) for rate, noise in steps if noise < _MOST_NOISE)
    if not steps:
        return 0.0
    shifts = {0.0: 1.0}
    for rate, noise in steps:
        drawn: dict[float, float] = {}
        for shift, chance in shifts.items():
            drawn[shift] = drawn.get(shift, 0.0) + chance * (1 - rate)
            drawn[shift + noise**-2] = drawn.get(shift + noise**-2, 0.0) + chance * rate
        shifts = drawn
    spread = math.sqrt(sum(noise**-2 for _, noise in steps))
    moved = [(shift / spread, chance) for shift, chance in shifts.items()]

    def tested(threshold: float) -> float:
        without = _exceeds(threshold)
        within = sum(chance * _exceeds(threshold - shift) for shift, chance in moved)
        return math.log(within - delta) - math.log(without) if within > delta and without > 0 else 0.0

    best = max(_THRESHOLDS, key=tested)
    return max(tested(best + step) for step in _FINER)


def budget_problems(expert: ExpertSettings, *, units: int) -> Iterator[tuple[str, str]]:
    """Yield (stage, problem) where a stage has no room for its first step, with at most `units` units to draw from.

    Fewer units are drawn more often, so the true ε is larger. Of each stage before, one step is counted: a stage
    without room for one is refused itself. Of noise that is yet to be calibrated nothing is known but that the
    stage's further queries cost what they cost.
    """
    before: Steps = ()
    counted: list[str] = []
    for name in expert.stages:
        stage = expert.stage(name)
        privacy = stage.privacy
        gradient = [] if isinstance(privacy.noise_multiplier, str) else [privacy.noise_multiplier]
        queries = [stage.baseline_noise_multiplier] if isinstance(stage, ReinforceSettings) else []
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
    """Yield a δ that is no promise for any data that the batch could be drawn from.

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


def _exceeds(threshold: float) -> float:
    """Return the probability that a standard normal variable exceeds a threshold."""
    return 0.5 * math.erfc(threshold / math.sqrt(2))
