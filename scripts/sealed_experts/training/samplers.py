"""Which units a step sees: a pure function of (key, step)."""

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from sealed_experts.privacy.streams import Stream
from sealed_experts.training.batches import Example
from sealed_experts.training.dataset import UnitDataset


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
    """Epochs over a fresh random order each, cut into batches of one size; the last one holds what is left.

    The usual sampling without privacy.
    """

    def __init__(self, *, units: int, batch_size: int, stream: Stream) -> None:
        self._units, self._batch_size, self._stream = units, batch_size, stream

    def draw(self, step: int) -> np.ndarray:
        """Return this step's part of its epoch's order."""
        epoch, position = divmod(step - 1, math.ceil(self._units / self._batch_size))
        order = self._stream.permutation("epoch", epoch, self._units)
        return order[position * self._batch_size : (position + 1) * self._batch_size]


@dataclass(frozen=True, kw_only=True)
class Draws:
    """The logical batches of a run: which units each step sees, and which of their rows."""

    dataset: UnitDataset
    sampler: Sampler
    stream: Stream

    def examples(self, step: int) -> list[Example]:
        """Return the rows of step `step`, from 1."""
        return self.dataset.examples(self.sampler.draw(step), step=step, stream=self.stream)
