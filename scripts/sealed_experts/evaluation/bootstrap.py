"""95 % intervals of figures over held-out records, by resampling units.

The bias-corrected and accelerated bootstrap (Efron, "Better Bootstrap Confidence Intervals", 1987), from scipy.
Rewards have few distinct values and a skewed distribution. There each end of the plain percentile interval is wrong by
O(1/√n), and of this one by O(1/n). A gain is the mean of the differences on the same records: so it does not matter how
hard a record is for both models.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import bootstrap

from sealed_experts.privacy.streams import derive_key

CONFIDENCE = 0.95
RESAMPLES = 9999
FEWEST_UNITS = 10  # with fewer units, resamples show too little of the spread, and the interval is too narrow
_ROUNDING = 1e-12  # rewards and losses are not known more precisely than this
_CELLS_AT_ONCE = 1 << 22  # resampled values in memory at a time


@dataclass(frozen=True)
class Interval:
    """A 95 % interval."""

    low: float
    high: float


class Resampling:
    """Draws the intervals of one evaluation: from the run's seed, by units.

    Records of one unit (a customer's, a document's) are not independent of each other, so it draws whole units.
    """

    def __init__(self, units: Sequence[int], *, seed: int, resamples: int = RESAMPLES) -> None:
        """Take the unit of each record, 0, 1, … in any order, and the run's public seed."""
        self._units = np.asarray(units, dtype=np.int64)
        self._key = int.from_bytes(derive_key(seed.to_bytes(8, "big", signed=True), "bootstrap"), "big")
        self._resamples = resamples

    def interval(
        self, *columns: Sequence[float], figure: Callable[..., Any] = lambda total, weight: total / weight
    ) -> Interval | None:
        """Return the interval of `figure` of the columns' sums; None for fewer than 10 units, or without finite ends.

        If the units' figures differ only by rounding, there is no spread: both ends are that figure.

        Args:
            columns: the numbers to add up, each [records], such as sums of losses and numbers of tokens. A column of
                ones is added to a single column, for its mean.
            figure: returns the figure for given sums, or an array of figures for arrays of sums.
        """
        if len(columns) == 1:
            columns = (*columns, [1.0] * len(self._units))
        sums = np.array([self._by_unit(np.asarray(column, dtype=np.float64)) for column in columns])
        sums = sums[:, sums.any(axis=0)]  # a unit without tokens has no weight
        if sums.size == 0 or sums.shape[1] < FEWEST_UNITS or not np.isfinite(sums).all():
            return None
        with np.errstate(all="ignore"):
            figures = figure(*sums)
        # Equal values can give unit means that differ in the last bit. The acceleration would be 0 / 0, or the interval
        # only noise.
        if np.ptp(figures) <= _ROUNDING * max(1.0, float(np.abs(figures).max())):
            return Interval(float(figures[0]), float(figures[0]))
        # Use the same resamples for every interval of an evaluation, so that they can be compared.
        result = bootstrap(
            tuple(sums),
            lambda *resampled, axis: figure(*(column.sum(axis=axis) for column in resampled)),
            paired=True,
            vectorized=True,
            method="BCa",
            confidence_level=CONFIDENCE,
            n_resamples=self._resamples,
            batch=max(1, _CELLS_AT_ONCE // sums.shape[1]),
            rng=np.random.default_rng(self._key),
        )
        low, high = map(float, result.confidence_interval)
        return Interval(low, high) if math.isfinite(low) and math.isfinite(high) else None

    def _by_unit(self, values: np.ndarray) -> np.ndarray:
        return np.bincount(self._units, weights=values)
