"""The expected reward. It is subtracted from each reward, so that only the difference changes the policy."""

from collections.abc import Mapping

FIRST = 0.5  # the middle of a reward's range


class Baseline:
    """An exponential moving average of mean rewards, without a slow start from zero.

    Kingma and Ba, "Adam: A Method for Stochastic Optimization" (2015), section 3: the average is divided by the sum of
    its weights so far.
    """

    def __init__(self, *, decay: float) -> None:
        self._decay, self._sum, self._weight = decay, 0.0, 0.0

    @property
    def value(self) -> float:
        """The baseline, in [0, 1]; 0.5 before the first update."""
        if self._weight == 0.0:
            return FIRST
        # Rewards are in [0, 1], but noise can push the average out of that range.
        return min(1.0, max(0.0, self._sum / self._weight))

    def update(self, mean: float) -> None:
        """Add a step's mean reward to the average."""
        self._sum = self._decay * self._sum + (1 - self._decay) * mean
        self._weight = self._decay * self._weight + (1 - self._decay)

    def state_dict(self) -> dict[str, float]:
        """Return the state that `load_state_dict` accepts."""
        return {"sum": self._sum, "weight": self._weight}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Continue from a saved state."""
        self._sum, self._weight = state["sum"], state["weight"]
