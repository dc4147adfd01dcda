"""ε from privacy loss distributions (PLD), through dp_accounting's pessimistic connect-the-dots estimates.

Doroshenko et al., "Connect the Dots: Tighter Discrete Approximations of Privacy Loss Distributions" (2022).
Every result is an upper bound on the true ε: losses are rounded pessimistically, and truncated tails count as infinite
loss.
"""

import functools
import math
from collections.abc import Iterable

from dp_accounting.pld import privacy_loss_distribution
from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution

from sealed_experts.privacy.ledger.bounds import Groups

# Spacings are powers of ten, so each grid contains the coarser ones, and a coarser grid never gives a smaller ε.
_FINEST, _COARSEST = -5, 1
_CELLS_PER_DEVIATION = 10
_MAX_CELLS = 300_000


def pld_epsilon(groups: Groups, delta: float) -> float:
    """Return the PLD's upper bound on ε; infinite if its truncated mass alone exceeds `delta`.

    Raises:
        ValueError: dp_accounting's construction fails numerically.
    """
    interval = grid_interval((rate, noise) for rate, noise, _ in groups)
    parts = [_self_composed(rate, noise, steps, interval) for rate, noise, steps in groups]
    return float(functools.reduce(PrivacyLossDistribution.compose, parts).get_epsilon_for_delta(delta))


def grid_interval(pairs: Iterable[tuple[float, float]]) -> float:
    """Return the spacing of the privacy-loss grid for steps with these (sample rate, noise multiplier).

    Connecting the dots adds at most (spacing²)/4 to the variance of one step's loss. A spacing of a tenth of the loss's
    standard deviation, q·sqrt(exp(1/σ²) - 1), makes ε about 0.1 % larger. The grid is coarser if the range of the loss
    is too wide for this spacing. The number of steps has no influence: ε must grow with the steps, so all numbers of
    steps must use the same grid.
    """
    listed = list(pairs)
    decade = math.floor(max(_log10_deviation(*pair) for pair in listed) - math.log10(_CELLS_PER_DEVIATION))
    fits = math.ceil(math.log10(max(_range(*pair) for pair in listed) / _MAX_CELLS))
    return 10.0 ** min(max(_FINEST, min(decade, -3), fits), _COARSEST)


@functools.lru_cache(maxsize=6)  # each takes up to a few megabytes
def _one_step(rate: float, noise: float, interval: float) -> PrivacyLossDistribution:
    return privacy_loss_distribution.from_gaussian_mechanism(
        standard_deviation=noise, sampling_prob=rate, value_discretization_interval=interval
    )


@functools.lru_cache(maxsize=6)  # each takes up to a few megabytes
def _self_composed(rate: float, noise: float, steps: int, interval: float) -> PrivacyLossDistribution:
    if rate == 1.0:  # n releases of N(., σ²) are one of N(., σ²/n)
        return _one_step(rate, noise / math.sqrt(steps), interval)
    return _one_step(rate, noise, interval).self_compose(steps)


def _log10_deviation(rate: float, noise: float) -> float:
    exponent = noise**-2
    log_variance = exponent if exponent > 50 else math.log(math.expm1(exponent))
    return (math.log(rate) + log_variance / 2) / math.log(10)


def _range(rate: float, noise: float) -> float:
    """Return roughly the largest loss of one step: ten standard deviations of noise on top of the unit's shift."""
    exponent = 10 / noise + 0.5 / noise**2
    gain = math.log(rate) + exponent
    return 2 * (gain if gain > 30 else math.log1p(math.exp(gain)))
