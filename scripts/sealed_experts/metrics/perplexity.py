"""`perplexity`: e to the power of the loss."""

import math
from typing import ClassVar

from sealed_experts.metrics.loss import Loss


class Perplexity(Loss):
    """e to the power of the mean loss: among how many equally likely tokens a model would be as unsure."""

    title: ClassVar[str] = "Perplexity"
    unit: ClassVar[str] = ""
    order: ClassVar[int] = 1
    compared: ClassVar[bool] = False  # the gain of the loss says the same

    def shown(self, value: float) -> float | None:
        """Return e to the power of a loss."""
        try:
            return math.exp(value)
        except OverflowError:
            return None
