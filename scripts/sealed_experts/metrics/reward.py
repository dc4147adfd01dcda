"""`reward`: the score of sampled answers by the reward of an expert's stage, in total and on each axis."""

from collections.abc import Mapping
from typing import Any, ClassVar

from sealed_experts.metrics import Case, Metric
from sealed_experts.rewards import Scoring


class Reward(Metric):
    """Mean reward of sampled answers, by the reward that a stage trains for; `reward.<axis>` is one of its axes.

    The reward scores an empty answer too.
    """

    title: ClassVar[str] = "Reward"
    unit: ClassVar[str] = "mean, 0 to 1"
    needs: ClassVar = "reward"
    usual: ClassVar[bool] = True
    order: ClassVar[int] = 2

    def values(self, case: Case) -> Mapping[str, float]:
        """Return the reward and its axes."""
        if case.score is None:
            return {}
        return {self.feature: case.score.value} | {
            f"{self.feature}.{axis}": value for axis, value in case.score.axes.items()
        }

    def described(self, name: str, reward: Scoring | None) -> dict[str, Any]:
        """Return the facts that tables need; for an axis also its weight."""
        shown, axis = super().described(name, reward), name.partition(".")[2]
        if not axis:
            return shown
        weight = reward.weights.get(axis) if reward else None
        return shown | {"unit": "for information" if weight is None else f"weight {weight:g}"}
