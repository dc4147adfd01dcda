"""Which units a step trains on: a pure function of (key, step)."""

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
        """Return the drawn units; the draw may be empty."""
        return np.flatnonzero(self._stream.uniforms("draw", step, self._units) < self._rate)


class ShuffledSampler:
    """The usual sampling without privacy: each epoch has a new random order, cut into batches of equal size.

    The last batch of an epoch holds the remaining units.
    """

    def __init__(self, *, units: int, batch_size: int, stream: Stream) -> None:
        self._units, self._batch_size, self._stream = units, batch_size, stream

    def draw(self, step: int) -> np.ndarray:
        """Return the units of step `step`: one part of its epoch's order."""
        epoch, position = divmod(step - 1, math.ceil(self._units / self._batch_size))
        order = self._stream.permutation("epoch", epoch, self._units)
        return order[position * self._batch_size : (position + 1) * self._batch_size]


@dataclass(frozen=True, kw_only=True)
class Draws:
    """The logical batches of a run: which units each step trains on, and which rows of them."""

    dataset: UnitDataset
    sampler: Sampler
    stream: Stream

    def examples(self, step: int) -> list[Example]:
        """Return the rows of step `step`, from 1."""
        return self.dataset.examples(self.sampler.draw(step), step=step, stream=self.stream)
