"""The best validation of a run, and when to stop early. Both depend only on the run's history."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sealed_experts.errors import UserError
from sealed_experts.training.objectives import Stage


@dataclass(frozen=True, kw_only=True)
class BestValidation:
    """How validation chooses the best weights and stops a run early.

    Attributes:
        figure: name of the figure that decides, as in a validation's line.
        less_is_better: whether smaller values are better.
        patience: the run ends after this many validations in a row without a better value; None for never.
    """

    figure: str
    less_is_better: bool
    patience: int | None

    @classmethod
    def of(cls, settings: Stage) -> "BestValidation | None":
        """Return the rule that a stage's settings ask for; None if validation decides nothing."""
        if not settings.chooses:
            return None
        figure = settings.decided_by
        return cls(figure=figure, less_is_better=settings.monitored[figure], patience=settings.patience)

    def line(self, history: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
        """Return the line of the best validation, the first of equals; None if there is none yet.

        The validation before the first step does not count, because that adapter has learned nothing.

        Raises:
            UserError: a validation could not measure the figure.
        """
        lines = self._lines(history)
        sign = 1 if self.less_is_better else -1
        return min(lines, key=lambda line: sign * line[self.figure], default=None)

    def is_over(self, history: Sequence[Mapping[str, Any]]) -> bool:
        """Return whether the last `patience` validations brought no better value.

        Raises:
            UserError: a validation could not measure the figure.
        """
        best = self.line(history)
        if best is None or self.patience is None:
            return False
        return sum(line["step"] > best["step"] for line in self._lines(history)) >= self.patience

    def _lines(self, history: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        lines = [line for line in history if self.figure in line]
        for line in lines:
            if line[self.figure] is None:
                raise UserError(
                    f"validation of step {line['step']} could not measure {self.figure}, which `patience` and `keep: "
                    "best` need: the validation records hold no answer to measure; give other records, or remove"
                    " `patience` and `keep`"
                )
        return [line for line in lines if line["step"] > 0]
