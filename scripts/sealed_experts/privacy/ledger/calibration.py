"""`noise_multiplier: auto`: the least noise that keeps a stage within its target, up to a small tolerance."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

from sealed_experts.errors import UserError
from sealed_experts.privacy.ledger.accounting import epsilon, lower_bound, upper_bound
from sealed_experts.privacy.ledger.events import GaussianEvent, combined_noise_multiplier

# Noise multipliers are whole multiples of 1/10000.
_UNIT = 10_000
SMALLEST_NOISE, LARGEST_NOISE = 0.1, 10_000.0
# An ε this little below the target is as good as the target.
_SLACK = 1e-4


def calibrate_noise_multiplier(
    *,
    stage: str,
    sample_rate: float,
    steps: int,
    delta: float,
    target_epsilon: float,
    prior_events: Sequence[GaussianEvent] = (),
    queries: Mapping[str, float] | None = None,
) -> float:
    """Return a noise multiplier, rounded up to four decimals, whose joint ε is at most `target_epsilon`.

    The joint ε counts `prior_events` and `steps` steps at `sample_rate`. Each step's draw also answers `queries`
    ({name: noise multiplier}). The joint ε is below the target by at most 0.01 %, or by the effect of one unit in the
    last decimal of the noise. The result is deterministic, and at least 0.1: less noise gives no useful guarantee.

    Raises:
        UserError: the earlier events or the queries alone exceed the target, or no noise is large enough.
    """
    others = list((queries or {}).values())

    def events(ticks: int) -> list[GaussianEvent]:
        noise = combined_noise_multiplier([ticks / _UNIT, *others])
        return [
            *prior_events,
            GaussianEvent(stage=stage, noise_multiplier=noise, sample_rate=sample_rate, steps=steps),
        ]

    smallest, largest = round(SMALLEST_NOISE * _UNIT), round(LARGEST_NOISE * _UNIT)
    low = _first(lambda ticks: lower_bound(events(ticks), delta=delta) <= target_epsilon, smallest, largest)
    high = _first(lambda ticks: upper_bound(events(ticks), delta=delta) <= target_epsilon, low, largest)
    if high == largest and epsilon(events(high), delta=delta) > target_epsilon:
        alone = (
            [dataclasses.replace(events(high)[-1], noise_multiplier=combined_noise_multiplier(others))]
            if others
            else []
        )
        raise UserError(_impossible(stage, target_epsilon, prior_events, alone, delta))
    return _search(lambda ticks: epsilon(events(ticks), delta=delta), low - 1, high, target_epsilon) / _UNIT


def _first(holds: Callable[[int], bool], low: int, high: int) -> int:
    """Return the least integer in [low, high) for which a monotone condition holds, or `high` if there is none."""
    while low < high:
        middle = math.isqrt(low * high) if high > 2 * low else (low + high) // 2
        if holds(middle):
            high = middle
        else:
            low = middle + 1
    return low


def _search(value: Callable[[int], float], low: int, high: int, target: float) -> int:
    """Return an integer whose value is at most `target` and within _SLACK of it, or else the least at most `target`.

    `value` falls. At `high` it is at most the target. At `low` it is assumed to be above it; it is never computed
    there, because accounting for little noise is slow. ε is nearly a power of the noise, so the secant method on
    logarithms needs few evaluations. Every fourth step bisects, so the search always ends.
    """
    goal = math.log(target) + math.log1p(-_SLACK / 2)
    where, height, slope = math.log(high), _log(value(high)), -2.0
    best, turn = height, 0
    while high - low > 1 and best < goal - _SLACK / 2:
        turn += 1
        step = (goal - height) / slope
        aim = (math.log(max(low, 1)) + math.log(high)) / 2 if turn % 4 == 0 else where + step
        middle = min(max(round(math.exp(aim)), low + 1), high - 1)
        at_middle = _log(value(middle))
        if math.log(middle) != where:
            slope = min((at_middle - height) / (math.log(middle) - where), -0.1)
        where, height = math.log(middle), at_middle
        if at_middle <= math.log(target):
            high, best = middle, at_middle
        else:
            low = middle
    return high


def _log(value: float) -> float:
    return math.log(max(value, 1e-12))  # an ε of 0 has no logarithm


def _impossible(
    stage: str, target: float, prior_events: Sequence[GaussianEvent], queries: Sequence[GaussianEvent], delta: float
) -> str:
    """Say why no noise is enough: the earlier stages, the other queries or the steps exceed the target."""
    spent = epsilon(prior_events, delta=delta)
    before = f"the stages before it have spent {spent:.4g}" if prior_events else ""
    reached = epsilon([*prior_events, *queries], delta=delta)
    if spent >= target:
        reason = f"{before}; raise target_epsilon, or let them spend less"
    elif queries and reached > target:
        reason = (
            f"its other queries alone would bring ε to {reached:.4g}{f' ({before})' if before else ''}; give the "
            "other queries more noise (baseline_noise_multiplier), raise target_epsilon, or take fewer steps or a "
            "smaller batch"
        )
    else:
        reason = (
            f"{f'{before}, and ' if before else ''}no noise up to {LARGEST_NOISE:g} leaves room for its steps; raise "
            "target_epsilon, or take fewer steps or a smaller batch"
        )
    return f"noise_multiplier: auto cannot bring stage {stage} within target_epsilon {target:g}: {reason}"
