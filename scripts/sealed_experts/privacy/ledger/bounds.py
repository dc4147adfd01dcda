"""Two cheap bounds on ε that need no grid: an upper one by Rényi divergences, a lower one by a hypothesis test."""

import functools
import math

import numpy as np
from dp_accounting import dp_event
from dp_accounting.rdp import RdpAccountant
from scipy import stats

# One group: (sample rate, noise multiplier, steps).
Groups = tuple[tuple[float, float, int], ...]

# Whole orders only: their closed form always converges; the series for fractional orders does not at small noise.
_ORDERS = (*range(2, 33), 40, 48, 64, 96, 128, 192, 256, 384, 512, 1024)
_THRESHOLDS = np.linspace(-4.0, 38.0, 421)
_MAX_DRAWN = 4000


@functools.lru_cache(maxsize=256)
def upper_bound(groups: Groups, delta: float) -> float:
    """Return a valid upper bound on ε by Rényi differential privacy, for one unit added or removed.

    Mironov, Talwar and Zhang, "Rényi Differential Privacy of the Sampled Gaussian Mechanism" (2019).
    """
    if not groups:
        return 0.0
    accountant = RdpAccountant(orders=_ORDERS)
    for rate, noise, steps in groups:
        accountant.compose(dp_event.PoissonSampledDpEvent(rate, dp_event.GaussianDpEvent(noise)), steps)
    return float(accountant.get_epsilon(delta))


@functools.lru_cache(maxsize=256)
def lower_bound(groups: Groups, delta: float) -> float:
    """Return a lower bound on the true ε.

    An attacker can add up the n releases of one group: without the unit the sum is N(0, nσ²), with it N(K, nσ²), where
    K ~ Binomial(n, q). An (ε, δ) guarantee must hold for the test "the sum exceeds t", for every t:
    P(S > t) <= e^ε Q(S > t) + δ. A composition cannot be more private than one of its groups.
    """
    return max((_group_lower_bound(group, delta) for group in groups), default=0.0)


def _group_lower_bound(group: tuple[float, float, int], delta: float) -> float:
    rate, noise, steps = group
    spread = noise * math.sqrt(steps)
    deviation = math.sqrt(steps * rate * (1 - rate))
    first = max(0, math.floor(steps * rate - 12 * deviation - 30))
    last = min(steps, math.ceil(steps * rate + 12 * deviation + 30), first + _MAX_DRAWN)
    drawn = np.arange(first, last + 1)  # leaving out the rest makes P smaller, so the bound stays valid
    weights = stats.binom.pmf(drawn, steps, rate)
    thresholds = _THRESHOLDS + steps * rate / spread
    exceeds = stats.norm.sf(thresholds[:, None] - drawn[None, :] / spread) @ weights
    useful = exceeds > delta
    if not useful.any():
        return 0.0
    return max(0.0, float(np.max(np.log(exceeds[useful] - delta) - stats.norm.logsf(thresholds[useful]))))
