"""Lower and upper bounds on the ε of a receipt's events, by an accountant that shares no code with the ledger's.

The ledger uses dp_accounting. This accountant composes the privacy losses numerically, after Gopi, Lee and Wutschitz,
"Numerical Composition of Differential Privacy" (2021). Each step's loss is rounded to a grid of width h, and shifted so
that its mean stays the same. The T rounding errors are independent, have mean 0 and lie in an interval of length h, so
by Hoeffding's inequality their sum exceeds h·sqrt(T/2·ln(2/η)) with probability at most η. Losses outside the grid are
bounded by Rényi moments (Mironov, Talwar and Zhang, 2019). Both errors are added to the upper bound and subtracted from
the lower one, so the true ε is between the two.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import fft, special

Groups = Mapping[tuple[float, float], int]  # {(sample rate, noise multiplier): steps}

_ORDERS = np.array([*range(2, 65), *(2**power for power in range(7, 13))])
_MOST_CELLS = 1 << 22  # for all kinds of steps together: about 200 MB and some seconds
_PRECISION = 2e-4  # wanted relative precision of ε
_SLACK = 1e-3  # part of δ set aside for improbable events
_LARGEST_LOSS = 600.0  # exp() of a larger one nears the limit of doubles


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """The true ε is at least `low` and at most `high`."""

    low: float
    high: float


def epsilon_bounds(groups: Groups, *, delta: float, near: float) -> Bounds | None:
    """Return bounds on the ε of these Poisson-subsampled Gaussian steps, one unit added or removed.

    Args:
        near: roughly the expected ε. It sets the width of the grid, not the result.

    Returns:
        The bounds; None if double precision is not enough (δ near 1e-10 or, after a million steps, 1e-7; losses in the
        hundreds).
    """
    present = {pair: steps for pair, steps in groups.items() if steps}
    if not present:
        return Bounds(low=0.0, high=0.0)
    steps = sum(present.values())
    improbable = _SLACK * delta / 4
    reach = _reach(present, improbable / (steps + 2))
    rounding = transform_error(steps)
    if rounding > _SLACK * delta or not reach < _LARGEST_LOSS:
        return None
    spread = math.sqrt(steps / 2 * math.log(2 / improbable))  # of the sum of rounding errors, in cells
    wanted = 2 * reach * spread / (_PRECISION * max(near, 1e-6))
    cells = fft.next_fast_len(max(1024, min(_MOST_CELLS // len(present), math.ceil(wanted))), real=True)
    width = 2 * reach / cells
    error, slack = width * spread, _SLACK * delta + rounding
    found = []
    for added in (False, True):
        losses, masses = _composed(present, cells=cells, width=width, added=added)
        found.append((_epsilon(losses, masses, delta + slack), _epsilon(losses, masses, delta - slack)))
    return Bounds(
        low=max(0.0, max(low for low, _ in found) - error), high=max(0.0, max(high for _, high in found) + error)
    )


def transform_error(steps: int) -> float:
    """Return the largest error that Fourier transforms cause in the probability of a tail.

    Raising a spectrum to a power multiplies its rounding errors. Binomial distributions are compositions with a closed
    form: on them, the measured error is a third to a half of this value, on every grid that is used here.
    """
    return 1e-13 + 1e-16 * steps


def _reach(groups: Groups, probability: float) -> float:
    """Return a loss that the sum, and each single step, exceeds in absolute value with at most this probability."""
    total = sum(steps * _renyi(rate, noise) for (rate, noise), steps in groups.items())
    return float(np.min(total + math.log(1 / probability) / (_ORDERS - 1)))


def _renyi(rate: float, noise: float) -> Any:
    """Return the Rényi divergences of one step, at each of _ORDERS: Mironov, Talwar and Zhang (2019), section 3.3."""
    if rate == 1.0:
        return _ORDERS / (2 * noise**2)
    values = []
    for order in _ORDERS:
        k = np.arange(order + 1)
        terms = (
            special.gammaln(order + 1)
            - special.gammaln(k + 1)
            - special.gammaln(order - k + 1)
            + (order - k) * math.log1p(-rate)
            + k * math.log(rate)
            + k * (k - 1) / (2 * noise**2)
        )
        values.append(max(0.0, float(special.logsumexp(terms))) / (order - 1))
    return np.array(values)


def _composed(groups: Groups, *, cells: int, width: float, added: bool) -> tuple[Any, Any]:
    """Return the grid's losses, ascending, and the probability mass of the composed loss on each."""
    spectrum, shift = np.ones(cells // 2 + 1, dtype=complex), 0.0
    places = np.arange(cells) - cells // 2
    for (rate, noise), steps in groups.items():
        edges = (np.arange(cells + 1) - cells // 2 - 0.5) * width
        below = _distribution(edges, rate=rate, noise=noise, added=added)
        masses = np.diff(below)
        inside = float(below[-1] - below[0])
        rounded = float(masses @ places) * width
        shift += steps * (_mean(edges[0], edges[-1], rate=rate, noise=noise, added=added) - rounded) / inside
        # The loss at place k is stored at index k modulo the number of cells, so sums need no other shift.
        spectrum *= fft.rfft(np.roll(masses / inside, -(cells // 2))) ** steps
    summed = np.roll(fft.irfft(spectrum, cells), cells // 2)
    return places * width + shift, summed


def _distribution(losses: Any, *, rate: float, noise: float, added: bool) -> Any:
    """Return the probability that one step's loss is at most each of `losses`.

    Removing a unit: the outcome x is drawn from (1-q)·N(0, σ²) + q·N(1, σ²), and the loss is the logarithm of this
    density divided by that of N(0, σ²). Adding a unit: x is drawn from N(0, σ²), and the loss has the other sign.
    """
    x = _outcome(-losses if added else losses, rate=rate, noise=noise)
    if added:
        return special.ndtr(-x / noise)
    return (1 - rate) * special.ndtr(x / noise) + rate * special.ndtr((x - 1) / noise)


def _outcome(losses: Any, *, rate: float, noise: float) -> Any:
    """Return the x at which the logarithm of the density ratio has these values; -inf for values that are too small."""
    if rate == 1.0:
        return noise**2 * losses + 0.5
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        gain = losses + np.log1p(-(1 - rate) * np.exp(-losses)) - math.log(rate)
    return np.where(np.isnan(gain), -np.inf, noise**2 * gain + 0.5)


def _mean(low: float, high: float, *, rate: float, noise: float, added: bool) -> float:
    """Return the integral of one step's loss over the outcomes whose loss lies in [low, high]."""
    ends = _outcome(np.array([-high, -low] if added else [low, high]), rate=rate, noise=noise)
    # The probability beyond forty standard deviations is below the smallest double.
    first, last = max(float(ends[0]), -40 * noise), min(float(ends[1]), 1 + 40 * noise)
    nodes, weights = np.polynomial.legendre.leggauss(32)
    borders = np.linspace(first, last, 257)
    middle, half = (borders[1:] + borders[:-1]) / 2, (borders[1:] - borders[:-1]) / 2
    x = middle[:, None] + half[:, None] * nodes
    exponent = (2 * x - 1) / (2 * noise**2)
    loss = exponent if rate == 1.0 else np.logaddexp(math.log1p(-rate), math.log(rate) + exponent)
    without, present = _density(x, noise), _density(x - 1, noise)
    integrand = -loss * without if added else loss * ((1 - rate) * without + rate * present)
    return float(((integrand @ weights) * half).sum())


def _density(x: Any, noise: float) -> Any:
    return np.exp(-((x / noise) ** 2) / 2) / (noise * math.sqrt(2 * math.pi))


def _epsilon(losses: Any, masses: Any, delta: float) -> float:
    """Return the least ε at which E[(1 - exp(ε - loss))₊] is at most δ. It may be below 0."""
    above = np.cumsum(masses[::-1])[::-1]
    weighted = np.cumsum((masses * np.exp(-losses))[::-1])[::-1]
    exceeding = np.flatnonzero(above - np.exp(losses) * weighted > delta)
    first = int(exceeding[-1]) + 1 if exceeding.size else 0
    if first >= len(losses) or above[first] <= delta:
        return float(losses[min(first, len(losses) - 1)])
    return float(math.log((above[first] - delta) / weighted[first]))
