"""Which units a step sees: a pure function of (key, step)."""

from typing import Protocol

import numpy as np

from sealed_experts.privacy.streams import Stream


class Sampler(Protocol):
    """Draws a logical batch."""

    def draw(self, step: int) -> np.ndarray:
        """Return the units of step `step` (from 1), int64 indices into the dataset's units, without repeats."""


class PoissonSampler:
    """Each unit enters each step's batch independently with probability `rate`, as the accountant assumes."""

    def __init__(self, *, units: int, rate: float, stream: Stream) -> None:
        self._units, self._rate, self._stream = units, rate, stream

    def draw(self, step: int) -> np.ndarray:
        """Return the drawn units; there may be none."""
        return np.flatnonzero(self._stream.uniforms("draw", step, self._units) < self._rate)


class ShuffledSampler:
    """Epochs over a fresh random order each, cut into batches of one size: the usual sampling without privacy.

    The rest of an epoch that fills no batch is left out; the next epoch's order is another one.
    """

    def __init__(self, *, units: int, batch_size: int, stream: Stream) -> None:
        self._units, self._batch_size, self._stream = units, min(batch_size, units), stream

    def draw(self, step: int) -> np.ndarray:
        """Return this step's slice of its epoch's order."""
        epoch, position = divmod(step - 1, self._units // self._batch_size)
        order = self._stream.permutation("epoch", epoch, self._units)
        return order[position * self._batch_size : (position + 1) * self._batch_size]
