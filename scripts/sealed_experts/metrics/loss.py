"""`loss`: how unlikely the records' own answers are to a model."""

from collections.abc import Sequence
from typing import ClassVar

from sealed_experts.metrics import Case, Losses, Metric


class Loss(Metric):
    """Mean negative log-likelihood of the tokens of the records' own answers; every token weighs the same."""

    title: ClassVar[str] = "Held-out loss"
    unit: ClassVar[str] = "nats per token"
    needs: ClassVar = "losses"
    usual: ClassVar[bool] = True
    higher_is_better: ClassVar[bool] = False
    worst: ClassVar[float | None] = None

    def usable(self, case: Case) -> bool:
        """Tell whether the record's own answer has a token."""
        return case.tokens > 0

    def measure(self, case: Case) -> float:
        """Return the record's mean over its own tokens."""
        return case.loss / case.tokens

    def parts(self, case: Case, value: float) -> tuple[float, ...]:
        """Return the sum over the record's tokens, and their number."""
        return (case.loss, float(case.tokens))

    def combined(self, columns: Sequence[Sequence[float]], losses: Losses) -> float | None:
        """Return the mean of the stages' validation, to the last bit: they add up by batches."""
        return losses.mean
