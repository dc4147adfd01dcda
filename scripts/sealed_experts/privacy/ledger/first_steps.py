"""A lower bound on the ε of the first steps of private stages, without an accountant."""

import functools
import math

# One step of one stage: (sample rate, noise multiplier).
Steps = tuple[tuple[float, float], ...]

_LEAST_NOISE, _MOST_NOISE = 1e-3, 1e100
_THRESHOLDS = [number / 8 for number in range(-4 * 8, 38 * 8)]
_FINER = [number / 160 for number in range(-20, 21)]


@functools.lru_cache(maxsize=4096)
def least_epsilon(steps: Steps, *, delta: float) -> float:
    """Return a lower bound on the joint ε of single steps.

    Add up what the steps release, each weighted by 1/σ². Without a unit the sum is N(0, v), v = Σ 1/σ². With the unit,
    each step draws it with probability q, and then shifts the sum by 1/σ². Any (ε, δ) guarantee must hold for the test
    "the sum exceeds t", for every t: P(S > t) <= e^ε Q(S > t) + δ. For one step this is the likelihood-ratio test, so
    the bound is the exact ε for removing a unit.
    """
    # Extreme noise makes ε infinite or zero anyway, and its square would overflow a float.
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


def _exceeds(threshold: float) -> float:
    """Return the probability that a standard normal variable exceeds a threshold."""
    return 0.5 * math.erfc(threshold / math.sqrt(2))
