"""What a reward is."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Score:
    """How good an answer is.

    `value` is in [0, 1]. `axes` are the reward's single measures, each in [0, 1] and without its weight; a reward of
    one measure names it after itself.
    """

    value: float
    axes: Mapping[str, float]


class Reward(Protocol):
    """Scores answers; the same prompt and answer always get the same score.

    `weights` holds the share of each axis in the value: value = Σ weights[a] · axes[a]. An axis without a weight is
    for information.
    """

    @property
    def name(self) -> str:
        """The name it was asked for by."""

    @property
    def weights(self) -> Mapping[str, float]:
        """{axis: its share of the value}; the shares add up to 1."""

    def score(self, prompt: str, response: str) -> Score:
        """Return the score of an answer to a prompt."""
